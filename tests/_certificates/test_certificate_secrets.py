"""Passwords of keys; what no message may show; and content that is nonsense."""

from __future__ import annotations

import base64
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.clocks import the_reactor
from tests.support.peers import (
    ANSWER,
    NAME,
    Entity,
    ask,
    der,
    key_bytes,
    make_entity,
    problem_of,
    serving,
    standard_server,
    store,
)
from twisted_netsock import (
    CertificateVerificationError,
    ServerTLSSocketOptions,
    TLSSocketOptions,
    client_context_factory,
    client_endpoint,
    server_context_factory,
)
from twisted_netsock._certificates import certificates

PASSWORD = b"correct-horse-battery-staple"
OTHER = b"incorrect-horse"

ENTITY = make_entity("the owner", NAME)

ENCRYPTED: dict[str, Callable[[Entity], dict[str, Any]]] = {
    "PKCS#8": lambda e: {
        "certificates": e.certificate,
        "private_key": key_bytes(e.key, password=PASSWORD),
    },
    "PKCS#8, DER": lambda e: {
        "certificates": e.certificate,
        "private_key": key_bytes(e.key, Encoding.DER, password=PASSWORD),
    },
    "traditional": lambda e: {
        "certificates": e.certificate,
        "private_key": key_bytes(e.key, form=PrivateFormat.TraditionalOpenSSL, password=PASSWORD),
    },
    "behind the certificate": lambda e: {
        "certificates": e.certificate_pem + key_bytes(e.key, password=PASSWORD)
    },
    "PKCS#12": lambda e: {"certificates": store(e, PASSWORD)},
    "PKCS#12 for the key": lambda e: {
        "certificates": e.certificate,
        "private_key": store(e, PASSWORD),
    },
}

OPEN: dict[str, Callable[[Entity], dict[str, Any]]] = {
    "PKCS#8": lambda e: {"certificates": e.certificate, "private_key": e.key_pem},
    "PKCS#8, DER": lambda e: {
        "certificates": e.certificate,
        "private_key": key_bytes(e.key, Encoding.DER),
    },
    "traditional": lambda e: {
        "certificates": e.certificate,
        "private_key": key_bytes(e.key, form=PrivateFormat.TraditionalOpenSSL),
    },
    "behind the certificate": lambda e: {"certificates": e.pem},
    "PKCS#12": lambda e: {"certificates": store(e)},
}


# Passwords


@pytest.mark.parametrize("form", ENCRYPTED)
def test_a_missing_password_is_asked_for(form):
    message = problem_of(**ENCRYPTED[form](ENTITY))
    assert "private_key_password" in message
    assert re.search("is encrypted|may be missing", message)


@pytest.mark.parametrize("form", ENCRYPTED)
def test_a_wrong_password_is_called_so(form):
    message = problem_of(**ENCRYPTED[form](ENTITY), private_key_password=OTHER)
    assert "private_key_password does not decrypt it" in message


@pytest.mark.parametrize("form", ENCRYPTED)
def test_an_empty_password_is_a_wrong_one(form):
    message = problem_of(**ENCRYPTED[form](ENTITY), private_key_password="")
    assert "private_key_password" in message
    assert "not encrypted" not in message


@pytest.mark.parametrize("form", OPEN)
def test_a_needless_password_is_refused(form):
    message = problem_of(**OPEN[form](ENTITY), private_key_password=PASSWORD)
    assert "private_key_password" in message


def test_a_password_is_for_the_key_and_not_for_the_certificates():
    """Certificates in the open beside an encrypted key are the usual case."""
    for source in (ENTITY.certificate_pem, der(ENTITY.certificate), store(ENTITY, key=False)):
        options = TLSSocketOptions(
            certificates=source,
            private_key=key_bytes(ENTITY.key, password=PASSWORD),
            private_key_password=PASSWORD,
        )
        client_context_factory(options, NAME)


# What no message may show


def secrets_of(entity: Entity) -> list[str]:
    """Return texts that would give something of the key away."""
    number = entity.key.private_numbers().private_value
    content = key_bytes(entity.key, Encoding.DER)
    lines = [
        line
        for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)
        for line in key_bytes(entity.key, form=form).decode().splitlines()
        if "---" not in line
    ]
    inner = content[36:68]
    return [*(line[:16] for line in lines), str(number), f"{number:x}", inner.hex(), repr(inner)]


