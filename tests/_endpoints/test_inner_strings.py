"""Endpoint strings in endpoint strings: TLS over any other endpoint."""

from __future__ import annotations

import socket
import sys

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    UNIXServerEndpoint,
    clientFromString,
    quoteStringArgument,
    serverFromString,
)

from tests.support.loopback import LOOPBACK
from tests.support.processes import started, write_certificates
from tests.support.protocols import (
    Protocols,
    client_context,
    raw_client,
    raw_receive,
    serving,
    tls_peer,
)
from tests.support.ways_in import PROXY_HEADER
from twisted_netsock import TLSHandshakeError, client_endpoint, server_endpoint


@pytest.fixture
def files(tmp_path, authority):
    return write_certificates(tmp_path, authority)


def within(inner, files, *keys):
    """Return a server's string over *inner*."""
    parts = ("netsock-tls", f"endpoint={quoteStringArgument(inner)}", *keys)
    return ":".join((*parts, f"certificates={quoteStringArgument(str(files.server))}"))


def towards(inner, files, *keys, node="localhost"):
    """Return a client's string over *inner*."""
    parts = ("netsock-tls", node, f"endpoint={quoteStringArgument(inner)}", *keys)
    return ":".join((*parts, f"trustedCertificates={quoteStringArgument(str(files.authority))}"))


async def talk(server, client):
    """Listen and connect as the strings say; *client* is made of the port's number."""
    servers, clients = Protocols(), Protocols()
    async with serving(serverFromString(reactor, server), servers) as port:
        number = getattr(port.getHost(), "port", 0)
        protocol = await clientFromString(reactor, client(number)).connect(clients)
        protocol.transport.write(b"question")
        other = await servers.connected()
        assert await other.receives(8) == b"question"
        await clients.all_lost()
        return other


@pytest.mark.parametrize("over", ["tcp", "netsock"])
async def test_over_tcp(over, files):
    listens = "tcp:0:interface=127.0.0.1" if over == "tcp" else "netsock:0:node=127.0.0.1"
    await talk(
        within(listens, files),
        lambda number: towards(f"{over}:127.0.0.1:{number}", files, "connectionTimeout=10s"),
    )


@pytest.mark.parametrize("prefix", ["unix:{}", "netsock:{}:aiFamily=unix"])
async def test_over_unix_sockets(prefix, files, tmp_path):
    inner = prefix.format(tmp_path / "run.sock")
    await talk(within(inner, files), lambda _: towards(inner, files))


async def test_over_a_descriptor_of_systemd(files, tmp_path):
    """As systemd does it: the descriptor 3 in the child, and the variables that say so."""
    program = tmp_path / "server.py"
    program.write_text(
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='app')\n"
        "from twisted.internet import reactor\n"
        "from twisted.internet.endpoints import serverFromString\n"
        "from twisted.internet.protocol import Factory\n"
        "from twisted.protocols.wire import Echo\n"
        f"text = {within('systemd:domain=INET:index=0', files)!r}\n"
        "serverFromString(reactor, text).listen(Factory.forProtocol(Echo))\n"
        "reactor.run()\n"
    )
    with socket.create_server((LOOPBACK, 0)) as listener:
        # NonBlocking=true, in a unit of systemd.
        listener.setblocking(False)
        number = listener.getsockname()[1]
        command = (sys.executable, program, str(listener.fileno()))
        passed = (listener.fileno(),)
        with started(*command, output=tmp_path / "output", pass_fds=passed) as child:
            endpoint = clientFromString(
                reactor, towards(f"tcp:127.0.0.1:{number}", files, "connectionTimeout=20s")
            )
            clients = Protocols()
            protocol = await endpoint.connect(clients)
            protocol.transport.write(b"echo")
            assert await protocol.receives(4) == b"echo", child.output
            await clients.all_lost()


