"""Links of the relay: what OpenSSL may want in the midst of passing on, and how links end."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from datetime import timedelta
from types import SimpleNamespace

import pytest
from twisted.internet import reactor
from twisted.internet.task import Clock

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from twisted_netsock import SocketOptions, client_endpoint, server_endpoint
from twisted_netsock._io.descriptor import PlainDescriptor
from twisted_netsock._io.poller import WANT_READ, WANT_WRITE, poller_for
from twisted_netsock._net.happy_eyeballs import Established
from twisted_netsock.commands.relay.link import PlainLink, TLSLink
from twisted_netsock.commands.relay.service import RelayFactory, RelayService
from twisted_netsock.commands.relay.splice import Pipes
from twisted_netsock.errors import (
    SocketConnectionLostError,
    SocketReadTimeoutError,
    SocketWriteTimeoutError,
)

BLOCK = bytes(range(256)) * 4096


class Scripted(PlainDescriptor):
    """A plain descriptor that wants at times what one with TLS may want."""

    def __init__(self, sock):
        super().__init__(sock)
        self.wants = {name: deque() for name in ("receive", "send", "flush", "shutdown")}
        self.unflushed = False
        self.buffered = False
        self.goodbyes = 0
        self.options = SimpleNamespace(close_timeout=timedelta(seconds=60))
        self.goodbye = None

    def _wanted(self, name):
        wants = self.wants[name]
        return wants.popleft() if wants else None

    def try_recv_into(self, view, flags=0):
        self.buffered = False
        return self._wanted("receive") or super().try_recv_into(view, flags)

    def try_send(self, view, flags=0):
        return self._wanted("send") or super().try_send(view[:16384], flags)

    def try_flush(self):
        want = self._wanted("flush")
        self.unflushed = want is not None
        return want

    def try_shutdown(self, how):
        want = self._wanted("shutdown")
        return want if want is not None else super().try_shutdown(how)

    def check_reset(self):
        """Do nothing: there is none."""

    def try_tls_shutdown(self):
        self.goodbyes += 1
        return self.goodbye


@contextlib.contextmanager
def joined():
    """Two links and the peer of each, the first link with a script."""
    relay = SimpleNamespace(sides=set(), ledger=SimpleNamespace(reactor=reactor), pipes=Pipes())
    with contextlib.ExitStack() as stack:
        links, peers = [], []
        for kind, descriptor_kind in ((TLSLink, Scripted), (PlainLink, PlainDescriptor)):
            ours, theirs = socket.socketpair()
            for sock in ours, theirs:
                sock.setblocking(False)
            peers.append(stack.enter_context(theirs))
            watch = poller_for(reactor).watch(ours.fileno())
            links.append(kind(relay, Established(descriptor_kind(ours), watch)))
        first, second = links
        first.other, second.other = second, first
        for link in links:
            link.resume()
        try:
            yield relay, first, second, *peers
        finally:
            for link in links:
                link.abort()
    assert not relay.sides


async def received(sock, count):
    """Return *count* bytes that come."""
    found = bytearray()

    def more():
        with contextlib.suppress(BlockingIOError):
            while piece := sock.recv(count - len(found) or 1):
                found.extend(piece)
                if len(found) == count:
                    break
        return len(found) >= count

    await until(more)
    return bytes(found)


async def whole(sock):
    """Return what comes up to the end."""
    found = bytearray()

    def over():
        with contextlib.suppress(BlockingIOError):
            while piece := sock.recv(1 << 20):
                found.extend(piece)
            return True
        return False

    await until(over)
    return bytes(found)


def ended(sock):
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.mark.parametrize("wants", [[WANT_READ], [WANT_WRITE], [WANT_WRITE, WANT_READ, WANT_WRITE]])
async def test_a_receive_that_wants_goes_on(wants):
    with joined() as (_, first, _, client, server):
        first._descriptor.wants["receive"].extend(wants)
        client.send(b"hello")
        assert await received(server, 5) == b"hello"
        # Nobody waits to write any more, which would spin.
        await until(lambda: not first._watch.send)


@pytest.mark.parametrize("wants", [[WANT_WRITE], [WANT_READ], [WANT_READ, WANT_WRITE]])
async def test_a_send_that_wants_goes_on_and_the_other_side_waits(wants):
    with joined() as (_, first, second, client, server):
        first._descriptor.wants["send"].extend(wants)
        server.send(b"hello")
        await until(lambda: not first._descriptor.wants["send"] or not second._watch.receive)
        # What it waits for to be readable.
        client.send(b"!" * 3)
        server.send(b" there")
        assert await received(client, 11) == b"hello there"
        assert await received(server, 3) == b"!!!"
        assert second._watch.receive
        assert not first._watch.send


async def test_a_piece_that_is_not_flushed_holds_the_other_side_up():
    with joined() as (_, first, second, client, server):
        descriptor = first._descriptor
        descriptor.unflushed = True
        descriptor.wants["flush"].extend([WANT_WRITE] * 3)
        server.send(b"hello")
        assert await received(client, 5) == b"hello"
        assert not descriptor.wants["flush"]
        assert second._watch.receive


async def test_nothing_more_is_read_while_something_waits_to_be_sent():
    with joined() as (_, first, second, client, server):
        sent = 0
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                sent += server.send(BLOCK[sent % 256 :])
            await turns(2)
        assert not second._watch.receive
        # What the link holds is bounded by what it reads at once.
        assert len(first._queue) <= 256 * 1024
        found = await received(client, sent)
        assert found == (bytes(range(256)) * (sent // 256 + 1))[:sent]
        assert second._watch.receive


async def test_bytes_that_the_poller_cannot_see_are_read_in_the_next_turn():
    with joined() as (_, first, _, client, server):
        first.pause()
        client.send(b"hello")
        await turns(3)
        assert not first._watch.receive
        first._descriptor.buffered = True
        first.resume()
        assert first._call is not None
        assert await received(server, 5) == b"hello"
        # Whoever is gone reads no more.
        first._descriptor.buffered = True
        first.resume()


@pytest.mark.parametrize("want", [WANT_READ, WANT_WRITE])
async def test_an_end_that_wants_is_sent_later(want):
    with joined() as (_, first, _, client, server):
        first._descriptor.wants["shutdown"].append(want)
        server.shutdown(socket.SHUT_WR)
        await until(lambda: not first._descriptor.wants["shutdown"])
        client.send(b"x")
        await until(lambda: first._finished)
        assert await received(server, 1) == b"x"
        await until(lambda: ended(client))


async def test_when_both_directions_have_ended_there_is_a_tls_shutdown():
    with joined() as (relay, first, second, client, server):
        client.shutdown(socket.SHUT_WR)
        await until(lambda: ended(server))
        server.shutdown(socket.SHUT_WR)
        await until(lambda: not relay.sides)
        assert first._descriptor.goodbyes == 1
        assert first.lost
        assert second.lost


async def test_a_tls_shutdown_that_takes_its_time_ends_with_an_abort():
    with joined() as (relay, first, second, client, server):
        first._descriptor.goodbye = WANT_READ
        client.shutdown(socket.SHUT_WR)
        await until(lambda: ended(server))
        server.shutdown(socket.SHUT_WR)
        await until(lambda: second.lost)
        assert not first.lost
        first.lose(SocketConnectionLostError())
        assert not first.lost
        first.abort()
        assert first.lost
        assert not relay.sides


@pytest.mark.parametrize("which", ["receive", "send", "shutdown"])
async def test_an_error_ends_both(which):
    class Failing(Scripted):
        def _wanted(self, name):
            if name == which:
                raise SocketConnectionLostError

    with joined() as (relay, first, second, client, server):
        first._descriptor.__class__ = Failing
        if which == "receive":
            client.send(b"x")
        elif which == "send":
            server.send(b"x")
        else:
            server.shutdown(socket.SHUT_WR)
        await until(lambda: not relay.sides)
        assert first.lost
        assert second.lost


async def test_what_was_complete_arrives_although_its_sender_is_lost():
    with joined() as (relay, first, second, client, server):
        sent = 0
        while not second._queue:
            with contextlib.suppress(BlockingIOError):
                sent += client.send(BLOCK)
            await turns(2)
        first.ended = True
        first.lose(SocketConnectionLostError())
        assert not second.lost
        assert len(await whole(server)) == first.count
        await until(lambda: second.lost)
        assert not relay.sides


async def test_the_end_of_the_reactor_ends_both():
    with joined() as (relay, first, second, _, _):
        first.on_poller_lost(SocketConnectionLostError())
        assert first.lost
        assert second.lost
        assert not relay.sides


# Cuts


@contextlib.contextmanager
def over_tcp():
    """Two plain links over TCP on a clock, and the peer of each."""
    clock = Clock()
    relay = SimpleNamespace(sides=set(), ledger=SimpleNamespace(reactor=clock), pipes=Pipes())
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((LOOPBACK, 0)))
        links, peers = [], []
        for _ in range(2):
            ours = socket.create_connection(listener.getsockname())
            peers.append(stack.enter_context(listener.accept()[0]))
            for sock in ours, peers[-1]:
                sock.setblocking(False)
            watch = poller_for(reactor).watch(ours.fileno())
            links.append(PlainLink(relay, Established(PlainDescriptor(ours), watch)))
        first, second = links
        first.other, second.other = second, first
        for link in links:
            link.resume()
        try:
            yield clock, *links, *peers
        finally:
            for link in links:
                link.abort()
    assert not relay.sides
    assert not clock.getDelayedCalls()


async def fill(client, link):
    """Send through *link* until it is held up."""
    while link._watch.receive is not None:
        with contextlib.suppress(BlockingIOError):
            client.send(BLOCK)
        await turns(2)


def is_still(link):
    """Return whether nothing more is acknowledged."""
    before = link._outstanding
    time.sleep(0.1)
    return link._outstanding == before


async def test_a_peer_that_takes_nothing_is_given_up_after_five_seconds():
    with over_tcp() as (clock, first, second, client, server):
        await fill(client, first)
        first.lose(SocketConnectionLostError())
        assert first.lost
        clock.pump([0.1] * 49)
        assert not second.lost
        # Progress prolongs it.
        before = second._outstanding

        def goes_on():
            with contextlib.suppress(BlockingIOError):
                server.recv(1 << 16)
            return second._outstanding < before

        await until(goes_on)
        await until(lambda: is_still(second))
        clock.pump([0.1] * 45)
        assert not second.lost
        clock.pump([0.1] * 20)
        assert second.lost
        assert second.unsent > 0
        with pytest.raises(ConnectionResetError):
            await whole(server)


async def test_an_explicit_abort_waits_for_nothing():
    with over_tcp() as (_, first, second, client, server):
        await fill(client, first)
        first.abort()
        assert first.lost
        assert second.lost
        with pytest.raises(ConnectionResetError):
            await whole(server)


async def test_one_that_is_cut_off_can_still_be_aborted():
    with over_tcp() as (_, first, second, client, _):
        await fill(client, first)
        first.lose(SocketConnectionLostError())
        assert not second.lost
        second.abort()
        assert second.lost


# Time limits


@pytest.mark.parametrize("which", ["read", "write"])
@pytest.mark.parametrize("kind", [PlainLink, TLSLink])
async def test_a_link_that_waits_for_too_long_is_lost(kind, which):
    error = SocketReadTimeoutError if which == "read" else SocketWriteTimeoutError
    with joined() as (relay, *links, client, server):
        first, second, peer = (*links, client) if kind is TLSLink else (links[1], links[0], server)
        relay.ledger.reactor = clock = Clock()
        lost = []
        first.session = SimpleNamespace(lost=lambda link, why: lost.append(why))
        first.limit(SocketOptions(**{f"{which}_timeout": timedelta(seconds=40)}))
        for _ in range(3):
            # What passes, and a wait for the other direction, prolong it.
            clock.pump([10] * 3)
            if which == "read":
                count = first.count
                peer.send(b"x")
                await until(lambda: first.count > count)  # noqa: B023
            else:
                second.count += 1
        if which == "write":
            clock.pump([10] * 12)
            other = server if peer is client else client
            while not first._stalled:
                with contextlib.suppress(BlockingIOError):
                    other.send(BLOCK)
                await turns(2)
        assert not first.lost
        clock.pump([10] * 6)
        assert [type(why) for why in lost] == [error]
        assert first.lost
        assert second.lost
        assert not clock.getDelayedCalls()


async def test_a_link_that_is_lost_has_no_limit_any_more():
    with joined() as (relay, first, _, _, _):
        relay.ledger.reactor = clock = Clock()
        first.limit(SocketOptions(read_timeout=timedelta(seconds=4)))
        assert clock.getDelayedCalls()
        first.abort()
        assert not clock.getDelayedCalls()


class BrokenAccess:
    """Rules that raise."""

    def allows(self, certificate):
        raise ArithmeticError("broken")


async def test_a_client_that_cannot_be_served_costs_itself_alone(logged_errors):
    backend = client_endpoint(reactor, LOOPBACK, 9)
    factory = RelayFactory(backend, access=BrokenAccess())
    service = RelayService(reactor, server_endpoint(reactor, LOOPBACK, 0), backend)
    service._factory = factory
    service.startService()
    try:
        await until(lambda: service._ports)
        with socket.create_connection((LOOPBACK, service._ports[0].getHost().port)) as client:
            client.setblocking(False)
            await until(lambda: ended(client))
        assert factory.idle
        assert factory.connection_limits.entered_now == 0
        assert service._ports[0]._listening
    finally:
        await service.stopService()
    (event,) = logged_errors
    logged_errors.clear()
    assert event["log_failure"].check(ArithmeticError)
