"""Peers that are gone as soon as they are connected: reported by class, whenever it is noticed."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

import pytest
from twisted.internet import reactor

from tests.support.loopback import LOOPBACK, reset
from tests.support.protocols import Protocols, raw_listener, server_context
from tests.support.streams import in_thread
from twisted_netsock import (
    SocketConnectionError,
    SocketConnectionLostError,
    TLSError,
    client_endpoint,
)
from twisted_netsock._endpoints.client import _peer_of
from twisted_netsock._io.descriptor import PlainDescriptor
from twisted_netsock._io.poller import poller_for
from twisted_netsock._net.happy_eyeballs import Established

ROUNDS = 20


async def outcomes(where: Any, clients: Protocols) -> list[BaseException]:
    """Connect several times; return how each connect or connection ended."""
    ended: list[BaseException] = []
    for _ in range(ROUNDS):
        try:
            protocol = await where.connect(clients)
        except (TLSError, SocketConnectionError, SocketConnectionLostError) as error:
            ended.append(error)
        else:
            ended.append(await protocol.loses())
    return ended


async def test_a_server_that_misses_a_certificate(authority, tmp_path):
    """With TLS 1.3 it finds out when the client's handshake is over."""
    context = server_context(authority.issue("localhost", LOOPBACK), tmp_path)
    context.load_verify_locations(cadata=authority.certificate_pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    clients = Protocols()
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(10)

        def refuse() -> None:
            for _ in range(ROUNDS):
                plain, _ = listener.accept()
                plain.settimeout(10)
                with contextlib.suppress(OSError):
                    context.wrap_socket(plain, server_side=True, do_handshake_on_connect=True)
                with contextlib.suppress(OSError):
                    reset(plain)

        done = in_thread(refuse)
        port = listener.getsockname()[1]
        where = client_endpoint(reactor, LOOPBACK, port, authority.client_options())
        ended = await outcomes(where, clients)
        await done
    assert len(ended) == ROUNDS
    assert all(isinstance(each, TLSError | SocketConnectionLostError) for each in ended)


async def test_a_server_that_resets_every_connection():
    clients = Protocols()
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(10)

        def refuse() -> None:
            for _ in range(ROUNDS):
                reset(listener.accept()[0])

        done = in_thread(refuse)
        where = client_endpoint(reactor, LOOPBACK, listener.getsockname()[1])
        ended = await outcomes(where, clients)
        await done
    assert len(ended) == ROUNDS
    assert {type(each) for each in ended} <= {SocketConnectionError, SocketConnectionLostError}


async def test_the_name_of_a_peer_that_is_gone_is_a_lost_connection():
    """What the endpoint meets when the reset comes before it has asked."""
    with raw_listener() as listener:
        listener.setblocking(True)
        client = socket.create_connection(listener.getsockname())
        reset(listener.accept()[0])
        client.setblocking(False)
        established = Established(
            PlainDescriptor(client), poller_for(reactor).watch(client.fileno())
        )
        with pytest.raises(SocketConnectionLostError):
            _peer_of(established)
        established.close()
