"""Other paths than OpenSSL's to a trusted certificate: which are found, and what that may cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

from tests.support.peers import verify_by_handshake
from twisted_netsock import TLSSocketOptions, client_context_factory
from twisted_netsock._certificates import paths
from twisted_netsock._certificates.der import content, issuer_and_subject
from twisted_netsock._certificates.paths import Load, PathFinder, load_of, too_much
from twisted_netsock._certificates.verification import Verification
from twisted_netsock.errors import CertificateVerificationError

pytestmark = pytest.mark.once

HOST = "host.example.com"
NOW = datetime.now(UTC).replace(microsecond=0)
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
KEY = ec.generate_private_key(ec.SECP256R1())
SLOW = ec.generate_private_key(ec.SECP384R1())


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass
class Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def encoded(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def issue(
    subject: str,
    issuer: Issued | None,
    *extensions: x509.ExtensionType,
    key: ec.EllipticCurvePrivateKey = KEY,
    ca: bool = True,
    days: int = 30,
    serial: int | None = None,
) -> Issued:
    """Issue a certificate that expires in *days*; one without *issuer* signs itself."""
    signer = key if issuer is None else issuer.key
    end = NOW + timedelta(days=days)
    usage = (ca, not ca)
    builder = (
        x509.CertificateBuilder(
            name(subject) if issuer is None else issuer.certificate.subject,
            name(subject),
            key.public_key(),
            serial or x509.random_serial_number(),
            end - timedelta(days=365),
            end,
        )
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
        .add_extension(
            x509.KeyUsage(usage[1], False, False, False, False, usage[0], usage[0], False, False),
            critical=True,
        )
    )
    for extension in extensions:
        critical = isinstance(extension, x509.NameConstraints)
        builder = builder.add_extension(extension, critical)
    return Issued(builder.sign(signer, SHA256()), key)


def leaf(issuer: Issued, *names: str) -> Issued:
    san = x509.SubjectAlternativeName([x509.DNSName(each) for each in names or (HOST,)])
    return issue("leaf", issuer, san, SERVER, ca=False)


ROOT = issue("root", None)
GOOD = issue("middle", ROOT, SERVER)
WRONG = issue("middle", ROOT, CLIENT)
"""For the same key as `GOOD`, and no authority of servers."""
LEAF = leaf(GOOD)


def handshake(*sent: Issued, **fields: object) -> SSL.Connection:
    """Perform a handshake in memory with a server that sends those, and return the client's."""
    options = TLSSocketOptions(**{"trusted_certificates": ROOT.encoded, **fields})
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(sent[0].certificate)
    context.use_privatekey(sent[0].key)
    for each in sent[1:]:
        context.add_extra_chain_cert(each.certificate)
    ours = client_context_factory(options, HOST).connection(None)
    theirs = SSL.Connection(context, None)
    theirs.set_accept_state()
    verify_by_handshake(ours, theirs)
    return ours


def finder(*trusted: Issued) -> PathFinder:
    return PathFinder(lambda: [each.certificate for each in trusted or (ROOT,)])


def find(*sent: Issued, trusted: tuple[Issued, ...] = ()) -> object:
    return finder(*trusted).find([each.encoded for each in sent]).path


PATH = (LEAF.certificate, GOOD.certificate, ROOT.certificate)


def test_the_good_one_of_two_intermediates_is_found_where_openssl_takes_the_other():
    assert handshake(LEAF, WRONG, GOOD).state.verification.path == PATH
    with pytest.raises(CertificateVerificationError, match="purpose"):
        handshake(LEAF, WRONG)


@pytest.mark.parametrize("host", ["_x.example.com", "spiffe://example.com/a"])
def test_identities_that_the_validator_does_not_know_have_other_paths_too(host):
    kind = x509.UniformResourceIdentifier if ":" in host else x509.DNSName
    own = issue("leaf", GOOD, x509.SubjectAlternativeName([kind(host)]), SERVER, ca=False)
    found = finder()
    sent = [crypto.X509.from_cryptography(each.certificate) for each in (own, WRONG, GOOD)]
    for identity, good in ((host, True), ("other.example.com", False)):
        verification = Verification(identity, None, found)
        assert verification.judge(WRONG.encoded, 26, 1, lambda: sent) is good


def test_openssl_is_believed_where_it_finds_a_path():
    assert handshake(LEAF, GOOD, WRONG).state.verification.path is None


def test_the_name_counts_on_another_path_too():
    with pytest.raises(CertificateVerificationError):
        handshake(leaf(GOOD, "other.example.com"), WRONG, GOOD)


def test_a_callable_verifier_gets_the_verdicts_of_openssl():
    seen = []

    def verifier(depth, result, certificate):
        seen.append(result.code)

    with pytest.raises(CertificateVerificationError):
        handshake(LEAF, WRONG, GOOD, certificate_verifier=verifier)
    assert seen[0] != 0


@pytest.mark.parametrize("code", [1, 23, 28, 66, 94])
def test_some_errors_are_final(code):
    """No other path forgives them, before one is found or after."""
    sent = [crypto.X509.from_cryptography(each.certificate) for each in (LEAF, GOOD)]
    factory = client_context_factory(TLSSocketOptions(trusted_certificates=ROOT.encoded), HOST)
    for first in (code, 10):
        judge = factory.connection(None).state.verification.judge
        assert judge(LEAF.encoded, first, 0, lambda: sent) is (first != code)
        assert not judge(LEAF.encoded, code, 0, lambda: sent)


