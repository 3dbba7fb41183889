"""Our endpoints in other programs: Twisted's services, HAProxy in front, Redis behind."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.protocol import Factory

from tests.support.clocks import until
from tests.support.loopback import LONGEST, LOOPBACK
from tests.support.processes import (
    TWIST,
    CertificateFiles,
    Child,
    free_port,
    needs,
    run,
    started,
    write_certificates,
)
from tests.support.protocols import Protocols, raw_client, serving
from twisted_netsock import CertificateVerificationError, SocketConnectionLostError, TLSError

SIZE = 3 * 1024 * 1024


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory) -> CertificateFiles:
    return write_certificates(tmp_path_factory.mktemp("real-certificates"), authority)


# twist web, over HTTP/1.1 and HTTP/2


class Web(NamedTuple):
    """A web server: its directory, and the ports that it listens on, with TLS and without."""

    directory: Path
    secure: int
    plain: int


def ports_of(child: Child) -> list[int]:
    """Return the ports that our endpoints say they listen on, in order."""
    child.wait_for_line("Starting reactor")
    lines = (line for line in child.output.splitlines() if " starting on " in line)
    return [int(line.rpartition(" ")[2]) for line in lines]


@pytest.fixture(scope="module")
def web(tmp_path_factory, files) -> Iterator[Web]:
    directory = tmp_path_factory.mktemp("web")
    (directory / "big").write_bytes(os.urandom(SIZE))
    tls = f"netsock-tls:0:node={LOOPBACK}:certificates={files.server}"
    command = (
        "web",
        "--path",
        directory,
        "--listen",
        tls,
        "--listen",
        f"netsock:0:node={LOOPBACK}",
    )
    log = tmp_path_factory.mktemp("web-log") / "log"
    with started(*TWIST, *command, output=log) as child:
        secure, plain = ports_of(child)
        yield Web(directory, secure, plain)
        assert "Traceback" not in child.output


def fetch(url: str, target: Path, *more: str | Path) -> str:
    """Fetch *url* with curl, and return version and status of the answer."""
    done = run("curl", "-sS", "--max-time", "20", "-o", target, "-w",
               "%{http_version} %{http_code}", *more, url)  # fmt: skip
    assert (done.code, done.errors) == (0, "")
    return done.output


@needs("curl")
@pytest.mark.parametrize(("flag", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
def test_curl_fetches_from_twist_web_over_tls(web, files, tmp_path, flag, version):
    if version == "2":
        pytest.importorskip("h2", reason="HTTP/2 comes with twisted[http2]")
        if "HTTP2" not in run("curl", "--version").output:
            pytest.skip("this curl has no HTTP/2")
    answer = fetch(
        f"https://localhost:{web.secure}/big", tmp_path / "got", flag, "--cacert", files.authority
    )
    assert answer == f"{version} 200"
    assert (tmp_path / "got").read_bytes() == (web.directory / "big").read_bytes()


@needs("curl")
def test_several_fetches_share_an_http_2_connection(web, files, tmp_path):
    pytest.importorskip("h2", reason="HTTP/2 comes with twisted[http2]")
    url = f"https://localhost:{web.secure}/big"
    answer = fetch(url, tmp_path / "1", "--http2", "--cacert", files.authority,
                 "-o", tmp_path / "2", url, "-o", tmp_path / "3", url)  # fmt: skip
    assert answer.count("2 200") == 3
    expected = (web.directory / "big").read_bytes()
    assert all((tmp_path / name).read_bytes() == expected for name in "123")


@needs("curl")
def test_curl_fetches_from_twist_web_in_plain(web, tmp_path):
    assert fetch(f"http://{LOOPBACK}:{web.plain}/big", tmp_path / "got") == "1.1 200"
    assert (tmp_path / "got").read_bytes() == (web.directory / "big").read_bytes()


def test_alpn_chooses_among_what_the_factory_and_the_client_speak(web, files):
    """The server's factory names HTTP/2 and HTTP/1.1; neither is in the string."""
    pytest.importorskip("h2", reason="HTTP/2 comes with twisted[http2]")
    for offered, chosen in ((["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1")):
        context = ssl.create_default_context(cafile=os.fspath(files.authority))
        context.set_alpn_protocols(offered)
        with (
            socket.create_connection((LOOPBACK, web.secure), timeout=LONGEST) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            assert tls.selected_alpn_protocol() == chosen


# Another service of Twisted's


def test_twist_words_speaks_irc_over_tls(files, tmp_path):
    tls = f"netsock-tls:0:node={LOOPBACK}:certificates={files.server}"
    command = ("words", "--irc-port", tls, "--auth", "memory:alice:secret")
    context = ssl.create_default_context(cafile=os.fspath(files.authority))
    with started(*TWIST, *command, output=tmp_path / "log") as child:
        [port] = ports_of(child)
        with (
            socket.create_connection((LOOPBACK, port), timeout=LONGEST) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as tls,
            tls.makefile("rb") as lines,
        ):
            tls.sendall(b"PASS secret\r\nNICK alice\r\nUSER alice 0 * :Alice\r\n")
            numbers = []
            while not numbers or numbers[-1] != b"376":
                line = lines.readline()
                assert line, numbers
                numbers.append(line.split()[1])
        assert b"375" in numbers
        assert "Traceback" not in child.output


# HAProxy in front, which reports the client's address


HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 10s
    timeout server 10s
listen front
    bind {front}
    server back 127.0.0.1:{back} send-proxy-v2
"""


@needs("haproxy")
@pytest.mark.parametrize("version", [4, 6])
async def test_haproxy_tells_who_the_client_is(tmp_path, version):
    """Twisted's ``haproxy:`` around our string reads what HAProxy sends ahead."""
    servers = Protocols()
    endpoint = serverFromString(reactor, f"haproxy:netsock:0:node={LOOPBACK}")
    async with serving(endpoint, servers) as port:
        number = free_port()
        front = f"{LOOPBACK}:{number}" if version == 4 else f"[::1]:{number}"
        config = tmp_path / "haproxy.cfg"
        config.write_text(HAPROXY.format(front=front, back=port.getHost().port))
        with started("haproxy", "-f", config, "-db", output=tmp_path / "haproxy.log") as child:
            source = "127.0.0.5" if version == 4 else "::1"
            where = LOOPBACK if version == 4 else "::1"
            with await connected_from(source, where, number, child) as client:
                client.sendall(b"hello")
                server = await servers.connected()
                assert await server.receives(5) == b"hello"
                peer = server.transport.getPeer()
                host, source_port = client.getsockname()[:2]
                assert (ip_address(peer.host), peer.port) == (ip_address(host), source_port)
                assert server.transport.getHost().port == number
                server.transport.write(b"welcome")
                server.transport.loseConnection()
                client.settimeout(LONGEST)
                assert await until(lambda: drained(client)) == b"welcome"


def drained(client: socket.socket) -> bytes:
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return client.recv(100)
    return b""


async def connected_from(source: str, host: str, port: int, child: Child) -> socket.socket:
    """Connect from *source*, as soon as somebody listens."""

    def attempt() -> Any:
        assert child.running, child.output
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((host, port), LONGEST, (source, 0))
        return None

    return await until(attempt)


async def test_who_sends_no_proxy_header_is_dropped():
    servers = Protocols()
    endpoint = serverFromString(reactor, f"haproxy:netsock:0:node={LOOPBACK}")
    async with serving(endpoint, servers) as port:
        with raw_client(port) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: servers.built and servers.built[0].reason)
        assert servers.built[0].received == b""


# Redis behind, by a client library for Twisted


class Redis(NamedTuple):
    """A server: its ports and its UNIX socket."""

    plain: int
    secure: int
    path: Path


@pytest.fixture(scope="module")
def redis(tmp_path_factory, files) -> Iterator[Redis]:
    directory = tmp_path_factory.mktemp("redis")
    redis = Redis(free_port(), free_port(), directory / "redis.sock")
    with started(
        "redis-server", "--bind", LOOPBACK, "--port", str(redis.plain), "--save", "",
        "--unixsocket", redis.path, "--dir", directory, "--tls-port", str(redis.secure),
        "--tls-cert-file", files.server, "--tls-key-file", files.server,
        "--tls-ca-cert-file", files.authority, "--tls-auth-clients", "yes",
        output=directory / "log",
    ) as child:  # fmt: skip
        child.wait_for_line("Ready to accept connections")
        yield redis


async def talk(text: str) -> None:
    """Set and get a value through the endpoint of a string, and end."""
    txredisapi = pytest.importorskip("txredisapi")
    protocol = await clientFromString(reactor, text).connect(
        Factory.forProtocol(txredisapi.BaseRedisProtocol)
    )
    try:
        assert await protocol.ping() == "PONG"
        value = "a value, of many characters: " + "ä" * 100_000
        await protocol.set("key", value)
        assert await protocol.get("key") == value
        assert await protocol.get("no such key") is None
    finally:
        protocol.transport.loseConnection()
        await until(lambda: protocol.transport.disconnected)


@needs("redis-server")
@pytest.mark.parametrize("kind", ["plain", "unix", "tls"])
async def test_a_redis_client_talks_through_our_endpoint(redis, files, kind):
    tls = f"certificates={files.server}:trustedCertificates={files.authority}"
    text = {
        "plain": f"netsock:{LOOPBACK}:{redis.plain}:connectionTimeout=5s:TCP_NODELAY=1",
        "unix": f"netsock:{redis.path}:aiFamily=unix",
        "tls": f"netsock-tls:localhost:{redis.secure}:{tls}",
    }[kind]
    await talk(text)


@needs("redis-server")
async def test_redis_is_not_talked_to_unless_it_is_verified(redis, files):
    with pytest.raises(CertificateVerificationError):
        await talk(f"netsock-tls:localhost:{redis.secure}:certificates={files.server}")


@needs("redis-server")
async def test_redis_refuses_who_has_no_certificate(redis, files):
    """With TLS 1.3 that comes to light after the handshake: at once, or with the first answer."""
    txredisapi = pytest.importorskip("txredisapi")
    text = f"netsock-tls:localhost:{redis.secure}:trustedCertificates={files.authority}"
    clients = Protocols(txredisapi.BaseRedisProtocol)
    for _ in range(20):
        with pytest.raises((TLSError, SocketConnectionLostError, txredisapi.ConnectionError)):
            protocol = await clientFromString(reactor, text).connect(clients)
            await protocol.ping()
    await clients.all_lost()
