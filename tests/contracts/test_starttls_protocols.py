"""Twisted's own protocols that start TLS, over our transports and with any contextFactory."""

# ruff: noqa: N802 - Twisted owns the names

from __future__ import annotations

from io import BytesIO

import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import ISSLTransport
from twisted.mail import imap4, smtp
from twisted.protocols import amp
from zope.interface import implementer

from tests.support.clocks import until
from tests.support.loopback import LOOPBACK
from tests.support.peers import openssl
from tests.support.protocols import Protocols, listening, raw_client, raw_receive
from twisted_netsock import (
    SocketOptions,
    client_context_factory,
    client_endpoint,
    server_context_factory,
)

pytestmark = pytest.mark.filterwarnings(
    # Twisted's own objects use what pyOpenSSL will do without.
    "ignore:Passing pyOpenSSL:DeprecationWarning",
    "ignore:X509:DeprecationWarning",
)


class Contexts:
    """The contextFactory objects of both sides."""

    def __init__(self, kinds, authority):
        client, server = kinds
        issued = authority.issue("localhost", LOOPBACK)
        if client == "ours":
            self.client = client_context_factory(authority.client_options(), LOOPBACK)
        else:
            root = ssl.trustRootFromCertificates(
                [ssl.Certificate.loadPEM(authority.certificate_pem)]
            )
            self.client = ssl.optionsForClientTLS(LOOPBACK, trustRoot=root)
        if server == "ours":
            self.server = server_context_factory(authority.server_options())
        else:
            self.server = ssl.PrivateCertificate.loadPEM(issued.pem).options()


@pytest.fixture(
    params=[("ours", "ours"), ("ours", "theirs"), ("theirs", "ours"), ("theirs", "theirs")],
    ids="-".join,
)
def contexts(request, authority):
    return Contexts(request.param, authority)


def plain_client(port):
    return client_endpoint(reactor, LOOPBACK, port.getHost().port)


# SMTP


@implementer(smtp.IMessageDelivery)
class Delivery:
    """Takes every message, and notes over what it came."""

    def __init__(self):
        self.secure = []
        self.lines = []
        self.protocol = None

    def receivedHeader(self, helo, origin, recipients):
        return b"Received: here"

    def validateFrom(self, helo, origin):
        self.secure.append(ISSLTransport.providedBy(self.protocol.transport))
        return origin

    def validateTo(self, user):
        return lambda: self

    def lineReceived(self, line):
        self.lines.append(line)

    def eomReceived(self):
        return succeed(None)

    def connectionLost(self):
        pass


def mail_servers(delivery, context_factory):
    """Return a factory of SMTP servers that start TLS."""

    def make():
        delivery.protocol = smtp.ESMTP(None, context_factory)
        delivery.protocol.delivery = delivery
        delivery.protocol.timeout = None
        return delivery.protocol

    return Protocols(make)


async def send_mail(port, context_factory):
    """
    Send one message, which may go over TLS only.

    Returns when the connection has ended, with the Deferred of the sender.
    """
    sent = Deferred()
    sender = smtp.ESMTPSenderFactory(
        None,
        None,
        "from@example.com",
        "to@example.com",
        BytesIO(b"Subject: hello\n\n" + b"a line of text\n" * 10_000),
        sent,
        retries=0,
        contextFactory=context_factory,
        requireTransportSecurity=True,
        requireAuthentication=False,
        timeout=None,
        hostname="localhost",
    )
    sender.noisy = False
    client = await plain_client(port).connect(sender)
    transport = client.transport
    await until(lambda: transport.disconnected)
    return sent


async def test_mail(contexts):
    delivery = Delivery()
    async with listening(SocketOptions(), mail_servers(delivery, contexts.server)) as port:
        sent = await send_mail(port, contexts.client)
        taken, _ = await sent
        assert taken == 1
        assert delivery.secure == [True]
        assert delivery.lines.count(b"a line of text") == 10_000


async def test_mail_is_not_sent_to_the_wrong_server(authority):
    wrong = client_context_factory(authority.client_options(), "other.example")
    delivery = Delivery()
    contexts = Contexts(("ours", "theirs"), authority)
    async with listening(SocketOptions(), mail_servers(delivery, contexts.server)) as port:
        sent = await send_mail(port, wrong)
        assert not sent.called
        assert delivery.lines == []
        assert delivery.secure == []


