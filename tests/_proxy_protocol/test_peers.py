"""PROXY headers from and to HAProxy, nginx and curl."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import serverFromString

from tests.project.test_documentation import blocks
from tests.support.clocks import until
from tests.support.loopback import LOOPBACK
from tests.support.processes import find, free_port, needs, run, started, write_certificates
from tests.support.protocols import Protocols, Recorder, listening
from tests.support.streams import in_thread
from twisted_netsock import ProxyHeader, ProxyTLV, SocketOptions, client_endpoint

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "proxies.md"
HEADER = ProxyHeader(("192.0.2.1", 56324), ("192.0.2.2", 443))
FULL = ProxyHeader(
    ("192.0.2.1", 56324),
    ("2001:db8::2", 443),
    tlvs=[(ProxyTLV.AUTHORITY, b"example.com"), (ProxyTLV.UNIQUE_ID, b"7")],
    checksum=True,
)
"""Short of the 107 bytes that some versions of nginx look at before TLS."""


@pytest.fixture
def files(tmp_path, authority):
    (tmp_path / "files").mkdir()
    return write_certificates(tmp_path / "files", authority)


# HAProxy

DEFAULTS = """
defaults
    mode tcp
    retries 0
    timeout connect 5s
    timeout client 10s
    timeout server 10s
