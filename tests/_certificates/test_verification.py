"""Which servers a client believes, however it connects."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    clientFromString,
    quoteStringArgument,
    wrapClientTLS,
)

from tests.support.clocks import the_reactor
from tests.support.loopback import resolving
from tests.support.peers import (
    ANSWER,
    QUESTION,
    Hierarchy,
    ask,
    make_entity,
    make_hierarchy,
    pem,
    standard_server,
)
from twisted_netsock import (
    CertificateVerificationError,
    SocketOptions,
    TLSSocketOptions,
    client_context_factory,
    client_endpoint,
    make_client_tls_socket,
)
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.long

NAME = "service.example"
VERSIONS = ("TLSv1.2", "TLSv1.3")


class Target(NamedTuple):
    """Whom to connect to, believing whom."""

    node: str
    port: int
    trusted: Path
    sni: str | None = None

    @property
    def options(self) -> TLSSocketOptions:
        return TLSSocketOptions(trusted_certificates=self.trusted, sni=self.sni)


async def by_endpoint(target: Target) -> bytes:
    return await ask(client_endpoint(the_reactor(), target.node, target.port, target.options))


async def by_string(target: Target) -> bytes:
    node = quoteStringArgument(target.node)
    text = f"netsock-tls:node={node}:service={target.port}"
    text += f":trustedCertificates={quoteStringArgument(str(target.trusted))}"
    if target.sni is not None:
        text += f":sni={target.sni}"
    return await ask(clientFromString(the_reactor(), text))


async def by_socket(target: Target) -> bytes:
    connection = await make_client_tls_socket(target.node, target.port, target.options)
    async with connection:
        await connection.sendall(QUESTION)
        return await connection.recv(100)


async def by_wrapper(target: Target) -> bytes:
    """Through Twisted's TLS, which lets a protocol write before the handshake."""
    factory = client_context_factory(target.options, target.node)
    if target.node == "::1":
        plain = TCP6ClientEndpoint(the_reactor(), "::1", target.port)
    else:
        plain = TCP4ClientEndpoint(the_reactor(), "127.0.0.1", target.port)
    return await ask(wrapClientTLS(factory, plain))


Way = Callable[[Target], Awaitable[bytes]]
every_way = pytest.mark.parametrize("way", [by_endpoint, by_string, by_socket, by_wrapper])
both_kinds = pytest.mark.parametrize("way", [by_endpoint, by_wrapper])
"""On a descriptor, and on memory buffers."""


@pytest.fixture(scope="module")
def hierarchy() -> Hierarchy:
    return make_hierarchy(NAME)


@pytest.fixture(scope="module")
def trusted(authority: CertificateAuthority, hierarchy: Hierarchy, tmp_path_factory: Any) -> Path:
    file = tmp_path_factory.mktemp("trusted") / "authorities.pem"
    file.write_bytes(authority.certificate_pem + hierarchy.root.certificate_pem)
    return file


@pytest.fixture(scope="module")
def signed(authority: CertificateAuthority) -> Callable[..., bytes]:
    """Certificates of the trusted authority, with names as they stand."""
    root = make_entity("the root of names", is_authority=True)

    def make(*names: str | x509.GeneralName) -> bytes:
        return make_entity("anything", *names, issuer=root).pem

    make.root = root  # type: ignore[attr-defined]
    return make


def _refuse(way: Way) -> Any:
    """Expect the way's refusal: through Twisted's TLS it is OpenSSL's own error."""
    if way is by_wrapper:
        return pytest.raises(SSL.Error, match="certificate verify failed")
    return pytest.raises(CertificateVerificationError)


async def _refused(way: Way, target: Target, server: Any) -> BaseException:
    with _refuse(way) as caught:
        await way(target)
    served = await server.outcome
    assert served.data == b""
    assert isinstance(served.error, ssl.SSLError), "the server has received an alert"
    return caught.value


