"""Every way in connects through a proxy, SOCKS5 and CONNECT, or says at once that it cannot."""

from __future__ import annotations

import json
import re
import socket
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    clientFromString,
    serverFromString,
)
from twisted.python.usage import UsageError
from twisted.web.client import Agent, readBody
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.support.faults import ANSWER, QUESTION
from tests.support.loopback import LOOPBACK
from tests.support.processes import Ran, netsock, write_authority
from tests.support.proxies import PLAIN, SCHEMES, TLS, proxying, through
from tests.support.streams import in_thread, read_exactly
from tests.support.threads import no_descriptors
from tests.support.ways_in import serve_socket
from twisted_netsock import (
    CertificateVerificationError,
    HostNotFoundError,
    ProxyError,
    ProxyHeader,
    ServerTLSSocketOptions,
    Socket,
    SocketOptions,
    TLSSocketOptions,
    agent_endpoint_factory,
    blocking,
    client_endpoint,
    https_policy,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
    server_endpoint,
    start_tls,
)
from twisted_netsock.__main__ import main
from twisted_netsock.commands._common.outcomes import Outcome
from twisted_netsock.commands._common.targets import Target
from twisted_netsock.commands._common.text import Style
from twisted_netsock.commands.probe.report import as_text
from twisted_netsock.commands.probe.run import Request, probe
from twisted_netsock.commands.relay.options import RelayOptions

NODE = "target.invalid"
"""A name that nobody but the proxy can look up."""


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("way", PLAIN)
async def test_plain(scheme, way):
    async with serve_socket(SocketOptions()) as served, proxying(scheme) as proxy:
        options = SocketOptions(**through(proxy))
        assert await PLAIN[way](NODE, served.port, options, True) == ANSWER
    await no_descriptors()
    assert proxy.asked == [(NODE, served.port)]
    assert proxy.first[0] == QUESTION
    assert not proxy.too_early


@pytest.mark.parametrize("way", TLS)
async def test_tls(scheme, way, authority):
    server = authority.server_options(NODE)
    async with serve_socket(server) as served, proxying(scheme) as proxy:
        options = authority.client_options(**through(proxy))
        assert await TLS[way](NODE, served.port, options, True) == ANSWER
    await no_descriptors()
    assert proxy.asked == [(NODE, served.port)]
    assert proxy.first[0].startswith(b"\x16\x03\x01")
    assert not proxy.too_early


@pytest.mark.parametrize("way", sorted(TLS.keys() - {"relay", "string", "string in a string"}))
async def test_the_target_is_verified_behind_the_proxy(way, authority):
    server = authority.server_options("other.invalid")
    async with serve_socket(server) as served, proxying("http") as proxy:
        options = authority.client_options(**through(proxy))
        with pytest.raises(CertificateVerificationError):
            await TLS[way](NODE, served.port, options, True)
    await no_descriptors()


async def test_a_service_is_looked_up_for_the_proxy():
    async with proxying("socks5") as proxy:
        options = SocketOptions(**through(proxy))
        with pytest.raises(ProxyError):
            await make_client_socket(NODE, "tcpmux", options)
        assert proxy.asked == [(NODE, 1)]
        with pytest.raises(HostNotFoundError) as caught:
            await make_client_socket(NODE, "no-such-service", options)
    assert (caught.value.node, caught.value.service) == (None, "no-such-service")


