"""
Blocking sockets and the process: how the reactor starts, Ctrl-C, forks, and the end.

Each program runs in an interpreter of its own, in development mode, where every warning is an
error; it must end in time and print nothing to its standard error.
"""

from __future__ import annotations

import signal
import socket
import sys
import textwrap
import time

import pytest

from tests.support.loopback import LONGEST
from tests.support.processes import Ran, run, started

pytestmark = pytest.mark.once

PRELUDE = """
import os, signal, socket, sys, threading, time
from datetime import timedelta
from twisted_netsock import blocking, SocketError
from twisted_netsock.errors import *

def later(function, seconds=0.2):
    timer = threading.Timer(seconds, function)
    timer.daemon = True
    timer.start()

def interrupt():
    later(lambda: os.kill(os.getpid(), signal.SIGINT))

def threads():
    return sorted(t.name for t in threading.enumerate())

def reactor():
    return sys.modules["twisted.internet.reactor"]
"""

PYTHON = (sys.executable, "-X", "dev", "-W", "error")


def program(text: str) -> str:
    return PRELUDE + textwrap.dedent(text)


def output_of(text: str, *, errors: str = "") -> list[str]:
    """Run a program, which must end well, and return the lines that it prints."""
    ran: Ran = run(*PYTHON, "-c", program(text), seconds=3 * LONGEST)
    assert (ran.code, ran.errors) == (0, errors), ran.output + ran.errors
    return ran.output.splitlines()


# The reactor


def test_importing_starts_nothing_and_the_first_call_starts_a_daemon_thread():
    assert output_of("""
        print("twisted.internet.reactor" in sys.modules, threads())
        one, other = blocking.open_socket_pair()
        one.sendall(b"x")
        print(other.recv(1), threads())
        one.close(), other.close()
        blocking.make_server_socket("127.0.0.1", 0).close()
        print(threads(), [t.daemon for t in threading.enumerate()])
        blocking.make_server_socket("127.0.0.1", 0).close()
        print(len(threads()))
    """) == [
        "False ['MainThread']",
        "b'x' ['MainThread']",
        "['MainThread', 'netsock-reactor'] [False, True]",
        "2",
    ]


def test_many_threads_start_one_reactor():
    assert output_of("""
        barrier = threading.Barrier(20)
        def call():
            barrier.wait()
            blocking.make_server_socket("127.0.0.1", 0).close()
        calls = [threading.Thread(target=call) for _ in range(20)]
        [t.start() for t in calls], [t.join() for t in calls]
        print(threads())
    """) == ["['MainThread', 'netsock-reactor']"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("epoll", "EPollReactor"),
        ("poll", "PollReactor"),
        ("select", "SelectReactor"),
        ("asyncio", "AsyncioSelectorReactor"),
    ],
)
def test_a_reactor_can_be_chosen_by_name_before_the_first_use(name, kind):
    assert output_of(f"""
        blocking.setup(reactor={name!r})
        print("twisted.internet.reactor" in sys.modules)
        with blocking.make_server_socket("127.0.0.1", 0) as server:
            with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                with server.accept() as other:
                    other.sendall(b"x")
                    print(one.recv(1))
        print(type(reactor()).__name__)
        try:
            blocking.setup(reactor={name!r})
        except RuntimeError as error:
            print("first use" in str(error))
    """) == ["False", "b'x'", kind, "True"]


def test_a_name_that_is_none_or_another_reactor_is_refused():
    assert output_of("""
        for given in ("nonsense", object(), 3):
            try:
                blocking.setup(reactor=given)
            except (ValueError, TypeError) as error:
                print(type(error).__name__, "reactor=" in str(error), "epoll" in str(error))
        from twisted.internet import reactor as installed
        try:
            blocking.setup(reactor=installed)
        except ValueError as error:
            print("must be running" in str(error))
        try:
            blocking.setup(reactor="select")
        except RuntimeError as error:
            print("installed already" in str(error))
    """) == [
        "ValueError True True",
        "TypeError True False",
        "TypeError True False",
        "True",
        "True",
    ]


APPLICATION = """
    from twisted.internet import reactor as installed
    from twisted.internet.threads import deferToThread
"""


