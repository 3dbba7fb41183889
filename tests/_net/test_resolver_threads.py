"""What the look-up threads ask the system, what they make of it, and how many there are."""

from __future__ import annotations

import socket
import threading
from socket import AF_INET, AI_CANONNAME, EAI_AGAIN, EAI_NONAME, SOCK_STREAM

import pytest
from twisted.internet.defer import CancelledError

from tests.support.clocks import the_reactor, until
from tests.support.loopback import run_script
from twisted_netsock import HostNotFoundError
from twisted_netsock._net import resolver
from twisted_netsock._net.resolver import Hints, look_up_system


class ScriptedLibrary:
    """The `socket` module, with a `getaddrinfo` that answers as it is told."""

    def __init__(self, answer):
        self._answer = answer
        self.asked = []

    def __getattr__(self, name):
        return getattr(socket, name)

    def getaddrinfo(self, node, *rest):
        self.asked.append(node)
        return self._answer(node)


def found(*addresses, canonname=""):
    """Return what `getaddrinfo` gives for IPv4 *addresses*."""
    return [(AF_INET, SOCK_STREAM, 6, canonname, (address, 80)) for address in addresses]


@pytest.fixture
def library(monkeypatch):
    """Replace what the look-up threads call, and give them a pool of their own."""

    def install(answer, **pool):
        scripted = ScriptedLibrary(answer)
        monkeypatch.setattr(resolver, "_socket", scripted)
        threads = resolver.DaemonThreads(**{"idle_seconds": 0.01, **pool})
        monkeypatch.setattr(resolver, "_threads", threads)
        return scripted

    return install


@pytest.fixture
def gate():
    """An event that is set at the end of the test, so that no thread stays behind."""
    before = set(look_up_threads())
    event = threading.Event()
    yield event
    event.set()
    for thread in set(look_up_threads()) - before:
        thread.join(10)


def look_up_threads():
    return [thread for thread in threading.enumerate() if thread.name == "netsock-look-up"]


def addresses(infos):
    return [tuple(info.address) for info in infos]


# What the system answers


async def test_each_address_comes_once_and_in_the_order_of_the_system(library):
    library(lambda _: found("127.0.0.9", "127.0.0.1", "127.0.0.9"))
    infos = await look_up_system(the_reactor(), "name.invalid", 80)
    assert addresses(infos) == [("127.0.0.9", 80), ("127.0.0.1", 80)]


async def test_an_address_that_came_twice_keeps_its_canonical_name(library):
    # getaddrinfo gives the name with its first result only.
    library(lambda _: found("127.0.0.9", canonname="canonical.invalid") + found("127.0.0.9"))
    (info,) = await look_up_system(the_reactor(), "name.invalid", 80, Hints(flags=AI_CANONNAME))
    assert info.canonname == "canonical.invalid"


async def test_a_name_without_an_address_of_the_internet_is_not_found(library):
    library(lambda _: [(socket.AF_UNIX, SOCK_STREAM, 0, "", "/path")])
    with pytest.raises(HostNotFoundError, match=r"name\.invalid"):
        await look_up_system(the_reactor(), "name.invalid", 80)


async def test_a_name_beyond_ascii_is_asked_for_as_a_labels(library):
    asked = library(lambda _: found("127.0.0.1")).asked
    await look_up_system(the_reactor(), "BÜCHER.invalid", 80)
    assert asked == ["xn--bcher-kva.invalid"]


async def test_a_failing_resolver_fails_all_that_wait(library):
    def answer(_):
        raise MemoryError("no room for the answer")

    library(answer)
    with pytest.raises(MemoryError):
        await look_up_system(the_reactor(), "name.invalid", 80)


# The threads


async def test_a_look_up_that_hangs_delays_no_other(library, gate):
    def answer(node):
        if node == "hangs.invalid":
            gate.wait(10)
        return found("127.0.0.1")

    library(answer)
    hanging = look_up_system(the_reactor(), "hangs.invalid", 80)
    assert await look_up_system(the_reactor(), "answers.invalid", 80)
    assert not hanging.called
    gate.set()
    assert addresses(await hanging) == [("127.0.0.1", 80)]


def test_a_look_up_that_hangs_delays_the_exit_of_no_process():
    lines = run_script(
        """
        import threading
        from types import SimpleNamespace
        from twisted_netsock._net import resolver

        begun = threading.Event()

        def hang(*args):
            begun.set()
            threading.Event().wait()

        resolver._socket.getaddrinfo = hang

        async def main():
            resolver.look_up_system(reactor, "hangs.invalid", 80)
            begun.wait(10)
            print("begun", begun.is_set())

        run(main)
        """
    )
    assert lines == ["begun True"]


async def test_32_look_ups_run_at_a_time_and_the_rest_waits_in_order(library, gate):
    def answer(node):
        gate.wait(10)
        return found("127.0.0.1")

    before = set(look_up_threads())
    asked = library(answer).asked
    names = [f"name-{number}.invalid" for number in range(40)]
    waiting = [look_up_system(the_reactor(), name, 80) for name in names]
    # A thread is there as soon as it has been started.
    assert len(set(look_up_threads()) - before) == 32
    await until(lambda: len(asked) == 32)
    assert set(asked) == set(names[:32])
    gate.set()
    for deferred in waiting:
        assert addresses(await deferred) == [("127.0.0.1", 80)]
    assert set(asked) == set(names)


