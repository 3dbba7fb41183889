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
from typing import Any

import pytest

from tests.support.faults import ANSWER
from tests.support.loopback import LOOPBACK
from tests.support.proxies import PLAIN, TLS
from tests.support.threads import no_descriptors
from tests.support.ways_in import serve_socket
from twisted_netsock import (
    ProxyAuthenticationError,
    ProxyTargetError,
    SocketOptions,
    make_client_socket,
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


def _squid(port: int, home: Path, *, tls: bool = False) -> tuple[list[str], str]:
    path, pem = home / "squid.conf", home / "server.pem"
    pem.write_bytes(AUTHORITY.issue(LOOPBACK).pem)
    listen = (
        f"https_port {LOOPBACK}:{port} tls-cert={pem}" if tls else f"http_port {LOOPBACK}:{port}"
    )
    path.write_text(
        f"{listen}\nvisible_hostname localhost\npid_filename none\nshutdown_lifetime 0 seconds\n"
        f"cache deny all\naccess_log none\ncache_log /dev/null\ncoredump_dir /\n"
        # It takes every password, and the rule below one user.
        "auth_param basic program /usr/lib/squid/basic_fake_auth\n"
        "acl known proxy_auth me\nhttp_access deny !known\nhttp_access allow all\n"
    )
    scheme = "https" if tls else "http"
    # Two of one name would share their memory.
    return [
        "squid",
        "-N",
        "-n",
        f"squid{port}",
        "-f",
        str(path),
    ], f"{scheme}://me:secret@{LOOPBACK}:{port}"


def _squid_tls(port: int, home: Path) -> tuple[list[str], str]:
    return _squid(port, home, tls=True)


AUTHORITY = CertificateAuthority()
PROXIES = {
    "microsocks": (_microsocks, "microsocks", "microsocks"),
    "danted": (_dante, "danted", "dante-server"),
    "tinyproxy": (_tinyproxy, "tinyproxy", "tinyproxy"),
    "squid": (_squid, "squid", "squid-openssl"),
    "squid, TLS": (_squid_tls, "squid", "squid-openssl"),
}
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


@pytest.fixture(scope="module", params=PROXIES)
def proxy(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[dict[str, Any]]:
    """Run a proxy, and give the options that lead through it."""
    make, name, package = PROXIES[request.param]
    if shutil.which(name, path=PATH) is None:
        pytest.skip(f"needs {name}: apt-get install {package}")
    port = free_port()
    home = tmp_path_factory.mktemp(name)
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
        trusted = {"proxy_trusted_certificates": AUTHORITY.certificate_pem}
        yield {"proxy": url, **(trusted if url.startswith("https:") else {})}
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
        answer = await ways[way]("localhost", served.port, options.replace(**proxy), False)
    assert answer == ANSWER
    await no_descriptors()


async def test_a_target_that_is_not_there(proxy):
    with pytest.raises(ProxyTargetError):
        await make_client_socket("127.0.0.1", free_port(), SocketOptions(**proxy))


async def test_a_user_that_is_not_known(proxy):
    if "@" not in proxy["proxy"]:
        pytest.skip("it asks for none")
    stranger = proxy | {"proxy": proxy["proxy"].replace("//me:", "//you:")}
    with pytest.raises(ProxyAuthenticationError):
        await make_client_socket("127.0.0.1", free_port(), SocketOptions(**stranger))
