"""Transports: writing, reading, pausing, and what they report."""

from __future__ import annotations

import array
import socket

import pytest
from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python import context
from twisted.python.log import ILogContext

from tests.support.clocks import turns, until
from tests.support.loopback import LOOPBACK
from tests.support.protocols import (
    BULK,
    Kind,
    Protocols,
    Recorder,
    Viewer,
    client_context,
    connected,
    listening,
    raw_client,
    tls_peer,
)


@pytest.fixture(params=[Recorder, Viewer], ids=["data", "views"])
def receiver(request):
    """A protocol that takes bytes, or one that takes views."""
    return request.param


# Writing


class Writer(Recorder):
    """Writes as soon as it can."""

    def connectionMade(self):
        super().connectionMade()
        self.transport.write(b"from the start")


async def test_what_is_written_in_connection_made_arrives(kind):
    async with connected(kind, Writer, Writer) as pair:
        assert await pair.server.receives(14) == b"from the start"
        assert await pair.client.receives(14) == b"from the start"
        assert pair.client.events == pair.server.events == ["made", "data"]


async def test_many_small_writes_arrive_in_order(kind, receiver):
    pieces = [b"%d," % number for number in range(20_000)]
    async with connected(kind, server=receiver) as pair:
        for piece in pieces:
            pair.client.transport.write(piece)
        assert await pair.server.receives(len(b"".join(pieces))) == b"".join(pieces)


async def test_a_long_sequence_arrives_in_order(kind, receiver):
    pieces = [b"%d," % number for number in range(20_000)]
    async with connected(kind, server=receiver) as pair:
        pair.client.transport.writeSequence(iter(pieces))
        pair.client.transport.writeSequence([])
        pair.client.transport.writeSequence([b"", b"the end"])
        expected = b"".join(pieces) + b"the end"
        assert await pair.server.receives(len(expected)) == expected


async def test_ten_megabytes_arrive_both_ways_at_once(kind, receiver):
    async with connected(kind, receiver, receiver) as pair:
        pair.client.transport.write(BULK)
        pair.server.transport.write(BULK)
        assert await pair.server.receives(len(BULK)) == BULK
        assert await pair.client.receives(len(BULK)) == BULK


async def test_small_writes_behind_a_large_one_keep_their_order(kind):
    async with connected(kind) as pair:
        pair.client.transport.write(BULK)
        for number in range(2000):
            pair.client.transport.write(b"%d," % number)
        received = await pair.server.receives(len(BULK) + 8890)
        assert received == BULK + b"".join(b"%d," % number for number in range(2000))


async def test_nothing_is_sent_for_an_empty_write(kind):
    async with connected(kind) as pair:
        pair.client.transport.write(b"")
        pair.client.transport.writeSequence([b"", b""])
        pair.client.transport.write(b"x")
        assert await pair.server.receives(1) == b"x"


async def test_a_buffer_may_be_changed_after_the_write(kind):
    buffer = bytearray(BULK)
    async with connected(kind) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(buffer)
        buffer[:] = bytes(len(buffer))
        pair.server.transport.resumeProducing()
        assert await pair.server.receives(len(BULK)) == BULK


async def test_a_view_may_be_changed_after_the_write(kind):
    buffer = bytearray(BULK)
    async with connected(kind) as pair:
        pair.server.transport.pauseProducing()
        pair.client.transport.write(memoryview(buffer)[1:])
        buffer[:] = bytes(len(buffer))
        pair.server.transport.resumeProducing()
        assert await pair.server.receives(len(BULK) - 1) == BULK[1:]


@pytest.mark.parametrize("count", [3, 2_000_000])
async def test_a_view_of_larger_items_is_sent_whole(kind, count):
    numbers = array.array("I", range(count))
    async with connected(kind) as pair:
        pair.client.transport.write(memoryview(numbers))
        pair.client.transport.write(b"the end")
        expected = numbers.tobytes() + b"the end"
        assert await pair.server.receives(len(expected)) == expected


async def test_a_sequence_may_have_all_that_a_write_takes(kind):
    pieces = [bytearray(b"ab"), memoryview(array.array("H", [1, 2])), memoryview(b"cd"), b"e"]
    expected = b"ab" + array.array("H", [1, 2]).tobytes() + b"cde"
    async with connected(kind) as pair:
        pair.client.transport.writeSequence(pieces)
        assert await pair.server.receives(len(expected)) == expected


