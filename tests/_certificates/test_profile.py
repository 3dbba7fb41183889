"""The strict profile: its rules, and how it decides on clients and on servers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from tests.support.peers import verify_by_handshake
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    server_context_factory,
)
from twisted_netsock._certificates.profile import broken_rule
from twisted_netsock.errors import CertificateVerificationError
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.once

HOST = "host.example.com"
KEY = ec.generate_private_key(ec.SECP256R1())
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def names(*given: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.DNSName(each) for each in given])


def usage(*purposes: x509.ObjectIdentifier) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage(purposes)


AUTHORITY_KEY = x509.AuthorityKeyIdentifier.from_issuer_public_key(KEY.public_key())
SUBJECT_KEY = x509.SubjectKeyIdentifier.from_public_key(KEY.public_key())
CONSTRAINTS = x509.PolicyConstraints(1, None)
MALFORMED = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.32"), b"\x30\x01\x00")
"""Certificate policies that cannot be parsed."""


def issue(
    subject: str,
    issuer: str,
    *extensions: x509.ExtensionType,
    ca: bool = True,
    without: type[x509.ExtensionType] | None = None,
    key: Any = KEY,
) -> x509.Certificate:
    """Issue a certificate, with `KEY`, that has what it should, and *extensions*."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        common_name(issuer),
        common_name(subject),
        key.public_key(),
        7,
        now - timedelta(1),
        now + timedelta(9),
    )
    standard: list[x509.ExtensionType] = [
        AUTHORITY_KEY,
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        x509.BasicConstraints(ca, None),
        x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False),
    ]
    given = {type(each) for each in extensions}
    for each in (*standard, *extensions):
        if type(each) is not without and (each in extensions or type(each) not in given):
            critical = isinstance(each, x509.BasicConstraints | x509.KeyUsage)
            builder = builder.add_extension(each, critical)
    return builder.sign(KEY, SHA256())


ROOT = issue("root", "root")
MIDDLE = issue("middle", "root")
LEAF = issue("leaf", "middle", names(HOST), usage(SERVER), ca=False)


def test_a_path_as_public_authorities_issue_it_breaks_no_rule():
    assert broken_rule([LEAF, MIDDLE, ROOT]) is None
    assert broken_rule([LEAF, MIDDLE, issue("root", "root", without=type(AUTHORITY_KEY))]) is None


