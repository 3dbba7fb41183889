"""`agent_endpoint_factory`: HTTP by Twisted's Agent and by treq, over our endpoints."""

from __future__ import annotations

import contextlib
import re
import socket
from datetime import timedelta

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.protocols.policies import WrappingFactory
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseNeverReceived, readBody
from twisted.web.error import SchemeNotSupported
from twisted.web.iweb import IAgentEndpointFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface.verify import verifyObject

from tests.support.clocks import until
from tests.support.loopback import LOOPBACK, resolving
from tests.support.protocols import Kind, raw_listener
from twisted_netsock import (
    CertificateVerificationError,
    ServerTLSSocketOptions,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketOptions,
    SocketReadTimeoutError,
    TLSError,
    TLSSocketOptions,
    agent_endpoint_factory,
    server_endpoint,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using readBody:DeprecationWarning")


class Answering(Resource):
    """Tells the path, and whether the request was encrypted; says nothing at ``/mute``."""

    isLeaf = True

    def render_GET(self, request):
        if request.path == b"/mute":
            return NOT_DONE_YET
        request.setHeader(b"secure", b"yes" if request.isSecure() else b"no")
        return request.path + b" for " + request.getHeader(b"host")


class Web(WrappingFactory):
    """A web server that keeps count of its connections."""

    noisy = False

    def __init__(self):
        site = Site(Answering(), reactor=reactor)
        site.noisy = False
        super().__init__(site)
        self.port = 0
        self.peers = []

    def buildProtocol(self, addr):
        self.peers.append(addr)
        return super().buildProtocol(addr)

    def reset(self):
        """Reset every connection."""
        for protocol in self.protocols:
            protocol.transport.abortConnection()


@contextlib.asynccontextmanager
async def web(options, node=LOOPBACK):
    """Run a web server; at the end no connection is left."""
    site = Web()
    port = await server_endpoint(reactor, node, 0, options).listen(site)
    site.port = port.getHost().port
    try:
        yield site
    finally:
        await port.stopListening()
        await until(lambda: not site.protocols)


@contextlib.asynccontextmanager
async def agent_for(options, *, persistent=False):
    """Yield an agent whose pool has let go of every connection at the end."""
    pool = HTTPConnectionPool(reactor, persistent=persistent)
    factory = agent_endpoint_factory(reactor, options)
    try:
        yield Agent.usingEndpointFactory(reactor, factory, pool=pool)
    finally:
        await pool.closeCachedConnections()


def uri(scheme, port, path="/", host=LOOPBACK):
    return f"{scheme}://{host}:{port}{path}".encode()


async def fetch(agent, *where, **more):
    answer = await agent.request(b"GET", uri(*where, **more))
    return await readBody(answer), answer


# Requests


async def test_http_is_plain_and_https_is_tls(authority):
    for scheme, kind in (
        ("http", Kind(authority, tls=False)),
        ("https", Kind(authority, tls=True)),
    ):
        async with web(kind.server()) as site, agent_for(authority.client_options()) as agent:
            body, answer = await fetch(agent, scheme, site.port, "/here")
            assert body == f"/here for {LOOPBACK}:{site.port}".encode()
            secure = b"yes" if kind.tls else b"no"
            assert answer.headers.getRawHeaders(b"secure") == [secure]


async def test_an_ipv6_literal_is_connected_to_and_verified(authority):
    options = authority.server_options("::1")
    async with web(options, "::1") as site, agent_for(authority.client_options()) as agent:
        body, _ = await fetch(agent, "https", site.port, host="[::1]")
        assert body == f"/ for [::1]:{site.port}".encode()


async def test_the_name_of_each_uri_is_verified(authority):
    names = {"one.example": [LOOPBACK], "other.example": [LOOPBACK]}
    with resolving(names):
        async with (
            web(authority.server_options("one.example")) as site,
            agent_for(authority.client_options()) as agent,
        ):
            body, _ = await fetch(agent, "https", site.port, host="one.example")
            assert body == f"/ for one.example:{site.port}".encode()
            with pytest.raises(CertificateVerificationError, match=r"other\.example"):
                await fetch(agent, "https", site.port, host="other.example")


async def test_an_authority_that_is_not_trusted_fails_the_request_with_our_class(
    authority, other_authority
):
    async with (
        web(other_authority.server_options()) as site,
        agent_for(authority.client_options()) as agent,
    ):
        with pytest.raises(CertificateVerificationError):
            await fetch(agent, "https", site.port)


async def test_a_plain_record_goes_up_the_tree_for_https(authority, monkeypatch, tmp_path):
    """It has the defaults of TLS: the platform's authorities."""
    trusted = tmp_path / "platform.pem"
    trusted.write_bytes(authority.certificate_pem)
    async with web(authority.server_options()) as site:
        async with agent_for(SocketOptions(backlog=3)) as agent:
            with pytest.raises(CertificateVerificationError):
                await fetch(agent, "https", site.port)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        for options in (None, SocketOptions()):
            async with agent_for(options) as agent:
                body, _ = await fetch(agent, "https", site.port)
                assert body


async def test_http_has_the_plain_part_of_the_record(authority):
    options = authority.client_options(local_address="127.0.0.3")
    async with web(SocketOptions()) as site, agent_for(options) as agent:
        await fetch(agent, "http", site.port)
        assert [peer.host for peer in site.peers] == ["127.0.0.3"]


# Client certificates


async def test_a_server_that_asks_for_a_certificate_gets_it(authority):
    options = authority.server_options(
        trusted_certificates=authority.certificate_pem, client_certificate_required=True
    )
    ours = authority.issue("the client").pem
    async with web(options) as site:
        async with agent_for(authority.client_options(certificates=ours)) as agent:
            body, _ = await fetch(agent, "https", site.port)
            assert body
        async with agent_for(authority.client_options()) as agent:
            # With TLS 1.3 the refusal comes when the request is under way.
            with pytest.raises(ResponseNeverReceived) as caught:
                await fetch(agent, "https", site.port)
            (reason,) = caught.value.reasons
            assert isinstance(reason.value, TLSError)
            assert reason.value.alert == "certificate required"


# Connections that persist


async def test_a_persistent_connection_is_used_again_and_closed_in_the_end(kind):
    scheme = "https" if kind.tls else "http"
    async with web(kind.server()) as site:
        async with agent_for(kind.client(), persistent=True) as agent:
            for number in range(5):
                body, _ = await fetch(agent, scheme, site.port, f"/{number}")
                assert body.startswith(b"/%d " % number)
            assert len(site.peers) == 1
        await until(lambda: not site.protocols)


async def test_requests_at_once_have_connections_of_their_own(kind):
    scheme = "https" if kind.tls else "http"
    async with (
        web(kind.server()) as site,
        agent_for(kind.client(), persistent=True) as agent,
    ):
        waiting = [agent.request(b"GET", uri(scheme, site.port)) for _ in range(3)]
        for each in waiting:
            assert await readBody(await each)
        assert len(site.peers) == 3


async def test_a_kept_connection_that_was_lost_is_replaced(kind):
    scheme = "https" if kind.tls else "http"
    async with (
        web(kind.server()) as site,
        agent_for(kind.client(), persistent=True) as agent,
    ):
        await fetch(agent, scheme, site.port)
        site.reset()
        await until(lambda: not site.protocols)
        await fetch(agent, scheme, site.port)
        assert len(site.peers) == 2


# Limits


async def test_connection_timeout_ends_a_request_whose_handshake_hangs(authority):
    options = authority.client_options(connection_timeout=timedelta(milliseconds=200))
    with raw_listener() as listener:
        async with agent_for(options) as agent:
            with pytest.raises(SocketConnectionTimeoutError) as caught:
                await fetch(agent, "https", listener.getsockname()[1])
    assert caught.value.stage == "handshake"


async def test_read_timeout_ends_a_request_that_is_not_answered(kind):
    options = kind.client(read_timeout=timedelta(milliseconds=200))
    async with web(kind.server()) as site, agent_for(options) as agent:
        with pytest.raises(ResponseNeverReceived) as caught:
            await fetch(agent, "https" if kind.tls else "http", site.port, "/mute")
        (reason,) = caught.value.reasons
        assert isinstance(reason.value, SocketReadTimeoutError)


async def test_a_kept_connection_may_end_by_read_timeout(kind):
    scheme = "https" if kind.tls else "http"
    options = kind.client(read_timeout=timedelta(milliseconds=100))
    async with web(kind.server()) as site, agent_for(options, persistent=True) as agent:
        await fetch(agent, scheme, site.port)
        await until(lambda: not site.protocols)
        await fetch(agent, scheme, site.port)
        assert len(site.peers) == 2


async def test_a_refused_connection_fails_the_request():
    with raw_listener() as listener:
        port = listener.getsockname()[1]
    async with agent_for(None) as agent:
        with pytest.raises(SocketConnectionRefusedError):
            await fetch(agent, "http", port)


async def test_cancelling_a_request_cancels_the_connecting(authority):
    with raw_listener() as listener:
        async with agent_for(authority.client_options()) as agent:
            requesting = agent.request(b"GET", uri("https", listener.getsockname()[1]))
            requesting.cancel()
            with pytest.raises(CancelledError):
                await requesting


# Proxies


async def test_proxies_of_the_environment_are_left_out(monkeypatch):
    """An agent connects to the host of the URI; a proxy takes an agent of its own."""
    with raw_listener() as proxy:
        address = f"http://{LOOPBACK}:{proxy.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, address)
        async with web(SocketOptions()) as site, agent_for(None) as agent:
            body, _ = await fetch(agent, "http", site.port)
            assert body
        with pytest.raises(BlockingIOError):
            proxy.accept()


# treq


async def test_treq_speaks_through_it(kind):
    client = pytest.importorskip("treq.client")
    scheme = "https" if kind.tls else "http"
    async with web(kind.server()) as site, agent_for(kind.client(), persistent=True) as agent:
        http = client.HTTPClient(agent)
        for number in range(3):
            answer = await http.get(uri(scheme, site.port, f"/{number}").decode())
            assert answer.code == 200
            assert (await answer.text()).startswith(f"/{number} for ")
        assert len(site.peers) == 1


async def test_treq_has_the_error_of_the_verification(authority, other_authority):
    client = pytest.importorskip("treq.client")
    async with (
        web(other_authority.server_options()) as site,
        agent_for(authority.client_options()) as agent,
    ):
        with pytest.raises(CertificateVerificationError):
            await client.HTTPClient(agent).get(uri("https", site.port).decode())


# URIs


def test_it_provides_its_interface():
    assert verifyObject(IAgentEndpointFactory, agent_endpoint_factory(reactor))


@pytest.mark.parametrize("scheme", ["ftp", "file", "http+unix", ""])
def test_another_scheme_is_not_supported(scheme):
    where = URI.fromBytes(f"{scheme}://localhost/".encode())
    with pytest.raises(SchemeNotSupported, match=re.escape(f"scheme: {scheme.encode()!r}")):
        agent_endpoint_factory(reactor).endpointForURI(where)


async def test_the_agent_reports_another_scheme():
    async with agent_for(None) as agent:
        with pytest.raises(SchemeNotSupported):
            await agent.request(b"GET", b"ftp://localhost/")


@pytest.mark.parametrize(
    ("text", "options", "where"),
    [
        (b"http://localhost/", SocketOptions, "'localhost' 80 "),
        (b"ws://localhost/", SocketOptions, "'localhost' 80 "),
        (b"https://localhost/", TLSSocketOptions, "'localhost' 443 "),
        (b"wss://localhost:8443/", TLSSocketOptions, "'localhost' 8443 "),
        (b"https://[2001:db8::1]/", TLSSocketOptions, "'2001:db8::1' 443 "),
        (b"http://[2001:db8::1]:8000/", SocketOptions, "'2001:db8::1' 8000 "),
        (b"http://127.0.0.1:8000/", SocketOptions, "'127.0.0.1' 8000 "),
    ],
)
def test_a_uri_says_where_and_how(text, options, where):
    endpoint = agent_endpoint_factory(reactor).endpointForURI(URI.fromBytes(text))
    assert type(endpoint.options) is options
    assert repr(endpoint).startswith(f"<ClientEndpoint {where}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"http://", "node=''"),
        (b"https://", "node=''"),
        (b"http://localhost:0/", "service=0"),
        (b"http://localhost:70000/", "service=70000"),
    ],
)
def test_a_uri_without_a_place_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=message):
        agent_endpoint_factory(reactor).endpointForURI(URI.fromBytes(text))


