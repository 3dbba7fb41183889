"""
Hostile peers of TLS: OpenSSL's own messages, with some forged on their way out.

A `Forger` speaks TLS in memory with the standard library and hands each of its
flights, as a list of records, to a function that returns what is sent instead.
It runs in a thread, each wait bounded.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.loopback import LONGEST
from tests.support.streams import noise

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, HEARTBEAT = range(20, 25)
WARNING, FATAL = 1, 2
USER_CANCELED, NO_RENEGOTIATION = 90, 100

END = b""
"""Stands for the end of the stream, in what is sent."""

Forge = Callable[[list[bytes]], Iterable[bytes]]
"""Returns what is sent instead of a flight."""


def record(kind: int, content: bytes, *, version: int = 0x0303, size: int | None = None) -> bytes:
    """Write a record, whose header says *size*, if that is given."""
    length = len(content) if size is None else size
    return struct.pack("!BHH", kind, version, length) + content


def message(kind: int, content: bytes, size: int | None = None) -> bytes:
    """Write a message of the handshake, in a record of its own."""
    length = len(content) if size is None else size
    return record(HANDSHAKE, bytes([kind]) + length.to_bytes(3, "big") + content)


def alert(level: int, description: int) -> bytes:
    return record(ALERT, bytes([level, description]))


def records(data: bytes) -> list[bytes]:
    """Split *data* into its records."""
    found = []
    while data:
        end = 5 + int.from_bytes(data[3:5], "big")
        found.append(data[:end])
        data = data[end:]
    return found


class Forger:
    """One connection of a hostile peer."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, forge: Forge, *, flight: int = 0
    ) -> None:
        """
        Speak on *sock*.

        Args:
            sock: Blocking; it stays the caller's.
            context: Of a client or a server.
            forge: Makes what is sent of a flight.
            flight: The number of that flight, the first one being 0.
        """
        self._sock = sock
        sock.settimeout(LONGEST)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server_side = context.protocol == ssl.PROTOCOL_TLS_SERVER
        self._tls = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=None if server_side else "localhost",
        )
        self._forge = forge
        self._until_forged = flight
        self.sent = 0
        """Bytes that the other side, or the kernel for it, has taken."""

    def _send_flight(self) -> None:
        data = self._outgoing.read()
        if not data:
            return
        flight: Iterable[bytes] = records(data)
        if self._until_forged == 0:
            flight = self._forge(records(data))
        self._until_forged -= 1
        for piece in flight:
            if piece == END:
                self._sock.shutdown(socket.SHUT_WR)
            self._sock.sendall(piece)
            self.sent += len(piece)

    def _drive(self, operation: Callable[..., Any], *arguments: object) -> Any:
        """Do *operation* of TLS, with what it sends and needs."""
        while True:
            try:
                result = operation(*arguments)
            except ssl.SSLWantReadError:
                self._send_flight()
                data = self._sock.recv(65536)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
                continue
            except ssl.SSLError:
                self._send_flight()
                raise
            self._send_flight()
            return result

    def talk(self) -> None:
        """Perform the handshake, send a word, and read until the other side ends; then end."""
        try:
            try:
                self._drive(self._tls.do_handshake)
                self._drive(self._tls.write, b"a word")
                self._sock.shutdown(socket.SHUT_WR)
                while self._drive(self._tls.read, 65536):
                    pass
            except ssl.SSLError:
                # Nothing more can be said; what the other side still sends is taken.
                self._sock.shutdown(socket.SHUT_WR)
                while self._sock.recv(65536):
                    pass
        except TimeoutError:
            raise
        except OSError:
            # The other side has gone.
            pass


# What is forged: each takes a flight, and returns what is sent instead of it.


