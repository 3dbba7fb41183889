"""Sockets for datagrams."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from twisted_netsock import Socket, chibi

HOSTS = {"ipv4": "127.0.0.1", "ipv6": "::1"}

Open = Callable[..., Socket]


def is_there(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True


@pytest.fixture(params=["ipv4", "ipv6", "unix"])
def open_bound(request: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens datagram sockets of one family, each bound to an address of its own."""
    if request.param == "ipv6" and not is_there("::1"):
        pytest.skip("this host has no IPv6 loopback")
    paths = (str(tmp_path / f"{number}") for number in itertools.count())
    with ExitStack() as stack:

        def open_one(**fields: Any) -> Socket:
            if request.param == "unix":
                sock = chibi.socket(socket.AF_UNIX, socket.SOCK_DGRAM, **fields)
                address: Any = (next(paths),)
            else:
                host = HOSTS[request.param]
                address = chibi.make_sockaddr(host=host, port=0)
                sock = chibi.socket(address.family, socket.SOCK_DGRAM, **fields)
            stack.callback(sock.close)
            sock.bind(address)
            return sock

        yield open_one


def udp(host: str = "127.0.0.1", port: int = 0) -> Socket:
    sock = chibi.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def unix() -> Socket:
    return chibi.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