def test_a_reactor_that_the_application_runs_is_used():
    assert output_of(
        APPLICATION
        + """
    def work():
        with blocking.make_server_socket("127.0.0.1", 0, reactor=installed) as server:
            with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                with server.accept() as other:
                    other.sendall(b"x")
                    print(one.recv(1), [n for n in threads() if "netsock" in n])
    def begin():
        deferToThread(work).addBoth(lambda r: (print(r), installed.stop()))
    installed.callWhenRunning(begin)
    installed.run()
    """
    ) == ["b'x' []", "None"]


def test_the_reactors_own_thread_is_refused_and_told_what_to_do():
    told = output_of(
        APPLICATION
        + """
    one, other = blocking.open_socket_pair()
    other.sendall(b"x")
    def begin():
        for call in (
            lambda: blocking.make_client_socket("localhost", 1),
            lambda: one.recv(1),
            lambda: other.sendall(b"x"),
            lambda: blocking.get_address_info("localhost", 1),
            lambda: blocking.open_socket_pair(),
            lambda: blocking.wait_readable(one),
            one.close,
        ):
            try:
                call()
            except RuntimeError as error:
                print("deferToThread" in str(error))
        installed.stop()
    installed.callWhenRunning(begin)
    installed.run()
    one.close(), other.close()
    """
    )
    assert told == ["True"] * 7


def test_crochet_may_be_used_by_the_application_too():
    """Its own warning about isSet is not ours to mend."""
    ran = run(
        sys.executable,
        "-c",
        program("""
            import crochet
            crochet.setup()
            @crochet.wait_for(5)
            def there():
                return reactor().running
            print(there())
            blocking.make_server_socket("127.0.0.1", 0).close()
            print("netsock-reactor" in threads(), there())
        """),
    )
    assert (ran.code, ran.output.splitlines()) == (0, ["True", "False True"]), ran.errors


def test_when_the_reactor_stops_whoever_waits_is_woken():
    assert output_of("""
        server = blocking.make_server_socket("127.0.0.1", 0)
        one, other = blocking.open_socket_pair()
        told = []
        def call(function):
            try:
                function()
            except SocketConnectionLostError as error:
                told.append(str(error))
        calls = [
            threading.Thread(target=call, args=(function,))
            for function in (
                server.accept,
                lambda: one.recv(1),
                lambda: blocking.wait_readable(other),
            )
        ]
        [t.start() for t in calls]
        time.sleep(0.2)
        reactor().callFromThread(reactor().stop)
        [t.join() for t in calls]
        print(set(told), len(told))
        call(lambda: blocking.make_client_socket("127.0.0.1", 1))
        call(lambda: one.recv(1))
        other.sendall(b"here")
        print(one.recv(4), len(told))
        server.close(), one.close(), other.close()
    """) == ["{'[Errno 104] The reactor was shut down'} 3", "b'here' 5"]


# Ctrl-C

INTERRUPTED = {
    "receiving": ("one, other = blocking.open_socket_pair()", "one.recv(1)"),
    "sending": ("one, other = blocking.open_socket_pair()", "one.sendall(bytes(10**8))"),
    "reading a port": ("one, other = blocking.open_socket_pair()", "one.input_port.read(5)"),
    "waiting": ("one, other = blocking.open_socket_pair()", "blocking.wait_readable(one)"),
    "accepting": ("one = blocking.make_server_socket('127.0.0.1', 0)", "one.accept()"),
    "serving": ("one = blocking.make_server_socket('127.0.0.1', 0)", "one.serve(print)"),
    "shaking hands": (
        "mute = socket.create_server(('127.0.0.1', 0)); port = mute.getsockname()[1]",
        "blocking.make_client_tls_socket('127.0.0.1', port)",
    ),
    "looking up": (
        "socket.getaddrinfo = lambda *_: time.sleep(60)",
        "blocking.make_client_socket('no.such.host.invalid', 80)",
    ),
}


@pytest.mark.parametrize("what", INTERRUPTED)
def test_ctrl_c_ends_a_call_at_once_and_nothing_is_left_or_logged(what):
    prepare, call = INTERRUPTED[what]
    assert output_of(f"""
        blocking.make_server_socket("127.0.0.1", 0).close()
        one = other = mute = None
        {prepare}
        before = len(os.listdir("/proc/self/fd"))
        begin = time.monotonic()
        interrupt()
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - begin < 5)
        end = time.monotonic() + 5
        def left():
            return len(os.listdir("/proc/self/fd")) - before
        while left() > 1 and time.monotonic() < end:
            time.sleep(0.02)
        print(left() <= 1, len(reactor().getReaders()) <= 2)
        [each.close() for each in (one, other, mute) if each is not None]
    """) == ["interrupted True", "True True"]


