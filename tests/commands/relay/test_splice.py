"""Bulk of the relay, which goes through pipes: it passes whole, and no pipe is left."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet import reactor

from tests.support.clocks import turns, until
from twisted_netsock._io.descriptor import PlainDescriptor
from twisted_netsock._io.poller import poller_for
from twisted_netsock._net.happy_eyeballs import Established
from twisted_netsock.commands.relay import splice
from twisted_netsock.commands.relay.link import PlainLink
from twisted_netsock.commands.relay.splice import BULK, Pipe, Pipes
from twisted_netsock.errors import SocketConnectionLostError

needs_splice = pytest.mark.skipif(not hasattr(os, "splice"), reason="needs Linux")
pytestmark = needs_splice

ROOM = 200_000


def open_pipes():
    """Return how many ends of pipes this process has."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{number}").startswith("pipe:")
    return found


@contextlib.contextmanager
def pair(family=socket.AF_UNIX):
    """Two ends of a connection that do not block."""
    if family == socket.AF_UNIX:
        ends = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            one = socket.create_connection(listener.getsockname())
            ends = (one, listener.accept()[0])
    with ends[0], ends[1]:
        for end in ends:
            end.setblocking(False)
        yield ends


def put(sock, size):
    """Send as much of *size* bytes as there is room for, and return it."""
    data = random.randbytes(size)
    with contextlib.suppress(BlockingIOError):
        return data[: sock.send(data)]
    return b""


def take(sock, most=1 << 20):
    """Return what there is; `None` if there is nothing."""
    try:
        return sock.recv(most)
    except BlockingIOError:
        return None


# One pipe


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_what_is_in_a_pipe_comes_out_as_it_went_in(family):
    pipe = Pipe()
    try:
        with pair(family) as (source, entry), pair(family) as (exit_, target):
            data = put(source, ROOM)
            while data:
                filled = pipe.fill(entry.fileno())
                assert pipe.pending == filled
                pipe.drain(exit_.fileno())
                got = target.recv(filled)
                assert got == data[: len(got)]
                data = data[len(got) :]
                pipe.drain(exit_.fileno())
            assert pipe.pending == 0
    finally:
        pipe.close()


def test_what_the_target_does_not_take_stays_in_the_pipe():
    pipe = Pipe()
    try:
        with pair() as (source, entry), pair() as (exit_, target):
            full = b""
            while more := put(exit_, ROOM):
                full += more
            data = put(source, 1000)
            assert pipe.fill(entry.fileno()) == 1000
            pipe.drain(exit_.fileno())
            assert pipe.pending == 1000
            while full:
                full = full[len(take(target)) :]
            pipe.drain(exit_.fileno())
            assert pipe.pending == 0
            assert take(target) == data
    finally:
        pipe.close()


def test_nothing_the_end_and_a_failure_are_distinguished():
    pipe = Pipe()
    try:
        with pair(socket.AF_INET) as (peer, own):
            with pytest.raises(BlockingIOError):
                pipe.fill(own.fileno())
            peer.shutdown(socket.SHUT_WR)
            assert pipe.fill(own.fileno()) == 0
        with pair(socket.AF_INET) as (peer, own):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
            with pytest.raises(ConnectionResetError):
                pipe.fill(own.fileno())
    finally:
        pipe.close()


# The pipes of a relay


def test_one_pipe_serves_all_who_give_it_back_empty():
    pipes = Pipes()
    first = pipes.lend()
    pipes.take_back(first)
    assert pipes.lend() is first
    pipes.take_back(first)
    pipes.close()
    second = pipes.lend()
    assert second is not first
    pipes.take_back(second)
    pipes.close()


def test_a_pipe_that_is_not_empty_is_closed():
    before = open_pipes()
    pipes = Pipes()
    with pair() as (source, entry):
        put(source, 100)
        pipe = pipes.lend()
        pipe.fill(entry.fileno())
        pipes.take_back(pipe)
    assert open_pipes() == before


def test_so_many_pipes_are_lent_and_no_more():
    pipes = Pipes()
    lent = [pipes.lend() for _ in range(splice._MOST)]
    assert all(lent)
    assert pipes.lend() is None
    pipes.take_back(lent.pop())
    lent.append(pipes.lend())
    assert lent[-1] is not None
    for pipe in lent:
        pipes.take_back(pipe)
    pipes.close()


def test_without_descriptors_there_is_no_pipe(monkeypatch):
    def fail(_flags):
        raise OSError(errno.EMFILE, "too many")

    pipes = Pipes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe2", fail)
        assert pipes.lend() is None
    pipe = pipes.lend()
    assert pipe is not None
    pipes.take_back(pipe)
    pipes.close()


def test_where_the_system_has_no_splice_there_is_none(monkeypatch):
    monkeypatch.delattr(os, "splice")
    assert Pipes().lend() is None


# Links


class Counting(Pipes):
    """Counts how often a pipe was lent."""

    count = 0

    def lend(self) -> Any:
        pipe = super().lend()
        self.count += pipe is not None
        return pipe


