"""Peers that forge the records and messages of TLS, at each stage, against both sides of ours."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.support.clocks import until
from tests.support.forgers import FLOOD, FORGERIES, Forge, Forger, flooded, message
from tests.support.loopback import LONGEST, LOOPBACK
from tests.support.protocols import Protocols, Recorder, listening
from tests.support.streams import (
    finished,
    in_thread,
    python_client_context,
    python_server_context,
    read_exactly,
    soon,
    together,
)
from twisted_netsock import (
    SocketConnectionLostError,
    TLSError,
    TLSHandshakeError,
    client_endpoint,
    make_client_tls_socket,
    make_server_tls_socket,
)
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.long

WORD = b"a word"
OURS = (TLSError, SocketConnectionLostError)
VERSIONS = pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
FLIGHTS = pytest.mark.parametrize("flight", [0, 1, 2], ids=["hello", "end of handshake", "data"])


def forging_client(context: ssl.SSLContext, port: int, forge: Forge, flight: int) -> int:
    """Connect, talk, and return how many bytes were taken."""
    with socket.create_connection((LOOPBACK, port), timeout=LONGEST) as plain:
        forger = Forger(plain, context, forge, flight=flight)
        forger.talk()
    return forger.sent


def forging_server(
    listener: socket.socket, context: ssl.SSLContext, forge: Forge, flight: int
) -> int:
    """Do the same with a client that comes."""
    plain, _ = listener.accept()
    with plain:
        forger = Forger(plain, context, forge, flight=flight)
        forger.talk()
    return forger.sent


async def read_on(sock: Any) -> tuple[bytes, Exception]:
    """Read until our side fails; return what it got, and the error."""
    received = b""
    try:
        await soon(sock.handshake())
        while data := await soon(sock.recv(65536)):
            received += data
    except OURS as error:
        return received, error
    finally:
        sock.abort()
    raise AssertionError("the forger has ended the stream in order")


def check(name: str, flight: int, received: bytes, error: Exception, sent: int) -> None:
    """Check what came of a forgery: nothing that the peer has not said, and an error of ours."""
    said = (name, received, repr(error), sent)
    assert isinstance(error, OURS), said
    assert received in {b"", WORD}, said
    assert sent < FLOOD, said


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Have an error say which forgery it came of."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"the forgery was: {name}")
        raise


class Neighbour:
    """A client of good manners, who is connected to a server while others attack it."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        plain.settimeout(LONGEST)
        self._tls = context.wrap_socket(plain, server_hostname="localhost")

    def talk(self, data: bytes) -> bytes:
        self._tls.sendall(data)
        received = b""
        while len(received) < len(data):
            received += self._tls.recv(65536)
        return received

    def end(self) -> None:
        with self._tls:
            self._tls.unwrap().close()


async def connect_neighbour(authority: CertificateAuthority, port: int) -> Neighbour:
    def connect() -> Neighbour:
        plain = socket.create_connection((LOOPBACK, port), timeout=LONGEST)
        return Neighbour(plain, python_client_context(authority))

    return await in_thread(connect)


def limited(context: ssl.SSLContext, version: str) -> ssl.SSLContext:
    context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    return context


