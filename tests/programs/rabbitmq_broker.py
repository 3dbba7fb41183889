"""RabbitMQ behind the relay: pika's Twisted adapter by a string of ours."""

from __future__ import annotations

import os
import shutil

from common import FOLDER, connect, free_port, on_reactor, program, relay, right, tool
from pika import ConnectionParameters
from pika.adapters.twisted_connection import TwistedProtocolConnection
from twisted.internet.protocol import Factory

TEXT = b"x" * 300_000


class Clients(Factory):
    def buildProtocol(self, address):
        return TwistedProtocolConnection(ConnectionParameters())


async def main():
    port, folder = free_port(), FOLDER / "broker"
    folder.mkdir()
    other = {}
    if os.geteuid() == 0:
        FOLDER.chmod(0o711)
        shutil.chown(folder, "rabbitmq")
        other = {"user": "rabbitmq"}
    epmd = free_port()
    environment = {
        "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(folder),
        "ERL_EPMD_PORT": str(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"programs-{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port), "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_DIST_PORT": str(free_port()), "RABBITMQ_MNESIA_BASE": str(folder),
        "RABBITMQ_LOG_BASE": str(folder), "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "none"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"), "RABBITMQ_CONF_ENV_FILE": str(folder / "no"),
        # So it is one process, and no shell in front of it that may leave it behind.
        "RUNNING_UNDER_SYSTEMD": "1",
    }  # fmt: skip
    server = program(port, tool("rabbitmq-server"), cwd=folder, env=environment, **other)
    # Erlang would start one that stays.
    names = program(epmd, tool("epmd"), "-port", str(epmd), "-address", "127.0.0.1")
    with names, server, relay(port) as front:
        connection = await connect(Clients(), front)
        await connection.ready
        channel = await connection.channel()
        await channel.queue_declare("queue", auto_delete=True)
        await channel.confirm_delivery()
        await channel.basic_publish("", "queue", TEXT)
        queue, _ = await channel.basic_consume("queue", auto_ack=True)
        _, _, _, body = await queue.get()
        right("the message", holds=body == TEXT)
        await connection.close()


on_reactor(main)