# The faults, and OpenSSL's code for each: 62 is a name that does not match.
FAULTS: dict[str, tuple[int, Callable[..., bytes]]] = {
    "wrong host": (62, lambda good, other, chain: good.issue("other.example").pem),
    "unknown issuer": (20, lambda good, other, chain: other.issue(NAME).pem),
    "expired": (10, lambda good, other, chain: good.issue(NAME, expired=True).pem),
    "not yet valid": (9, lambda good, other, chain: good.issue(NAME, not_yet_valid=True).pem),
    "self-signed": (18, lambda good, other, chain: good.issue(NAME, self_signed=True).pem),
    "no names": (62, lambda good, other, chain: good.issue(common_name=NAME).pem),
    "only an e-mail address": (
        62,
        lambda good, other, chain: good.issue(f"postmaster@{NAME}", common_name=NAME).pem,
    ),
    "only a URI": (
        62,
        lambda good, other, chain: good.issue(f"https://{NAME}/", common_name=NAME).pem,
    ),
    "malformed names": (62, lambda good, other, chain: good.issue(NAME, malformed_names=True).pem),
    "without the intermediate": (
        20,
        lambda good, other, chain: chain.leaf.certificate_pem + chain.leaf.key_pem,
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@every_way
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_faulty_certificate_is_refused_and_the_server_learns_nothing(
    fault, way, version, authority, other_authority, hierarchy, trusted, tmp_path
):
    code, make = FAULTS[fault]
    identity = make(authority, other_authority, hierarchy)
    async with standard_server(tmp_path, identity, version=version) as server:
        with resolving({NAME: ["127.0.0.1"]}):
            error = await _refused(way, Target(NAME, server.port, trusted), server)
    if isinstance(error, CertificateVerificationError):
        assert error.depth == 0
        assert error.verify_code == code
        assert error.certificate is not None
        assert pem(error.certificate) in identity
        assert error.reason in str(error)


@pytest.mark.parametrize("version", VERSIONS)
@every_way
async def test_a_good_certificate_is_accepted(way, version, authority, trusted, tmp_path):
    async with standard_server(tmp_path, authority.issue(NAME).pem, version=version) as server:
        with resolving({NAME: ["127.0.0.1"]}):
            assert await way(Target(NAME, server.port, trusted)) == ANSWER
        assert await server.outcome == (QUESTION, None)


@every_way
async def test_a_chain_with_its_intermediate_is_accepted(way, hierarchy, trusted, tmp_path):
    async with standard_server(tmp_path, hierarchy.leaf.pem) as server:
        with resolving({NAME: ["127.0.0.1"]}):
            assert await way(Target(NAME, server.port, trusted)) == ANSWER


@every_way
async def test_an_intermediate_or_leaf_that_is_trusted_explicitly_is_enough(
    way, hierarchy, tmp_path
):
    for believed in (hierarchy.middle, hierarchy.leaf):
        file = tmp_path / "believed.pem"
        file.write_bytes(believed.certificate_pem)
        identity = hierarchy.leaf.certificate_pem + hierarchy.leaf.key_pem
        async with standard_server(tmp_path, identity) as server:
            with resolving({NAME: ["127.0.0.1"]}):
                assert await way(Target(NAME, server.port, file)) == ANSWER


MATCHING = {
    "exact": (NAME, NAME),
    "upper case node": (NAME, "Service.EXAMPLE"),
    "upper case certificate": ("SERVICE.Example", NAME),
    "trailing dot": (NAME, f"{NAME}."),
    "wildcard": (f"*.{NAME}", f"www.{NAME}"),
    "IDNA": ("xn--bcher-kva.example", "b\u00fccher.example"),
    "IDNA, upper case": ("xn--bcher-kva.example", "B\u00dcCHER.example"),
    "IDNA, as A-label": ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    "IDNA below a wildcard": ("*.xn--bcher-kva.example", "www.b\u00fccher.example"),
    "A-label for a wildcard": ("*.service.example", "xn--bcher-kva.service.example"),
    "IDNA for a wildcard": ("*.service.example", "b\u00fccher.service.example"),
    "IDNA and an underscore": ("_x.xn--bcher-kva.example", "_x.b\u00fccher.example"),
    "IPv4 address": ("127.0.0.1", "127.0.0.1"),
    "IPv6 address": ("::1", "::1"),
}

A_LABELS = {
    name: ["127.0.0.1"]
    for name in (
        NAME,
        f"{NAME}.",
        f"www.{NAME}",
        f"a.b.{NAME}",
        "xn--bcher-kva.example",
        "www.xn--bcher-kva.example",
        "xn--bcher-kva.service.example",
        "_x.xn--bcher-kva.example",
    )
}


@both_kinds
@pytest.mark.parametrize("case", MATCHING)
async def test_a_certificate_for_the_node_is_accepted(case, way, signed, tmp_path):
    san, node = MATCHING[case]
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(signed.root.certificate_pem)
    host = "::1" if node == "::1" else "127.0.0.1"
    async with standard_server(tmp_path, signed("other.example", san), host=host) as server:
        with resolving(A_LABELS):
            assert await way(Target(node, server.port, trusted)) == ANSWER


DIFFERENT: dict[str, tuple[str | x509.GeneralName, str]] = {
    "wildcard, two labels": (f"*.{NAME}", f"a.b.{NAME}"),
    "wildcard, no label": (f"*.{NAME}", NAME),
    "wildcard for part of a label": (f"w*.{NAME}", f"www.{NAME}"),
    "wildcard for part of an A-label": ("xn--*.service.example", "xn--bcher-kva.service.example"),
    "wildcard behind the first label": ("www.*.example", f"www.{NAME}"),
    "wildcard for a whole top level": ("*.example", NAME),
    "nothing but a wildcard": ("*", NAME),
    "a name that ends alike": (f"x{NAME}", NAME),
    "a name that begins alike": (f"{NAME}.org", NAME),
    "another address": ("127.0.0.2", "127.0.0.1"),
    "the address as a name": (x509.DNSName("127.0.0.1"), "127.0.0.1"),
    "a wildcard for the address": (x509.DNSName("*.0.0.1"), "127.0.0.1"),
    "the address as a URI": (x509.UniformResourceIdentifier("https://127.0.0.1/"), "127.0.0.1"),
}


@both_kinds
@pytest.mark.parametrize("case", DIFFERENT)
async def test_a_certificate_for_something_else_is_refused(case, way, signed, tmp_path):
    san, node = DIFFERENT[case]
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(signed.root.certificate_pem)
    async with standard_server(tmp_path, signed(san)) as server:
        with resolving(A_LABELS):
            error = await _refused(way, Target(node, server.port, trusted), server)
    if isinstance(error, CertificateVerificationError):
        assert error.verify_code == (64 if node == "127.0.0.1" else 62)


# Server names


@every_way
@pytest.mark.parametrize(
    ("node", "sent"),
    [
        (NAME, NAME),
        ("SERVICE.example.", NAME),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("127.0.0.1", None),
    ],
)
async def test_the_node_is_sent_as_server_name_unless_it_is_an_address(
    node, sent, way, authority, trusted, tmp_path
):
    async with standard_server(tmp_path, authority.issue(node).pem) as server:
        with resolving({**A_LABELS, f"{NAME}.": ["127.0.0.1"]}):
            assert await way(Target(node, server.port, trusted)) == ANSWER
    assert server.names == [sent]


@every_way
async def test_sni_is_sent_and_verified_instead_of_the_node(way, authority, trusted, tmp_path):
    identity = authority.issue("other.example").pem
    async with standard_server(tmp_path, identity) as server:
        target = Target("127.0.0.1", server.port, trusted, sni="other.example")
        assert await way(target) == ANSWER
    assert server.names == ["other.example"]


@every_way
async def test_a_certificate_for_the_node_alone_does_not_serve_an_sni(
    way, authority, trusted, tmp_path
):
    async with standard_server(tmp_path, authority.issue("127.0.0.1").pem) as server:
        target = Target("127.0.0.1", server.port, trusted, sni="other.example")
        await _refused(way, target, server)


async def test_an_empty_sni_sends_no_name_and_verifies_the_node(authority, trusted, tmp_path):
    options = TLSSocketOptions(trusted_certificates=trusted, sni=())
    with resolving({NAME: ["127.0.0.1"]}):
        async with standard_server(tmp_path, authority.issue(NAME).pem) as server:
            endpoint = client_endpoint(the_reactor(), NAME, server.port, options)
            assert await ask(endpoint) == ANSWER
        assert server.names == [None]
        async with standard_server(tmp_path, authority.issue("other.example").pem) as server:
            endpoint = client_endpoint(the_reactor(), NAME, server.port, options)
            with pytest.raises(CertificateVerificationError, match=NAME):
                await ask(endpoint)
            assert (await server.outcome).data == b""


async def test_an_address_as_sni_is_verified_and_not_sent(authority, trusted, tmp_path):
    options = TLSSocketOptions(trusted_certificates=trusted, sni="192.0.2.1")
    async with standard_server(tmp_path, authority.issue("192.0.2.1").pem) as server:
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
        assert await ask(endpoint) == ANSWER
    assert server.names == [None]
    async with standard_server(tmp_path, authority.issue("127.0.0.1").pem) as server:
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
        with pytest.raises(CertificateVerificationError) as caught:
            await ask(endpoint)
    assert caught.value.verify_code == 64


# Whom the client believes by itself


async def test_without_trusted_certificates_the_platform_list_is_believed(
    authority, other_authority, tmp_path, monkeypatch
):
    (tmp_path / "platform.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "platform.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "empty"))
    async with standard_server(tmp_path, authority.issue("127.0.0.1").pem) as server:
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, TLSSocketOptions())
        assert await ask(endpoint) == ANSWER
    (tmp_path / "platform.pem").write_bytes(other_authority.certificate_pem * 2)
    async with standard_server(tmp_path, authority.issue("127.0.0.1").pem) as server:
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, TLSSocketOptions())
        with pytest.raises(CertificateVerificationError):
            await ask(endpoint)


