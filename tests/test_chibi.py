"""The procedures of (chibi net): names and signatures, look-up, sockets."""

from __future__ import annotations

import errno
import inspect
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from tests.support.clocks import turns
from tests.support.loopback import native_listener
from tests.support.streams import soon
from twisted_netsock import (
    HostNotFoundError,
    Socket,
    SocketBindError,
    SocketClosedError,
    SocketConnectionRefusedError,
    SocketError,
    chibi,
)

FUNCTIONS = """
make-address-info      make_address_info(family, socket_type, protocol, hints=0) -> AddressInfo
get-address-info       get_address_info(host, service, addrinfo=None, *, reactor=None) -> D[AddressInfo]
address-info?          is_address_info(o) -> bool
sockaddr?              is_sockaddr(o) -> bool
open-net-io            open_net_io(host, service, *, reactor=None) -> D[NetIO]
with-net-io            with_net_io(host, service, proc, *, reactor=None) -> D[T]
make-listener-socket   make_listener_socket(addrinfo, max_connections=128, *, reactor=None) -> Socket
get-socket-option      get_socket_option(socket, level, name) -> int
set-socket-option!     set_socket_option(socket, level, name, value) -> None
send                   send(socket, data, flags=0, addrinfo=None) -> D[int]
send/non-blocking      send_non_blocking(socket, data, timeout, flags=0, addrinfo=None) -> D[int | None]
receive!               receive_into(socket, buffer, flags=0, addrinfo=None) -> D[int]
receive!/non-blocking  receive_into_non_blocking(socket, buffer, timeout, flags=0, addrinfo=None) -> D[int | None]
receive                receive(socket, n, flags=0, addrinfo=None) -> D[bytes]
receive/non-blocking   receive_non_blocking(socket, n, timeout, flags=0, addrinfo=None) -> D[bytes | None]
make-sockaddr          make_sockaddr(family=AF_UNSPEC, host="", port=0) -> SocketAddress
sockaddr-name          sockaddr_name(sockaddr) -> str
sockaddr-port          sockaddr_port(sockaddr) -> int
bind                   bind(socket, address) -> None
listen                 listen(socket, backlog=128) -> None
accept                 accept(socket) -> D[Socket]
connect                connect(socket, address) -> D[None]
socket                 socket(family, socket_type, protocol=0, *, reactor=None) -> Socket
open-socket-pair       open_socket_pair(family=AF_UNIX, socket_type=SOCK_STREAM, protocol=0, *, reactor=None) -> tuple[Socket, Socket]
get-peer-name          get_peer_name(socket) -> SocketAddress
"""  # noqa: E501 - a table

CONSTANTS = """
address-family/unspecified  ADDRESS_FAMILY_UNSPECIFIED  AF_UNSPEC
address-family/unix         ADDRESS_FAMILY_UNIX         AF_UNIX
address-family/inet         ADDRESS_FAMILY_INET         AF_INET
address-family/inet6        ADDRESS_FAMILY_INET6        AF_INET6
socket-type/stream          SOCKET_TYPE_STREAM          SOCK_STREAM
socket-type/datagram        SOCKET_TYPE_DATAGRAM        SOCK_DGRAM
socket-type/raw             SOCKET_TYPE_RAW             SOCK_RAW
ip-proto/ip                 IP_PROTO_IP                 IPPROTO_IP
ip-proto/icmp               IP_PROTO_ICMP               IPPROTO_ICMP
ip-proto/tcp                IP_PROTO_TCP                IPPROTO_TCP
ip-proto/udp                IP_PROTO_UDP                IPPROTO_UDP
ai/passive                  AI_PASSIVE                  AI_PASSIVE
ai/canonname                AI_CANONNAME                AI_CANONNAME
ai/numeric-host             AI_NUMERIC_HOST             AI_NUMERICHOST
level/socket                LEVEL_SOCKET                SOL_SOCKET
socket-opt/debug            SOCKET_OPT_DEBUG            SO_DEBUG
socket-opt/broadcast        SOCKET_OPT_BROADCAST        SO_BROADCAST
socket-opt/reuseaddr        SOCKET_OPT_REUSEADDR        SO_REUSEADDR
socket-opt/keepalive        SOCKET_OPT_KEEPALIVE        SO_KEEPALIVE
socket-opt/oobinline        SOCKET_OPT_OOBINLINE        SO_OOBINLINE
socket-opt/sndbuf           SOCKET_OPT_SNDBUF           SO_SNDBUF
socket-opt/rcvbuf           SOCKET_OPT_RCVBUF           SO_RCVBUF
socket-opt/dontroute        SOCKET_OPT_DONTROUTE        SO_DONTROUTE
socket-opt/rcvlowat         SOCKET_OPT_RCVLOWAT         SO_RCVLOWAT
socket-opt/sndlowat         SOCKET_OPT_SNDLOWAT         SO_SNDLOWAT
"""

