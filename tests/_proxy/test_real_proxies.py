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

from tests.support.faults import ANSWER
from tests.support.proxies import PLAIN, TLS
from tests.support.threads import no_descriptors
from tests.support.ways_in import serve_socket
from twisted_netsock import ProxyTargetError, SocketOptions, make_client_socket

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


@pytest.mark.parametrize(
    ("way", "tls"), [*((way, False) for way in PLAIN), *((way, True) for way in TLS)]
)
async def test_through(proxy, way, tls, authority):
    options = authority.client_options() if tls else SocketOptions()
    server = authority.server_options("localhost") if tls else SocketOptions()
    ways = TLS if tls else PLAIN
    async with serve_socket(server, half=True) as served:
        answer = await ways[way]("localhost", served.port, options.replace(proxy=proxy), False)
    assert answer == ANSWER
    await no_descriptors()


async def test_a_target_that_is_not_there(proxy):
    with pytest.raises(ProxyTargetError):
        await make_client_socket("127.0.0.1", free_port(), SocketOptions(proxy=proxy))
