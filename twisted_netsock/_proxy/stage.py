"""The stage of connecting that asks a proxy to connect, on a descriptor that leads to it."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from .._hostnames import host_and_port
from .._io.descriptor import Descriptor
from .._io.drive import drive
from .._io.interfaces import Reactor
from .._io.poller import Want, Watch
from .._proxies import Proxy
from ..errors import ProxyProtocolError, SocketError
from .dialogues import dialogue_with

__all__ = ["ask_proxy"]


class _Ask:
    """An attempt to hold a dialogue on a descriptor, to be called until it is done."""

    __slots__ = ("_descriptor", "_dialogue", "_got", "_host", "_port", "_proxy", "_step")

    def __init__(self, descriptor: Descriptor, proxy: Proxy, host: str, port: int) -> None:
        self._descriptor = descriptor
        self._proxy = proxy
        self._host = host
        self._port = port
        self._dialogue = dialogue_with(proxy, host, port)
        self._got = b""
        self._step: bytes | memoryview | int = next(self._dialogue)

    def __call__(self) -> Want | None:
        """Send and receive as much as can be; return `None` when the proxy has connected."""
        try:
            while True:
                want = self._proceed()
                if want is not None:
                    return want
        except StopIteration:
            return None

    def _proceed(self) -> Want | None:
        step = self._step
        try:
            if not isinstance(step, int):
                count = self._descriptor.try_send(step)
                if isinstance(count, Want):
                    return count
                rest = memoryview(step)[count:]
                self._step = rest or self._dialogue.send(b"")
                return None
            data = self._descriptor.try_recv(step - len(self._got))
        except SocketError as error:
            raise self._lost(f"the connection to it was lost: {error.strerror}") from None
        if isinstance(data, Want):
            return data
        if not data:
            raise self._lost("it closed the connection before it had connected")
        self._got += data
        if len(self._got) == step:
            got, self._got = self._got, b""
            self._step = self._dialogue.send(got)
        return None

    def _lost(self, reason: str) -> ProxyProtocolError:
        target = host_and_port(self._host, self._port)
        return ProxyProtocolError(str(self._proxy), target, reason)


def ask_proxy(
    reactor: Reactor, watch: Watch, descriptor: Descriptor, proxy: Proxy, host: str, port: int
) -> Deferred[None]:
    """
    Have *proxy* connect to *host* and *port*.

    Args:
        reactor: Where it happens.
        watch: The descriptor's, unused by others meanwhile.
        descriptor: Leads to the proxy; stays open whatever happens.
        proxy: What is asked.
        host: A name, which the proxy looks up, or a numeric address.
        port: Where it shall connect to.

    Returns:
        `None`, when the proxy has connected.

    Raises:
        ProxyError: What the dialogue takes is not installed.

    Errors:
        ProxyRefusedError, ProxyAuthenticationError, ProxyTargetError: It has said no.
        ProxyProtocolError: It has said something else, or gone away.

    Cancelling:
        Fails with `CancelledError`; the descriptor is good for nothing but closing.
    """
    return drive(reactor, watch, _Ask(descriptor, proxy, host, port))