async def test_the_header_and_then_tls_come_behind_the_answer(scheme, authority):
    server = authority.server_options(NODE, proxy_protocol="v1")
    header = ProxyHeader.parse(b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 443\r\n")
    listener = await make_server_tls_socket(LOOPBACK, 0, server)
    async with listener, proxying(scheme) as proxy:
        options = authority.client_options(**through(proxy), proxy_protocol="v1")
        accepting = listener.accept()
        port = listener.getsockname().port
        sock = await make_client_tls_socket(NODE, port, options, proxy_header=header)
        peer = await accepting
        assert peer.proxy_header.source.host == "192.0.2.7"
        await peer.sendall(ANSWER)
        assert await read_exactly(sock, len(ANSWER)) == ANSWER
        await gatherResults([sock.close(), peer.close()])
    assert proxy.first[0].startswith(b"PROXY TCP4 192.0.2.7 ")


async def test_starttls_begins_in_plain_text_behind_the_answer(scheme, authority):
    async with await make_server_socket(LOOPBACK, 0) as listener, proxying(scheme) as proxy:

        async def serve() -> None:
            peer = await listener.accept()
            await peer.sendall(b"220 ready\r\n")
            assert await read_exactly(peer, 10) == b"STARTTLS\r\n"
            await peer.sendall(b"220 go\r\n")
            async with await start_tls(peer, authority.server_options(NODE)) as wrapped:
                await wrapped.sendall(ANSWER)

        serving = Deferred.fromCoroutine(serve())
        options = authority.client_options(**through(proxy))
        port = listener.getsockname().port
        sock = await make_client_socket(NODE, port, SocketOptions.from_options(options))
        assert await sock.input_port.readline() == b"220 ready\r\n"
        await sock.sendall(b"STARTTLS\r\n")
        assert await sock.input_port.readline() == b"220 go\r\n"
        async with await start_tls(sock, options) as wrapped:
            assert await read_exactly(wrapped, len(ANSWER)) == ANSWER
        await serving


# Commands


async def run(*arguments: str, given: bytes = b"") -> Ran:
    return await in_thread(partial(netsock, *arguments, given=given))


@pytest.mark.once
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_commands(scheme, authority, tmp_path):
    ca = write_authority(tmp_path, authority)
    server = authority.server_options(NODE)
    async with serve_socket(server, half=True) as served, proxying(scheme) as proxy:
        place, words = f"{NODE}:{served.port}", ("--proxy", proxy.url, "--ca", str(ca))
        if scheme == "https":
            (tmp_path / "proxy.pem").write_bytes(through(proxy)["proxy_trusted_certificates"])
            words += ("--proxy-ca", str(tmp_path / "proxy.pem"))
        done = await run("connect", place, "--tls", *words, given=QUESTION)
        assert (done.code, done.output) == (0, ANSWER.decode())
        assert f"connected to {NODE} by way of 127.0.0.1, port " in done.errors
        done = await run("probe", place, *words, "--json")
        assert done.code == 0
        found = json.loads(done.output)
        assert (found["proxy"], found["addresses"][0]["address"]) == (proxy.url, NODE)
    assert proxy.asked == [(NODE, served.port)] * 2


@pytest.mark.once
async def test_a_proxy_that_ends_with_the_input_needs_no_shutdown():
    """As microsocks, tinyproxy and Squid do."""
    async with serve_socket(SocketOptions(), half=True) as served, proxying("http") as proxy:
        proxy.passes_half_close = False
        words = ("connect", f"{NODE}:{served.port}", "--proxy", proxy.url)
        done = await run(*words, "--no-shutdown", given=QUESTION)
        assert (done.code, done.output) == (0, ANSWER.decode())
        assert "--no-shutdown" not in done.errors
        done = await run(*words)
        assert (done.code, done.output) == (0, "")
        assert "--no-shutdown" in done.errors


def probing(port: int, authority: Any, proxied: dict[str, Any], **changes: Any) -> Request:
    options = authority.client_options(**proxied)
    return Request(Target(NODE, port), options, timedelta(seconds=5), **changes)


async def test_the_probe_asks_for_tls_through_the_proxy(scheme, authority):
    async with await make_server_socket(LOOPBACK, 0) as listener, proxying(scheme) as proxy:

        async def serve() -> None:
            peer = await listener.accept()
            await peer.sendall(b"+OK ready\r\n")
            assert await peer.input_port.readline() == b"STLS\r\n"
            await peer.sendall(b"+OK go\r\n")
            async with await start_tls(peer, authority.server_options(NODE)) as wrapped:
                assert await wrapped.recv(1) == b""

        serving = Deferred.fromCoroutine(serve())
        port = listener.getsockname().port
        report = await probe(reactor, probing(port, authority, through(proxy), starttls="pop3"))
        await serving
    assert report.outcome == Outcome.OK
    assert f"{NODE}:{port}" in as_text(report, Style(False))
    assert proxy.asked == [(NODE, port)]


async def test_the_probe_looks_what_is_no_tls_through_the_proxy(authority):
    async with await make_server_socket(LOOPBACK, 0) as listener, proxying("socks5") as proxy:

        async def greet(peer: Socket) -> None:
            await peer.sendall(b"SSH-2.0-x\r\n")
            await peer.recv(1)

        serving = listener.serve(greet)
        port = listener.getsockname().port
        report = await probe(reactor, probing(port, authority, through(proxy)))
    await serving
    assert report.addresses[0].plain.name == "SSH"
    assert proxy.asked == [(NODE, port)] * 2


async def test_the_probe_reads_the_environment(monkeypatch, authority):
    server = authority.server_options(NODE)
    async with serve_socket(server, half=True) as served, proxying("http") as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        report = await probe(reactor, probing(served.port, authority, {"proxy": "environment"}))
        assert report.outcome == Outcome.OK
        assert report.proxy.url == proxy.url
        monkeypatch.setenv("https_proxy", "nonsense://")
        report = await probe(reactor, probing(served.port, authority, {"proxy": "environment"}))
        assert report.outcome == Outcome.UNREACHABLE
        assert "https_proxy" in str(report.error)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--proxy", "http://me:secret@h:1"], "use --proxy-password-file"),
        (["--proxy", "ftp://h:1"], "--proxy: the scheme 'ftp'"),
        (["--proxy-password-file", "password"], "--proxy-password-file needs --proxy "),
        (["--proxy", "http://me@h:1", "--proxy-password-file", "none"], "cannot be read"),
    ],
)
def test_a_mistake_on_the_command_line(arguments, said, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "password").write_text("x")
    for command in ("connect", "probe"):
        assert main([command, "localhost:1", *arguments]) == 2
        error = capfd.readouterr().err
        assert said in error
        assert "secret" not in error


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http\\://me\\:secret@h\\:1", "proxyPasswordFile"),
        ("http://me:secret@h:1", "escaped"),
        ("me\\:secret@h\\:1", "proxy must be|scheme ''"),
    ],
)
def test_a_password_in_a_string_is_not_repeated(url, said, capfd):
    text = f"netsock:a:80:proxy={url}"
    assert main(["connect", text]) == 2
    error = capfd.readouterr().err
    assert re.search(said, error)
    assert "secret" not in error
    with pytest.raises(UsageError, match=said) as caught:
        RelayOptions().parseOptions(["--listen", "netsock:0", "--to", text])
    assert "secret" not in str(caught.value)


