"""Binding and listening: where, how, and what is told when it fails."""

from __future__ import annotations

import errno
import select
import socket
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SO_ACCEPTCONN,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SOCK_DGRAM,
    SOL_SOCKET,
)

import pytest
from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs, formatEvent

from tests.support.clocks import ClockedReactor, the_reactor, turns
from tests.support.loopback import NAME, one_port, open_sockets, port_of, reactor_for
from twisted_netsock import HostNotFoundError, SocketBindError, SocketOptions
from twisted_netsock._net.listen import listen
from twisted_netsock._net.open_socket import check_listening
from twisted_netsock.testing import ScriptedResolver

UNIX = SocketOptions(ai_family=AF_UNIX)

# Of <linux/in.h>: an address may be bound that this host does not have.
IP_FREEBIND = 15


@pytest.fixture
def bind():
    """Bind or listen; what is made is closed at the end."""
    with ExitStack() as stack:

        async def bind(node, service=0, *, reactor=None, every_address=False, **fields):
            options = SocketOptions(**fields)
            reactor = reactor or the_reactor()
            socks = await listen(reactor, node, service, options, every_address=every_address)
            for sock in socks:
                stack.enter_context(sock)
            return socks

        yield bind


def takes(host, port):
    """Return whether a connection to *host* and *port* can be made."""
    try:
        socket.create_connection((host, port)).close()
    except ConnectionRefusedError:
        return False
    return True


# Where


async def test_no_node_is_every_interface_of_both_families_by_one_socket(bind):
    (sock,) = await bind(None)
    assert sock.family == AF_INET6
    assert sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY) == 0
    port = port_of(sock)
    assert [takes(host, port) for host in ("127.0.0.1", "127.0.0.9", "::1")] == [True] * 3


@pytest.mark.parametrize(
    ("fields", "ipv4", "ipv6"),
    [
        ({"v6_only": True}, False, True),
        ({"ai_family": AF_INET6}, False, True),
        ({"ai_family": AF_INET}, True, False),
    ],
)
async def test_no_node_can_be_limited_to_one_family(bind, fields, ipv4, ipv6):
    (sock,) = await bind(None, **fields)
    port = port_of(sock)
    assert (takes("127.0.0.1", port), takes("::1", port)) == (ipv4, ipv6)


@pytest.mark.parametrize("node", ["::", "::1"])
async def test_an_ipv6_address_is_ipv6_only(bind, node):
    (sock,) = await bind(node)
    assert sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY) == 1
    assert takes("::1", port_of(sock))


@pytest.mark.parametrize("node", ["127.0.0.9", "::1", "0.0.0.0"])
async def test_a_numeric_address_is_bound(bind, node):
    (sock,) = await bind(node)
    assert sock.getsockname()[0] == node
    assert port_of(sock) > 0


async def test_the_first_address_of_a_name_is_bound(bind):
    (sock,) = await bind(NAME, reactor=reactor_for("127.0.0.3", "127.0.0.2"))
    assert sock.getsockname()[0] == "127.0.0.3"


async def test_every_address_of_a_name_is_bound_on_one_port(bind):
    hosts = ["127.0.0.3", "::1", "127.0.0.2"]
    socks = await bind(NAME, reactor=reactor_for(*hosts), every_address=True)
    assert [sock.getsockname()[0] for sock in socks] == hosts
    (port,) = {port_of(sock) for sock in socks}
    assert all(takes(host, port) for host in hosts)


async def test_every_address_is_bound_on_the_port_that_was_asked_for(bind):
    with one_port("127.0.0.2", "127.0.0.3") as (free, _):
        port = port_of(free)
    reactor = reactor_for("127.0.0.2", "127.0.0.3")
    socks = await bind(NAME, port, reactor=reactor, every_address=True)
    assert [port_of(sock) for sock in socks] == [port, port]


@pytest.mark.parametrize("abstract", [False, True])
async def test_a_unix_socket_is_bound_to_its_path(bind, tmp_path, abstract):
    path = f"\0{tmp_path}" if abstract else str(tmp_path / "socket")
    (sock,) = await bind(path, None, ai_family=AF_UNIX)
    with socket.socket(AF_UNIX) as client:
        client.connect(path)
    assert not sock.getblocking()


