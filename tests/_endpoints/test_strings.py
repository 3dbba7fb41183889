"""Endpoint strings that say what they mean: to options, to endpoints, to connections."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin, getPlugins
from zope.interface.verify import verifyObject

from tests.support.loopback import LOOPBACK
from tests.support.protocols import Protocols, serving
from twisted_netsock import (
    ClientEndpoint,
    ServerEndpoint,
    ServerTLSSocketOptions,
    SocketBindError,
    SocketOptions,
    TLSSocketOptions,
)
from twisted_netsock._endpoints.plugin import EndpointParser


class Files:
    """Certificates and keys in files, and what holds them."""

    def __init__(self, directory, authority):
        issued = authority.issue("localhost", LOOPBACK)
        self.authority = self._write(directory / "authority.pem", authority.certificate_pem)
        self.both = self._write(directory / "both.pem", issued.pem)
        self.certificate = self._write(directory / "certificate.pem", issued.certificate_pem)
        self.key = self._write(directory / "key.pem", issued.private_key_pem)
        encrypted = issued.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open: sesame\\"),
        )
        self.encrypted = self._write(directory / "encrypted.pem", encrypted)
        self.password = self._write(directory / "password", b"open: sesame\\\n")

    @staticmethod
    def _write(path, content):
        path.write_bytes(content)
        return str(path)


@pytest.fixture
def files(tmp_path, authority):
    return Files(tmp_path, authority)


# Plugins


@pytest.mark.parametrize(
    "interface", [IStreamClientEndpointStringParserWithReactor, IStreamServerEndpointStringParser]
)
def test_twisted_finds_the_parsers(interface):
    found = {each.prefix: each for each in getPlugins(interface)}
    for prefix in ("netsock", "netsock-tls"):
        assert isinstance(found[prefix], EndpointParser)
        assert verifyObject(interface, found[prefix])
        assert verifyObject(IPlugin, found[prefix])


def test_looking_for_a_parser_loads_little():
    """Every program with an endpoint string imports every parser."""
    program = (
        "import sys\n"
        "from twisted.plugins import netsock_endpoints\n"
        "loaded = [name for name in sys.modules if name.startswith(('OpenSSL', 'crochet'))\n"
        "          or name in ('twisted.internet.reactor', 'twisted_netsock._endpoints.client')]\n"
        "assert not loaded, loaded\n"
        "assert netsock_endpoints.netsock.prefix == 'netsock'\n"
        "assert netsock_endpoints.netsock_tls.prefix == 'netsock-tls'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# Places


@pytest.mark.parametrize(
    ("string", "where"),
    [
        ("netsock:example.com:80", "'example.com' '80'"),
        ("netsock:example.com:http", "'example.com' 'http'"),
        ("netsock:[::1]:8080", "'::1' '8080'"),
        ("netsock:[fe80::1%lo]:8080", "'fe80::1%lo' '8080'"),
        (r"netsock:[\:\:1]:8080", "'::1' '8080'"),
        (r"netsock:\:\:1:8080", "'::1' '8080'"),
        ("netsock:127.0.0.1:80", "'127.0.0.1' '80'"),
        ("netsock:example.com:service=80", "'example.com' '80'"),
        ("netsock:service=80:example.com", "'example.com' '80'"),
        ("netsock:node=example.com:service=80", "'example.com' '80'"),
        ("netsock:service=80:node=example.com", "'example.com' '80'"),
        (r"netsock:node=\:\:1:service=80", "'::1' '80'"),
        (f"netsock:node={quoteStringArgument('fe80::1')}:service=80", "'fe80::1' '80'"),
        ("netsock:[::1]:service=80", "'::1' '80'"),
        ("netsock:/run/x.sock:aiFamily=unix", "'/run/x.sock'"),
        ("netsock:node=/run/x.sock:aiFamily=AF_UNIX", "'/run/x.sock'"),
        (f"netsock:{quoteStringArgument('/run/a:b')}:aiFamily=unix", "'/run/a:b'"),
        (rf"netsock:node={quoteStringArgument('/r=x')}:aiFamily=unix", "'/r=x'"),
    ],
)
@pytest.mark.parametrize("prefix", ["netsock", "netsock-tls"])
def test_where_a_client_connects_to(prefix, string, where):
    endpoint = clientFromString(reactor, string.replace("netsock", prefix, 1))
    assert isinstance(endpoint, ClientEndpoint)
    kind = SocketOptions if prefix == "netsock" else TLSSocketOptions
    assert type(endpoint.options) is kind
    assert repr(endpoint) == f"<ClientEndpoint {where} {endpoint.options!r}>"


@pytest.mark.parametrize(
    ("string", "where"),
    [
        ("netsock:8080", "* '8080'"),
        ("netsock:0", "* '0'"),
        ("netsock:http", "* 'http'"),
        ("netsock:service=8080", "* '8080'"),
        ("netsock:8080:node=127.0.0.1", "'127.0.0.1' '8080'"),
        ("netsock:node=localhost:8080", "'localhost' '8080'"),
        ("netsock:node=localhost:service=8080", "'localhost' '8080'"),
        (r"netsock:8080:node=\:\:1", "'::1' '8080'"),
        (r"netsock:8080:node=\:\:", "'::' '8080'"),
        ("netsock:/run/x.sock:aiFamily=unix", "'/run/x.sock'"),
        ("netsock:node=/run/x.sock:aiFamily=unix", "'/run/x.sock'"),
    ],
)
def test_where_a_server_listens(string, where):
    endpoint = serverFromString(reactor, string)
    assert isinstance(endpoint, ServerEndpoint)
    assert type(endpoint.options) is SocketOptions
    for part in ("<ServerEndpoint", *where.split(), repr(endpoint.options)):
        assert part in repr(endpoint)


# Options

PLAIN = [
    ("aiFamily=inet", {"ai_family": socket.AF_INET}),
    ("aiFamily=AF_INET6", {"ai_family": socket.AF_INET6}),
    ("aiFamily=Inet6", {"ai_family": socket.AF_INET6}),
    ("aiFamily=unspec", {}),
    ("aiSocktype=stream", {}),
    ("aiSocktype=SOCK_STREAM", {}),
    ("aiFlags=AI_NUMERICHOST", {"ai_flags": socket.AI_NUMERICHOST}),
    (
        "aiFlags=numerichost,NUMERICSERV",
        {"ai_flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV},
    ),
    ("aiProtocol=262", {"ai_protocol": 262}),
    ("nonBlocking=yes", {}),
    ("connectionTimeout=10s", {"connection_timeout": timedelta(seconds=10)}),
    ("connectionTimeout=50ms", {"connection_timeout": timedelta(milliseconds=50)}),
    ("readTimeout=250ms", {"read_timeout": timedelta(milliseconds=250)}),
    ("readTimeout=500us", {"read_timeout": timedelta(microseconds=500)}),
    ("readTimeout=1.5s", {"read_timeout": timedelta(seconds=1.5)}),
    ("writeTimeout=2m", {"write_timeout": timedelta(minutes=2)}),
    ("writeTimeout=1h", {"write_timeout": timedelta(hours=1)}),
    ("writeTimeout=8760h", {"write_timeout": timedelta(days=365)}),
    ("localAddress=127.0.0.1", {"local_address": ("127.0.0.1", 0)}),
    (r"localAddress=127.0.0.1\:5000", {"local_address": ("127.0.0.1", 5000)}),
    (r"localAddress=\:\:1", {"local_address": ("::1", 0)}),
    (r"localAddress=[\:\:1]", {"local_address": ("::1", 0)}),
    (r"localAddress=[\:\:1]\:5000", {"local_address": ("::1", 5000)}),
    ("backlog=512", {"backlog": 512}),
    ("reusePort=yes", {"reuse_port": True}),
    ("reusePort=TRUE", {"reuse_port": True}),
    ("reusePort=on", {"reuse_port": True}),
    ("reusePort=1", {"reuse_port": True}),
    ("v6Only=no", {}),
    ("v6Only=False", {}),
    ("v6Only=OFF", {}),
    ("v6Only=0", {}),
    ("v6Only=Yes", {"v6_only": True}),
    ("proxyProtocol=v1", {"proxy_protocol": "v1"}),
    ("proxyProtocol=V2", {"proxy_protocol": "v2"}),
    ("TCP_NODELAY=0", {"socket_options": (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)}),
    ("SO_RCVBUF=65536", {"socket_options": (socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)}),
    ("IP_TTL=5", {"socket_options": (socket.IPPROTO_IP, socket.IP_TTL, 5)}),
    ("IPV6_V6ONLY=1", {"socket_options": (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)}),
    ("TCP_CONGESTION=cubic", {"socket_options": (socket.IPPROTO_TCP, 13, b"cubic")}),
    ("TCP_13=cubic", {"socket_options": (socket.IPPROTO_TCP, 13, b"cubic")}),
    ("IP_15=1", {"socket_options": (socket.IPPROTO_IP, 15, 1)}),
    ("SO_BINDTODEVICE=lo", {"socket_options": (socket.SOL_SOCKET, 25, b"lo")}),
    ("SO_PRIORITY=-1", {"socket_options": (socket.SOL_SOCKET, socket.SO_PRIORITY, -1)}),
    (
        "SO_KEEPALIVE=1:TCP_KEEPIDLE=60:TCP_KEEPCNT=3",
        {
            "socket_options": [
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
            ]
        },
    ),
]
TLS = [
    ("certificateVerifier=no", {"certificate_verifier": False}),
    ("certificateVerifier=No", {"certificate_verifier": False}),
    ("alpn=h2", {"alpn": "h2"}),
    ("alpn=h2,http/1.1", {"alpn": ("h2", "http/1.1")}),
    (r"alpn=a\\,b,c", {"alpn": ("a,b", "c")}),
    (f"alpn={quoteStringArgument('a:b')}", {"alpn": "a:b"}),
    ("alpn=a=b", {"alpn": "a=b"}),
    ("certificateProfile=strict", {"certificate_profile": "strict"}),
    ("certificateProfile=default", {}),
    ("minimumVersion=TLSv1.3", {"minimum_version": "TLSv1.3"}),
    *(
        (f"minimumVersion={text}", {"minimum_version": "TLSv1.3"})
        for text in ("1.3", "TLS1.3", "tlsv1.3", "TLSV1.3")
    ),
    ("maximumVersion=TLSv1.2", {"maximum_version": "TLSv1.2"}),
    ("maximumVersion=1.2", {"maximum_version": "TLSv1.2"}),
    ("handshakeTimeout=5s", {"handshake_timeout": timedelta(seconds=5)}),
    ("closeTimeout=100ms", {"close_timeout": timedelta(milliseconds=100)}),
    ("keylogFile=/tmp/keys.log", {"keylog_file": "/tmp/keys.log"}),
]
CLIENT = [
    (r"serverIdentity=spiffe\://example.com/web", {"server_identity": "spiffe://example.com/web"}),
    ("serverIdentity=other.example", {"server_identity": "other.example"}),
    ("sni=example.com", {"sni": "example.com"}),
    ("sni=", {"sni": ()}),
]


@pytest.mark.parametrize(("keys", "fields"), PLAIN)
def test_options_of_plain_endpoints(keys, fields):
    expected = SocketOptions(**fields)
    assert clientFromString(reactor, f"netsock:localhost:80:{keys}").options == expected
    assert serverFromString(reactor, f"netsock:80:{keys}").options == expected


@pytest.mark.parametrize(("keys", "fields"), PLAIN + TLS + CLIENT)
def test_options_of_tls_clients(keys, fields):
    endpoint = clientFromString(reactor, f"netsock-tls:localhost:443:{keys}")
    assert endpoint.options == TLSSocketOptions(**fields)


@pytest.mark.parametrize(
    ("keys", "fields"),
    [*PLAIN, *TLS, ("sni=a.example,*.b.example", {"sni": ["a.example", "*.b.example"]})],
)
def test_options_of_tls_servers(keys, fields, files):
    endpoint = serverFromString(reactor, f"netsock-tls:443:certificates={files.both}:{keys}")
    assert endpoint.options == ServerTLSSocketOptions(certificates=files.both, **fields)


def test_flags_of_servers():
    endpoint = serverFromString(reactor, "netsock:80:aiFlags=passive")
    assert endpoint.options == SocketOptions(ai_flags=socket.AI_PASSIVE)


def test_certificates_and_keys_are_paths(files):
    string = (
        f"netsock-tls:443:certificates={files.certificate},{files.authority}"
        f":privateKey={files.key}:trustedCertificates={files.authority}"
        ":clientCertificateRequired=yes:reloadEvery=1h"
    )
    assert serverFromString(reactor, string).options == ServerTLSSocketOptions(
        certificates=[files.certificate, files.authority],
        private_key=files.key,
        trusted_certificates=files.authority,
        client_certificate_required=True,
    )


def test_a_password_is_read_from_its_file(files):
    """Without the line's end, and nothing else is left out."""
    string = (
        f"netsock-tls:443:certificates={files.certificate}:privateKey={files.encrypted}"
        f":privateKeyPasswordFile={files.password}"
    )
    endpoint = serverFromString(reactor, string)
    assert endpoint.options.private_key_password == b"open: sesame\\"
    assert "sesame" not in repr(endpoint)


