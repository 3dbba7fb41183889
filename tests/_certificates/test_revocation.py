"""Revocation lists: what is demanded of them, and how they are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from tests._certificates.test_profile import (
    HOST,
    KEY,
    SERVER,
    common_name,
    issue,
    names,
    peer,
    usage,
)
from tests.support.peers import verify_by_handshake
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    server_context_factory,
)
from twisted_netsock._certificates.certificates import load_revocation_lists, next_update
from twisted_netsock.errors import CertificateVerificationError

pytestmark = pytest.mark.once

NOW = datetime.now(UTC).replace(microsecond=0)
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
ROOT = issue("root", "root")
MIDDLE = issue("middle", "root")
LEAF = issue("leaf", "middle", names(HOST), usage(SERVER), ca=False)
"""All have the serial number 7."""


def revoked(
    issuer: str,
    *serials: int,
    days: float = 5,
    key: ec.EllipticCurvePrivateKey = KEY,
    number: int | None = 1,
) -> x509.CertificateRevocationList:
    builder = x509.CertificateRevocationListBuilder(
        common_name(issuer), NOW - timedelta(days=9), NOW + timedelta(days=days)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder(serial, NOW - timedelta(days=8)).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, SHA256())


GOOD = (revoked("root"), revoked("middle"))


def visit(*lists: x509.CertificateRevocationList, **fields: Any) -> SSL.Connection:
    """Connect a client that has *lists* to a server."""
    options = TLSSocketOptions(
        **{"trusted_certificates": ROOT, "revocation_lists": lists, **fields}
    )
    ours = client_context_factory(options, HOST).connection(None)
    theirs = SSL.Connection(peer(LEAF, MIDDLE), None)
    theirs.set_accept_state()
    verify_by_handshake(ours, theirs)
    return ours


@pytest.mark.parametrize("profile", ["default", "strict"])
def test_a_chain_of_which_nothing_is_revoked_is_good(profile):
    ours = visit(*GOOD, certificate_profile=profile)
    assert (ours.state.verification.path is None) is (profile == "default")


@pytest.mark.parametrize("profile", ["default", "strict"])
@pytest.mark.parametrize(
    ("lists", "why"),
    [
        ((revoked("root"), revoked("middle", 7)), "revoked"),
        ((revoked("root", 7), revoked("middle")), "revoked"),
        ((revoked("root"),), "list of CN=middle is needed"),
        ((revoked("middle"),), "list of CN=root is needed"),
        ((revoked("root"), revoked("middle", days=-1)), "expired.*list of CN=middle is needed"),
        ((revoked("root"), revoked("middle", key=OTHER_KEY)), "list of CN=middle is needed"),
    ],
)
def test_all_else_is_refused_and_the_error_names_the_issuer(lists, why, profile):
    with pytest.raises(CertificateVerificationError, match=rf"(?s).*{why}"):
        visit(*lists, certificate_profile=profile)


def test_of_several_lists_of_one_issuer_a_good_one_decides():
    stale = revoked("middle", days=-1)
    visit(revoked("root"), stale, revoked("middle"))
    with pytest.raises(CertificateVerificationError, match="revoked"):
        visit(revoked("root"), stale, revoked("middle", 7))


def test_a_trusted_authority_that_is_no_root_needs_no_list_of_its_issuer():
    """Nobody asks whether it has been revoked: it is trusted by itself."""
    visit(revoked("middle"), trusted_certificates=MIDDLE)
    with pytest.raises(CertificateVerificationError, match="list of CN=middle is needed"):
        visit(revoked("root"), trusted_certificates=MIDDLE)
    with pytest.raises(CertificateVerificationError, match="revoked"):
        visit(revoked("middle", 7), trusted_certificates=MIDDLE)


def test_no_other_path_makes_a_missing_list_good():
    """The validator knows nothing of revocation, so it is not asked."""
    with pytest.raises(CertificateVerificationError, match="is needed"):
        visit(revoked("root"), trusted_certificates=[ROOT, MIDDLE])


@pytest.mark.parametrize(("serials", "why"), [((), None), ((7,), "revoked")])
def test_a_server_asks_its_lists_about_clients(serials, why, authority):
    options = ServerTLSSocketOptions(
        certificates=authority.issue("localhost").pem,
        trusted_certificates=ROOT,
        client_certificate_required=True,
        revocation_lists=[revoked("root"), revoked("middle", *serials)],
    )
    ours = server_context_factory(options).connection(None)
    theirs = SSL.Connection(peer(issue("leaf", "middle", ca=False), MIDDLE), None)
    theirs.set_connect_state()
    if why is None:
        verify_by_handshake(ours, theirs)
    else:
        with pytest.raises(CertificateVerificationError, match=why):
            verify_by_handshake(ours, theirs)


def test_sessions_end_with_the_lists_too():
    verification = visit(revoked("root", days=3), revoked("middle", days=2)).state.verification
    assert verification.first_expiry() == (NOW + timedelta(days=2)).timestamp()
    verification = visit(revoked("root", days=300), revoked("middle", days=200)).state.verification
    assert verification.first_expiry() == LEAF.not_valid_after_utc.timestamp()
    lists = [revoked("root", days=3), revoked("middle", days=-2), revoked("middle", days=4)]
    assert next_update(lists) == (NOW + timedelta(days=3)).timestamp()
    assert next_update([]) == float("inf")


def test_a_reload_reads_the_lists_again(tmp_path):
    path = tmp_path / "lists.pem"

    def write(*lists: x509.CertificateRevocationList) -> None:
        path.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in lists))

    def connect() -> None:
        theirs = SSL.Connection(peer(LEAF, MIDDLE), None)
        theirs.set_accept_state()
        verify_by_handshake(factory.connection(None), theirs)

    write(*GOOD)
    options = TLSSocketOptions(trusted_certificates=ROOT, revocation_lists=path)
    factory = client_context_factory(options, HOST)
    connect()
    write(GOOD[0], revoked("middle", 7, number=2))
    assert factory.current_signature() != factory.signature
    connect()
    factory.swap(factory.build())
    with pytest.raises(CertificateVerificationError, match="revoked"):
        connect()


def loaded(*sources: Any) -> list[x509.CertificateRevocationList]:
    return load_revocation_lists(TLSSocketOptions(revocation_lists=sources))


def test_lists_are_read_in_every_form(tmp_path):
    one, other = GOOD
    der, pem = one.public_bytes(Encoding.DER), other.public_bytes(Encoding.PEM)
    path = tmp_path / "lists.pem"
    path.write_bytes(b"# both\r\n" + one.public_bytes(Encoding.PEM) + pem)
    assert loaded(path) == [one, other]
    assert loaded(der, pem, other, str(path)) == [one, other, other, one, other]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"nonsense", "no revocation list"),
        (GOOD[0].public_bytes(Encoding.DER)[:-1], "no revocation list"),
        (GOOD[0].public_bytes(Encoding.PEM)[:-30], "cut off"),
        (ROOT.public_bytes(Encoding.PEM), "no revocation list"),
        (ROOT.public_bytes(Encoding.DER), "no revocation list"),
        (revoked("root", number=None).public_bytes(Encoding.DER), "without a number"),
    ],
    ids=["nonsense", "short DER", "short PEM", "certificate", "certificate in DER", "no number"],
)
def test_what_is_no_list_is_refused(content, why):
    with pytest.raises(ValueError, match=f"^revocation_lists .*{why}"):
        loaded(content)


def test_a_file_that_is_missing_or_empty_is_named(tmp_path):
    path = tmp_path / "lists.pem"
    for _ in range(2):
        with pytest.raises(ValueError, match=f"revocation_lists='{path}'"):
            loaded(path)
        path.touch()


def test_lists_may_not_be_too_large(monkeypatch):
    limit = len(GOOD[0].tbs_certlist_bytes) + 1
    monkeypatch.setattr("twisted_netsock._certificates.certificates._LISTS_LIMIT", limit)
    loaded(GOOD[0])
    with pytest.raises(ValueError, match=f"more than {limit}"):
        loaded(*GOOD)
