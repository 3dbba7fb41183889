"""Many sockets at once, and waiters that end each other."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError

from tests.support.clocks import turns
from tests.support.loopback import run_script
from tests.support.streams import failure_of, fill, noise, shrink_buffers
from twisted_netsock import Socket, SocketClosedError
from twisted_netsock.testing import connected_pair

pytestmark = pytest.mark.long

MANY = """
import gc
import resource
from collections import Counter
from time import process_time

from twisted.internet.task import deferLater

from twisted_netsock import Socket, SocketConnectionLostError, chibi

PAIRS = 2500
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if hard != resource.RLIM_INFINITY and hard < 2 * PAIRS + 200:
    print("skip: this process may open only", hard, "descriptors")
    raise SystemExit
resource.setrlimit(resource.RLIMIT_NOFILE, (2 * PAIRS + 200, hard))


def open_many():
    return [sock for _ in range(PAIRS) for sock in chibi.open_socket_pair()]


def poller():
    [found] = [each for each in reactor.getReaders() if "twisted_netsock" in repr(each)]
    return found


async def turns(count):
    for _ in range(count):
        await deferLater(reactor, 0)
"""


def run_many(source: str) -> list[str]:
    lines = run_script(MANY + source)
    if lines and lines[0].startswith("skip: "):
        pytest.skip(lines[0].removeprefix("skip: "))
    return lines


class TestIdleSockets:
    def test_five_thousand_that_wait_cost_no_turn_of_the_reactor_anything(self) -> None:
        lines = run_many("""
async def main():
    await turns(20)
    began = process_time()
    await turns(300)
    alone = process_time() - began
    readers = len(reactor.getReaders())

    sockets = open_many()
    waiting = [sock.recv(10) for sock in sockets]
    print(len(sockets), len(reactor.getReaders()) - readers)
    await turns(20)

    calls = []
    watched = poller()
    do_read = watched.doRead
    watched.doRead = lambda: calls.append(1) or do_read()
    began = process_time()
    await turns(300)
    among_many = process_time() - began
    print(len(calls), among_many < 10 * alone + 0.1, any(each.called for each in waiting))

    # One that is not idle is found among them, and nobody else.
    await sockets[4001].send(b"awake")
    print(await waiting[4000], len(calls) < 10, sum(each.called for each in waiting))
    for sock, each in zip(sockets, waiting):
        each.addErrback(lambda failure: None)
        sock.close()

run(main)
""")
        assert lines == ["5000 1", "0 True False", "b'awake' True 1"]

    def test_all_that_become_ready_at_once_let_others_have_their_turn(self) -> None:
        lines = run_many("""
async def main():
    sockets = open_many()
    got = []
    for sock in sockets[::2]:
        sock.recv(10).addCallback(got.append)
    for sock in sockets[1::2]:
        await sock.send(b"x")
    seen = [0]
    while seen[-1] < PAIRS and len(seen) < 10000:
        await turns(1)
        seen.append(len(got))
    at_once = max(later - sooner for sooner, later in zip(seen, seen[1:]))
    print(len(got), at_once <= 512)
    for sock in sockets:
        sock.close()

run(main)
""")
        assert lines == ["2500 True"]

    def test_every_waiter_hears_of_the_reactors_shutdown(self) -> None:
        lines = run_many("""
heard = Counter()
sockets = open_many()

async def main():
    for sock in sockets:
        sock.recv(10).addErrback(lambda failure: heard.update([failure.type.__name__]))

run(main)
print(dict(heard))
for sock in sockets:
    sock.close()
""")
        assert lines == ["{'SocketConnectionLostError': 5000}"]


class TestShutdown:
    def test_every_kind_of_waiter_hears_of_the_reactors_shutdown(self) -> None:
        lines = run_script("""
from twisted_netsock import SocketConnectionLostError, chibi
from twisted_netsock.testing import connected_pair

sockets = []
waiting = {}

def pair():
    made = connected_pair()
    sockets.extend(made)
    return made[0]

async def main():
    waiting["recv"] = pair().recv(1)
    waiting["recv_into"] = pair().recv_into(bytearray(1))
    waiting["recvmsg"] = pair().recvmsg(1)
    waiting["sendall"] = pair().sendall(bytes(50_000_000))
    waiting["readline"] = pair().input_port.readline()
    waiting["write"] = pair().output_port.write(bytes(50_000_000))
    waiting["flush"] = sockets[-2].output_port.flush()
    waiting["receive_non_blocking"] = chibi.receive_non_blocking(pair(), 1, 60)
    listener = chibi.make_listener_socket(chibi.make_sockaddr(host="127.0.0.1"))
    sockets.append(listener)
    waiting["accept"] = listener.accept()
    datagrams = chibi.socket(chibi.ADDRESS_FAMILY_INET, chibi.SOCKET_TYPE_DATAGRAM)
    sockets.append(datagrams)
    waiting["recvfrom"] = datagrams.recvfrom(1)

