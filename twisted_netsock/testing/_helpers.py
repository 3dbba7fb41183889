"""Scripted look-ups, and connected sockets."""

from __future__ import annotations

import socket as _socket
from collections.abc import Mapping, Sequence

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from zope.interface import implementer

from .._io.interfaces import current_reactor
from .._public import public_in
from .._sockets.socket import Socket

__all__ = [
    "ScriptedResolver",
    "connected_pair",
]


@implementer(IHostResolution)
class _Resolution:
    """One scripted look-up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.call: IDelayedCall | None = None
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        if self.call is not None and self.call.active():
            self.call.cancel()


@public_in("twisted_netsock.testing")
@implementer(IHostnameResolver)
class ScriptedResolver:
    """
    A name resolver that answers from a table, after a delay that it is given.

    Attributes:
        asked: The names that were looked up, in order.
    """

    def __init__(
        self,
        answers: Mapping[str, Sequence[str]],
        *,
        reactor: object = None,
        delay: float | None = 0.0,
    ) -> None:
        """
        Answer from *answers*: numeric addresses by name; other names have none.

        Args:
            answers: The table.
            reactor: For the delay; the installed one if `None`.
            delay: Seconds before an answer; `None`: it never comes.
        """
        self._answers = answers
        self._reactor = current_reactor(reactor)
        self._delay = delay
        self._resolutions: list[_Resolution] = []
        self.asked: list[str] = []

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """Answer from the table; for Twisted."""
        resolution = _Resolution(hostName)
        self.asked.append(hostName)
        self._resolutions.append(resolution)
        resolutionReceiver.resolutionBegan(resolution)

        def answer() -> None:
            for host in self._answers.get(hostName, ()):
                kind = IPv6Address if ":" in host else IPv4Address
                if addressTypes is None or kind in addressTypes:
                    resolutionReceiver.addressResolved(kind("TCP", host, portNumber))
            resolutionReceiver.resolutionComplete()

        if self._delay is not None:
            resolution.call = self._reactor.callLater(self._delay, answer)
        return resolution

    def install(self) -> IHostnameResolver:
        """Install this resolver in the reactor, and return the one that was there."""
        return self._reactor.installNameResolver(self)


def connected_pair(*, reactor: object = None) -> tuple[Socket, Socket]:
    """
    Return two sockets that are connected with each other, over TCP on loopback.

    Both are the caller's to close.
    """
    reactor = current_reactor(reactor)
    with _socket.create_server(("127.0.0.1", 0)) as listener:
        one = _socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return Socket.from_socket(one, reactor=reactor), Socket.from_socket(other, reactor=reactor)
