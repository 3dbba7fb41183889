"""What arrives of a stream whose sender breaks off: of ours beside HAProxy's and stunnel's."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import itertools
import random
import socket
import ssl
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from benchmarks.relays import command, missing
from tests.support.loopback import LONGEST, LOOPBACK
from tests.support.processes import started
from tests.support.relay import certificate_files

# A fixture.
assert certificate_files

pytestmark = [pytest.mark.once, pytest.mark.long]

VARIANTS = list(itertools.product([1, 500_000, 20_000_000], [False, True]))
"""How many bytes, and whether the receiver is slow."""
MANNERS = ["end", "reset", "unread", "truncation"]
"""In order; by a reset; by closing with something unread; by TCP's end without close_notify."""


@dataclass(frozen=True)
class Arrived:
    """What the other side has read, and whether the end of it was a clean one."""

    whole: bool
    clean: bool


class Relayed:
    """A relay as a process, and what its connections are made of."""

    def __init__(self, listener, port, context):
        self._listener = listener
        self._port = port
        self._context = context
        self._connecting = threading.Lock()

    def pair(self):
        with self._connecting:
            return self._pair()

    def _pair(self):
        client = socket.create_connection((LOOPBACK, self._port), timeout=LONGEST)
        if self._context is not None:
            client = self._context.wrap_socket(
                client, server_hostname="localhost", suppress_ragged_eofs=False
            )
        client.sendall(b"?")
        while True:
            server, _ = self._listener.accept()
            server.settimeout(LONGEST)
            # What only looked whether somebody listens has said nothing.
            if server.recv(1):
                return client, server
            server.close()


@contextlib.contextmanager
def relayed(name, directory, files, tls):
    certificate = files.server if tls else None
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(LONGEST)
        port, words = command(name, directory, listener.getsockname()[1], certificate)
        with started(*words, output=directory / f"{name}.log") as child:
            child.wait_for_port(port)
            trusted = ssl.create_default_context(cafile=files.authority) if tls else None
            yield Relayed(listener, port, trusted)


def in_flight(sock):
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def send_and_end(sock, data, manner):
    """Send *data*, wait until all has left, and end."""
    sock.sendall(data)
    end = time.monotonic() + LONGEST
    while manner != "end" and in_flight(sock) and time.monotonic() < end:
        time.sleep(0.001)
    if manner == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if manner in {"reset", "unread"}:
        sock.close()
        return
    if manner == "end" and isinstance(sock, ssl.SSLSocket):
        sock.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            sock.unwrap()
    socket.socket.shutdown(sock, socket.SHUT_WR)


def read_to_end(sock, slow):
    """Return the hash of what comes, and whether its end is a clean one."""
    found = hashlib.sha256()
    if slow:
        time.sleep(0.1)
    while True:
        try:
            chunk = sock.recv(65536)
        except OSError:
            return found.digest(), False
        if not chunk:
            return found.digest(), True
        found.update(chunk)
        if slow:
            time.sleep(0.0005)


def arrived(relay, side, manner, size, slow):
    data = random.Random(size).randbytes(size)
    ends = relay.pair()
    sender, receiver = ends if side == "client" else reversed(ends)
    with sender, receiver:
        if manner == "unread":
            receiver.sendall(b"never read")
            while not has_unread(sender):
                time.sleep(0.001)
        sending = threading.Thread(target=send_and_end, args=(sender, data, manner))
        sending.start()
        found, clean = read_to_end(receiver, slow)
        sending.join(LONGEST)
    return Arrived(found == hashlib.sha256(data).digest(), clean)


def has_unread(sock):
    waiting = int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)
    return waiting > 0


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("name", ["netsock", "haproxy", "stunnel"])
def test_everything_arrives_and_a_cut_looks_like_one(name, tls, tmp_path, certificate_files):
    if name == "stunnel" and not tls:
        pytest.skip("stunnel relays TLS alone")
    if reason := missing(name):
        pytest.skip(reason)
    found = {}
    with relayed(name, tmp_path, certificate_files, tls) as relay, ThreadPoolExecutor() as threads:
        variants = VARIANTS if name == "netsock" else VARIANTS[-2:-1]
        for side, manner in itertools.product(("client", "server"), MANNERS):
            if manner == "truncation" and not (tls and side == "client"):
                continue
            each = functools.partial(arrived, relay, side, manner)
            found[side, manner] = set(threads.map(each, *zip(*variants, strict=True)))
    cut = {key: ends for key, ends in found.items() if key[1] != "end"}
    assert all(
        found[side, "end"] == {Arrived(whole=True, clean=True)} for side in ("client", "server")
    )
    if name == "netsock":
        assert set().union(*cut.values()) == {Arrived(whole=True, clean=False)}
    else:
        # They pass a cut of a server on as an end, and stunnel every one.
        seen = [ends for (side, _), ends in cut.items() if side == "server" or name == "stunnel"]
        assert {each.clean for ends in seen for each in ends} == {True}