def test_after_ctrl_c_the_socket_is_usable():
    assert output_of("""
        with blocking.make_server_socket("127.0.0.1", 0) as server:
            for _ in range(3):
                interrupt()
                try:
                    server.accept()
                except KeyboardInterrupt:
                    print("interrupted")
            with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                with server.accept() as other:
                    interrupt()
                    try:
                        other.recv(1)
                    except KeyboardInterrupt:
                        print("interrupted")
                    one.sendall(b"x")
                    print(other.recv(1))
    """) == ["interrupted"] * 4 + ["b'x'"]


@pytest.mark.parametrize("call", ["server.accept()", "server.serve(print)", "one.recv(1)"])
def test_a_handler_of_a_signal_may_close_what_the_main_thread_waits_for(call):
    assert output_of(f"""
        from twisted_netsock.testing import CertificateAuthority
        authority = CertificateAuthority()
        server = blocking.make_server_tls_socket("127.0.0.1", 0, authority.server_options())
        accepting = []
        thread = threading.Thread(target=lambda: accepting.append(server.accept()))
        thread.start()
        port = server.getsockname().port
        one = blocking.make_client_tls_socket("localhost", port, authority.client_options())
        thread.join()
        signal.signal(signal.SIGTERM, lambda *_: (server.close(), one.close(), print("closed")))
        later(lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            {call}
        except SocketClosedError:
            pass
        print(accepting[0].recv(1))
        accepting[0].close()
    """) == ["closed", "b''"]


def test_a_program_that_is_interrupted_ends(tmp_path):
    text = program("""
        one, other = blocking.open_socket_pair()
        server = blocking.make_server_socket("127.0.0.1", 0)
        threading.Thread(target=server.accept, daemon=True).start()
        print("waiting", flush=True)
        one.recv(1)
    """)
    with started(sys.executable, "-c", text, output=tmp_path / "output") as child:
        child.wait_for_line("waiting")
        assert child.end(signal.SIGINT) in {1, -signal.SIGINT}
        assert "KeyboardInterrupt" in child.output


# The end


def test_a_process_ends_though_daemon_threads_wait():
    """They are woken: each is told, and nothing is printed by what is left of them."""
    assert output_of("""
        server = blocking.make_server_socket("127.0.0.1", 0)
        pairs = [blocking.open_socket_pair() for _ in range(3)]
        woken = []
        def wait(function):
            try:
                function()
            except SocketConnectionLostError:
                woken.append(1)
        for function in (
            server.accept,
            lambda: pairs[0][0].recv(1),
            lambda: pairs[1][0].sendall(bytes(10**8)),
            lambda: pairs[2][0].input_port.read(),
            lambda: blocking.wait_readable(pairs[0][1]),
        ):
            threading.Thread(target=wait, args=(function,), daemon=True).start()
        selector = blocking.SocketSelector()
        selector.add(pairs[1][1], lambda socket, error, again: woken.append(error))
        time.sleep(0.1)
        import atexit, warnings, twisted_netsock.blocking._bridge as bridge
        warnings.simplefilter("ignore")
        def tell():
            end = time.monotonic() + 5
            while len(woken) < 6 and time.monotonic() < end:
                time.sleep(0.01)
            print(len(woken), flush=True)
        # Behind the one that wakes them.
        atexit.unregister(bridge._at_end)
        atexit.register(tell)
        atexit.register(bridge._at_end)
        print("the end")
    """) == ["the end", "6"]


AFTER_THE_MAIN_THREAD = {
    "a thread": "threading.Thread(target=work).start()",
    "a timer": "threading.Timer(0.1, work).start()",
    "an executor": "ThreadPoolExecutor(2).submit(work)",
    "atexit": "atexit.register(work)",
    "atexit, given before": "",
}


