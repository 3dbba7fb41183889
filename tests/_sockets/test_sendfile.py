"""`sendfile`: what arrives of a file, in every way in, and what is refused."""

from __future__ import annotations

import errno
import io
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError

from tests.support.clocks import turns, until
from tests.support.streams import (
    TCPStreams,
    TLSStreams,
    UNIXStreams,
    failure_of,
    noise,
    read_exactly,
    soon,
)
from tests.support.threads import Background, plain_pair, threaded, tls_pair, waiting
from tests.support.threads import read_exactly as read_in_thread
from twisted_netsock import (
    SocketBusyError,
    SocketClosedError,
    SocketConnectionLostError,
    SocketError,
    SocketWriteTimeoutError,
    chibi,
)
from twisted_netsock._io.descriptor import PlainDescriptor
from twisted_netsock._sockets.sendfile import FileSource

MUCH = 5_000_001
"""More than the kernel takes at once, and no round number of anything."""


@pytest.fixture(params=["tcp", "unix", "tls"])
def streams(request: Any, authority: Any, tmp_path: Path) -> Any:
    if request.param == "tls":
        return TLSStreams(authority)
    return TCPStreams() if request.param == "tcp" else UNIXStreams(tmp_path)


@pytest.fixture(params=["plain", "tls"])
def pair(request: Any, authority: Any) -> Any:
    return plain_pair if request.param == "plain" else lambda: tls_pair(authority)


@pytest.fixture
def data() -> bytes:
    return noise(MUCH)


@pytest.fixture
def path(tmp_path: Path, data: bytes) -> Path:
    made = tmp_path / "file"
    made.write_bytes(data)
    return made


# On the reactor


@pytest.mark.parametrize(
    ("offset", "count"), [(0, None), (1, None), (100_000, 1_234_567), (MUCH - 5, 100), (0, 1)]
)
async def test_a_file_arrives_whole(
    streams: Any, path: Path, data: bytes, offset: int, count: int | None
) -> None:
    wanted = data[offset:] if count is None else data[offset : offset + count]
    with path.open("rb") as file:
        async with streams.pair() as (one, other):
            sending = one.sendfile(file, offset, count)
            assert await read_exactly(other, len(wanted)) == wanted
            assert await soon(sending) == len(wanted)
            assert file.tell() == offset + len(wanted)
            await one.sendall(b"behind it")
            assert await read_exactly(other, 9) == b"behind it"


@pytest.mark.parametrize(("offset", "count"), [(MUCH, None), (MUCH + 10, None), (5, 0)])
async def test_where_there_is_nothing_nothing_is_sent(
    streams: Any, path: Path, offset: int, count: int | None
) -> None:
    with path.open("rb") as file:
        async with streams.pair() as (one, _):
            assert await one.sendfile(file, offset, count) == 0


async def test_what_is_no_regular_file_is_read(streams: Any, data: bytes) -> None:
    file = io.BytesIO(data)
    async with streams.pair() as (one, other):
        sending = one.sendfile(file, 10, 3_000_000)
        assert await read_exactly(other, 3_000_000) == data[10:3_000_010]
        assert await soon(sending) == 3_000_000
        assert file.tell() == 3_000_010


async def test_it_begins_at_the_offset_wherever_the_file_stands(
    streams: Any, path: Path, data: bytes
) -> None:
    for file in (path.open("rb"), io.BytesIO(data)):
        with file:
            file.seek(5)
            async with streams.pair() as (one, other):
                assert await one.sendfile(file, 0, 10) == 10
                assert await read_exactly(other, 10) == data[:10]
                assert file.tell() == 10


async def test_a_pipe_is_read_to_its_end(streams: Any) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"out of a pipe")
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        async with streams.pair() as (one, other):
            assert await one.sendfile(file) == 13
            assert await read_exactly(other, 13) == b"out of a pipe"


