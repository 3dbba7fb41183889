"""Who may come in: rules, patterns and fingerprints."""

from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from tests.support.odd_certificates import encoded_certificate, named
from tests.support.processes import needs, run
from twisted_netsock.commands.relay.access import Access, fingerprint, uri_pattern
from twisted_netsock.commands.relay.routes import Routes, Target, route_name

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("pattern", "uri", "fits"),
    [
        ("spiffe://example.com/web", "spiffe://example.com/web", True),
        ("spiffe://example.com/web", "spiffe://example.com/web/", True),
        ("spiffe://example.com/web/", "spiffe://example.com/web", True),
        ("spiffe://example.com/web", "spiffe://example.com/webs", False),
        ("spiffe://example.com/web", "spiffe://example.com/Web", False),
        ("spiffe://example.com/web", "spiffe://exampleXcom/web", False),
        ("spiffe://example.com/*", "spiffe://example.com/web", True),
        ("spiffe://example.com/*", "spiffe://example.com/web/1", False),
        ("spiffe://example.com/*", "spiffe://example.com/", False),
        ("spiffe://example.com/*/1", "spiffe://example.com/web/1", True),
        ("spiffe://example.com/*/1", "spiffe://example.com/1", False),
        ("spiffe://*/web", "spiffe://example.org/web", True),
        ("spiffe://example.com/**", "spiffe://example.com/a/b/c", True),
        ("spiffe://example.com/**", "spiffe://example.com", True),
        ("spiffe://example.com/a/**", "spiffe://example.com/ab", False),
        ("spiffe://example.com/**", "spiffe://example.com.evil.org/a", False),
        ("spiffe://example.com/web", "spiffe://example.com/web\n", False),
        ("spiffe://example.com/*", "x spiffe://example.com/web", False),
    ],
)
def test_a_pattern_fits_whole_segments(pattern, uri, fits):
    assert bool(uri_pattern(pattern).fullmatch(uri)) is fits


@pytest.mark.parametrize("pattern", ["a://b/**/c", "a://b/c*", "a://b/*c", "a://b/c**", "**"])
def test_a_wildcard_elsewhere_is_refused(pattern):
    with pytest.raises(ValueError, match="segment"):
        uri_pattern(pattern)


def digest_of(issued) -> bytes:
    public = issued.certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(public).digest()


@pytest.fixture(scope="module")
def issued(authority):
    return authority.issue(
        "web.example.com", "spiffe://example.com/web",
        common_name="the web", organizational_unit="shop",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "allowed"),
    [
        ("cn", "the web", True),
        ("cn", "The Web", False),
        ("cn", "web.example.com", False),
        ("ou", "shop", True),
        ("ou", "shops", False),
        ("dns", "web.example.com", True),
        ("dns", "WEB.example.com", True),
        ("dns", "example.com", False),
        ("uri", "spiffe://example.com/*", True),
        ("uri", "spiffe://example.org/*", False),
    ],
)
def test_a_rule_looks_at_one_part_of_a_certificate(issued, kind, text, allowed):
    assert Access().with_rule(kind, text).allows(issued.certificate) is allowed


def test_a_public_key_is_known_by_its_fingerprint_in_either_form(issued, authority):
    digest = digest_of(issued)
    for text in (
        "sha256//" + base64.b64encode(digest).decode(),
        digest.hex(),
        digest.hex(":").upper(),
    ):
        access = Access().with_rule("spki", text)
        assert access.allows(issued.certificate)
        assert not access.allows(authority.issue("web.example.com").certificate)


@pytest.mark.parametrize(
    "text", ["", "sha256//", "sha256//AAAA", "00" * 31, "zz" * 32, "sha1//AA"]
)
def test_what_is_no_fingerprint_is_refused(text):
    with pytest.raises(ValueError, match="sha256//BASE64"):
        fingerprint(text)


def test_one_rule_that_fits_is_enough(issued):
    access = Access().with_rule("cn", "somebody else").with_rule("ou", "shop")
    assert access.allows(issued.certificate)


KEYS = {
    "P-256, compressed": [
        "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
        "-pkeyopt", "ec_param_enc:named_curve", "-pkeyopt", "point-format:compressed",
    ],
    "explicit curve": [
        "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
        "-pkeyopt", "ec_param_enc:explicit",
    ],
    "RSA-PSS": ["genpkey", "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048"],
    "Ed448": ["genpkey", "-algorithm", "ED448"],
    "X.509 version 1": ["genpkey", "-algorithm", "ED25519"],
}  # fmt: skip