@pytest.mark.parametrize("what", AFTER_THE_MAIN_THREAD)
def test_what_outlives_the_main_thread_may_use_blocking_sockets(what):
    text = """
        import atexit, sys
        {before}
        from concurrent.futures import ThreadPoolExecutor
        from twisted_netsock import blocking
        from twisted_netsock.testing import CertificateAuthority
        import socket, threading, time
        authority = CertificateAuthority()
        server = blocking.make_server_tls_socket("127.0.0.1", 0, authority.server_options())
        def serve():
            for connection in server:
                connection.sendall(b"welcome")
                connection.close()
        threading.Thread(target=serve, daemon=True).start()
        def ask():
            port = server.getsockname().port
            options = authority.client_options()
            with blocking.make_client_tls_socket("localhost", port, options) as sock:
                return sock.recv(10)
        ask()
        def work():
            if {waits}:
                # The main thread is at its end by then.
                time.sleep(0.3)
            if {before!r}:
                # Who accepts is woken by then.
                with blocking.make_server_socket(None, 0) as other:
                    port = other.getsockname().port
                    blocking.make_client_socket("localhost", port).close()
                    other.accept().close()
                    print("b'welcome'", flush=True)
                return
            print(ask(), flush=True)
        {start}
    """
    before = "atexit.register(lambda: work())" if "before" in what else ""
    waits = "atexit" not in what
    start = AFTER_THE_MAIN_THREAD[what]
    text = textwrap.dedent(text).format(before=before, waits=waits, start=start)
    ran = run(sys.executable, "-c", text, seconds=3 * LONGEST)
    assert (ran.code, ran.output, ran.errors) == (0, "b'welcome'\n", "")


def test_a_server_in_a_thread_goes_on_when_the_main_thread_has_ended(tmp_path):
    text = program("""
        server = blocking.make_server_socket("127.0.0.1", 0)
        def serve():
            for connection in server:
                with connection:
                    connection.sendall(connection.recv(10))
        threading.Thread(target=serve).start()
        print(server.getsockname().port, flush=True)
    """)
    with started(sys.executable, "-c", text, output=tmp_path / "output") as child:
        port = int(child.wait_for_line(r"\d+$")[0])
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), LONGEST) as client:
                client.sendall(b"echo")
                assert client.recv(10) == b"echo"
            time.sleep(0.1)
        assert child.end(signal.SIGTERM) == -signal.SIGTERM


def test_a_process_ends_after_the_reactor_has_used_threads():
    assert output_of("""
        from twisted.internet.threads import deferToThreadPool
        from twisted_netsock.blocking._bridge import run
        print(run(lambda r: deferToThreadPool(r, r.getThreadPool(), lambda: "in a thread")))
    """) == ["in a thread"]


def test_a_close_notify_is_sent_though_the_process_ends():
    assert output_of("""
        from twisted_netsock.testing import CertificateAuthority
        authority = CertificateAuthority()
        server = blocking.make_server_tls_socket("127.0.0.1", 0, authority.server_options())
        def serve():
            with server.accept() as other:
                print(other.recv(10), other.recv(10), flush=True)
        serving = threading.Thread(target=serve)
        serving.start()
        port = server.getsockname().port
        one = blocking.make_client_tls_socket("localhost", port, authority.client_options())
        one.sendall(b"last")
        one.close()
        serving.join()
        server.close()
    """) == ["b'last' b''"]


# Forks


def test_a_forked_child_gets_a_reactor_of_its_own():
    assert output_of("""
        import multiprocessing
        def talk(queue):
            with blocking.make_server_socket("127.0.0.1", 0) as server:
                with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                    with server.accept() as other:
                        one.sendall(b"x")
                        queue.put((os.getpid(), other.recv(1), type(reactor()).__name__))
        if __name__ == "__main__":
            blocking.setup(reactor="select")
            context = multiprocessing.get_context("fork")
            queue = context.SimpleQueue()
            talk(queue)
            child = context.Process(target=talk, args=(queue,))
            child.start()
            child.join(10)
            talk(queue)
            results = [queue.get() for _ in range(3)]
            print([each[1:] for each in results], child.exitcode)
            print(results[0][0] == results[2][0] != results[1][0])
    """) == [f"{[(b'x', 'SelectReactor')] * 3} 0", "True"]


