"""`BlockingSocket`: the BSD calls for threads, without Deferreds."""

from __future__ import annotations

import contextlib
import errno
import os
import socket as _socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Self

from twisted.internet.defer import Deferred, fail
from twisted.python import threadable
from twisted.python.failure import Failure

from .. import _validation as check
from .._io.descriptor import Connect, Descriptor, adopt
from .._io.poller import poller_for
from .._proxy_protocol.header import ProxyHeader
from .._public import public_in
from .._sockets.socket import Socket
from ..addresses import Address
from ..errors import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketPortError,
)
from ..options import SocketOptions
from ._bridge import in_reactor, run, use
from ._data import BlockingData
from ._ports import held_by
from ._serve import Service
from ._waiting import check_thread

__all__ = ["BlockingSocket", "Taken", "take"]

_LONGEST_CLOSING: Final = 1.0
"""Seconds that closing waits for the reactor, which goes on with it by itself."""


class Taken(NamedTuple):
    """What a socket on the reactor has handed over."""

    descriptor: Descriptor
    node: str | None
    service: str | int | None
    options: SocketOptions
    proxy_header: ProxyHeader | None

    def close(self) -> None:
        """Close what nobody wants."""
        self.descriptor.close()


def take(socket: Socket) -> Taken:
    """Take the descriptor of *socket* over, which is spent; in the reactor's thread."""
    return Taken(
        socket._hand_over(), socket.node, socket.service, socket._options, socket.proxy_header
    )