ACCESSORS = [
    "family",
    "socket_type",
    "protocol",
    "address",
    "address_length",
    "next",
    "flags",
    "canonname",
]

LOOPBACK = chibi.make_sockaddr(host="127.0.0.1", port=0)


def signatures() -> list[str]:
    return [line.split(maxsplit=1)[1] for line in FUNCTIONS.strip().splitlines()]


def written(function: Callable[..., Any]) -> str:
    """Write the signature of *function* as the table does."""
    signature = inspect.signature(function)
    parts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = parameter.default
        told = getattr(default, "name", repr(default)).replace("'", '"')
        parts.append(
            parameter.name if default is inspect.Parameter.empty else f"{parameter.name}={told}"
        )
    returned = signature.return_annotation.replace("Deferred[", "D[")
    return f"{function.__name__}({', '.join(parts)}) -> {returned}"


def hints(kind: int = socket.SOCK_STREAM, *, family: int = 0, flags: int = 0) -> Any:
    return chibi.make_address_info(family, kind, 0, flags)


class TestNames:
    @pytest.mark.parametrize("signature", signatures())
    def test_a_procedure_has_exactly_this_name_and_signature(self, signature: str) -> None:
        name = signature.partition("(")[0]
        assert written(getattr(chibi, name)) == signature

    @pytest.mark.parametrize("line", CONSTANTS.strip().splitlines())
    def test_a_constant_is_the_standard_librarys(self, line: str) -> None:
        _, name, standard = line.split()
        assert getattr(chibi, name) is getattr(socket, standard)

    def test_nothing_else_is_public(self) -> None:
        names = [signature.partition("(")[0] for signature in signatures()]
        names += [line.split()[1] for line in CONSTANTS.strip().splitlines()]
        names += ["AddressInfo", "NetIO", "SocketAddress"]
        assert sorted(chibi.__all__) == sorted(names)

    def test_what_open_net_io_gives_has_three_fields(self) -> None:
        assert chibi.NetIO._fields == ("socket", "input_port", "output_port")

    def test_the_first_line_about_receive_non_blocking_tells_end_and_timeout_apart(self) -> None:
        first = inspect.getdoc(chibi.receive_non_blocking).partition("\n")[0]
        for told in ("give up after *timeout* seconds", '``b""`` is the end', "`None`"):
            assert told in first


