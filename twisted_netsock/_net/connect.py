"""
From a node and a service to a connection, verified if it is TLS.

Look-up, Happy Eyeballs, the dialogue with a proxy, the PROXY header and the TLS handshake share
the one deadline of `connection_timeout`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from socket import AF_INET, AF_UNIX

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from .._hostnames import host_and_port, host_to_look_up, numeric_service
from .._io.fairness import HANDSHAKE_WEIGHT
from .._io.interfaces import Reactor
from .._io.poller import poller_for
from .._proxies import HTTPS, Proxy, proxy_for
from .._proxy.stage import ask_proxy
from .._proxy_protocol.header import ProxyHeader
from .._proxy_protocol.wire import send_header
from .._tls.client import ClientContextFactory
from .._tls.descriptor import TLSDescriptor
from .._tls.handshake import handshake
from .._tls.in_memory import tls_over
from .._tls.tunnel import Tunnel
from .._validation import in_seconds
from ..addresses import AddressInfo, as_socket_address, interleave_families
from ..errors import (
    HostNotFoundError,
    NetsockError,
    ProxyUnreachableError,
    SocketConnectionError,
    SocketConnectionTimeoutError,
    SocketError,
)
from ..options import SocketOptions, TLSSocketOptions
from .deadline import Deadline
from .happy_eyeballs import Established, HappyEyeballs
from .inner import inner_connection
from .open_socket import look_up_known_place, look_up_place, unix_info

__all__ = ["connect", "connect_over"]


def _known_infos(
    node: str, service: str | int | None, options: SocketOptions
) -> Sequence[AddressInfo] | None:
    """Return the addresses to connect to, or `None` if a look-up is needed."""
    if options.ai_family == AF_UNIX:
        return [unix_info(node, options)]
    known = look_up_known_place(node, service, options)
    return None if known is None else _ordered(options, known)


def _ordered(options: SocketOptions, infos: Sequence[AddressInfo]) -> Sequence[AddressInfo]:
    """Return *infos* in the order of the attempts, without those that cannot be reached."""
    ordered = infos if len(infos) == 1 else interleave_families(infos)
    local_address = options.local_address
    return ordered if local_address is None else _reachable_from(local_address, ordered)


def _reachable_from(
    local_address: tuple[str, int], infos: Sequence[AddressInfo]
) -> list[AddressInfo]:
    """Leave out the families that *local_address* rules out."""
    family = as_socket_address(local_address).family
    fitting = [info for info in infos if info.family == family]
    if not fitting:
        host = local_address[0]
        raise SocketConnectionError(
            strerror=f"No address of the node can be reached from local_address={host!r}",
            errno=errno.EADDRNOTAVAIL,
        )
    return fitting


def connect(
    reactor: Reactor,
    node: str,
    service: str | int | None,
    options: SocketOptions,
    factory: ClientContextFactory | None = None,
    protocols: Sequence[bytes] = (),
    header: ProxyHeader | None = None,
    *,
    at_once: bool = True,
) -> Deferred[Established]:
    """
    Connect to *node* and *service*, and perform the TLS handshake if there is a *factory*.

    Args:
        reactor: Where it happens.
        node: A name, an address, or the path of a UNIX socket.
        service: A name or a port.
        options: Everything else.
        factory: Makes the TLS connection.
        protocols: For ALPN, beside those of the options.
        header: The PROXY header to send, where the options have `proxy_protocol`;
            one with the connection's own addresses if `None`.
        at_once: The Deferred may have fired already when it is returned; else it fires
            in a later iteration of the reactor.

    Returns:
        The connection, verified if it is TLS; the caller's to close.

    Errors:
        HostNotFoundError: There is no such node or service.
        SocketConnectionError: No address could be connected to; its kin say why.
        CertificateVerificationError, TLSHandshakeError: TLS failed.

    Cancelling:
        Fails with `CancelledError` at every stage, and leaves nothing behind.
    """
    try:
        proxy = (
            None
            if options.proxy is None
            else proxy_for(options.proxy, node, tls=factory is not None)
        )
    except ValueError as error:
        return fail(SocketConnectionError(strerror=str(error)))
    if proxy is not None:
        asked = _Connecting(reactor, node, service, options, factory, protocols, header)
        return Deferred.fromCoroutine(asked.through(proxy))
    try:
        infos = _known_infos(node, service, options)
    except NetsockError:
        return fail(Failure())
    if infos is not None and factory is None and options.proxy_protocol is None:
        # The way of most plain sockets: only the connection is waited for. No coroutine.
        attempts = HappyEyeballs(reactor, infos, options, at_once=at_once)
        connecting = attempts.run()
        if connecting.called:
            return connecting
        deadline = Deadline(reactor, in_seconds(options.connection_timeout))
        return deadline.bound(connecting, "connect", attempts.attempts)
    asked = _Connecting(reactor, node, service, options, factory, protocols, header)
    return Deferred.fromCoroutine(asked.straight(infos))


class _Connecting:
    """What one call of `connect` asks for, and its deadline, which begins now."""

    __slots__ = (
        "_deadline",
        "_factory",
        "_header",
        "_node",
        "_options",
        "_protocols",
        "_reactor",
        "_service",
    )

    def __init__(
        self,
        reactor: Reactor,
        node: str,
        service: str | int | None,
        options: SocketOptions,
        factory: ClientContextFactory | None,
        protocols: Sequence[bytes],
        header: ProxyHeader | None,
    ) -> None:
        self._reactor = reactor
        self._node = node
        self._service = service
        self._options = options
        self._factory = factory
        self._protocols = protocols
        self._header = header
        self._deadline = Deadline(reactor, in_seconds(options.connection_timeout))

    async def straight(self, infos: Sequence[AddressInfo] | None) -> Established:
        """Connect to the node, looked up unless its *infos* are known."""
        established = await self._reach(infos, self._node, self._service)
        return await self._finish(established)

    async def through(self, proxy: Proxy) -> Established:
        """Connect to *proxy*, and have it connect to the node."""
        host = host_to_look_up(self._node)
        port = await self._port()
        try:
            infos = _known_infos(proxy.host, proxy.port, self._options)
            established = await self._reach(infos, proxy.host, proxy.port)
        except SocketConnectionTimeoutError:
            raise
        except (HostNotFoundError, SocketConnectionError) as error:
            target = host_and_port(host, port)
            attempts = getattr(error, "attempts", ())
            reason = str(error.strerror)
            raise ProxyUnreachableError(str(proxy), target, reason, attempts=attempts) from None
        try:
            if proxy.scheme == HTTPS:
                await self._enter(established, proxy, host_and_port(host, port))
            watch, descriptor = established.watch, established.descriptor
            asking = ask_proxy(self._reactor, watch, descriptor, proxy, host, port)
            await self._deadline.bound(asking, "proxy")
        except BaseException:
            established.close()
            raise
        return await self._finish(established)

    async def _enter(self, established: Established, proxy: Proxy, target: str) -> None:
        """Speak TLS with *proxy*; what follows goes through that, and it sees no more of it."""
        try:
            options = TLSSocketOptions(
                trusted_certificates=self._options.proxy_trusted_certificates
            )
            factory = ClientContextFactory(options, proxy.host)
            await _secure(self._reactor, self._deadline, established, factory, (), proxy.port)
        except SocketConnectionTimeoutError:
            raise SocketConnectionTimeoutError("proxy") from None
        except (SocketError, ValueError) as error:
            why = str(getattr(error, "strerror", None) or error)
            reason = f"TLS with it has failed: {why}"
            raise ProxyUnreachableError(str(proxy), target, reason) from error
        tls = established.descriptor
        assert isinstance(tls, TLSDescriptor)
        established.descriptor = Tunnel(tls)

    async def _port(self) -> int:
        """Return the port of the service: a proxy knows no names of services."""
        port = numeric_service(self._service)
        if port is None:
            # It is looked up where those of all services are, for no node.
            v4 = self._options.replace(ai_family=AF_INET)
            looking = look_up_place(self._reactor, None, self._service, v4)
            address = (await self._deadline.bound(looking, "look-up"))[0].address
            assert address is not None
            port = address.port
        return port

    async def _reach(
        self, infos: Sequence[AddressInfo] | None, node: str, service: str | int | None
    ) -> Established:
        """Look *node* up unless *infos* are known, and connect."""
        options = self._options
        if infos is None:
            looking = look_up_place(self._reactor, node, service, options)
            found = await self._deadline.bound(looking, "look-up")
            infos = _ordered(options, found)
        attempts = HappyEyeballs(self._reactor, infos, options)
        return await self._deadline.bound(attempts.run(), "connect", attempts.attempts)

    async def _finish(self, established: Established) -> Established:
        """Send the PROXY header, and speak TLS, as far as they are asked for."""
        # The peer may reset the connection before the last stage is done, so that its address is
        # gone: callers that need it ask for it then.
        established.peer = None
        version, factory = self._options.proxy_protocol, self._factory
        try:
            if version is not None:
                descriptor, watch = established.descriptor, established.watch
                sending = send_header(self._reactor, watch, descriptor, version, self._header)
                await self._deadline.bound(sending, "connect")
            if factory is not None:
                if factory.options.handshake:
                    poller_for(self._reactor).at_once += HANDSHAKE_WEIGHT
                place = self._node if self._service is None else self._service
                await _secure(
                    self._reactor, self._deadline, established, factory, self._protocols, place
                )
        except BaseException:
            established.close()
            raise
        return established


async def _secure(
    reactor: Reactor,
    deadline: Deadline,
    established: Established,
    factory: ClientContextFactory,
    protocols: Sequence[bytes],
    place: str | int | None,
) -> None:
    """Speak TLS on *established*, and perform the handshake unless that is left to the caller."""
    seconds = deadline.remaining(in_seconds(factory.options.handshake_timeout))
    descriptor = tls_over(established.descriptor, factory, protocols, place)
    established.descriptor = descriptor
    if factory.options.handshake:
        await handshake(reactor, established.watch, descriptor, seconds)


async def connect_over(
    reactor: Reactor,
    endpoint: IStreamClientEndpoint,
    protocol_factory: object,
    factory: ClientContextFactory,
    protocols: Sequence[bytes],
    prefix: str,
) -> Established:
    """
    Connect through another endpoint, and perform the TLS handshake.

    Args:
        reactor: For the timeouts.
        endpoint: Makes the connection.
        protocol_factory: Builds the protocol in the end.
        factory: Makes the TLS connection, and has the options.
        protocols: For ALPN, beside those of the options.
        prefix: Names the factory behind in log lines.

    Returns:
        The connection, verified; the caller's to close.

    Errors:
        SocketConnectionTimeoutError: It took too long; its stage is
            ``"connect"`` or ``"handshake"``.
        CertificateVerificationError, TLSHandshakeError: TLS failed.
        SocketConnectionLostError: The peer went away during the handshake.
        Anything that *endpoint* fails with.

    Cancelling:
        Fails with `CancelledError`, and resets the connection.
    """
    deadline = Deadline(reactor, in_seconds(factory.options.connection_timeout))
    connecting = inner_connection(reactor, endpoint, protocol_factory, factory.options, prefix)
    established = await deadline.bound(connecting, "connect")
    try:
        await _secure(reactor, deadline, established, factory, protocols, None)
    except (CancelledError, SocketConnectionTimeoutError):
        established.reset()
        raise
    except BaseException:
        established.close()
        gone = established.descriptor.gone()
        if gone is not None:
            await gone
        raise
    return established
