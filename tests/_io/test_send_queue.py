"""What waits to be sent keeps its order, whatever is taken of it at once."""

from __future__ import annotations

import random

import pytest

from twisted_netsock._io.send_queue import JOIN_LIMIT, SendQueue


def queue_of(*chunks: bytes) -> SendQueue:
    queue = SendQueue()
    for chunk in chunks:
        queue.append(chunk)
    return queue


def drained(queue: SendQueue, most: int) -> list[bytes]:
    """Take at most *most* bytes at once, and return the pieces."""
    pieces = []
    while queue.size:
        piece = bytes(queue.head()[:most])
        queue.sent(len(piece))
        pieces.append(piece)
    return pieces


def test_a_new_queue_is_empty():
    assert SendQueue().size == 0


def test_small_chunks_are_sent_in_one_piece():
    queue = queue_of(b"one", b"two", b"three")
    assert queue.size == 11
    assert queue.head() == b"onetwothree"
    assert queue.head() == b"onetwothree"
    queue.sent(11)
    assert queue.size == 0


def test_a_lone_chunk_is_not_copied():
    chunk = b"x" * 100
    assert queue_of(chunk).head() is chunk


@pytest.mark.parametrize("over", [0, 1])
def test_chunks_are_joined_up_to_the_limit(over):
    first, second = b"a" * 1000, b"b" * (JOIN_LIMIT - 1000 + over)
    expected = [first, second + b"c"] if over else [first + second, b"c"]
    assert drained(queue_of(first, second, b"c"), 2 * JOIN_LIMIT) == expected


def test_a_chunk_that_is_larger_than_the_limit_goes_alone():
    large = b"x" * (JOIN_LIMIT + 1)
    queue = queue_of(b"a", large, b"b", b"c")
    assert drained(queue, 2 * JOIN_LIMIT) == [b"a", large, b"bc"]


def test_the_rest_of_a_chunk_goes_before_what_follows_and_alone():
    queue = queue_of(b"head")
    queue.sent(len(queue.head()) - 2)
    queue.append(b"tail")
    queue.append(b"end")
    assert queue.size == 9
    assert queue.head() == b"ad"
    queue.sent(1)
    assert queue.head() == b"d"
    queue.sent(1)
    assert queue.head() == b"tailend"


def test_a_queue_takes_over_what_waits_in_another():
    queue, other = queue_of(b"first"), queue_of(b"second", b"third")
    queue.take_over(other)
    assert (queue.size, other.size) == (16, 0)
    other.append(b"not this")
    assert drained(queue, 100) == [b"firstsecondthird"]


def test_an_emptied_queue_begins_anew():
    queue = queue_of(b"one", b"two")
    queue.clear()
    assert queue.size == 0
    queue.append(b"three")
    assert drained(queue, 100) == [b"three"]


def test_every_byte_comes_out_once_and_in_order():
    chance = random.Random(7)
    queue = SendQueue()
    written, taken = bytearray(), bytearray()
    for _ in range(500):
        for _ in range(chance.randrange(4)):
            chunk = chance.randbytes(chance.choice([1, 10, 1000, JOIN_LIMIT // 2]))
            written += chunk
            queue.append(chunk)
        for _ in range(chance.randrange(4)):
            if queue.size:
                piece = queue.head()
                count = chance.randint(1, len(piece))
                taken += piece[:count]
                queue.sent(count)
        assert queue.size == len(written) - len(taken)
    taken += b"".join(drained(queue, JOIN_LIMIT))
    assert taken == written