@pytest.mark.parametrize(
    ("place", "certificate", "why"),
    [
        (0, issue("leaf", "middle", MALFORMED, ca=False), "cannot be parsed"),
        (0, issue("leaf", "middle", without=type(AUTHORITY_KEY), ca=False), "authority key"),
        (1, issue("middle", "root", without=type(AUTHORITY_KEY)), "authority key"),
        (1, issue("middle", "root", without=type(SUBJECT_KEY)), "subject key"),
        (2, issue("root", "root", without=type(SUBJECT_KEY)), "subject key"),
        (0, issue("leaf", "middle", names("a_b.example"), ca=False), "underscore"),
        (0, issue("leaf", "middle", usage(SERVER, ANY), ca=False), "any purpose"),
        (1, issue("middle", "root", usage(ANY)), "any purpose"),
        (2, issue("root", "root", usage(SERVER)), "extended key usage"),
        (1, issue("middle", "root", CONSTRAINTS), "policy constraints"),
        (2, issue("root", "root", x509.AuthorityKeyIdentifier(b"x", None, None)), "not its own"),
        (
            2,
            issue(
                "root",
                "root",
                x509.AuthorityKeyIdentifier(
                    SUBJECT_KEY.digest, [x509.DirectoryName(common_name("root"))], 7
                ),
            ),
            "not its own",
        ),
        (1, issue("middle", "root", key=rsa.generate_private_key(65537, 2052)), "8 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_rule_is_held(place, certificate, why):
    path = [LEAF, MIDDLE, ROOT]
    path[place] = certificate
    assert why in str(broken_rule(path))


def peer(*chain: x509.Certificate) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    if chain:
        context.use_certificate(chain[0])
        context.use_privatekey(KEY)
    for each in chain[1:]:
        context.add_extra_chain_cert(each)
    return context


def visit(*chain: x509.Certificate, host: str = HOST, **fields: Any) -> SSL.Connection:
    """Connect a client with the strict profile to a server that sends *chain*."""
    options = TLSSocketOptions(
        **{"certificate_profile": "strict", "trusted_certificates": ROOT, **fields}
    )
    ours = client_context_factory(options, host).connection(None)
    theirs = SSL.Connection(peer(*chain), None)
    theirs.set_accept_state()
    verify_by_handshake(ours, theirs)
    return ours


LAX = issue("leaf", "middle", names(HOST), without=type(AUTHORITY_KEY), ca=False)


def test_a_client_refuses_what_openssl_takes():
    assert visit(LEAF, MIDDLE).state.verification.path == (LEAF, MIDDLE, ROOT)
    visit(LAX, MIDDLE, certificate_profile="default")
    with pytest.raises(CertificateVerificationError, match=r"strict profile .* authority key"):
        visit(LAX, MIDDLE)


def test_the_name_counts_too():
    with pytest.raises(CertificateVerificationError, match="not for"):
        visit(LEAF, MIDDLE, host="other.example.com")


def test_a_path_is_searched_that_breaks_no_rule():
    lax = issue("middle", "root", usage(ANY, SERVER))
    assert visit(LEAF, lax, MIDDLE).state.verification.path == (LEAF, MIDDLE, ROOT)
    with pytest.raises(CertificateVerificationError, match=r"strict profile .* any purpose"):
        visit(LEAF, lax)


def test_a_callable_verifier_is_asked_about_it():
    seen = []

    def verifier(depth, result, certificate):
        seen.append((depth, result.code))
        return True if result.code == 50 else None

    visit(LAX, MIDDLE, certificate_verifier=verifier)
    assert (0, 50) in seen
    with pytest.raises(CertificateVerificationError, match="not for"):
        visit(LAX, MIDDLE, certificate_verifier=verifier, host="other.example.com")
    with pytest.raises(CertificateVerificationError, match="strict profile"):
        visit(LAX, MIDDLE, certificate_verifier=lambda *_: None)


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_a_server_judges_the_path_that_openssl_shows(version, authority):
    """A client's certificate needs no names; no other path than OpenSSL's is sought."""
    client = ExtendedKeyUsageOID.CLIENT_AUTH
    own = issue("leaf", "middle", usage(client), ca=False)
    lax = issue("leaf", "middle", usage(client), without=type(AUTHORITY_KEY), ca=False)
    foreign = issue("leaf", "middle", usage(SERVER), ca=False)
    cases = [
        ("strict", own, None),
        ("default", lax, None),
        ("strict", lax, "strict profile .* authority key"),
        ("strict", foreign, "purpose"),
    ]
    for profile, certificate, why in cases:
        options = ServerTLSSocketOptions(
            certificates=authority.issue("localhost").pem,
            trusted_certificates=ROOT,
            client_certificate_required=True,
            certificate_profile=profile,
        )
        ours = server_context_factory(options).connection(None)
        context = peer(certificate, MIDDLE)
        context.set_max_proto_version(version)
        theirs = SSL.Connection(context, None)
        theirs.set_connect_state()
        if why is None:
            verify_by_handshake(ours, theirs)
            strict = ours.state.verification.path
            assert strict == ((certificate, MIDDLE, ROOT) if profile == "strict" else None)
        else:
            with pytest.raises(CertificateVerificationError, match=why):
                verify_by_handshake(ours, theirs)


def test_openssl_may_refuse_on_servers_what_the_profile_takes(authority):
    """Its verdict on name constraints comes after that on the client's own certificate."""
    options = ServerTLSSocketOptions(
        certificates=authority.issue("localhost").pem,
        trusted_certificates=ROOT,
        client_certificate_required=True,
        certificate_profile="strict",
    )
    verification = server_context_factory(options).connection(None).state.verification
    for depth, certificate in ((2, ROOT), (1, MIDDLE), (0, issue("leaf", "middle", ca=False))):
        assert verification.judge(certificate.public_bytes(Encoding.DER), 0, depth)
    assert not verification.judge(LEAF.public_bytes(Encoding.DER), 47, 0)


async def test_the_throwaway_authority_issues_as_the_profile_demands(authority):
    assert isinstance(authority, CertificateAuthority)
    issued = authority.issue("localhost")
    assert broken_rule([issued.certificate, authority.certificate]) is None