def assert_hides(text: str, entity: Entity, *others: bytes) -> None:
    for secret in (*secrets_of(entity), *(other.decode() for other in others)):
        assert secret not in text


def _damaged(content: bytes) -> bytes:
    """Spoil the key where a parser notices late."""
    lines = content.splitlines()
    lines[-2] = lines[-2][:-8]
    return b"\n".join(lines)


TELLTALE: dict[str, Callable[[Entity], dict[str, Any]]] = {
    **{f"{form}, no password": make for form, make in ENCRYPTED.items()},
    **{
        f"{form}, wrong password": lambda e, make=make: {**make(e), "private_key_password": OTHER}
        for form, make in ENCRYPTED.items()
    },
    **{
        f"{form}, needless password": lambda e, make=make: {
            **make(e),
            "private_key_password": PASSWORD,
        }
        for form, make in OPEN.items()
    },
    "no certificate": lambda e: {"certificates": e.key_pem},
    "another certificate": lambda e: {
        "certificates": make_entity("other").certificate,
        "private_key": e.key_pem,
    },
    "another certificate, object": lambda e: {
        "certificates": make_entity("other").certificate,
        "private_key": e.key,
    },
    "damaged": lambda e: {"certificates": e.certificate, "private_key": _damaged(e.key_pem)},
    "damaged, behind the certificate": lambda e: {
        "certificates": e.certificate_pem + _damaged(e.key_pem)
    },
    "damaged, DER": lambda e: {
        "certificates": e.certificate,
        "private_key": key_bytes(e.key, Encoding.DER)[:-20],
    },
    "base64 alone": lambda e: {
        "certificates": e.certificate,
        "private_key": b"".join(e.key_pem.splitlines()[1:-1]),
    },
}


