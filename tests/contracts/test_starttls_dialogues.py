"""SMTP and IMAP with STARTTLS over our sockets, against other people's programs."""

# ruff: noqa: N802 - Twisted owns the names of these methods

from __future__ import annotations

import imaplib
import smtplib
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Factory
from twisted.mail import imap4, smtp
from zope.interface import implementer

from tests.support.peers import openssl
from tests.support.processes import needs
from tests.support.streams import in_thread, python_client_context, soon
from twisted_netsock import (
    Socket,
    make_client_socket,
    make_server_socket,
    server_context_factory,
    start_tls,
)


async def say(connection: Socket, *lines: str) -> None:
    await connection.output_port.write("".join(f"{line}\r\n" for line in lines).encode())


async def heard(connection: Socket) -> str | None:
    """Return the next line, or `None` at the end."""
    line = await soon(connection.input_port.readline())
    return line.decode().rstrip("\r\n") if line else None


async def answer_of(connection: Socket) -> str:
    """Return the last line of the next answer."""
    while True:
        line = await heard(connection)
        assert line is not None, "the server has hung up"
        if line[3:4] != "-" and not line.startswith("*"):
            return line


class Mailbox:
    """A server of SMTP or IMAP that has nothing to say before TLS; keeps what it hears."""

    def __init__(self, factory: Any) -> None:
        self.factory = factory
        self.plain: list[str] = []
        self.protected: list[str] = []

    async def smtp(self, connection: Socket) -> None:
        await say(connection, "220 here")
        while (line := await heard(connection)) is not None:
            if line.upper() == "STARTTLS":
                break
            self.plain.append(line)
            await say(connection, "250-here", "250 STARTTLS")
        await say(connection, "220 go ahead")
        tls = await start_tls(connection, self.factory)
        in_data = False
        while (line := await heard(tls)) is not None:
            self.protected.append(line)
            if in_data and line != ".":
                continue
            in_data = line.upper() == "DATA"
            if line.upper() == "QUIT":
                await say(tls, "221 farewell")
                return
            await say(tls, "354 speak" if in_data else "250 ok")

    async def imap(self, connection: Socket) -> None:
        await say(connection, "* OK IMAP4rev1 here")
        while (line := await heard(connection)) is not None:
            self.plain.append(line)
            tag, command = line.split()[:2]
            if command == "STARTTLS":
                await say(connection, f"{tag} OK go ahead")
                break
            await say(connection, "* CAPABILITY IMAP4rev1 STARTTLS", f"{tag} OK done")
        async with await start_tls(connection, self.factory) as tls:
            while (line := await heard(tls)) is not None:
                self.protected.append(line)
                tag, command = line.split()[:2]
                if command == "CAPABILITY":
                    await say(tls, "* CAPABILITY IMAP4rev1")
                if command == "LOGOUT":
                    await say(tls, "* BYE")
                await say(tls, f"{tag} OK done")
                if command == "LOGOUT":
                    return


@pytest.fixture
def mailbox(authority) -> Mailbox:
    return Mailbox(server_context_factory(authority.server_options("localhost")))


async def test_smtplib_sends_a_letter_to_us(mailbox, authority):
    def send(port: int) -> None:
        with smtplib.SMTP("localhost", port, timeout=10) as client:
            client.starttls(context=python_client_context(authority))
            client.sendmail("me@here.example", ["you@there.example"], "Subject: hello\n\nhello")

    async with await make_server_socket("127.0.0.1", 0) as listener:
        served = listener.serve(mailbox.smtp)
        await soon(in_thread(send, listener.getsockname().port))
    await soon(served)
    assert [line.split()[0] for line in mailbox.plain] == ["ehlo"]
    assert "Subject: hello" in mailbox.protected


async def test_imaplib_logs_in_with_us(mailbox, authority):
    def visit(port: int) -> None:
        with imaplib.IMAP4("localhost", port, timeout=10) as client:
            client.starttls(ssl_context=python_client_context(authority))
            client.login("somebody", "secret")

    async with await make_server_socket("127.0.0.1", 0) as listener:
        served = listener.serve(mailbox.imap)
        await soon(in_thread(visit, listener.getsockname().port))
    await soon(served)
    assert not [line for line in mailbox.plain if "secret" in line]
    assert [line for line in mailbox.protected if "secret" in line]


