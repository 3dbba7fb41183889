"""`start_tls`: from a plain socket to TLS on the same connection (STARTTLS)."""

from __future__ import annotations

import socket as _socket
from collections.abc import Iterable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from .._io.descriptor import Descriptor
from .._io.drive import drive
from .._io.operation import Operation
from .._net.deadline import Deadline
from .._tls.client import ClientContextFactory
from .._tls.handshake import handshake
from .._tls.in_memory import tls_over
from .._tls.server import ServerContextFactory, server_records
from .._validation import in_seconds
from ..errors import SocketConnectionTimeoutError, SocketError
from ..options import (
    ServerTLSSocketOptions,
    TLSSocketOptions,
    require_reactor_mode,
    require_record,
)
from .socket import Socket
from .tls_socket import TLSSocket

__all__ = ["start_tls", "tls_factory"]


def start_tls(
    socket: Socket,
    options: TLSSocketOptions
    | Iterable[ServerTLSSocketOptions]
    | ClientContextFactory
    | ServerContextFactory,
    node: str | None = None,
) -> Deferred[TLSSocket]:
    """
    Speak TLS on a connected plain socket from now on (``socket->tls-socket``).

    To be called when both sides have agreed on it, as by SMTP's STARTTLS
    (RFC 3207), and nothing of the plain conversation is still to be read. What
    the peer has sent too early, in the kernel's buffer, ends the handshake.

    Args:
        socket: Spent at the call: closed, and its connection the new socket's.
            What its `output_port` holds is sent first.
        options: Its class says the side: a `TLSSocketOptions` a client's, one or
            several `ServerTLSSocketOptions` a server's. What `client_context_factory`
            or `server_context_factory` has made serves too, and saves a server from
            reading its files for each connection.
        node: What a client verifies, unless the options have `sni`; the
            *socket*'s own node if `None`.

    Returns:
        The socket that speaks TLS, when the handshake is done and the peer is
        verified, unless the options say ``handshake=False``. The caller's to
        close. Timeouts that the options leave open are those of *socket*.

    Raises:
        TypeError: *socket* is no `Socket`, or speaks TLS; or *options* is no
            record for TLS.
        ValueError: *node* is given to a server; there is nothing to verify; or a
            certificate, key or name cannot be used.

    Errors:
        SocketPortError: `input_port` holds unread bytes, which TLS does not protect.
            *socket* stays open, as for the next three.
        SocketBusyError: An operation is waiting.
        SocketClosedError: *socket* is closed.
        SocketError: It is not connected.
        CertificateVerificationError: The peer's certificate is not good.
        TLSHandshakeError: Anything else that TLS did not like.
        SocketConnectionLostError: The peer went away.
        SocketConnectionTimeoutError: `handshake_timeout` passed, or a client's
            `connection_timeout`.

    Cancelling:
        Fails with `CancelledError`, and closes the connection.
    """
    _check_plain(socket)
    factory = tls_factory(options, socket.node, node)
    require_reactor_mode(factory.options)
    try:
        plain, sending = _spend(socket)
    except SocketError as error:
        return socket._failed(error)
    named = factory.node if isinstance(factory, ClientContextFactory) else socket.node
    return Deferred.fromCoroutine(_upgrade(socket, plain, sending, factory, named))


def tls_factory(
    options: object, own_node: str | None, node: str | None
) -> ClientContextFactory | ServerContextFactory:
    """
    Return what makes the connection for *options*, as `start_tls` takes them.

    Raises:
        TypeError: *options* is no record for TLS.
        ValueError: *node* is given to a server, or there is nothing to verify.
    """
    if isinstance(options, ClientContextFactory | ServerContextFactory):
        if node is not None:
            raise ValueError(f"node={node!r} must be given when options, a factory, is made")
        return options
    if not isinstance(options, TLSSocketOptions) and isinstance(options, Iterable):
        factory = ServerContextFactory(server_records(options))
    elif isinstance(options, ServerTLSSocketOptions):
        factory = ServerContextFactory((options,))
    else:
        record = require_record(options, TLSSocketOptions, None, "give a record for TLS")
        return ClientContextFactory(record, own_node if node is None else node)
    if node is not None:
        raise ValueError(f"node={node!r} is for clients: a server verifies no name")
    return factory


def _check_plain(socket: object) -> None:
    if not isinstance(socket, Socket):
        raise TypeError(f"socket={socket!r} must be a twisted_netsock.Socket")
    if isinstance(socket, TLSSocket):
        raise TypeError(f"socket={socket!r} speaks TLS already")


def _spend(socket: Socket) -> tuple[Descriptor, Operation[object] | None]:
    """Take the descriptor of *socket*, and what of its output port is still to be sent."""
    if socket._descriptor.sock.type != _socket.SOCK_STREAM:
        raise SocketError(strerror="TLS needs a stream, which this socket is not")
    socket.getpeername()
    return socket._spend()


async def _upgrade(
    socket: Socket,
    plain: Descriptor,
    sending: Operation[object] | None,
    factory: ClientContextFactory | ServerContextFactory,
    node: str | None,
) -> TLSSocket:
    reactor, watch, options = socket._reactor, socket._watch, factory.options
    is_client = isinstance(factory, ClientContextFactory)
    # A server's record has no use for `connection_timeout`.
    limits = [options.handshake_timeout, options.connection_timeout if is_client else None]
    # One for what is still to be sent and the handshake behind it.
    limit = min((each for each in limits if each is not None), default=None)
    deadline = Deadline(reactor, in_seconds(limit))
    connection: Descriptor = plain
    try:
        if sending is not None:
            await _send_rest(socket, sending, deadline.remaining())
        connection = descriptor = tls_over(plain, factory, (), socket.service)
        if options.handshake:
            await handshake(reactor, watch, descriptor, deadline.remaining())
    except BaseException as error:
        watch.close()
        connection.close()
        if isinstance(error, SocketError):
            error.socket = socket
        raise
    made = TLSSocket(
        reactor, watch, descriptor, node=node, service=socket.service, options=options
    )
    made.proxy_header = socket.proxy_header
    socket._successor = made
    made.read_timeout = options.read_timeout or socket.read_timeout
    made.write_timeout = options.write_timeout or socket.write_timeout
    return made


def _send_rest(
    socket: Socket, sending: Operation[object], seconds: float | None
) -> Deferred[None]:
    """Send what the output port holds, and fire the writes that wait for that."""

    def done(result: Failure | None) -> Failure | None:
        if not sending.called:
            sending.finish(result)
        return result

    return drive(
        socket._reactor,
        socket._watch,
        socket.output_port._send_rest,
        timeout=seconds,
        timed_out=lambda: SocketConnectionTimeoutError("handshake"),
    ).addBoth(done)
