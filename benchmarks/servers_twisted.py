"""Echo servers on Twisted: our sockets, and one protocol on our endpoint and on Twisted's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .task import HOST, Task, install_reactor, serves


def on_reactor(task: Task, main: Callable[[Any], Any]) -> None:
    """Run *main* on the reactor that *task* names, until the process is ended."""
    install_reactor(task.reactor)
    from twisted.internet.task import react

    react(main)


def netsock(task: Task) -> None:
    """Our awaitable sockets: ``serve`` with a handler for each connection."""

    async def echo(connection: Any) -> None:
        while data := await connection.recv(65536):
            await connection.sendall(data)

    async def main(reactor: Any) -> None:
        from twisted_netsock import (
            ServerTLSSocketOptions,
            make_server_socket,
            make_server_tls_socket,
        )

        if task.certificate is None:
            server: Any = await make_server_socket(HOST, 0)
        else:
            options = ServerTLSSocketOptions(certificates=task.certificate)
            server = await make_server_tls_socket(HOST, 0, options)
        serves(server.getsockname().port)
        await server.serve(echo)

    on_reactor(task, main)


def their_endpoint(reactor: Any, task: Task) -> Any:
    """Return Twisted's endpoint."""
    from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
    from twisted.internet.ssl import PrivateCertificate

    if task.certificate is None:
        return TCP4ServerEndpoint(reactor, 0, interface=HOST)
    with open(task.certificate, "rb") as file:
        certificate = PrivateCertificate.loadPEM(file.read())
    return SSL4ServerEndpoint(reactor, 0, certificate.options(), interface=HOST)


def our_endpoint(reactor: Any, task: Task) -> Any:
    """Return our endpoint."""
    from twisted_netsock import ServerTLSSocketOptions, server_endpoint

    if task.certificate is None:
        return server_endpoint(reactor, HOST, 0)
    options = ServerTLSSocketOptions(certificates=task.certificate)
    return server_endpoint(reactor, HOST, 0, options)


def protocol_on(endpoint_of: Callable[[Any, Task], Any]) -> Callable[[Task], None]:
    """Return the server of the protocol on what *endpoint_of* makes."""

    def server(task: Task) -> None:
        async def main(reactor: Any) -> None:
            from twisted.internet.defer import Deferred
            from twisted.internet.protocol import Factory, Protocol

            class Echo(Protocol):
                transport: Any

                def connectionMade(self) -> None:
                    self.transport.setTcpNoDelay(True)
                    # What waits to be sent back holds up what is received.
                    self.transport.registerProducer(self.transport, True)

                def dataReceived(self, data: bytes) -> None:
                    self.transport.write(data)

            factory = relay_factory(reactor, task) or Factory.forProtocol(Echo)
            factory.noisy = False
            port = await endpoint_of(reactor, task).listen(factory)
            serves(port.getHost().port)
            await Deferred()

        on_reactor(task, main)

    return server


def relay_factory(reactor: Any, task: Task) -> Any:
    """Return the factory of Twisted's own relay, if that is the job."""
    if task.job != "relay":
        return None
    from twisted.protocols.portforward import ProxyFactory, ProxyServer

    class Forwarding(ProxyServer):
        transport: Any

        def connectionMade(self) -> None:
            self.transport.setTcpNoDelay(True)
            super().connectionMade()

    factory = ProxyFactory(HOST, task.port)
    factory.protocol = Forwarding
    return factory


SERVERS = {
    "netsock": netsock,
    "netsock-protocol": protocol_on(our_endpoint),
    "twisted": protocol_on(their_endpoint),
}
