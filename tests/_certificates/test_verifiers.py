"""What a certificate_verifier is asked, and what its answers do."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS

from tests.support.clocks import the_reactor
from tests.support.loopback import resolving
from tests.support.peers import (
    ANSWER,
    Entity,
    ask,
    make_entity,
    make_hierarchy,
    perform_handshake,
    standard_server,
)
from twisted_netsock import (
    CertificateVerificationError,
    TLSSocketOptions,
    VerifyResult,
    client_context_factory,
    client_endpoint,
    make_client_tls_socket,
    server_context_factory,
)
from twisted_netsock._certificates.verification import Verification
from twisted_netsock.testing import CertificateAuthority

NAME = "service.example"
EXPIRED = 10
UNKNOWN_ISSUER = 20
UNVERIFIED_LEAF = 21
WRONG_NAME = 62
WRONG_ADDRESS = 64


async def connect(
    directory: Path, identity: bytes, options: TLSSocketOptions, node: str = NAME
) -> bytes:
    """Ask a server that shows *identity*, as *node*; it may learn nothing if this fails."""
    async with standard_server(directory, identity) as server:
        with resolving({NAME: ["127.0.0.1"]}):
            try:
                return await ask(client_endpoint(the_reactor(), node, server.port, options))
            except CertificateVerificationError:
                assert (await server.outcome).data == b""
                raise


class Verifier:
    """Remembers what it was asked, and answers from a table of codes."""

    def __init__(self, answers: dict[int, Any] | None = None) -> None:
        self.answers = answers or {}
        self.asked: list[tuple[int, int, x509.Certificate]] = []

    def __call__(self, depth: int, result: VerifyResult, certificate: x509.Certificate) -> Any:
        assert isinstance(result, VerifyResult)
        assert isinstance(result.text, str)
        assert isinstance(certificate, x509.Certificate)
        self.asked.append((depth, result.code, certificate))
        return self.answers.get(result.code)

    @property
    def codes(self) -> list[tuple[int, int]]:
        return [(depth, code) for depth, code, _ in self.asked]


# What it is asked


async def test_a_good_chain_is_passed_from_root_to_leaf(tmp_path):
    chain = make_hierarchy(NAME)
    verifier = Verifier()
    options = TLSSocketOptions(
        trusted_certificates=chain.root.certificate, certificate_verifier=verifier
    )
    assert await connect(tmp_path, chain.leaf.pem, options) == ANSWER
    assert verifier.asked == [
        (2, 0, chain.root.certificate),
        (1, 0, chain.middle.certificate),
        (0, 0, chain.leaf.certificate),
    ]


async def test_an_error_is_passed_with_its_code_and_text_and_none_keeps_it(authority, tmp_path):
    texts = []

    def verifier(depth: int, result: VerifyResult, certificate: x509.Certificate) -> None:
        texts.append(result)

    options = authority.client_options(certificate_verifier=verifier)
    with pytest.raises(CertificateVerificationError) as caught:
        await connect(tmp_path, authority.issue(NAME, expired=True).pem, options)
    assert texts[-1].code == caught.value.verify_code == EXPIRED
    assert texts[-1].text == caught.value.reason
    assert "expired" in texts[-1].text


@pytest.mark.parametrize(("node", "code"), [(NAME, WRONG_NAME), ("127.0.0.1", WRONG_ADDRESS)])
async def test_a_wrong_name_is_passed_at_depth_0(node, code, authority, tmp_path):
    issued = authority.issue("other.example")
    verifier = Verifier()
    options = authority.client_options(certificate_verifier=verifier)
    with pytest.raises(CertificateVerificationError) as caught:
        await connect(tmp_path, issued.pem, options, node)
    assert verifier.asked[-1] == (0, code, issued.certificate)
    assert caught.value.verify_code == code
    assert node in caught.value.reason


async def test_several_records_may_share_a_verifier_which_is_called_for_each_connection(
    authority, tmp_path
):
    verifier = Verifier()
    options = authority.client_options(certificate_verifier=verifier)
    for _ in range(2):
        assert await connect(tmp_path, authority.issue(NAME).pem, options) == ANSWER
    assert verifier.codes == [(1, 0), (0, 0)] * 2


# What its answers do


async def test_false_refuses_a_good_certificate(authority, tmp_path):
    options = authority.client_options(certificate_verifier=lambda *_: False)
    with pytest.raises(CertificateVerificationError, match="certificate_verifier"):
        await connect(tmp_path, authority.issue(NAME).pem, options)


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_false_at_any_depth_refuses(depth, tmp_path):
    chain = make_hierarchy(NAME)
    options = TLSSocketOptions(
        trusted_certificates=chain.root.certificate,
        certificate_verifier=lambda at, *_: False if at == depth else None,
    )
    with pytest.raises(CertificateVerificationError) as caught:
        await connect(tmp_path, chain.leaf.pem, options)
    assert caught.value.depth == depth


@pytest.mark.parametrize("answer", [1, "yes", b"\1", [True], object(), 0, ""])
@pytest.mark.parametrize("expired", [False, True])
async def test_an_answer_that_is_neither_true_nor_none_refuses(
    answer, expired, authority, tmp_path
):
    options = authority.client_options(certificate_verifier=lambda *_: answer)
    with pytest.raises(CertificateVerificationError):
        await connect(tmp_path, authority.issue(NAME, expired=expired).pem, options)


@pytest.mark.parametrize(
    ("code", "names", "faults"),
    [
        (EXPIRED, [NAME], {"expired": True}),
        (WRONG_NAME, ["other.example"], {}),
        (WRONG_NAME, [NAME], {"malformed_names": True}),
        (WRONG_NAME, [], {"common_name": NAME}),
    ],
)
async def test_true_accepts_one_error(code, names, faults, authority, tmp_path):
    verifier = Verifier({code: True})
    options = authority.client_options(certificate_verifier=verifier)
    assert await connect(tmp_path, authority.issue(*names, **faults).pem, options) == ANSWER
    assert (0, code) in verifier.codes


async def test_true_for_one_error_does_not_accept_the_next(authority, other_authority, tmp_path):
    expired_elsewhere = authority.issue("other.example", expired=True).pem
    for accepted, left in ((EXPIRED, WRONG_NAME), (WRONG_NAME, EXPIRED)):
        options = authority.client_options(certificate_verifier=Verifier({accepted: True}))
        with pytest.raises(CertificateVerificationError) as caught:
            await connect(tmp_path, expired_elsewhere, options)
        assert caught.value.verify_code == left
    options = authority.client_options(
        certificate_verifier=Verifier({EXPIRED: True, WRONG_NAME: True})
    )
    assert await connect(tmp_path, expired_elsewhere, options) == ANSWER


async def test_an_unknown_issuer_that_is_accepted_still_has_to_have_the_name(
    authority, other_authority, tmp_path
):
    unknown = {UNKNOWN_ISSUER: True, UNVERIFIED_LEAF: True}
    options = authority.client_options(certificate_verifier=Verifier(unknown))
    assert await connect(tmp_path, other_authority.issue(NAME).pem, options) == ANSWER
    with pytest.raises(CertificateVerificationError) as caught:
        await connect(tmp_path, other_authority.issue("other.example").pem, options)
    assert caught.value.verify_code == WRONG_NAME


async def test_true_for_good_certificates_alone_still_has_the_name_compared(authority, tmp_path):
    options = authority.client_options(certificate_verifier=Verifier({0: True}))
    with pytest.raises(CertificateVerificationError) as caught:
        await connect(tmp_path, authority.issue("other.example").pem, options)
    assert caught.value.verify_code == WRONG_NAME


# Exceptions


class Outlandish(BaseException):
    """No Exception."""


def raising(error: BaseException) -> Callable[..., Any]:
    def verifier(*_: object) -> Any:
        raise error

    return verifier


@pytest.mark.parametrize(
    "kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, Outlandish]
)
@pytest.mark.parametrize("expired", [False, True])
async def test_an_exception_refuses_and_is_logged(
    kind, expired, authority, tmp_path, logged_errors
):
    options = authority.client_options(certificate_verifier=raising(kind("of the verifier")))
    with pytest.raises(CertificateVerificationError, match=kind.__name__):
        await connect(tmp_path, authority.issue(NAME, expired=expired).pem, options)
    [event] = logged_errors
    assert event["log_failure"].type is kind
    logged_errors.clear()


@pytest.mark.parametrize("code", [0, 20])
@pytest.mark.parametrize("host", [NAME, None])
def test_a_certificate_that_cannot_be_read_is_refused_without_a_traceback(code, host, authority):
    encoded = authority.issue(NAME).certificate.public_bytes(serialization.Encoding.DER)
    # Version 10, where 2 stands for X.509 version 3.
    odd = encoded.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09", 1)
    for verifier in (None, lambda *_: True):
        verification = Verification(host, verifier)
        assert not verification.judge(odd, code, 0)
        assert "InvalidVersion" in str(verification.failure)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, Outlandish])
async def test_an_exception_refuses_through_the_tls_of_twisted_too(
    kind, authority, tmp_path, logged_errors
):
    options = authority.client_options(certificate_verifier=raising(kind()))
    factory = client_context_factory(options, NAME)
    async with standard_server(tmp_path, authority.issue(NAME).pem) as server:
        plain = TCP4ClientEndpoint(the_reactor(), "127.0.0.1", server.port)
        with pytest.raises(SSL.Error, match="certificate verify failed"):
            await ask(wrapClientTLS(factory, plain))
        assert (await server.outcome).data == b""
    assert [event["log_failure"].type for event in logged_errors] == [kind]
    logged_errors.clear()


async def test_an_exception_leaves_nothing_for_the_next_connection(
    authority, tmp_path, logged_errors
):
    errors: list[BaseException] = [ValueError(), KeyboardInterrupt()]

    def verifier(*_: object) -> None:
        if errors:
            raise errors.pop()

    options = authority.client_options(certificate_verifier=verifier)
    identity = authority.issue(NAME).pem
    for _ in range(2):
        with pytest.raises(CertificateVerificationError):
            await connect(tmp_path, identity, options)
    assert await connect(tmp_path, identity, options) == ANSWER
    assert len(logged_errors) == 2
    logged_errors.clear()


# Uses


def spki_digest(certificate: x509.Certificate) -> str:
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(key).hexdigest()


def pinning(pins: set[str]) -> Callable[..., bool | None]:
    def verifier(depth: int, result: VerifyResult, certificate: x509.Certificate) -> bool | None:
        if depth > 0:
            return None
        return None if spki_digest(certificate) in pins else False

    return verifier


async def test_pins_refuse_other_keys_and_overrule_nothing_else(authority, tmp_path):
    pinned = authority.issue(NAME)
    options = authority.client_options(
        certificate_verifier=pinning({spki_digest(pinned.certificate)})
    )
    assert await connect(tmp_path, pinned.pem, options) == ANSWER
    with pytest.raises(CertificateVerificationError, match="certificate_verifier"):
        await connect(tmp_path, authority.issue(NAME).pem, options)
    stranger: Entity = make_entity("stranger", NAME, key=pinned.private_key)
    with pytest.raises(CertificateVerificationError) as caught:
        await connect(tmp_path, stranger.pem, options)
    assert caught.value.verify_code == 18, "the right key does not make up for the chain"
    elsewhere: Entity = authority.issue("other.example")
    options = options.replace(certificate_verifier=pinning({spki_digest(elsewhere.certificate)}))
    with pytest.raises(CertificateVerificationError) as caught:
        await connect(tmp_path, elsewhere.pem, options)
    assert caught.value.verify_code == WRONG_NAME


@dataclasses.dataclass
class Counting:
    """A callable that compares by value, and so has no hash."""

    calls: int = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1


async def test_any_callable_serves_as_verifier(authority, tmp_path):
    counting = Counting()
    options = authority.client_options(certificate_verifier=counting)
    assert await connect(tmp_path, authority.issue(NAME).pem, options) == ANSWER
    assert counting.calls == 2


async def test_two_verifiers_that_are_equal_are_asked_each_for_its_own_connections(
    authority, tmp_path
):
    class Equal:
        def __init__(self) -> None:
            self.calls = 0

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 1

        def __call__(self, *_: object) -> None:
            self.calls += 1

    first, second = Equal(), Equal()
    for verifier in (first, second, second):
        options = authority.client_options(certificate_verifier=verifier)
        assert await connect(tmp_path, authority.issue(NAME).pem, options) == ANSWER
    assert (first.calls, second.calls) == (2, 4)


class Agreeable:
    """Equal to whatever it is compared with, and refuses everybody."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1

    def __call__(self, *_: object) -> bool:
        return False


