"""A directory of certificates, chosen by the name that a client asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from OpenSSL import SSL

from tests.support.peers import perform_handshake
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    server_context_factory,
)
from twisted_netsock._certificates.certificates import file_signature
from twisted_netsock._tls.server import ServerContextFactory
from twisted_netsock.testing import CertificateAuthority, IssuedCertificate

pytestmark = pytest.mark.once


def write(issued: IssuedCertificate, certificate: Path, key: Path | None = None) -> None:
    certificate.parent.mkdir(exist_ok=True)
    if key is None:
        certificate.write_bytes(issued.pem)
    else:
        certificate.write_bytes(issued.certificate_pem)
        key.write_bytes(issued.private_key_pem)
        key.chmod(0o600)
    certificate.chmod(0o600)


@pytest.fixture
def directory(tmp_path: Path, authority: CertificateAuthority) -> Path:
    write(authority.issue("one.example", "www.one.example"), tmp_path / "one.example.pem")
    write(authority.issue("two.example"), tmp_path / "two.crt", tmp_path / "two.key")
    live = tmp_path / "three.example"
    write(authority.issue("three.example"), live / "fullchain.pem", live / "privkey.pem")
    secret = tmp_path / "secret"
    write(authority.issue("*.four.example"), secret / "tls.crt", secret / "tls.key")
    (tmp_path / "README").write_text("no certificate")
    (tmp_path / ".hidden.pem").write_text("no certificate")
    return tmp_path


def factory_of(path: Path, **fields: object) -> ServerContextFactory:
    return server_context_factory(ServerTLSSocketOptions(certificates=f"{path}/", **fields))


def shown(
    factory: ServerContextFactory, name: str, authority: CertificateAuthority, **fields: object
) -> str:
    """Return the first name of the certificate that a client sees who asks for *name*."""
    server = factory.connection(None)
    options: TLSSocketOptions = authority.client_options(sni=name, **fields)
    client = client_context_factory(options, name).connection(None)
    perform_handshake(client, server)
    certificate = client.get_peer_certificate(as_cryptography=True)
    assert certificate is not None
    return certificate.subject.rfc4514_string()


def test_each_certificate_is_shown_for_its_names(directory, authority):
    factory = factory_of(directory)
    for name in ("one.example", "www.one.example", "two.example", "three.example"):
        assert shown(factory, name, authority) == f"CN={name.removeprefix('www.')}"
    assert shown(factory, "any.four.example", authority) == "CN=*.four.example"


def test_an_exact_name_goes_before_a_wildcard(directory, authority):
    write(authority.issue("own.four.example"), directory / "own.pem")
    assert shown(factory_of(directory), "own.four.example", authority) == "CN=own.four.example"


def test_an_unknown_name_is_refused_unless_there_is_a_default(directory, authority):
    def ask() -> str:
        return shown(
            factory_of(directory), "nobody.example", authority, server_identity="rest.example"
        )

    with pytest.raises(SSL.Error):
        ask()
    write(authority.issue("rest.example"), directory / "DEFAULT.pem")
    assert ask() == "CN=rest.example"


def test_of_two_for_one_name_the_later_one_counts(directory, authority):
    write(authority.issue("one.example", expired=True), directory / "a.pem")
    assert shown(factory_of(directory), "one.example", authority) == "CN=one.example"
    assert shown(factory_of(directory), "www.one.example", authority) == "CN=one.example"


def test_what_is_added_renewed_and_removed_counts_after_a_reload(directory, authority):
    factory = factory_of(directory)
    assert factory.signature == factory.current_signature()
    write(authority.issue("five.example"), directory / "five.pem")
    (directory / "one.example.pem").unlink()
    live = directory / "three.example"
    write(authority.issue("3.example"), live / "fullchain.pem", live / "privkey.pem")
    assert factory.signature != factory.current_signature()
    factory.swap(factory.build())
    assert factory.signature == factory.current_signature()
    assert shown(factory, "five.example", authority) == "CN=five.example"
    assert shown(factory, "3.example", authority) == "CN=3.example"
    for name in ("one.example", "three.example"):
        with pytest.raises(SSL.Error):
            shown(factory, name, authority)


def test_a_link_to_a_file_that_changes_is_noticed(tmp_path, directory, authority):
    """As certbot's live directories have them."""
    elsewhere = tmp_path / ".archive"
    elsewhere.mkdir()
    write(authority.issue("six.example"), elsewhere / "six.pem")
    (directory / "six.pem").symlink_to(elsewhere / "six.pem")
    before = file_signature([str(directory)])
    write(authority.issue("six.example", "more.example"), elsewhere / "six.pem")
    assert file_signature([str(directory)]) != before


def test_other_records_may_stand_beside_a_directory(directory, authority):
    beside = ServerTLSSocketOptions(
        certificates=authority.issue("seven.example").pem, sni="seven.example"
    )
    records = [ServerTLSSocketOptions(certificates=str(directory)), beside]
    assert shown(server_context_factory(records), "seven.example", authority) == "CN=seven.example"
    again = ServerTLSSocketOptions(
        certificates=authority.issue("one.example").pem, sni="one.example"
    )
    with pytest.raises(ValueError, match=r"one\.example.*more than one record"):
        server_context_factory([*records, again])


def test_many_certificates_are_found_without_a_scan(tmp_path, authority):
    for number in range(200):
        write(authority.issue(f"{number}.example"), tmp_path / f"{number}.pem")
    factory = factory_of(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert shown(factory, "137.example", authority) == "CN=137.example"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sni": "one.example"}, "sni="),
        ({"private_key": b"key"}, "nothing beside it"),
    ],
)
def test_what_a_directory_does_not_go_with_is_refused(fields, message, directory):
    with pytest.raises(ValueError, match=message):
        factory_of(directory, **fields)


def test_a_directory_without_certificates_says_what_belongs_there(tmp_path):
    with pytest.raises(ValueError, match=r"NAME/fullchain\.pem"):
        factory_of(tmp_path)


def test_a_file_that_cannot_be_used_is_named(directory):
    (directory / "bad.pem").write_bytes(b"no certificate")
    with pytest.raises(ValueError, match=r"bad\.pem"):
        factory_of(directory)


def test_a_client_shows_one_certificate(directory, authority):
    with pytest.raises(ValueError, match="directory"):
        client_context_factory(authority.client_options(certificates=str(directory)), "a.example")