"""


@contextlib.contextmanager
def haproxy(directory, configuration, port):
    """Run HAProxy, which takes connections on *port*, until the end of the block."""
    path = directory / "haproxy.cfg"
    path.write_text(configuration)
    with started(
        find("haproxy"), "-db", "-f", path, output=directory / "haproxy.log", cwd=directory
    ) as child:
        child.wait_for_port(port)
        yield


@contextlib.contextmanager
def haproxy_between(directory, bind, server):
    """Run HAProxy in front of a port of ours, which nobody listens on yet; yield both ports."""
    front, back = free_port(), free_port()
    listen = f"listen it\n    bind {LOOPBACK}:{front} {bind}\n"
    to = f"    server ours {LOOPBACK}:{back} {server}\n"
    with haproxy(directory, DEFAULTS + listen + to, front):
        yield front, back


async def exchange(endpoint, servers):
    """Say something to the server behind *endpoint*, and return both ends."""

    def asked():
        # What waited for HAProxy to listen may have come through to us, and said nothing.
        return [each for each in servers.built if each.received == b"question"]

    before = len(asked())
    clients = Protocols()
    client = await endpoint.connect(clients)
    client.transport.write(b"question")
    server = (await until(lambda: asked()[before:]))[0]
    server.transport.write(b"answer")
    assert await client.receives(6) == b"answer"
    ends = client.transport.getHost(), client.transport.getPeer()
    await clients.all_lost()
    return server, ends


@needs("haproxy")
@pytest.mark.parametrize(
    ("sends", "version"),
    [
        ("send-proxy", "v1"),
        ("send-proxy", "any"),
        ("send-proxy-v2", "v2"),
        ("send-proxy-v2", "any"),
        ("send-proxy-v2 proxy-v2-options crc32c", "v2"),
    ],
)
async def test_haproxy_tells_us_its_clients(kind, sends, version, tmp_path):
    servers = Protocols()
    with haproxy_between(tmp_path, "", sends) as (front, back):
        options = kind.server(proxy_protocol=version)
        async with listening(options, servers, service=back):
            where = client_endpoint(reactor, LOOPBACK, front, kind.client())
            server, (client, proxy) = await exchange(where, servers)
            assert server.transport.getPeer() == client
            assert server.transport.getHost() == proxy
            header = server.transport.proxy_header
            assert header.checksum is ("crc32c" in sends)


@needs("haproxy")
@pytest.mark.parametrize("names", [("client",), ()], ids=["certificate", "none"])
async def test_haproxy_tells_us_about_the_tls_of_its_clients(names, files, authority, tmp_path):
    servers = Protocols()
    bind = f"ssl crt {files.server} ca-file {files.authority} verify optional alpn h2"
    sends = "send-proxy-v2-ssl-cn proxy-v2-options authority,crc32c,cert-key"
    client = authority.client_options(alpn="h2", sni="localhost")
    if names:
        client = client.replace(certificates=authority.issue(*names).pem)
    with haproxy_between(tmp_path, bind, sends) as (front, back):
        options = SocketOptions(proxy_protocol="v2")
        async with listening(options, servers, service=back):
            where = client_endpoint(reactor, LOOPBACK, front, client)
            server, _ = await exchange(where, servers)
    header = server.transport.proxy_header
    assert (header.authority, header.alpn, header.checksum) == ("localhost", "h2", True)
    assert header.tls.version == "TLSv1.3"
    assert header.tls.verified is bool(names)
    assert (header.tls.common_name is not None) is bool(names)


@needs("haproxy")
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_haproxy_takes_and_passes_on_what_we_tell(kind, version, tmp_path):
    servers = Protocols()
    with haproxy_between(tmp_path, "accept-proxy", "send-proxy-v2") as (front, back):
        async with listening(kind.server(proxy_protocol="v2"), servers, service=back):
            where = client_endpoint(reactor, LOOPBACK, front, kind.client(proxy_protocol=version))
            server, _ = await exchange(where.on_behalf_of(HEADER), servers)
            assert server.transport.proxy_header == HEADER
            server, (client, _) = await exchange(where, servers)
            assert server.transport.getPeer() == client


@needs("haproxy")
async def test_haproxy_takes_a_header_with_all_there_is(tmp_path):
    """It would drop the connection for a wrong checksum."""
    servers = Protocols()
    with haproxy_between(tmp_path, "accept-proxy", "send-proxy") as (front, back):
        async with listening(SocketOptions(proxy_protocol="v1"), servers, service=back):
            where = client_endpoint(reactor, LOOPBACK, front, SocketOptions(proxy_protocol="v2"))
            server, _ = await exchange(where.on_behalf_of(FULL), servers)
            assert server.transport.proxy_header == ProxyHeader(FULL.source, FULL.destination)


@needs("haproxy")
@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_haproxy_reads_our_header_before_tls(version, files, authority, tmp_path):
    servers = Protocols()
    bind = f"accept-proxy ssl crt {files.server}"
    with haproxy_between(tmp_path, bind, "send-proxy-v2") as (front, back):
        async with listening(SocketOptions(proxy_protocol="v2"), servers, service=back):
            options = authority.client_options(proxy_protocol=version)
            where = client_endpoint(reactor, LOOPBACK, front, options)
            server, _ = await exchange(where.on_behalf_of(HEADER), servers)
            assert server.transport.getPeer() == IPv4Address("TCP", *HEADER.source)


@needs("haproxy")
async def test_health_checks_are_no_connections_of_clients(tmp_path, log_lines):
    """HAProxy's checks have a header, too, and end as soon as they stand."""
    servers = Protocols()
    sends = "send-proxy-v2 check check-send-proxy inter 50ms"
    with haproxy_between(tmp_path, "", sends) as (_, back):
        async with listening(SocketOptions(proxy_protocol="v2"), servers, service=back):
            check = await until(
                lambda: next(
                    (each for each in servers.built if each.transport.proxy_header.local), None
                )
            )
            await check.loses()
            assert check.received == b""
            assert check.transport.getPeer().host == LOOPBACK
    assert not [line for line in log_lines if "refused" in line]