@pytest.mark.parametrize("data", ["text", 17, None, ["a"], {}], ids=repr)
async def test_only_bytes_can_be_written(kind, data):
    async with connected(kind) as pair:
        transport = pair.client.transport
        said = f"data must be bytes, not {type(data).__name__}"
        with pytest.raises(TypeError, match=said):
            transport.write(data)
        with pytest.raises(TypeError, match=said):
            transport.writeSequence(iter([b"x", data]))
        pair.client.transport.write(b"still fine")
        assert await pair.server.receives(10) == b"still fine"


async def test_writing_after_the_loss_does_nothing(kind):
    async with connected(kind) as pair:
        pair.client.transport.loseConnection()
        await pair.client.loses()
        transport = pair.client.transport
        transport.write(b"to nobody")
        transport.writeSequence([b"to", b"nobody"])
        transport.loseWriteConnection()
        transport.pauseProducing()
        transport.resumeProducing()
        await turns()
        await pair.server.loses()
        assert pair.server.received == b""


async def test_a_write_after_lose_connection_harms_nothing(kind):
    async with connected(kind) as pair:
        pair.client.transport.write(b"in time")
        pair.client.transport.loseConnection()
        pair.client.transport.write(b", late")
        assert isinstance(await pair.client.loses(), ConnectionDone)
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert bytes(pair.server.received) in {b"in time", b"in time, late"}


async def test_a_write_to_a_peer_that_is_gone_tells_nothing_from_within(kind):
    """The loss is reported in a reactor iteration of its own, whatever is written before."""

    class Careful(Recorder):
        inside = False

        def connectionLost(self, reason=None):
            assert not self.inside
            super().connectionLost(reason)

    async with connected(kind, Careful) as pair:
        pair.client.transport.pauseProducing()
        pair.server.transport.abortConnection()
        await pair.server.loses()
        pair.client.inside = True
        for _ in range(10):
            pair.client.transport.write(b"x" * 100_000)
        pair.client.inside = False
        assert isinstance(await pair.client.loses(), ConnectionError)


# Reading


class Echo(Recorder):
    """Sends back what it gets, and notices a delivery inside another."""

    inside = False

    def dataReceived(self, data):
        assert type(data) is bytes
        assert not self.inside
        self.inside = True
        super().dataReceived(data)
        self.transport.pauseProducing()
        self.transport.write(data)
        self.transport.resumeProducing()
        self.inside = False


async def test_a_protocol_that_writes_is_not_called_inside_its_own_call(kind):
    async with connected(kind, server=Echo) as pair:
        for piece in (b"a", b"b" * 10_000, BULK):
            pair.client.transport.write(piece)
        expected = b"a" + b"b" * 10_000 + BULK
        assert await pair.client.receives(len(expected)) == expected


async def test_a_protocol_is_given_at_most_64_kib_at_a_time(kind):
    class Measuring(Recorder):
        longest = 0

        def dataReceived(self, data):
            super().dataReceived(data)
            self.longest = max(self.longest, len(data))

    async with connected(kind, server=Measuring) as pair:
        pair.client.transport.write(BULK)
        assert await pair.server.receives(len(BULK)) == BULK
        assert 0 < pair.server.longest <= 65536


async def test_views_are_of_one_buffer_that_is_used_again(kind):
    class Keeping(Viewer):
        def __init__(self):
            super().__init__()
            self.kept = []

        def view_received(self, view):
            super().view_received(view)
            self.kept.append(view)

    async with connected(kind, server=Keeping) as pair:
        pair.client.transport.write(b"one")
        await pair.server.receives(3)
        pair.client.transport.write(b"two")
        assert await pair.server.receives(6) == b"onetwo"
        assert [bytes(view) for view in pair.server.kept] == [b"two", b"two"]


# Pausing


class Paused(Recorder):
    """Wants nothing until it is asked."""

    def connectionMade(self):
        super().connectionMade()
        self.transport.pauseProducing()


async def test_a_paused_protocol_is_given_nothing(kind):
    async with connected(kind, server=Paused) as pair:
        pair.client.transport.write(b"for later")
        await turns(20)
        assert pair.server.events == ["made"]
        pair.server.transport.pauseProducing()
        pair.server.transport.resumeProducing()
        pair.server.transport.resumeProducing()
        assert await pair.server.receives(9) == b"for later"


@pytest.mark.parametrize(("stop", "start"), [("stopReading", "startReading")])
async def test_pausing_under_the_names_of_twisted_s_descriptors(kind, stop, start):
    async with connected(kind) as pair:
        getattr(pair.server.transport, stop)()
        pair.client.transport.write(b"for later")
        await turns(20)
        assert pair.server.events == ["made"]
        getattr(pair.server.transport, start)()
        assert await pair.server.receives(9) == b"for later"


