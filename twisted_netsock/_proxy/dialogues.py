"""
What is said to a proxy until it has connected, for SOCKS5 and HTTP; no I/O.

The messages are those of socksio and h11. A dialogue is a generator: it yields bytes to be
sent, or how many bytes it must be sent in turn. It asks for no byte behind the answer.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final, TypeAlias

from .._hostnames import host_and_port, is_ip_address
from .._proxies import SOCKS5, Proxy
from .._text import printable
from ..errors import (
    ProxyAuthenticationError,
    ProxyError,
    ProxyProtocolError,
    ProxyRefusedError,
    ProxyTargetError,
)

if TYPE_CHECKING:
    import h11

__all__ = ["Dialogue", "dialogue_with"]

Dialogue: TypeAlias = "Generator[bytes | int, bytes, None]"

_Fail: TypeAlias = "Callable[[type[ProxyError], str], ProxyError]"
"""Makes an error that names proxy and target."""

ANSWER_LIMIT: Final = 65536
"""Bytes of what an HTTP proxy answers before it has connected."""

_SHOWN: Final = 100
"""Characters of a reason, whose length is the proxy's to choose."""

_REFUSED: Final = {
    1: (ProxyRefusedError, "general failure"),
    2: (ProxyRefusedError, "not allowed by its rules"),
    3: (ProxyTargetError, "network unreachable"),
    4: (ProxyTargetError, "host unreachable"),
    5: (ProxyTargetError, "connection refused"),
    6: (ProxyTargetError, "TTL expired"),
    7: (ProxyRefusedError, "command not supported"),
    8: (ProxyRefusedError, "address type not supported"),
}
"""The replies of RFC 1928, section 6."""


def dialogue_with(proxy: Proxy, host: str, port: int) -> Dialogue:
    """
    Return the dialogue in which *proxy* is asked to connect to *host* and *port*.

    Raises:
        ProxyError: What it takes is not installed. Its steps raise others that say what the
            proxy has answered.
    """

    def fail(kind: type[ProxyError], reason: str) -> ProxyError:
        return kind(str(proxy), host_and_port(host, port), reason)

    try:
        if proxy.scheme == SOCKS5:
            import socksio

            assert socksio
        else:
            import h11

            assert h11
    except ImportError:
        needed = "proxies need more than is installed: pip install 'twisted-netsock[proxy]'"
        raise fail(ProxyError, needed) from None
    make = _socks5 if proxy.scheme == SOCKS5 else _connect
    return make(proxy, host, port, fail)


def _socks5(proxy: Proxy, host: str, port: int, fail: _Fail) -> Dialogue:
    from socksio import ProtocolError, socks5

    connection = socks5.SOCKS5Connection()
    methods = [socks5.SOCKS5AuthMethod.NO_AUTH_REQUIRED]
    if proxy.user is not None:
        methods.append(socks5.SOCKS5AuthMethod.USERNAME_PASSWORD)
    connection.send(socks5.SOCKS5AuthMethodsRequest(methods))
    yield connection.data_to_send()
    answer = yield 2
    if answer == b"\x05\xff":
        why = "wants credentials" if proxy.user is None else "takes no user and password"
        raise fail(ProxyAuthenticationError, f"it {why}")
    if answer[:1] != b"\x05" or answer[1:] not in [bytes(each) for each in methods]:
        raise fail(ProxyProtocolError, f"it does not speak SOCKS5: {answer!r}")
    connection.receive_data(answer)
    if answer[1:] == socks5.SOCKS5AuthMethod.USERNAME_PASSWORD:
        assert proxy.user is not None
        connection.send(socks5.SOCKS5UsernamePasswordRequest(proxy.user, proxy.password))
        yield connection.data_to_send()
        connection.receive_data((yield 2))
        if connection.state == socks5.SOCKS5State.MUST_CLOSE:
            raise fail(ProxyAuthenticationError, "it rejects user or password")
    connection.send(_socks5_request(host, port))
    yield connection.data_to_send()
    answer = yield from _socks5_reply(fail)
    try:
        connection.receive_data(answer)
    except (ProtocolError, ValueError, OSError):
        raise fail(ProxyProtocolError, "its reply cannot be understood") from None