def test_renewed_and_cross_signed_ones_are_found():
    expired = issue("middle", ROOT, SERVER, days=-1)
    stranger = issue("root", None, key=SLOW)
    crossed = issue("middle", stranger, SERVER)
    assert find(LEAF, expired, crossed, GOOD) == PATH
    assert find(LEAF, expired, crossed) is None
    assert find(LEAF, GOOD, trusted=(stranger,)) is None


def test_what_cannot_be_read_is_on_no_path():
    chain = [LEAF.encoded, b"nonsense", GOOD.encoded[:-1], GOOD.encoded]
    assert finder().find(chain).path == PATH
    assert finder().find(chain[1:]).path is None
    assert finder().find([]).path is None


def test_a_judgement_is_kept_until_a_date_passes(monkeypatch):
    searched = []
    search = paths._Search

    def counted(*arguments):
        searched.append(arguments)
        return search(*arguments)

    monkeypatch.setattr(paths, "_Search", counted)
    now = time.time()
    clock = [now]
    monkeypatch.setattr("time.time", lambda: clock[0])
    short = issue("middle", ROOT, SERVER, days=1)
    found = finder()
    chain = [LEAF.encoded, short.encoded]
    for _ in range(3):
        assert found.find(chain).path == (LEAF.certificate, short.certificate, ROOT.certificate)
    assert len(searched) == 1
    clock[0] = now + 86400 + 5
    assert found.find(chain).path is None
    assert found.find(chain).path is None
    assert len(searched) == 2


def test_few_judgements_are_kept():
    found = finder()
    for number in range(70):
        found.find([LEAF.encoded, b"%d" % number])
    assert len(found._kept) == 64


def test_too_many_or_too_large_certificates_are_not_searched():
    fill = [issue(f"other {number}", ROOT) for number in range(49)]
    assert find(LEAF, *fill[:48], GOOD) == PATH
    assert find(LEAF, *fill, GOOD) is None
    names = [f"{number:03}.{'a' * 50}.example.com" for number in range(300)]
    assert find(leaf(GOOD, HOST, *names), GOOD) is None


def test_a_search_ends_when_it_has_cost_enough(monkeypatch):
    """Forty that fit by name, each of whose signatures takes 0.7 ms to check."""
    checked = []
    is_issued = paths._Search._is_issued

    def counted(search, child, issuer):
        checked.append(issuer)
        return is_issued(search, child, issuer)

    monkeypatch.setattr(paths._Search, "_is_issued", counted)
    others = [
        issue("middle", ROOT, SERVER, key=ec.generate_private_key(ec.SECP384R1()))
        for _ in range(40)
    ]
    assert find(LEAF, *others) is None
    assert len(checked) < 12


def test_many_paths_are_not_all_given_to_the_validator(monkeypatch):
    asked = []
    build = verification.PolicyBuilder

    def counted():
        asked.append(1)
        return build()

    monkeypatch.setattr(verification, "PolicyBuilder", counted)
    middles = [issue("middle", ROOT, CLIENT, serial=number) for number in range(1, 45)]
    assert find(LEAF, *middles) is None
    assert len(asked) < 25


@pytest.mark.parametrize("version", [x509.Version.v1, x509.Version.v3])
def test_names_are_read_from_the_certificate_as_they_stand(version):
    encoded = GOOD.encoded
    if version is x509.Version.v1:
        # That of the third begins with the version, [0], of five bytes.
        inner = content(content(encoded, 0x30), 0x30)[5:]
        encoded = b"\x30\x84" + (len(inner) + 6).to_bytes(4, "big")
        encoded += b"\x30\x84" + len(inner).to_bytes(4, "big") + inner
    names = GOOD.certificate.issuer.public_bytes(), GOOD.certificate.subject.public_bytes()
    assert issuer_and_subject(encoded) == names


def test_a_certificate_costs_by_its_names_constraints_and_key():
    assert load_of(leaf(GOOD, "a.example", "b.example").encoded)[:3] == (2, 0, 0.12)
    constraints = x509.NameConstraints([x509.DNSName("a"), x509.DNSName("b")], [x509.DNSName("c")])
    assert load_of(issue("ca", None, constraints, key=SLOW).encoded)[:3] == (0, 3, 0.65)
    assert load_of(b"nonsense") == Load(0, 0, 0.65, 0.0)


def test_more_comparisons_of_names_than_20000_are_too_many():
    own, above = Load(200, 0, 0.12, 0.0), Load(0, 100, 0.12, 0.0)
    assert too_much([above, own]) is None
    assert "more than 20,000" in str(too_much([above, Load(201, 0, 0.12, 0.0)]))
    assert too_much([]) is None


def test_more_than_8_ms_of_signatures_are_too_many():
    assert too_much([Load(0, 0, 0.65, 0.0)] * 12) is None
    assert "too long" in str(too_much([Load(0, 0, 0.65, 0.0)] * 13))


def test_a_server_whose_names_take_too_long_to_compare_is_refused():
    constraints = x509.NameConstraints(None, [x509.DNSName(f"{n}.test") for n in range(300)])
    middle = issue("constrained", ROOT, SERVER, constraints)
    names = [f"{number}.example.com" for number in range(100)]
    with pytest.raises(CertificateVerificationError, match="comparisons"):
        handshake(leaf(middle, HOST, *names), middle)
    handshake(leaf(middle, HOST), middle)


def test_a_chain_of_more_than_10_intermediates_is_refused():
    chain = [ROOT]
    for number in range(11):
        chain.append(issue(f"middle {number}", chain[-1]))
    with pytest.raises(CertificateVerificationError, match="too long"):
        handshake(leaf(chain[-1]), *reversed(chain[1:]))
    handshake(leaf(chain[-2]), *reversed(chain[1:-1]))