async def test_the_end_waits_for_a_paused_protocol(kind):
    async with connected(kind, server=Paused) as pair:
        pair.client.transport.write(b"last words")
        pair.client.transport.loseConnection()
        await turns(20)
        assert pair.server.events == ["made"]
        pair.server.transport.resumeProducing()
        assert isinstance(await pair.server.loses(), ConnectionDone)
        assert pair.server.events == ["made", "data", "lost"]
        assert pair.server.received == b"last words"


class Sipping(Recorder):
    """Pauses after every delivery."""

    def dataReceived(self, data):
        super().dataReceived(data)
        self.transport.pauseProducing()


async def test_what_was_decrypted_already_waits_for_resume_too(authority):
    """Pieces of 10,000 bytes do not fill the buffer evenly: some of one is left in OpenSSL."""
    sent = BULK[:200_000]
    servers = Protocols(Sipping)
    async with listening(authority.server_options(), servers) as port:
        with (
            raw_client(port) as sock,
            await tls_peer(sock, client_context(authority), "localhost") as peer,
        ):
            server = await servers.connected()
            for start in range(0, len(sent), 10_000):
                peer.send(sent[start : start + 10_000])
            await server.receives(1)
            for _ in range(200):
                before = len(server.received)
                if before == len(sent):
                    break
                await turns(3)
                assert len(server.received) == before
                server.transport.resumeProducing()
                await until(lambda least=before: len(server.received) > least)
            assert server.received == sent


async def test_a_slow_reader_holds_the_writer_up_and_loses_nothing(kind):
    async with connected(kind, server=Sipping) as pair:
        pair.client.transport.write(BULK)
        for _ in range(5):
            before = len(await pair.server.receives(1))
            await turns(5)
            assert len(pair.server.received) == before < len(BULK)
            pair.server.transport.resumeProducing()
            await until(lambda least=before: len(pair.server.received) > least)
        pair.server.dataReceived = pair.server.received.extend
        pair.server.transport.resumeProducing()
        assert await pair.server.receives(len(BULK)) == BULK


async def test_stop_producing_is_lose_connection(kind):
    async with connected(kind) as pair:
        pair.client.transport.write(b"last words")
        pair.client.transport.stopProducing()
        assert isinstance(await pair.client.loses(), ConnectionDone)
        await pair.server.loses()
        assert pair.server.received == b"last words"


# What a transport reports


async def test_small_writes_are_gathered_or_not_as_asked(kind):
    async with connected(kind) as pair:
        transport = pair.client.transport
        for enabled in (False, True, False):
            transport.setTcpNoDelay(enabled)
            assert transport.getTcpNoDelay() is enabled


async def test_the_kernel_probes_or_not_as_asked(kind):
    async with connected(kind) as pair:
        transport = pair.client.transport
        for enabled in (True, False):
            transport.setTcpKeepAlive(enabled)
            assert transport.getTcpKeepAlive() is enabled


async def test_a_lost_transport_answers_still(kind):
    async with connected(kind) as pair:
        transport = pair.client.transport
        host, peer = transport.getHost(), transport.getPeer()
        assert transport.fileno() >= 0
        transport.loseConnection()
        await pair.client.loses()
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        assert not transport.getTcpNoDelay()
        assert not transport.getTcpKeepAlive()
        assert (transport.getHost(), transport.getPeer()) == (host, peer)
        assert transport.fileno() == -1
        assert transport.logPrefix() == "Recorder,client"


async def test_the_handle_is_the_socket_or_the_tls_connection(kind):
    async with connected(kind) as pair:
        for protocol in pair:
            handle = protocol.transport.getHandle()
            assert isinstance(handle, SSL.Connection if kind.tls else socket.socket)
            assert handle.fileno() == protocol.transport.fileno()


async def test_the_log_prefix_is_the_protocol_s(kind):
    class Named(Recorder):
        def logPrefix(self):
            return "a name of its own"

    async with connected(kind, Named) as pair:
        assert pair.client.transport.logPrefix() == "a name of its own,client"
        name, number, host = pair.server.transport.logPrefix().split(",")
        assert (name, number.isdecimal(), host) == ("Recorder", True, LOOPBACK)


async def test_log_lines_of_a_protocol_carry_its_prefix(kind):
    systems = {}

    class Talkative(Recorder):
        def note(self, when):
            systems[when] = context.get(ILogContext)["system"]

        def connectionMade(self):
            super().connectionMade()
            self.note("made")

        def dataReceived(self, data):
            super().dataReceived(data)
            self.note("data")

        def connectionLost(self, reason=None):
            super().connectionLost(reason)
            self.note("lost")

    async with connected(kind, Talkative) as pair:
        pair.server.transport.write(b"a")
        await pair.client.receives(1)
        pair.server.transport.loseConnection()
        await pair.client.loses()
    assert systems == dict.fromkeys(("made", "data", "lost"), "Talkative,client")
    assert context.get(ILogContext)["system"] == "-"