@pytest.mark.parametrize("case", TELLTALE)
def test_no_message_or_traceback_shows_anything_of_key_or_password(case):
    fields = TELLTALE[case](ENTITY)
    for make in (
        lambda: client_context_factory(TLSSocketOptions(**fields), NAME),
        lambda: server_context_factory(ServerTLSSocketOptions(**fields)),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        shown = "".join(traceback.format_exception(caught.value))
        assert_hides(f"{caught.value!r} {shown}", ENTITY, PASSWORD, OTHER)


@pytest.mark.parametrize("field", ["certificates", "private_key", "trusted_certificates"])
def test_content_given_as_text_is_refused_and_not_repeated(field):
    fields = {"certificates": ENTITY.certificate, field: ENTITY.key_pem.decode()}
    with pytest.raises(ValueError, match="pass bytes") as caught:
        TLSSocketOptions(**fields)
    assert_hides("".join(traceback.format_exception(caught.value)), ENTITY)


def test_no_record_endpoint_or_factory_shows_anything_of_key_or_password():
    for fields in (
        {**ENCRYPTED["PKCS#8"](ENTITY), "private_key_password": PASSWORD},
        {**ENCRYPTED["PKCS#12"](ENTITY), "private_key_password": PASSWORD},
        {"certificates": ENTITY.pem},
        {"certificates": ENTITY.certificate, "private_key": ENTITY.key},
    ):
        record = TLSSocketOptions(**fields)
        factories = (
            client_context_factory(record, NAME),
            server_context_factory(ServerTLSSocketOptions(**fields)),
        )
        endpoint = client_endpoint(the_reactor(), NAME, 443, record)
        for shown in (record, endpoint, *factories):
            assert_hides(f"{shown!r} {shown}", ENTITY, PASSWORD)


async def test_no_log_line_shows_anything_of_key_or_password(
    authority, other_authority, tmp_path, log_lines
):
    fields = {**ENCRYPTED["PKCS#8"](ENTITY), "private_key_password": PASSWORD}
    issued = authority.issue("127.0.0.1")
    for identity in (issued.pem, other_authority.issue("127.0.0.1").pem):
        options = authority.client_options(**fields)
        async with standard_server(tmp_path, identity) as server:
            endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
            if identity == issued.pem:
                assert await ask(endpoint) == ANSWER
            else:
                with pytest.raises(CertificateVerificationError) as caught:
                    await ask(endpoint)
                assert_hides("".join(traceback.format_exception(caught.value)), ENTITY, PASSWORD)
    async with serving(ServerTLSSocketOptions(**fields), greeting=None) as server:
        for trusted in (ENTITY.certificate, authority.certificate):
            options = TLSSocketOptions(trusted_certificates=trusted, sni=NAME)
            endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
            if trusted is ENTITY.certificate:
                assert await ask(endpoint) == ANSWER
            else:
                with pytest.raises(CertificateVerificationError):
                    await ask(endpoint)
    assert log_lines, "something was logged at all"
    assert_hides("\n".join(log_lines), ENTITY, PASSWORD)


# Spoiled keys

KEYS: dict[str, bytes] = {
    "PKCS#8": ENTITY.key_pem,
    "traditional": key_bytes(ENTITY.key, form=PrivateFormat.TraditionalOpenSSL),
    "Ed25519": key_bytes(ed25519.Ed25519PrivateKey.generate()),
    "RSA": key_bytes(rsa.generate_private_key(65537, 2048)),
    "encrypted": key_bytes(ENTITY.key, password=PASSWORD),
    "encrypted, traditional": key_bytes(
        ENTITY.key, form=PrivateFormat.TraditionalOpenSSL, password=PASSWORD
    ),
    "DER": key_bytes(ENTITY.key, Encoding.DER),
    "encrypted DER": key_bytes(ENTITY.key, Encoding.DER, password=PASSWORD),
    "PKCS#12": store(ENTITY),
    "encrypted PKCS#12": store(ENTITY, PASSWORD),
}

SPOILING: list[Callable[[bytes, int], bytes]] = [
    lambda key, place: key[:place],
    lambda key, place: key[place:],
    lambda key, place: key[:place] + b"\n\n" + key[place:],
    lambda key, place: key[:place] + b"\x80" + key[place:],
    lambda key, place: key[:place] + b": " + key[place:],
    lambda key, place: key[:place] + key[: max(place, 40)] + key[place:],
    lambda key, place: key + key,
    lambda key, place: b"  " + key.replace(b"\n", b"\n  "),
    lambda key, place: key.replace(b"\n", b"\n\n"),
    lambda key, place: key.replace(b"\n", b"\r"),
    lambda key, place: key.replace(b"\n", b""),
    lambda key, place: key.replace(b"\n", b"\\n"),
    lambda key, place: key.replace(b"PRIVATE KEY", b"CERTIFICATE"),
    lambda key, place: key.replace(b"-----BEGIN", b"-----BEGIN CERTIFICATE-----\n-----BEGIN"),
    lambda key, place: key.replace(b"-----END", b"----END"),
    lambda key, place: b"\xef\xbb\xbf" + key,
    lambda key, place: key.decode("latin-1").encode("utf-16"),
    lambda key, place: base64.b64encode(key),
    lambda key, place: base64.encodebytes(key),
    lambda key, place: key.hex().encode(),
    lambda key, place: b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(key)
    + b"-----END PRIVATE KEY-----\n",
    lambda key, place: b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(key)
    + b"-----END CERTIFICATE-----\n",
]  # fmt: skip

_SHOWN = 8


def pieces(content: bytes) -> set[str]:
    """Return every eight bytes of *content*, as they are written in one way or another."""
    dense = bytes(each for each in content if each not in b"\r\n \0")
    found: set[str] = set()
    for text in {content, dense, *re.findall(rb"[A-Za-z0-9+/=]{40,}", dense)}:
        parts = {text[at : at + _SHOWN] for at in range(len(text) - _SHOWN + 1)}
        found |= {part.hex() for part in parts}
        found |= {repr(part)[2:-1] for part in parts if not _ours(part)}
    return found


def _ours(part: bytes) -> bool:
    """Return whether *part* is of the words around a key, which say nothing."""
    return b"---" in part or any(
        part in words
        for words in (
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----BEGIN CERTIFICATE-----BEGIN RSA PRIVATE KEY",
            b"-----END PRIVATE KEY----END CERTIFICATE----END EC PRIVATE KEY",
            b"Proc-Type: 4,ENCRYPTED",
            b"DEK-Info: AES-256-CBC,",
        )
    )


def shown_by(error: BaseException | None) -> str:
    """Return all that an error tells, with those that it comes from."""
    shown = []
    while error is not None:
        shown += [str(error), repr(error), repr(error.args), *traceback.format_exception(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(shown)


@given(
    st.sampled_from(sorted(KEYS)),
    st.sampled_from(SPOILING),
    st.integers(0, 1700),
    st.sampled_from([None, OTHER, PASSWORD]),
)
@settings(deadline=None, max_examples=250)
def test_an_error_about_a_spoiled_key_shows_none_of_it(kind, spoil, place, password):
    key = KEYS[kind]
    content = spoil(key, place % len(key))
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        for source in filter(None, (content, file.name)):
            for fields in (
                {"certificates": source},
                {"certificates": ENTITY.certificate, "private_key": source},
                {"certificates": [ENTITY.certificate_pem, source]},
                {"certificates": ENTITY.pem, "trusted_certificates": source},
            ):
                error = raised(password=password, **fields)
                shown = shown_by(error)
                for piece in pieces(content) if shown else ():
                    assert piece not in shown


def raised(*, password: bytes | None, **fields: Any) -> BaseException | None:
    """Return the error of a server with these *fields*, if there is one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server_context_factory(ServerTLSSocketOptions(**fields, private_key_password=password))
    except ValueError as error:
        return error
    return None


@pytest.mark.parametrize("encode", [base64.b64encode, lambda key: key.hex().encode()])
def test_an_encoded_key_given_as_text_is_refused_and_not_repeated(encode):
    text = encode(key_bytes(ENTITY.key, Encoding.DER)).decode()
    for field in ("certificates", "private_key", "trusted_certificates"):
        with pytest.raises(ValueError, match="pass bytes") as caught:
            TLSSocketOptions(**{"certificates": ENTITY.certificate, field: text})
        assert text[:12] not in shown_by(caught.value)


# Nonsense


def _try_everywhere(content: bytes) -> None:
    """Use *content* for every field, on both sides; only a ValueError may come of it."""
    for record, make in (
        (TLSSocketOptions, lambda options: client_context_factory(options, NAME)),
        (ServerTLSSocketOptions, server_context_factory),
    ):
        for fields in (
            {"certificates": content},
            {"certificates": content, "private_key": ENTITY.key},
            {"certificates": content, "private_key_password": PASSWORD},
            {"certificates": ENTITY.certificate, "private_key": content},
            {
                "certificates": ENTITY.certificate,
                "private_key": content,
                "private_key_password": PASSWORD,
            },
            {"certificates": ENTITY.pem, "trusted_certificates": content},
        ):
            try:
                with warnings.catch_warnings():
                    # What cryptography thinks of odd certificates is not our subject.
                    warnings.simplefilter("ignore")
                    make(record(**fields))
            except ValueError as error:
                assert str(error)  # noqa: PT017 - not every content is an error


_MARKS = st.sampled_from(
    [
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\n",
        b"-----END PRIVATE KEY-----\n",
        b"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n",
        b"-----END EC PRIVATE KEY-----\n",
        ENTITY.certificate_pem,
        ENTITY.key_pem,
    ]
)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=60)
def test_any_bytes_give_a_value_error_at_worst(content):
    _try_everywhere(content)


@given(st.lists(_MARKS | st.binary(max_size=40), max_size=8).map(b"".join))
@settings(deadline=None, max_examples=80)
def test_anything_that_looks_like_pem_gives_a_value_error_at_worst(content):
    _try_everywhere(content)


_GOOD = [
    der(ENTITY.certificate),
    ENTITY.certificate_pem,
    ENTITY.key_pem,
    key_bytes(ENTITY.key, Encoding.DER),
    key_bytes(ENTITY.key, Encoding.DER, PrivateFormat.TraditionalOpenSSL),
    ENTITY.pem,
]


@st.composite
def spoiled(draw: Any) -> bytes:
    """Return something good with a few bytes changed, and perhaps its end cut off."""
    content = bytearray(draw(st.sampled_from(_GOOD)))
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(1, len(content)))] if draw(st.booleans()) else content)


@given(spoiled())
@settings(deadline=None, max_examples=120)
def test_anything_spoiled_gives_a_value_error_at_worst(content):
    _try_everywhere(content)


@pytest.mark.parametrize("length", [1, 2, 20, 100, 200])
def test_a_pkcs12_that_is_cut_off_is_a_value_error(length):
    whole = store(ENTITY)
    assert "certificates" in problem_of(certificates=whole[:-length])


def test_what_is_kept_of_a_file_while_it_is_read_shows_no_key():
    """Failures may be printed with the values of local variables."""
    content = key_bytes(ENTITY.key, password=PASSWORD)
    found = certificates._load("private_key", content, PASSWORD, want_key=True)
    assert found.key_pem == (content.strip(), PASSWORD)
    for kept in (found, *certificates._blocks("private_key", content)):
        assert "BEGIN" not in repr(kept)
        assert "horse" not in repr(kept)