@needs("haproxy")
@pytest.mark.parametrize("number", [0, 1])
async def test_the_configurations_of_the_guide_work(
    number, authority, tmp_path, monkeypatch, files
):
    """With the server that stands beside them: TLS behind the first, plain behind the second."""
    text = blocks(PAGE, "text")[number].text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.pem").write_bytes(authority.issue("localhost", LOOPBACK).pem)
    (tmp_path / "clients-ca.pem").write_bytes(authority.certificate_pem)
    back = re.search(r"server \w+ 127.0.0.1:(\d+)", text)[1]
    ours, front = str(free_port()), str(free_port())
    written = text.replace(f":{back} ", f":{ours} ").replace(":443", f":{front}")
    [string] = [block.text.strip() for block in blocks(PAGE, "server-endpoint")]
    if number == 1:
        string = f"netsock:{back}:node={LOOPBACK}:proxyProtocol=v2"
    servers = Protocols()
    with haproxy(tmp_path, written, front):
        port = await serverFromString(reactor, string.replace(f":{back}:", f":{ours}:")).listen(
            servers
        )
        options = authority.client_options(sni="localhost")
        where = client_endpoint(reactor, LOOPBACK, int(front), options)
        server, (client, _) = await exchange(where, servers)
        assert server.transport.getPeer() == client
        if number == 1:
            assert server.transport.proxy_header.authority == "localhost"
            assert server.transport.proxy_header.checksum
            assert not server.transport.proxy_header.tls.verified
        await port.stopListening()
        await servers.all_lost()


# nginx

NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{plain} proxy_protocol;
        listen 127.0.0.1:{tls} ssl proxy_protocol;
        ssl_certificate {certificate};
        ssl_certificate_key {certificate};
        location / {{
            return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr";
        }}
    }}
}}
"""


@needs("nginx")
@pytest.mark.parametrize(
    ("version", "header"), [("v1", HEADER), ("v2", HEADER), ("v2", FULL), ("v1", None)]
)
async def test_nginx_takes_what_we_tell(kind, version, header, files, tmp_path):
    ports = {"plain": free_port(), "tls": free_port()}
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(NGINX.format(directory=tmp_path, certificate=files.server, **ports))
    port = ports["tls" if kind.tls else "plain"]
    clients = Protocols()
    with started(
        find("nginx"), "-e", "stderr", "-c", configuration, "-p", tmp_path,
        output=tmp_path / "nginx.log",
    ) as child:  # fmt: skip
        child.wait_for_port(port)
        where = client_endpoint(reactor, LOOPBACK, port, kind.client(proxy_protocol=version))
        if header is not None:
            where = where.on_behalf_of(header)
        client = await where.connect(clients)
        own = client.transport.getHost()
        client.transport.write(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        await client.loses()
    told = bytes(client.received).rpartition(b"\r\n\r\n")[2].decode()
    if header is None:
        assert told == f"{LOOPBACK} {own.port} {LOOPBACK}"
    else:
        # As IPv6 where one of the two is.
        source = "::ffff:192.0.2.1" if header is FULL else "192.0.2.1"
        assert told == f"{source} 56324 {header.destination.host}"


# curl


class Answering(Recorder):
    """Answers any request, and ends."""

    def dataReceived(self, data):
        super().dataReceived(data)
        self.transport.write(b"HTTP/1.0 200 OK\r\n\r\n")
        self.transport.write(str(self.transport.getPeer().port).encode())
        self.transport.loseConnection()


@needs("curl")
@pytest.mark.parametrize("version", ["v1", "any"])
async def test_curl_sends_its_own_address(kind, version, files):
    servers = Protocols(Answering)
    async with listening(kind.server(proxy_protocol=version), servers) as port:
        scheme = "https" if kind.tls else "http"
        done = await in_thread(
            run, "curl", "--silent", "--show-error", "--ipv4", "--haproxy-protocol",
            "--cacert", files.authority, "--write-out", " %{local_port}",
            f"{scheme}://localhost:{port.getHost().port}/",
        )  # fmt: skip
        assert done.errors == ""
        told, own = done.output.split()
        assert told == own
        header = servers.built[0].transport.proxy_header
        assert header.source == (LOOPBACK, int(own))
        assert header.destination == (LOOPBACK, port.getHost().port)


@needs("curl")
async def test_curl_without_a_header_is_refused(kind, files, log_lines):
    servers = Protocols(Answering)
    async with listening(kind.server(proxy_protocol="any"), servers) as port:
        scheme = "https" if kind.tls else "http"
        done = await in_thread(
            run, "curl", "--silent", "--ipv4", "--cacert", files.authority,
            f"{scheme}://localhost:{port.getHost().port}/",
        )  # fmt: skip
        assert done.code != 0
        assert servers.built == []
    assert [line for line in log_lines if "bad PROXY header: it is not there" in line]