def flooded(piece: bytes, size: int = 4_000_000) -> Forge:
    """Send *piece* again and again, *size* bytes in all, and then the flight."""
    bundle = piece * max(1, 16384 // len(piece))

    def forge(flight: list[bytes]) -> Iterable[bytes]:
        for _ in range(size // len(bundle)):
            yield bundle
        yield from flight

    return forge


def led_by(piece: bytes) -> Forge:
    """Send *piece* before the flight."""
    return lambda flight: [piece, *flight]


def replaced_by(*pieces: bytes) -> Forge:
    """Send these instead of the flight."""
    return lambda flight: pieces


def with_header(*, kind: int | None = None, version: int | None = None, size: int | None = None):
    """Change the header of the flight's first record."""

    def forge(flight: list[bytes]) -> list[bytes]:
        old_kind, old_version, old_size = struct.unpack("!BHH", flight[0][:5])
        end = [] if size is None else [END]
        header = struct.pack(
            "!BHH",
            old_kind if kind is None else kind,
            old_version if version is None else version,
            old_size if size is None else size,
        )
        return [header + flight[0][5:], *flight[1:], *end]

    return forge


def with_message_size(change: int) -> Forge:
    """Add *change* to the length that the flight's first message says."""

    def forge(flight: list[bytes]) -> list[bytes]:
        first = flight[0]
        size = (int.from_bytes(first[6:9], "big") + change) % 2**24
        return [first[:6] + size.to_bytes(3, "big") + first[9:], *flight[1:], END]

    return forge


def with_message_kind(kind: int) -> Forge:
    """Have the flight's first message say that it is another."""
    return lambda flight: [flight[0][:5] + bytes([kind]) + flight[0][6:], *flight[1:]]


def without_end(flight: list[bytes]) -> list[bytes]:
    """Leave the second half of the flight out, and all that would follow."""
    whole = b"".join(flight)
    return [whole[: len(whole) // 2], END]


def backwards(flight: list[bytes]) -> list[bytes]:
    return flight[::-1]


def first_left_out(flight: list[bytes]) -> list[bytes]:
    return [*flight[1:], END]


def last_left_out(flight: list[bytes]) -> list[bytes]:
    return [*flight[:-1], END]


def last_spoilt(flight: list[bytes]) -> list[bytes]:
    """Change the last byte."""
    return [*flight[:-1], flight[-1][:-1] + bytes([flight[-1][-1] ^ 1])]


def first_twice(flight: list[bytes]) -> list[bytes]:
    return [flight[0], *flight]


def all_twice(flight: list[bytes]) -> list[bytes]:
    return flight + flight


def byte_by_byte(flight: list[bytes]) -> list[bytes]:
    """Split the messages of the handshake into records of one byte each."""
    return [
        record(each[0], each[at : at + 1])
        for each in flight
        for at in range(5, len(each))
    ]  # fmt: skip


FLOOD = 64_000_000
"""Bytes, many times what the kernel buffers: who is not refused sends them all."""

EMPTY = [record(kind, b"") for kind in (HANDSHAKE, ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC)]

FORGERIES: dict[str, Forge] = {
    "a record of a kind that there is not": led_by(record(99, b"data")),
    "a heartbeat": led_by(record(HEARTBEAT, b"\1\x40\0" + bytes(16))),
    "data in plain text": led_by(record(APPLICATION_DATA, b"an injected word")),
    "a word that is no record": replaced_by(b"GET / HTTP/1.0\r\n\r\n"),
    "noise": replaced_by(noise(5000)),
    "nothing": replaced_by(END),
    "SSLv2": replaced_by(b"\x80\x2e\x01\x00\x02" + bytes(41), END),
    "a record that says it is larger than any": with_header(size=0xFFFF),
    "a record that says it is longer": with_header(size=0x3FFF),
    "a record that says it is shorter": with_header(size=3),
    "a record of half a message, and the end": without_end,
    "a record of another kind": with_header(kind=APPLICATION_DATA),
    "a record of another protocol": with_header(version=0x0909),
    "a message that says it is longer": with_message_size(1),
    "a message that says it is shorter": with_message_size(-1),
    "a message that says it is 16 MB long": replaced_by(message(11, noise(50), 2**24 - 1), END),
    "a message of a kind that there is not": with_message_kind(77),
    "an empty message": led_by(message(1, b"")),
    "messages in the reverse order": lambda flight: [*flight[::-1], END],
    "the first record left out": first_left_out,
    "the last record left out": last_left_out,
    "the last byte changed": last_spoilt,
    "the first record twice": first_twice,
    "the whole flight twice": all_twice,
    "Finished at once": led_by(message(20, bytes(12))),
    "a request to begin anew": led_by(message(0, b"")),
    "a ticket": led_by(message(4, noise(60))),
    "new keys": led_by(message(24, b"\1")),
    "a certificate": led_by(message(11, b"\0\0\0")),
    "a fatal alert": led_by(alert(FATAL, 40)),
    "the end, said in plain text": led_by(alert(WARNING, 0)),
    "half an alert": led_by(record(ALERT, b"\1")),
    "an alert that is too long": led_by(record(ALERT, bytes(500))),
    "a change of ciphers that is none": led_by(record(CHANGE_CIPHER_SPEC, b"\2")),
    "a flood of warnings": flooded(alert(WARNING, USER_CANCELED), FLOOD),
    "a flood of refusals to renegotiate": flooded(alert(WARNING, NO_RENEGOTIATION), FLOOD),
    "a flood of empty records": flooded(EMPTY[0], FLOOD),
    "a flood of empty records of each kind": flooded(b"".join(EMPTY), FLOOD),
    "a flood of empty data": flooded(EMPTY[2], FLOOD),
    "a flood of changes of ciphers": flooded(record(CHANGE_CIPHER_SPEC, b"\1"), FLOOD),
    "a flood of requests to begin anew": flooded(message(0, b""), FLOOD),
}
