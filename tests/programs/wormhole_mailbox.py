"""Two wormholes meet at a mailbox server behind a string of ours."""

from __future__ import annotations

import os
import sys

from common import CA_PEM, FOLDER, free_port, on_reactor, program, right, server_string, way

os.environ["SSL_CERT_FILE"] = str(CA_PEM)

from twisted.internet import reactor
from wormhole import create


async def main():
    port = free_port()
    command = (sys.executable, "-m", "twisted", "wormhole-mailbox")
    options = ("--port", server_string(port), "--channel-db", FOLDER / "db.sqlite")
    scheme = "ws" if way() == "plain" else "wss"
    with program(port, *command, *options):
        place = f"{scheme}://localhost:{port}/v1"
        one, two = (create("example.com/test", place, reactor) for _ in range(2))
        try:
            one.allocate_code()
            two.set_code(await one.get_code())
            one.send_message(b"through the wormhole")
            right("a message", holds=await two.get_message() == b"through the wormhole")
        finally:
            await one.close()
            await two.close()


on_reactor(main)
