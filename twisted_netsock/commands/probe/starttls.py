"""What is said in plain text before TLS begins: STARTTLS of SMTP, IMAP, POP3 and FTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..._sockets.socket import Socket
from ...errors import NetsockError

__all__ = ["DEFAULT_PORTS", "StartTLSRefusedError", "ask_for_tls"]

_LINE: Final = 4096
_LINES: Final = 100
"""The most of a server's lines that are read, and how long each may be."""

DEFAULT_PORTS: Final = {"smtp": 25, "imap": 143, "pop3": 110, "ftp": 21}


class StartTLSRefusedError(NetsockError):
    """The server does not begin TLS, or speaks another protocol."""


class _Dialogue:
    """Lines to and from a server."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self._left = _LINES

    async def send(self, line: str) -> None:
        await self._sock.sendall(line.encode("ascii") + b"\r\n")

    async def line(self) -> str:
        """Return the next line."""
        self._left -= 1
        if self._left < 0:
            raise StartTLSRefusedError(f"the server said more than {_LINES} lines")
        raw = await self._sock.input_port.readline(_LINE)
        if not raw.endswith(b"\n"):
            raise StartTLSRefusedError("the server closed the connection before TLS began")
        return raw.decode("utf-8", "backslashreplace").rstrip("\r\n")

    async def reply(self, code: str) -> list[str]:
        """Return a reply of SMTP or FTP (RFC 5321, section 4.2; RFC 959, section 4.2)."""
        lines = [await self.line()]
        if not lines[0].startswith(code):
            raise _refused(lines[0])
        if lines[0].startswith(f"{code}-"):
            while not lines[-1].startswith(f"{code} "):
                lines.append(await self.line())
        return lines


def _refused(line: str) -> StartTLSRefusedError:
    return StartTLSRefusedError(f"the server said {line[:200]!r}")


async def _smtp(dialogue: _Dialogue) -> None:
    """RFC 3207."""
    await dialogue.reply("220")
    await dialogue.send("EHLO netsock.invalid")
    offered = await dialogue.reply("250")
    if "STARTTLS" not in {line[4:].strip().upper() for line in offered[1:]}:
        raise StartTLSRefusedError("the server does not offer STARTTLS")
    await dialogue.send("STARTTLS")
    await dialogue.reply("220")


async def _imap(dialogue: _Dialogue) -> None:
    """RFC 9051, section 6.2.1."""
    greeting = await dialogue.line()
    if not greeting.upper().startswith("* OK"):
        raise _refused(greeting)
    await dialogue.send("a STARTTLS")
    line = await dialogue.line()
    while line.startswith("*"):
        line = await dialogue.line()
    if not line.upper().startswith("A OK"):
        raise _refused(line)


async def _pop3(dialogue: _Dialogue) -> None:
    """RFC 2595, section 4."""
    for command in (None, "STLS"):
        if command is not None:
            await dialogue.send(command)
        line = await dialogue.line()
        if not line.startswith("+OK"):
            raise _refused(line)


async def _ftp(dialogue: _Dialogue) -> None:
    """RFC 4217, section 4."""
    await dialogue.reply("220")
    await dialogue.send("AUTH TLS")
    await dialogue.reply("234")


_DIALOGUES: Final[dict[str, Callable[[Any], Awaitable[None]]]] = {
    "smtp": _smtp,
    "imap": _imap,
    "pop3": _pop3,
    "ftp": _ftp,
}


async def ask_for_tls(sock: Socket, protocol: str) -> None:
    """
    Hold the conversation of *protocol* on *sock* up to where TLS begins.

    Bounded in what it reads; its time is the caller's to limit.

    Raises:
        StartTLSRefusedError: The server does not want to.
        SocketPortError: A line is too long.
        SocketError: The connection broke.
    """
    await _DIALOGUES[protocol](_Dialogue(sock))
