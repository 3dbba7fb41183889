"""
Ports: real `io` objects over a blocking socket.

`RawPort` is the unbuffered layer beneath `BlockingSocket.input_port`,
`BlockingSocket.output_port` and what `BlockingSocket.makefile` returns.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Final, Literal, Protocol

from ..errors import SocketBusyError, SocketPortError, SocketWriteTimeoutError
from ._operation import FILE, PORT

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["RawPort", "held_by", "open_input_port", "open_output_port"]

PORT_BUFFER: Final = 65536


class _Stream(Protocol):
    """What a port needs of a socket."""

    _takes_before_it_sends: bool

    def _recv_into_port(self, buffer: memoryview, by: int) -> int: ...
    def _send_from_port(self, data: memoryview, by: int) -> int: ...
    def _file_opened(self) -> None: ...
    def _file_closed(self) -> None: ...
    def fileno(self) -> int: ...


class RawPort(io.RawIOBase):
    """A stream over a socket, without a buffer of its own."""

    def __init__(self, socket: _Stream, mode: Literal["r", "w", "rw"], *, is_file: bool) -> None:
        """
        Read from *socket*, write to it, or both.

        Args:
            socket: Stays open when this is closed.
            mode: What for.
            is_file: This is for `makefile`: the socket's closing waits for this one's.
        """
        super().__init__()
        self.mode = {"r": "rb", "w": "wb", "rw": "rwb"}[mode]
        self._reads = "r" in mode
        self._writes = "w" in mode
        self._socket = socket
        self._number = socket.fileno()
        self._by = PORT
        self._broken = False
        self.failed = False
        """The last write failed, and may have left a gap."""
        self._looking: int | None = None
        if is_file:
            socket._file_opened()
            self._by = FILE

    @property
    def name(self) -> int:
        """The descriptor, as the standard library's; -1 once closed."""
        return -1 if self.closed else self._number

    def readable(self) -> bool:
        """Return whether it can be read."""
        self._check_closed()
        return self._reads

    def writable(self) -> bool:
        """Return whether it can be written."""
        self._check_closed()
        return self._writes

    def seekable(self) -> bool:
        """Return whether it is a stream."""
        self._check_closed()
        return False

    def fileno(self) -> int:
        """Return the descriptor."""
        self._check_closed()
        return self._number

    def _check_closed(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed port")

    def _check_usable(self) -> None:
        self._check_closed()
        if self._broken:
            raise SocketPortError(
                self,
                socket=self._socket,
                strerror="An earlier operation of this port was cut short, and bytes were lost",
            )

    def readinto(self, buffer: Buffer, /) -> int | None:
        """
        Receive into *buffer*; `None` where that would wait on a socket that does not.

        Raises:
            SocketPortError: An earlier read failed, and lost what it had gathered.
        """
        if self._looking == threading.get_ident():
            return None
        self._check_usable()
        if not self._reads:
            raise io.UnsupportedOperation("not readable")
        try:
            count = self._socket._recv_into_port(memoryview(buffer), self._by)
        except BlockingIOError:
            return None
        except BaseException:
            # What the layer above has gathered for its caller is lost.
            self._broken = True
            raise
        return count

    def write(self, data: Buffer, /) -> int | None:
        """
        Send some of *data*; `None` where that would wait on a socket that does not.

        Raises:
            SocketPortError: An earlier write failed, and how much it sent is unknown.
        """
        view = memoryview(data)
        self._check_usable()
        if not self._writes:
            raise io.UnsupportedOperation("not writable")
        try:
            count = self._socket._send_from_port(view, self._by)
        except BlockingIOError:
            return None
        except SocketWriteTimeoutError:
            # On a plain socket nothing was sent; TLS may have taken some.
            self._broken = self._socket._takes_before_it_sends
            self.failed = True
            raise
        except BaseException:
            self._broken = self.failed = True
            raise
        self.failed = False
        return count

    def close(self) -> None:
        """Close this; the socket stays open, unless it only waited for this."""
        if self.closed:
            return
        super().close()
        if self._by == FILE:
            self._socket._file_closed()

    def count_held(self, reader: io.BufferedReader) -> int:
        """Return how many bytes *reader*, which stands on this, holds unread."""
        before, self._looking = self._looking, threading.get_ident()
        try:
            return len(reader.peek(1))
        except ValueError:
            # It is closed.
            return 0
        except RuntimeError:
            # This is a signal handler that has interrupted the port itself.
            raise SocketBusyError(self._socket) from None
        finally:
            self._looking = before

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"of {self._socket!r}"
        return f"<{type(self).__name__} {self.mode} {state}>"


def open_input_port(socket: _Stream) -> io.BufferedReader:
    """Return a buffered reader of *socket*."""
    return io.BufferedReader(RawPort(socket, "r", is_file=False), PORT_BUFFER)


def open_output_port(socket: _Stream) -> io.BufferedWriter:
    """Return a buffered writer to *socket*."""
    return io.BufferedWriter(RawPort(socket, "w", is_file=False), PORT_BUFFER)


def has_failed(port: io.BufferedWriter) -> bool:
    """Return whether what an output port was given last could not be sent."""
    raw = port.raw
    return isinstance(raw, RawPort) and raw.failed


def held_by(port: io.BufferedReader) -> int:
    """Return how many bytes an input port holds that have not been read."""
    raw = None if port.closed else port.raw
    return raw.count_held(port) if isinstance(raw, RawPort) else 0


def drop(port: io.BufferedReader | io.BufferedWriter) -> None:
    """
    Close a port whose socket is closed: what it holds is dropped.

    By what is beneath it, which closes it, too. Its own method would wait for a thread
    that is in the middle of another one, which may wait for this thread.
    """
    port.raw.close()
