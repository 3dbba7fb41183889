"""
What goes on when inner parts of pyOpenSSL, Twisted or crochet are gone.

Each test is a process of its own, from which one part is hidden before anything is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hidden import CONNECTION, LIBRARY, NAMES
from twisted_netsock._tls import openssl

pytestmark = [pytest.mark.once, pytest.mark.long]

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from tests.support import hidden
hidden.hide(*{names!r})

from twisted.logger import formatEvent, globalLogPublisher
logged = []
globalLogPublisher.addObserver(lambda event: logged.append(formatEvent(event)))

import warnings
warnings.simplefilter("error")
import threading
from twisted_netsock import blocking
from twisted_netsock.testing import CertificateAuthority

authority = CertificateAuthority()
options = authority.server_options()
listener = blocking.make_server_tls_socket("localhost", 0, options)

def answer():
    with listener.accept() as connection:
        size = 0
        while size < 1_000_000:
            size += len(connection.recv(65536))
        connection.sendall(b"thank you")

thread = threading.Thread(target=answer)
thread.start()
port = listener.getsockname()[1]
client = authority.client_options()
with blocking.make_client_tls_socket("localhost", port, client) as sock:
    sock.sendall(bytes(1_000_000))
    room = bytearray(9)
    assert sock.input_port.readinto(room) == 9 and room == b"thank you", room
thread.join()
listener.close()

from twisted.internet.defer import Deferred
from twisted_netsock import make_client_tls_socket, make_server_tls_socket

async def in_reactor():
    async with await make_server_tls_socket("localhost", 0, options) as listener:
        accepting = listener.accept()
        one = await make_client_tls_socket("localhost", listener.getsockname()[1], client)
        other = await accepting
        try:
            await one.sendall(b"question")
            assert await other.recv(100) == b"question"
            receiving = one.recv(100)
            await other.sendall(b"answer")
            assert await receiving == b"answer"
        finally:
            one.abort()
            other.abort()
    return "done"

print(blocking._bridge.run(lambda reactor: Deferred.fromCoroutine(in_reactor())))
for line in logged:
    if "bound" in line:
        print(line)
"""

HANDSHAKES = "on handshakes"
NEW_KEYS = "on new keys"
BOUNDS: dict[str, set[str]] = {
    **{name: {HANDSHAKES} for name in ("BIO_get_mem_data", "BIO_read", "BIO_write")},
    **{name: {HANDSHAKES} for name in ("SSL_ERROR_WANT_READ", "SSL_do_handshake")},
    **{name: {HANDSHAKES} for name in ("SSL_get_error", "SSL_set_fd")},
    **{name: {HANDSHAKES} for name in CONNECTION},
    **{name: {NEW_KEYS} for name in ("SSL_clear_mode", "SSL_MODE_AUTO_RETRY")},
    **{name: {HANDSHAKES, NEW_KEYS} for name in ("OpenSSL._util", "ffi", "lib", "_ssl", "all")},
}
"""Which bounds do not hold without a name."""


@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_tls_and_threads_work_without(name: str) -> None:
    """Or one warning says which bound does not hold."""
    names = NAMES if name == "all" else (name,)
    program = PROGRAM.format(tests=str(Path(__file__).parents[2]), names=names)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "NETSOCK_HIDDEN": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *warnings = done.stdout.splitlines()
    assert first == "done"
    assert len(warnings) == (name in BOUNDS), warnings
    for bound in (HANDSHAKES, NEW_KEYS):
        assert any(bound in line for line in warnings) is (bound in BOUNDS.get(name, ()))


def test_all_names_that_are_looked_for_are_hidden_here() -> None:
    source = Path(openssl.__file__).read_text()
    for name in (*LIBRARY, *CONNECTION):
        assert f'"{name}"' in source
