"""
Random input for whatever parses any: what comes of it is a value, or a documented error.

A few examples here, besides those kept under ``tests/corpus``, each of which is tried
as it is and changed; ``nox -s fuzz -- --seconds 600`` tries as many as the time allows.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.endpoints import _parse as split_string

from tests.support.peers import der, key_bytes, make_entity
from twisted_netsock import (
    ProxyHeader,
    ProxyHeaderError,
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    client_context_factory,
    server_context_factory,
)
from twisted_netsock._endpoints.strings import parse_client, parse_server
from twisted_netsock._proxy_protocol.header import header_end

SECONDS = float(os.environ.get("NETSOCK_FUZZ_SECONDS", "0"))
CORPUS = Path(__file__).parents[1] / "corpus"
PASSWORD = b"password"
PROPERTIES = 4

pytestmark = [
    pytest.mark.once,
    pytest.mark.timeout(SECONDS + 120),
    # Of certificates whose serial number is negative: cryptography takes them still.
    pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning"),
]


def kept(kind: str) -> list[bytes]:
    """Return what the corpus has of a *kind*."""
    return [path.read_bytes() for path in sorted((CORPUS / kind).iterdir())]


def fuzz(prop: Callable[[], None]) -> None:
    """Try *prop* once, or for its share of the time."""
    end = time.monotonic() + SECONDS / PROPERTIES
    rounds = 0
    while True:
        prop()
        rounds += 1
        if time.monotonic() >= end:
            break
    if SECONDS:
        print(f"{prop.__name__}: {rounds * LIMITS.max_examples} examples")  # noqa: T201


LIMITS = settings(
    max_examples=2000 if SECONDS else 60,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def changed(draw: Any, seeds: list[bytes]) -> bytes:
    """Draw one of *seeds* with some bytes changed, left out, repeated or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([1, 1, 2, 4, 16, 100])))
        how = draw(st.sampled_from(["set", "flip", "cut", "leave out", "repeat", "put in"]))
        if how == "set":
            data[at:end] = draw(st.binary(min_size=end - at, max_size=end - at))
        elif how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at:]
        elif how == "leave out":
            del data[at:end]
        elif how == "repeat":
            data[at:at] = data[at:end] * draw(st.integers(1, 5))
        elif how == "put in":
            data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


@pytest.fixture(scope="module")
def credentials() -> list[bytes]:
    """Certificates and keys in each form that is taken."""
    entity = make_entity("localhost", "localhost", "127.0.0.1", "::1")
    store = pkcs12.serialize_key_and_certificates
    return [
        entity.pem,
        entity.certificate_pem,
        entity.key_pem,
        der(entity.certificate),
        key_bytes(entity.key, password=PASSWORD),
        store(b"name", entity.key, entity.certificate, None, BestAvailableEncryption(PASSWORD)),
        *kept("certificates"),
    ]


def test_certificates_and_keys(credentials: list[bytes]) -> None:
    password = st.sampled_from([None, PASSWORD, b"another"])
    good = credentials[0]

    @LIMITS
    @given(data=changed(credentials) | st.binary(max_size=200), password=password)
    def certificates_and_keys(data: bytes, password: bytes | None) -> None:
        for fields in (
            {"certificates": data},
            {"certificates": data, "private_key": data},
            {"certificates": good, "private_key": data},
            {"certificates": good, "trusted_certificates": data},
        ):
            try:
                server_context_factory(
                    ServerTLSSocketOptions(**fields, private_key_password=password)
                )
            except ValueError:
                pass
        try:
            client_context_factory(TLSSocketOptions(trusted_certificates=data), "localhost")
        except ValueError:
            pass

    fuzz(certificates_and_keys)


def test_endpoint_strings() -> None:
    seeds = kept("strings")
    keys = sorted({line.split(b"=")[0] for seed in seeds for line in seed.split(b":") if line})
    made = st.lists(
        st.tuples(st.sampled_from(keys), st.binary(max_size=12)).map(b"=".join), max_size=4
    )

    @LIMITS
    @given(
        tls=st.booleans(),
        text=st.text(max_size=60)
        | changed(seeds).map(lambda data: data.decode("utf-8", "replace"))
        | made.map(lambda parts: b":".join(parts).decode("latin-1")),
    )
    def endpoint_strings(tls: bool, text: str) -> None:
        """As Twisted calls the plugins, which it takes long to look up."""
        for parse in (parse_client, parse_server):
            try:
                words, keys = split_string(text)
            except (ValueError, RuntimeError):
                # Twisted's own words for a key that is not ASCII, and a last backslash.
                return
            try:
                parse(reactor, tls, words, keys)
            except ValueError:
                pass

    fuzz(endpoint_strings)


LEAVES: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-1, 70000)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.timedeltas()
    | st.just(timedelta(0))
    | st.sampled_from([socket.AF_INET, socket.SOCK_DGRAM, socket.AF_UNIX, object(), len])
)
INNER = LEAVES | st.lists(LEAVES, max_size=3) | st.tuples(LEAVES, LEAVES)
ANYTHING: st.SearchStrategy[Any] = (
    INNER
    | st.lists(INNER, max_size=3)
    | st.tuples(INNER, INNER)
    | st.tuples(LEAVES, LEAVES, LEAVES)
    | st.dictionaries(st.text(max_size=3), LEAVES, max_size=2)
)


def test_option_values() -> None:
    fields = {
        cls: [field.name for field in attrs.fields(cls)]
        for cls in (SocketOptions, TLSSocketOptions, ServerTLSSocketOptions)
    }

    @LIMITS
    @given(data=st.data(), cls=st.sampled_from(sorted(fields, key=lambda cls: cls.__name__)))
    def option_values(data: Any, cls: Any) -> None:
        names = st.sampled_from(fields[cls])
        given_fields = data.draw(st.dictionaries(names, ANYTHING, min_size=1, max_size=3))
        try:
            made = cls(**given_fields)
        except (ValueError, TypeError):
            return
        assert made == made.replace(), made
        assert isinstance(repr(made), str)

    fuzz(option_values)


def test_proxy_headers() -> None:
    @LIMITS
    @given(changed(kept("headers")) | st.binary(max_size=300))
    def proxy_headers(data: bytes) -> None:
        for version in ("v1", "v2", "any"):
            try:
                header_end(data, version)
            except ProxyHeaderError:
                pass
        try:
            header = ProxyHeader.parse(data)
        except ProxyHeaderError:
            return
        assert ProxyHeader.parse(header.encode("v2")).source == header.source

    fuzz(proxy_headers)
