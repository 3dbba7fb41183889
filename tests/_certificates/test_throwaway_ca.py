"""The throw-away authority: what it issues, good and faulty."""

from __future__ import annotations

import ipaddress
import tempfile
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from tests.support.clocks import the_reactor
from tests.support.peers import ANSWER, ask, openssl, serving
from twisted_netsock import ServerTLSSocketOptions, TLSSocketOptions, client_endpoint
from twisted_netsock.testing import CertificateAuthority, IssuedCertificate

NAME = "service.example"


def names_of(issued: IssuedCertificate) -> x509.SubjectAlternativeName:
    return issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


async def verdict(
    authority: CertificateAuthority, issued: IssuedCertificate, tmp_path, *more: str
):
    """Return what ``openssl verify`` says."""
    (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
    (tmp_path / "leaf.pem").write_bytes(issued.certificate_pem)
    files = ("-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "leaf.pem"))
    return await openssl("verify", "-x509_strict", *more, *files)


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
async def test_openssl_finds_nothing_wrong(purpose, authority, tmp_path):
    issued = authority.issue(NAME)
    said = await verdict(
        authority, issued, tmp_path, "-purpose", purpose, "-verify_hostname", NAME
    )
    assert said.code == 0, said.text


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("expired", "certificate has expired"),
        ("not_yet_valid", "certificate is not yet valid"),
        ("self_signed", "self-signed certificate"),
    ],
)
async def test_openssl_finds_what_is_wrong(fault, complaint, authority, tmp_path):
    said = await verdict(authority, authority.issue(NAME, **{fault: True}), tmp_path)
    assert said.code != 0
    assert complaint in said.text


def test_an_issued_certificate_cannot_issue_others(authority):
    issued = authority.issue(NAME)
    constraints = issued.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.value.ca is False


async def test_openssl_finds_no_name_where_there_is_none(authority, tmp_path):
    for issued in (
        authority.issue(common_name="other.example"),
        authority.issue("postmaster@service.example", common_name="other.example"),
    ):
        said = await verdict(authority, issued, tmp_path, "-verify_hostname", NAME)
        assert "hostname mismatch" in said.text


def test_names_go_where_they_belong(authority):
    issued = authority.issue(
        "Service.EXAMPLE",
        "*.b\u00fccher.example",
        "b\u00fccher.example",
        "127.0.0.1",
        "::1",
        "postmaster@service.example",
        "https://service.example/path",
    )
    names = names_of(issued)
    assert names.get_values_for_type(x509.DNSName) == [
        "service.example",
        "*.xn--bcher-kva.example",
        "xn--bcher-kva.example",
    ]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    assert names.get_values_for_type(x509.RFC822Name) == ["postmaster@service.example"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "https://service.example/path"
    ]


def test_without_names_there_is_no_subject_alternative_name(authority):
    with pytest.raises(x509.ExtensionNotFound):
        names_of(authority.issue(common_name=NAME))


def test_malformed_names_cannot_be_parsed(authority):
    with pytest.raises(ValueError):
        names_of(authority.issue(NAME, malformed_names=True))


@pytest.mark.parametrize(
    ("names", "fields", "subject"),
    [
        ([NAME, "other.example"], {}, {NameOID.COMMON_NAME: NAME}),
        ([NAME], {"common_name": "somebody"}, {NameOID.COMMON_NAME: "somebody"}),
        (
            [NAME],
            {"organizational_unit": "accounts"},
            {NameOID.COMMON_NAME: NAME, NameOID.ORGANIZATIONAL_UNIT_NAME: "accounts"},
        ),
        (["a" * 60 + ".example"], {}, {NameOID.COMMON_NAME: ("a" * 60 + ".example")[:64]}),
    ],
)
def test_the_subject_has_the_names_asked_for(names, fields, subject, authority):
    issued = authority.issue(*names, **fields)
    assert {each.oid: each.value for each in issued.certificate.subject} == subject


def test_everything_lives_for_days_only(authority):
    now = datetime.now(UTC)
    for certificate in (authority.certificate, authority.issue(NAME).certificate):
        assert certificate.not_valid_before_utc < now < certificate.not_valid_after_utc
        assert certificate.not_valid_after_utc - now < timedelta(days=100)


def test_each_certificate_has_a_key_and_a_number_of_its_own(authority):
    one, other = authority.issue(NAME), authority.issue(NAME)
    assert one.certificate.serial_number != other.certificate.serial_number
    assert one.private_key_pem != other.private_key_pem
    for issued in (one, other):
        key = serialization.load_pem_private_key(issued.private_key_pem, None)
        assert key.public_key() == issued.certificate.public_key()


def test_the_pem_holds_certificate_and_key(authority):
    issued = authority.issue(NAME)
    assert issued.pem == issued.certificate_pem + issued.private_key_pem
    assert x509.load_pem_x509_certificates(issued.pem) == [issued.certificate]
    assert x509.load_pem_x509_certificates(authority.certificate_pem) == [authority.certificate]


def test_no_text_form_shows_a_key(authority):
    issued = authority.issue(NAME)
    number = str(issued.private_key.private_numbers().private_value)
    for shown in (repr(issued), str(issued), repr(authority)):
        assert "PRIVATE" not in shown
        assert number not in shown
    assert NAME in repr(issued)


def test_the_records_are_for_this_authority(authority):
    server = authority.server_options(NAME, alpn="h2")
    client = authority.client_options(alpn="h2", sni=NAME)
    assert type(server) is ServerTLSSocketOptions
    assert type(client) is TLSSocketOptions
    assert server.alpn == client.alpn == ("h2",)
    assert client.sni == (NAME,)


@pytest.mark.parametrize("node", ["localhost", "127.0.0.1"])
async def test_without_names_a_server_record_is_for_this_machine(node, authority):
    async with serving(authority.server_options(), greeting=None) as server:
        endpoint = client_endpoint(the_reactor(), node, server.port, authority.client_options())
        assert await ask(endpoint) == ANSWER


def test_nothing_is_written_to_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    authority = CertificateAuthority()
    authority.issue(NAME)
    authority.server_options()
    authority.client_options()
    assert list(tmp_path.rglob("*")) == []
