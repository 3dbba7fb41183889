"""The transit relay of magic-wormhole connects two clients that give one token."""

from __future__ import annotations

import sys

from common import connect, free_port, on_reactor, program, right, server_string
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

HELLO = b"please relay " + b"ab" * 32 + b" for side %016x\n"


class Side(Protocol):
    def __init__(self):
        self.got = b""
        self.waits = []

    def dataReceived(self, data):
        self.got += data
        for wanted, waiting in self.waits[:]:
            if self.got.endswith(wanted):
                self.waits.remove((wanted, waiting))
                waiting.callback(None)

    def receives(self, wanted):
        waiting = Deferred()
        self.waits.append((wanted, waiting))
        self.dataReceived(b"")
        return waiting


async def main():
    port = free_port()
    command = (sys.executable, "-m", "twisted", "transitrelay", "--port", server_string(port))
    with program(port, *command):
        sides = [await connect(Factory.forProtocol(Side), port) for _ in range(2)]
        for number, side in enumerate(sides):
            side.transport.write(HELLO % number)
        for side in sides:
            await side.receives(b"ok\n")
        sides[0].transport.write(b"x" * 500_000 + b"end")
        await sides[1].receives(b"end")
        right("all of it", holds=len(sides[1].got) == 500_006)
        for side in sides:
            side.transport.loseConnection()


on_reactor(main)
