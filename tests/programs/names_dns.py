"""A DNS server of twisted.names over TCP and TLS (RFC 7858), asked by dnspython."""

from __future__ import annotations

import dns.message
import dns.query
from common import client_context, in_thread, listen, on_reactor, right, way
from twisted.names.authority import FileAuthority
from twisted.names.dns import Record_A, Record_SOA
from twisted.names.server import DNSServerFactory


class Zone(FileAuthority):
    def __init__(self):
        super(FileAuthority, self).__init__()
        self._cache = {}
        self.soa = b"example.com", Record_SOA(b"example.com", b"x.example.com", 1, 1, 1, 1, 1)
        self.records = {b"example.com": [self.soa[1], Record_A("192.0.2.1", 60)]}


def ask(port):
    question = dns.message.make_query("example.com", "A")
    if way() == "plain":
        answer = dns.query.tcp(question, "127.0.0.1", port=port, timeout=20)
    else:
        answer = dns.query.tls(
            question, "127.0.0.1", port=port, timeout=20, ssl_context=client_context(),
            server_hostname="localhost",
        )  # fmt: skip
    right(answer.to_text(), holds=bool(answer.answer))
    return answer.answer[0][0].to_text()


async def main():
    factory = DNSServerFactory(authorities=[Zone()])
    right("an address", holds=await in_thread(ask, await listen(factory)) == "192.0.2.1")


on_reactor(main)