async def test_trusted_certificates_replace_the_platform_list(
    authority, other_authority, tmp_path, monkeypatch
):
    (tmp_path / "platform.pem").write_bytes(authority.certificate_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "platform.pem"))
    options = TLSSocketOptions(trusted_certificates=other_authority.certificate)
    async with standard_server(tmp_path, authority.issue("127.0.0.1").pem) as server:
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
        with pytest.raises(CertificateVerificationError):
            await ask(endpoint)


async def test_a_plain_record_verifies_too(authority, tmp_path):
    async with standard_server(tmp_path, authority.issue("127.0.0.1").pem) as server:
        with pytest.raises(CertificateVerificationError):
            await make_client_tls_socket("127.0.0.1", server.port, SocketOptions())


async def test_a_refusal_leaves_the_next_connection_of_the_same_endpoint_alone(
    authority, trusted, tmp_path
):
    options = TLSSocketOptions(trusted_certificates=trusted)
    factory = client_context_factory(options, NAME)
    for good in (False, True, False, True):
        identity = authority.issue(NAME if good else "other.example").pem
        async with standard_server(tmp_path, identity) as server:
            endpoint = wrapClientTLS(
                factory, TCP4ClientEndpoint(the_reactor(), "127.0.0.1", server.port)
            )
            if good:
                assert await ask(endpoint) == ANSWER
            else:
                with pytest.raises(SSL.Error, match="certificate verify failed"):
                    await ask(endpoint)