@public_in("twisted_netsock.blocking")
class BlockingSocket(BlockingData):
    """
    A blocking socket, for threads.

    Made by the functions of `twisted_netsock.blocking`, or around an existing
    descriptor by `from_socket`. ``with`` closes it at the end; ``for`` accepts. It
    has the methods of `twisted_netsock.Socket`, without the Deferreds, and enough
    of those of `socket.socket` to stand in for one.

    Several threads may use it: one receives while another sends, and any may
    close it, which wakes them. A second receive, or a second send, at a time
    fails with `SocketBusyError`. No method but `abort` may be called in the
    reactor's thread: it is a `RuntimeError`.

    Ctrl-C ends a call at once, and the socket stays usable. What a receive had
    just consumed, and how much a `sendall` had sent, is lost then; over TLS, an
    exception in the very middle of a send fails every later one. A signal handler
    may close, abort or shut down the socket whose call it interrupts.

    Attributes:
        node: The host, address or path that it was made for, or `None`.
        service: The service that it was made for, or `None`.
        proxy_header: The PROXY header that an accepted connection began with, or
            `None`; *node* and *service* are its source then.
    """

    _twin: Socket | None = None
    """A listening socket on the reactor, which accepts for this one."""

    def __init__(
        self,
        descriptor: Descriptor,
        *,
        node: str | None = None,
        service: str | int | None = None,
        options: SocketOptions | None = None,
    ) -> None:
        """Take *descriptor* over; see `from_socket` for the public way."""
        super().__init__(descriptor, node=node, service=service, options=options)
        self._strays: deque[Taken] = deque()
        self._successor: BlockingSocket | None = None
        """The socket that has the connection now: by `start_tls`, which spent this one."""

    @classmethod
    def from_socket(cls, sock: _socket.socket | int, *, reactor: Any = None) -> Self:
        """
        Adopt a socket of the standard library, or a descriptor.

        The new socket owns it from then on: a *sock* object is detached and
        spent, a number is closed when the new socket is. It is made
        non-blocking, and ``TCP_NODELAY`` is set where it is TCP.

        Args:
            sock: What to adopt.
            reactor: The one in use, or `None`.

        Raises:
            OSError: *sock* is no open socket.
            TypeError: *sock* speaks TLS.
        """
        use(reactor)
        return cls(adopt(sock))

    @classmethod
    def _around(cls, taken: Taken) -> Self:
        made = cls(taken.descriptor, node=taken.node, service=taken.service, options=taken.options)
        made.proxy_header = taken.proxy_header
        return made

    def detach(self) -> int:
        """
        Give the descriptor away, and close this socket without it.

        Returns:
            The descriptor, non-blocking, which is the caller's to close.

        Raises:
            SocketClosedError: The socket is closed.
            SocketBusyError: A call is under way in another thread, or an object of
                `makefile` is open.
            SocketPortError: `input_port` holds unread bytes.
            SocketError: This is TLS, whose state would be lost, or it has accepted.
        """
        return self._surrender().sock.detach()

    def _surrender(self) -> Descriptor:
        """Close this socket without its descriptor, which is the caller's from now on."""
        check_thread()
        self._check_open()
        if self._output is not None and not self._output.closed:
            try:
                self._output.flush()
            except RuntimeError:
                # This is a signal handler that has interrupted the port itself.
                raise SocketBusyError(self) from None
        with self._lock:
            self._check_open()
            if self._reader is not None or self._writer is not None or self._files:
                raise SocketBusyError(self)
            if self._twin is not None:
                raise SocketError(self, strerror="A socket that accepts cannot be given away")
            if self._input is not None and held_by(self._input):
                raise SocketPortError(
                    self._input, socket=self, strerror="input_port holds unread bytes"
                )
            self._closed = self._ending = self._gone = True
        self._drop_ports()
        descriptor: Descriptor = self._descriptor
        return descriptor

    # Connecting and listening

    def connect(self, address: Address) -> None:
        """
        Connect to *address*.

        Args:
            address: Numeric: no call looks a name up behind its caller's back.

        Raises:
            ValueError: *address* is a name, or of another family.
            SocketConnectionRefusedError: The peer refused.
            SocketConnectionTimeoutError: The kernel gave up.
            SocketConnectionError: Anything else that went wrong.
            SocketWriteTimeoutError: `write_timeout` passed; the socket is good for
                nothing but closing.
            SocketBusyError: Another thread is sending or connecting.
            SocketClosedError: The socket is closed, or was while this waited.
        """
        self._write(Connect(self._descriptor.sock, self._native(address)))

    def accept(self) -> Self:
        """
        Take the next connection.

        Returns:
            Its socket, which is the caller's to close. `read_timeout` and
            `write_timeout` of this socket's options hold for it; neither holds for
            this call, which `settimeout` limits.

        Raises:
            SocketReadTimeoutError: The time of `settimeout` passed.
            SocketBusyError: Another accept is waiting.
            SocketClosedError: The socket is closed, or was while this waited.
            SocketConnectionLostError: The reactor was shut down.
            SocketError: The socket does not listen.
        """
        return self._around(self._next_connection())

    def _next_connection(self) -> Taken:
        """Have the reactor accept; what comes too late is for the next call."""
        if not self._closed:
            # Looking before would not do: another thread may take the last one meanwhile.
            with contextlib.suppress(IndexError):
                return self._strays.popleft()
        return self._bridge(
            self._accept_there, seconds=self._accept_seconds, discard=self._keep_stray
        )

    def _keep_stray(self, taken: Taken) -> None:
        if self._closed:
            taken.close()
        else:
            self._strays.append(taken)

    def _accept_there(self, reactor: Any) -> Deferred[Taken]:
        """Accept a connection, in the reactor's thread."""
        accepting = self._twin_on(reactor).accept()
        if not self._waits and not accepting.called:
            accepting.addErrback(lambda _: None)
            accepting.cancel()
            return fail(Failure(BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))))
        return accepting.addCallback(take)

    def _has_input(self) -> bool:
        if self._twin is not None and self._twin._has_ready:
            return True
        return bool(self._strays) or super()._has_input()

    @property
    def failed_handshakes(self) -> int:
        """How many connections failed before `accept`, by their PROXY header or handshake."""
        return 0 if self._twin is None else self._twin.failed_handshakes

    def _twin_on(self, reactor: Any) -> Socket:
        """Return the listening socket on the reactor, in its thread."""
        if self._twin is None:
            self._twin = self._make_twin(reactor)
        return self._twin

    def _make_twin(self, reactor: Any) -> Socket:
        return Socket(
            reactor,
            poller_for(reactor).watch(self._number),
            self._descriptor,
            options=self._options,
        )

    def __iter__(self) -> Iterator[Self]:
        """Accept connections until this socket is closed on this side."""
        while not self._closed:
            try:
                connection = self.accept()
            except (SocketClosedError, SocketConnectionLostError):
                # Closed here, or with the reactor.
                return
            yield connection

    def serve(self, handler: Callable[[Self], object], *, limit: int | None = None) -> None:
        """
        Accept connections, and call *handler* with each, in a thread of its own.

        Each connection is closed when its handler returns, also if it has been given
        to `start_tls`. Whatever a handler raises, `SystemExit` included, is logged, and
        ends its own connection only. So does a thread that cannot be started: its
        connection is closed, and the next one is accepted.

        Args:
            handler: Called in a daemon thread.
            limit: How many handlers may run at a time: while as many do, no
                connection is accepted. `None`: no limit.

        Returns:
            When this socket is closed on this side, and the handlers have returned.

        Raises:
            TypeError, ValueError: *limit* is no number of threads.
            SocketBusyError: Another thread accepts.
            SocketError: The socket does not listen.
        """
        if not callable(handler):
            raise TypeError(f"handler={handler!r} must be callable with a connection")
        if limit is not None:
            check.positive(limit, "limit")
        Service(self, handler, limit).run()

    # Closing

    def _dispose(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._strays.popleft().close()
        twin = self._twin
        if twin is None:
            super()._dispose()
            return
        try:
            if self._dropped or threadable.isInIOThread():
                there = in_reactor(lambda _: twin.close())
            else:
                # A signal handler may have interrupted what the reactor waits for.
                run(lambda _: twin.close(), seconds=_LONGEST_CLOSING)
                there = True
        except TimeoutError:
            there = True
        except (RuntimeError, SocketConnectionLostError):
            there = False
        if not there:
            # The reactor has ended, and nothing goes on there.
            twin._closed = True
            super()._dispose()

    def _after_fork(self) -> None:
        twin, self._twin = self._twin, None
        if twin is not None:
            # It is the parent's; the child makes another if it accepts.
            twin._closed = True
        super()._after_fork()