def test_a_client_s_certificate_may_have_a_password_too(files):
    string = (
        f"netsock-tls:localhost:443:certificates={files.certificate}"
        f":privateKey={files.encrypted}:privateKeyPasswordFile={files.password}"
    )
    assert clientFromString(reactor, string).options.certificates == (files.certificate,)


def test_revocation_lists_are_read_when_the_string_is(tmp_path, authority):
    path = tmp_path / "ca.crl"
    string = f"netsock-tls:localhost:443:revocationLists={path}"
    with pytest.raises(ValueError, match="revocationLists"):
        clientFromString(reactor, string)
    moment = datetime.now(UTC)
    name = authority.certificate.subject
    builder = x509.CertificateRevocationListBuilder(name, moment, moment + timedelta(days=1))
    key = ec.generate_private_key(ec.SECP256R1())
    revoked = builder.add_extension(x509.CRLNumber(1), critical=False).sign(key, hashes.SHA256())
    path.write_bytes(revoked.public_bytes(serialization.Encoding.DER))
    assert clientFromString(reactor, string).options.revocation_lists == (str(path),)


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "a=b", "a b", "[a]", "ä", "private_key"])
def test_paths_of_any_kind(tmp_path, authority, name):
    path = tmp_path / name
    path.write_bytes(authority.certificate_pem)
    value = quoteStringArgument(str(path).replace(",", "\\,"))
    endpoint = clientFromString(reactor, f"netsock-tls:x:443:trustedCertificates={value}")
    assert endpoint.options.trusted_certificates == (str(path),)


