"""Paths of UNIX sockets: which are taken over, and which are removed, on every way to listen."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, SOCK_STREAM

import pytest
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.protocol import Factory, Protocol

from tests.support.streams import in_thread
from twisted_netsock import (
    SocketBindError,
    SocketOptions,
    blocking,
    chibi,
    make_server_socket,
    make_server_tls_socket,
    server_endpoint,
)
from twisted_netsock._net.unix_paths import free_path
from twisted_netsock.addresses import AddressInfo, SocketAddress

UNIX = SocketOptions(ai_family=AF_UNIX)
DATAGRAMS = SocketOptions(ai_family=AF_UNIX, ai_socktype=SOCK_DGRAM)


async def _endpoint(path, authority):
    port = await server_endpoint(reactor, path, None, UNIX).listen(Factory.forProtocol(Protocol))
    return port.stopListening


async def _string(path, authority):
    text = f"netsock:node={quoteStringArgument(path)}:aiFamily=unix"
    port = await serverFromString(reactor, text).listen(Factory.forProtocol(Protocol))
    return port.stopListening


async def _socket(path, authority):
    return (await make_server_socket(path, None, UNIX)).close


async def _datagrams(path, authority):
    return (await make_server_socket(path, None, DATAGRAMS)).close


async def _tls(path, authority):
    options = authority.server_options("localhost").replace(ai_family=AF_UNIX)
    return (await make_server_tls_socket(path, None, options)).close


async def _chibi(path, authority):
    return chibi.make_listener_socket(SocketAddress((path,))).close


async def _facade(path, authority):
    options = blocking.SocketOptions(ai_family=AF_UNIX)
    made = await in_thread(lambda: blocking.make_server_socket(path, None, options))
    return lambda: in_thread(made.close)


async def _chibi_facade(path, authority):
    where = AddressInfo(AF_UNIX, SOCK_STREAM, 0, SocketAddress((path,)))
    made = await in_thread(lambda: blocking.make_listener_socket(where))
    return lambda: in_thread(made.close)


WAYS = {
    "endpoint": _endpoint,
    "string": _string,
    "socket": _socket,
    "datagrams": _datagrams,
    "TLS socket": _tls,
    "chibi": _chibi,
    "blocking": _facade,
    "chibi, blocking": _chibi_facade,
}


@pytest.fixture(params=WAYS)
def listen(request, authority):
    """Listens on a path, and returns what stops that."""
    return lambda path: WAYS[request.param](path, authority)


@pytest.fixture
def kind(request):
    return SOCK_DGRAM if "datagrams" in request.node.name else SOCK_STREAM


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "sock")


def leave(path, kind=SOCK_STREAM):
    """Leave a socket at *path* as a process does that is killed."""
    with socket.socket(AF_UNIX, kind) as sock:
        sock.bind(path)


def write(path, text):
    Path(path).write_text(text, encoding="ascii")


def read(path):
    return Path(path).read_text(encoding="ascii")


def living(path, kind=SOCK_STREAM, backlog=8):
    sock = socket.socket(AF_UNIX, kind)
    sock.bind(path)
    if kind == SOCK_STREAM:
        sock.listen(backlog)
    return sock


async def refused(listen, path):
    """Return what listening says, which must be that the path is in use."""
    with pytest.raises(SocketBindError) as caught:
        await listen(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    return str(caught.value)


async def test_a_path_on_which_nobody_listens_is_taken_over(listen, path, kind):
    leave(path, kind)
    stop = await listen(path)
    with socket.socket(AF_UNIX, kind) as client:
        client.connect(path)
    assert os.listdir(os.path.dirname(path)) == ["sock"]
    await maybeDeferred(stop)


async def test_a_socket_that_lives_is_left_alone(listen, path, kind):
    with living(path, kind):
        assert "a process has its socket open" in await refused(listen, path)
        with socket.socket(AF_UNIX, kind) as client:
            client.connect(path)


async def test_one_of_another_type_is_left_alone(listen, path, kind):
    other = SOCK_DGRAM if kind == SOCK_STREAM else SOCK_STREAM
    with living(path, other):
        assert "a process has its socket open" in await refused(listen, path)


async def test_one_whose_queue_is_full_is_left_alone(listen, path):
    with (
        living(path, backlog=0),
        socket.socket(AF_UNIX) as first,
        socket.socket(AF_UNIX) as second,
    ):
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(path)
        assert "a process has its socket open" in await refused(listen, path)


async def test_what_is_no_socket_is_left_alone(listen, path):
    write(path, "precious")
    assert "not a socket" in await refused(listen, path)
    assert read(path) == "precious"


async def test_a_link_to_a_dead_socket_is_left_alone(path, tmp_path_factory):
    target = str(tmp_path_factory.mktemp("other") / "target")
    leave(target)
    os.symlink(target, path)
    listen = lambda path: _endpoint(path, None)  # noqa: E731 - as the fixture has it
    assert "not a socket" in await refused(listen, path)
    assert os.listdir(os.path.dirname(target)) == ["target"]


async def test_who_listens_and_does_so_twice_hears_of_it(listen, path):
    stop = await listen(path)
    await refused(listen, path)
    await maybeDeferred(stop)


# The lock


@pytest.fixture(scope="module")
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


async def test_a_lock_that_a_process_has_left_keeps_nobody_out(listen, path, kind, ended):
    os.symlink(str(ended), path + ".lock")
    leave(path, kind)
    await maybeDeferred(await listen(path))
    assert "sock.lock" not in os.listdir(os.path.dirname(path))


async def test_while_another_has_the_lock_nothing_is_removed(listen, path, kind):
    leave(path, kind)
    before = os.stat(path).st_ino
    os.symlink(str(os.getppid()), path + ".lock")
    with pytest.raises(SocketBindError, match=r"sock\.lock") as caught:
        await listen(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert os.stat(path).st_ino == before
    assert os.readlink(path + ".lock") == str(os.getppid())


async def test_a_lock_keeps_nobody_from_a_path_that_is_free(path):
    os.symlink(str(os.getppid()), path + ".lock")
    stop = await _endpoint(path, None)
    await stop()
    assert os.readlink(path + ".lock") == str(os.getppid())


def test_a_socket_that_does_not_listen_yet_does_not_look_dead(path):
    """Between bind and listen a connect is refused; the lock is held that long."""
    with socket.socket(AF_UNIX) as first, free_path(AF_UNIX, SOCK_STREAM, path):
        first.bind(path)
        with pytest.raises(SocketBindError), free_path(AF_UNIX, SOCK_STREAM, path):
            pass
        first.listen()
    assert os.path.exists(path)


# What a port removes


async def test_a_port_removes_its_own_path_alone(path):
    old = await _endpoint(path, None)
    os.unlink(path)
    new = await _endpoint(path, None)
    await old()
    with socket.socket(AF_UNIX) as client:
        client.connect(path)
    await new()
    assert os.listdir(os.path.dirname(path)) == []


async def test_a_file_that_took_the_place_of_its_path_stays(path):
    stop = await _endpoint(path, None)
    os.unlink(path)
    write(path, "")
    await stop()
    assert os.listdir(os.path.dirname(path)) == ["sock"]


async def test_a_relative_path_is_removed_where_it_was_bound(tmp_path, monkeypatch):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for each in (here, elsewhere):
        each.mkdir()
    monkeypatch.chdir(here)
    stop = await _endpoint("sock", None)
    monkeypatch.chdir(elsewhere)
    leave("sock")
    await stop()
    assert (os.listdir(here), os.listdir(elsewhere)) == ([], ["sock"])


async def test_an_abstract_name_has_no_path_and_no_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stop = await _endpoint(f"\0netsock-paths-{os.getpid()}", None)
    assert os.listdir(tmp_path) == []
    await stop()
