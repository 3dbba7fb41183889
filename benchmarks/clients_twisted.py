"""A protocol of Twisted's as a client, on Twisted's endpoints and on ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from .task import CHUNK, HOST, MESSAGE, NAME, Task, Watch, install_reactor, measurements

Endpoints = Callable[[Any, Task], Any]


def our_endpoint(reactor: Any, task: Task) -> Any:
    """Return our endpoint."""
    from twisted_netsock import TLSSocketOptions, client_endpoint

    if task.authority is None:
        return client_endpoint(reactor, HOST, task.port)
    options = TLSSocketOptions(trusted_certificates=task.authority, sni=NAME)
    return client_endpoint(reactor, HOST, task.port, options)


def their_endpoint(reactor: Any, task: Task) -> Any:
    """Return Twisted's endpoint."""
    from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
    from twisted.internet.ssl import Certificate, optionsForClientTLS

    endpoint = TCP4ClientEndpoint(reactor, HOST, task.port)
    if task.authority is None:
        return endpoint
    with open(task.authority, "rb") as file:
        trusted = Certificate.loadPEM(file.read())
    return wrapClientTLS(optionsForClientTLS(NAME, trustRoot=trusted), endpoint)


class Session(Factory):
    """Builds the protocols of one job, which count on its watch one after another."""

    noisy = False

    def __init__(self, job: str, endpoint: Any) -> None:
        self._protocol = PROTOCOLS[job]
        self._endpoint = endpoint
        self._watches = measurements()
        self.watch: Watch = Watch(0)
        self.over: Deferred[None] = Deferred()

    def buildProtocol(self, addr: Any) -> Protocol:
        return self._protocol(self)

    def connect(self) -> None:
        self._endpoint.connect(self).addErrback(self._fail)

    def _fail(self, failure: Failure) -> None:
        if not self.over.called:
            self.over.errback(failure)

    def goes_on(self, transport: Any) -> bool:
        """Tell whether to do one more, in this measurement or the next that is asked for."""
        if time.perf_counter() < self.watch.end:
            return True
        watch = next(self._watches, None)
        if watch is None:
            transport.abortConnection()
            self.over.callback(None)
            return False
        self.watch = watch
        return True


class Client(Protocol):
    """What all clients share."""

    transport: Any

    def __init__(self, session: Session) -> None:
        self.session = session

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        if self.session.goes_on(self.transport):
            self.begin()

    def begin(self) -> None:
        """Do the first."""


class RoundTrips(Client):
    """Writes when it was answered."""

    def begin(self) -> None:
        self.transport.write(MESSAGE)

    def dataReceived(self, data: bytes) -> None:
        self.session.watch.count += 1
        if self.session.goes_on(self.transport):
            self.transport.write(MESSAGE)


class Connects(RoundTrips):
    """Closes when it was answered, and connects anew."""

    def dataReceived(self, data: bytes) -> None:
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self.session.over.called:
            return
        self.session.watch.count += 1
        if self.session.goes_on(self.transport):
            self.session.connect()


class Receive(Client):
    """Counts what comes."""

    def dataReceived(self, data: bytes) -> None:
        self.session.watch.count += len(data)
        self.session.goes_on(self.transport)


class Send(Client):
    """Writes until it is paused."""

    paused = True

    def begin(self) -> None:
        self.transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        while not self.paused and self.session.goes_on(self.transport):
            self.transport.write(CHUNK)
            self.session.watch.count += len(CHUNK)

    def pauseProducing(self) -> None:
        self.paused = True

    stopProducing = pauseProducing


PROTOCOLS: dict[str, type[Client]] = {
    "round-trips": RoundTrips,
    "connects": Connects,
    "receive": Receive,
    "send": Send,
}


def run(endpoint_of: Endpoints) -> Callable[[Task], None]:
    """Return the client on the endpoints that *endpoint_of* makes."""

    def client(task: Task) -> None:
        install_reactor(task.reactor)
        from twisted.internet.task import react

        def main(reactor: Any) -> Deferred[None]:
            session = Session(task.job, endpoint_of(reactor, task))
            session.connect()
            return session.over

        try:
            react(main)
        except SystemExit as ended:
            if ended.code:
                raise

    return client


CLIENTS = {"twisted": run(their_endpoint), "netsock-protocol": run(our_endpoint)}
