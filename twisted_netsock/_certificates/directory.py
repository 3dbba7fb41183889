"""
A directory of certificates and keys, each shown to the clients that ask for one of its names.

Three forms are read, beside each other: files with a certificate, its chain and its key
(``example.com.pem``, as Twisted's own ``tls:`` strings take them), pairs (``example.com.crt`` and
``.key``), and directories with such a pair as certbot and Kubernetes make them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding

from .._hostnames import is_host_name, server_name_pattern
from ..options import ServerTLSSocketOptions
from .certificates import Identity, load_identity
from .identity import DNS_NAME, alternative_names

__all__ = ["directory_of", "identities"]

_PAIRS: Final = (("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key"))
"""Certificate and key in a directory of their own: certbot's, and those of a Kubernetes secret."""
_DEFAULT: Final = "default"
"""The name, in any case, of what is shown to clients that ask for a name that none has."""


class _Entry(NamedTuple):
    """Where a certificate is; its key is in another file, or with it."""

    name: str
    certificates: str
    key: str | None


def directory_of(options: ServerTLSSocketOptions) -> str | None:
    """
    Return the directory that *options* takes its certificates from, or `None`.

    Raises:
        ValueError: There is something else beside it.
    """
    sources = [source for source in options.certificates or () if isinstance(source, str)]
    found = [source for source in sources if os.path.isdir(source)]
    if not found:
        return None
    if len(options.certificates or ()) > 1 or options.private_key is not None:
        raise ValueError(
            f"certificates={found[0]!r} is a directory, with a key for each certificate: "
            "give nothing beside it, neither other certificates nor private_key"
        )
    if options.sni is not None:
        raise ValueError(
            f"sni={options.sni!r} beside a directory of certificates: each of them is for the "
            "names that it has"
        )
    return found[0]


def _entries(directory: str) -> Iterator[_Entry]:
    """Yield what is in *directory*, by name; hidden files are none of it."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise ValueError(f"certificates={directory!r} cannot be read: {error.strerror}") from None
    there = set(names)
    for name in names:
        path = os.path.join(directory, name)
        stem, kind = os.path.splitext(name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            for certificate, key in _PAIRS:
                pair = os.path.join(path, certificate), os.path.join(path, key)
                if all(map(os.path.exists, pair)):
                    yield _Entry(name, *pair)
        elif kind == ".pem":
            yield _Entry(stem, path, None)
        elif kind == ".crt" and f"{stem}.key" in there:
            yield _Entry(stem, path, os.path.join(directory, f"{stem}.key"))


def identities(
    options: ServerTLSSocketOptions, directory: str
) -> list[tuple[ServerTLSSocketOptions, Identity]]:
    """
    Return a record for each certificate in *directory*, with what was read for it.

    Of two for one name the one counts that expires last: the other is about to be removed.

    Raises:
        ValueError: A file cannot be used, or there is none.
    """
    found: list[tuple[_Entry, ServerTLSSocketOptions, Identity]] = []
    for entry in _entries(directory):
        record = options.replace(certificates=entry.certificates, private_key=entry.key)
        identity = load_identity(record)
        assert identity is not None
        found.append((entry, record, identity))
    if not found:
        raise ValueError(
            f"certificates={directory!r} holds no certificate: it should have NAME.pem with its "
            "key, NAME.crt and NAME.key, or NAME/fullchain.pem and NAME/privkey.pem"
        )
    found.sort(key=lambda each: each[2].certificate.not_valid_after_utc, reverse=True)
    served: set[str] = set()
    chosen: dict[str, tuple[ServerTLSSocketOptions, Identity]] = {}
    for entry, record, identity in found:
        default = entry.name.lower() == _DEFAULT
        names = [name for name in _names(identity) if server_name_pattern(name) not in served]
        served.update(map(server_name_pattern, names))
        if default or names:
            chosen[entry.name] = record.replace(sni=None if default else names), identity
    return [chosen[name] for name in sorted(chosen)]


def _names(identity: Identity) -> list[str]:
    """Return the host names that the certificate is for, wildcards too."""
    entries = alternative_names(identity.certificate.public_bytes(Encoding.DER))
    names = [value.decode("latin-1") for tag, value in entries if tag == DNS_NAME]
    return [name for name in dict.fromkeys(names) if is_host_name(name.removeprefix("*."))]