async def test_where_the_kernel_cannot_it_is_read(
    path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(os, "sendfile", refuse)
    with path.open("rb") as file:
        async with TCPStreams().pair() as (one, other):
            sending = one.sendfile(file)
            assert await read_exactly(other, MUCH) == data
            assert await sending == MUCH


async def test_one_that_always_finds_room_holds_up_nobody(path: Path) -> None:
    """The reactor turns at least once for each megabyte."""
    seen: list[int] = []
    with path.open("rb") as file:
        source = FileSource(file, 0, None, PlainDescriptor(socket.socket()))
        source._moves = False

        class Greedy:
            def try_send(self, view: memoryview) -> int:
                return len(view)

            def try_flush(self) -> None:
                pass

        source._descriptor.sock.close()
        source._descriptor = Greedy()  # type: ignore[assignment]
        while not isinstance(source.attempt(lambda: None), int):
            seen.append(source.sent)
    assert len(seen) >= MUCH // (1 << 20)


async def test_a_send_that_waits_can_be_cancelled_and_the_file_tells_how_far_it_came(
    streams: Any, path: Path, data: bytes
) -> None:
    with path.open("rb") as file:
        async with streams.pair() as (one, other):
            sending = one.sendfile(file)
            await turns(20)
            assert not sending.called
            assert failure_of(one.sendall(b"x")) is SocketBusyError
            assert failure_of(one.sendfile(file)) is SocketBusyError
            sending.cancel()
            assert failure_of(sending) is CancelledError
            sent = file.tell()
            assert 0 < sent < MUCH
            going_on = one.sendfile(file, sent)
            assert await read_exactly(other, MUCH) == data
            assert await soon(going_on) == MUCH - sent


async def test_a_send_that_waits_ends_with_the_socket(streams: Any, path: Path) -> None:
    with path.open("rb") as file:
        async with streams.pair() as (one, _):
            sending = one.sendfile(file)
            await turns(20)
            one.abort()
            assert failure_of(sending) is SocketClosedError
            assert failure_of(one.sendfile(file)) is SocketClosedError


async def test_the_timeout_holds_while_nothing_is_taken(streams: Any, path: Path) -> None:
    with path.open("rb") as file:
        async with streams.pair(write_timeout=timedelta(milliseconds=50)) as (one, _):
            sending = one.sendfile(file)
            await until(lambda: sending.called)
            assert failure_of(sending) is SocketWriteTimeoutError
            assert 0 < file.tell() < MUCH


async def test_a_peer_that_goes_away_is_a_loss(path: Path) -> None:
    with path.open("rb") as file:
        async with TCPStreams().pair() as (one, other):
            sending = one.sendfile(file)
            await turns(5)
            other.abort()
            await until(lambda: sending.called)
            assert failure_of(sending) is SocketConnectionLostError


async def test_a_file_that_cannot_be_read_is_an_error(streams: Any) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "the disk is gone")

    async with streams.pair() as (one, other):
        with pytest.raises(SocketError, match="the file cannot be read: the disk is gone"):
            await one.sendfile(Broken(b"x"))
        await one.sendall(b"on")
        assert await read_exactly(other, 2) == b"on"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("file", 0, None), TypeError, "file must be open for reading, not 'file'"),
        ((io.BytesIO(), -1, None), ValueError, "offset=-1 must not be negative"),
        ((io.BytesIO(), 0, -2), ValueError, "count=-2 must not be negative"),
        ((io.BytesIO(), "1", None), TypeError, "offset must be a number of bytes, not '1'"),
        ((io.BytesIO(), 0, True), TypeError, "count must be a number of bytes, not True"),
        ((io.BytesIO(), 0, 1.5), TypeError, "count must be a number of bytes, not 1.5"),
    ],
)
async def test_what_cannot_be_sent_is_refused(
    arguments: Any, error: type[Exception], words: str
) -> None:
    one, other = chibi.open_socket_pair()
    async with one, other:
        with pytest.raises(error, match=words):
            one.sendfile(*arguments)