def test_a_child_whose_fork_python_does_not_know_of_gets_a_reactor_of_its_own():
    """As the workers of uWSGI, which forks in C."""
    assert output_of("""
        import ctypes
        blocking.make_server_socket("127.0.0.1", 0).close()
        child = ctypes.PyDLL(None).fork()
        with blocking.make_server_socket("127.0.0.1", 0) as server:
            with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                with server.accept() as other:
                    one.sendall(b"x")
                    print(other.recv(1), flush=True)
        if not child:
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """) == ["b'x'", "b'x'", "0"]


def test_beside_eventlet_every_call_is_refused_at_once():
    assert output_of("""
        import types
        patcher = types.ModuleType("eventlet.patcher")
        patcher.is_monkey_patched = lambda module: module == "select"
        sys.modules["eventlet.patcher"] = patcher
        one, other = blocking.open_socket_pair()
        for call in (
            lambda: blocking.make_server_socket("127.0.0.1", 0),
            lambda: one.recv(1),
        ):
            try:
                call()
            except RuntimeError as error:
                print("eventlet" in str(error))
        del sys.modules["eventlet.patcher"]
        one.close(), other.close()
    """) == ["True", "True"]


def test_a_child_of_an_application_with_a_reactor_gets_one_of_its_own():
    assert output_of(
        APPLICATION
        + """
    def work():
        blocking.make_server_socket("127.0.0.1", 0).close()
        child = os.fork()
        if not child:
            with blocking.make_server_socket("127.0.0.1", 0) as server:
                with blocking.make_client_socket("127.0.0.1", server.getsockname().port) as one:
                    with server.accept() as other:
                        one.sendall(b"x")
                        print(other.recv(1), reactor() is not installed, flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    installed.callWhenRunning(lambda: deferToThread(work).addBoth(lambda _: installed.stop()))
    installed.run()
    """
    ) == ["b'x' True", "0"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_spawned_child_starts_afresh(tmp_path, method):
    script = tmp_path / "spawning.py"
    script.write_text(
        program("""
        import multiprocessing
        def talk(queue):
            with blocking.make_server_socket("127.0.0.1", 0) as server:
                queue.put(server.getsockname().host)
        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            queue = context.SimpleQueue()
            talk(queue)
            child = context.Process(target=talk, args=(queue,))
            child.start()
            child.join(20)
            print(queue.get(), queue.get(), child.exitcode)
        """)
    )
    ran = run(*PYTHON, script, method)
    assert (ran.code, ran.output, ran.errors) == (0, "127.0.0.1 127.0.0.1 0\n", "")


def test_sockets_from_before_a_fork():
    """Plain ones go on, as the standard library's; a TLS one fails, its peer notices nothing."""
    assert output_of("""
        from twisted_netsock.testing import CertificateAuthority
        authority = CertificateAuthority()
        server = blocking.make_server_tls_socket("127.0.0.1", 0, authority.server_options())
        taken = []
        accepting = threading.Thread(target=lambda: taken.append(server.accept()))
        accepting.start()
        port = server.getsockname().port
        tls = blocking.make_client_tls_socket("localhost", port, authority.client_options())
        accepting.join()
        peer = taken[0]
        plain = blocking.make_server_socket("127.0.0.1", 0)
        client = blocking.make_client_socket("127.0.0.1", plain.getsockname().port)
        one, other = blocking.open_socket_pair()
        # A thread is receiving when the process forks.
        receiving = threading.Thread(target=one.recv, args=(1,))
        receiving.start()
        time.sleep(0.1)
        child = os.fork()
        if not child:
            for call in (lambda: tls.recv(1), lambda: tls.sendall(b"x")):
                try:
                    call()
                except SocketError as error:
                    print("forked" in str(error))
            tls.close()
            with plain.accept() as accepted:
                client.sendall(b"in the child")
                print(accepted.recv(100))
            # The parent's thread still receives on this one: here it is free.
            one.settimeout(0)
            try:
                one.recv(1)
            except BlockingIOError:
                print("free")
            one.sendall(b"y")
            print(other.recv(1), flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        other.sendall(b"z")
        receiving.join()
        tls.sendall(b"still")
        print(peer.recv(10))
        for each in (tls, peer, server, plain, client, one, other):
            each.close()
    """)[-4:] == ["free", "b'y'", "0", "b'still'"]
