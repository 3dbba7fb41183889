"""Bytes that wait to be sent."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["JOIN_LIMIT", "SendQueue"]

JOIN_LIMIT: Final = 256 * 1024
"""
Up to this many bytes chunks are sent in one piece. To send 1 MiB that was written 1,000 bytes
at a time takes 1.27 ms of processor time by single chunks, 0.22 ms by pieces of 64 KiB, and
0.20 ms by these; larger ones gain nothing.
"""


class SendQueue:
    """
    What was written and is not with the kernel, in order, as chunks.

    Attributes:
        size: How many bytes wait.
    """

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        """Begin with nothing."""
        self._chunks: deque[bytes | memoryview] = deque()
        self.size = 0

    def append(self, data: bytes) -> None:
        """Queue *data*, which is not empty."""
        self._chunks.append(data)
        self.size += len(data)

    def take_over(self, other: SendQueue) -> None:
        """Queue what waits in *other*, and empty that."""
        self._chunks += other._chunks
        self.size += other.size
        other.clear()

    def head(self) -> bytes | memoryview:
        """Return what is to be sent first, small chunks joined: a system call for many writes."""
        chunks = self._chunks
        first = chunks[0]
        # The rest of a chunk goes alone: a peer that takes little at a time would have it
        # copied into another piece each time.
        if first.__class__ is bytes and len(chunks) > 1:
            size = len(first) + len(chunks[1])
            if size <= JOIN_LIMIT:
                parts = [chunks.popleft(), chunks.popleft()]
                while chunks and (size := size + len(chunks[0])) <= JOIN_LIMIT:
                    parts.append(chunks.popleft())
                first = b"".join(parts)
                chunks.appendleft(first)
        return first

    def sent(self, count: int) -> None:
        """Drop *count* bytes of what `head` has returned, 1 or more."""
        head = self._chunks[0]
        if count < len(head):
            self._chunks[0] = memoryview(head)[count:]
        else:
            self._chunks.popleft()
        self.size -= count

    def clear(self) -> None:
        """Drop everything."""
        self._chunks.clear()
        self.size = 0
