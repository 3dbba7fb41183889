"""Link-local addresses: what names one on this side can be connected to from another."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.loopback import script

pytestmark = pytest.mark.once

# Loopback has link-local addresses as any interface has, if it is given one.
_WITHIN = (
    "unshare",
    "-rn",
    "sh",
    "-c",
    'ip link set lo up && ip address add fe80::42/64 dev lo nodad && exec "$@"',
    "sh",
)


def _why_not() -> str | None:
    """Return why there is no network namespace with a link-local address, or `None`."""
    try:
        subprocess.run([*_WITHIN, "true"], check=True, capture_output=True, text=True, timeout=10)
    except subprocess.CalledProcessError as error:
        return f"no network namespace: {error.stderr.strip()}"
    except OSError as error:
        return f"no network namespace: {error}"
    return None


_reason = _why_not()


@pytest.mark.skipif(_reason is not None, reason=str(_reason))
def test_what_names_an_end_can_be_connected_to():
    source = """
    import socket
    from twisted.internet.endpoints import TCP6ClientEndpoint
    from twisted.internet.protocol import Factory, Protocol
    from twisted_netsock import *

    def check(where, address, port):
        assert (address.host, address.port) == ("fe80::42%lo", port), (where, address)

    async def main():
        server = await make_server_socket("fe80::42%lo", 0)
        bound = server.getsockname()
        check("bound", bound, bound.port)
        assert bound.scope_id == socket.if_nametoindex("lo")
        assert str(bound) == f"[fe80::42%lo]:{bound.port}"
        for node in (bound.host, f"fe80::42%{bound.scope_id}"):
            client = await make_client_socket(node, bound.port)
            accepted = await server.accept()
            check("peer", client.getpeername(), bound.port)
            check("accepted", accepted.getsockname(), bound.port)
            check("accepted's peer", accepted.getpeername(), client.getsockname().port)
            await client.close()
            await accepted.close()
        from twisted_netsock import chibi
        bare = chibi.socket(socket.AF_INET6, socket.SOCK_STREAM)
        await bare.connect(bound)
        await bare.close()
        datagrams = await make_server_socket(
            bound.host, 0, SocketOptions(ai_socktype=socket.SOCK_DGRAM)
        )
        await datagrams.sendto(b"x", datagrams.getsockname())
        _, sender = await datagrams.recvfrom(10)
        check("datagram", sender, datagrams.getsockname().port)
        await datagrams.close()
        await server.close()

        peers = []

        class Kept(Protocol):
            def connectionMade(self):
                peers.append((self.transport.getPeer(), self.transport.getHost()))
                self.transport.loseConnection()

        port = await server_endpoint(reactor, bound.host, 0).listen(Factory.forProtocol(Kept))
        host = port.getHost()
        check("port", host, host.port)
        assert host.scopeID == bound.scope_id
        for endpoint in (
            client_endpoint(reactor, host.host, host.port),
            TCP6ClientEndpoint(reactor, host.host, host.port),
        ):
            protocol = await endpoint.connect(Factory.forProtocol(Kept))
            check("transport's peer", protocol.transport.getPeer(), host.port)
        await port.stopListening()
        for peer, own in peers:
            assert peer.host == own.host == "fe80::42%lo", (peer, own)
            assert host.port in (peer.port, own.port)

    run(main)
    """
    done = subprocess.run(
        [*_WITHIN, *script(source)], capture_output=True, check=False, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
