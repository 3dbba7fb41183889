"""certbot: issue by pebble, serve its directory, and renew while clients connect."""

from __future__ import annotations

import json
import os
import socket
import urllib.request

from common import (
    CA_PEM,
    FOLDER,
    SERVER_PEM,
    client_context,
    free_port,
    in_thread,
    on_reactor,
    program,
    right,
    run,
    tool,
)
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.protocols.wire import Echo

from twisted_netsock import TLSSocketOptions, make_client_tls_socket

NAME = "web.example"
RENEWALS = 3


def certbot(directory_url: str, *words: str) -> Deferred[str]:
    """Run certbot in a folder of its own, against pebble."""
    folders = [f"--{name}-dir={FOLDER / 'certbot'}" for name in ("config", "work", "logs")]
    command = (
        tool("certbot"), *words, *folders, "--non-interactive", f"--server={directory_url}",
    )  # fmt: skip
    return in_thread(run, *command, env={**os.environ, "REQUESTS_CA_BUNDLE": str(CA_PEM)})


async def serial_of(port: int, options: TLSSocketOptions) -> int:
    """Have a connection echo something, and return the serial number that it was shown."""
    connection = await make_client_tls_socket("127.0.0.1", port, options)
    async with connection:
        await connection.sendall(b"echo")
        await connection.shutdown(socket.SHUT_WR)
        echo = await connection.input_port.read_all()
        right(f"the echo: {echo!r}", holds=echo == b"echo")
        certificate = connection.peer_certificate
        assert certificate is not None
        return certificate.serial_number


async def main():
    acme, management, http = free_port(), free_port(), free_port()
    configuration = FOLDER / "pebble.json"
    settings = {
        "listenAddress": f"127.0.0.1:{acme}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(SERVER_PEM),
        "privateKey": str(SERVER_PEM),
        "httpPort": http,
        "tlsPort": http,
    }
    configuration.write_text(json.dumps({"pebble": settings}))
    # Nothing resolves the name here, and what pebble asks of the client is not what is tried.
    environment = {**os.environ, "PEBBLE_VA_ALWAYS_VALID": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    url = f"https://localhost:{acme}/dir"
    with program(acme, tool("pebble"), "-config", configuration, env=environment):
        await certbot(
            url, "certonly", "--standalone", f"--http-01-port={http}", f"--domain={NAME}",
            "--agree-tos", "--register-unsafely-without-email",
        )  # fmt: skip
        root = await in_thread(
            lambda: urllib.request.urlopen(
                f"https://localhost:{management}/roots/0", context=client_context()
            ).read()
        )
        live = FOLDER / "certbot" / "live"
        text = f"netsock-tls:0:node=127.0.0.1:certificates={live}/:reloadEvery=200ms"
        port = await serverFromString(reactor, text).listen(Factory.forProtocol(Echo))
        number = port.getHost().port
        options = TLSSocketOptions(trusted_certificates=root, sni=NAME, server_identity=NAME)
        seen = [await serial_of(number, options)]
        connections = 0
        for renewal in range(RENEWALS):
            renewed = certbot(url, "renew", "--force-renewal", "--no-random-sleep-on-renew")
            while not renewed.called or seen[-1] in seen[:-1] or len(seen) < renewal + 2:
                serial = await serial_of(number, options)
                connections += 1
                if serial != seen[-1]:
                    seen.append(serial)
            await renewed
        right(f"{seen} after {connections} connections", holds=len(set(seen)) == RENEWALS + 1)
        await port.stopListening()


on_reactor(main)
