"""HTTP clients of others fetch a page of twisted.web behind a string of ours."""

from __future__ import annotations

import asyncio
import urllib.request
from http.client import HTTPConnection, HTTPSConnection
from urllib.parse import urlsplit

from common import (
    CA_PEM,
    OURS,
    client_context,
    client_socket,
    in_thread,
    listen,
    on_reactor,
    right,
    run,
    tool,
    way,
)
from twisted.web.resource import Resource
from twisted.web.server import Site


class Page(Resource):
    isLeaf = True

    def render_GET(self, request):
        return b"spoken over " + request.clientproto


def by_curl(url):
    return run(tool("curl"), "-sS", "--http1.1", "--cacert", CA_PEM, url)


def by_curl_http2(url):
    return run(tool("curl"), "-sS", "--http2", "--cacert", CA_PEM, url)


def by_wget(url):
    return run(tool("wget"), "-qO-", f"--ca-certificate={CA_PEM}", url)


def by_http_client(url):
    connection = HTTPConnection("localhost")
    connection.sock = client_socket(urlsplit(url).port)
    connection.request("GET", "/")
    with connection.getresponse() as response:
        return response.read().decode()


def by_https_client(url):
    connection = HTTPSConnection("localhost", urlsplit(url).port, context=client_context())
    connection.request("GET", "/")
    with connection.getresponse() as response:
        return response.read().decode()


def by_urllib(url):
    with urllib.request.urlopen(url, context=client_context()) as response:
        return response.read().decode()


def by_urllib3(url):
    import urllib3

    with urllib3.PoolManager(ssl_context=client_context()) as pool:
        return pool.request("GET", url).data.decode()


def by_requests(url):
    import requests

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *arguments, **named):
            super().init_poolmanager(*arguments, ssl_context=client_context(), **named)

    with requests.Session() as session:
        if way().endswith(OURS):
            session.mount("https://", Adapter())
            return session.get(url, timeout=20).text
        return session.get(url, verify=str(CA_PEM), timeout=20).text


def by_httpx_async(url):
    import httpx

    async def fetch():
        async with httpx.AsyncClient(verify=client_context()) as client:
            return (await client.get(url)).text

    return asyncio.run(fetch())


def by_httpx(url):
    import httpx

    with httpx.Client(verify=client_context()) as client:
        return client.get(url).text


def by_aiohttp(url):
    import aiohttp

    async def fetch():
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, ssl=client_context()) as got,
        ):
            return await got.text()

    return asyncio.run(fetch())


CLIENTS = {
    "curl": by_curl,
    "curl HTTP/2": by_curl_http2,
    "wget": by_wget,
    "http.client, socket of ours": by_http_client,
    "urllib": by_urllib,
    "urllib3": by_urllib3,
    "requests": by_requests,
    "http.client": by_https_client,
    "httpx": by_httpx,
    "httpx async": by_httpx_async,
    "aiohttp": by_aiohttp,
}


async def main():
    port = await listen(Site(Page()))
    text = await in_thread(CLIENTS[way().removesuffix(OURS)], f"https://localhost:{port}/")
    version = "HTTP/2" if way() == "curl HTTP/2" else "HTTP/1."
    right(text, holds=text.startswith(f"spoken over {version}"))


on_reactor(main)
