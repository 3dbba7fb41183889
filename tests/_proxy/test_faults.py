"""A proxy that goes wrong at each stage: typed errors, and nothing left behind."""

from __future__ import annotations

import contextlib
import sys
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError

from tests.support.clocks import turns
from tests.support.loopback import LOOPBACK
from tests.support.streams import read_exactly
from tests.support.threads import no_descriptors
from twisted_netsock import (
    CertificateVerificationError,
    ProxyError,
    ProxyProtocolError,
    ProxyUnreachableError,
    SocketConnectionLostError,
    SocketConnectionTimeoutError,
    SocketOptions,
    TLSHandshakeError,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    start_tls,
)
from twisted_netsock._io.poller import WANT_READ
from twisted_netsock._proxies import Proxy
from twisted_netsock._proxy.dialogues import ANSWER_LIMIT
from twisted_netsock._proxy.stage import _Ask
from twisted_netsock.testing import CertificateAuthority

NODE = "target.invalid"
SOCKS_YES = (b"\x05\x00", b"\x05\x00\x00\x01\x7f\x00\x00\x01\x12\x34")
HTTP_YES = (b"HTTP/1.1 200 Connection established\r\n\r\n",)
ANSWERS = {"socks5": SOCKS_YES, "http": HTTP_YES, "https": HTTP_YES}
STAGES = [
    (scheme, stage)
    for scheme in ANSWERS
    for stage in ("TLS with the proxy", "dialogue", "handshake")
    if scheme == "https" or stage != "TLS with the proxy"
]
PROXYS = ProxyUnreachableError, ProxyProtocolError
GONE = (*PROXYS, SocketConnectionLostError)
FAULTS = {
    "reset": GONE,
    "end": GONE,
    "garbage": (*PROXYS, TLSHandshakeError),
    "cancel": (CancelledError,) * 3,
    "silence": (SocketConnectionTimeoutError,) * 3,
}
"""What each fails with: in TLS with the proxy, in its dialogue, in the handshake behind it."""

authority = CertificateAuthority()


class Reached:
    """A connection whose proxy has come as far as a stage."""

    def __init__(self, scheme: str, stage: str, server: Any, seconds: float) -> None:
        self._scheme = scheme
        self._stage = stage
        self._server = server
        options = authority.client_options(
            proxy=f"{scheme}://{LOOPBACK}:{server.getsockname().port}",
            connection_timeout=timedelta(seconds=seconds),
        )
        if scheme == "https":
            options = options.replace(proxy_trusted_certificates=authority.certificate_pem)
        self.connecting = make_client_tls_socket(NODE, 443, options)

    async def peer(self) -> Any:
        """Return the proxy's side, at the stage."""
        peer = await self._server.accept()
        if self._stage == "TLS with the proxy":
            assert (await read_exactly(peer, 1)) == b"\x16"
            return peer
        if self._scheme == "https":
            peer = await start_tls(peer, authority.server_options(LOOPBACK))
        await peer.recv(1000)
        if self._stage == "handshake":
            for part in ANSWERS[self._scheme]:
                await peer.sendall(part)
                assert await peer.recv(1000)
        return peer


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("scheme", "stage"), STAGES)
async def test_each_fault_of_each_stage_has_its_class(scheme, stage, fault):
    seconds = 0.3 if fault == "silence" else 30
    async with await make_server_socket(LOOPBACK, 0) as server:
        reached = Reached(scheme, stage, server, seconds)
        peer = await reached.peer()
        if fault == "cancel":
            reached.connecting.cancel()
        elif fault == "reset":
            peer.abort()
        elif fault == "garbage":
            await peer.sendall(b"garbage" * 10)
        elif fault == "end":
            peer.close()
        place = ["TLS with the proxy", "dialogue", "handshake"].index(stage)
        with pytest.raises(FAULTS[fault][place]) as caught:
            await reached.connecting
        peer.abort()
    if fault == "silence":
        assert caught.value.stage == ("handshake" if stage == "handshake" else "proxy")
    if isinstance(caught.value, ProxyError):
        assert (caught.value.target, "127.0.0.1" in caught.value.proxy) == (f"{NODE}:443", True)
    await no_descriptors()


@pytest.mark.parametrize(("trusted", "name"), [(False, LOOPBACK), (True, "other.example")])
async def test_a_proxy_that_is_not_verified_learns_nothing(trusted, name):
    issuer = authority if trusted else CertificateAuthority()
    got = b""
    async with await make_server_socket(LOOPBACK, 0) as server:
        options = SocketOptions(
            proxy=f"https://me:secret@{LOOPBACK}:{server.getsockname().port}",
            proxy_trusted_certificates=authority.certificate_pem,
        )
        connecting = make_client_socket(NODE, 443, options)
        peer = await server.accept()
        # Its handshake is done before it sees our refusal (RFC 8446, section 4.4).
        with pytest.raises((TLSHandshakeError, CertificateVerificationError, OSError)):
            async with await start_tls(peer, issuer.server_options(name)) as wrapped:
                got += await wrapped.recv(1000)
        with pytest.raises(ProxyUnreachableError, match="certificate was refused") as caught:
            await connecting
    assert isinstance(caught.value.__cause__, CertificateVerificationError)
    assert "secret" not in str(caught.value) + repr(caught.value)
    assert got == b""
    await no_descriptors()


