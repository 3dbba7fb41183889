"""Helpers for tests of ports."""

from __future__ import annotations

from pathlib import Path

from tests.support.clocks import turns, until
from tests.support.stream_helpers import (
    Streams,
    TCPStreams,
    TLSStreams,
    UNIXStreams,
    noise,
    shrink_buffers,
)
from twisted_netsock import Socket
from twisted_netsock.testing import CertificateAuthority

KINDS = ("tcp", "unix", "tls")


def streams_of(kind: str, directory: Path, authority: CertificateAuthority) -> Streams:
    """Return the streams of one of the `KINDS`."""
    if kind == "tcp":
        return TCPStreams()
    return UNIXStreams(directory) if kind == "unix" else TLSStreams(authority)


async def stick(sock: Socket) -> bytes:
    """
    Write to the output port until the kernel takes no more, and return what was written.

    The port then holds 40 to 60 kB, less than makes a write wait.
    """
    shrink_buffers(sock)
    port = sock.output_port
    written = bytearray()
    looks = 0
    for number in range(2000):
        if port.pending < 40_000:
            chunk = noise(20_000, number)
            port.write(chunk)
            written += chunk
            looks = 0
        # TCP may put an acknowledgement off for 40 ms, and goes on then.
        await turns(10)
        looks += 1
        if looks == 6:
            return bytes(written)
    raise AssertionError("the kernel takes everything")


async def arrived(sock: Socket, count: int) -> None:
    """Wait until the buffer of the input port, which somebody reads, holds *count* bytes."""
    await until(lambda: sock.input_port.pending >= count)