class TestLookUp:
    async def test_a_tcp_stream_is_the_default(self) -> None:
        info = await soon(chibi.get_address_info("127.0.0.1", 80))
        assert chibi.is_address_info(info)
        assert not chibi.is_address_info(info.address)
        assert [getattr(info, name) for name in ACCESSORS] == [
            socket.AF_INET,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            ("127.0.0.1", 80),
            16,
            None,
            0,
            "",
        ]

    async def test_hints_choose_what_is_looked_for(self) -> None:
        info = await soon(chibi.get_address_info("127.0.0.1", 53, hints(socket.SOCK_DGRAM)))
        assert (info.socket_type, info.protocol) == (socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        raw = chibi.make_address_info(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        info = await soon(chibi.get_address_info("127.0.0.1", None, raw))
        assert (info.socket_type, info.protocol) == (socket.SOCK_RAW, socket.IPPROTO_ICMP)
        info = await soon(chibi.get_address_info("::1", 80))
        assert (info.family, info.address_length) == (socket.AF_INET6, 28)
        with pytest.raises(HostNotFoundError):
            await soon(chibi.get_address_info("::1", 80, hints(family=socket.AF_INET)))

    async def test_no_host_is_this_host(self) -> None:
        infos = list(await soon(chibi.get_address_info(None, 80)))
        assert {info.address.host for info in infos} <= {"127.0.0.1", "::1"}
        assert infos[0].address.port == 80

    async def test_no_host_is_any_address_where_it_is_passive(self) -> None:
        any_host = hints(flags=chibi.AI_PASSIVE, family=socket.AF_INET)
        info = await soon(chibi.get_address_info(None, 0, any_host))
        assert info.address == ("0.0.0.0", 0)
        async with chibi.make_listener_socket(info) as listener:
            assert listener.getsockname().host == "0.0.0.0"

    @pytest.mark.parametrize(("service", "port"), [("http", 80), ("80", 80), (80, 80), (None, 0)])
    async def test_a_service_is_a_name_or_a_port(self, service: Any, port: int) -> None:
        info = await soon(chibi.get_address_info("127.0.0.1", service))
        assert info.address == ("127.0.0.1", port)

    async def test_the_results_follow_each_other(self) -> None:
        head = await soon(chibi.get_address_info("localhost", 80, hints(0)))
        walked = [head]
        while walked[-1].next is not None:
            walked.append(walked[-1].next)
        assert walked == list(head)
        assert {info.socket_type for info in walked} >= {socket.SOCK_STREAM, socket.SOCK_DGRAM}
        assert all(chibi.is_sockaddr(info.address) for info in walked)

    async def test_names_are_refused_where_only_numeric_hosts_are_taken(self) -> None:
        numeric = hints(flags=chibi.AI_NUMERIC_HOST)
        assert await soon(chibi.get_address_info("127.0.0.1", "http", numeric))
        with pytest.raises(HostNotFoundError) as caught:
            await soon(chibi.get_address_info("localhost", 80, numeric))
        assert (caught.value.node, caught.value.service) == ("localhost", 80)
        assert caught.value.errno == socket.EAI_NONAME

    async def test_the_canonical_name_is_reported_where_it_is_asked_for(self) -> None:
        asked = hints(flags=chibi.AI_CANONNAME)
        expected = socket.getaddrinfo("localhost", 80, flags=socket.AI_CANONNAME)[0][3]
        assert (await soon(chibi.get_address_info("localhost", 80, asked))).canonname == expected
        assert (await soon(chibi.get_address_info("localhost", 80))).canonname == ""

    async def test_an_unknown_service_is_not_found(self) -> None:
        with pytest.raises(HostNotFoundError) as caught:
            await soon(chibi.get_address_info("127.0.0.1", "no-such-service"))
        assert caught.value.service == "no-such-service"

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            (("", 80), ValueError),
            (("localhost", 65536), ValueError),
            (("localhost", -1), ValueError),
            (("localhost", True), TypeError),
            ((b"localhost", 80), TypeError),
            (("localhost", 80, 0), TypeError),
        ],
    )
    def test_arguments_that_are_none_are_refused(
        self, arguments: Any, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            chibi.get_address_info(*arguments)

    async def test_a_cancelled_look_up_gives_nothing(self) -> None:
        looking = chibi.get_address_info("localhost", "http")
        looking.cancel()
        with pytest.raises(CancelledError):
            await looking

    def test_a_sockaddr_has_a_name_and_a_port(self) -> None:
        address = chibi.make_sockaddr(socket.AF_INET, "127.0.0.1", 80)
        assert chibi.is_sockaddr(address)
        assert not chibi.is_sockaddr(("127.0.0.1", 80))
        assert (chibi.sockaddr_name(address), chibi.sockaddr_port(address)) == ("127.0.0.1", 80)
        path = chibi.make_sockaddr(socket.AF_UNIX, "/run/x")
        assert (chibi.sockaddr_name(path), chibi.sockaddr_port(path)) == ("/run/x", 0)


class TestSockets:
    @pytest.mark.parametrize("form", ["AddressInfo", "SocketAddress", "tuple"])
    async def test_a_client_is_made_step_by_step(self, form: str) -> None:
        with native_listener() as (listener, address):
            info = await soon(chibi.get_address_info(*address))
            target = {"AddressInfo": info, "SocketAddress": address, "tuple": tuple(address)}[form]
            async with chibi.socket(info.family, info.socket_type, info.protocol) as sock:
                assert isinstance(sock, Socket)
                assert await soon(chibi.connect(sock, target)) is None
                peer, name = listener.accept()
                with peer:
                    assert chibi.get_peer_name(sock) == address
                    assert name == sock.getsockname()
                    assert chibi.get_socket_option(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY)
                    assert await soon(chibi.send(sock, b"hello")) == 5
                    assert peer.recv(10) == b"hello"

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", None])
    async def test_a_server_is_made_step_by_step(self, host: str | None, tmp_path: Any) -> None:
        if host is None:
            address = chibi.make_sockaddr(socket.AF_UNIX, str(tmp_path / "listener"))
        else:
            address = chibi.make_sockaddr(host=host)
        async with chibi.socket(address.family, chibi.SOCKET_TYPE_STREAM) as server:
            assert chibi.bind(server, address) is None
            assert chibi.listen(server, 5) is None
            accepting = chibi.accept(server)
            await turns()
            assert not accepting.called
            with socket.socket(address.family) as peer:
                peer.connect(server.getsockname().native(address.family))
                async with await soon(accepting) as accepted:
                    peer.sendall(b"hello")
                    assert await soon(chibi.receive(accepted, 10)) == b"hello"
                    assert chibi.get_peer_name(accepted).family in (address.family, 0)

    async def test_what_the_kernel_does_not_make_is_refused(self) -> None:
        with pytest.raises(SocketError) as caught:
            chibi.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_UDP)
        assert caught.value.errno == errno.EPROTONOSUPPORT

    async def test_a_refused_connection_is_an_error(self) -> None:
        async with chibi.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            with native_listener() as (_, address):
                pass
            with pytest.raises(SocketConnectionRefusedError):
                await soon(chibi.connect(sock, address))

    async def test_only_numeric_addresses_of_the_family_are_taken(self) -> None:
        async with chibi.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            for address in (("localhost", 80), ("::1", 80), ("/path",), hints()):
                with pytest.raises(ValueError, match="address="):
                    chibi.connect(sock, address)
                with pytest.raises(ValueError, match="address="):
                    chibi.bind(sock, address)
            with pytest.raises(SocketError) as caught:
                chibi.get_peer_name(sock)
            assert caught.value.errno == errno.ENOTCONN

    async def test_a_path_that_is_too_long_is_an_error_that_says_so(self, tmp_path: Any) -> None:
        async with chibi.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            address = chibi.make_sockaddr(socket.AF_UNIX, str(tmp_path / ("x" * 200)))
            with pytest.raises(SocketBindError, match="path too long"):
                chibi.bind(sock, address)
            with pytest.raises(SocketError, match="path too long"):
                await soon(chibi.connect(sock, address))

    @pytest.mark.parametrize(
        "name", ["BROADCAST", "REUSEADDR", "KEEPALIVE", "OOBINLINE", "DONTROUTE", "DEBUG"]
    )
    async def test_a_switch_is_turned_on_and_off(self, name: str) -> None:
        option = getattr(chibi, f"SOCKET_OPT_{name}")
        async with chibi.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            for value in (0, 1, 0):
                try:
                    chibi.set_socket_option(sock, chibi.LEVEL_SOCKET, option, value)
                except SocketError as error:
                    if error.errno != errno.EACCES:
                        raise
                    pytest.skip(f"SO_{name} needs a privilege")
                native = sock.getsockopt(socket.SOL_SOCKET, getattr(socket, f"SO_{name}"))
                got = chibi.get_socket_option(sock, chibi.LEVEL_SOCKET, option)
                assert got == native
                assert bool(got) == bool(value)

    async def test_sizes_are_set_as_the_kernel_rounds_them(self) -> None:
        async with chibi.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            for option in (chibi.SOCKET_OPT_SNDBUF, chibi.SOCKET_OPT_RCVBUF):
                chibi.set_socket_option(sock, chibi.LEVEL_SOCKET, option, 50_000)
                assert chibi.get_socket_option(sock, chibi.LEVEL_SOCKET, option) >= 50_000
            chibi.set_socket_option(sock, chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_RCVLOWAT, 7)
            got = chibi.get_socket_option(sock, chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_RCVLOWAT)
            assert got == 7
            assert (
                chibi.get_socket_option(sock, chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_SNDLOWAT) == 1
            )

    async def test_an_option_that_is_none_is_an_error(self) -> None:
        async with chibi.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            with pytest.raises(SocketError) as caught:
                chibi.get_socket_option(sock, chibi.LEVEL_SOCKET, 9999)
            assert (caught.value.errno, caught.value.socket) == (errno.ENOPROTOOPT, sock)
            with pytest.raises(SocketError):
                chibi.set_socket_option(sock, chibi.LEVEL_SOCKET, 9999, 1)
        for call in (
            lambda: chibi.get_socket_option(sock, chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_DEBUG),
            lambda: chibi.set_socket_option(sock, chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_DEBUG, 0),
            lambda: chibi.get_peer_name(sock),
            lambda: chibi.bind(sock, LOOPBACK),
            lambda: chibi.listen(sock),
        ):
            with pytest.raises(SocketClosedError):
                call()

    async def test_raw_sockets_carry_icmp(self) -> None:
        try:
            sock = chibi.socket(
                chibi.ADDRESS_FAMILY_INET, chibi.SOCKET_TYPE_RAW, chibi.IP_PROTO_ICMP
            )
        except SocketError as error:
            if error.errno not in (errno.EPERM, errno.EACCES):
                raise
            pytest.skip("raw sockets need a privilege")
        request = struct.pack("!BBHHH", 8, 0, 0, 0x6E73, 1) + b"echo"
        total = sum(struct.unpack("!6H", request))
        checksum = ~(total + (total >> 16)) & 0xFFFF
        request = request[:2] + struct.pack("!H", checksum) + request[4:]
        async with sock:
            assert await soon(chibi.send(sock, request, 0, LOOPBACK)) == len(request)
            for _ in range(100):
                packet, sender = await soon(sock.recvfrom(1000))
                # The header of IP comes along, and our own request, and what others send.
                answer = packet[(packet[0] & 15) * 4 :]
                if answer[:1] == b"\0" and answer[4:] == request[4:]:
                    break
            else:
                raise AssertionError("no answer came")
            assert sender.host == "127.0.0.1"


