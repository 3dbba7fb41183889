"""Mosquitto over TLS: paho-mqtt with a context of ours."""

from __future__ import annotations

import getpass
import threading

import paho.mqtt.client as mqtt
from common import (
    FOLDER,
    SECONDS,
    SERVER_PEM,
    client_context,
    free_port,
    in_thread,
    on_reactor,
    program,
    right,
    tool,
)


def publish(port):
    got, arrived = [], threading.Event()

    def receive(_client, _data, message):
        got.append(message.payload)
        arrived.set()

    def subscribe(client, *_):
        client.subscribe("here")
        client.publish("here", b"x" * 100_000, qos=1)

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.tls_set_context(client_context())
    client.on_connect, client.on_message = subscribe, receive
    client.connect("localhost", port)
    client.loop_start()
    right("it arrives", holds=arrived.wait(SECONDS / 2))
    client.disconnect()
    client.loop_stop()
    return got


async def main():
    port, path = free_port(), FOLDER / "mosquitto.conf"
    path.write_text(
        f"listener {port} 127.0.0.1\ncertfile {SERVER_PEM}\nkeyfile {SERVER_PEM}\n"
        f"allow_anonymous true\nuser {getpass.getuser()}\n"
    )
    with program(port, tool("mosquitto"), "-c", path):
        got = await in_thread(publish, port)
        right("a message", holds=got == [b"x" * 100_000])


on_reactor(main)
