"""A forked child: nothing of the program runs there, and its parent notices nothing."""

from __future__ import annotations

import pytest

from tests.support.loopback import run_script

pytestmark = pytest.mark.long

# A parent with every kind of connection, waiting and idle, and a child that tries them all.
WORLD = """
import gc, socket, sys, tempfile
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.task import deferLater
from twisted_netsock import (
    SocketError, SocketOptions, SocketSelector, chibi, client_endpoint, make_client_tls_socket,
    make_server_tls_socket, server_endpoint,
)
from twisted_netsock.testing import CertificateAuthority

from_children, to_parent = os.pipe()
parent = os.getpid()

class Ran(list):
    # What has run here; the parent hears of what runs in a child.
    def append(self, what):
        super().append(what)
        if os.getpid() != parent:
            os.write(to_parent, what.encode())

ran = Ran()
kept = []

class Chat(Protocol):
    def dataReceived(self, data):
        ran.append("dataReceived")
        self.transport.write(data)
    def connectionLost(self, reason):
        ran.append("connectionLost")

def note(*_):
    ran.append("callback")

async def session(sock):
    async with sock:
        try:
            await sock.recv(1)
        finally:
            ran.append("finally")

async def world():
    authority = CertificateAuthority()
    server = await make_server_tls_socket("127.0.0.1", 0, authority.server_options())
    accepting = server.accept()
    tls = await make_client_tls_socket(
        "127.0.0.1", server.getsockname().port, authority.client_options()
    )
    peer = await accepting
    server.accept().addBoth(note)
    # A session that nothing refers to but what waits for it.
    here, there = chibi.open_socket_pair()
    Deferred.fromCoroutine(session(here))
    idle, other = chibi.open_socket_pair()
    selector = SocketSelector()
    selected, unselected = chibi.open_socket_pair()
    selector.add(selected, note)
    factory = Factory.forProtocol(Chat)
    factory.noisy = False
    port = await server_endpoint(reactor, "127.0.0.1", 0).listen(factory)
    path = os.path.join(tempfile.mkdtemp(), "s")
    options = SocketOptions(ai_family=socket.AF_UNIX)
    unix = await server_endpoint(reactor, path, None, options).listen(factory)
    chat = await client_endpoint(reactor, "127.0.0.1", port.getHost().port).connect(factory)
    await deferLater(reactor, 0.05)
    kept.extend([server, tls, peer, there, idle, other, selector, selected, unselected])
    kept.extend([port, unix])
    return kept, there, idle, other, tls, peer, chat, server, port

async def end(chat, port):
    os.close(to_parent)
    print(os.read(from_children, 1000))
    os.close(from_children)
    for each in kept[:6] + kept[7:9]:
        await each.close()
    kept[6].close()
    chat.transport.abortConnection()
    await port.stopListening()
    await kept[10].stopListening()
    while ran.count("connectionLost") < 2 or "finally" not in ran:
        await deferLater(reactor, 0.01)
"""

CALLS = """
def seen_by(call):
    try:
        result = call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(result, Deferred):
        found = []
        result.addErrback(lambda failure: found.append(failure.value))
        return f"{type(found[0]).__name__}: {found[0]}" if found else "not failed"
    return f"{result!r}"

async def main():
    _, there, idle, other, tls, peer, chat, server, port = await world()
    other.sendall(b"for the parent")
    await peer.sendall(b"for the parent")
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            calls = {
                "recv": lambda: idle.recv(100),
                "recv_into": lambda: idle.recv_into(bytearray(10)),
                "send": lambda: idle.send(b"x"),
                "sendall": lambda: idle.sendall(b"x"),
                "shutdown": lambda: idle.shutdown(socket.SHUT_RDWR),
                "setsockopt": lambda: idle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                "TLS recv": lambda: tls.recv(100),
                "TLS send": lambda: tls.send(b"x"),
                "TLS shutdown": lambda: tls.shutdown(socket.SHUT_WR),
                "accept": lambda: server.accept(),
            }
            lines = [f"{name}: {seen_by(call)}" for name, call in calls.items()]
            chat.transport.write(b"from the child")
            chat.transport.loseConnection()
            chat.transport.abortConnection()
            idle.abort()
            tls.abort()
            peer.close()
            other.close()
            port.stopListening()
            kept[10].stopListening()
            gc.collect()
            lines.append(f"ran: {ran}")
            os.write(write_end, "\\n".join(lines).encode())
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(os.read(read_end, 65536).decode())
    # In the parent all is as it was.
    assert os.path.exists(kept[10].getHost().name)
    print("parent ran:", ran)
    print(await idle.recv(100), await tls.recv(100))
    await idle.sendall(b"back")
    await tls.sendall(b"back")
    print(await other.recv(100), await peer.recv(100))
    chat.transport.write(b"x")
    while ran.count("dataReceived") < 2:
        await deferLater(reactor, 0.01)
    print("lost:", "connectionLost" in ran)
    await end(chat, port)

run(main)
"""


def test_in_a_child_every_call_fails_and_the_parent_loses_nothing():
    lines = run_script(WORLD + CALLS)
    calls, [ran, parent, received, answered, lost, from_child] = lines[:-6], lines[-6:]
    assert len(calls) == 10
    assert [line for line in calls if "forked" not in line] == []
    assert ran == "ran: []"
    assert parent == "parent ran: []"
    assert received == "b'for the parent' b'for the parent'"
    assert answered == "b'back' b'back'"
    assert (lost, from_child) == ("lost: False", "b''")


ENDINGS = {
    "spawnProcess": """
    ended = Deferred()
    class Child(ProcessProtocol):
        def processEnded(self, reason):
            ended.callback(None)
    reactor.spawnProcess(Child(), sys.executable, [sys.executable, "-c", ""], path="/")
    await ended
""",
    "the child of a child": """
    child = os.fork()
    if not child:
        grandchild = os.fork()
        if not grandchild:
            gc.collect()
            os._exit(len(ran))
        os._exit(len(ran) + os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_of_the_program_runs_in_a_child(ending):
    lines = run_script(
        WORLD
        + f"""
async def main():
    _, there, idle, other, tls, peer, chat, server, port = await world()
{ENDINGS[ending]}
    print(ran)
    await end(chat, port)

run(main)
"""
    )
    assert lines[-2:] == ["[]", "b''"]
    assert lines[:-2] in ([], ["0"])
