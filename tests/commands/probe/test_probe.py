"""What ``netsock probe`` finds of a name with several addresses, on the reactor."""

from __future__ import annotations

import errno
import socket
from datetime import timedelta
from typing import Any, Self

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol

from tests.support.clocks import until
from tests.support.loopback import one_port, resolving
from twisted_netsock import server_endpoint
from twisted_netsock.addresses import SocketAddress
from twisted_netsock.commands._common.outcomes import Outcome, explain, outcome_of
from twisted_netsock.commands._common.targets import Target, parse_target
from twisted_netsock.commands._common.text import Style, printable
from twisted_netsock.commands.probe.report import as_json, as_text
from twisted_netsock.commands.probe.run import AddressReport, Report, Request, probe
from twisted_netsock.errors import (
    CertificateVerificationError,
    HostNotFoundError,
    SocketConnectionError,
    SocketConnectionLostError,
    SocketConnectionRefusedError,
    SocketConnectionTimeoutError,
    SocketReadTimeoutError,
    TLSHandshakeError,
    TLSTruncatedError,
)

pytestmark = pytest.mark.once

NAME = "name.invalid"


def request(authority: Any, port: int, **changes: Any) -> Request:
    options = authority.client_options(sni="localhost")
    return Request(Target(NAME, port), options, timedelta(seconds=5), **changes)


class Tls:
    """Our own endpoint, on some addresses of one port."""

    def __init__(self, authority: Any) -> None:
        self._options = authority.server_options("localhost")
        self._ports: list[Any] = []

    async def listen(self, host: str, port: int) -> int:
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        listening = await server_endpoint(reactor, host, port, self._options).listen(factory)
        self._ports.append(listening)
        return listening.getHost().port

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for port in self._ports:
            await port.stopListening()


async def test_every_address_is_probed_and_reported_in_its_order(authority):
    addresses = [f"127.0.0.{number}" for number in (3, 1, 4, 2)]
    async with Tls(authority) as tls:
        port = await tls.listen("127.0.0.1", 0)
        await tls.listen("127.0.0.2", port)
        with resolving({NAME: addresses}):
            report = await probe(reactor, request(authority, port))
    assert [each.address.host for each in report.addresses] == addresses
    refused, good = Outcome.UNREACHABLE, Outcome.OK
    assert [each.outcome for each in report.addresses] == [refused, good, refused, good]
    assert report.outcome == Outcome.UNREACHABLE
    text = as_text(report, Style(False))
    assert text.count("verified, ") == 2
    # The second certificate is the same, and not written twice.
    assert f"127.0.0.2:{port}  verified, 29 days left, as 127.0.0.1:{port}\n" in text
    assert f"as that of 127.0.0.1:{port}" in as_text(report, Style(False), verbose=True)
    # It is told once, also where something else differs.
    report.addresses[3].group = "another"
    text = as_text(report, Style(False))
    assert f"  chain       as that of 127.0.0.1:{port}\n" in text
    assert text.count("SHA-256") == 1
    assert text.endswith("\nUNREACHABLE: connection refused\n")


async def test_addresses_are_probed_side_by_side(authority):
    """All of them are connected before any has answered."""
    addresses = [f"127.0.0.{number}" for number in range(1, 6)]
    with one_port(*addresses) as listeners, resolving({NAME: addresses}):
        for each in listeners:
            each.listen()
            each.setblocking(False)
        port = listeners[0].getsockname()[1]
        running = Deferred.fromCoroutine(probe(reactor, request(authority, port)))
        accepted: list[socket.socket] = []

        def accept_all() -> bool:
            for each in listeners[len(accepted) :]:
                try:
                    accepted.append(each.accept()[0])
                except BlockingIOError:
                    return False
            return True

        await until(accept_all)
        for each in accepted:
            each.close()
        report = await running
    assert {each.outcome for each in report.addresses} == {Outcome.TLS}


@pytest.mark.parametrize("turns_before", [0, 20])
async def test_cancelling_leaves_nothing_behind(turns_before, authority):
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        resolving({NAME: ["127.0.0.1"] * 1}),
    ):
        running = Deferred.fromCoroutine(probe(reactor, request(authority, mute.getsockname()[1])))
        for _ in range(turns_before):
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.001, waiting.callback, None)
            await waiting
        running.cancel()
        with pytest.raises(CancelledError):
            await running


