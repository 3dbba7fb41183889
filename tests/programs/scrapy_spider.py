"""Scrapy with our policy fetches a page of a server behind a string of ours, and no other's."""

from __future__ import annotations

import logging
import warnings

from twisted.internet import asyncioreactor

asyncioreactor.install()

from common import AUTHORITY, SERVER_PEM, right, way  # noqa: E402
from scrapy import Request, Spider  # noqa: E402
from scrapy.crawler import AsyncCrawlerRunner  # noqa: E402
from twisted.internet import reactor  # noqa: E402
from twisted.internet.defer import Deferred  # noqa: E402
from twisted.internet.endpoints import (  # noqa: E402
    TCP4ClientEndpoint,
    connectProtocol,
    serverFromString,
)
from twisted.internet.protocol import Factory, Protocol  # noqa: E402
from twisted.web.resource import Resource  # noqa: E402
from twisted.web.server import Site  # noqa: E402

from twisted_netsock import https_policy  # noqa: E402

SERVER = "netsock-tls:0:node=127.0.0.1:certificates={}"
FOREIGN_PEM = SERVER_PEM.with_name("other.pem")


class Page(Resource):
    isLeaf = True

    def render_GET(self, request):
        return b"spoken over " + request.clientproto


class Policy:
    """What Scrapy makes of ``DOWNLOADER_CLIENTCONTEXTFACTORY``."""

    @classmethod
    def from_crawler(cls, crawler, method=None):
        return https_policy(AUTHORITY.client_options())


class Pipe(Protocol):
    """Passes on all that comes."""

    other = None

    def dataReceived(self, data):
        self.other.transport.write(data)

    def connectionLost(self, reason):
        self.other.transport.loseConnection()


class Proxy(Protocol):
    """An HTTP proxy that knows CONNECT."""

    other = None
    asked = b""

    def dataReceived(self, data):
        if self.other is not None:
            self.other.transport.write(data)
            return
        self.asked += data
        if b"\r\n\r\n" in self.asked:
            method, place, _ = self.asked.split(b" ", 2)
            right("the proxy is asked for a tunnel", holds=method == b"CONNECT")
            self.factory.tunnels += 1
            self.other = Pipe()
            self.other.other = self
            to = TCP4ClientEndpoint(reactor, "127.0.0.1", int(place.rpartition(b":")[2]))
            connectProtocol(to, self.other).addCallback(
                lambda _: self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
            )

    def connectionLost(self, reason):
        if self.other is not None and self.other.transport is not None:
            self.other.transport.loseConnection()


class Fetching(Spider):
    name = "fetching"

    async def start(self):
        for place in self.places:
            yield Request(place, callback=self.got, errback=self.failed, meta=self.how)

    def got(self, response):
        self.found.append(response.text)

    def failed(self, failure):
        self.found.append(repr(failure.value))


async def main():
    site, ports = Site(Page()), []
    FOREIGN_PEM.write_bytes(AUTHORITY.issue("other.example").pem)
    for path in (SERVER_PEM, FOREIGN_PEM):
        ports.append(await serverFromString(reactor, SERVER.format(path)).listen(site))
    places = [f"https://localhost:{port.getHost().port}/" for port in ports]
    settings = {
        "DOWNLOADER_CLIENTCONTEXTFACTORY": Policy,
        "TWISTED_REACTOR": "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
        "RETRY_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
    }
    if way() == "HTTP/2":
        settings["DOWNLOAD_HANDLERS"] = {
            "https": "scrapy.core.downloader.handlers.http2.H2DownloadHandler"
        }
    proxy = Factory.forProtocol(Proxy)
    proxy.tunnels = 0
    how = {}
    if way() == "CONNECT":
        port = await serverFromString(reactor, "netsock:0:node=127.0.0.1").listen(proxy)
        how["proxy"] = f"http://127.0.0.1:{port.getHost().port}"
    found = []
    runner = AsyncCrawlerRunner(settings)
    crawling = runner.crawl(Fetching, places=places, how=how, found=found)
    await Deferred.fromFuture(crawling)
    good = "spoken over HTTP/2" if way() == "HTTP/2" else "spoken over HTTP/1.1"
    right("the page of the server", holds=max(found) == good and len(found) == 2)
    right("the other is refused", holds="not for 'localhost'" in min(found))
    right("tunnels", holds=proxy.tunnels == (2 if how else 0))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    running = Deferred.fromCoroutine(main())
    failures = []
    running.addErrback(failures.append).addBoth(lambda _: reactor.stop())
    reactor.run()
    if failures:
        failures[0].raiseException()
