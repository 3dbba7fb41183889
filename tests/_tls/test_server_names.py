"""Several records on one server, chosen by the name that a client asks for."""

from __future__ import annotations

import re
import socket
from datetime import timedelta
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.protocol import Factory

from tests.support.clocks import the_reactor, until
from tests.support.peers import (
    ANSWER,
    QUESTION,
    ClientEnd,
    Recording,
    ask,
    make_hierarchy,
    s_client,
    serving,
)
from tests.support.streams import in_thread
from twisted_netsock import (
    ServerTLSSocketOptions,
    TLSHandshakeError,
    TLSSocketOptions,
    client_endpoint,
    server_context_factory,
)
from twisted_netsock._tls import openssl
from twisted_netsock.testing import CertificateAuthority

UNKNOWN, TOO_OLD = (
    ("unrecognized name", "alert protocol version")
    if openssl._CAN_ANSWER_NAMES
    else ("handshake failure", "alert handshake failure")
)
"""The alerts; other releases of pyOpenSSL may not let us choose them."""

pytestmark = pytest.mark.long

versions = pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])


@pytest.fixture(scope="module")
def record(authority: CertificateAuthority) -> Any:
    """Make a record that answers *names*, with a certificate that is called as it is."""

    def make(name: str, *names: str, **fields: Any) -> ServerTLSSocketOptions:
        issued = authority.issue(name, common_name=name)
        return ServerTLSSocketOptions(certificates=issued.pem, sni=names or None, **fields)

    return make


def asking(name: str | None) -> list[str]:
    return ["-noservername"] if name is None else ["-servername", name]


def certificate_shown(text: str) -> str | None:
    found = re.search(r"^subject=CN = (.*)$", text, re.MULTILINE)
    return found and found[1]


# Who answers


@versions
@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("one.example", "one"),
        ("ONE.Example", "one"),
        ("one.example.", "one"),
        ("also-one.example", "one"),
        ("www.wild.example", "wild"),
        ("WWW.wild.example", "wild"),
        ("exact.wild.example", "exact"),
        ("wild.example", "default"),
        ("a.b.wild.example", "default"),
        ("nobody.example", "default"),
        ("example", "default"),
        ("b\u00fccher.example", "idna"),
        (None, "default"),
    ],
)
async def test_the_name_chooses_the_record(asked, answer, version, record):
    if asked is not None:
        asked = asked.encode("idna").decode() if not asked.isascii() else asked
    records = [
        record("one", "one.example", "also-one.example"),
        record("wild", "*.wild.example"),
        record("default"),
        record("exact", "Exact.Wild.example"),
        record("idna", "b\u00fccher.example"),
    ]
    async with serving(records) as server:
        said = await s_client(server.port, version, *asking(asked))
        assert "hello" in said.text
        assert certificate_shown(said.text) == answer


@versions
async def test_without_a_name_and_without_a_default_the_first_record_answers(version, record):
    records = [record("first", "first.example"), record("second", "second.example")]
    async with serving(records) as server:
        said = await s_client(server.port, version, *asking(None))
        assert certificate_shown(said.text) == "first"
        said = await s_client(server.port, version, *asking("second.example"))
        assert certificate_shown(said.text) == "second"


@versions
@pytest.mark.parametrize("how_many", [1, 2])
@pytest.mark.parametrize("asked", ["nobody.example", "a.b.wild.example", "wild.example"])
async def test_an_unknown_name_is_refused_quietly_and_shown_no_certificate(
    asked, how_many, version, record, capfd
):
    records = [record("wild", "*.wild.example"), record("one", "one.example")][:how_many]
    async with serving(records) as server:
        said = await s_client(server.port, version, "-showcerts", *asking(asked))
        assert UNKNOWN in said.text
        assert "BEGIN CERTIFICATE" not in said.text
        assert server.connections == []
        said = await s_client(server.port, version, *asking("x.wild.example"))
        assert certificate_shown(said.text) == "wild", "the others are served as before"
    assert capfd.readouterr().err == ""


