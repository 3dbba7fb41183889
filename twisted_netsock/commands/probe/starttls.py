"""
What is said in plain text before TLS begins: STARTTLS of mail, directories and databases.

Each dialogue is bounded in what it reads. It reads no byte beyond the server's last word:
what follows in plain text, which anybody on the way may have put there, is refused when
TLS begins (CVE-2011-0411 and its kin).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple
from xml.sax.saxutils import quoteattr

from ..._sockets.socket import Socket
from ...errors import NetsockError, SocketIncompleteReadError

__all__ = ["DIALOGUES", "StartTLSRefusedError", "ask_for_tls"]

_LINE: Final = 4096
_LINES: Final = 100
"""The most of a server's lines that are read, and how long each may be."""

_MOST_BYTES: Final = 16384
"""Of a message without lines: features of XMPP take 1 KiB, the rest less."""

_LONGEST_TAG: Final = 200
"""Bytes of one that is looked for."""

_SHOWN: Final = 200
"""Characters of what a server said that its error repeats."""


class StartTLSRefusedError(NetsockError):
    """The server does not begin TLS, or speaks another protocol."""


class _Conversation:
    """What is said to a server, and what it says."""

    def __init__(self, sock: Socket, host: str) -> None:
        self._sock = sock
        self._left = _LINES
        self.host = host
        """Whom XMPP asks for; no other protocol names it."""

    async def send(self, line: str) -> None:
        await self.send_bytes(line.encode("ascii") + b"\r\n")

    async def send_bytes(self, data: bytes) -> None:
        await self._sock.sendall(data)

    async def line(self) -> str:
        """Return the next line."""
        self._left -= 1
        if self._left < 0:
            raise StartTLSRefusedError(f"the server said more than {_LINES} lines")
        raw = await self._sock.input_port.readline(_LINE)
        if not raw.endswith(b"\n"):
            raise _ended()
        return raw.decode("utf-8", "backslashreplace").rstrip("\r\n")

    async def reply(self, *codes: str) -> list[str]:
        """Return a reply of SMTP and its kin (RFC 5321, section 4.2; RFC 959, section 4.2)."""
        lines = [await self.line()]
        code = lines[0][:3]
        if code not in codes:
            raise _refused(lines[0])
        if lines[0].startswith(f"{code}-"):
            while not lines[-1].startswith(f"{code} "):
                lines.append(await self.line())
        return lines

    async def exactly(self, count: int) -> bytes:
        """Return the next *count* bytes."""
        if count > _MOST_BYTES:
            raise StartTLSRefusedError(f"the server announced a message of {count} bytes")
        try:
            return await self._sock.input_port.read_exactly(count)
        except SocketIncompleteReadError:
            raise _ended() from None

    async def until(self, pattern: re.Pattern[bytes]) -> bytes:
        """Return what comes up to the tag that *pattern* finds at the end, and no byte more."""
        said = bytearray()
        # Not from the beginning each time: a server that sends nothing but tags would have
        # this search for seconds.
        while said[-1:] != b">" or not pattern.search(said, max(0, len(said) - _LONGEST_TAG)):
            if len(said) >= _MOST_BYTES:
                raise StartTLSRefusedError(f"the server said more than {_MOST_BYTES} bytes")
            said += await self.exactly(1)
        return bytes(said)


def _refused(said: str | bytes) -> StartTLSRefusedError:
    return StartTLSRefusedError(f"the server said {repr(said[:_SHOWN]).removeprefix('b')}")


def _ended() -> StartTLSRefusedError:
    return StartTLSRefusedError("the server closed the connection before TLS began")


def _not_offered() -> StartTLSRefusedError:
    return StartTLSRefusedError("the server does not offer STARTTLS")


async def _smtp(server: _Conversation, *, hello: str = "EHLO") -> None:
    """RFC 3207; LMTP greets with LHLO (RFC 2033, section 4.1)."""
    await server.reply("220")
    await server.send(f"{hello} netsock.invalid")
    offered = await server.reply("250")
    if "STARTTLS" not in {line[4:].strip().upper() for line in offered[1:]}:
        raise _not_offered()
    await server.send("STARTTLS")
    await server.reply("220")


async def _imap(server: _Conversation) -> None:
    """RFC 9051, section 6.2.1."""
    greeting = await server.line()
    if not greeting.upper().startswith("* OK"):
        raise _refused(greeting)
    await server.send("a STARTTLS")
    line = await server.line()
    while line.startswith("*"):
        line = await server.line()
    if not line.upper().startswith("A OK"):
        raise _refused(line)


async def _pop3(server: _Conversation) -> None:
    """RFC 2595, section 4."""
    for command in (None, "STLS"):
        if command is not None:
            await server.send(command)
        line = await server.line()
        if not line.startswith("+OK"):
            raise _refused(line)


async def _codes(server: _Conversation, greetings: tuple[str, ...], ask: str, agreed: str) -> None:
    """RFC 4217, section 4 (FTP); RFC 4642, section 2.2 (NNTP)."""
    await server.reply(*greetings)
    await server.send(ask)
    await server.reply(agreed)


async def _sieve(server: _Conversation) -> None:
    """RFC 5804, sections 1.3 and 2.2: capabilities, then an answer, each time."""
    offered = False
    for command in (None, "STARTTLS"):
        if command is not None:
            if not offered:
                raise _not_offered()
            await server.send(command)
        while not (line := await server.line()).upper().startswith(("OK", "NO", "BYE")):
            offered = offered or line.strip().upper() == '"STARTTLS"'
        if not line.upper().startswith("OK"):
            raise _refused(line)


