"""The makers of ``(net socket)``, blocking: look-up, connecting and handshake on the reactor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred, succeed

from .._io.descriptor import Descriptor
from .._io.interfaces import Reactor
from .._proxy_protocol.header import ProxyHeader
from .._sockets import make as makers
from .._sockets.socket import Socket
from .._sockets.start_tls import tls_factory
from .._tls.client import ClientContextFactory
from .._tls.descriptor import TLSDescriptor
from .._tls.in_memory import tls_over
from .._tls.server import ServerContextFactory, server_records
from .._validation import in_seconds, optional_duration
from ..errors import SocketClosedError, SocketConnectionTimeoutError
from ..options import (
    ServerTLSSocketOptions,
    SocketOptions,
    TLSSocketOptions,
    require_record,
)
from ._bridge import Call, run
from ._socket import BlockingSocket, Taken, take
from ._tls_socket import BlockingTLSSocket, shake_hands
from ._waiting import Countdown, Expired, limited

__all__ = [
    "begin_tls",
    "make_client_socket",
    "make_client_tls_socket",
    "make_server_socket",
    "make_server_tls_socket",
    "socket_options_to_client_socket",
    "start_tls",
]

T = TypeVar("T")
AnySocket = TypeVar("AnySocket", bound=Socket)
TLSSocketKind = TypeVar("TLSSocketKind", bound=BlockingTLSSocket)


def _for_reactor(options: T) -> T:
    """Return *options* as the makers on the reactor take them: there nothing blocks."""
    if isinstance(options, SocketOptions) and not options.non_blocking:
        return options.replace(non_blocking=True)
    return options


def _made(make: Callable[[Reactor], Deferred[AnySocket]], reactor: object) -> Taken:
    """Have a socket made on the reactor, and take it over."""
    return run(lambda there: make(there).addCallback(take), discard=Taken.close, reactor=reactor)


def make_client_socket(
    node: str,
    service: str | int | None,
    options: SocketOptions | None = None,
    *,
    reactor: object = None,
    proxy_header: ProxyHeader | None = None,
) -> BlockingSocket:
    """
    Connect to *node* and *service* (``make-client-socket``).

    Ctrl-C ends it at every stage, and leaves nothing behind.

    The arguments are those of `twisted_netsock.make_client_socket`.

    Returns:
        The connected socket, which is the caller's to close.

    Raises:
        TypeError: *options* is a record for TLS, or no record.
        ValueError: *node* or *service* is none; or ``AI_PASSIVE`` is set.
        HostNotFoundError: There is no such node or service.
        SocketConnectionRefusedError: Every address reached refused.
        SocketConnectionTimeoutError: `connection_timeout` passed.
        SocketConnectionError: No address could be connected to.
        ProxyError: There is no connection through *proxy*; its kin say why.
    """
    taken = _made(
        lambda there: makers.make_client_socket(
            node, service, _for_reactor(options), reactor=there, proxy_header=proxy_header
        ),
        reactor,
    )
    return BlockingSocket._around(taken)


def make_client_tls_socket(
    node: str,
    service: str | int | None,
    options: SocketOptions | None = None,
    *,
    reactor: object = None,
    proxy_header: ProxyHeader | None = None,
) -> BlockingTLSSocket:
    """
    Connect to *node* and *service*, and speak TLS (``make-client-tls-socket``).

    Ctrl-C ends it at every stage, and leaves nothing behind.

    The arguments are those of `twisted_netsock.make_client_tls_socket`.

    Returns:
        The connected socket, after the handshake and the verification of the
        server, unless the options say ``handshake=False``. The caller's to close.

    Raises:
        TypeError: *options* is a server's record, or no record.
        ValueError: As `make_client_socket`; or a certificate or key cannot be used.
        HostNotFoundError, SocketConnectionError: As `make_client_socket`.
        CertificateVerificationError: The server's certificate is not good.
        TLSHandshakeError: Anything else that TLS did not like.
    """
    taken = _made(
        lambda there: makers.make_client_tls_socket(
            node, service, _for_reactor(options), reactor=there, proxy_header=proxy_header
        ),
        reactor,
    )
    return BlockingTLSSocket._around(taken)


def make_server_socket(
    node: str | None,
    service: str | int | None,
    options: SocketOptions | None = None,
    *,
    reactor: object = None,
) -> BlockingSocket:
    """
    Listen on *node* and *service* (``make-server-socket``).

    The arguments are those of `twisted_netsock.make_server_socket`.

    Returns:
        The listening socket (of datagrams: the bound one), the caller's to close.

    Raises:
        TypeError: *options* is a record for TLS, or no record.
        ValueError: *node* or *service* is none.
        HostNotFoundError: There is no such node or service.
        SocketBindError: The address is taken, or not ours to bind.
    """
    taken = _made(
        lambda there: makers.make_server_socket(
            node, service, _for_reactor(options), reactor=there
        ),
        reactor,
    )
    return BlockingSocket._around(taken)


def make_server_tls_socket(
    node: str | None,
    service: str | int | None,
    options: ServerTLSSocketOptions | Iterable[ServerTLSSocketOptions],
    *,
    reactor: object = None,
    reload_every: timedelta | None = None,
) -> BlockingTLSSocket:
    """
    Listen on *node* and *service* for TLS (``make-server-tls-socket``).

    The arguments are those of `twisted_netsock.make_server_tls_socket`.

    Returns:
        The listening socket, the caller's to close. Its `accept` returns
        connections whose handshake is done.

    Raises:
        TypeError: A record is no server's.
        ValueError: As `make_server_socket`; or there is no certificate or key,
            or it cannot be used; or the records cannot be served together.
        HostNotFoundError, SocketBindError: As `make_server_socket`.
    """
    interval = optional_duration(reload_every, "reload_every")
    records = [_for_reactor(record) for record in server_records(options)]
    taken, factory = run(
        lambda there: makers.make_server_tls_socket(
            node, service, records, reactor=there
        ).addCallback(lambda made: (take(made), made._factory)),
        discard=lambda made: made[0].close(),
        reactor=reactor,
    )
    return BlockingTLSSocket(
        taken.descriptor,
        node=taken.node,
        service=taken.service,
        options=taken.options,
        factory=factory,
        reload_seconds=in_seconds(interval),
    )


def socket_options_to_client_socket(
    options: SocketOptions,
    node: str,
    service: str | int | None,
    *,
    reactor: object = None,
    proxy_header: ProxyHeader | None = None,
) -> BlockingSocket:
    """
    Connect as the class of *options* says (``socket-options->client-socket``).

    A `TLSSocketOptions` makes a `BlockingTLSSocket`, a plain record a
    `BlockingSocket`; see `make_client_tls_socket` and `make_client_socket` for
    everything else.

    Raises:
        TypeError: *options* is a server's record, or no record.
    """
    if isinstance(options, TLSSocketOptions):
        return make_client_tls_socket(
            node, service, options, reactor=reactor, proxy_header=proxy_header
        )
    require_record(options, SocketOptions, None, "give an option record")
    return make_client_socket(node, service, options, reactor=reactor, proxy_header=proxy_header)


def start_tls(
    socket: BlockingSocket,
    options: TLSSocketOptions
    | Iterable[ServerTLSSocketOptions]
    | ClientContextFactory
    | ServerContextFactory,
    node: str | None = None,
) -> BlockingTLSSocket:
    """
    Go on with TLS on a connected plain socket (``socket->tls-socket``): STARTTLS.

    What `output_port` holds is sent first. Then *socket* is spent: the new
    socket has the connection, and if the handshake fails the connection is closed.

    Args:
        socket: Plain and connected, with nothing under way.
        options: A `TLSSocketOptions` for a client's side; one
            `ServerTLSSocketOptions`, or several, for a server's. What
            `client_context_factory` or `server_context_factory` has made serves
            too, and saves a server from reading its files for each connection.
        node: What a client verifies, unless the options have `sni`; the node of
            *socket* if `None`.

    Returns:
        The socket that speaks TLS, after the handshake, unless the options say
        ``handshake=False``. The caller's to close.

    Raises:
        TypeError: *socket* is no plain `BlockingSocket`, or *options* no record for TLS.
        ValueError: *node* is given to a server; there is nothing to verify; or a
            certificate, key or name cannot be used.
        SocketPortError: `input_port` holds unread bytes: they came in plain text.
        SocketBusyError: A call is under way in another thread.
        SocketClosedError: *socket* is closed.
        CertificateVerificationError: The peer's certificate is not good.
        TLSHandshakeError: Anything else that TLS did not like.
        SocketConnectionTimeoutError: `handshake_timeout` passed.
    """
    if not isinstance(socket, BlockingSocket) or isinstance(socket, BlockingTLSSocket):
        raise TypeError(f"socket must be a plain BlockingSocket, not {socket!r}")
    return begin_tls(socket, tls_factory(options, socket.node, node), BlockingTLSSocket)


def begin_tls(
    socket: BlockingSocket,
    factory: ClientContextFactory | ServerContextFactory,
    kind: type[TLSSocketKind],
    seconds: float | None = None,
) -> TLSSocketKind:
    """
    Do as `start_tls`, with what it has made of its options.

    Args:
        socket: As there.
        factory: Makes the connection.
        kind: The class of the socket.
        seconds: A limit beside `handshake_timeout`.
    """
    name = factory.node if isinstance(factory, ClientContextFactory) else socket.node
    service = socket.service
    # One limit for what the port still holds and the handshake behind it.
    limits = in_seconds(factory.options.handshake_timeout), seconds
    limit = Countdown(min((each for each in limits if each is not None), default=None))
    try:
        with limited(limit):
            plain = socket._surrender()
    except Expired:
        socket.abort()
        raise SocketConnectionTimeoutError("handshake") from None
    beginning = _Beginning(plain, factory, service, limit)
    try:
        tls = Call(
            beginning.shake, discard=TLSDescriptor.close, released=beginning.released
        ).result()
    except CancelledError:
        raise SocketClosedError from None
    made = kind(tls, node=name, service=service, options=factory.options)
    made.read_timeout = factory.options.read_timeout or socket.read_timeout
    made.write_timeout = factory.options.write_timeout or socket.write_timeout
    made.proxy_header = socket.proxy_header
    socket._successor = made
    return made


class _Beginning:
    """A handshake on a descriptor, which is closed if it comes to nothing."""

    def __init__(
        self,
        plain: Descriptor,
        factory: ClientContextFactory | ServerContextFactory,
        service: str | int | None,
        limit: Countdown,
    ) -> None:
        self._limit = limit
        self._plain = plain
        self._service = service
        self._factory = factory
        self._succeeded = False

    def shake(self, reactor: Reactor) -> Deferred[TLSDescriptor]:
        """Shake hands, if the options say so, in the reactor's thread."""
        tls = tls_over(self._plain, self._factory, (), self._service)
        shaken: Deferred[None] = succeed(None)
        if self._factory.options.handshake:
            shaken = shake_hands(reactor, tls, self._limit.remaining())

        def done(_: None) -> TLSDescriptor:
            self._succeeded = True
            return tls

        return shaken.addCallback(done)

    def released(self) -> None:
        """Close what nobody gets; the reactor has let go of it."""
        if not self._succeeded:
            self._plain.close()