@pytest.mark.once
@VERSIONS
@FLIGHTS
class TestServers:
    async def test_a_socket_fails_with_our_errors_and_its_neighbours_go_on(
        self,
        authority: CertificateAuthority,
        version: str,
        flight: int,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        context = limited(python_client_context(authority), version)
        options = authority.server_options(handshake=False)
        async with await make_server_tls_socket(LOOPBACK, 0, options) as listener:
            port = listener.getsockname().port
            connecting = connect_neighbour(authority, port)
            good, neighbour = await together(accept_handshaken(listener), connecting)
            for name, forge in FORGERIES.items():
                with naming(name):
                    sent, (received, error) = await together(
                        finished(in_thread(forging_client, context, port, forge, flight)),
                        accept_and_read(listener),
                    )
                    check(name, flight, received, error, sent)
                    talking = in_thread(neighbour.talk, WORD)
                    await soon(good.sendall(await read_exactly(good, len(WORD))))
                    assert await talking == WORD
            ending = in_thread(neighbour.end)
            assert await soon(good.recv(1)) == b""
            await soon(good.close())
            await ending
        assert capfd.readouterr() == ("", "")

    async def test_an_endpoint_tells_the_log_and_its_neighbours_go_on(
        self,
        authority: CertificateAuthority,
        version: str,
        flight: int,
        capfd: pytest.CaptureFixture[str],
        log_lines: list[str],
    ) -> None:
        context = limited(python_client_context(authority), version)
        factory = Protocols(Echo)
        async with listening(authority.server_options(), factory) as listening_port:
            port = listening_port.getHost().port
            neighbour = await connect_neighbour(authority, port)
            # With TLS 1.2 the client is done as soon as the server has had its last word.
            await until(lambda: factory.built)
            for name, forge in FORGERIES.items():
                with naming(name):
                    built, refused = len(factory.built), count_refused(log_lines)
                    sent = await in_thread(forging_client, context, port, forge, flight)
                    await until(
                        lambda: (
                            count_refused(log_lines) > refused  # noqa: B023
                            or (
                                len(factory.built) > built  # noqa: B023
                                and factory.built[-1].reason
                            )
                        )
                    )
                    assert count_refused(log_lines) - refused + len(factory.built) - built == 1
                    for protocol in factory.built[built:]:
                        check(name, flight, bytes(protocol.received), protocol.reason, sent)
                    assert sent < FLOOD, name
                    assert await in_thread(neighbour.talk, WORD) == WORD
            await in_thread(neighbour.end)
        assert capfd.readouterr() == ("", "")


class Echo(Recorder):
    """Sends back what it is sent."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.transport.write(data)


@pytest.fixture(autouse=True)
def _a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each failure logged with a line of its own, of which there are many here."""
    monkeypatch.setattr("twisted_netsock._text._LINES_A_PERIOD", 100_000)


def count_refused(log_lines: list[str]) -> int:
    return sum("TLS handshake with" in line for line in log_lines)


async def accept_handshaken(listener: Any) -> Any:
    sock = await soon(listener.accept())
    await soon(sock.handshake())
    return sock


async def accept_and_read(listener: Any) -> tuple[bytes, Exception]:
    return await read_on(await soon(listener.accept()))


@pytest.mark.once
@VERSIONS
@FLIGHTS
class TestClients:
    async def test_a_socket_fails_with_our_errors(
        self,
        authority: CertificateAuthority,
        version: str,
        flight: int,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        context = limited(python_server_context(authority, tmp_path), version)
        options = authority.client_options(handshake=False)
        with forgers_listener() as listener:
            for name, forge in FORGERIES.items():
                with naming(name):
                    forging = in_thread(forging_server, listener, context, forge, flight)
                    sock = await make_client_tls_socket(*listener.getsockname(), options)
                    received, error = await read_on(sock)
                    check(name, flight, received, error, await forging)
        assert capfd.readouterr() == ("", "")

    async def test_an_endpoint_fails_with_our_errors(
        self,
        authority: CertificateAuthority,
        version: str,
        flight: int,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        context = limited(python_server_context(authority, tmp_path), version)
        with forgers_listener() as listener:
            endpoint = client_endpoint(
                reactor, *listener.getsockname(), authority.client_options()
            )
            for name, forge in FORGERIES.items():
                with naming(name):
                    forging = in_thread(forging_server, listener, context, forge, flight)
                    factory = Protocols(Recorder)
                    try:
                        await soon(endpoint.connect(factory))
                    except OURS as error:
                        reason: Any = error
                        assert not factory.built or factory.built[0].transport is None, name
                    else:
                        reason = await factory.built[0].loses()
                    received = b"".join(bytes(each.received) for each in factory.built)
                    check(name, flight, received, reason, await forging)
        assert capfd.readouterr() == ("", "")


@VERSIONS
async def test_a_flood_that_openssl_ignores_lets_others_have_their_turn(
    authority: CertificateAuthority, version: str, tmp_path: Path
) -> None:
    """A request to renegotiate says nothing during a handshake, however often it comes."""
    context = limited(python_server_context(authority, tmp_path), version)
    forge = flooded(message(0, b""), FLOOD)
    options = authority.client_options(handshake=False)
    with forgers_listener() as listener:
        forging = in_thread(forging_server, listener, context, forge, 0)
        async with await make_client_tls_socket(*listener.getsockname(), options) as sock:
            shaking = sock.handshake()
            count = 0
            while not shaking.called:
                await deferLater(reactor, 0)
                count += 1
            with pytest.raises(TLSHandshakeError, match="the peer sent more than 262144 bytes"):
                await shaking
            assert count > 50
        assert await forging < FLOOD


def forgers_listener() -> socket.socket:
    listener = socket.create_server((LOOPBACK, 0))
    listener.settimeout(LONGEST)
    return listener
