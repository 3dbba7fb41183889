"""
Contexts in memory: which certificates they show, and what is wrong with what they are made of.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    NoEncryption,
    pkcs12,
)
from OpenSSL import SSL

from tests.support.peers import Entity
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    server_context_factory,
)

NAME = "service.example"


def shake_hands(client: SSL.Connection, server: SSL.Connection) -> None:
    """Carry a handshake between two connections on memory buffers to its end."""
    pending = {client, server}
    for _ in range(20):
        for one, other in ((client, server), (server, client)):
            if one in pending:
                try:
                    one.do_handshake()
                    pending.discard(one)
                except SSL.WantReadError:
                    pass
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(65536))
        if not pending:
            return
    raise AssertionError("the handshake does not end")


def presented(root: x509.Certificate, **fields: Any) -> list[x509.Certificate]:
    """Return the chain that a server with *fields* shows to a client that believes *root*."""
    server = server_context_factory(ServerTLSSocketOptions(**fields)).connection(None)
    options = TLSSocketOptions(trusted_certificates=root)
    client = client_context_factory(options, NAME).connection(None)
    shake_hands(client, server)
    return list(client.get_peer_cert_chain(as_cryptography=True))


def problem_of(**fields: Any) -> str:
    """Return the message of the ValueError that *fields* give on both sides."""
    with pytest.raises(ValueError) as caught:
        client_context_factory(TLSSocketOptions(**fields), NAME)
    with pytest.raises(ValueError) as on_server:
        server_context_factory(ServerTLSSocketOptions(**fields))
    assert str(on_server.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def store(
    entity: Entity,
    password: bytes | None = None,
    *,
    key: bool = True,
    certificate: bool = True,
) -> bytes:
    """Return *entity* as PKCS#12."""
    return pkcs12.serialize_key_and_certificates(
        b"a name",
        entity.key if key else None,
        entity.certificate if certificate else None,
        entity.intermediates,
        NoEncryption() if password is None else BestAvailableEncryption(password),
    )
