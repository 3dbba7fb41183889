"""A peer on the system's libssl, for what Python's `ssl` and pyOpenSSL cannot ask of OpenSSL."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.stream_helpers import LONGEST, finished, in_thread, together
from twisted_netsock import make_client_tls_socket, make_server_tls_socket
from twisted_netsock.testing import CertificateAuthority

# Of <openssl/ssl.h>.
KEY_UPDATE_NOT_REQUESTED = 0
KEY_UPDATE_REQUESTED = 1
_CTRL_SET_MAX_PROTO_VERSION = 124
_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
_FILETYPE_PEM = 1
_ERROR_ZERO_RETURN = 6
_READ_EARLY_DATA_ERROR = 0
EARLY_DATA_NOT_SENT, EARLY_DATA_REJECTED, EARLY_DATA_ACCEPTED = range(3)

_name = ctypes.util.find_library("ssl")

needs_libssl = pytest.mark.skipif(
    _name is None or not _name.endswith(".so.3"), reason="there is no libssl.so.3"
)


def _load() -> Any:
    library = ctypes.CDLL(_name)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    size, sizes = ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t)
    for name, result, arguments in (
        ("TLS_method", pointer, []),
        ("SSL_CTX_new", pointer, [pointer]),
        ("SSL_CTX_free", None, [pointer]),
        ("SSL_CTX_set_max_early_data", number, [pointer, ctypes.c_uint32]),
        ("SSL_CTX_ctrl", ctypes.c_long, [pointer, number, ctypes.c_long, pointer]),
        ("SSL_CTX_use_certificate_chain_file", number, [pointer, ctypes.c_char_p]),
        ("SSL_CTX_use_PrivateKey_file", number, [pointer, ctypes.c_char_p, number]),
        ("SSL_new", pointer, [pointer]),
        ("SSL_free", None, [pointer]),
        ("SSL_set_fd", number, [pointer, number]),
        ("SSL_set_accept_state", None, [pointer]),
        ("SSL_set_connect_state", None, [pointer]),
        ("SSL_do_handshake", number, [pointer]),
        ("SSL_read", number, [pointer, pointer, number]),
        ("SSL_write", number, [pointer, ctypes.c_char_p, number]),
        ("SSL_shutdown", number, [pointer]),
        ("SSL_get_error", number, [pointer, number]),
        ("SSL_key_update", number, [pointer, number]),
        ("SSL_renegotiate", number, [pointer]),
        ("SSL_new_session_ticket", number, [pointer]),
        ("SSL_verify_client_post_handshake", number, [pointer]),
        ("SSL_session_reused", number, [pointer]),
        ("SSL_get1_session", pointer, [pointer]),
        ("SSL_set_session", number, [pointer, pointer]),
        ("SSL_SESSION_set_max_early_data", number, [pointer, ctypes.c_uint32]),
        ("SSL_SESSION_free", None, [pointer]),
        ("SSL_write_early_data", number, [pointer, ctypes.c_char_p, size, sizes]),
        ("SSL_read_early_data", number, [pointer, pointer, size, sizes]),
        ("SSL_get_early_data_status", number, [pointer]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class OpenSSLError(Exception):
    """A call of libssl failed."""


class OpenSSLPeer:
    """One TLS connection of libssl; its calls block, for a bounded time each."""

    def __init__(
        self,
        plain: socket.socket,
        version: str,
        identity: Path | None,
        *,
        early: int = 0,
        handshake: bool = True,
    ) -> None:
        """
        Take *plain* over, and shake hands.

        Args:
            plain: Owned from here on.
            version: The newest that is spoken.
            identity: A PEM file; with it this is the server.
            early: Bytes of early data that the tickets of a server allow.
            handshake: If not, `shake_hands` is the caller's to call.
        """
        self._library = _load()
        self.plain = plain
        plain.settimeout(None)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = int(LONGEST).to_bytes(8, "little") + bytes(8)
        for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            plain.setsockopt(socket.SOL_SOCKET, name, seconds)
        self._context = self._library.SSL_CTX_new(self._library.TLS_method())
        limit = _VERSIONS[version]
        self._library.SSL_CTX_ctrl(self._context, _CTRL_SET_MAX_PROTO_VERSION, limit, None)
        if identity is not None:
            path = str(identity).encode()
            self._library.SSL_CTX_use_certificate_chain_file(self._context, path)
            self._library.SSL_CTX_use_PrivateKey_file(self._context, path, _FILETYPE_PEM)
        self._library.SSL_CTX_set_max_early_data(self._context, early)
        self._ssl = self._library.SSL_new(self._context)
        self._library.SSL_set_fd(self._ssl, plain.fileno())
        side = "connect" if identity is None else "accept"
        getattr(self._library, f"SSL_set_{side}_state")(self._ssl)
        if handshake:
            self.shake_hands()

    def shake_hands(self) -> None:
        self.check("SSL_do_handshake")

    def check(self, name: str, *arguments: Any) -> int:
        """Call the function *name*, which must succeed."""
        result: int = getattr(self._library, name)(self._ssl, *arguments)
        if result <= 0:
            raise OpenSSLError(name, self._library.SSL_get_error(self._ssl, result))
        return result

    def send(self, data: bytes) -> None:
        """Send all of *data*."""
        self.check("SSL_write", data, len(data))

    def recv(self, size: int = 65536) -> bytes:
        """Receive some; ``b""`` is close_notify."""
        buffer = ctypes.create_string_buffer(size)
        try:
            count = self.check("SSL_read", buffer, size)
        except OpenSSLError as error:
            if error.args[1] == _ERROR_ZERO_RETURN:
                return b""
            raise
        return buffer.raw[:count]

    def read_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.recv(size - len(data))
            assert piece, f"the stream ended after {len(data)} of {size} bytes"
            data += piece
        return bytes(data)

    def update_keys(self, kind: int) -> None:
        """Send new keys, and ask for the peer's where *kind* says so."""
        self.check("SSL_key_update", kind)
        self.check("SSL_do_handshake")

    def shutdown(self) -> None:
        """Send close_notify."""
        self._library.SSL_shutdown(self._ssl)

    # Sessions, and what is sent before a handshake is done (RFC 8446, section 2.3)

    @property
    def resumed(self) -> bool:
        return bool(self._library.SSL_session_reused(self._ssl))

    @property
    def early_data(self) -> int:
        """What became of the early data: not sent, rejected or accepted."""
        status: int = self._library.SSL_get_early_data_status(self._ssl)
        return status

    def take_session(self) -> int:
        """Return the session, to be given to `resume`."""
        session: int = self._library.SSL_get1_session(self._ssl)
        return session

    def resume(self, session: int, early: int) -> None:
        """Offer *session*, which is freed, as one that allows *early* bytes of early data."""
        self._library.SSL_SESSION_set_max_early_data(session, early)
        self.check("SSL_set_session", session)
        self._library.SSL_SESSION_free(session)

    def send_early(self, data: bytes) -> None:
        """Send *data* as early data; the handshake is not done then."""
        self.check("SSL_write_early_data", data, len(data), ctypes.byref(ctypes.c_size_t()))

    def read_early(self) -> bytes:
        """Read the early data of a client, if it sends any, and go on to the handshake."""
        buffer, size = ctypes.create_string_buffer(65536), ctypes.c_size_t()
        status = self._library.SSL_read_early_data(
            self._ssl, buffer, len(buffer), ctypes.byref(size)
        )
        assert status != _READ_EARLY_DATA_ERROR
        return buffer.raw[: size.value]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.SSL_free(self._ssl)
        self._library.SSL_CTX_free(self._context)
        self.plain.close()


@asynccontextmanager
async def meet_openssl(
    authority: CertificateAuthority, side: str, directory: Path, version: str = "TLSv1.3"
) -> AsyncIterator[tuple[Any, OpenSSLPeer]]:
    """Connect a socket of ours, on *side*, with an `OpenSSLPeer`."""
    if side == "server":
        options = authority.server_options()
        async with await make_server_tls_socket("127.0.0.1", 0, options) as listener:
            address = listener.getsockname()

            def dial() -> OpenSSLPeer:
                return OpenSSLPeer(socket.create_connection(address), version, None)

            ours, theirs = await together(finished(listener.accept()), finished(in_thread(dial)))
    else:
        identity = directory / "identity.pem"
        identity.write_bytes(authority.issue("127.0.0.1").pem)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(LONGEST)
            address = listener.getsockname()

            def answer() -> OpenSSLPeer:
                return OpenSSLPeer(listener.accept()[0], version, identity)

            ours, theirs = await together(
                finished(
                    make_client_tls_socket(*listener.getsockname(), authority.client_options())
                ),
                finished(in_thread(answer)),
            )
    try:
        with theirs:
            yield ours, theirs
    finally:
        ours.abort()