def report_of(*found: tuple[Outcome, bool]) -> Report:
    target = Request(Target("host", 443), None, timedelta(seconds=1))  # type: ignore[arg-type]
    address = SocketAddress(("127.0.0.1", 443))
    return Report(
        target, addresses=[AddressReport(address, each, no_route=away) for each, away in found]
    )


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        ([(Outcome.OK, False), (Outcome.UNVERIFIED, False), (Outcome.TLS, False)], 6),
        ([(Outcome.OK, False), (Outcome.TLS, False), (Outcome.UNREACHABLE, False)], 5),
        ([(Outcome.EXPIRING, False), (Outcome.UNREACHABLE, False)], 4),
        ([(Outcome.OK, False), (Outcome.EXPIRING, False)], 7),
        ([(Outcome.OK, False), (Outcome.UNREACHABLE, True)], 0),
        ([(Outcome.UNREACHABLE, True)], 4),
    ],
)
def test_the_worst_address_decides_except_where_there_is_no_way(found, outcome):
    assert report_of(*found).outcome == outcome


def test_an_empty_report_of_a_failure_is_written_too():
    report = report_of()
    report.error = HostNotFoundError("host", 443)
    report.request = Request(Target("host", 443), Any, timedelta(seconds=1))
    assert as_text(report_with_options(report), Style(False)).endswith(
        "NOT FOUND: cannot look up 'host', service 443: Name or service not known\n"
    )
    assert '"outcome": "not_found"' in as_json(report_with_options(report))


def report_with_options(report: Report) -> Report:
    from twisted_netsock import TLSSocketOptions

    report.request = Request(Target("host", 443), TLSSocketOptions(), timedelta(seconds=1))
    return report


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (HostNotFoundError("x", 1), 3, "cannot look up 'x', service 1: Name or service not known"),
        (SocketConnectionRefusedError(), 4, "the connection was refused"),
        (SocketConnectionTimeoutError("look-up"), 3, "timed out during the look-up"),
        (SocketConnectionTimeoutError("connect"), 4, "timed out during the connect"),
        (SocketConnectionTimeoutError("handshake"), 5, "timed out during the handshake"),
        (SocketConnectionError(errno=errno.ENETUNREACH), 4, "network is unreachable"),
        (TLSHandshakeError("unknown ca", "x"), 5, "alert from the peer: unknown ca"),
        (TLSHandshakeError(None, "wrong version number"), 5, "wrong version number"),
        (CertificateVerificationError(0, "it is odd", None), 6, "(depth 0): it is odd"),
        (TLSTruncatedError(), 8, "without close_notify"),
        (SocketConnectionLostError(), 8, "the connection was lost"),
        (SocketReadTimeoutError(), 9, "nothing arrived"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "no space left on device"),
        (ValueError(), 1, "valueError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_every_kind_of_error_has_its_status(error, outcome, said):
    assert outcome_of(error) == outcome
    assert said in explain(error)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("example.com", ("example.com", 443)),
        ("example.com:8443", ("example.com", 8443)),
        ("example.com:https", ("example.com", "https")),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("::1", ("::1", 443)),
        ("[::1]", ("::1", 443)),
        ("[::1]:99", ("::1", 99)),
        ("[fe80::1%lo]:99", ("fe80::1%lo", 99)),
        ("bücher.example", ("bücher.example", 443)),
    ],
)
def test_a_host_and_a_port_are_written_as_everywhere(text, target):
    assert parse_target(text, 443) == target


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Müller, 東京", "Müller, 東京"),
        ("a\tb\nc\x00", r"a\tb\nc\x00"),
        ("\x1b]8;;x\x07\x9b", r"\x1b]8;;x\x07\x9b"),
        ("\u202e\u200b\u2028\ufeff", r"\u202e\u200b\u2028\ufeff"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_only_what_is_printed_as_itself_is_printed(text, shown):
    assert printable(text) == shown