async def test_both_layers_end_in_order():
    """What the target's TLS ends with a close_notify, the proxy's TLS does, too."""
    async with await make_server_socket(LOOPBACK, 0) as server:
        reached = Reached("https", "handshake", server, 30)
        # It has the beginning of the ClientHello: a target that has read that would not do.
        peer = await reached.peer()
        reached.connecting.cancel()
        with pytest.raises(CancelledError):
            await reached.connecting
        peer.abort()
    async with await make_server_socket(LOOPBACK, 0) as server:
        options = SocketOptions(
            proxy=f"https://{LOOPBACK}:{server.getsockname().port}",
            proxy_trusted_certificates=authority.certificate_pem,
        )
        connecting = make_client_socket(NODE, 80, options)
        peer = await start_tls(await server.accept(), authority.server_options(LOOPBACK))
        assert (await peer.recv(1000)).startswith(b"CONNECT target.invalid:80 HTTP/1.1\r\n")
        await peer.sendall(HTTP_YES[0] + b"what follows")
        sock = await connecting
        assert await read_exactly(sock, 12) == b"what follows"
        await sock.sendall(b"x" * 100_000)
        sock.close()
        assert await peer.input_port.read_all() == b"x" * 100_000
        await peer.close()
    await no_descriptors()


async def test_a_proxys_late_end_is_told_from_a_cut():
    async with await make_server_socket(LOOPBACK, 0) as server:
        options = SocketOptions(
            proxy=f"https://{LOOPBACK}:{server.getsockname().port}",
            proxy_trusted_certificates=authority.certificate_pem,
        )
        for cut in (False, True):
            connecting = make_client_socket(NODE, 80, options)
            peer = await start_tls(await server.accept(), authority.server_options(LOOPBACK))
            await peer.recv(1000)
            await peer.sendall(HTTP_YES[0])
            sock = await connecting
            waiting = sock.recv(10)
            await turns()
            if cut:
                peer.abort()
                with pytest.raises(OSError):
                    await waiting
            else:
                closing = peer.close()
                assert await waiting == b""
                sock.close()
                await closing
            sock.abort()
    await no_descriptors()


# Answers in pieces


class Pieces:
    """A descriptor on which an answer comes in pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.taken = 0

    def try_send(self, view: Any) -> int:
        return len(view)

    def try_recv(self, n: int) -> Any:
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if not piece:
            return WANT_READ
        if piece[n:]:
            self.pieces.insert(0, piece[n:])
        self.taken += len(piece[:n])
        return piece[:n]


def ask(scheme: str, pieces: list[bytes]) -> Pieces:
    """Hold the dialogue to its end, whatever that is."""
    descriptor = Pieces(pieces)
    asking = _Ask(descriptor, Proxy(scheme, "proxy.test", 1), NODE, 443)  # type: ignore[arg-type]
    while asking() is not None:
        pass
    return descriptor


@given(scheme=st.sampled_from(["socks5", "http"]), data=st.data())
def test_an_answer_may_come_in_any_pieces(scheme, data):
    whole = b"".join(ANSWERS[scheme])
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    waits = data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
    mixed = [
        each
        for piece, wait in zip(pieces, waits, strict=True)
        for each in ([b""] if wait else []) + [piece]
    ]
    descriptor = ask(scheme, [*(each for each in mixed), b"rest"])
    assert descriptor.taken == len(whole)
    assert b"".join(descriptor.pieces) == b"rest"


@given(
    scheme=st.sampled_from(["socks5", "http"]),
    answer=st.binary(max_size=200)
    | st.binary(max_size=50).map(lambda rest: b"HTTP/1.1 200 " + rest)
    | st.binary(max_size=50).map(lambda rest: b"\x05\x00\x05\x00\x00" + rest),
)
def test_whatever_is_answered_it_connects_or_has_a_proxy_error(scheme, answer):
    with contextlib.suppress(ProxyError):
        ask(scheme, [answer])


def test_an_answer_has_a_limit():
    endless = [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 20_000]
    descriptor = Pieces(endless)
    asking = _Ask(descriptor, Proxy("http", "proxy.test", 1), NODE, 443)  # type: ignore[arg-type]
    with pytest.raises(ProxyProtocolError, match="longer than 65536 bytes"):
        asking()
    assert descriptor.taken == ANSWER_LIMIT


@pytest.mark.parametrize(("scheme", "module"), [("socks5", "socksio"), ("http", "h11")])
async def test_what_a_proxy_needs_is_named_where_it_is_missing(scheme, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    async with await make_server_socket(LOOPBACK, 0) as server:
        proxy = f"{scheme}://{LOOPBACK}:{server.getsockname().port}"
        with pytest.raises(ProxyError, match=r"pip install 'twisted-netsock\[proxy\]'"):
            await make_client_socket(NODE, 80, SocketOptions(proxy=proxy))


@pytest.mark.parametrize("proxy", [None, "http://proxy.test:1", "socks5://proxy.test:1"])
def test_authorities_are_for_proxies_that_show_certificates(proxy):
    with pytest.raises(ValueError, match="proxy_trusted_certificates needs proxy='https"):
        SocketOptions(proxy=proxy, proxy_trusted_certificates=authority.certificate_pem)
    both = {"proxy_trusted_certificates": authority.certificate_pem}
    assert SocketOptions(proxy="environment", **both).proxy == "environment"
    assert SocketOptions(proxy="https://proxy.test", **both).proxy == "https://proxy.test"