class TestListeners:
    async def test_a_listener_accepts_on_its_address(self) -> None:
        info = await soon(chibi.get_address_info("127.0.0.1", 0))
        for address in (info, info.address):
            async with chibi.make_listener_socket(address, 5) as listener:
                reuse = chibi.get_socket_option(
                    listener, chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_REUSEADDR
                )
                assert reuse == 1
                with socket.create_connection(listener.getsockname()) as peer:
                    async with await soon(chibi.accept(listener)) as accepted:
                        assert chibi.get_peer_name(accepted) == peer.getsockname()

    async def test_an_address_can_be_listened_on_again_at_once(self) -> None:
        address = LOOPBACK
        for _ in range(3):
            async with chibi.make_listener_socket(address) as listener:
                address = listener.getsockname()
                with socket.create_connection(address) as peer:
                    # Closed here first, the connection stays in the kernel for a while.
                    (await soon(chibi.accept(listener))).close()
                    assert peer.recv(1) == b""

    async def test_an_address_in_use_is_an_error(self) -> None:
        with native_listener() as (_, address):
            with pytest.raises(SocketBindError) as caught:
                chibi.make_listener_socket(address)
            assert caught.value.errno == errno.EADDRINUSE
            assert (caught.value.interface, caught.value.port) == address

    async def test_what_cannot_listen_leaves_nothing_behind(self) -> None:
        info = await soon(chibi.get_address_info("127.0.0.1", 0, hints(socket.SOCK_DGRAM)))
        with pytest.raises(SocketBindError) as caught:
            chibi.make_listener_socket(info)
        assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(TypeError):
            chibi.make_listener_socket(LOOPBACK, "many")
