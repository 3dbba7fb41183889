"""What a user's program of options, sockets and threads looks like to mypy, without plugins."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable
from datetime import timedelta
from socket import AddressFamily, SocketKind
from typing import assert_type

from cryptography import x509
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

import twisted_netsock as netsock
from twisted_netsock import blocking, chibi
from twisted_netsock._sockets.ports import InputPort, OutputPort


def records() -> None:
    plain = netsock.SocketOptions(
        connection_timeout=timedelta(seconds=10), socket_options=[(1, 2, 3)], backlog=5
    )
    assert_type(plain.replace(backlog=7), netsock.SocketOptions)
    tls = netsock.TLSSocketOptions.from_options(plain, alpn="h2", sni="example.com")
    assert_type(tls, netsock.TLSSocketOptions)
    assert_type(tls.alpn, tuple[str, ...] | None)
    server = netsock.ServerTLSSocketOptions(
        certificates=["chain.pem", b"..."], client_certificate_required=False
    )
    assert_type(server.replace(private_key="key.pem"), netsock.ServerTLSSocketOptions)
    assert_type(netsock.SocketOptions.from_options(server), netsock.SocketOptions)
    plain.replace(no_such_field=1)  # type: ignore[call-arg]


async def sockets() -> None:
    sock = await netsock.make_client_socket("localhost", 80)
    assert_type(sock, netsock.Socket)
    assert_type(sock.recv(10), Deferred[bytes])
    assert_type(await sock.recv_into(bytearray(10)), int)
    assert_type(await sock.recv_into(bytearray(10), 4, 0), int)
    await sock.sendall(memoryview(b"data"))
    assert_type(sock.sendfile(io.BytesIO(b"data"), 10, count=20), Deferred[int])
    assert_type(sock.input_port, netsock.InputPort)
    assert_type(sock.output_port, netsock.OutputPort)
    assert_type(sock.getpeername(), netsock.SocketAddress)
    tls = await netsock.make_client_tls_socket("localhost", "https", netsock.SocketOptions())
    assert_type(tls, netsock.TLSSocket)
    assert_type(tls.selected_alpn, str | None)
    async with await netsock.make_server_socket(None, 0) as server:
        async for connection in server:
            assert_type(connection, netsock.Socket)
    listener = await netsock.make_server_tls_socket(
        None, 0, [netsock.ServerTLSSocketOptions()], reload_every=timedelta(hours=1)
    )
    assert_type(listener, netsock.TLSSocket)
    assert_type(await listener.accept(), netsock.TLSSocket)
    assert_type(listener.serve(handle, limit=100), Deferred[None])
    assert_type(await netsock.start_tls(sock, netsock.TLSSocketOptions()), netsock.TLSSocket)
    await netsock.start_tls(sock, netsock.TLSSocketOptions(), "example.com")
    assert_type(await netsock.wait_readable(sock, timeout=timedelta(1)), list[netsock.Socket])
    assert_type(await netsock.wait_writable(tls), list[netsock.TLSSocket])
    selector = netsock.SocketSelector(timedelta(seconds=10))
    selector.add(tls, on_read, timedelta(seconds=1))
    await listener.serve(print)


async def handle(connection: netsock.TLSSocket) -> None:
    await connection.sendall(b"hello")


async def on_read(
    sock: netsock.Socket, error: netsock.SocketError | None, again: Callable[..., None]
) -> None:
    if error is None:
        await sock.recv(10)
    again()


async def proxies() -> None:
    options = netsock.SocketOptions(proxy_protocol="v2")
    header = netsock.ProxyHeader(
        ("192.0.2.1", 56324),
        IPv4Address("TCP", "192.0.2.2", 443),
        tlvs=[(netsock.ProxyTLV.SSL, netsock.ProxyTLS(client=1).encode()), (0xE0, b"")],
        checksum=True,
    )
    assert_type(header.source, netsock.SocketAddress | None)
    assert_type(header.tls, netsock.ProxyTLS | None)
    assert_type(netsock.ProxyHeader.parse(header.encode("v2")), netsock.ProxyHeader)
    sock = await netsock.make_client_socket("localhost", 80, options, proxy_header=header)
    assert_type(sock.proxy_header, netsock.ProxyHeader | None)
    netsock.SocketOptions(proxy_protocol="v3")  # type: ignore[arg-type]


def blocking_sockets() -> None:
    blocking.setup(reactor="epoll")
    sock = blocking.make_client_socket("localhost", 80)
    assert_type(sock, blocking.BlockingSocket)
    assert_type(sock.recv(10), bytes)
    assert_type(sock.recv_into(bytearray(10)), int)
    assert_type(sock.recv_into(bytearray(10), 4, 0), int)
    assert_type(sock.sendall(b"data"), None)
    assert_type(sock.sendfile(io.BytesIO(b"data")), int)
    assert_type(sock.getpeername(), netsock.SocketAddress)
    assert_type(sock.input_port, io.BufferedReader)
    assert_type(sock.output_port, io.BufferedWriter)
    assert_type(sock.gettimeout(), float | None)
    with blocking.make_client_tls_socket("localhost", "https", netsock.SocketOptions()) as tls:
        assert_type(tls, blocking.BlockingTLSSocket)
        assert_type(tls.selected_alpn, str | None)
    with blocking.make_server_socket(None, 0) as server:
        for connection in server:
            assert_type(connection, blocking.BlockingSocket)
        server.serve(lambda each: each.sendall(each.recv(10)), limit=10)
    listener = blocking.make_server_tls_socket(None, 0, [netsock.ServerTLSSocketOptions()])
    assert_type(listener, blocking.BlockingTLSSocket)
    assert_type(blocking.start_tls(sock, netsock.TLSSocketOptions()), blocking.BlockingTLSSocket)
    assert_type(blocking.ssl_context(netsock.TLSSocketOptions()), ssl.SSLContext)
    assert_type(blocking.ssl_context([netsock.ServerTLSSocketOptions()]), ssl.SSLContext)
    assert_type(blocking.wait_readable(sock), list[blocking.BlockingSocket])
    assert_type(blocking.wait_writable(tls), list[blocking.BlockingTLSSocket])
    assert_type(blocking.receive_non_blocking(sock, 10, 0.1), bytes | None)
    assert_type(blocking.get_address_info("localhost", 80), netsock.AddressInfo)
    assert_type(blocking.with_net_io("localhost", 80, lambda reader, _: reader.read()), bytes)
    blocking.SocketSelector().add(sock, lambda each, error, again: again())
    await_nothing: bytes = sock.recv(1, flags="none")  # type: ignore[arg-type]
    print(await_nothing)


def tell_records_apart(options: object) -> None:
    assert_type(netsock.is_socket_options(options), bool)
    assert_type(netsock.is_tls_socket_options(options), bool)
    assert_type(netsock.is_server_tls_socket_options(options), bool)


def pinned(depth: int, result: netsock.VerifyResult, certificate: x509.Certificate) -> bool | None:
    return None if depth or result.code else False


async def any_kind(options: netsock.TLSSocketOptions) -> None:
    verifying = options.replace(certificate_verifier=pinned)
    sock = await netsock.socket_options_to_client_socket(verifying, "localhost", 80)
    assert_type(sock, netsock.Socket)
    if isinstance(sock, netsock.TLSSocket):
        assert_type(sock.peer_certificate, x509.Certificate | None)
    kept = blocking.socket_options_to_client_socket(verifying, "localhost", 80)
    assert_type(kept, blocking.BlockingSocket)


async def failing(sock: netsock.Socket) -> None:
    try:
        await sock.recv(1)
    except netsock.CertificateVerificationError as error:
        caught: ssl.SSLCertVerificationError = error
        assert_type(error.depth, int)
        assert_type(error.certificate, x509.Certificate | None)
        print(caught)
    except (netsock.TLSHandshakeError, netsock.TLSTruncatedError, netsock.TLSError) as error:
        assert_type(error.reason, str)
    except netsock.SocketIncompleteReadError as error:
        assert_type(error.partial, bytes)
    except netsock.SocketConnectionTimeoutError as error:
        late: TimeoutError = error
        assert_type(error.stage, str)
        print(late)
    except (netsock.SocketConnectionRefusedError, netsock.SocketConnectionError) as error:
        for address, reason in error.attempts:
            print(address, reason)
    except (netsock.SocketReadTimeoutError, netsock.SocketWriteTimeoutError) as error:
        slow: TimeoutError = error
        print(slow)
    except (
        netsock.SocketBindError,
        netsock.SocketBusyError,
        netsock.SocketClosedError,
        netsock.SocketConnectionLostError,
        netsock.SocketPortError,
        netsock.SocketError,
    ) as error:
        told: OSError = error
        print(told)
    except (
        netsock.HostNotFoundError,
        netsock.ProxyHeaderError,
        netsock.ProxyError,
        netsock.ProxyAuthenticationError,
        netsock.ProxyProtocolError,
        netsock.ProxyRefusedError,
        netsock.ProxyTargetError,
        netsock.ProxyUnreachableError,
        netsock.NetsockError,
    ) as error:
        print(error)


async def procedures() -> None:
    hints = chibi.make_address_info(
        chibi.ADDRESS_FAMILY_INET, chibi.SOCKET_TYPE_STREAM, chibi.IP_PROTO_TCP, chibi.AI_PASSIVE
    )
    info = await chibi.get_address_info(None, 80, hints)
    assert_type(info, netsock.AddressInfo)
    assert_type([each.address for each in info], list[netsock.SocketAddress | None])
    assert_type(chibi.is_address_info(info), bool)
    place = chibi.make_sockaddr(chibi.ADDRESS_FAMILY_INET, "127.0.0.1", 80)
    assert_type(place, netsock.SocketAddress)
    assert_type(chibi.is_sockaddr(place), bool)
    assert_type(chibi.sockaddr_name(place), str)
    assert_type(chibi.sockaddr_port(place), int)
    listener = chibi.make_listener_socket(info, 10)
    assert_type(chibi.accept(listener), Deferred[netsock.Socket])
    sock = chibi.socket(chibi.ADDRESS_FAMILY_INET, chibi.SOCKET_TYPE_STREAM)
    chibi.set_socket_option(sock, chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_KEEPALIVE, 1)
    assert_type(chibi.get_socket_option(sock, chibi.LEVEL_SOCKET, chibi.SOCKET_OPT_DEBUG), int)
    chibi.bind(sock, place)
    chibi.listen(sock)
    await chibi.connect(sock, info)
    assert_type(chibi.get_peer_name(sock), netsock.SocketAddress)
    assert_type(chibi.send(sock, b"data"), Deferred[int])
    assert_type(chibi.send_non_blocking(sock, b"data", 1), Deferred[int | None])
    assert_type(chibi.receive(sock, 10), Deferred[bytes])
    assert_type(chibi.receive_non_blocking(sock, 10, timedelta(1)), Deferred[bytes | None])
    assert_type(chibi.receive_into(sock, bytearray(1)), Deferred[int])
    assert_type(chibi.receive_into_non_blocking(sock, bytearray(1), 1), Deferred[int | None])
    assert_type(chibi.open_socket_pair(), tuple[netsock.Socket, netsock.Socket])
    net: chibi.NetIO = await chibi.open_net_io("localhost", "http")
    assert_type(await chibi.with_net_io("localhost", 80, first_line), bytes)
    assert_type(await chibi.with_net_io("localhost", 80, later_line), bytes)
    assert_type(await chibi.with_net_io("localhost", 80, lambda _reader, _writer: 1), int)
    print(net.socket)


async def first_line(reader: InputPort, writer: OutputPort) -> bytes:
    return await reader.readline()


def later_line(reader: InputPort, writer: OutputPort) -> Deferred[bytes]:
    return reader.readline()


def blocking_procedures() -> None:
    info = blocking.get_address_info(None, 80)
    assert_type(info, blocking.AddressInfo)
    listener = blocking.make_listener_socket(info, 10)
    assert_type(blocking.accept(listener), blocking.BlockingSocket)
    sock = blocking.socket(blocking.ADDRESS_FAMILY_INET, blocking.SOCKET_TYPE_STREAM)
    blocking.set_socket_option(sock, blocking.LEVEL_SOCKET, blocking.SOCKET_OPT_KEEPALIVE, 1)
    assert_type(blocking.get_socket_option(sock, blocking.LEVEL_SOCKET, 1), int)
    blocking.bind(sock, ("127.0.0.1", 0))
    blocking.listen(sock)
    blocking.connect(sock, info)
    assert_type(blocking.get_peer_name(sock), netsock.SocketAddress)
    assert_type(blocking.send(sock, b"data"), int)
    assert_type(blocking.send_non_blocking(sock, b"data", 1), int | None)
    assert_type(blocking.receive(sock, 10), bytes)
    assert_type(blocking.receive_into(sock, bytearray(1)), int)
    assert_type(blocking.receive_into_non_blocking(sock, bytearray(1), 1), int | None)
    one, other = blocking.open_socket_pair()
    net: blocking.NetIO = blocking.open_net_io("localhost", "http")
    print(one, other, net.input_port.readline())


def constants() -> None:
    families: list[AddressFamily] = [
        chibi.ADDRESS_FAMILY_INET,
        chibi.ADDRESS_FAMILY_INET6,
        chibi.ADDRESS_FAMILY_UNIX,
        chibi.ADDRESS_FAMILY_UNSPECIFIED,
    ]
    kinds: list[SocketKind] = [
        chibi.SOCKET_TYPE_STREAM,
        chibi.SOCKET_TYPE_DATAGRAM,
        chibi.SOCKET_TYPE_RAW,
    ]
    numbers: list[int] = [
        chibi.IP_PROTO_IP,
        chibi.IP_PROTO_ICMP,
        chibi.IP_PROTO_TCP,
        chibi.IP_PROTO_UDP,
        chibi.AI_PASSIVE,
        chibi.AI_CANONNAME,
        chibi.AI_NUMERIC_HOST,
        chibi.LEVEL_SOCKET,
        chibi.SOCKET_OPT_BROADCAST,
        chibi.SOCKET_OPT_DEBUG,
        chibi.SOCKET_OPT_DONTROUTE,
        chibi.SOCKET_OPT_KEEPALIVE,
        chibi.SOCKET_OPT_OOBINLINE,
        chibi.SOCKET_OPT_RCVBUF,
        chibi.SOCKET_OPT_RCVLOWAT,
        chibi.SOCKET_OPT_REUSEADDR,
        chibi.SOCKET_OPT_SNDBUF,
        chibi.SOCKET_OPT_SNDLOWAT,
    ]
    print(families, kinds, numbers)