_FEATURES: Final = re.compile(rb"(</stream:features>|<stream:features\s*/>|</stream:stream>)$")
_ANSWER: Final = re.compile(
    rb"(<proceed\b[^>]*/>|</proceed\s*>|<failure\b[^>]*>|</stream:stream>)$"
)
_OFFER: Final = re.compile(rb"<starttls\b")


async def _xmpp(server: _Conversation, *, namespace: str = "jabber:client") -> None:
    """RFC 6120, section 5.4."""
    await server.send_bytes(
        "<?xml version='1.0'?><stream:stream version='1.0' "
        f"xmlns='{namespace}' xmlns:stream='http://etherx.jabber.org/streams' "
        f"to={quoteattr(server.host)}>".encode()
    )
    if not _OFFER.search(said := await server.until(_FEATURES)):
        raise _not_offered() if b"features" in said else _refused(said)
    await server.send_bytes(b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>")
    if b"<proceed" not in (said := await server.until(_ANSWER)):
        raise _refused(said.strip())


async def _postgres(server: _Conversation) -> None:
    """Send the message SSLRequest of PostgreSQL's protocol 3; one byte is the answer."""
    await server.send_bytes(struct.pack("!II", 8, 80877103))
    answer = await server.exactly(1)
    if answer == b"N":
        raise StartTLSRefusedError("the server does not offer TLS")
    if answer != b"S":
        raise _refused(answer)


_MYSQL_SSL: Final = 0x0800
_MYSQL_REQUEST: Final = 0x0200 | _MYSQL_SSL | 0x8000
"""Protocol 4.1, TLS, and authentication of 4.1."""


async def _mysql(server: _Conversation) -> None:
    """Send the packet SSLRequest of MySQL's protocol 10, behind the server's greeting."""
    size = int.from_bytes((await server.exactly(4))[:3], "little")
    greeting = await server.exactly(size)
    # The version is a text that ends with NUL; 13 bytes later are the lower capabilities.
    at = greeting.find(b"\0") + 14
    if greeting[:1] != b"\x0a" or at < 15 or len(greeting) < at + 2:  # noqa: PLR2004
        raise _refused(greeting)
    if not int.from_bytes(greeting[at : at + 2], "little") & _MYSQL_SSL:
        raise StartTLSRefusedError("the server does not offer TLS")
    request = struct.pack("<IIB23x", _MYSQL_REQUEST, 1 << 24, 33)
    await server.send_bytes(len(request).to_bytes(3, "little") + b"\1" + request)


_LDAP_OID: Final = b"1.3.6.1.4.1.1466.20037"
_LDAP_REQUEST: Final = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x16" + _LDAP_OID
_LDAP_ANSWER: Final = re.compile(
    rb"\x02\x01\x01\x78(?:[\0-\x7f]|\x81.|\x82..)\x0a\x01(.)", re.DOTALL
)


async def _ldap(server: _Conversation) -> None:
    """RFC 4511, section 4.14: an extended request and its response, in BER."""
    await server.send_bytes(_LDAP_REQUEST)
    tag, size = await server.exactly(2)
    if tag != 0x30:  # noqa: PLR2004 - a SEQUENCE
        raise _refused(bytes([tag, size]))
    if size > 0x7F:  # noqa: PLR2004 - the long form: how many bytes the length has
        size = int.from_bytes(await server.exactly(size & 0x7F), "big")
    answer = await server.exactly(size)
    matched = _LDAP_ANSWER.match(answer)
    if matched is None:
        raise _refused(answer)
    if matched[1] != b"\0":
        raise StartTLSRefusedError(f"the server answered with resultCode {matched[1][0]}")


class Dialogue(NamedTuple):
    """
    How TLS is asked for.

    Attributes:
        port: The usual one.
        hold: Holds the conversation up to where TLS begins.
    """

    port: int
    hold: Callable[[_Conversation], Awaitable[None]]


DIALOGUES: Final = {
    "smtp": Dialogue(25, _smtp),
    "lmtp": Dialogue(24, partial(_smtp, hello="LHLO")),
    "imap": Dialogue(143, _imap),
    "pop3": Dialogue(110, _pop3),
    "sieve": Dialogue(4190, _sieve),
    "nntp": Dialogue(119, partial(_codes, greetings=("200", "201"), ask="STARTTLS", agreed="382")),
    "ftp": Dialogue(21, partial(_codes, greetings=("220",), ask="AUTH TLS", agreed="234")),
    "ldap": Dialogue(389, _ldap),
    "xmpp": Dialogue(5222, _xmpp),
    "xmpp-server": Dialogue(5269, partial(_xmpp, namespace="jabber:server")),
    "postgres": Dialogue(5432, _postgres),
    "mysql": Dialogue(3306, _mysql),
}


async def ask_for_tls(sock: Socket, protocol: str, host: str) -> None:
    """
    Hold the conversation of *protocol* on *sock* up to where TLS begins.

    Bounded in what it reads; its time is the caller's to limit. *host* is whom XMPP asks for.

    Raises:
        StartTLSRefusedError: The server does not want to.
        SocketPortError: A line is too long.
        SocketError: The connection broke.
    """
    await DIALOGUES[protocol].hold(_Conversation(sock, host))