# HTTP


class Page(Resource):
    isLeaf = True

    def render_GET(self, request):
        return b"secure" if request.isSecure() else b"plain"


@pytest.mark.filterwarnings("ignore:Using readBody:DeprecationWarning")
@pytest.mark.parametrize("uri", ["http", "https"])
async def test_an_agent(scheme, uri, authority):
    site = Site(Page(), reactor=reactor)
    site.noisy = False
    options = authority.server_options(NODE) if uri == "https" else SocketOptions()
    port = await server_endpoint(reactor, LOOPBACK, 0, options).listen(site)
    number = port.getHost().port
    async with proxying(scheme) as proxy:
        record = authority.client_options(**through(proxy))
        agent = Agent.usingEndpointFactory(reactor, agent_endpoint_factory(reactor, record))
        response = await agent.request(b"GET", f"{uri}://{NODE}:{number}/".encode())
        assert await readBody(response) == (b"secure" if uri == "https" else b"plain")
        await port.stopListening()
    assert proxy.asked == [(NODE, number)]
    assert not proxy.too_early


# Where there is no way


SECRET = "socks5://me:secret@127.0.0.1:1"
ESCAPED = "proxy=socks5\\://127.0.0.1\\:1"
PROXIED, TLS_PROXIED = SocketOptions(proxy=SECRET), TLSSocketOptions(proxy=SECRET)
CLIENT = TCP4ClientEndpoint(reactor, LOOPBACK, 1)
SERVER = TCP4ServerEndpoint(reactor, 0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        *(
            (partial(make, None, 80, record), "node=None")
            for make, record in (
                (make_client_socket, PROXIED),
                (make_client_tls_socket, TLS_PROXIED),
                (partial(client_endpoint, reactor), PROXIED),
                (partial(client_endpoint, reactor), TLS_PROXIED),
            )
        ),
        (partial(make_server_socket, LOOPBACK, 0, PROXIED), "for clients"),
        (partial(server_endpoint, reactor, LOOPBACK, 0, PROXIED), "for clients"),
        (partial(serverFromString, reactor, f"netsock:systemd=x:{ESCAPED}"), "bound already"),
        *(
            (partial(record, proxy=proxy, **fields), "proxy needs ai_socktype=SOCK_STREAM")
            for record in (SocketOptions, TLSSocketOptions)
            for proxy in (SECRET, "environment")
            for fields in ({"ai_family": socket.AF_UNIX}, {"ai_socktype": socket.SOCK_DGRAM})
        ),
        (partial(ServerTLSSocketOptions, proxy=SECRET), "for clients"),
        (partial(ServerTLSSocketOptions.from_options, TLS_PROXIED), "for clients"),
        (partial(client_endpoint, reactor, NODE, None, TLS_PROXIED, endpoint=CLIENT), "endpoint"),
        (partial(https_policy, TLS_PROXIED), "agent_endpoint_factory"),
        (partial(blocking.ssl_context, PROXIED), "wrap_socket"),
        (partial(blocking.ssl_context, TLS_PROXIED), "wrap_socket"),
        *(
            (partial(clientFromString, reactor, text), said)
            for text, said in (
                (f"netsock:/x:aiFamily=unix:{ESCAPED}", "proxy needs"),
                (f"netsock:a:80:aiSocktype=dgram:{ESCAPED}", "aiSocktype"),
                (f"netsock-tls:a:endpoint=tcp\\:a\\:80:{ESCAPED}", "contradicts endpoint"),
                ("netsock:a:80:proxy=http\\://me\\:secret@h\\:1", "proxyPasswordFile"),
                ("netsock:a:80:proxy=http://me:secret@h:1", "escaped"),
                ("netsock-tls:a:80:proxy=http://me:secret@h:1", "escaped"),
            )
        ),
        *(
            (partial(serverFromString, reactor, f"{text}:{ESCAPED}"), "for clients")
            for text in ("netsock:0", "netsock-tls:0:certificates=x.pem")
        ),
    ],
)
def test_where_there_is_no_way_it_is_a_value_error_at_once(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(blocking.make_client_socket, None, 80, PROXIED), "node=None"),
        (partial(blocking.make_client_tls_socket, None, 80, TLS_PROXIED), "node=None"),
        (partial(blocking.make_server_socket, LOOPBACK, 0, PROXIED), "for clients"),
    ],
)
async def test_blocking_calls_refuse_the_same(make, said):
    with pytest.raises(ValueError, match=said):
        await in_thread(make)