def _ask_by_bytes(port: int, name: bytes) -> str:
    """Send *name* as server name, be it nonsense, and return whose certificate came."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.settimeout(None)
        connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), plain)
        connection.set_tlsext_host_name(name)
        connection.set_connect_state()
        try:
            connection.do_handshake()
        except SSL.Error as error:
            return str(error)
        shown = connection.get_peer_certificate(as_cryptography=True)
        return shown.subject.rfc4514_string()


@pytest.mark.parametrize(
    "name", [b"\xff\xfe.example", b"b\xc3\xbccher.example", b".", b"*.", b" "]
)
async def test_a_name_that_is_none_is_an_unknown_one(name, record, capfd):
    """Whatever a stranger sends is no error of the server's."""
    listed = record("one", "one.example")
    async with serving([listed]) as server:
        assert UNKNOWN in await in_thread(_ask_by_bytes, server.port, name)
    async with serving([listed, record("default")]) as server:
        assert await in_thread(_ask_by_bytes, server.port, name) == "CN=default"
    assert capfd.readouterr().err == ""


async def test_an_idna_wildcard_answers(record):
    async with serving([record("idna", "*.b\u00fccher.example"), record("default")]) as server:
        said = await s_client(server.port, *asking("www.xn--bcher-kva.example"))
        assert certificate_shown(said.text) == "idna"


async def test_a_single_record_with_names_answers_clients_without_a_name(record):
    async with serving(record("one", "one.example")) as server:
        assert certificate_shown((await s_client(server.port, *asking(None))).text) == "one"


# What goes with the record


@versions
async def test_each_record_shows_its_own_chain(version):
    chains = [make_hierarchy(f"{name}.example") for name in ("one", "two")]
    records = [
        ServerTLSSocketOptions(certificates=chain.leaf.pem, sni=f"{name}.example")
        for name, chain in zip(("one", "two"), chains, strict=True)
    ]
    async with serving(records, greeting=None) as server:
        for name, chain in zip(("one", "two"), chains, strict=True):
            options = TLSSocketOptions(
                trusted_certificates=chain.root.certificate,
                sni=f"{name}.example",
                maximum_version=version.replace("-tls1_", "TLSv1."),
            )
            endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
            assert await ask(endpoint) == ANSWER


@versions
@pytest.mark.parametrize("first", ["strict", "lax"])
async def test_a_strict_record_asks_for_certificates_whatever_the_others_do(
    first, version, record, authority, other_authority, tmp_path
):
    strict = record(
        "strict",
        "strict.example",
        trusted_certificates=authority.certificate,
        client_certificate_required=True,
    )
    records = {"strict": [strict, record("lax")], "lax": [record("lax"), strict]}[first]
    shown = {}
    for name, issuer in (("good", authority), ("bad", other_authority)):
        file = tmp_path / f"{name}.pem"
        file.write_bytes(issuer.issue("a client").pem)
        shown[name] = ["-cert", str(file), "-key", str(file)]
    async with serving(records) as server:
        for certificate, name, welcome in (
            ([], "strict.example", False),
            (shown["bad"], "strict.example", False),
            (shown["good"], "strict.example", True),
            ([], "lax.example", True),
            (shown["bad"], "lax.example", True),
            ([], None, True),
        ):
            said = await s_client(server.port, version, *asking(name), *certificate)
            assert ("hello" in said.text) is welcome, (name, certificate)
            names = "Acceptable client certificate CA names\nCN = throw-away authority"
            assert (names in said.text) is (name == "strict.example")
        assert len(server.connections) == 4


@versions
async def test_the_strict_record_is_the_default(version, record, authority):
    strict = record(
        "strict", trusted_certificates=authority.certificate, client_certificate_required=True
    )
    async with serving([strict, record("lax", "lax.example")]) as server:
        for name, welcome in (("lax.example", True), ("any.example", False), (None, False)):
            said = await s_client(server.port, version, *asking(name))
            assert ("hello" in said.text) is welcome


@versions
async def test_a_session_of_one_record_opens_no_other(version, record, authority, tmp_path):
    strict = record(
        "strict",
        "strict.example",
        trusted_certificates=authority.certificate,
        client_certificate_required=True,
    )
    session = str(tmp_path / "session")
    async with serving([record("lax"), strict]) as server:
        said = await s_client(server.port, version, *asking("lax.example"), "-sess_out", session)
        assert "hello" in said.text
        for name in ("strict.example", "lax.example"):
            resuming = ["-sess_in", session] if (tmp_path / "session").exists() else []
            said = await s_client(server.port, version, *asking(name), *resuming)
            assert "Reused" not in said.text
            assert ("hello" in said.text) is (name == "lax.example")