run(main)
for name, deferred in waiting.items():
    deferred.addCallbacks(
        lambda result, name=name: print(name, result),
        lambda failure, name=name: failure.check(SocketConnectionLostError)
        or print(name, failure.type),
    )
    if not deferred.called:
        print(name, "waits")
for sock in sockets:
    sock.close()
print("done")
""")
        assert lines == ["done"]

    def test_a_waiter_that_hears_of_the_shutdown_may_close_the_socket(self) -> None:
        lines = run_script("""
from twisted_netsock.testing import connected_pair

one, other = connected_pair()

async def use(wait):
    try:
        await wait()
    except Exception as error:
        print(type(error).__name__)
    finally:
        await one.close()

async def main():
    Deferred.fromCoroutine(use(lambda: one.recv(10)))
    Deferred.fromCoroutine(use(lambda: one.sendall(bytes(50_000_000))))

run(main)
print(one.closed)
other.close()
""")
        assert sorted(lines) == ["SocketClosedError", "SocketConnectionLostError", "True"]


async def both_ways() -> tuple[Socket, Socket, Any, Any]:
    """Return a connected pair, and a receive and a send of the first that wait."""
    one, other = connected_pair()
    shrink_buffers(one)
    _, sending = await fill(one, noise(50_000))
    return one, other, one.recv(10), sending


class TestWaitersThatEndEachOther:
    async def test_one_that_hears_of_the_close_may_cancel_the_other(self) -> None:
        one, other, receiving, sending = await both_ways()
        heard: list[object] = []

        def end(failure: Any, second: Any) -> None:
            heard.append(failure.type)
            second.cancel()

        async with one, other:
            receiving.addErrback(end, sending)
            sending.addErrback(end, receiving)
            one.close()
            # Whoever hears first cancels the other, who may hear of either.
            assert len(heard) == 2
            assert set(heard) <= {SocketClosedError, CancelledError}
            assert SocketClosedError in heard

    async def test_one_that_hears_of_the_close_may_close_again(self) -> None:
        one, other, receiving, sending = await both_ways()
        for each in (receiving, sending):
            each.addErrback(lambda failure: one.close() and failure)
        one.close()
        assert failure_of(receiving) is SocketClosedError
        assert failure_of(sending) is SocketClosedError
        other.close()

    async def test_one_that_is_done_may_close_while_the_other_waits(self) -> None:
        one, other, receiving, sending = await both_ways()
        receiving.addCallback(lambda data: (data, one.close())[0])
        await other.send(b"the last")
        await turns()
        assert receiving.called
        assert await receiving == b"the last"
        assert failure_of(sending) is SocketClosedError
        other.close()

    async def test_one_that_is_cancelled_may_cancel_the_other(self) -> None:
        one, other, receiving, sending = await both_ways()
        receiving.addErrback(lambda failure: (sending.cancel(), failure)[1])
        receiving.cancel()
        assert failure_of(receiving) is CancelledError
        assert failure_of(sending) is CancelledError
        one.close()
        other.close()


class TestTurns:
    """Who never has to wait gives the reactor a turn all the same."""

    @pytest.fixture
    def turned(self) -> Iterator[list[bool]]:
        """Give what is filled as soon as the reactor has had a turn."""
        found: list[bool] = []
        call = reactor.callLater(0, found.append, True)
        yield found
        if call.active():
            call.cancel()

    @pytest.mark.parametrize(
        ("size", "steps"), [(64, 200), (65536, 60)], ids=["small ones", "large ones"]
    )
    @pytest.mark.parametrize("method", ["recv", "recv_into", "send", "sendall"])
    async def test_one_whose_calls_succeed_at_once_holds_up_nobody(
        self, turned: list[bool], method: str, size: int, steps: int
    ) -> None:
        peer, own = socket.socketpair()
        receives = method.startswith("recv")
        with peer:
            async with Socket.from_socket(own) as sock:
                argument: Any = bytearray(size) if method == "recv_into" else bytes(size)
                argument = size if method == "recv" else argument
                for _ in range(steps):
                    if receives:
                        peer.sendall(bytes(size))
                    await getattr(sock, method)(argument)
                    if not receives:
                        assert len(peer.recv(size, socket.MSG_WAITALL)) == size
        assert turned