def test_a_host_of_other_characters_is_a_value_error():
    host = "bücher.example".encode()
    where = URI(b"http", host, host, 80, b"/", b"", b"", b"")
    with pytest.raises(ValueError, match=r"must be ASCII.*IDNA"):
        agent_endpoint_factory(reactor).endpointForURI(where)


# Records


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (TLSSocketOptions(sni="example.com"), ValueError, r"sni=\('example.com',\) must be None"),
        (TLSSocketOptions(sni=()), ValueError, r"sni=\(\) must be None"),
        (TLSSocketOptions(alpn="h2"), ValueError, r"alpn=\('h2',\) must not have 'h2'"),
        (TLSSocketOptions(alpn=("http/1.1", "h2")), ValueError, "alpn=.* must not have 'h2'"),
        (ServerTLSSocketOptions(), TypeError, "options must be a SocketOptions, not Server"),
        ("options", TypeError, "options must be a SocketOptions, not 'options'"),
        (TLSSocketOptions(handshake=False), ValueError, "handshake=False"),
        (SocketOptions(non_blocking=False), ValueError, "non_blocking=False"),
        (SocketOptions(ai_family=socket.AF_UNIX), ValueError, "ai_family=AF_UNIX"),
        (SocketOptions(ai_socktype=socket.SOCK_DGRAM), ValueError, "ai_socktype="),
        (SocketOptions(ai_flags=socket.AI_PASSIVE), ValueError, "AI_PASSIVE is for servers"),
        (TLSSocketOptions(certificates="/none.pem"), ValueError, "certificates='/none.pem'"),
    ],
)
def test_a_record_that_no_request_could_use_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        agent_endpoint_factory(reactor, options)


def test_http_1_may_be_negotiated():
    factory = agent_endpoint_factory(reactor, TLSSocketOptions(alpn="http/1.1"))
    endpoint = factory.endpointForURI(URI.fromBytes(b"https://localhost/"))
    assert endpoint.options.alpn == ("http/1.1",)


def test_a_reactor_that_cannot_wait_is_refused():
    with pytest.raises(TypeError, match="IReactorFDSet"):
        agent_endpoint_factory(Clock())


def test_it_shows_both_records():
    factory = agent_endpoint_factory(reactor, TLSSocketOptions(alpn="http/1.1", backlog=3))
    assert repr(factory) == (
        "<endpoints for an agent: http SocketOptions(backlog=3), "
        "https TLSSocketOptions(backlog=3, alpn=('http/1.1',))>"
    )


def test_an_agent_that_verifies_nothing_says_so_for_each_host(log_lines):
    factory = agent_endpoint_factory(reactor, TLSSocketOptions(certificate_verifier=False))
    assert not [line for line in log_lines if "UNVERIFIED" in line]
    factory.endpointForURI(URI.fromBytes(b"https://example.com/"))
    assert [line for line in log_lines if "connections to example.com are UNVERIFIED" in line]
    assert "UNVERIFIED" in repr(factory)
