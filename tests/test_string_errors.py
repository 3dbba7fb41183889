"""Endpoint strings that are wrong: one line that says which key and value, and what to write."""

from __future__ import annotations

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString

from twisted_netsock import SocketOptions, client_endpoint

C, S = clientFromString, serverFromString
MANY = "9" * 5000
HOST = "netsock:example.com:80"
TLS = "netsock-tls:example.com:443"

# Who takes the string, the string, and what the message says.
BAD = [
    # Nodes and services
    (C, "netsock:", "node is missing", "netsock:NODE:SERVICE"),
    (C, "netsock::80", "node is missing", "netsock:NODE:SERVICE"),
    (C, "netsock:example.com", "service is missing", "netsock:NODE:SERVICE"),
    (C, "netsock:example.com:", "service is missing", "netsock:NODE:SERVICE"),
    (C, "netsock-tls:node=example.com", "service is missing", "netsock-tls:NODE:SERVICE"),
    (C, "netsock:a:b:c", "'a:b:c'", "too many parts"),
    (C, "netsock:[::1]:80:90", "'::1:80:90'", "too many parts"),
    (C, f"{HOST}:node=other", "node is given twice", "'example.com'", "'other'"),
    (C, f"{HOST}:service=90", "service is given twice", "'80'", "'90'"),
    (C, "netsock:example.com:70000", "service=70000", "from 0 to 65535"),
    (C, "netsock:example.com:0", "service='0'", "port to connect to"),
    (C, "netsock:[::1:80", "'[::1:80'", "never closed"),
    (C, "netsock:aiFamily=unix", "node is missing", "netsock:PATH:aiFamily=unix"),
    (C, "netsock:/a:80:aiFamily=unix", "too many parts", "netsock:PATH:aiFamily=unix"),
    (C, "netsock:/a:aiFamily=unix:service=80", "service='80'", "aiFamily=AF_UNIX"),
    (C, "netsock:host=example.com:port=80", "host", "node"),
    (S, "netsock:", "service is missing", "netsock:SERVICE", "node="),
    (S, "netsock:127.0.0.1:80", "'127.0.0.1:80'", "too many parts", "node="),
    (S, "netsock:[::1]:80", "too many parts", "node="),
    (S, "netsock:80:service=81", "service is given twice", "'80'", "'81'"),
    (S, "netsock:80:node=", "node=''"),
    (S, "netsock:80:node=a\0b", r"node='a\x00b'"),
    (S, "netsock:70000", "service=70000", "from 0 to 65535"),
    (S, "netsock:/a:x:aiFamily=unix", "too many parts", "netsock:PATH:aiFamily=unix"),
    # Brackets
    (C, "netsock:node=[::1]:service=80", "node=", "without brackets", r"node=\:\:1"),
    (C, r"netsock:node=[fe80\:\:1]:service=80", "'[fe80::1]'", r"node=fe80\:\:1"),
    (C, f"{HOST}:localAddress=[::1]", "localAddress=", r"localAddress=\:\:1"),
    (S, "netsock:80:node=[::1]", "node=", "without brackets", r"such as node=\:\:1"),
    (S, "netsock:80:node=[fe80::1]:backlog=3", r"such as node=fe80\:\:1"),
    (S, "netsock:[::1]", "'::1'", "node="),
    # Durations
    (C, f"{HOST}:readTimeout=10", "readTimeout='10'", "unit", "us, ms, s, m or h", "10s"),
    (C, f"{HOST}:readTimeout=10 s", "readTimeout='10 s'", "unit"),
    (C, f"{HOST}:readTimeout=ten", "readTimeout='ten'", "unit"),
    (C, f"{HOST}:readTimeout=-1s", "readTimeout='-1s'"),
    (C, f"{HOST}:writeTimeout=", "writeTimeout=''", "unit"),
    (C, f"{HOST}:writeTimeout=٣s", "writeTimeout='٣s'", "unit"),
    (C, f"{HOST}:connectionTimeout=0s", "connectionTimeout='0s'", "more than 0"),
    (C, f"{HOST}:connectionTimeout=8761h", "connectionTimeout='8761h'", "365 days"),
    (C, f"{HOST}:connectionTimeout={MANY}s", "connectionTimeout=", "365 days"),
    (C, f"{TLS}:closeTimeout=none", "closeTimeout='none'", "unit"),
    (C, f"{TLS}:handshakeTimeout=5", "handshakeTimeout='5'", "5s for seconds"),
    (S, "netsock-tls:443:reloadEvery=1", "reloadEvery='1'", "1s for seconds"),
    # Numbers, words and lists
    (C, f"{HOST}:reusePort=maybe", "reusePort='maybe'", "yes or no", "true/false, on/off, 1/0"),
    (C, f"{HOST}:v6Only=", "v6Only=''", "yes or no"),
    (C, f"{HOST}:proxyProtocol=", "proxyProtocol=''", "v1, v2, any"),
    (C, f"{HOST}:proxyProtocol=2", "proxyProtocol='2'", "v1, v2, any"),
    (C, f"{HOST}:proxyProtocol=any", "proxyProtocol='any'", "for servers", "v1 or v2"),
    (C, f"{TLS}:proxyProtocol=any", "proxyProtocol='any'", "for servers", "v1 or v2"),
    (S, "netsock:8000:proxyProtocol=yes", "proxyProtocol='yes'", "v1, v2, any"),
    (S, "netsock:8000:proxyprotocol=v1", "proxyprotocol='v1'", "did you mean proxyProtocol?"),
    (C, f"{HOST}:backlog=many", "backlog='many'", "an integer"),
    (C, f"{HOST}:backlog=1.5", "backlog='1.5'", "an integer"),
    (C, f"{HOST}:backlog=-1", "backlog=-1", "from 0 to 2147483647"),
    (C, f"{HOST}:backlog=99999999999", "backlog=99999999999", "from 0 to 2147483647"),
    (C, f"{HOST}:backlog={MANY}", "backlog="),
    (C, f"{HOST}:aiFamily=inet4", "aiFamily='inet4'", "unspec, inet, inet6, unix"),
    (C, f"{HOST}:aiSocktype=dgram", "aiSocktype='dgram'", "stream"),
    (C, f"{HOST}:aiFlags=AI_NOTHING", "aiFlags='AI_NOTHING'", "AI_NUMERICHOST"),
    (C, f"{HOST}:aiFlags=passive", "aiFlags=", "AI_PASSIVE is for servers"),
    (C, f"{HOST}:nonBlocking=no", "nonBlocking=False", "twisted_netsock.blocking"),
    (C, f"{HOST}:localAddress=", "localAddress=''"),
    (C, rf"{HOST}:localAddress=127.0.0.1\:99999", "localAddress=", "99999", "from 0 to 65535"),
    (C, rf"{HOST}:localAddress=127.0.0.1\:{MANY}", "localAddress="),
    (C, f"{TLS}:alpn=", "alpn", "must not be an empty list"),
    (C, f"{TLS}:alpn=h2,,x", "alpn='h2,,x'", "without empty items"),
    (C, f"{TLS}:alpn=h2,h2", "alpn=", "h2", "once"),
    (C, f"{TLS}:alpn=ä", "alpn='ä'", "1 to 255 ASCII"),
    (C, f"{TLS}:sni=a,b", "sni=('a', 'b')", "one name"),
    (C, f"{TLS}:sni=*.x", "sni=", "*.x", "wildcard"),
    (C, f"{TLS}:sni=a b", "sni='a b'", "host name"),
    (S, "netsock-tls:443:sni=", "sni", "at least one name"),
    (S, "netsock-tls:443:sni=1.2.3.4", "sni=", "1.2.3.4", "never send an address"),
    (C, f"{TLS}:certificateVerifier=yes", "certificateVerifier='yes'", "no (do not verify)"),
    (C, f"{TLS}:certificateVerifier=", "certificateVerifier=''", "left out (verify)"),
    (C, f"{TLS}:minimumVersion=TLSv1", "minimumVersion='TLSv1'", "TLSv1.2, TLSv1.3"),
    (
        C,
        f"{TLS}:minimumVersion=TLSv1.3:maximumVersion=TLSv1.2",
        "maximumVersion",
        "minimumVersion",
        "older",
    ),
    # Socket options
    (C, f"{HOST}:TCP_NODELAY=yes", "TCP_NODELAY='yes'", "an integer"),
    (C, f"{HOST}:TCP_NOTHING=1", "TCP_NOTHING", "no such socket option"),
    (C, f"{HOST}:SO_RCVBUF=99999999999999", "SO_RCVBUF", "99999999999999"),
    (C, f"{HOST}:SO_RCVBUF={MANY}", "SO_RCVBUF"),
    # Files
    (C, f"{TLS}:trustedCertificates=/none", "trustedCertificates='/none'", "cannot be read"),
    (C, f"{TLS}:trustedCertificates=/dev/null", "trustedCertificates='/dev/null'", "empty"),
    (C, f"{TLS}:trustedCertificates=/etc/passwd", "trustedCertificates='/etc/passwd'"),
    (C, f"{TLS}:trustedCertificates=", "trustedCertificates=''", "a path"),
    (C, f"{TLS}:certificates=/etc", "certificates='/etc'", "directory"),
    (C, f"{TLS}:certificates=/private_key.pem", "certificates='/private_key.pem'"),
    (C, f"{TLS}:privateKey=/none", "privateKey needs certificates"),
    (C, f"{TLS}:keylogFile=", "keylogFile=''"),
    (C, f"{TLS}:privateKeyPasswordFile=/none", "privateKeyPasswordFile='/none'", "cannot be read"),
    (C, f"{TLS}:privateKeyPasswordFile=/dev/null", "privateKeyPasswordFile='/dev/null'", "1 to"),
    (C, f"{TLS}:privateKeyPasswordFile=a\0b", "privateKeyPasswordFile="),
    (S, "netsock-tls:443", "certificates", "privateKey", "needed"),
    (S, "netsock-tls:443:certificates=/none", "certificates='/none'", "cannot be read"),
    (
        S,
        "netsock-tls:443:certificates=/none:clientCertificateRequired=yes",
        "clientCertificateRequired",
        "trustedCertificates",
    ),
    # Keys of Twisted's own strings
    (C, f"{HOST}:timeout=10", "timeout='10'", "connectionTimeout"),
    (C, f"{HOST}:bindAddress=1.2.3.4", "bindAddress='1.2.3.4'", "localAddress"),
    (C, f"{HOST}:host=y", "host='y'", "called node"),
    (C, f"{HOST}:port=3", "port='3'", "called service"),
    (S, "netsock:80:interface=127.0.0.1", "interface='127.0.0.1'", "called node"),
    (C, f"{TLS}:trustRoots=/x", "trustRoots='/x'", "trustedCertificates"),
    (C, f"{TLS}:caCertsDir=/x", "caCertsDir='/x'", "trustedCertificates"),
    (C, f"{TLS}:certificate=/x", "certificate='/x'", "called certificates"),
    (C, f"{TLS}:hostname=x", "hostname='x'", "called sni"),
    (S, "netsock-tls:443:certKey=/x", "certKey='/x'", "called certificates"),
    (S, "netsock-tls:443:extraCertChain=/x", "extraCertChain='/x'", "called certificates"),
    (S, "netsock-tls:443:sslmethod=x", "sslmethod='x'", "called minimumVersion"),
    # Keys of something else
    (C, f"{HOST}:sni=x", "sni='x'", "netsock-tls"),
    (S, "netsock:80:certificates=x", "certificates='x'", "netsock-tls"),
    (C, f"{HOST}:privateKeyPasswordFile=x", "privateKeyPasswordFile", "netsock-tls"),
    (S, "netsock:80:reloadEvery=1h", "reloadEvery='1h'", "netsock-tls"),
    (C, f"{TLS}:reloadEvery=1h", "reloadEvery='1h'", "servers"),
    (C, f"{TLS}:clientCertificateRequired=yes", "clientCertificateRequired='yes'", "servers"),
    # Unknown keys
    (C, f"{HOST}:redTimeout=1s", "redTimeout='1s'", "did you mean readTimeout?"),
    (C, f"{HOST}:READTIMEOUT=1s", "READTIMEOUT='1s'", "did you mean readTimeout?"),
    (C, f"{HOST}:read_timeout=1s", "read_timeout='1s'", "did you mean readTimeout?"),
    (S, "netsock:80:conectionTimeout=1s", "conectionTimeout='1s'", "mean connectionTimeout?"),
    (S, "netsock-tls:443:privatekey=/x", "privatekey='/x'", "did you mean privateKey?"),
    (C, f"{HOST}:frobnicate=1", "frobnicate='1'", "known are", "aiFamily", "service", "v6Only"),
    (C, f"{HOST}:reactor=x", "unknown key reactor='x'"),
    (C, f"{HOST}:self=x", "unknown key self='x'"),
    (C, f"{HOST}:args=x", "unknown key args='x'"),
    (S, "netsock:80:reactor=x", "unknown key reactor='x'"),
    (S, "netsock:80:self=x", "unknown key self='x'"),
    (S, "netsock:80:tls=x", "unknown key tls='x'"),
    (C, f"{HOST}:socketOptions=x", "unknown key socketOptions='x'"),
    (C, f"{TLS}:handshake=no", "unknown key handshake='no'"),
    (C, f"{HOST}:a\nb=c", "unknown key", "'c'"),
]