def test_the_text_form_shows_what_was_asked_for(files):
    string = f"netsock-tls:443:node=localhost:certificates={files.both}:readTimeout=3s"
    shown = repr(serverFromString(reactor, string))
    for part in ("'localhost'", "'443'", "both.pem", "seconds=3"):
        assert part in shown
    assert "PRIVATE" not in shown


# Connections


@contextlib.asynccontextmanager
async def connection(server, client):
    """Listen and connect as the strings say; `PORT` stands for the port."""
    servers, clients = Protocols(), Protocols()
    async with serving(serverFromString(reactor, server), servers) as port:
        number = str(getattr(port.getHost(), "port", None))
        where = clientFromString(reactor, client.replace("PORT", number))
        protocol = await where.connect(clients)
        protocol.transport.write(b"hello")
        other = await servers.connected()
        assert await other.receives(5) == b"hello"
        yield protocol.transport, other.transport
        await clients.all_lost()


@pytest.mark.parametrize(
    ("server", "client"),
    [
        ("netsock:0:node=127.0.0.1", "netsock:127.0.0.1:PORT"),
        (r"netsock:0:node=\:\:1", "netsock:[::1]:PORT"),
        (r"netsock:0:node=\:\:1", r"netsock:node=\:\:1:service=PORT"),
        ("netsock:0", "netsock:localhost:PORT:aiFamily=inet"),
        ("netsock:0", "netsock:[::1]:PORT"),
        ("netsock:0:node=localhost:aiFamily=inet", "netsock:localhost:PORT:connectionTimeout=9s"),
        (
            r"netsock:0:node=127.0.0.1",
            r"netsock:127.0.0.1:PORT:localAddress=127.0.0.2\:0:readTimeout=9s",
        ),
    ],
)
async def test_strings_connect(server, client):
    async with connection(server, client) as (one, other):
        assert one.getPeer() == other.getHost()


