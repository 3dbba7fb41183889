"""
How much is done for one connection before the others get their share of the reactor.

Everything here bounds the work between two reactor iterations. A peer that always has
data, room or another connection would keep the reactor to itself otherwise. The
benchmark ``fairness`` measures what the budgets are for: how much longer a quiet
connection's round trip takes beside one that never stops. Figures are of processor time,
on one core of a virtual machine with Python 3.11.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ACCEPTS",
    "ADDRESSES",
    "BYTES",
    "BYTES_OF_ONE",
    "CONNECTS",
    "DELIVERY",
    "EVENTS",
    "HANDSHAKE_RECORDS",
    "HANDSHAKE_WEIGHT",
    "OPERATIONS",
    "REPORTS",
    "TLS_BYTES",
]

EVENTS: Final = 128
"""Events that the poller hands out: at some 10 µs for each that is small, timers wait 1 ms."""

OPERATIONS: Final = 64
"""Operations of one socket that succeed at once; the next one waits for the poller."""

BYTES_OF_ONE: Final = 16384
"""
A larger operation counts as several, so that what is counted is time: a send of 64 bytes
takes 1.5 µs, one of 16 KiB 2.1 µs, and beyond that the time grows with the size.
"""

BYTES: Final = OPERATIONS * BYTES_OF_ONE
"""Bytes that one attempt, a transport's queue or a file moves: 1 MiB, some 150 µs."""

DELIVERY: Final = 65536
"""
Bytes of one delivery to an ordinary protocol, which allocates them: larger blocks cost an
mmap each, and Twisted's own transports deliver as much.
"""

TLS_BYTES: Final = 16 * 16384
"""
Bytes of one send over TLS, which are encrypted in the call: 16 records take 96 µs when they
go out in one system call, and 133 µs one by one.
"""

ACCEPTS: Final = 64
"""Connections taken from one listener; those of a full backlog come in two shares."""

CONNECTS: Final = 64
"""
Connections that are made without waiting. Within one machine a connection stands when the
call returns, and a program that makes one after the other would never give way.
"""

HANDSHAKE_WEIGHT: Final = 8
"""
For how many of those a TLS handshake counts. One end of it takes 0.55 ms, so 8 in a row hold
the reactor for 4 ms; 64 plain connections, at 30 µs, for 2 ms.
"""

ADDRESSES: Final = 64
"""Addresses of one name that are tried, where each attempt fails at once."""

HANDSHAKE_RECORDS: Final = 32
"""Records of a handshake that OpenSSL is given. It ignores some, as many as there are."""

REPORTS: Final = 16
"""Reports to a connection over another transport, which no poller hands out in turn."""