async def test_who_is_refused_leaves_the_file_alone(data: bytes) -> None:
    file = io.BytesIO(data)
    async with TCPStreams().pair() as (one, other):
        sending = one.sendfile(file)
        await turns(5)
        assert not sending.called
        assert failure_of(one.sendfile(file, 7)) is SocketBusyError
        assert await read_exactly(other, MUCH) == data
        assert await soon(sending) == MUCH
        file.seek(3)
        one.close()
        assert failure_of(one.sendfile(file, 7)) is SocketClosedError
        assert file.tell() == 3


async def test_a_pipe_has_no_offset() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    one, other = chibi.open_socket_pair()
    async with one, other:
        with os.fdopen(reading, "rb") as file, pytest.raises(ValueError, match="offset=3: "):
            one.sendfile(file, 3)


async def test_text_is_refused(path: Path) -> None:
    one, other = chibi.open_socket_pair()
    async with one, other:
        with path.open(errors="replace") as file, pytest.raises(ValueError, match="binary mode"):
            one.sendfile(file)  # type: ignore[arg-type]


async def test_what_is_open_for_writing_alone_is_refused(path: Path) -> None:
    one, other = chibi.open_socket_pair()
    async with one, other:
        with path.open("ab") as file, pytest.raises(ValueError, match="open for reading"):
            one.sendfile(file)


async def test_datagrams_are_refused(path: Path) -> None:
    one, other = chibi.open_socket_pair(socket_type=socket.SOCK_DGRAM)
    async with one, other:
        with path.open("rb") as file, pytest.raises(ValueError, match="on a stream only"):
            one.sendfile(file)


@given(st.binary(max_size=5000), st.integers(0, 6000), st.none() | st.integers(0, 6000))
def test_it_sends_what_the_standard_library_does(
    tmp_path_factory: Any, data: bytes, offset: int, count: int | None
) -> None:
    """Of a regular file, moved by the kernel or read, and of one in memory."""
    path = tmp_path_factory.getbasetemp() / "property"
    path.write_bytes(data)
    expected = data[offset:] if count is None else data[offset : offset + count]
    for moves in (True, False):
        for file in (path.open("rb"), io.BytesIO(data)):
            ours, theirs = socket.socketpair()
            with file, ours, theirs:
                source = FileSource(file, offset, count, PlainDescriptor(ours))
                source._moves = source._moves and moves
                assert source.attempt(lambda: None) == len(expected)
                source.conclude()
                assert file.tell() == offset + len(expected)
                ours.shutdown(socket.SHUT_WR)
                assert theirs.makefile("rb").read() == expected


# In threads


@threaded
def test_a_thread_sends_a_file(pair: Any, path: Path, data: bytes) -> None:
    with path.open("rb") as file, pair() as (one, other):
        receiving = Background(lambda: read_in_thread(other, MUCH - 7))
        assert one.sendfile(file, 7) == MUCH - 7
        assert receiving.result() == data[7:]
        assert file.tell() == MUCH


@threaded
def test_a_thread_sends_it_after_what_its_port_holds(pair: Any, path: Path, data: bytes) -> None:
    with path.open("rb") as file, pair() as (one, other):
        one.output_port.write(b"before it")
        assert one.sendfile(file, 0, 100) == 100
        assert read_in_thread(other, 109) == b"before it" + data[:100]


@threaded
def test_a_file_that_takes_its_time_holds_up_no_other_thread(pair: Any) -> None:
    """As the output of a process whose input is what the other thread receives."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file, pair() as (one, other):
        sending = waiting(lambda: one.sendfile(file), one, "_writer")
        try:
            other.sendall(b"for the process")
            receiving = Background(lambda: one.recv(100))
            assert receiving.result() == b"for the process"
            os.write(writing, b"from the process")
        finally:
            os.close(writing)
        assert sending.result() == 16
        assert other.recv(100) == b"from the process"


@threaded
def test_a_thread_waits_no_longer_than_it_may(pair: Any, path: Path) -> None:
    with path.open("rb") as file, pair() as (one, _):
        one.write_timeout = timedelta(milliseconds=50)
        with pytest.raises(SocketWriteTimeoutError):
            one.sendfile(file)
        assert 0 < file.tell() < MUCH
        one.abort()