async def test_over_the_proxy_protocol(files, authority):
    servers = Protocols()
    text = within("haproxy:tcp:0:interface=127.0.0.1", files)
    async with serving(serverFromString(reactor, text), servers) as port:
        with raw_client(port) as sock:
            sock.send(PROXY_HEADER)
            peer = await tls_peer(sock, client_context(authority), "localhost")
            peer.send(b"question")
            server = await servers.connected()
            assert await server.receives(8) == b"question"
            assert server.transport.getPeer().host == "192.0.2.7"
            assert servers.addresses[0].port == 4711
            peer.close()


async def test_what_is_no_proxy_header_ends_there(files):
    servers = Protocols()
    text = within("haproxy:tcp:0:interface=127.0.0.1", files)
    async with serving(serverFromString(reactor, text), servers) as port:
        with raw_client(port) as sock:
            sock.send(b"\x16\x03\x01 no header")
            try:
                assert await raw_receive(sock) == b""
            except ConnectionResetError:
                pass
        assert servers.built == []


async def test_options_of_tls_hold(files, authority):
    servers = Protocols()
    text = within("tcp:0:interface=127.0.0.1", files, "minimumVersion=TLSv1.3", "alpn=h2")
    async with serving(serverFromString(reactor, text), servers) as port:
        context = client_context(authority)
        context.set_alpn_protocols(["h2"])
        with raw_client(port) as sock:
            peer = await tls_peer(sock, context, "localhost")
            assert (peer.version(), peer.selected_alpn_protocol()) == ("TLSv1.3", "h2")
            peer.close()
        number = port.getHost().port
        old = towards(f"tcp:127.0.0.1:{number}", files, "maximumVersion=TLSv1.2")
        with pytest.raises(TLSHandshakeError):
            await clientFromString(reactor, old).connect(Protocols())


def test_a_string_and_an_object_make_the_same(files, tmp_path, authority):
    path = str(tmp_path / "run.sock")
    made = serverFromString(reactor, within(f"unix:{path}", files))
    assert made.options.certificates == (str(files.server),)
    by_hand = server_endpoint(
        reactor, None, None, made.options, endpoint=UNIXServerEndpoint(reactor, path)
    )
    assert by_hand.options == made.options
    made = clientFromString(reactor, towards("tcp:127.0.0.1:443", files, "sni=other.example"))
    assert made.options.sni == ("other.example",)
    assert repr(made).startswith("<ClientEndpoint 'localhost' over ")


C, S = clientFromString, serverFromString
INNER = r"endpoint=tcp\:127.0.0.1\:443"
LISTENING = r"endpoint=tcp\:0"

# Who takes the string, the string, and what the message says.
BAD = [
    (C, "netsock-tls:example.com:endpoint=", "endpoint=''", "an endpoint string"),
    (C, r"netsock-tls:example.com:endpoint=nonsense\:1", "endpoint='nonsense:…'", "Unknown"),
    (C, "netsock-tls:example.com:endpoint=tcp", "endpoint='tcp:…' cannot be used: "),
    (C, r"netsock-tls:example.com:endpoint=tcp\:a\:b", "endpoint='tcp:…' cannot be used: "),
    (C, r"netsock-tls:example.com:endpoint=tcp\:a\:1\:c=d", "endpoint='tcp:…'", "'c'"),
    (C, r"netsock-tls:a:endpoint=netsock\:b\:1\:backlog=x", "endpoint='netsock:…'", "backlog='x'"),
    (C, f"netsock-tls:example.com:443:{INNER}", "too many parts", "NODE:endpoint=ENDPOINT"),
    (C, f"netsock-tls:{INNER}", "node is missing", "NODE to verify"),
    (C, f"netsock-tls:a:service=443:{INNER}", "service='443' contradicts endpoint"),
    (C, f"netsock-tls:a:{INNER}:localAddress=127.0.0.1", "localAddress=('127.0.0.1', 0) contra"),
    (C, f"netsock-tls:a:{INNER}:SO_KEEPALIVE=1", "socketOptions=", "contradicts endpoint"),
    (C, f"netsock-tls:a:{INNER}:aiFamily=unix", "aiFamily=", "contradicts endpoint"),
    (C, f"netsock-tls:a:{INNER}:reusePort=yes", "reusePort=yes contradicts endpoint"),
    (C, f"netsock:a:80:{INNER}", "unknown key endpoint", "it is for netsock-tls"),
    (C, "netsock-tls:a:443:endpont=x", "unknown key endpont='x': did you mean endpoint?"),
    (C, "netsock-tls:a:443:reloadEvery=1h", "unknown key reloadEvery", "it is for servers"),
    (S, "netsock-tls:endpoint=", "endpoint=''", "an endpoint string"),
    (S, r"netsock-tls:endpoint=nonsense\:1", "endpoint='nonsense:…'", "Unknown endpoint type"),
    (S, r"netsock-tls:endpoint=systemd\:domain=INET", "endpoint='systemd:…' cannot be used: "),
    (S, f"netsock-tls:443:{LISTENING}", "too many parts", "netsock-tls:endpoint=ENDPOINT"),
    (S, f"netsock-tls:service=443:{LISTENING}", "service='443' contradicts endpoint"),
    (S, f"netsock-tls:node=a:{LISTENING}", "node='a' contradicts endpoint"),
    (S, f"netsock-tls:{LISTENING}:backlog=5", "backlog=5 contradicts endpoint"),
    (S, f"netsock-tls:{LISTENING}:v6Only=yes", "v6Only=yes contradicts endpoint"),
    (S, f"netsock:80:{LISTENING}", "unknown key endpoint", "it is for netsock-tls"),
    (S, f"netsock-tls:{LISTENING}", "certificates and privateKey are needed"),
]


