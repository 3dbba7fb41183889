"""
Servers of twisted.mail by strings of ours, and clients of the standard library.

These use contexts of Python's, or in a subclass of a line a socket of ours.
"""

from __future__ import annotations

import asyncio
import imaplib
import poplib
import smtplib

from common import (
    AUTHORITY,
    OURS,
    client_context,
    client_socket,
    in_thread,
    listen,
    on_reactor,
    right,
    way,
)
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import succeed
from twisted.internet.protocol import Factory
from twisted.mail.imap4 import IAccount, IMAP4Server, MemoryAccount
from twisted.mail.pop3 import POP3, IMailbox, Mailbox
from twisted.mail.smtp import ESMTP, IMessage, IMessageDelivery
from zope.interface import implementer

from twisted_netsock import server_context_factory

MAIL = []


@implementer(IMessage)
class Message:
    def __init__(self):
        self.lines = []

    def lineReceived(self, line):
        self.lines.append(line)

    def eomReceived(self):
        MAIL.append(b"\n".join(self.lines))
        return succeed(None)

    def connectionLost(self):
        """Do nothing."""


@implementer(IMessageDelivery)
class Delivery:
    def receivedHeader(self, helo, origin, recipients):
        return b"Received: here"

    def validateFrom(self, helo, origin):
        return origin

    def validateTo(self, user):
        return Message


@implementer(IRealm)
class Realm:
    def requestAvatar(self, who, mind, *interfaces):
        if IAccount in interfaces:
            return IAccount, MemoryAccount(who), lambda: None
        return IMailbox, Mailbox(), lambda: None


def portal():
    return Portal(Realm(), [InMemoryUsernamePasswordDatabaseDontUse(user=b"password")])


def smtp():
    protocol = ESMTP(contextFactory=server_context_factory(AUTHORITY.server_options("localhost")))
    protocol.delivery = Delivery()
    return protocol


def pop3():
    protocol = POP3()
    protocol.portal = portal()
    return protocol


def imap4():
    context = server_context_factory(AUTHORITY.server_options("localhost"))
    protocol = IMAP4Server(contextFactory=context)
    protocol.portal = portal()
    return protocol


def by_smtplib(port):
    with smtplib.SMTP("localhost", port, timeout=20) as client:
        client.starttls(context=client_context())
        client.sendmail("a@localhost", ["b@localhost"], "Subject: x\r\n\r\n" + "text\r\n" * 10_000)
    right("a mail", holds=len(MAIL) == 1 and MAIL[0].count(b"text") == 10_000)


def by_smtplib_ssl(port):
    with smtplib.SMTP_SSL("localhost", port, timeout=20, context=client_context()) as client:
        client.sendmail("a@localhost", ["b@localhost"], "Subject: x\r\n\r\ntext\r\n")
    right("a mail", holds=len(MAIL) == 1)


def by_poplib(port):
    client = poplib.POP3_SSL("localhost", port, timeout=20, context=client_context())
    client.user("user")
    client.pass_("password")
    right("no mail", holds=client.stat() == (0, 0))
    client.quit()


def by_imaplib(port):
    with imaplib.IMAP4("localhost", port, timeout=20) as client:
        client.starttls(client_context())
        client.login("user", "password")
        right("an answer", holds=client.noop()[0] == "OK")


class OurSMTP(smtplib.SMTP):
    def _get_socket(self, host, port, timeout):
        return client_socket(port)


class OurPOP3(poplib.POP3):
    def _create_socket(self, timeout):
        return client_socket(self.port)


class OurIMAP4(imaplib.IMAP4):
    def _create_socket(self, timeout):
        return client_socket(self.port)


def by_our_smtplib(port):
    with OurSMTP("localhost", port) as client:
        client.sendmail("a@localhost", ["b@localhost"], "Subject: x\r\n\r\n" + "text\r\n" * 10_000)
    right("a mail", holds=len(MAIL) == 1 and MAIL[0].count(b"text") == 10_000)


def by_our_poplib(port):
    client = OurPOP3("localhost", port)
    client.user("user")
    client.pass_("password")
    right("no mail", holds=client.stat() == (0, 0))
    client.quit()


def by_our_imaplib(port):
    with OurIMAP4("localhost", port) as client:
        client.login("user", "password")
        right("an answer", holds=client.noop()[0] == "OK")


def by_aiosmtplib(port):
    import aiosmtplib

    text = "Subject: x\r\n\r\n" + "text\r\n" * 10_000
    sending = aiosmtplib.send(
        text, sender="a@localhost", recipients=["b@localhost"], hostname="localhost", port=port,
        timeout=20, start_tls=True, tls_context=client_context(),
    )  # fmt: skip
    asyncio.run(sending)
    right("a mail", holds=len(MAIL) == 1 and MAIL[0].count(b"text") == 10_000)


WAYS = {
    "aiosmtplib, STARTTLS": (smtp, by_aiosmtplib),
    "SMTP, STARTTLS": (smtp, by_smtplib),
    "SMTP, TLS": (smtp, by_smtplib_ssl),
    "POP3, TLS": (pop3, by_poplib),
    "IMAP4, STARTTLS": (imap4, by_imaplib),
    "SMTP, socket of ours": (smtp, by_our_smtplib),
    "POP3, socket of ours": (pop3, by_our_poplib),
    "IMAP4, socket of ours": (imap4, by_our_imaplib),
}


async def main():
    name = way().removesuffix(OURS)
    serve, talk = WAYS[name]
    plain = name.endswith("STARTTLS")
    factory = Factory.forProtocol(serve)
    await in_thread(talk, await listen(factory, plain=plain))


on_reactor(main)
