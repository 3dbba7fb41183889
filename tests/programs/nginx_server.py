"""nginx as the server: treq by our endpoints, and the relay in front of it with HTTP/2 by curl."""

from __future__ import annotations

import sys

from common import (
    AUTHORITY,
    CA_PEM,
    FOLDER,
    SERVER_PEM,
    free_port,
    in_thread,
    on_reactor,
    program,
    right,
    run,
    tool,
)
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.web.client import Agent

from twisted_netsock import agent_endpoint_factory

CONFIGURATION = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
    uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
    server {{
        listen 127.0.0.1:{tls} ssl;
        ssl_protocols TLSv1.3; ssl_certificate {pem}; ssl_certificate_key {pem};
        return 200 "TLS by nginx: $ssl_protocol";
    }}
    server {{
        listen 127.0.0.1:{plain} proxy_protocol;
        return 200 "from $proxy_protocol_addr";
    }}
}}
"""


async def main():
    tls, plain, front = free_port(), free_port(), free_port()
    path = FOLDER / "nginx.conf"
    path.write_text(CONFIGURATION.format(folder=FOLDER, tls=tls, plain=plain, pem=SERVER_PEM))
    relay = (
        sys.executable, "-m", "twisted", "netsock", "relay",
        "--listen", f"netsock-tls:{front}:node=127.0.0.1:certificates={SERVER_PEM}",
        "--to", f"netsock:127.0.0.1:{plain}:proxyProtocol=v2",
    )  # fmt: skip
    with program(tls, tool("nginx"), "-c", path), program(front, *relay):
        factory = agent_endpoint_factory(reactor, AUTHORITY.client_options())
        http = HTTPClient(Agent.usingEndpointFactory(reactor, factory))
        text = await (await http.get(f"https://localhost:{tls}/")).text()
        right(text, holds=text == "TLS by nginx: TLSv1.3")
        command = (tool("curl"), "-sS", "--cacert", CA_PEM, f"https://localhost:{front}/")
        text = await in_thread(run, *command)
        right(text, holds=text == "from 127.0.0.1")


on_reactor(main)