@contextlib.contextmanager
def joined(family=socket.AF_INET):
    """Two links, joined, and the peer of each."""
    relay = SimpleNamespace(sides=set(), ledger=SimpleNamespace(reactor=reactor), pipes=Counting())
    before = open_pipes()
    with pair(family) as (client, front), pair(family) as (back, server):
        links = []
        for sock in (front, back):
            ours = socket.socket(fileno=sock.detach())
            watch = poller_for(reactor).watch(ours.fileno())
            links.append(PlainLink(relay, Established(PlainDescriptor(ours), watch)))
        first, second = links
        first.other, second.other = second, first
        for link in links:
            link.resume()
        try:
            yield relay, first, second, client, server
        finally:
            first.abort()
            second.abort()
    assert not relay.sides
    assert relay.pipes._lent == 0
    assert open_pipes() == before


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_bulk_of_both_directions_passes_whole_through_pipes(family):
    random.seed(7)
    with joined(family) as (relay, first, second, client, server):
        for sock in (client, server):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sent = {client: b"", server: b""}
        got = {client: bytearray(), server: bytearray()}
        for round_ in range(400):
            for end, other in ((client, server), (server, client)):
                if len(sent[end]) < 8_000_000:
                    sent[end] += put(end, random.choice([10, 5000, 300_000, 1_000_000]))
                if round_ % 5:
                    got[other] += take(other, random.choice([1000, 100_000, 1 << 20])) or b""
            await turns(1)
            if min(map(len, sent.values())) >= 8_000_000:
                break
        for end, other in ((client, server), (server, client)):
            await until(lambda: take_into(got[other], other) == len(sent[end]))  # noqa: B023
            assert got[other] == sent[end]
        assert (first.count, second.count) == (len(sent[client]), len(sent[server]))
        assert relay.pipes.count > 10


def take_into(found, sock):
    found += take(sock) or b""
    return len(found)


async def held_up(second, client):
    """Send until a pipe holds what nobody takes; return what was sent."""
    sent = b""
    for _ in range(1000):
        sent += put(client, 1 << 20)
        await turns(1)
        if second._pipe is not None:
            break
    assert second._pipe is not None
    return sent


async def test_nothing_more_is_read_while_a_pipe_holds_something():
    with joined() as (_, first, second, client, server):
        sent = await held_up(second, client)
        assert not first._watch.receive
        while more := put(client, 1 << 20):
            sent += more
            await turns(1)
        # Less than the kernel's own buffers hold.
        assert second._pipe.pending <= 512 * 1024
        found = bytearray()
        await until(lambda: take_into(found, server) == len(sent))
        assert found == sent
        assert second._pipe is None
        assert first._watch.receive


async def test_the_end_comes_after_what_a_pipe_holds():
    with joined() as (_, _, second, client, server):
        sent = await held_up(second, client)
        client.shutdown(socket.SHUT_WR)
        await turns(3)
        found = bytearray()

        def over():
            data = take(server)
            found.extend(data or b"")
            return data == b""

        await until(over)
        assert found == sent
        # The other direction goes on.
        server.send(b"and now this")
        await until(lambda: take_into(found, client) == len(sent) + 12)


@pytest.mark.parametrize("which", ["receiver", "sender"])
async def test_a_reset_ends_both_and_takes_what_a_pipe_holds_along(which):
    with joined() as (relay, first, second, client, server):
        await held_up(second, client)
        gone, left = (server, client) if which == "receiver" else (client, server)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
        if which == "sender":
            # Nobody reads from it, so nobody looks.
            first.lose(SocketConnectionLostError())
        await until(lambda: first.lost and second.lost)
        assert relay.pipes._lent == 0

        def was_reset():
            try:
                while left.recv(1 << 20):
                    pass
            except ConnectionResetError:
                return True
            except BlockingIOError:
                pass
            return False

        await until(was_reset)


async def test_small_messages_are_not_spliced():
    with joined() as (relay, _, _, client, server):
        found = bytearray()
        for number in range(50):
            client.send(b"x" * 1000)
            await until(lambda: take_into(found, server) == 1000 * (number + 1))  # noqa: B023
        assert relay.pipes.count == 0


async def test_after_bulk_small_messages_are_copied_again():
    with joined() as (relay, _, _, client, server):
        found = bytearray()
        sent = 0
        while not relay.pipes.count:
            sent += len(put(client, 4 * BULK))
            await turns(1)
            take_into(found, server)
        await until(lambda: take_into(found, server) == sent)
        client.send(b"x")
        await until(lambda: take_into(found, server) == sent + 1)
        before = relay.pipes.count
        client.send(b"y")
        await until(lambda: take_into(found, server) == sent + 2)
        assert relay.pipes.count == before


@pytest.mark.parametrize("ends", [False, True])
async def test_a_byte_out_of_band_holds_up_nothing_and_ends_nothing(ends):
    """The kernel splices nothing from there on; to receive skips it."""
    with joined() as (relay, first, _, client, server):
        found, sent = bytearray(), b""
        while not first._in_bulk:
            sent += put(client, 4 * BULK)
            await turns(1)
            take_into(found, server)
        await until(lambda: take_into(found, server) == len(sent))
        first._in_bulk = True
        before = relay.pipes.count
        client.send(b"!", socket.MSG_OOB)
        client.send(b"behind it")
        if ends:
            client.shutdown(socket.SHUT_WR)
        await until(lambda: take_into(found, server) >= len(sent) + 9)
        assert found == sent + b"behind it"
        assert relay.pipes.count <= before + 2
        await until(lambda: first.ended == ends)


async def check_bulk(client, server):
    """Send bulk, and check that it arrives."""
    found, sent = bytearray(), b""
    while len(sent) < 4_000_000:
        sent += put(client, 4 * BULK)
        await turns(1)
        take_into(found, server)
    await until(lambda: take_into(found, server) == len(sent))
    assert found == sent


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
async def test_where_sockets_cannot_be_spliced_bulk_is_copied(number, monkeypatch):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "splice", refuse)
    with joined() as (relay, _, _, client, server):
        await check_bulk(client, server)
        assert relay.pipes.count == 1


async def test_when_all_pipes_are_lent_bulk_is_copied():
    with joined() as (relay, _, _, client, server):
        lent = [relay.pipes.lend() for _ in range(splice._MOST)]
        await check_bulk(client, server)
        for pipe in lent:
            relay.pipes.take_back(pipe)