async def test_mail_commands_injected_ahead_of_the_handshake_reach_nobody(contexts):
    delivery = Delivery()
    async with listening(SocketOptions(), mail_servers(delivery, contexts.server)) as port:
        with raw_client(port) as sock:
            assert (await raw_receive(sock)).startswith(b"220")
            sock.send(b"EHLO attacker\r\n")
            assert b"STARTTLS" in await raw_receive(sock)
            sock.send(b"STARTTLS\r\n")
            assert (await raw_receive(sock)).startswith(b"220")
            sock.send(b"MAIL FROM:<attacker@example.com>\r\n")
            await until(lambda: delivery.protocol.transport.disconnected)
            assert delivery.secure == []


@pytest.mark.parametrize("kinds", [("ours", "ours"), ("theirs", "theirs")], ids="-".join)
async def test_openssl_speaks_starttls_with_us(kinds, authority, tmp_path):
    delivery = Delivery()
    contexts = Contexts(kinds, authority)
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(authority.certificate_pem)
    async with listening(SocketOptions(), mail_servers(delivery, contexts.server)) as port:
        said = await openssl(
            "s_client",
            *("-connect", f"{LOOPBACK}:{port.getHost().port}"),
            *("-starttls", "smtp", "-crlf", "-quiet", "-verify_return_error"),
            *("-CAfile", str(trusted)),
            given=b"EHLO here\nMAIL FROM:<from@example.com>\nQUIT\n",
        )
        assert "250 Sender address accepted" in said.text
        assert "221 " in said.text
        assert delivery.secure == [True]


# IMAP


async def test_imap_logs_in_after_starttls(contexts):
    checker = InMemoryUsernamePasswordDatabaseDontUse(user=b"password")
    accounts = []

    class Realm:
        def requestAvatar(self, avatar_id, mind, *interfaces):
            accounts.append((avatar_id, ISSLTransport.providedBy(servers.built[0].transport)))
            account = imap4.MemoryAccount(avatar_id)
            account.addMailbox = lambda *_: None
            return imap4.IAccount, account, lambda: None

    def make():
        server = imap4.IMAP4Server(contextFactory=contexts.server)
        server.portal = Portal(Realm(), [checker])
        server.timeOut = None
        return server

    servers = Protocols(make)
    clients = Protocols(lambda: imap4.IMAP4Client(contextFactory=contexts.client))
    async with listening(SocketOptions(), servers) as port:
        client = await plain_client(port).connect(clients)
        assert b"LOGINDISABLED" in await client.getCapabilities()
        await client.login(b"user", b"password")
        assert accounts == [(b"user", True)]
        assert b"LOGINDISABLED" not in await client.getCapabilities()
        await client.logout()
        await clients.all_lost()


# AMP


class Shout(amp.Command):
    arguments = ((b"text", amp.String()),)
    response = ((b"text", amp.String()), (b"secure", amp.Boolean()))


async def test_amp_starts_tls(authority):
    issued = authority.issue("localhost", LOOPBACK)
    root = ssl.Certificate.loadPEM(authority.certificate_pem)
    identity = ssl.PrivateCertificate.loadPEM(issued.pem)

    class Server(amp.AMP):
        @amp.StartTLS.responder
        def certificates(self):
            return {"tls_localCertificate": identity, "tls_verifyAuthorities": [root]}

        @Shout.responder
        def shout(self, text):
            secure = ISSLTransport.providedBy(self.transport)
            return {"text": text.upper(), "secure": secure}

    servers, clients = Protocols(Server), Protocols(amp.AMP)
    async with listening(SocketOptions(), servers) as port:
        client = await plain_client(port).connect(clients)
        assert await client.callRemote(Shout, text=b"a") == {"text": b"A", "secure": False}
        await client.callRemote(
            amp.StartTLS, tls_localCertificate=identity, tls_verifyAuthorities=[root]
        )
        assert await client.callRemote(Shout, text=b"b") == {"text": b"B", "secure": True}
        assert client.peerCertificate.serialNumber() == identity.serialNumber()
        await clients.all_lost()
