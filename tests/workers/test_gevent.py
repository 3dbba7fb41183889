"""
Blocking sockets beside gevent: greenlets wait, others go on, and every time limit holds.

Whether gevent replaces threads before the package is imported, after that, or after its first
use, in this process or in a forked child, must make no difference.
"""

from __future__ import annotations

import sys
import textwrap

import pytest

from tests.support.processes import run

pytest.importorskip("gevent", reason="run by nox -s workers: install gevent")
pytestmark = pytest.mark.once

FIRST = "patch(); from twisted_netsock import blocking"
IMPORTED = "from twisted_netsock import blocking; patch()"
USED = """
from twisted_netsock import blocking
blocking.make_server_socket("127.0.0.1", 0).close()
patch()
"""
REACTOR = "patch(); from twisted.internet import reactor; from twisted_netsock import blocking"
ORDERS = {"first": FIRST, "imported": IMPORTED, "used": USED, "reactor imported": REACTOR}

PRELUDE = """
import os, signal, sys
from gevent import monkey
signal.alarm(60)
def patch(**which):
    monkey.patch_all(**which)
"""

COMMON = """
import gevent, socket, threading
from datetime import timedelta
from twisted_netsock.testing import CertificateAuthority

authority = CertificateAuthority()
client_options, server_options = authority.client_options, authority.server_options
mute = socket.create_server(("127.0.0.1", 0))
mute_port = mute.getsockname()[1]
short = timedelta(seconds=0.2)
ticks = 0

def tick():
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0.01)

ticking = gevent.spawn(tick)

def meanwhile(call):
    "Call, and print the result and whether other greenlets went on."
    gevent.sleep(0.01)
    before = ticks
    try:
        result = call()
    except BaseException as error:
        result = type(error).__name__
    print(result, ticks > before)
"""


def output_of(order: str, text: str) -> list[str]:
    """Run a program, which must end well, and return the lines that it prints."""
    program = PRELUDE + textwrap.dedent(order) + COMMON + textwrap.dedent(text)
    # gevent warns of what it replaces late.
    ran = run(sys.executable, "-W", "ignore", "-c", program, seconds=90)
    assert (ran.code, ran.errors) == (0, ""), ran.output + ran.errors
    return ran.output.splitlines()


@pytest.fixture(params=ORDERS)
def order(request):
    return ORDERS[request.param]


def test_every_time_limit_holds_and_other_greenlets_go_on(order):
    assert output_of(
        order,
        """
        one, other = blocking.open_socket_pair()
        one.settimeout(0.2)
        meanwhile(lambda: one.recv(1))
        meanwhile(lambda: one.sendall(bytes(10**8)))
        limited = client_options(connection_timeout=short)
        meanwhile(lambda: blocking.make_client_tls_socket("localhost", mute_port, limited))
        meanwhile(lambda: blocking.wait_readable(one, timeout=short))
        context = blocking.ssl_context(client_options())
        sock = socket.create_connection(mute.getsockname(), timeout=0.2)
        meanwhile(lambda: context.wrap_socket(sock, server_hostname="localhost"))
        def limited_by_gevent():
            with gevent.Timeout(0.2):
                blocking.make_client_tls_socket("localhost", mute_port, client_options())
        meanwhile(limited_by_gevent)
        """,
    ) == [
        "SocketReadTimeoutError True",
        "SocketWriteTimeoutError True",
        "SocketConnectionTimeoutError True",
        "[] True",
        "SocketConnectionTimeoutError True",
        "Timeout True",
    ]


def test_closing_wakes_another_greenlet(order):
    assert (
        output_of(
            order,
            """
            one, other = blocking.open_socket_pair()
            def close(sock):
                while ticks < 20:
                    gevent.sleep(0.01)
                sock.close()
            gevent.spawn(close, one)
            meanwhile(lambda: one.recv(1))
            server = blocking.make_server_socket("127.0.0.1", 0)
            ticks = 0
            gevent.spawn(close, server)
            meanwhile(server.accept)
            """,
        )
        == ["SocketClosedError True"] * 2
    )


def test_many_greenlets_speak_tls_with_a_server_of_greenlets(order):
    assert output_of(
        order,
        """
        server = blocking.make_server_tls_socket("127.0.0.1", 0, server_options())
        port = server.getsockname().port
        serving = gevent.spawn(server.serve, lambda sock: sock.sendall(sock.recv(10)))
        def ask(number):
            with blocking.make_client_tls_socket("localhost", port, client_options()) as sock:
                sock.sendall(b"%d" % number)
                return int(sock.recv(10))
        asking = [gevent.spawn(ask, number) for number in range(20)]
        print([each.get(timeout=20) for each in asking] == list(range(20)))
        # So does a real thread.
        print(gevent.get_hub().threadpool.apply(ask, (7,)))
        server.close()
        serving.get(timeout=20)
        """,
    ) == ["True", "7"]