@pytest.mark.parametrize(
    ("parse", "string", "parts"),
    [(parse, string, parts) for parse, string, *parts in BAD],
    ids=[f"{parse.__name__[:6]}-{string[:50]!a}" for parse, string, *_ in BAD],
)
def test_a_wrong_string_is_one_line_that_helps(parse, string, parts):
    with pytest.raises(ValueError) as caught:
        parse(reactor, string)
    told = str(caught.value)
    assert "\n" not in told
    for part in parts:
        assert part in told


@pytest.mark.parametrize("key", ["privateKeyPassword", "PrivateKeyPassword", "password"])
def test_a_password_in_a_string_is_refused_and_not_repeated(key):
    with pytest.raises(ValueError, match=key) as caught:
        clientFromString(reactor, f"{TLS}:{key}=hunter2")
    assert "hunter2" not in str(caught.value)


def test_reload_every_nothing_names_the_key(tmp_path, authority):
    path = tmp_path / "both.pem"
    path.write_bytes(authority.issue("localhost").pem)
    with pytest.raises(ValueError, match="reloadEvery"):
        serverFromString(reactor, f"netsock-tls:443:certificates={path}:reloadEvery=0s")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n", "malformed"),
        (b"-----BEGIN NOTHING-----\n", "holds no certificate"),
        (b"\x30\x03\x02\x01\x00", "neither PEM"),
        (b"\xff" * 100, "neither PEM"),
    ],
    ids=["malformed", "empty PEM", "other DER", "noise"],
)
def test_a_bad_file_is_named_on_one_line(tmp_path, content, told):
    path = tmp_path / "bad.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told) as caught:
        clientFromString(reactor, f"{TLS}:trustedCertificates={path}")
    assert f"trustedCertificates={str(path)!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "content", "told"),
    [
        ("the wrong key", None, "does not match"),
        ("no key", b"nonsense", "holds no private key"),
        (
            "a malformed key",
            b"-----BEGIN PRIVATE KEY-----\nbm9uc2Vuc2U=\n-----END PRIVATE KEY-----\n",
            "holds no private key that can be used",
        ),
    ],
)
def test_a_bad_key_is_told_on_one_line_without_its_content(
    tmp_path, authority, key, content, told
):
    del key
    certificate, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(authority.issue("localhost").certificate_pem)
    private.write_bytes(content or authority.issue("localhost").private_key_pem)
    with pytest.raises(ValueError, match=told) as caught:
        serverFromString(
            reactor, f"netsock-tls:443:certificates={certificate}:privateKey={private}"
        )
    assert "privateKey" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "BEGIN" not in str(caught.value)


def test_the_escaped_form_that_an_error_shows_works():
    with pytest.raises(ValueError) as caught:
        clientFromString(reactor, "netsock:node=[fe80::1]:service=80")
    advice = str(caught.value).split("such as ")[1]
    assert advice == f"node={quoteStringArgument('fe80::1')}"
    assert repr(clientFromString(reactor, f"netsock:{advice}:service=80")) == repr(
        client_endpoint(reactor, "fe80::1", "80", SocketOptions())
    )