@pytest.mark.parametrize(
    ("parse", "string", "parts"),
    [(parse, string, parts) for parse, string, *parts in BAD],
    ids=[f"{parse.__name__[:6]}-{string[:60]!a}" for parse, string, *_ in BAD],
)
def test_a_wrong_string_is_one_line_that_helps(parse, string, parts):
    with pytest.raises(ValueError) as caught:
        parse(reactor, string)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_what_the_inner_string_holds_is_not_repeated():
    with pytest.raises(ValueError) as caught:
        C(reactor, r"netsock-tls:a:endpoint=netsock-tls\:b\:1\:privateKeyPassword=hunter2")
    assert "passwords never stand here" in str(caught.value)
    assert "hunter2" not in str(caught.value)


# Objects


def test_what_contradicts_an_inner_endpoint_is_an_error(authority):
    options = authority.client_options()
    inner = TCP4ClientEndpoint(reactor, LOOPBACK, 1)
    listens = UNIXServerEndpoint(reactor, "/nowhere")
    server = authority.server_options()
    for make, error, message in [
        (
            lambda: client_endpoint(reactor, "a", 443, options, endpoint=inner),
            ValueError,
            "service",
        ),
        (lambda: client_endpoint(reactor, "a", None, endpoint=inner), TypeError, "TLS record"),
        (
            lambda: client_endpoint(reactor, "", None, options, endpoint=inner),
            TypeError,
            "node=''",
        ),
        (lambda: client_endpoint(reactor, None, None, options, endpoint=inner), TypeError, "node"),
        (
            lambda: client_endpoint(reactor, "a", None, options, endpoint=listens),
            TypeError,
            "IStreamClientEndpoint",
        ),
        (
            lambda: client_endpoint(reactor, "a", None, options, endpoint="tcp:a:1"),
            TypeError,
            "clientFromString",
        ),
        (
            lambda: client_endpoint(
                reactor, "a", None, options.replace(local_address=LOOPBACK), endpoint=inner
            ),
            ValueError,
            "local_address",
        ),
        (
            lambda: server_endpoint(reactor, None, 1, server, endpoint=listens),
            ValueError,
            "service=1",
        ),
        (
            lambda: server_endpoint(reactor, "a", None, server, endpoint=listens),
            ValueError,
            "node='a'",
        ),
        (lambda: server_endpoint(reactor, None, None, endpoint=listens), TypeError, "TLS record"),
        (
            lambda: server_endpoint(reactor, None, None, server, endpoint=inner),
            TypeError,
            "IStreamServerEndpoint",
        ),
    ]:
        with pytest.raises(error, match=message):
            make()
