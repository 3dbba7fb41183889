"""Through proxies of Debian's, by every way in, plain and TLS."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, quoteStringArgument
from twisted.internet.protocol import Factory, Protocol

from tests.support.streams import in_thread
from tests.support.threads import no_descriptors
from twisted_netsock import (
    ProxyTargetError,
    SocketOptions,
    blocking,
    client_endpoint,
    make_client_socket,
    make_client_tls_socket,
    make_server_socket,
    make_server_tls_socket,
)
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.once


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _microsocks(port: int, home: Path) -> tuple[list[str], str]:
    return ["microsocks", "-i", "127.0.0.1", "-p", str(port), "-u", "me", "-P", "se:cret"], (
        f"socks5://me:se%3Acret@127.0.0.1:{port}"
    )


def _dante(port: int, home: Path) -> tuple[list[str], str]:
    path = home / "dante.conf"
    path.write_text(
        f"logoutput: stderr\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\n"
        "clientmethod: none\nsocksmethod: none\n"
        f"user.privileged: {getpass.getuser()}\nuser.unprivileged: {getpass.getuser()}\n"
        "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
        "socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
    )
    return ["danted", "-f", str(path)], f"socks5h://127.0.0.1:{port}"


def _tinyproxy(port: int, home: Path) -> tuple[list[str], str]:
    path = home / "tinyproxy.conf"
    path.write_text(f"Port {port}\nListen 127.0.0.1\nBasicAuth me secret\n")
    return ["tinyproxy", "-d", "-c", str(path)], f"http://me:secret@127.0.0.1:{port}"


PROXIES = {
    "microsocks": (_microsocks, "microsocks"),
    "danted": (_dante, "dante-server"),
    "tinyproxy": (_tinyproxy, "tinyproxy"),
}
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[str]:
    make, package = PROXIES[request.param]
    if shutil.which(request.param, path=PATH) is None:
        pytest.skip(f"needs {request.param}: apt-get install {package}")
    port = free_port()
    home = tmp_path_factory.mktemp(request.param)
    command, url = make(port, home)
    process = subprocess.Popen(
        command, env={"PATH": PATH}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None, f"{request.param} has ended"
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def echo(server) -> None:
    """Answer one connection, and wait for its end."""
    async with await server.accept() as peer:
        while data := await peer.recv(65536):
            await peer.sendall(data)


class Once(Protocol):
    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred()
        self.data = b""

    def connectionMade(self) -> None:
        self.transport.write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.transport.loseConnection()

    def connectionLost(self, reason) -> None:
        self.done.callback(self.data)


async def by_endpoint(endpoint) -> bytes:
    protocol = await endpoint.connect(Factory.forProtocol(Once))
    return await protocol.done


async def by_socket(sock) -> bytes:
    async with sock:
        await sock.sendall(b"hello")
        return await sock.recv(100)


WAYS = ["make", "endpoint", "string", "blocking"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
async def test_through(proxy, way, tls, tmp_path):
    authority = CertificateAuthority()
    server = (
        await make_server_tls_socket("127.0.0.1", 0, authority.server_options("localhost"))
        if tls
        else await make_server_socket("127.0.0.1", 0)
    )
    serving = Deferred.fromCoroutine(echo(server))
    port = server.getsockname().port
    options = authority.client_options() if tls else SocketOptions()
    options = options.replace(proxy=proxy)
    make = make_client_tls_socket if tls else make_client_socket
    if way == "make":
        got = await by_socket(await make("localhost", port, options))
    elif way == "endpoint":
        got = await by_endpoint(client_endpoint(reactor, "localhost", port, options))
    elif way == "string":
        url = proxy
        keys = ""
        if "@" in proxy:
            scheme, rest = proxy.split("://")
            user, host = rest.split("@")
            password = tmp_path / "password"
            password.write_text("se:cret" if "%3A" in user else "secret")
            url = f"{scheme}://{user.partition(':')[0]}@{host}"
            keys = f":proxyPasswordFile={quoteStringArgument(str(password))}"
        if tls:
            ca = tmp_path / "ca.pem"
            ca.write_bytes(authority.certificate_pem)
            keys += f":trustedCertificates={quoteStringArgument(str(ca))}"
        kind = "netsock-tls" if tls else "netsock"
        text = f"{kind}:localhost:{port}:proxy={quoteStringArgument(url)}{keys}"
        got = await by_endpoint(clientFromString(reactor, text))
    else:
        maker = getattr(blocking, make.__name__)

        def work() -> bytes:
            with maker("localhost", port, options) as sock:
                sock.sendall(b"hello")
                return sock.recv(100)

        got = await in_thread(work)
    assert got == b"hello"
    await serving
    await server.close()
    await no_descriptors()


async def test_a_target_that_is_not_there(proxy):
    with pytest.raises(ProxyTargetError):
        await make_client_socket("127.0.0.1", free_port(), SocketOptions(proxy=proxy))