async def test_a_server_with_one_record_may_resume(record, tmp_path):
    """So that the test before this one can fail."""
    session = str(tmp_path / "session")
    async with serving(record("one")) as server:
        await s_client(server.port, "-tls1_3", "-sess_out", session)
        assert "Reused" in (await s_client(server.port, "-tls1_3", "-sess_in", session)).text


@pytest.mark.parametrize("first", ["strict", "lax"])
async def test_the_floor_of_a_record_is_enforced_at_its_names(first, record):
    strict = record("strict", "strict.example", minimum_version="TLSv1.3")
    lax = record("lax", "lax.example")
    records = [strict, lax] if first == "strict" else [lax, strict]
    async with serving(records) as server:
        for name, version, welcome in (
            ("strict.example", "-tls1_2", False),
            ("strict.example", "-tls1_3", True),
            ("lax.example", "-tls1_2", True),
            ("lax.example", "-tls1_3", True),
            (None, "-tls1_2", first == "lax"),
            (None, "-tls1_3", True),
        ):
            said = await s_client(server.port, version, *asking(name))
            assert ("hello" in said.text) is welcome, (name, version)
            if not welcome:
                assert TOO_OLD in said.text
                assert certificate_shown(said.text) is None


async def test_each_record_has_its_own_protocols(record):
    records = [
        record("one", "one.example", alpn=("h2", "http/1.1")),
        record("two", "two.example", alpn="imap"),
        record("none"),
    ]
    async with serving(records) as server:
        for name, offered, chosen in (
            ("one.example", "http/1.1,h2,imap", "ALPN protocol: h2"),
            ("two.example", "http/1.1,h2,imap", "ALPN protocol: imap"),
            ("two.example", "h2", "alert no application protocol"),
            ("three.example", "h2", "No ALPN negotiated"),
        ):
            said = await s_client(server.port, *asking(name), "-alpn", offered)
            assert chosen in said.text


async def test_each_record_has_its_own_verifier(record, authority):
    asked = []

    def verifier_of(name: str) -> Any:
        return lambda depth, result, certificate: asked.append(name)

    records = [
        record(
            name,
            f"{name}.example",
            trusted_certificates=authority.certificate,
            certificate_verifier=verifier_of(name),
        )
        for name in ("one", "two")
    ]
    identity = authority.issue("a client").pem
    async with serving(records, greeting=None) as server:
        for name in ("two", "one"):
            options = TLSSocketOptions(
                certificate_verifier=False, certificates=identity, sni=f"{name}.example"
            )
            endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
            assert await ask(endpoint) == ANSWER
    assert asked == ["two", "two", "one", "one"]


# Application protocols


@versions
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("h2", "ALPN protocol: h2"),
        ("http/1.1,h2", "ALPN protocol: h2"),
        ("imap,http/1.1", "ALPN protocol: http/1.1"),
        (None, "No ALPN negotiated"),
    ],
)
async def test_the_server_prefers(offered, chosen, version, record):
    async with serving(record("one", alpn=("h2", "http/1.1"))) as server:
        arguments = [] if offered is None else ["-alpn", offered]
        said = await s_client(server.port, version, *arguments)
    assert chosen in said.text
    assert "hello" in said.text


async def test_a_server_without_protocols_takes_a_client_with_some(record):
    async with serving(record("one")) as server:
        said = await s_client(server.port, "-alpn", "h2")
    assert "No ALPN negotiated" in said.text
    assert "hello" in said.text


class _Lasting(Factory):
    noisy = False

    def __init__(self) -> None:
        self.end: Any = None

    def buildProtocol(self, address: object) -> ClientEnd:
        self.end = ClientEnd()
        self.end.connectionMade = lambda: None
        return self.end


