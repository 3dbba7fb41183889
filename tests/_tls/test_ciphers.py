"""Every cipher suite that there is, offered to a server in memory; who chooses; key logs."""

from __future__ import annotations

import re
import ssl
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL

from tests.support.peers import NAME, Entity, make_entity, perform_handshake
from tests.support.processes import needs
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    server_context_factory,
)

pytestmark = pytest.mark.long

GOOD = re.compile(r"ECDHE-(RSA|ECDSA)-(AES(128|256)-GCM-SHA(256|384)|CHACHA20-POLY1305)")


@pytest.fixture(scope="module", params=["rsa", "ecdsa"])
def entity(request: pytest.FixtureRequest) -> Entity:
    key = rsa.generate_private_key(65537, 2048) if request.param == "rsa" else None
    return make_entity(request.param, NAME, key=key)


@cache
def every_cipher() -> list[str]:
    """Return the names of all cipher suites before TLS 1.3 that the openssl command has."""
    done = subprocess.run(
        ["openssl", "ciphers", "-tls1_2", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=10,
    )
    return [name for name in done.stdout.strip().split(":") if not name.startswith("TLS_")]


def offer(server: SSL.Connection, context: ssl.SSLContext) -> str | None:
    """Return the cipher of a handshake with the standard library's client, if there is one."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    for _ in range(10):
        try:
            client.do_handshake()
            return client.cipher()[0]
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            return None
        if sent := outgoing.read():
            server.bio_write(sent)
        try:
            server.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error:
            # The alert that says so is on its way.
            pass
        try:
            incoming.write(server.bio_read(65536))
        except SSL.WantReadError:
            pass
    raise AssertionError("the handshake does not end")


def client_of(ciphers: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    return context


@needs("openssl")
def test_of_all_cipher_suites_only_those_with_forward_secrecy_and_aead_are_spoken(
    entity: Entity,
) -> None:
    factory = server_context_factory(ServerTLSSocketOptions(certificates=entity.pem))
    spoken, refused = set(), set()
    for name in every_cipher():
        try:
            context = client_of(f"{name}:@SECLEVEL=0")
        except ssl.SSLError:
            # Known to the command, and not to the library that Python has.
            continue
        chosen = offer(factory.connection(None), context)
        assert chosen in (name, None)
        (refused if chosen is None else spoken).add(name)
    kind = "RSA" if isinstance(entity.key, rsa.RSAPrivateKey) else "ECDSA"
    assert spoken == {
        f"ECDHE-{kind}-{bulk}"
        for bulk in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    }
    assert all(GOOD.fullmatch(name) for name in spoken)
    # So that the walk is one: static RSA, CBC, finite fields, no authentication, no encryption.
    kinds = {"AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256", "AECDH-AES128-SHA", "NULL-SHA256"}
    assert refused >= {*kinds, f"ECDHE-{kind}-AES128-SHA256"}
    assert len(refused) > 50


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_the_servers_order_counts(entity: Entity, version: str) -> None:
    factory = server_context_factory(ServerTLSSocketOptions(certificates=entity.pem))
    kind = "RSA" if isinstance(entity.key, rsa.RSAPrivateKey) else "ECDSA"
    wanted = f"ECDHE-{kind}-" if version == "TLSv1.2" else "TLS_"
    order = [name for name in factory.connection(None).get_cipher_list() if wanted in name]
    assert len(order) == 3
    for offered in (order, order[::-1], order[1:], order[:0:-1]):
        context = SSL.Context(SSL.TLS_METHOD)
        ciphers = ":".join(offered).encode()
        if version == "TLSv1.2":
            context.set_max_proto_version(SSL.TLS1_2_VERSION)
            context.set_cipher_list(ciphers)
        else:
            context.set_min_proto_version(SSL.TLS1_3_VERSION)
            context.set_tls13_ciphersuites(ciphers)
        client = SSL.Connection(context, None)
        client.set_connect_state()
        perform_handshake(client, factory.connection(None))
        assert client.get_cipher_name() == min(offered, key=order.index)


# Key logs

LINE = re.compile(r"(?P<label>[A-Z0-9_]+) (?P<random>[0-9a-f]{64}) (?P<secret>[0-9a-f]{64,96})")
LABELS = {
    "TLSv1.2": {"CLIENT_RANDOM"},
    "TLSv1.3": {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
        "EXPORTER_SECRET",
    },
}


@pytest.mark.parametrize("version", LABELS)
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_key_log_has_the_secrets_of_the_connection_and_nothing_else_tells_them(
    entity: Entity, version: str, side: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    asking: dict[str, Any] = {"keylog_file": file}
    mine, theirs = (asking, {}) if side == "client" else ({}, asking)
    clients = client_context_factory(
        TLSSocketOptions(trusted_certificates=entity.certificate, maximum_version=version, **mine),
        NAME,
    )
    servers = server_context_factory(ServerTLSSocketOptions(certificates=entity.pem, **theirs))
    client, server = clients.connection(None), servers.connection(None)
    perform_handshake(client, server)
    lines = [LINE.fullmatch(line) for line in file.read_text().splitlines()]
    assert {line["label"] for line in lines} >= LABELS[version]
    assert {line["random"] for line in lines} == {client.client_random().hex()}
    if version == "TLSv1.2":
        assert [line["secret"] for line in lines] == [client.master_key().hex()]
    texts = [repr(each) for each in (clients, servers, clients.options, servers.options)]
    for line in lines:
        assert not any(line["secret"] in text for text in texts)
    assert file.stat().st_mode & 0o777 == 0o600
