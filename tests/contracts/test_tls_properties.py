"""Whatever is sent, cancelled, shut down and received, in any order: not a byte is wrong."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from tests.conftest import run_on_reactor
from tests.support.clocks import turns
from tests.support.streams import (
    TLSStreams,
    UNIXTLSStreams,
    failure_of,
    finished,
    noise,
    read_to_end,
    shrink_buffers,
    soon,
    together,
)
from twisted_netsock import SocketClosedError
from twisted_netsock.testing import CertificateAuthority

RECORD = 16384
CONTENT = noise(4_000_000)

SIZES = st.one_of(
    st.integers(0, 100),
    st.sampled_from([RECORD - 1, RECORD, RECORD + 1, 3 * RECORD]),
    st.sampled_from([50_000, 100_000, 200_000]),
)
ENDS = st.integers(0, 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["send", "sendall", "send"]), ENDS, SIZES),
        st.tuples(st.sampled_from(["send, cancel", "sendall, cancel"]), ENDS, SIZES),
        st.tuples(st.sampled_from(["cancel", "await"]), ENDS, st.just(0)),
        st.tuples(st.sampled_from(["recv", "recv_into"]), ENDS, SIZES),
        st.tuples(st.just("cancel recv"), ENDS, st.just(0)),
        st.tuples(st.just("shutdown"), ENDS, st.just(0)),
        st.tuples(st.just("turn"), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=25,
)


class End:
    """One end: what was sent on it for certain, what perhaps, and what was received."""

    def __init__(self, sock: Any, seed: int) -> None:
        self.sock = sock
        self.pieces: list[tuple[bytes, bool]] = []
        """What was handed to each send in order, and whether all of it must arrive."""
        self.received = bytearray()
        self.position = seed
        self.sending: Deferred[Any] | None = None
        self.data = b""
        self.receiving: Deferred[None] | None = None
        self.shut = False

    def next(self, size: int) -> bytes:
        self.position += size
        return CONTENT[self.position - size : self.position]

    def step(self, name: str, size: int) -> None:
        match name:
            case "send" | "sendall":
                self.start(name, size)
            case "send, cancel" | "sendall, cancel":
                self.start(name.partition(",")[0], size)
                self.cancel()
            case "cancel":
                self.cancel()
            case "recv" | "recv_into":
                self.receive(name, size)
            case "cancel recv":
                self.cancel_receive()
            case "shutdown":
                self.shutdown()

    # Sending

    def start(self, method: str, size: int) -> None:
        if self.sending is not None:
            return
        if self.shut:
            assert failure_of(getattr(self.sock, method)(b"late")) is SocketClosedError
            return
        self.data = self.next(size)
        self.sending = getattr(self.sock, method)(self.data)
        self.collect()

    def collect(self) -> None:
        """Note what came of the send, if it is done."""
        if self.sending is None or not self.sending.called:
            return
        self.note(self.sending.result)

    def note(self, count: int | None) -> None:
        self.pieces.append((self.data if count is None else self.data[:count], True))
        self.sending = None

    def cancel(self) -> None:
        self.collect()
        if self.sending is not None and not self.shut:
            self.sending.cancel()
            assert failure_of(self.sending) is CancelledError
            self.pieces.append((self.data, False))
            self.sending = None

    def shutdown(self) -> None:
        self.collect()
        if self.sending is None and not self.shut:
            self.shut = True
            self.data = b""
            self.sending = self.sock.shutdown(socket.SHUT_WR)

    async def finish(self) -> None:
        if self.sending is not None:
            self.note(await soon(self.sending))
        await soon(self.sock.shutdown(socket.SHUT_WR))

    # Receiving

    def receive(self, method: str, size: int) -> None:
        if size == 0 or (self.receiving is not None and not self.receiving.called):
            return
        if method == "recv":
            self.receiving = self.sock.recv(size).addCallback(self.received.extend)
        else:
            buffer = bytearray(size)
            self.receiving = self.sock.recv_into(buffer).addCallback(
                lambda count: self.received.extend(buffer[:count])
            )

    def cancel_receive(self) -> None:
        receiving, self.receiving = self.receiving, None
        if receiving is not None and not receiving.called:
            receiving.cancel()
            assert failure_of(receiving) is CancelledError

    async def receive_the_rest(self) -> None:
        self.cancel_receive()
        self.received += await read_to_end(self.sock)


def common(one: bytes, other: bytes) -> int:
    """Count the bytes at the beginning that both have in common."""
    if one == other:
        return len(one)
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def check(received: bytes, pieces: list[tuple[bytes, bool]]) -> None:
    """Check that *received* is *pieces*, of those cancelled a part from the beginning each."""
    ends = {0}
    for data, whole in pieces:
        found: set[int] = set()
        for begin in ends:
            most = common(data, received[begin : begin + len(data)])
            if not whole:
                found.update(range(begin, begin + most + 1))
            elif most == len(data):
                found.add(begin + most)
        ends = found
        assert ends, "what was received is not what was sent"
    assert len(received) in ends, f"{len(received)} bytes came, not one of {sorted(ends)[:5]}"


async def play(tls: TLSStreams, directory: Path, steps: list[tuple[str, int, int]]) -> None:
    path = directory / "socket"
    path.unlink(missing_ok=True)
    async with UNIXTLSStreams(tls, path).pair() as pair:
        shrink_buffers(*pair)
        ends = [End(sock, 2_000_000 * number) for number, sock in enumerate(pair)]
        for name, number, size in steps:
            end = ends[number]
            if name == "turn":
                await turns(1)
            elif name == "await":
                await turns(2)
                end.collect()
            else:
                end.step(name, size)
        one, other = ends
        await together(
            one.finish(), other.finish(), one.receive_the_rest(), other.receive_the_rest()
        )
        check(bytes(other.received), one.pieces)
        check(bytes(one.received), other.pieces)
        await together(finished(one.sock.close()), finished(other.sock.close()))


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_any_order_of_calls_is_exact(
    authority: CertificateAuthority, version: str, tmp_path: Path
) -> None:
    tls = TLSStreams(authority, version)

    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @given(STEPS)
    def run(steps: list[tuple[str, int, int]]) -> None:
        run_on_reactor(lambda: play(tls, tmp_path, steps))

    run()


def test_the_check_notices_what_is_wrong() -> None:
    good = [(b"abcdef", True), (b"ghijkl", False), (b"mno", True)]
    for received in (b"abcdefmno", b"abcdefghmno", b"abcdefghijklmno"):
        check(received, good)
    for received in (b"abcdef", b"abcdeghmno", b"abcdefhimno", b"abcdefghijklmnop", b""):
        with pytest.raises(AssertionError):
            check(received, good)
