"""
Inner parts of pyOpenSSL, Twisted and crochet, taken away as a release may do.

They are hidden from this package alone: those libraries go on using them. ``NETSOCK_HIDDEN``
names some, with commas between, or ``all``; `hide` is called before anything is imported.
"""

from __future__ import annotations

import os
import sys
from typing import Any

LIBRARY = (
    "BIO_get_mem_data",
    "BIO_read",
    "BIO_write",
    "ERR_clear_error",
    "SSL_ERROR_WANT_READ",
    "SSL_MODE_AUTO_RETRY",
    "SSL_clear_mode",
    "SSL_do_handshake",
    "SSL_get_error",
    "SSL_read",
    "SSL_set_fd",
    "SSL_write",
    "SSL_CTX_set_tlsext_servername_callback",
    "SSL_CTX_set_verify",
    "SSL_TLSEXT_ERR_ALERT_FATAL",
    "SSL_get_ex_data_X509_STORE_CTX_idx",
    "SSL_set_verify",
    "X509_STORE_CTX_get_current_cert",
    "X509_STORE_CTX_get_error",
    "X509_STORE_CTX_get_error_depth",
    "X509_STORE_CTX_get_ex_data",
    "X509_STORE_CTX_set_error",
    "X509_get_default_cert_dir",
    "X509_get_default_cert_file",
    "X509_verify_cert_error_string",
)
CONNECTION = ("_from_ssl", "_into_ssl", "_raise_ssl_error", "_socket", "_ssl")
DEFER = ("_CancellationStatus", "_gotResultInlineCallbacks")
DEFERRED = ("_callbacks", "_canceller", "_runningCallbacks")
MODULES = ("OpenSSL._util", "crochet._eventloop")

NAMES = (
    *MODULES,
    "ffi",
    "lib",
    "ResultRegistry",
    "EventualResult._connect_deferred",
    "EventualResult._set_result",
    *LIBRARY,
    *CONNECTION,
    *DEFER,
    *DEFERRED,
)


class Without:
    """Stands for something that lacks some names."""

    def __init__(self, real: Any, names: tuple[str, ...]) -> None:
        self._real = real
        self._names = names

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            raise AttributeError(name)
        return getattr(self._real, name)


def _hide_attributes(kind: type, names: frozenset[str]) -> None:
    """Take *names* from the instances of *kind*, for our modules alone."""
    given: Any = kind.__getattribute__

    def look(self: object, name: str) -> Any:
        if name in names:
            asking = sys._getframe(1).f_globals.get("__name__", "")
            if asking.startswith("twisted_netsock"):
                raise AttributeError(name)
        return given(self, name)

    kind.__getattribute__ = look  # type: ignore[method-assign]


def hide(*names: str) -> None:
    """Hide what has these names; the libraries are imported whole before."""
    import crochet
    import crochet._eventloop
    import OpenSSL._util
    import OpenSSL.SSL
    import twisted.internet.ssl
    from twisted.internet import defer

    unknown = set(names) - set(NAMES)
    assert not unknown, unknown
    chosen = frozenset(names)
    util: Any = OpenSSL._util
    util.lib = Without(util.lib, tuple(chosen.intersection(LIBRARY)))
    hidden: Any = Without(util, tuple(chosen.intersection(("ffi", "lib"))))
    sys.modules["OpenSSL._util"] = hidden
    if "ResultRegistry" in chosen:
        del crochet._eventloop.ResultRegistry
    _hide_attributes(
        crochet.EventualResult,
        frozenset(name.partition(".")[2] for name in chosen if name.startswith("EventualResult")),
    )
    _hide_attributes(OpenSSL.SSL.Connection, chosen.intersection(CONNECTION))
    _hide_attributes(defer.Deferred, chosen.intersection(DEFERRED))
    package: Any = twisted.internet
    package.defer = Without(defer, tuple(chosen.intersection(DEFER)))
    for module in chosen.intersection(MODULES):
        sys.modules[module] = None  # type: ignore[assignment]


def hide_chosen() -> None:
    """Hide what ``NETSOCK_HIDDEN`` names."""
    chosen = os.environ.get("NETSOCK_HIDDEN")
    if chosen:
        hide(*(NAMES if chosen == "all" else chosen.split(",")))
