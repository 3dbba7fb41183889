"""AMP between two protocols; on a plain connection it starts TLS with objects of Twisted's."""

from __future__ import annotations

from common import AUTHORITY, connect, listen, on_reactor, right, way
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, PrivateCertificate
from twisted.protocols.amp import AMP, Command, Integer, StartTLS

IDENTITY = PrivateCertificate.loadPEM(AUTHORITY.issue("localhost").pem)


class Add(Command):
    arguments = [(b"a", Integer()), (b"b", Integer())]
    response = [(b"sum", Integer())]


class Server(AMP):
    @Add.responder
    def add(self, a, b):
        return {"sum": a + b}

    @StartTLS.responder
    def secure(self):
        return {"tls_localCertificate": IDENTITY}


async def main():
    port = await listen(Factory.forProtocol(Server))
    client = await connect(Factory.forProtocol(AMP), port)
    if way() == "plain":
        trusted = [Certificate.loadPEM(AUTHORITY.certificate_pem)]
        await client.callRemote(StartTLS, tls_verifyAuthorities=trusted)
    right("a sum", holds=(await client.callRemote(Add, a=1, b=2))["sum"] == 3)
    client.transport.loseConnection()


on_reactor(main)