def test_a_context_serves_urllib_and_the_servers_of_the_standard_library(order):
    assert output_of(
        order,
        """
        import http.server, urllib.request
        class Hello(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                gevent.sleep(0.1)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"hello")
            def log_message(self, *_):
                pass
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
        context = blocking.ssl_context(server_options())
        server.socket = context.wrap_socket(server.socket, server_side=True)
        serving = gevent.spawn(server.serve_forever, 0.05)
        url = f"https://localhost:{server.server_port}/"
        trusting = blocking.ssl_context(client_options())
        meanwhile(lambda: urllib.request.urlopen(url, context=trusting, timeout=20).read())
        server.shutdown()
        server.server_close()
        serving.get(timeout=20)
        """,
    ) == ["b'hello' True"]


def test_a_selector_calls_in_greenlets(order):
    assert output_of(
        order,
        """
        one, other = blocking.open_socket_pair()
        called = threading.Event()
        def on_read(sock, error, again):
            print(sock.recv(1), error, isinstance(gevent.getcurrent(), gevent.Greenlet))
            called.set()
        with blocking.SocketSelector() as selector:
            selector.add(one, on_read)
            gevent.spawn_later(0.1, other.sendall, b"x")
            meanwhile(lambda: called.wait(20))
        """,
    ) == ["b'x' None True", "True True"]


TALK = """
def talk():
    with blocking.make_server_tls_socket("127.0.0.1", 0, server_options()) as server:
        port = server.getsockname().port
        accepting = gevent.spawn(server.accept)
        with blocking.make_client_tls_socket("localhost", port, client_options()) as one:
            with accepting.get(timeout=20) as other:
                one.sendall(b"x")
                gevent.spawn_later(0.1, other.sendall, b"y")
                meanwhile(lambda: other.recv(1) + one.recv(1))
"""


@pytest.mark.parametrize("used", [False, True], ids=["imported", "used"])
@pytest.mark.parametrize("first", [False, True], ids=["in the child", "before the fork"])
def test_a_forked_child_has_a_reactor_of_its_own(first, used):
    """As gunicorn's with preloading; the child inherits nothing that waits."""
    text = """
from twisted_netsock import blocking
if used:
    blocking.make_server_socket("127.0.0.1", 0).close()
child = os.fork()
if child:
    print(os.waitpid(child, 0)[1], flush=True)
    os._exit(0)
"""
    before, after = ("patch()", "") if first else ("", "patch()")
    printed = output_of(f"{before}\nused = {used}{text}{after}", TALK + "\ntalk()\n")
    assert sorted(printed) == ["0", "b'xy' True"]


def test_greenlets_that_wait_when_the_process_forks_give_up_in_the_child(order):
    assert output_of(
        order,
        """
        one, other = blocking.open_socket_pair()
        receiving = gevent.spawn(one.recv, 1)
        gevent.sleep(0.1)
        # On Python 3.13 gevent's own hook says something about threads from before it came.
        errors = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        child = os.fork()
        os.dup2(errors, 2) if child else None
        if not child:
            receiving.join(20)
            print(type(receiving.exception).__name__, flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
        other.sendall(b"z")
        print(receiving.get(timeout=20))
        """,
    ) == ["SocketConnectionLostError", "0", "b'z'"]


def test_what_cannot_work_is_refused_at_once():
    assert output_of(
        IMPORTED.replace("patch()", "patch(thread=False)"),
        """
        for call in (blocking.open_socket_pair, lambda: blocking.make_server_socket(None, 0)):
            try:
                call()[0].recv(1)
            except RuntimeError as error:
                print("replace both" in str(error))
        """,
    ) == ["True", "True"]
    assert output_of(
        FIRST,
        """
        try:
            blocking.setup(reactor="select")
            blocking.make_server_socket("127.0.0.1", 0)
        except RuntimeError as error:
            print(error)
        """,
    ) == ["reactor='select': beside gevent it must be 'epoll'"]


def test_an_application_may_run_its_reactor_in_a_greenlet():
    assert output_of(
        REACTOR,
        TALK
        + """
reactor_running = gevent.spawn(reactor.run, installSignalHandlers=False)
gevent.sleep(0.1)
talk()
reactor.callFromThread(reactor.stop)
reactor_running.get(timeout=20)
""",
    ) == ["b'xy' True"]
