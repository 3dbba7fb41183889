"""What a TLS listener does with slow and hostile clients, and what its verifier is told."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent

from tests.support.clocks import turns, until
from tests.support.peers import make_hierarchy
from tests.support.streams import (
    TLSStreams,
    failure_of,
    finished,
    python_client_context,
    read_exactly,
    soon,
    together,
)
from twisted_netsock import (
    CertificateVerificationError,
    TLSError,
    TLSSocket,
    VerifyResult,
    make_client_tls_socket,
    make_server_tls_socket,
)
from twisted_netsock.testing import CertificateAuthority

UNTRUSTED_ROOT, EXPIRED = 19, 10


class SlowClient:
    """A client of the standard library that the test carries from step to step."""

    def __init__(self, authority: CertificateAuthority, address: tuple[Any, ...]) -> None:
        context = python_client_context(authority)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.plain = socket.create_connection(address, timeout=5)
        self.plain.setblocking(False)

    def advance(self) -> bytes:
        """Take what has come, and return what is to be sent."""
        with contextlib.suppress(BlockingIOError):
            self._incoming.write(self.plain.recv(65536))
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def send(self, data: bytes) -> None:
        self._tls.write(data)
        self.plain.sendall(self._outgoing.read())


@asynccontextmanager
async def listening(
    authority: CertificateAuthority, **fields: Any
) -> AsyncIterator[tuple[TLSSocket, Deferred[Any]]]:
    """Give a listener, and an accept that waits and is given up at the end."""
    options = authority.server_options(**fields)
    async with await make_server_tls_socket("127.0.0.1", 0, options) as listener:
        accepting: Any = listener.accept()
        yield listener, accepting
        if not accepting.called:
            accepting.cancel()
            assert failure_of(accepting) is CancelledError


async def test_a_client_that_sends_byte_by_byte_gets_in_after_the_others(
    authority: CertificateAuthority,
) -> None:
    streams = TLSStreams(authority)
    async with listening(authority) as (listener, accepting):
        slow = SlowClient(authority, listener.getsockname())
        with slow.plain:
            hello = slow.advance()
            for number in range(len(hello) - 1):
                slow.plain.sendall(hello[number : number + 1])
                if number % 100 == 0:
                    await turns(1)
            assert not accepting.called
            # Whoever comes later and is done sooner is taken first.
            client = await soon(streams.connect(listener))
            accepted = await soon(accepting)
            assert accepted.getpeername() == client.getsockname()
            waiting: Any = listener.accept()
            slow.plain.sendall(hello[-1:])
            for _ in range(100):
                await turns(1)
                for byte in slow.advance():
                    slow.plain.sendall(bytes([byte]))
                if waiting.called:
                    break
            late = await soon(waiting)
            slow.send(b"at last")
            assert await read_exactly(late, 7) == b"at last"
            assert listener.failed_handshakes == 0
            for each in (client, accepted, late):
                each.abort()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_in_the_middle_costs_itself_alone(
    authority: CertificateAuthority, reset: bool
) -> None:
    streams = TLSStreams(authority)
    async with listening(authority) as (listener, accepting):
        for step in range(2):
            leaver = SlowClient(authority, listener.getsockname())
            with leaver.plain as plain:
                plain.sendall(leaver.advance())
                if step:
                    # Now the server waits for the client's last word.
                    await until(lambda leaver=leaver: leaver.advance())
                if reset:
                    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await until(lambda step=step: listener.failed_handshakes == step + 1)
            assert not accepting.called
        client = await soon(streams.connect(listener))
        (await soon(accepting)).abort()
        client.abort()


# The verifier of a server


class Verifier:
    """Notes what it is told of clients' certificates, and answers."""

    def __init__(self, answer: Any = None) -> None:
        self.told: list[tuple[int, VerifyResult, x509.Certificate]] = []
        self._answer = answer

    def __call__(self, depth: int, result: VerifyResult, certificate: x509.Certificate) -> Any:
        self.told.append((depth, result, certificate))
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


VERSIONS = pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])