# How


@pytest.mark.parametrize(
    ("fields", "listens", "reuses"),
    [({}, 1, 1), ({"ai_socktype": SOCK_DGRAM}, 0, 0)],
    ids=["stream", "datagram"],
)
async def test_streams_listen_and_reuse_addresses_and_datagrams_do_not(
    bind, fields, listens, reuses
):
    (sock,) = await bind("127.0.0.1", **fields)
    assert sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN) == listens
    assert sock.getsockopt(SOL_SOCKET, SO_REUSEADDR) == reuses
    assert not sock.getblocking()


@contextmanager
def dialled(address, count):
    """Begin *count* connections, and give those that stand."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(count)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address)
        _, standing, _ = select.select([], clients, [], 0.05)
        yield standing


@pytest.mark.parametrize("backlog", [0, 3])
async def test_the_backlog_is_what_the_kernel_queues(bind, backlog):
    """The kernel takes one more than it was told."""
    (sock,) = await bind("127.0.0.1", backlog=backlog)
    with dialled(sock.getsockname(), backlog + 3) as standing:
        assert len(standing) == backlog + 1


@pytest.mark.parametrize(
    "fields", [{"reuse_port": True}, {"socket_options": (SOL_SOCKET, SO_REUSEPORT, 1)}]
)
async def test_a_port_can_be_shared(bind, fields):
    (first,) = await bind("127.0.0.1", **fields)
    (second,) = await bind("127.0.0.1", port_of(first), **fields)
    assert first.getsockname() == second.getsockname()


async def test_options_are_set_before_binding(bind):
    # An address for documentation, which no host has.
    (sock,) = await bind("203.0.113.9", socket_options=(socket.IPPROTO_IP, IP_FREEBIND, 1))
    assert sock.getsockname()[0] == "203.0.113.9"


async def test_options_are_set_on_every_socket(bind):
    wanted = (SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    socks = await bind(
        NAME, reactor=reactor_for("127.0.0.2", "::1"), every_address=True, socket_options=wanted
    )
    assert [sock.getsockopt(*wanted[:2]) for sock in socks] == [1, 1]


async def test_connection_timeout_does_nothing(bind):
    reactor = ClockedReactor()
    reactor.nameResolver = ScriptedResolver({NAME: ["127.0.0.2"]}, reactor=reactor, delay=100.0)
    limit = timedelta(seconds=1)
    binding = listen(reactor, NAME, 0, SocketOptions(connection_timeout=limit))
    reactor.clock.advance(99)
    assert not binding.called
    reactor.clock.advance(1)
    (sock,) = await binding
    sock.close()


# Failures


async def test_a_port_that_is_taken_is_reported(bind):
    (taken,) = await bind("127.0.0.1")
    before = open_sockets()
    with pytest.raises(SocketBindError) as caught:
        await bind("127.0.0.1", port_of(taken))
    error = caught.value
    assert (error.interface, error.port) == ("127.0.0.1", port_of(taken))
    assert error.errno == error.socketError.errno == errno.EADDRINUSE
    assert str(port_of(taken)) in str(error)
    assert open_sockets() == before


async def test_a_port_that_is_taken_on_every_interface_is_reported(bind):
    (taken,) = await bind(None)
    with pytest.raises(SocketBindError, match="every interface") as caught:
        await bind(None, port_of(taken))
    assert (caught.value.interface, caught.value.port) == (None, port_of(taken))


async def test_an_address_that_is_not_ours_is_reported(bind):
    with pytest.raises(SocketBindError) as caught:
        await bind("203.0.113.9")
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert caught.value.interface == "203.0.113.9"


@pytest.mark.parametrize("every_address", [True, False])
async def test_addresses_that_are_not_ours_are_left_out(bind, every_address):
    """As in a container whose hosts file gives localhost the address ::1, without IPv6."""
    reactor = reactor_for("203.0.113.9", "127.0.0.1", "192.0.2.1", "127.0.0.2")
    with capturedLogs() as events:
        found = await bind(NAME, reactor=reactor, every_address=every_address)
    hosts = [sock.getsockname()[0] for sock in found]
    assert hosts == (["127.0.0.1", "127.0.0.2"] if every_address else ["127.0.0.1"])
    assert len({port_of(sock) for sock in found}) == 1
    left = [formatEvent(event) for event in events]
    assert ["203.0.113.9" in left[0], *("192.0.2.1" in each for each in left[1:])] == (
        [True, True] if every_address else [True]
    )


async def test_where_no_address_is_ours_the_error_names_one(bind):
    reactor = reactor_for("203.0.113.9", "192.0.2.1")
    before = open_sockets()
    with pytest.raises(SocketBindError, match=rf"{NAME}.*\(203\.0\.113\.9\)") as caught:
        await bind(NAME, 80, reactor=reactor, every_address=True)
    assert (caught.value.interface, caught.value.port) == (NAME, 80)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert open_sockets() == before


async def test_an_address_of_a_name_that_is_taken_is_not_left_out(bind):
    with one_port("127.0.0.3") as (taken,):
        reactor = reactor_for("127.0.0.2", "127.0.0.3")
        with pytest.raises(SocketBindError, match=r"\(127\.0\.0\.3\)"):
            await bind(NAME, port_of(taken), reactor=reactor, every_address=True)


async def test_a_path_that_is_taken_is_reported(bind, tmp_path):
    path = str(tmp_path / "socket")
    await bind(path, None, ai_family=AF_UNIX)
    with pytest.raises(SocketBindError) as caught:
        await bind(path, None, ai_family=AF_UNIX)
    assert (caught.value.interface, caught.value.port) == (path, None)
    assert caught.value.errno == errno.EADDRINUSE


async def test_where_one_address_cannot_be_bound_none_stays_bound(bind):
    with one_port("127.0.0.3") as (taken,):
        before = open_sockets()
        reactor = reactor_for("127.0.0.2", "127.0.0.3")
        with pytest.raises(SocketBindError):
            await bind(NAME, port_of(taken), reactor=reactor, every_address=True)
        assert open_sockets() == before


@pytest.mark.parametrize(
    ("node", "service"), [("other.invalid", 0), ("127.0.0.1", "no-such-service")]
)
async def test_what_is_not_found_is_reported(bind, node, service):
    with pytest.raises(HostNotFoundError) as caught:
        await bind(node, service, reactor=reactor_for("127.0.0.2"))
    assert (caught.value.node, caught.value.service) == (node, service)


async def test_cancelling_binds_nothing():
    before = open_sockets()
    reactor = reactor_for("127.0.0.2", delay=0.05)
    binding = listen(reactor, NAME, 0, SocketOptions())
    binding.cancel()
    with pytest.raises(CancelledError):
        await binding
    await turns(3)
    assert open_sockets() == before


# Arguments


@pytest.mark.parametrize(
    ("node", "service", "options", "error"),
    [
        (b"host", 80, SocketOptions(), TypeError),
        ("", 80, SocketOptions(), ValueError),
        ("ho\0st", 80, SocketOptions(), ValueError),
        (None, None, SocketOptions(), ValueError),
        ("host", None, SocketOptions(), ValueError),
        ("host", 65536, SocketOptions(), ValueError),
        ("host", -1, SocketOptions(), ValueError),
        ("host", 8.0, SocketOptions(), TypeError),
        (None, None, UNIX, TypeError),
        ("", None, UNIX, ValueError),
        ("/path", 80, UNIX, ValueError),
    ],
)
def test_what_cannot_be_listened_on_is_refused(node, service, options, error):
    with pytest.raises(error, match=r"node|service"):
        check_listening(node, service, options)


@pytest.mark.parametrize(
    ("node", "service", "options"),
    [
        (None, 0, SocketOptions()),
        (None, "http", SocketOptions()),
        ("host", "0", SocketOptions()),
        ("::1", 80, SocketOptions()),
        ("/path", None, UNIX),
        ("\0abstract", None, UNIX),
    ],
)
def test_what_can_be_listened_on_is_taken(node, service, options):
    check_listening(node, service, options)
