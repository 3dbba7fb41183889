"""What the programs' scripts share: certificates, strings, processes, and a way out."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, quoteStringArgument, serverFromString
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from twisted_netsock import blocking
from twisted_netsock.testing import CertificateAuthority

FOLDER = Path(tempfile.mkdtemp(prefix="programs-"))
"""Certificates and all that a program writes; removed at the end."""
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

AUTHORITY = CertificateAuthority()
CA_PEM = FOLDER / "ca.pem"
SERVER_PEM = FOLDER / "server.pem"
CA_PEM.write_bytes(AUTHORITY.certificate_pem)
SERVER_PEM.write_bytes(AUTHORITY.issue("localhost", "127.0.0.1").pem)

SECONDS = 60.0
"""What no step of a script outlives."""


def way() -> str:
    """Return which of its ways the script is to run."""
    return sys.argv[1]


def server_string(port: int = 0) -> str:
    """Return the string of a server on *port* for the script's way."""
    if way() == "TLS over tcp:":
        inner = quoteStringArgument(f"tcp:{port}:interface=127.0.0.1")
        return f"netsock-tls:endpoint={inner}:certificates={SERVER_PEM}"
    if way() == "plain":
        return f"netsock:{port}:node=127.0.0.1"
    return f"netsock-tls:{port}:node=127.0.0.1:certificates={SERVER_PEM}"


def client_string(port: int) -> str:
    """Return the string of a client of `server_string`."""
    if way() == "TLS over tcp:":
        inner = quoteStringArgument(f"tcp:127.0.0.1:{port}")
        return f"netsock-tls:localhost:endpoint={inner}:trustedCertificates={CA_PEM}"
    if way() == "plain":
        return f"netsock:127.0.0.1:{port}"
    return f"netsock-tls:127.0.0.1:{port}:trustedCertificates={CA_PEM}"


async def listen(factory: Any, *, plain: bool = False) -> int:
    """Listen by a string of ours for the script's way, and return the port."""
    text = "netsock:0:node=127.0.0.1" if plain else server_string()
    port = await serverFromString(reactor, text).listen(factory)
    number: int = port.getHost().port
    return number


async def connect(factory: Any, port: int) -> Any:
    """Connect by a string of ours for the script's way."""
    return await clientFromString(reactor, client_string(port)).connect(factory)


OURS = ", context of ours"
"""The end of a way in which a client of others gets a context of ours."""


def client_context() -> ssl.SSLContext:
    """Return a context that verifies our servers: the standard library's, or ours."""
    if way().endswith(OURS):
        return blocking.ssl_context(AUTHORITY.client_options())
    return ssl.create_default_context(cafile=str(CA_PEM))


def client_socket(port: int) -> Any:
    """Return a blocking socket of ours, for clients that take one."""
    if way() == "plain":
        return blocking.make_client_socket("127.0.0.1", port)
    return blocking.make_client_tls_socket("127.0.0.1", port, AUTHORITY.client_options())


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
    """Run a client that blocks."""
    return deferToThread(function, *args, **kwargs)


def run(*command: str | Path, **more: Any) -> str:
    """Run a program to its end, and return what it has printed."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
        **more,
    )
    right(f"{command[0]} ends well: {done.stdout[-2000:]}", holds=done.returncode == 0)
    return done.stdout


def free_port() -> int:
    """Return a port that was free just now, for programs that cannot choose one."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number: int = sock.getsockname()[1]
        return number


@contextmanager
def program(port: int, *command: str | Path, **more: Any) -> Iterator[None]:
    """Run a server until the block ends, which begins when it listens on *port*."""
    log = FOLDER / f"{port}.log"
    words = [str(word) for word in command]
    with (
        log.open("wb") as output,
        subprocess.Popen(words, stdout=output, stderr=output, **more) as it,
    ):
        try:
            end = time.monotonic() + SECONDS
            while True:
                with socket.socket() as sock:
                    if sock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                ended = it.poll() is not None or time.monotonic() > end
                right(f"{command[0]} listens: {log.read_text()[-2000:]}", holds=not ended)
                time.sleep(0.1)
            yield
        finally:
            it.terminate()


@contextmanager
def relay(backend: int | str, *, plain: bool = False) -> Iterator[int]:
    """Run a relay in front of *backend*, a port or a string of ours, and return its port."""
    port = free_port()
    to = backend if isinstance(backend, str) else f"netsock:127.0.0.1:{backend}"
    listen = f"netsock:{port}:node=127.0.0.1" if plain else server_string(port)
    words = ("relay", "--listen", listen, "--to", to)
    with program(port, sys.executable, "-m", "twisted", "netsock", *words):
        yield port


@contextmanager
def front_of(backend: int) -> Iterator[int]:
    """Return the port that a client connects to: a relay's, or with a context of ours its own."""
    if way().endswith(OURS):
        yield backend
    else:
        with relay(backend) as port:
            yield port


def tool(name: str) -> Path:
    """Return a program of this environment, or end with 77 if it is nowhere."""
    library = Path("/usr/lib")
    # Debian puts scripts into /usr/sbin that would leave these servers behind when they end.
    debian = (*library.glob("postgresql/*/bin"), *library.glob("rabbitmq/lib/*/sbin"))
    places = (Path(sys.executable).parent, *debian, *os.get_exec_path(), "/usr/sbin")
    found = shutil.which(name, path=":".join(map(str, places)))
    if found is None:
        print(f"skipped: {name} is not installed")
        raise SystemExit(77)
    return Path(found)


def right(what: str, *, holds: bool) -> None:
    """End unless *holds*."""
    if not holds:
        raise SystemExit(f"wrong: {what}")


def on_reactor(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *main* on the reactor, to its end."""

    def begin(clock: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(main()).addTimeout(SECONDS, clock)

    react(begin)
