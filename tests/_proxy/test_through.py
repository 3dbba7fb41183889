"""Connecting through proxies: a scripted one for what goes wrong, Debian's for what goes well."""

from __future__ import annotations

import copy
import pickle
import shutil
import socket
import subprocess
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_netsock import (
    ProxyAuthenticationError,
    ProxyError,
    ProxyProtocolError,
    ProxyRefusedError,
    ProxyTargetError,
    ProxyUnreachableError,
    SocketConnectionTimeoutError,
    SocketOptions,
    make_client_socket,
    make_server_socket,
)
from twisted_netsock._proxies import Proxy, parse_proxy, proxy_for
from twisted_netsock._proxy.dialogues import dialogue_with

SOCKS = Proxy("socks5", "proxy.test", 1080)
SOCKS_USER = Proxy("socks5", "proxy.test", 1080, b"me", b"secret")
HTTP = Proxy("http", "proxy.test", 3128)
YES = b"\x05\x00\x05\x00\x00\x01\x7f\0\0\1\x12\x34"


def hold(proxy: Proxy, answer: bytes, host: str = "target.test") -> tuple[list[bytes], bytes]:
    """Hold a dialogue; return what it sends, and what it leaves of *answer*."""
    dialogue = dialogue_with(proxy, host, 443)
    sent: list[bytes] = []
    step = next(dialogue)
    try:
        while True:
            if isinstance(step, bytes):
                sent.append(step)
                step = dialogue.send(b"")
            else:
                assert len(answer) >= step, "it asks for more than there is"
                got, answer = answer[:step], answer[step:]
                step = dialogue.send(got)
    except StopIteration:
        return sent, answer