async def test_strings_connect_unix_sockets(tmp_path):
    path = str(tmp_path / "a:b")
    string = f"netsock:{quoteStringArgument(path)}:aiFamily=unix"
    async with connection(string, string) as (one, _):
        assert one.getPeer().name == path.encode()


async def test_strings_connect_with_tls(files):
    server = (
        f"netsock-tls:0:node=127.0.0.1:certificates={files.certificate}"
        f":privateKey={files.encrypted}:privateKeyPasswordFile={files.password}"
        f":trustedCertificates={files.authority}:clientCertificateRequired=yes:alpn=h2,http/1.1"
    )
    client = (
        f"netsock-tls:127.0.0.1:PORT:sni=localhost:trustedCertificates={files.authority}"
        f":certificates={files.both}:alpn=http/1.1:minimumVersion=TLSv1.3"
    )
    async with connection(server, client) as (one, other):
        assert one.negotiatedProtocol == b"http/1.1"
        assert one.peer_certificate == other.peer_certificate
        assert one.tls.tls_version == ssl.TLSVersion.TLSv1_3.name.replace("_", ".")


async def test_a_server_listens_on_a_descriptor_of_its_parent_s():
    """As supervisord passes one."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    number = listener.detach()
    async with connection(f"netsock:fd={number}", f"netsock:127.0.0.1:{port}") as (_, accepted):
        assert accepted.getHost().port == port


async def test_a_descriptor_is_listened_on_once():
    """Its number may be another file's afterwards, a listener of the program's own."""
    number = socket.create_server(("127.0.0.1", 0)).detach()
    endpoint = serverFromString(reactor, f"netsock:fd={number}")
    port = await endpoint.listen(Protocols())
    await port.stopListening()
    with (
        socket.create_server(("127.0.0.1", 0)),
        pytest.raises(SocketBindError, match=f"fd={number}: it was listened on already"),
    ):
        await endpoint.listen(Protocols())


async def test_a_descriptor_that_does_not_listen_is_an_error():
    """It is looked at when it listens, and not when the string is checked."""
    deaf = socket.socket()
    endpoint = serverFromString(reactor, f"netsock:fd={deaf.fileno()}")
    number = deaf.detach()
    with pytest.raises(SocketBindError, match=f"fd={number}: .*no stream socket that listens"):
        await endpoint.listen(Protocols())


async def test_socket_options_reach_the_sockets():
    options = "TCP_NODELAY=0:SO_KEEPALIVE=1:TCP_KEEPIDLE=77:IP_TTL=33:SO_RCVBUF=65536"
    options += ":TCP_CONGESTION=reno"
    async with connection(
        f"netsock:0:node=127.0.0.1:{options}", f"netsock:127.0.0.1:PORT:{options}"
    ) as both:
        for transport in both:
            sock = transport.getHandle()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 33
            assert sock.getsockopt(socket.IPPROTO_TCP, 13, 16).startswith(b"reno\0")
            # Linux keeps twice as much, for its own needs.
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) in {65536, 131072}


def test_a_server_may_have_several_records(authority, tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.pem").write_bytes(authority.issue(f"{name}.example").pem)
    endpoint = serverFromString(
        reactor,
        f"netsock-tls:0:certificates={tmp_path}/one.pem:sni=one.example:alpn=h2:"
        f"certificates2={tmp_path}/two.pem:sni2=two.example:minimumVersion2=1.3:"
        f"certificates10={tmp_path}/three.pem:alpn10=http/1.1:backlog=7",
    )
    records = endpoint._context_factory.records
    assert [record.certificates for record in records] == [
        (f"{tmp_path}/{name}.pem",) for name in ("one", "two", "three")
    ]
    assert [record.sni for record in records] == [("one.example",), ("two.example",), None]
    assert [record.alpn for record in records] == [("h2",), ("h2",), ("http/1.1",)]
    assert [record.minimum_version.name for record in records] == ["TLSv1_2", "TLSv1_3", "TLSv1_2"]
    assert {record.backlog for record in records} == {7}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("backlog2=7", "backlog2"),
        ("sni1=x.example", "sni1"),
        ("sni02=x.example", "sni02"),
        ("sni2=two.example", "certificates"),
        ("certificates2={path}:sni2=one.example", "more than one record"),
    ],
)
def test_further_records_say_what_is_wrong_with_them(more, message, authority, tmp_path):
    path = tmp_path / "one.pem"
    path.write_bytes(authority.issue("one.example").pem)
    with pytest.raises(ValueError, match=message):
        serverFromString(
            reactor,
            f"netsock-tls:0:certificates={path}:sni=one.example:{more.format(path=path)}",
        )


@pytest.mark.parametrize("prefix", ["netsock:localhost:80", "netsock-tls:localhost:443"])
def test_a_client_has_one_record(prefix):
    with pytest.raises(ValueError, match="sni2"):
        clientFromString(reactor, f"{prefix}:sni2=two.example")