@needs("openssl")
@pytest.mark.parametrize("protocol", ["smtp", "imap"])
async def test_openssl_speaks_with_us(protocol, mailbox):
    leave = {"smtp": b"QUIT\n", "imap": b"x LOGOUT\n"}[protocol]
    async with await make_server_socket("127.0.0.1", 0) as listener:
        served = listener.serve(getattr(mailbox, protocol))
        said = await openssl(
            *("s_client", "-crlf", "-ign_eof", "-quiet", "-starttls", protocol),
            *("-connect", f"127.0.0.1:{listener.getsockname().port}"),
            given=leave,
        )
    await soon(served)
    assert {"smtp": "221 farewell", "imap": "BYE"}[protocol] in said.text


# Our clients


@implementer(smtp.IMessage)
class Letter:
    """Where Twisted's server of SMTP puts a letter."""

    def __init__(self, delivered: list[bytes]) -> None:
        self._delivered = delivered
        self._lines: list[bytes] = []

    def lineReceived(self, line: bytes) -> None:
        self._lines.append(line)

    def eomReceived(self) -> Deferred[None]:
        self._delivered.append(b"\n".join(self._lines))
        return succeed(None)

    def connectionLost(self) -> None:
        raise AssertionError("a letter was not finished")


@implementer(smtp.IMessageDelivery)
class Delivery:
    """Takes letters from and for everybody, over TLS alone."""

    def __init__(self, server: smtp.ESMTP) -> None:
        self._server = server
        self.delivered: list[bytes] = []

    def receivedHeader(self, helo: Any, origin: Any, recipients: Any) -> bytes:
        return b"Received: here"

    def validateFrom(self, helo: Any, origin: Any) -> Any:
        assert ISSLTransport.providedBy(self._server.transport)
        return origin

    def validateTo(self, user: Any) -> Any:
        return lambda: Letter(self.delivered)


async def converse(connection: Socket, *lines: str) -> list[str]:
    """Say *lines* one after the other, and return the last line of each answer."""
    answers = []
    for line in lines:
        await say(connection, line)
        answers.append(await answer_of(connection))
    return answers


async def test_we_send_a_letter_to_twisted(authority):
    context = server_context_factory(authority.server_options("localhost"))
    servers: list[Any] = []

    def build() -> smtp.ESMTP:
        server = smtp.ESMTP(contextFactory=context)
        server.host = b"here"
        server.delivery = Delivery(server)
        servers.append(server)
        return server

    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
        Factory.forProtocol(build)
    )
    connection = await make_client_socket("127.0.0.1", port.getHost().port)
    assert (await answer_of(connection)).startswith("220")
    assert (await converse(connection, "EHLO me", "STARTTLS"))[1].startswith("220")
    async with await start_tls(connection, authority.client_options(), "localhost") as tls:
        answers = await converse(
            tls, "EHLO me", "MAIL FROM:<me@here>", "RCPT TO:<you@there>", "DATA"
        )
        assert [answer[:3] for answer in answers] == ["250", "250", "250", "354"]
        answers = await converse(tls, "Subject: hello\r\n\r\nhello\r\n.", "QUIT")
        assert [answer[:3] for answer in answers] == ["250", "221"]
    await port.stopListening()
    assert b"Subject: hello" in servers[0].delivery.delivered[0]


async def test_we_log_in_with_twisted_over_imap(authority):
    context = server_context_factory(authority.server_options("localhost"))
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
        Factory.forProtocol(lambda: imap4.IMAP4Server(contextFactory=context))
    )
    connection = await make_client_socket("127.0.0.1", port.getHost().port)
    assert "STARTTLS" in (await heard(connection) or "")
    assert (await converse(connection, "a STARTTLS"))[0].startswith("a OK")
    async with await start_tls(connection, authority.client_options(), "localhost") as tls:
        assert tls.tls_version == "TLSv1.3"
        assert (await converse(tls, "b NOOP"))[0].startswith("b OK")
        assert (await converse(tls, "c LOGOUT"))[0].startswith("c OK")
    await port.stopListening()