def _socks5_reply(fail: _Fail) -> Generator[int, bytes, bytes]:
    """Return the reply to a request, if it has been granted."""
    answer = yield 4
    if answer[:1] != b"\x05":
        raise fail(ProxyProtocolError, f"it does not speak SOCKS5: {answer!r}")
    code = answer[1]
    if code:
        kind, reason = _REFUSED.get(code, (ProxyRefusedError, "unknown to RFC 1928"))
        error = fail(kind, f"{reason} (SOCKS code {code})")
        error.code = code
        raise error
    sizes = {1: 4, 4: 16}
    if answer[3] == 3:  # noqa: PLR2004 - a name (RFC 1928, section 5)
        length = yield 1
        answer += length
        sizes[3] = length[0]
    if answer[3] not in sizes:
        raise fail(ProxyProtocolError, f"it does not speak SOCKS5: {answer!r}")
    return answer + (yield sizes[answer[3]] + 2)


def _socks5_request(host: str, port: int) -> object:
    """Return the request to connect: an address as one, a name for the proxy to look up."""
    from socksio.socks5 import SOCKS5AType, SOCKS5Command, SOCKS5CommandRequest

    kind, packed = SOCKS5AType.DOMAIN_NAME, host.encode("ascii")
    if is_ip_address(host):
        address = ipaddress.ip_address(host)
        v4 = isinstance(address, ipaddress.IPv4Address)
        kind = SOCKS5AType.IPV4_ADDRESS if v4 else SOCKS5AType.IPV6_ADDRESS
        packed = address.packed
    return SOCKS5CommandRequest(SOCKS5Command.CONNECT, kind, packed, port)


def _connect(proxy: Proxy, host: str, port: int, fail: _Fail) -> Dialogue:
    import h11

    target = host_and_port(host, port)
    headers = [("Host", target)]
    if proxy.user is not None:
        credentials = base64.b64encode(proxy.user + b":" + proxy.password).decode("ascii")
        headers.append(("Proxy-Authorization", f"Basic {credentials}"))
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=ANSWER_LIMIT)
    request = connection.send(h11.Request(method="CONNECT", target=target, headers=headers))
    end = connection.send(h11.EndOfMessage())
    assert request is not None
    yield request + (end or b"")
    left = ANSWER_LIMIT
    while True:
        head = yield from _head(left, fail)
        left -= len(head)
        connection.receive_data(head)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            why = printable(str(error))[:_SHOWN]
            raise fail(ProxyProtocolError, f"it does not speak HTTP/1.1: {why}") from None
        if not isinstance(event, h11.InformationalResponse):
            break
    if not isinstance(event, h11.Response):
        raise fail(ProxyProtocolError, "it does not speak HTTP/1.1")
    _check_status(proxy, event, fail)


def _check_status(proxy: Proxy, response: h11.Response, fail: _Fail) -> None:
    code = response.status_code
    if 200 <= code < 300:  # noqa: PLR2004 - any of them (RFC 9110, section 9.3.6)
        return
    reason = printable(bytes(response.reason).decode("latin-1"))[:_SHOWN]
    kind: type[ProxyError] = ProxyRefusedError
    if code in {401, 407}:
        # Proxy Authentication Required; tinyproxy rejects with what is a server's.
        kind = ProxyAuthenticationError
        reason += "; it wants credentials" if proxy.user is None else "; it rejects these"
    elif code >= 500:  # noqa: PLR2004 - it has tried
        kind = ProxyTargetError
    error = fail(kind, f"status {code} {reason}")
    error.code = code
    raise error


def _head(limit: int, fail: _Fail) -> Generator[int, bytes, bytes]:
    """
    Return the head of a response.

    It is asked for byte by byte, because nothing else says where it ends.
    """
    start = b"HTTP/1."
    head = bytearray()
    while not head.endswith((b"\n\r\n", b"\n\n")):
        if len(head) >= limit:
            raise fail(ProxyProtocolError, f"its answer is longer than {ANSWER_LIMIT} bytes")
        head += yield 1
        if len(head) <= len(start) and not start.startswith(head):
            raise fail(ProxyProtocolError, f"it does not speak HTTP/1.1: {bytes(head)!r}")
    return bytes(head)
