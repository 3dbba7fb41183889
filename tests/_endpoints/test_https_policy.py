"""`https_policy`: HTTP clients that make their connections themselves, with TLS of ours."""

from __future__ import annotations

import contextlib

import pytest
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.policies import WrappingFactory
from twisted.web.client import Agent, HTTPConnectionPool, ResponseNeverReceived, readBody
from twisted.web.iweb import IPolicyForHTTPS
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface.verify import verifyObject

from tests.support.clocks import until
from tests.support.loopback import LOOPBACK, resolving
from twisted_netsock import (
    CertificateVerificationError,
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    https_policy,
    server_endpoint,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using readBody:DeprecationWarning")


class Greeting(Resource):
    isLeaf = True

    def render_GET(self, request):
        certificate = request.transport.peer_certificate
        return b"hello" if certificate is None else certificate.subject.rfc4514_string().encode()


@contextlib.asynccontextmanager
async def web(options):
    """Run a web server; at the end no connection is left, on either side."""
    site = Site(Greeting(), reactor=reactor)
    served = WrappingFactory(site)
    site.noisy = served.noisy = False
    before = {*reactor.getReaders(), *reactor.getWriters()}
    port = await server_endpoint(reactor, LOOPBACK, 0, options).listen(served)
    try:
        yield port.getHost().port
    finally:
        await port.stopListening()
        await until(lambda: not served.protocols)
        await until(lambda: before >= {*reactor.getReaders(), *reactor.getWriters()})


async def fetch(options, port, host="localhost"):
    pool = HTTPConnectionPool(reactor, persistent=False)
    agent = Agent(reactor, https_policy(options), pool=pool)
    with resolving({host: [LOOPBACK]}):
        answer = await agent.request(b"GET", f"https://{host}:{port}/".encode())
    return await readBody(answer)


async def test_an_agent_fetches_a_page_of_a_verified_server(authority):
    async with web(authority.server_options()) as port:
        assert await fetch(authority.client_options(), port) == b"hello"


async def test_the_whole_record_holds(authority):
    strict = authority.server_options(
        trusted_certificates=authority.certificate, client_certificate_required=True
    )
    certified = authority.client_options(certificates=authority.issue("a client").pem)
    async with web(strict) as port:
        assert await fetch(certified, port) == b"CN=a client"


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_the_reason_of_a_refusal_reaches_the_request(version, authority):
    options = authority.client_options(maximum_version=version)
    async with web(authority.server_options()) as port:
        with pytest.raises(ResponseNeverReceived) as caught:
            await fetch(options, port, "other.example")
    [reason] = caught.value.reasons
    assert reason.check(CertificateVerificationError)
    assert reason.check(SSL.Error)
    assert "not for 'other.example'" in str(reason.value)
    assert reason.value.verify_code == 62
    assert reason.value.certificate is not None


async def test_an_authority_that_is_not_trusted_is_refused(authority, other_authority):
    async with web(authority.server_options()) as port:
        with pytest.raises(ResponseNeverReceived) as caught:
            await fetch(other_authority.client_options(), port)
    [reason] = caught.value.reasons
    assert isinstance(reason.value, CertificateVerificationError)


def test_it_provides_its_interface(authority):
    policy = https_policy()
    assert verifyObject(IPolicyForHTTPS, policy)
    for host in (b"example.com", b"192.0.2.1", b"2001:db8::1"):
        assert verifyObject(IOpenSSLClientConnectionCreator, policy.creatorForNetloc(host, 443))
    assert "TLSSocketOptions" in repr(policy)


def test_a_host_that_cannot_be_verified_is_refused():
    policy = https_policy()
    for host in ("exämple.com".encode(), b"", b"no host"):
        with pytest.raises(ValueError, match=r"host|node"):
            policy.creatorForNetloc(host, 443)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (SocketOptions(), TypeError, "TLSSocketOptions"),
        (ServerTLSSocketOptions(certificates=b"x"), TypeError, "client"),
        ("options", TypeError, "TLSSocketOptions"),
        (TLSSocketOptions(sni="example.com"), ValueError, "sni="),
        (TLSSocketOptions(handshake=False), ValueError, "handshake"),
        (TLSSocketOptions(trusted_certificates="none.pem"), ValueError, "none.pem"),
    ],
)
def test_a_record_that_no_request_could_use_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        https_policy(options)


def test_a_client_that_verifies_nothing_says_so_for_each_host(log_lines):
    policy = https_policy(TLSSocketOptions(certificate_verifier=False))
    assert not any("UNVERIFIED" in line for line in log_lines)
    policy.creatorForNetloc(b"example.com", 443)
    assert any("example.com are UNVERIFIED" in line for line in log_lines)