async def test_the_text_form_tells_kind_state_and_addresses(kind):
    async with connected(kind) as pair:
        transport = pair.client.transport
        shown = repr(transport)
        assert shown.startswith("<TLSTransport" if kind.tls else "<Transport")
        for part in ("connected", LOOPBACK, str(transport.getPeer().port)):
            assert part in shown
        transport.loseConnection()
        await pair.client.loses()
        assert "lost" in repr(transport)


async def test_a_tls_transport_tells_what_was_negotiated(authority):
    issued = authority.issue("localhost", LOOPBACK)
    kind = Kind(authority, tls=True)
    kind.server = lambda **fields: authority.server_options().replace(
        certificates=issued.pem, **fields
    )
    fields = {"alpn": ["h2", "http/1.1"]}
    async with connected(kind, client_fields=fields, server_fields=fields) as pair:
        client, server = pair.client.transport, pair.server.transport
        assert client.negotiatedProtocol == server.negotiatedProtocol == b"h2"
        assert client.getPeerCertificate().to_cryptography() == issued.certificate
        assert client.peer_certificate == issued.certificate
        assert server.getPeerCertificate() is None
        assert server.peer_certificate is None
        assert client.tls.tls_version == server.tls.tls_version == "TLSv1.3"


async def test_the_extensions_of_a_certificate_are_found_as_pyopenssl_had_them(authority):
    async with connected(Kind(authority, tls=True)) as pair:
        certificate = pair.client.transport.getPeerCertificate()
        extensions = pair.client.transport.peer_certificate.extensions
        assert certificate.get_extension_count() == len(extensions) > 0
        found = [certificate.get_extension(index) for index in range(len(extensions))]
        names = {each.get_short_name() for each in found}
        assert {b"subjectAltName", b"basicConstraints"} <= names
        for ours, theirs in zip(found, extensions, strict=True):
            assert ours.get_critical() == theirs.critical
            assert ours.get_data() == theirs.value.public_bytes()
            assert str(ours) == ours.get_data().hex(":")
        assert certificate.to_cryptography() == pair.client.transport.peer_certificate


@pytest.mark.parametrize("name", ["protocol", "wrappedProtocol"])
async def test_another_protocol_may_take_the_place_of_the_first(authority, name):
    """As Daphne and Autobahn do it, where HTTP becomes a WebSocket."""
    async with connected(Kind(authority, tls=True)) as pair:
        transport, other = pair.server.transport, Recorder()
        assert getattr(transport, name) is pair.server
        setattr(transport, name, other)
        other.makeConnection(transport)
        pair.client.transport.write(b"question")
        assert await other.receives(8) == b"question"
        assert pair.server.received == b""
        setattr(transport, name, pair.server)


async def test_a_tls_transport_is_an_instance_of_twisted_s(authority):
    """Autobahn refuses a transport that provides ``ISSLTransport`` and is none."""
    async with connected(Kind(authority, tls=True)) as pair:
        for protocol in pair:
            transport = protocol.transport
            assert isinstance(transport, TLSMemoryBIOProtocol)
            # Twisted's look for it in the transport beneath.
            with pytest.raises(AttributeError, match="'TLSTransport' object has no"):
                transport.nothing  # noqa: B018
            assert transport.getHandle().get_finished()
    async with connected(Kind(None, tls=False)) as pair:
        assert not isinstance(pair.client.transport, TLSMemoryBIOProtocol)


async def test_without_alpn_no_protocol_is_negotiated(authority):
    async with connected(Kind(authority, tls=True)) as pair:
        assert pair.client.transport.negotiatedProtocol is None
        assert pair.server.transport.negotiatedProtocol is None


async def test_a_lost_connection_keeps_no_protocol_alive(kind):
    """What the transport reported to its protocol was reported once."""
    async with connected(kind) as pair:
        transport = pair.client.transport
        transport.loseConnection()
        await pair.client.loses()
        assert transport.protocol is None
        assert (transport.connected, transport.disconnected) == (False, True)
        transport.abortConnection()
        transport.loseConnection()
        await turns()
        assert pair.client.events.count("lost") == 1


async def test_plain_transports_know_nothing_of_tls():
    async with connected(Kind(None, tls=False)) as pair:
        assert not hasattr(pair.client.transport, "negotiatedProtocol")
        assert not hasattr(pair.client.transport, "getPeerCertificate")