@given(st.binary(max_size=50))
def test_what_follows_the_answer_is_left(rest):
    assert hold(SOCKS, YES + rest)[1] == rest
    assert hold(HTTP, b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n" + rest)[1] == rest


def test_socks_sends_names_as_names_and_addresses_as_addresses():
    assert hold(SOCKS, YES)[0] == [b"\x05\x01\x00", b"\x05\x01\x00\x03\x0btarget.test\x01\xbb"]
    assert hold(SOCKS, YES, "127.0.0.2")[0][1] == b"\x05\x01\x00\x01\x7f\0\0\x02\x01\xbb"
    assert hold(SOCKS, YES, "::1")[0][1] == b"\x05\x01\x00\x04" + b"\0" * 15 + b"\1\x01\xbb"
    sent, rest = hold(SOCKS_USER, b"\x05\x02\x01\x00" + YES[2:])
    assert sent[:2] == [b"\x05\x02\x00\x02", b"\x01\x02me\x06secret"]
    assert rest == b""


def test_connect_names_the_target():
    assert (
        b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n"
        in hold(HTTP, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 x\r\n\r\n", "::1")[0][0]
    )


@pytest.mark.parametrize(
    ("proxy", "answer", "kind"),
    [
        (SOCKS, b"\x05\xff", ProxyAuthenticationError),
        (SOCKS, b"\x05\x02", ProxyProtocolError),
        (SOCKS, b"HT", ProxyProtocolError),
        (SOCKS_USER, b"\x05\x02\x01\x01", ProxyAuthenticationError),
        (SOCKS, b"\x05\x00\x05\x02\x00\x01", ProxyRefusedError),
        (SOCKS, b"\x05\x00\x05\x05\x00\x01", ProxyTargetError),
        (SOCKS, b"\x05\x00\x05\xf0\x00\x01", ProxyRefusedError),
        (SOCKS, b"\x05\x00\x05\x00\x00\x09", ProxyProtocolError),
        (SOCKS, b"\x05\x00\x05\x00\x00\x03\x01\xff\0\0", ProxyProtocolError),
        (HTTP, b"HTTP/1.1 407 Who\r\n\r\n", ProxyAuthenticationError),
        (HTTP, b"HTTP/1.1 403 No\r\n\r\n", ProxyRefusedError),
        (HTTP, b"HTTP/1.1 502 Gone\r\n\r\n", ProxyTargetError),
        (HTTP, b"SSH-2.0", ProxyProtocolError),
        (HTTP, b"HTTP/1.1 abc\r\n\r\n", ProxyProtocolError),
        (HTTP, b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20000, ProxyProtocolError),
    ],
)
def test_every_other_answer_is_an_error_of_its_kind(proxy, answer, kind):
    with pytest.raises(kind) as caught:
        hold(proxy, answer)
    error = caught.value
    assert type(error) is kind
    for each in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert "proxy.test" in str(each)
        assert "target.test:443" in str(each)
        assert "secret" not in str(each)


@pytest.mark.parametrize(
    "text",
    ["", "proxy", "ftp://x:1", "http://", "http://a:0", "http://a:70000", "http://a/b",
     "socks5://user@h:1", "http://u:p:q@h:1@x", "http://[zz]:1", "http://a b:1"],
)  # fmt: skip
def test_urls_that_are_none(text):
    with pytest.raises(ValueError, match=r"^proxy"):
        SocketOptions(proxy=text)


def test_credentials_are_never_shown():
    options = SocketOptions(proxy="socks5://me:secret@localhost:1080")
    assert "secret" not in repr(options)
    assert "me" not in repr(options).replace("timeout", "")
    assert "proxy='socks5://localhost:1080'" in repr(options)
    with pytest.raises(ValueError) as caught:
        SocketOptions(proxy="socks9://me:secret@localhost:1080")
    assert "secret" not in str(caught.value)


CURL = shutil.which("curl")


@pytest.mark.skipif(CURL is None, reason="needs curl: apt-get install curl")
@pytest.mark.parametrize(
    ("environ", "host"),
    [
        ({}, "a.test"),
        ({"http_proxy": "http://127.0.0.1:1"}, "a.test"),
        ({"HTTP_PROXY": "http://127.0.0.1:1"}, "a.test"),
        ({"http_proxy": "", "ALL_PROXY": "127.0.0.1:1"}, "a.test"),
        ({"all_proxy": "127.0.0.1:1", "no_proxy": ".a.test"}, "a.test"),
        ({"all_proxy": "127.0.0.1:1", "no_proxy": "a.test"}, "b.a.test"),
        ({"all_proxy": "127.0.0.1:1", "no_proxy": "a.test"}, "ba.test"),
        ({"all_proxy": "127.0.0.1:1", "NO_PROXY": "x, A.Test."}, "a.test"),
        ({"all_proxy": "127.0.0.1:1", "NO_PROXY": "*"}, "a.test"),
        ({"all_proxy": "127.0.0.1:1", "NO_PROXY": "*,x"}, "a.test"),
        ({"all_proxy": "127.0.0.1:1", "NO_PROXY": "127.0.0.0/8"}, "127.9.9.9"),
        ({"all_proxy": "127.0.0.1:1", "NO_PROXY": "127.0.0.0/16"}, "127.9.9.9"),
        ({"all_proxy": "127.0.0.1:1", "NO_PROXY": "::1"}, "::1"),
    ],
)
def test_the_environment_is_read_as_curl_does(environ, host):
    url = f"http://[{host}]:2/" if ":" in host else f"http://{host}:2/"
    done = subprocess.run(
        [CURL, "-sv", "--resolve", f"{host.strip('[]')}:2:127.0.0.1", url],
        env=environ, capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    through = "127.0.0.1:1" in done.stderr
    assert (proxy_for("environment", host, tls=False, environ=environ) is not None) == through


def test_tls_reads_https_proxy():
    environ = {"HTTPS_PROXY": "http://p.test:1", "http_proxy": "q.test:2"}
    found = proxy_for("environment", "a.test", tls=True, environ=environ)
    assert str(found) == "http://p.test:1"
    assert parse_proxy("q.test", "x", default_scheme="http").port == 1080


# On the wire


async def scripted(answer: bytes | None, options: SocketOptions):
    """Connect through a proxy that answers *answer* and closes, or, with `None`, says nothing."""
    async with await make_server_socket("127.0.0.1", 0) as server:
        host, port = server.getsockname()
        record = options.replace(proxy=f"socks5://{host}:{port}")
        connecting = make_client_socket("target.test", 80, record)
        peer = await server.accept()
        try:
            if answer is not None:
                await peer.recv(100)
                for each in answer:
                    await peer.sendall(bytes([each]))
                await peer.close()
            return await connecting
        finally:
            peer.abort()


async def test_a_proxy_that_goes_away():
    for cut in range(len(YES)):
        with pytest.raises(ProxyProtocolError):
            await scripted(YES[:cut], SocketOptions())


async def test_a_proxy_that_says_nothing():
    with pytest.raises(SocketConnectionTimeoutError) as caught:
        await scripted(None, SocketOptions(connection_timeout=timedelta(seconds=0.1)))
    assert caught.value.stage == "proxy"


async def test_a_proxy_that_is_not_there():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(ProxyUnreachableError):
        await make_client_socket("x.test", 80, SocketOptions(proxy=f"http://127.0.0.1:{port}"))
    assert issubclass(ProxyUnreachableError, ProxyError)


async def test_bytes_behind_the_answer_are_the_programs():
    sock = await scripted(YES + b"hello", SocketOptions())
    async with sock:
        assert await sock.input_port.read_all() == b"hello"
