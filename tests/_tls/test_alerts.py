"""What the peer is told of a refusal (RFC 8446, section 6.2)."""

from __future__ import annotations

import pytest
from OpenSSL import SSL

from tests.support.peers import NAME, perform_handshake
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    server_context_factory,
)
from twisted_netsock._tls import openssl
from twisted_netsock.testing import CertificateAuthority

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not openssl._CAN_SET_VERDICTS, reason="this pyOpenSSL cannot choose the alert"
    ),
]


def refuse(*_: object) -> bool:
    return False


def explode(*_: object) -> bool:
    raise RuntimeError


ALERTS = {
    "another name": ("bad certificate", ["other.example"], {}, {}),
    "no name": ("bad certificate", [], {}, {}),
    "malformed names": ("bad certificate", [NAME], {"malformed_names": True}, {}),
    "expired": ("certificate expired", [NAME], {"expired": True}, {}),
    "self-signed": ("unknown ca", [NAME], {"self_signed": True}, {}),
    "the verifier refuses": ("bad certificate", [NAME], {}, {"certificate_verifier": refuse}),
    "the verifier raises": ("bad certificate", [NAME], {}, {"certificate_verifier": explode}),
}


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("case", ALERTS)
def test_a_server_learns_why_its_certificate_was_refused(
    case, version, authority: CertificateAuthority, logged_errors
):
    alert, names, faults, fields = ALERTS[case]
    record = ServerTLSSocketOptions(certificates=authority.issue(*names, **faults).pem)
    server = server_context_factory(record).connection(None)
    options = authority.client_options(maximum_version=version, **fields)
    client = client_context_factory(options, NAME).connection(None)
    with pytest.raises(SSL.Error):
        perform_handshake(client, server)
    told = _alert(client, server)
    assert alert in told
    logged_errors.clear()


def _alert(failed: SSL.Connection, peer: SSL.Connection) -> str:
    """Hand what *failed* has still to send to *peer*, and return what that says."""
    try:
        peer.bio_write(failed.bio_read(1 << 16))
        peer.do_handshake()
    except SSL.Error as error:
        return str(error)
    with pytest.raises(SSL.Error) as caught:
        peer.recv(1)
    return str(caught.value)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_client_learns_why_its_certificate_was_refused(version, authority: CertificateAuthority):
    record = ServerTLSSocketOptions(
        certificates=authority.issue(NAME).pem,
        trusted_certificates=authority.certificate,
        client_certificate_required=True,
        maximum_version=version,
    )
    server = server_context_factory(record).connection(None)
    bad = authority.issue("a client", expired=True).pem
    options: TLSSocketOptions = authority.client_options(certificates=bad)
    client = client_context_factory(options, NAME).connection(None)
    with pytest.raises(SSL.Error):
        perform_handshake(client, server)
    assert "certificate expired" in _alert(server, client)