@pytest.mark.parametrize("before", [False, None])
def test_a_verifier_is_asked_whatever_it_claims_to_be_equal_to(before):
    authority = CertificateAuthority("one whose records no other test has used")
    server = server_context_factory(authority.server_options(NAME))
    options = authority.client_options(certificate_verifier=before)
    client = client_context_factory(options, NAME).connection(None)
    perform_handshake(client, server.connection(None))
    options = authority.client_options(certificate_verifier=Agreeable())
    client = client_context_factory(options, NAME).connection(None)
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        perform_handshake(client, server.connection(None))


# No verification


@pytest.mark.parametrize(
    "faults", [{"expired": True}, {"self_signed": True}, {"malformed_names": True}, {}]
)
async def test_without_verification_anybody_is_believed_with_a_warning(
    faults, other_authority, tmp_path, log_lines
):
    options = TLSSocketOptions(certificate_verifier=False)
    async with standard_server(
        tmp_path, other_authority.issue("other.example", **faults).pem
    ) as server:
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
        assert await ask(endpoint) == ANSWER
    assert "UNVERIFIED" in repr(options)
    assert "UNVERIFIED" in repr(endpoint)
    assert [line for line in log_lines if "UNVERIFIED" in line and "127.0.0.1" in line]


async def test_each_start_without_verification_warns(other_authority, tmp_path, log_lines):
    options = TLSSocketOptions(certificate_verifier=False)
    for count in (1, 2):
        async with standard_server(tmp_path, other_authority.issue("a.example").pem) as server:
            connection = await make_client_tls_socket("127.0.0.1", server.port, options)
            await connection.close()
        assert len([line for line in log_lines if "UNVERIFIED" in line]) == count


async def test_with_verification_nothing_says_unverified(authority, tmp_path, log_lines):
    options = authority.client_options(certificate_verifier=Verifier())
    assert await connect(tmp_path, authority.issue(NAME).pem, options) == ANSWER
    assert "UNVERIFIED" not in repr(options)
    assert not [line for line in log_lines if "UNVERIFIED" in line]


def test_without_a_node_there_is_nothing_to_verify(authority):
    with pytest.raises(ValueError, match="node"):
        client_context_factory(authority.client_options(), None)
    named = client_context_factory(authority.client_options(sni=NAME), None)
    assert NAME in repr(named)
    unverified = TLSSocketOptions(certificate_verifier=False)
    assert "UNVERIFIED" in repr(client_context_factory(unverified, None))