async def refusal_of(listener: TLSSocket, authority: CertificateAuthority, **fields: Any) -> Any:
    """Connect, and return the error that the server's refusal comes to here."""
    options = authority.client_options(**fields)
    try:
        client = await soon(make_client_tls_socket(*listener.getsockname(), options))
    except TLSError as error:
        return error
    with pytest.raises(TLSError) as caught:
        await soon(client.recv(1))
    client.abort()
    return caught.value


@VERSIONS
async def test_it_is_given_depth_verdict_and_certificate(
    authority: CertificateAuthority, version: str
) -> None:
    chain, verifier = make_hierarchy(), Verifier()
    asking = {
        "trusted_certificates": chain.root.certificate,
        "client_certificate_required": True,
        "certificate_verifier": verifier,
    }
    async with listening(authority, **asking) as (listener, accepting):
        mine = authority.client_options(certificates=chain.leaf.pem, maximum_version=version)
        client, accepted = await together(
            finished(make_client_tls_socket(*listener.getsockname(), mine)), finished(accepting)
        )
        expected = [chain.root, chain.middle, chain.leaf]
        assert [(depth, certificate) for depth, _, certificate in verifier.told] == [
            (2 - number, each.certificate) for number, each in enumerate(expected)
        ]
        assert {(result.code, result.text) for _, result, _ in verifier.told} == {(0, "ok")}
        client.abort()
        accepted.abort()


@VERSIONS
@pytest.mark.parametrize(
    ("answer", "faults", "code", "alert"),
    [
        (None, {"expired": True}, EXPIRED, "certificate expired"),
        (None, {"self_signed": True}, 18, "unknown ca"),
        # OpenSSL has no code for the verifier's own reasons.
        (False, {}, 0, "bad certificate"),
        ("yes", {}, 0, "bad certificate"),
    ],
)
async def test_it_is_given_what_is_wrong_and_the_client_is_refused(
    authority: CertificateAuthority,
    version: str,
    answer: Any,
    faults: dict[str, bool],
    code: int,
    alert: str,
    log_lines: list[str],
) -> None:
    verifier = Verifier(answer)
    issued = authority.issue("a client", **faults)
    asking = {
        "trusted_certificates": authority.certificate,
        "certificate_verifier": verifier,
    }
    async with listening(authority, **asking) as (listener, accepting):
        error = await refusal_of(
            listener, authority, certificates=issued.pem, maximum_version=version
        )
        assert error.alert == alert
        assert verifier.told[-1][1].code == code
        await until(lambda: listener.failed_handshakes == 1)
        assert not accepting.called
        assert any("TLS handshake with 127.0.0.1:" in line for line in log_lines)


@VERSIONS
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
async def test_its_exception_is_a_refusal_that_is_logged(
    authority: CertificateAuthority,
    version: str,
    kind: type[BaseException],
    logged_errors: list[LogEvent],
) -> None:
    asking = {
        "trusted_certificates": authority.certificate,
        "certificate_verifier": Verifier(kind("of the verifier")),
    }
    identity = authority.issue("a client").pem
    async with listening(authority, **asking) as (listener, accepting):
        await refusal_of(listener, authority, certificates=identity, maximum_version=version)
        await until(lambda: listener.failed_handshakes == 1)
        [event] = logged_errors
        assert event["log_failure"].type is kind
        logged_errors.clear()
        # Nothing of it is left for the next one, who shows no certificate.
        client = await soon(
            make_client_tls_socket(*listener.getsockname(), authority.client_options())
        )
        (await soon(accepting)).abort()
        client.abort()


async def test_the_error_of_the_handshake_says_who_refused(
    authority: CertificateAuthority, other_authority: CertificateAuthority
) -> None:
    asking = {"trusted_certificates": authority.certificate, "handshake": False}
    async with listening(authority, **asking) as (listener, accepting):
        mine = authority.client_options(certificates=other_authority.issue("a stranger").pem)
        connecting = make_client_tls_socket(*listener.getsockname(), mine)
        accepted = await soon(accepting)
        with pytest.raises(CertificateVerificationError) as caught:
            await soon(accepted.handshake())
        assert caught.value.certificate.subject.rfc4514_string() == "CN=a stranger"
        assert caught.value.verify_code in {20, 21, UNTRUSTED_ROOT}
        (await soon(connecting)).abort()
        accepted.abort()
