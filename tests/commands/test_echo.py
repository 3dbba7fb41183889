"""`twist netsock echo` in this process: what it sends back, how fast, and how it ends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.defer import gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import deferLater
from twisted.python.usage import UsageError
from zope.interface.verify import verifyObject

from tests.support.clocks import ClockedReactor, until
from tests.support.loopback import LOOPBACK
from tests.support.processes import write_certificates
from tests.support.protocols import BULK, raw_receive
from twisted_netsock import (
    SocketConnectionLostError,
    SocketOptions,
    make_client_socket,
    make_client_tls_socket,
)
from twisted_netsock.commands import Options, makeService
from twisted_netsock.commands._common.service import ListeningService
from twisted_netsock.commands.echo import EchoFactory, EchoOptions

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

OURS = "netsock:0:node=127.0.0.1"
THEIRS = "tcp:0:interface=127.0.0.1"
OURS_TLS = "netsock-tls:0:node=127.0.0.1:certificates={files.server}"
THEIRS_TLS = "ssl:0:interface=127.0.0.1:privateKey={files.server}:certKey={files.server}"
MOST_IN_FLIGHT = 64 * 1024 * 1024
"""More than the buffers of two connected sockets ever hold."""


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    return write_certificates(tmp_path_factory.mktemp("echo"), authority)


@contextlib.asynccontextmanager
async def echoing(*texts: str, on: Any = reactor, idle: Any = None) -> AsyncIterator[Any]:
    """Run the service; yield its factory, with the *ports* that it listens on."""
    factory: Any = EchoFactory(on, idle)
    ports: list[int] = []
    service = ListeningService(
        reactor,
        [serverFromString(reactor, text) for text in texts],
        factory,
        what="echo",
        started=lambda host: ports.append(host.port),
    )
    service.startService()
    try:
        await until(lambda: len(ports) == len(texts))
        factory.ports = ports
        factory.service = service
        yield factory
    finally:
        await maybeDeferred(service.stopService)
        await until(lambda: factory.idle)


async def connect(echo: Any, authority: Any = None, index: int = 0, **fields: Any) -> Any:
    port = echo.ports[index]
    if authority is None:
        return await make_client_socket(LOOPBACK, port, SocketOptions(**fields))
    return await make_client_tls_socket(LOOPBACK, port, authority.client_options(**fields))


async def read_to_end(sock: Any) -> bytes:
    received = bytearray()
    while chunk := await sock.recv(65536):
        received += chunk
    return bytes(received)


KINDS = pytest.mark.parametrize(
    ("text", "tls"),
    [(OURS, False), (THEIRS, False), (OURS_TLS, True), (THEIRS_TLS, True)],
    ids=["netsock", "tcp", "netsock-tls", "ssl"],
)


# Sending back


@KINDS
async def test_what_is_sent_comes_back(text, tls, files, authority):
    async with echoing(text.format(files=files)) as echo:
        async with await connect(echo, authority if tls else None) as sock:
            for said in (b"one", b"and another"):
                await sock.sendall(said)
                assert await sock.input_port.read_exactly(len(said)) == said
            assert echo.connections == 1
        await until(lambda: echo.idle)


@KINDS
async def test_ten_megabytes_come_back_to_the_last_byte(text, tls, files, authority):
    async with (
        echoing(text.format(files=files)) as echo,
        await connect(echo, authority if tls else None) as sock,
    ):
        sending = sock.sendall(BULK)
        received = await sock.input_port.read_exactly(len(BULK))
        await sending
        assert received == BULK


@pytest.mark.parametrize(
    ("text", "tls"), [(OURS, False), (THEIRS, False), (OURS_TLS, True)],
    ids=["netsock", "tcp", "netsock-tls"],
)  # fmt: skip
async def test_a_half_close_comes_back_behind_everything_else(text, tls, files, authority):
    async with (
        echoing(text.format(files=files)) as echo,
        await connect(echo, authority if tls else None) as sock,
    ):
        ending = sock.sendall(BULK).addCallback(lambda _: sock.shutdown(socket.SHUT_WR))
        assert await read_to_end(sock) == BULK
        await ending
        await until(lambda: echo.idle)


async def test_nothing_but_an_end_comes_back_as_an_end():
    async with echoing(OURS) as echo, await connect(echo) as sock:
        await sock.shutdown(socket.SHUT_WR)
        assert await sock.recv(10) == b""
        await until(lambda: echo.idle)


async def test_each_client_has_its_own_bytes_back():
    async with echoing(OURS) as echo:
        socks = await gatherResults([connect_soon(echo) for _ in range(20)])
        for number, sock in enumerate(socks):
            await sock.sendall(b"client %d" % number)
        for number, sock in enumerate(socks):
            assert await sock.recv(100) == b"client %d" % number
        assert echo.connections == 20
        for sock in socks:
            sock.close()
        await until(lambda: echo.idle)


def connect_soon(echo: Any) -> Any:
    return make_client_socket(LOOPBACK, echo.ports[0])


# Pace


@pytest.mark.parametrize("text", [OURS, THEIRS], ids=["netsock", "tcp"])
async def test_who_does_not_read_is_not_listened_to(text):
    """What waits in this process stays bounded; the rest waits at the client."""
    piece = memoryview(bytes(1024 * 1024))
    async with echoing(text) as echo:
        with socket.create_connection((LOOPBACK, echo.ports[0])) as sock:
            sock.setblocking(False)
            sent = stalled = 0
            while stalled < 50:
                try:
                    sent += sock.send(piece)
                    stalled = 0
                except BlockingIOError:
                    stalled += 1
                    await a_moment()
                assert sent < MOST_IN_FLIGHT
            assert echo.connections == 1
            received = 0
            while received < sent:
                received += len(await raw_receive(sock))
            assert received == sent
            sock.send(b"still there")
            assert await raw_receive(sock) == b"still there"


async def a_moment() -> None:
    await deferLater(reactor, 0.002)


# Time


async def test_a_silent_client_is_reset_after_idle_timeout():
    clocked = ClockedReactor()
    async with (
        echoing(OURS, on=clocked, idle=timedelta(seconds=10)) as echo,
        await connect(echo) as sock,
    ):
        await until(lambda: echo.connections)
        clocked.clock.advance(9)
        await sock.sendall(b"here")
        assert await sock.recv(10) == b"here"
        clocked.clock.advance(9)
        assert echo.connections == 1
        clocked.clock.advance(1)
        with pytest.raises(SocketConnectionLostError):
            await sock.recv(10)
        await until(lambda: echo.idle)
        assert clocked.clock.getDelayedCalls() == []


async def test_who_does_not_read_is_reset_after_idle_timeout():
    """It sends nothing either, as nobody takes it."""
    clocked = ClockedReactor()
    async with echoing(OURS, on=clocked, idle=timedelta(seconds=10)) as echo:
        with socket.create_connection((LOOPBACK, echo.ports[0])) as sock:
            sock.setblocking(False)
            piece = bytes(1024 * 1024)
            stalled = 0
            while stalled < 20:
                try:
                    sock.send(piece)
                    stalled = 0
                except BlockingIOError:
                    stalled += 1
                    await a_moment()
            clocked.clock.advance(10)
            await until(lambda: echo.idle)


async def test_without_idle_timeout_there_is_no_timer():
    clocked = ClockedReactor()
    async with echoing(OURS, on=clocked) as echo, await connect(echo):
        await until(lambda: echo.connections)
        assert clocked.clock.getDelayedCalls() == []


async def test_the_timer_ends_with_the_connection():
    clocked = ClockedReactor()
    async with echoing(OURS, on=clocked, idle=timedelta(seconds=10)) as echo:
        async with await connect(echo):
            await until(lambda: echo.connections)
            assert len(clocked.clock.getDelayedCalls()) == 1
        await until(lambda: echo.idle)
        assert clocked.clock.getDelayedCalls() == []


# The service


async def test_it_listens_in_several_places(files, authority):
    async with echoing(OURS, THEIRS, OURS_TLS.format(files=files)) as echo:
        for index, whom in enumerate((None, None, authority)):
            async with await connect(echo, whom, index) as sock:
                await sock.sendall(b"hello")
                assert await sock.recv(10) == b"hello"


async def test_stopping_resets_the_connections_and_frees_the_ports():
    async with echoing(OURS) as echo, await connect(echo) as sock:
        await until(lambda: echo.connections)
        await maybeDeferred(echo.service.stopService)
        assert echo.idle
        with pytest.raises(SocketConnectionLostError):
            await sock.recv(10)
        with pytest.raises(ConnectionRefusedError):
            await connect(echo)
        echo.service.startService()
        await until(lambda: len(echo.ports) == 2)


# The command's options


def parsed(*arguments: str) -> EchoOptions:
    options = EchoOptions()
    options.parseOptions(list(arguments))
    return options


def test_without_options_it_listens_on_loopback():
    (endpoint,) = parsed()["listen"]
    assert repr(endpoint).startswith("<ServerEndpoint '127.0.0.1' '8007' ")


def test_listen_may_be_given_several_times():
    options = parsed("--listen", "tcp:0", "--listen", "netsock:1234", "--listen=netsock:4321")
    assert len(options["listen"]) == 3
    assert all(verifyObject(IStreamServerEndpoint, each) for each in options["listen"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("2m", 120), ("250ms", 0.25), ("none", None), ("NONE", None)],
)
def test_idle_timeout_is_a_time_with_a_unit_or_none(text, seconds):
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert parsed("--idle-timeout", text)["idle-timeout"] == expected


def test_idle_timeout_is_ten_minutes():
    assert parsed()["idle-timeout"] == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "netsock:0:nod=1"],
         "--listen netsock:0:nod=1: unknown key nod='1': did you mean node?"),
        (["--listen", "netsock-tls:0"], "--listen netsock-tls:0: "),
        (["--listen", "tcp:0", "--listen", "netsok:1"], "--listen netsok:1: "),
        (["--idle-timeout", "10"],
         "--idle-timeout='10' must be a number with a unit, us, ms, s, m or h; 10s for seconds"),
        (["--idle-timeout", "0s"], "--idle-timeout='0s' must be more than 0 and at most 365 days"),
        (["--to", "tcp:localhost:80"], "option --to not recognized"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_how(arguments, said):
    with pytest.raises(UsageError) as caught:
        parsed(*arguments)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("command", "kind"), [("echo", "echo"), ("relay", "_Demonstration")])
def test_the_command_makes_its_service(command, kind):
    options = Options()
    options.parseOptions([command])
    service = makeService(options)
    assert verifyObject(IService, service)
    assert kind in repr(vars(service)) + type(service).__name__