@needs("openssl")
@pytest.mark.parametrize("kind", KEYS)
def test_a_public_key_of_any_kind_is_known_by_its_fingerprint(kind, tmp_path):
    key, request = tmp_path / "key.pem", tmp_path / "request.pem"
    version_1 = kind == "X.509 version 1"
    run("openssl", *KEYS[kind], "-out", key)
    if version_1:
        run("openssl", "req", "-new", "-key", key, "-subj", "/CN=x", "-out", request)
        made = run("openssl", "x509", "-req", "-in", request, "-signkey", key)
    else:
        made = run("openssl", "req", "-x509", "-new", "-key", key, "-subj", "/CN=x")
    certificate = x509.load_pem_x509_certificate(made.output.encode())
    (tmp_path / "certificate.pem").write_text(made.output)
    told = run("openssl", "x509", "-in", tmp_path / "certificate.pem", "-noout", "-pubkey").output
    encoded = base64.b64decode("".join(told.splitlines()[1:-1]))
    rule = "sha256//" + base64.b64encode(hashlib.sha256(encoded).digest()).decode()
    assert Access().with_rule("spki", rule).allows(certificate)


def test_any_rule_needs_a_certificate(issued):
    assert not Access().with_rule("cn", "the web").allows(None)
    assert not Access(everyone=True).allows(None)
    assert Access(everyone=True).allows(issued.certificate)
    assert Access().allows(None)


def test_names_that_cannot_be_parsed_fit_no_rule(authority):
    odd = authority.issue("web.example.com", malformed_names=True).certificate
    assert not Access().with_rule("dns", "web.example.com").allows(odd)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("cn", "", "empty"),
        ("cn", "web*", "--allow-uri"),
        ("dns", "*.example.com", "--allow-uri"),
        ("uri", "example.com/*", "spiffe://"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(kind, text, said):
    with pytest.raises(ValueError, match=said):
        Access().with_rule(kind, text)


# Routes


def target(name: str) -> Target:
    return Target(None, name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("www.example.com", "www"),
        ("WWW.example.com.", "www"),
        ("api.example.com", "any"),
        ("a.b.example.com", "default"),
        ("example.com", "default"),
        ("münchen.example.com", "any"),
        ("www.example.com\n", "default"),
        ("", "default"),
        (None, "default"),
    ],
)
def test_a_route_is_chosen_by_the_name_that_was_asked_for(asked, chosen):
    routes = Routes(
        default=(target("default"),),
        by_name={
            route_name("www.example.com"): (target("www"),),
            route_name("*.example.com"): (target("any"),),
        },
    )
    assert [each.name for each in routes.choose(asked)] == [chosen]


def test_without_a_default_other_names_lead_nowhere():
    routes = Routes(by_name={"www.example.com": (target("www"),)})
    assert routes.choose("example.org") == ()
    assert routes.choose(None) == ()


def test_a_name_of_a_route_may_be_of_any_script():
    assert route_name("München.example.com") == "xn--mnchen-3ya.example.com"
    assert route_name("*.Example.com") == "*.example.com"


@pytest.mark.parametrize("name", ["", "*", "*.", "w*.example.com", "a b", "http://a", "a:443"])
def test_what_is_no_name_makes_no_route(name):
    with pytest.raises(ValueError):
        route_name(name)


@pytest.mark.parametrize(("kind", "rule"), [("dns", "host.example"), ("uri", "spiffe://a/*")])
def test_names_count_whatever_other_extensions_are_like(kind, rule):
    policies = x509.UnrecognizedExtension(ExtensionOID.CERTIFICATE_POLICIES, b"no DER at all")
    names = [x509.DNSName("HOST.example"), x509.UniformResourceIdentifier("spiffe://a/b")]
    encoded = encoded_certificate(policies, x509.SubjectAlternativeName(names))
    access = Access().with_rule(kind, rule)
    assert access.allows(x509.load_der_x509_certificate(encoded))
    assert not access.allows(
        x509.load_der_x509_certificate(named(b"\x82\x01*", b"\x86\x03\xff\xfe\xfd"))
    )
