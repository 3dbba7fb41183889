"""A proxy in this process, of SOCKS5 or HTTP, and every way to ask a server through one."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, quoteStringArgument
from twisted.internet.protocol import Factory

from tests.support.faults import ANSWER, QUESTION
from tests.support.loopback import LOOPBACK
from tests.support.streams import in_thread, read_exactly, together
from tests.support.ways_in import ASKING, Asker
from twisted_netsock import (
    NetsockError,
    Socket,
    SocketOptions,
    TLSSocketOptions,
    blocking,
    client_context_factory,
    client_endpoint,
    make_client_socket,
    make_server_socket,
    make_server_tls_socket,
    start_tls,
)
from twisted_netsock.testing import CertificateAuthority

SCHEMES = ("socks5", "http", "https")


_PROXY_AUTHORITY = CertificateAuthority()


def through(proxy: Proxy) -> dict[str, Any]:
    """Return the options that lead through *proxy*."""
    if not proxy.url.startswith("https:"):
        return {"proxy": proxy.url}
    trusted = _PROXY_AUTHORITY.certificate_pem
    return {"proxy": proxy.url, "proxy_trusted_certificates": trusted}


class Proxy:
    """
    It takes whatever name it is asked for as this machine's.

    Attributes:
        url: Where it is.
        asked: The hosts and ports that it was to connect to.
        first: What it was sent first behind each answer.
        too_early: Whether anything came before its answer.
        passes_half_close: Whether it goes on when the client has ended its direction.
    """

    def __init__(self, scheme: str, port: int) -> None:
        self._answer = self._socks5 if scheme == "socks5" else self._http
        self.url = f"{scheme}://{LOOPBACK}:{port}"
        self.asked: list[tuple[str, int]] = []
        self.first: list[bytes] = []
        self.too_early = False
        self.passes_half_close = True

    async def serve(self, client: Socket) -> None:
        with contextlib.suppress(NetsockError):
            host, port, granted = await self._answer(client)
            self.asked.append((host, port))
            async with await make_client_socket(LOOPBACK, port) as target:
                waiting = fcntl.ioctl(client.fileno(), termios.FIONREAD, bytes(4))
                self.too_early |= any(waiting)
                await client.sendall(granted)
                await together(
                    self._pass_on(client, target, self.first), self._pass_on(target, client)
                )

    async def _socks5(self, client: Socket) -> tuple[str, int, bytes]:
        count = (await read_exactly(client, 2))[1]
        assert 0 in await read_exactly(client, count)
        await client.sendall(b"\x05\x00")
        kind = (await read_exactly(client, 4))[3]
        if kind == 3:
            host = (await read_exactly(client, (await read_exactly(client, 1))[0])).decode()
        else:
            family, size = {1: (socket.AF_INET, 4), 4: (socket.AF_INET6, 16)}[kind]
            host = socket.inet_ntop(family, await read_exactly(client, size))
        port = int.from_bytes(await read_exactly(client, 2))
        return host, port, b"\x05\x00\x00\x01" + bytes(6)

    async def _http(self, client: Socket) -> tuple[str, int, bytes]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await read_exactly(client, 1)
        method, place, version = head.split(b"\r\n")[0].decode().split()
        assert (method, version) == ("CONNECT", "HTTP/1.1")
        host, _, port = place.rpartition(":")
        return host, int(port), b"HTTP/1.1 200 OK\r\n\r\n"

    async def _pass_on(self, one: Socket, other: Socket, first: list[bytes] | None = None) -> None:
        """Pass all that comes, and the end, on."""
        while data := await one.recv(65536):
            if first is not None:
                first.append(data)
                first = None
            await other.sendall(data)
        if self.passes_half_close:
            await other.shutdown(socket.SHUT_WR)
        else:
            await other.close()
            await one.close()


@asynccontextmanager
async def proxying(scheme: str) -> AsyncIterator[Proxy]:
    """Run a proxy; all that it connects has ended at the end."""
    options = _PROXY_AUTHORITY.server_options(LOOPBACK)
    make = make_server_tls_socket if scheme == "https" else make_server_socket
    async with await make(LOOPBACK, 0, *([options] if scheme == "https" else [])) as listener:
        proxy = Proxy(scheme, listener.getsockname().port)
        serving: Deferred[Any] = listener.serve(proxy.serve)
        yield proxy
    await serving


# Ways to ask through one, beside those of `ways_in`


async def ask_string(node: str, port: int, options: SocketOptions, half: bool) -> bytes:
    with TemporaryDirectory() as folder:
        proxy, trusted = _keys(options, Path(folder))
        kind = "netsock-tls" if trusted else "netsock"
        return await ask_by(f"{kind}:{node}:{port}{proxy}{trusted}", half)


async def ask_string_in_string(node: str, port: int, options: SocketOptions, half: bool) -> bytes:
    with TemporaryDirectory() as folder:
        proxy, trusted = _keys(options, Path(folder))
        inner = quoteStringArgument(f"netsock:{node}:{port}{proxy}")
        return await ask_by(f"netsock-tls:{node}:endpoint={inner}{trusted}", half)


def _keys(options: SocketOptions, folder: Path) -> tuple[str, str]:
    """Return the keys of a string for a proxy and for an authority, which *folder* gets."""
    url = urlsplit(options.proxy)
    place = f"{url.username}@{url.hostname}:{url.port}" if url.username else url.netloc
    proxy = f":proxy={quoteStringArgument(f'{url.scheme}://{place}')}"
    if url.password:
        path = folder / "password"
        path.write_text(unquote(url.password))
        proxy += f":proxyPasswordFile={path}"
    if options.proxy_trusted_certificates is not None:
        path = folder / "proxy-ca.pem"
        path.write_bytes(options.proxy_trusted_certificates[0])
        proxy += f":proxyTrustedCertificates={path}"
    if not isinstance(options, TLSSocketOptions):
        return proxy, ""
    path = folder / "ca.pem"
    path.write_bytes(options.trusted_certificates[0])
    return proxy, f":trustedCertificates={path}"


async def ask_by(text: str, half: bool) -> bytes:
    factory = Factory.forProtocol(lambda: Asker(half))
    asker = await clientFromString(reactor, text).connect(factory)
    return await asker.answer


async def ask_thread(node: str, port: int, options: SocketOptions, half: bool) -> bytes:
    return await in_thread(_talk, blocking.socket_options_to_client_socket, options, node, port)


async def ask_context(node: str, port: int, options: SocketOptions, half: bool) -> bytes:
    """Ask by a context, on a socket that was connected through the proxy."""

    def make(options: SocketOptions, node: str, port: int) -> Any:
        sock = blocking.make_client_socket(node, port, SocketOptions.from_options(options))
        context = blocking.ssl_context(
            options.replace(proxy=None, proxy_trusted_certificates=None)
        )
        return context.wrap_socket(sock, server_hostname=node)

    return await in_thread(_talk, make, options, node, port)


def _talk(make: Any, *arguments: object) -> bytes:
    with make(*arguments) as sock:
        sock.sendall(QUESTION)
        return sock.recv(100)


async def ask_start_tls(node: str, port: int, options: SocketOptions, half: bool) -> bytes:
    """Ask by `start_tls`: one record for both stages."""
    sock = await make_client_socket(node, port, SocketOptions.from_options(options))
    async with await start_tls(sock, options) as wrapped:
        await wrapped.sendall(QUESTION)
        return await read_exactly(wrapped, len(ANSWER))


class Starting(Asker):
    """Asks when it has started TLS."""

    def __init__(self, node: str, options: SocketOptions, half: bool) -> None:
        super().__init__(half)
        self._node = node
        self._options = options

    def connectionMade(self) -> None:
        self.transport.startTLS(client_context_factory(self._options, self._node))
        super().connectionMade()


async def ask_transport_tls(node: str, port: int, options: SocketOptions, half: bool) -> bytes:
    endpoint = client_endpoint(reactor, node, port, SocketOptions.from_options(options))
    asker = await endpoint.connect(Factory.forProtocol(partial(Starting, node, options, half)))
    return await asker.answer


PLAIN = {**ASKING, "thread": ask_thread, "string": ask_string}
TLS = {
    **PLAIN,
    "string in a string": ask_string_in_string,
    "ssl_context": ask_context,
    "start_tls": ask_start_tls,
    "startTLS": ask_transport_tls,
}