@versions
async def test_no_common_protocol_costs_nobody_else_anything(version, record, authority, capfd):
    """Neither who is connected, nor who comes next, on the same context."""
    options = authority.client_options(sni="one.example", alpn="h2")
    async with serving(record("one.example", alpn="h2"), greeting=None) as server:
        endpoint = client_endpoint(the_reactor(), "127.0.0.1", server.port, options)
        before = _Lasting()
        await endpoint.connect(before)
        for _ in range(3):
            said = await s_client(server.port, version, "-alpn", "imap")
            assert "alert no application protocol" in said.text
            with pytest.raises(TLSHandshakeError, match="no application protocol"):
                await ask(
                    client_endpoint(
                        the_reactor(), "127.0.0.1", server.port, options.replace(alpn="imap")
                    )
                )
        assert await ask(endpoint) == ANSWER
        before.end.transport.write(QUESTION)
        assert await before.end.answer == ANSWER
        await before.end.lost
        await until(lambda: all(connection.lost for connection in server.connections))
        assert len(server.connections) == 2
        assert server.received == QUESTION * 2
    assert capfd.readouterr().err == ""


class _Negotiating(Recording):
    """A factory that knows its protocols, as HTTP's does."""

    def acceptableProtocols(self) -> list[bytes]:
        return [b"h2", b"http/1.1"]


async def test_the_protocols_of_a_factory_come_before_those_of_the_record(record):
    from twisted.internet.interfaces import IProtocolNegotiationFactory
    from zope.interface import directlyProvides

    factory = _Negotiating(b"hello\n")
    directlyProvides(factory, IProtocolNegotiationFactory)
    records = [record("one", alpn=("imap", "http/1.1")), record("two", "two.example")]
    async with serving(records, factory=factory) as server:
        for name, offered, chosen in (
            (None, "imap,http/1.1,h2", "ALPN protocol: h2"),
            (None, "imap", "ALPN protocol: imap"),
            ("two.example", "imap,http/1.1", "ALPN protocol: http/1.1"),
            ("two.example", "imap", "alert no application protocol"),
        ):
            said = await s_client(server.port, *asking(name), "-alpn", offered)
            assert chosen in said.text


# Records that cannot be served together

DIFFERENT: dict[str, Any] = {
    "ai_flags": 1,
    "backlog": 5,
    "close_timeout": timedelta(seconds=1),
    "connection_timeout": timedelta(seconds=1),
    "handshake_timeout": timedelta(seconds=1),
    "keylog_file": "keys",
    "local_address": "127.0.0.1",
    "maximum_version": "TLSv1.3",
    "non_blocking": False,
    "read_timeout": timedelta(seconds=1),
    "reuse_port": True,
    "socket_options": (1, 9, 1),
    "v6_only": True,
    "write_timeout": timedelta(seconds=1),
}


@pytest.mark.parametrize("field", DIFFERENT)
def test_records_that_differ_where_they_must_not_are_refused(field, record):
    one = record("one", "one.example")
    other = record("two", "two.example").replace(**{field: DIFFERENT[field]})
    for records in ([one, other], [one, record("three", "three.example"), other]):
        with pytest.raises(ValueError, match=f"^{field} must be the same in all records"):
            server_context_factory(records)
    server_context_factory([one.replace(**{field: DIFFERENT[field]}), other])


def test_records_may_differ_in_what_each_connection_can_have_for_itself(record, authority):
    one = record("one", "one.example")
    other = record(
        "two",
        "two.example",
        alpn="h2",
        minimum_version="TLSv1.3",
        certificate_profile="strict",
        trusted_certificates=authority.certificate,
        client_certificate_required=True,
        certificate_verifier=lambda *_: None,
    )
    server_context_factory([one, other])


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([["a.example"], ["a.example"]], "a.example.*more than one"),
        ([["a.example", "b.example"], ["A.Example."]], "a.example.*more than one"),
        ([["b\u00fccher.example"], ["xn--bcher-kva.example"]], "more than one"),
        ([["*.a.example"], ["*.A.example"]], "more than one"),
        ([[], []], "without sni"),
        ([[], ["a.example"], []], "without sni"),
    ],
)
def test_records_that_answer_the_same_names_are_refused(names, why, record):
    records = [record("one", *each) for each in names]
    with pytest.raises(ValueError, match=why):
        server_context_factory(records)


def test_no_record_at_all_is_refused():
    for nothing in ([], (), iter([])):
        with pytest.raises(ValueError, match="at least one record"):
            server_context_factory(nothing)


def test_a_broken_record_among_good_ones_is_refused(record, tmp_path):
    broken = ServerTLSSocketOptions(certificates=tmp_path / "missing", sni="b.example")
    with pytest.raises(ValueError, match="No such file"):
        server_context_factory([record("one", "a.example"), broken])
