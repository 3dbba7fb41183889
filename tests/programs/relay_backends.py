"""Servers behind the relay, which ends TLS, and their own clients in front of it."""

from __future__ import annotations

import asyncio
import sys
import threading

from common import CA_PEM, SERVER_PEM, client_context, free_port, program, right, way


def grpc_server(port):
    import grpc

    def echo(request, context):
        return request

    method = grpc.unary_unary_rpc_method_handler(echo)
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.method_handlers_generic_handler("test.Echo", {"Echo": method})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return lambda: server.stop(None).wait()


def grpc_client(port):
    import grpc

    credentials = grpc.ssl_channel_credentials(CA_PEM.read_bytes())
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        answer = channel.unary_unary("/test.Echo/Echo")(b"x" * 1_000_000, timeout=30)
    right("an echo by gRPC", holds=answer == b"x" * 1_000_000)


def in_loop(begin):
    """Run what *begin* starts on an event loop in a thread, and return what ends it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
    return lambda: loop.call_soon_threadsafe(loop.stop)


def mqtt_server(port):
    from amqtt.broker import Broker

    async def begin():
        listener = {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}
        plugin = "amqtt.plugins.authentication.AnonymousAuthPlugin"
        broker = Broker({"listeners": listener, "plugins": {plugin: {"allow_anonymous": True}}})
        await broker.start()

    return in_loop(begin)


def mqtt_client(port):
    from paho.mqtt.client import CallbackAPIVersion, Client

    got, subscribed = [], threading.Event()
    ended = threading.Event()

    def arrived(client, userdata, message):
        got.append(message.payload)
        ended.set()

    client = Client(CallbackAPIVersion.VERSION2)
    client.tls_set_context(client_context())
    client.on_connect = lambda client, *_: client.subscribe("topic", 1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = arrived
    client.connect("localhost", port)
    client.loop_start()
    right("a subscription by MQTT", holds=subscribed.wait(30))
    client.publish("topic", b"x" * 100_000, 1)
    right("a message by MQTT", holds=ended.wait(30) and got == [b"x" * 100_000])
    client.disconnect()
    client.loop_stop()


SERVICES = {
    "gRPC": (grpc_server, grpc_client, ":alpn=h2"),
    "MQTT": (mqtt_server, mqtt_client, ""),
}


def main():
    serve, talk, more = SERVICES[way()]
    backend, front = free_port(), free_port()
    end = serve(backend)
    listen = f"netsock-tls:{front}:node=127.0.0.1:certificates={SERVER_PEM}{more}"
    command = (sys.executable, "-m", "twisted", "netsock", "relay")
    with program(front, *command, "--listen", listen, "--to", f"netsock:127.0.0.1:{backend}"):
        talk(front)
    end()


main()
