"""treq, Scrapy and requests fetch pages through a real proxy, over what is ours."""

from __future__ import annotations

import logging
import warnings

from twisted.internet import asyncioreactor

asyncioreactor.install()

import requests  # noqa: E402
from common import AUTHORITY, SERVER_PEM, in_thread, right, way  # noqa: E402
from proxies import proxy  # noqa: E402
from requests.adapters import HTTPAdapter  # noqa: E402
from scrapy import Request, Spider  # noqa: E402
from scrapy.crawler import AsyncCrawlerRunner  # noqa: E402
from scrapy.http import TextResponse  # noqa: E402
from scrapy.utils.defer import maybe_deferred_to_future  # noqa: E402
from treq.client import HTTPClient  # noqa: E402
from twisted.internet import reactor  # noqa: E402
from twisted.internet.defer import Deferred  # noqa: E402
from twisted.internet.endpoints import serverFromString  # noqa: E402
from twisted.web.client import Agent, HTTPConnectionPool  # noqa: E402
from twisted.web.resource import Resource  # noqa: E402
from twisted.web.server import Site  # noqa: E402
from urllib3 import HTTPSConnectionPool  # noqa: E402
from urllib3.connection import HTTPSConnection  # noqa: E402

from twisted_netsock import SocketOptions, agent_endpoint_factory, blocking  # noqa: E402


class Page(Resource):
    isLeaf = True

    def render_GET(self, request):
        return b"secure" if request.isSecure() else b"plain"


async def by_treq(options, places):
    pool = HTTPConnectionPool(reactor)
    agent = Agent.usingEndpointFactory(reactor, agent_endpoint_factory(reactor, options), pool)
    client = HTTPClient(agent)
    texts = [await (await client.get(place)).text() for place in places]
    await pool.closeCachedConnections()
    return texts


class Handler:
    """What Scrapy downloads by: an agent over our endpoints."""

    lazy = True

    def __init__(self, crawler):
        self._pool = HTTPConnectionPool(reactor)
        factory = agent_endpoint_factory(reactor, crawler.settings["NETSOCK_OPTIONS"])
        self._client = HTTPClient(Agent.usingEndpointFactory(reactor, factory, self._pool))

    @classmethod
    def from_crawler(cls, crawler):
        return cls(crawler)

    async def download_request(self, request):
        asking = self._client.request(
            request.method, request.url, headers=dict(request.headers), data=request.body
        )
        response = await maybe_deferred_to_future(asking)
        body = await maybe_deferred_to_future(response.content())
        found = dict(response.headers.getAllRawHeaders())
        return TextResponse(request.url, response.code, found, body)

    async def close(self):
        await maybe_deferred_to_future(self._pool.closeCachedConnections())


class Fetching(Spider):
    name = "fetching"

    async def start(self):
        for place in self.places:
            yield Request(place, callback=self.got, errback=self.failed)

    def got(self, response):
        self.found.append(response.text)

    def failed(self, failure):
        self.found.append(repr(failure.value))


async def by_scrapy(options, places):
    settings = {
        "DOWNLOAD_HANDLERS": {"http": Handler, "https": Handler},
        "NETSOCK_OPTIONS": options,
        "RETRY_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
        "TWISTED_REACTOR": "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
    }
    found = []
    crawling = AsyncCrawlerRunner(settings).crawl(Fetching, places=places, found=found)
    await Deferred.fromFuture(crawling)
    return sorted(found)


def by_requests(options, place):
    """Have requests speak TLS by a context of ours, on a socket that came through the proxy."""
    plain = SocketOptions.from_options(options)

    class Connection(HTTPSConnection):
        def _new_conn(self):
            return blocking.make_client_socket(self.host, self.port, plain)

    class Pool(HTTPSConnectionPool):
        ConnectionCls = Connection

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments, **named):
            context = blocking.ssl_context(options.replace(proxy=None))
            super().init_poolmanager(*arguments, **named, ssl_context=context)
            self.poolmanager.pool_classes_by_scheme = {"https": Pool}

    with requests.Session() as session:
        session.trust_env = False
        session.mount("https://", Adapter())
        return session.get(place, timeout=20).text


def by_requests_alone(options, place):
    """Have requests ask its proxy itself, and speak TLS by a context of ours."""

    class Adapter(HTTPAdapter):
        def proxy_manager_for(self, proxy, **named):
            context = blocking.ssl_context(options.replace(proxy=None))
            return super().proxy_manager_for(proxy, **named, ssl_context=context)

    with requests.Session() as session:
        session.trust_env = False
        session.mount("https://", Adapter())
        return session.get(place, proxies={"https": options.proxy}, timeout=20).text


async def main():
    site, places = Site(Page()), []
    for scheme, text in (
        ("http", "netsock:0:node=127.0.0.1"),
        ("https", f"netsock-tls:0:node=127.0.0.1:certificates={SERVER_PEM}"),
    ):
        port = await serverFromString(reactor, text).listen(site)
        places.append(f"{scheme}://localhost:{port.getHost().port}/")
    with proxy() as url:
        options = AUTHORITY.client_options(proxy=url)
        right("by treq", holds=await by_treq(options, places) == ["plain", "secure"])
        right("by Scrapy", holds=await by_scrapy(options, places) == ["plain", "secure"])
        right("by requests", holds=await in_thread(by_requests, options, places[1]) == "secure")
        if way() == "tinyproxy":
            text = await in_thread(by_requests_alone, options, places[1])
            right("by requests alone", holds=text == "secure")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    running = Deferred.fromCoroutine(main())
    failures = []
    running.addErrback(failures.append).addBoth(lambda _: reactor.stop())
    reactor.run()
    if failures:
        failures[0].raiseException()
