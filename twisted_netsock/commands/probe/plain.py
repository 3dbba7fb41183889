"""What a server speaks that begins no TLS, by its greeting or by its answer."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final, NamedTuple

from twisted.internet.defer import TimeoutError as DeferredTimeoutError

from ..._io.interfaces import Reactor
from ..._sockets.make import make_client_socket
from ..._sockets.socket import Socket
from ...addresses import SocketAddress
from ...errors import NetsockError
from ...options import SocketOptions

__all__ = ["Plain", "listen_to"]

_PATIENCE: Final = timedelta(seconds=1)
"""For a greeting: who speaks first does so within a round trip."""

_ENOUGH: Final = 512
"""Bytes of a greeting that are looked at."""

_QUESTION: Final = b"GET / HTTP/1.0\r\n\r\n"
"""What every server of HTTP answers, and those of other protocols mostly with an error."""


class Plain(NamedTuple):
    """
    A protocol that was recognised.

    Attributes:
        name: What people call it.
        starttls: What `--starttls` calls it, where it has that.
    """

    name: str
    starttls: str | None = None

    def __str__(self) -> str:
        hint = f"; try --starttls {self.starttls}" if self.starttls else ""
        return f"no TLS there: looks like {self.name}{hint}"


_KNOWN: Final = [
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), Plain(*plain))
    for pattern, plain in (
        (rb"HTTP/\d|\s*<(!doctype html|html)\b", ("HTTP",)),
        (rb"SSH-", ("SSH",)),
        (rb"220[ -][^\n]*\bLMTP\b", ("LMTP", "lmtp")),
        (rb"220[ -][^\n]*SMTP", ("SMTP", "smtp")),
        (rb"220[ -][^\n]*FTP", ("FTP", "ftp")),
        (rb"(220|421|554)[ -]", ("SMTP or FTP",)),
        (rb"\* (OK|PREAUTH|BYE)\b", ("IMAP", "imap")),
        (rb"\+OK\b", ("POP3", "pop3")),
        (rb"20[01] ", ("NNTP", "nntp")),
        (rb'"[A-Z]+"', ("Sieve", "sieve")),
        (rb"..\0\0(\x0a[\x20-\x7e]+\0|\xff)", ("MySQL", "mysql")),
        (rb"-ERR\b|-DENIED", ("Redis",)),
        (rb"RFB \d", ("VNC",)),
        (rb"AMQP", ("AMQP",)),
        (rb"\xff[\xfb-\xfe]", ("Telnet",)),
        (rb"<\?xml|<stream:", ("XMPP", "xmpp")),
    )
]


async def listen_to(
    reactor: Reactor, address: SocketAddress, options: SocketOptions
) -> Plain | None:
    """
    Connect anew, and return what the server speaks, if that is known.

    It is listened to first, and asked for a page if it says nothing. Takes two seconds at most.
    """
    options = options.replace(connection_timeout=_PATIENCE)
    try:
        sock = await make_client_socket(address.host, address.port, options, reactor=reactor)
    except NetsockError:
        return None
    try:
        said = await _hear(reactor, sock)
        if not said:
            await sock.sendall(_QUESTION)
            said = await _hear(reactor, sock)
    except NetsockError:
        return None
    finally:
        sock.abort()
    return next((plain for pattern, plain in _KNOWN if pattern.match(said)), None)


async def _hear(reactor: Reactor, sock: Socket) -> bytes:
    try:
        return await sock.recv(_ENOUGH).addTimeout(_PATIENCE.total_seconds() / 2, reactor)
    except DeferredTimeoutError:
        return b""