async def test_a_queue_is_served_oldest_first(library, gate):
    def answer(node):
        if node == "first.invalid":
            gate.wait(10)
        return found("127.0.0.1")

    asked = library(answer, most=1).asked
    names = ["first.invalid", "second.invalid", "third.invalid"]
    waiting = [look_up_system(the_reactor(), name, 80) for name in names]
    gate.set()
    for deferred in waiting:
        await deferred
    assert asked == names


async def test_a_queued_look_up_that_is_cancelled_never_runs(library, gate):
    def answer(node):
        if node == "first.invalid":
            gate.wait(10)
        return found("127.0.0.1")

    asked = library(answer, most=1).asked
    first = look_up_system(the_reactor(), "first.invalid", 80)
    cancelled = look_up_system(the_reactor(), "cancelled.invalid", 80)
    last = look_up_system(the_reactor(), "last.invalid", 80)
    cancelled.cancel()
    with pytest.raises(CancelledError):
        await cancelled
    gate.set()
    await first
    await last
    assert asked == ["first.invalid", "last.invalid"]


@pytest.mark.parametrize("fails", [False, True])
async def test_the_result_of_a_cancelled_look_up_is_dropped(library, gate, fails):
    def answer(node):
        if node == "cancelled.invalid":
            gate.wait(10)
            if fails:
                raise socket.gaierror(EAI_NONAME, "no such name")
        return found("127.0.0.1")

    asked = library(answer, most=1).asked
    results = []
    cancelled = look_up_system(the_reactor(), "cancelled.invalid", 80)
    cancelled.addBoth(results.append)
    await until(lambda: asked)
    cancelled.cancel()
    assert [type(result.value) for result in results] == [CancelledError]
    gate.set()
    # One thread, so the cancelled one's result was delivered before this one's.
    await look_up_system(the_reactor(), "other.invalid", 80)
    assert len(results) == 1


async def test_threads_end_when_they_are_idle_and_new_ones_begin_when_needed(library):
    before = set(look_up_threads())
    library(lambda _: found("127.0.0.1"))
    for _ in range(2):
        await look_up_system(the_reactor(), "name.invalid", 80)
        await until(lambda: set(look_up_threads()) <= before)


async def test_a_thread_that_could_not_be_started_is_not_counted(library, monkeypatch):
    library(lambda _: found("127.0.0.1"), most=1)

    def fail(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        looking_up = look_up_system(the_reactor(), "name.invalid", 80)
        with pytest.raises(HostNotFoundError, match="can't start new thread") as caught:
            await looking_up
        assert caught.value.errno == EAI_AGAIN
    later = look_up_system(the_reactor(), "name.invalid", 80)
    later.addTimeout(2, the_reactor())
    assert addresses(await later) == [("127.0.0.1", 80)]


async def test_a_job_that_raises_is_logged_and_costs_no_thread(logged_errors):
    done = threading.Event()
    threads = resolver.DaemonThreads(most=1, idle_seconds=0.01)
    for kind in (ValueError, SystemExit):

        def job(kind=kind):
            raise kind

        threads.submit(job)
    threads.submit(done.set)
    await until(done.is_set)
    assert [event["log_failure"].type for event in logged_errors] == [ValueError, SystemExit]
    logged_errors.clear()
    await until(lambda: threads._threads == 0)


async def test_an_answer_for_a_reactor_whose_event_loop_is_closed_is_dropped(library):
    class Closed:
        """A reactor as asyncio's is at the end."""

        asked = threading.Event()

        def callFromThread(self, *_):  # noqa: N802
            self.asked.set()
            raise RuntimeError("Event loop is closed")

    library(lambda _: found("127.0.0.1"), most=1)
    look_up_system(Closed(), "name.invalid", 80)
    await until(Closed.asked.is_set)
    assert await look_up_system(the_reactor(), "name.invalid", 80)


def test_a_forked_child_looks_up_with_threads_of_its_own():
    lines = run_script(
        """
        import threading
        from twisted_netsock._net import resolver

        asked = threading.Semaphore(0)
        gate = threading.Event()

        def hang(node, *rest):
            asked.release()
            gate.wait(20)
            return []

        resolver._socket.getaddrinfo = hang
        resolver._threads = resolver.DaemonThreads(most=1)
        resolver.look_up_system(reactor, "hangs.invalid", 80).addErrback(lambda _: None)
        asked.acquire()
        resolver.look_up_system(reactor, "queued.invalid", 80).addErrback(lambda _: None)

        child = os.fork()
        if child == 0:
            # The parent's only thread hangs, and is not here.
            names = []
            done = threading.Event()

            def answer(node, *rest):
                names.append(node)
                done.set()
                return []

            resolver._socket.getaddrinfo = answer
            resolver.look_up_system(reactor, "child.invalid", 80)
            good = done.wait(10) and names == ["child.invalid"]
            os._exit(0 if good else 1)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert lines == ["0"]
