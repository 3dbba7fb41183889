"""What a TLS socket tells of certificates beyond the peer's own: as verified, and as asked for."""

from __future__ import annotations

import os
import socket

import pytest
from twisted.internet.defer import DeferredList

from tests.support.streams import TLSStreams
from twisted_netsock import TLSTruncatedError, make_client_tls_socket
from twisted_netsock._hostnames import distinguished_name
from twisted_netsock.testing import CertificateAuthority

VERSIONS = ["TLSv1.2", "TLSv1.3"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_verified_chain_leads_to_the_authority(
    authority: CertificateAuthority, version: str
) -> None:
    async with TLSStreams(authority, version).pair() as (client, server):
        assert client.verified_chain == (client.peer_certificate, authority.certificate)
        assert server.verified_chain == ()


async def test_a_server_tells_the_verified_chain_of_its_client(
    authority: CertificateAuthority,
) -> None:
    issued = authority.issue("client@example.com")
    asking = {"trusted_certificates": authority.certificate_pem}
    client = {"certificates": issued.pem}
    async with TLSStreams(authority).pair(server=asking, client=client) as (_, server):
        assert server.verified_chain == (issued.certificate, authority.certificate)


async def test_where_nothing_is_verified_there_is_no_verified_chain(
    authority: CertificateAuthority,
) -> None:
    async with TLSStreams(authority).pair(client={"certificate_verifier": False}) as (client, _):
        assert client.peer_chain != ()
        assert client.verified_chain == ()


async def test_before_the_handshake_there_is_no_verified_chain(
    authority: CertificateAuthority,
) -> None:
    async with TLSStreams(authority).pair(handshake=False) as (client, _):
        assert client.verified_chain == ()
        assert client.client_certificate_authorities == ()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_client_sees_whose_certificates_are_asked_for(
    authority: CertificateAuthority, other_authority: CertificateAuthority, version: str
) -> None:
    trusted = [authority.certificate_pem, other_authority.certificate_pem]
    asking = {"trusted_certificates": trusted}
    async with TLSStreams(authority, version).pair(server=asking) as (client, server):
        assert sorted(client.client_certificate_authorities) == [
            "CN=another authority",
            "CN=throw-away authority",
        ]
        assert server.client_certificate_authorities == ()


async def test_a_client_that_is_asked_for_nothing_sees_no_authorities(
    authority: CertificateAuthority,
) -> None:
    async with TLSStreams(authority).pair() as (client, _):
        assert client.client_certificate_authorities == ()


async def test_the_authorities_can_be_read_after_a_handshake_that_was_refused_for_want_of_one(
    authority: CertificateAuthority,
) -> None:
    asking = {
        "trusted_certificates": authority.certificate_pem,
        "client_certificate_required": True,
    }
    async with await TLSStreams(authority, "TLSv1.2").listen(**asking) as listener:
        accepting = listener.accept()
        options = authority.client_options(handshake=False, maximum_version="TLSv1.2")
        port = listener.getsockname().port
        client = await make_client_tls_socket("127.0.0.1", port, options)
        [(succeeded, _)] = await DeferredList([client.handshake()], consumeErrors=True)
        assert not succeeded
        assert client.client_certificate_authorities == ("CN=throw-away authority",)
        await client.close()
        accepting.cancel()
        await DeferredList([accepting], consumeErrors=True)


async def test_an_end_without_close_notify_is_called_that(authority: CertificateAuthority) -> None:
    async with TLSStreams(authority).pair() as (client, server):
        # Of the connection beneath, without a word of TLS.
        with socket.socket(fileno=os.dup(server.fileno())) as beneath:
            beneath.shutdown(socket.SHUT_WR)
        with pytest.raises(TLSTruncatedError, match="without close_notify"):
            await client.recv(1)


@pytest.mark.parametrize(
    ("components", "text"),
    [
        ([(b"C", b"CH"), (b"O", b"An org"), (b"CN", b"root")], "CN=root,O=An org,C=CH"),
        ([(b"CN", b'a,b+c"d\\e<f>g;h')], r"CN=a\,b\+c\"d\\e\<f\>g\;h"),
        ([(b"CN", b"#hash ")], r"CN=\#hash\ "),
        ([(b"CN", " é ".encode())], r"CN=\ é\ "),
        ([(b"CN", b"\xff\x1b[2J")], "CN=\\\\xff\x1b[2J"),
        ([], ""),
    ],
)
def test_a_distinguished_name_is_written_as_rfc_4514_has_it(
    components: list[tuple[bytes, bytes]], text: str
) -> None:
    assert distinguished_name(components) == text
