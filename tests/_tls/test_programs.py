"""TLS sockets against the programs that people use: openssl, GnuTLS's, curl and nginx."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.support.processes import Child, find, free_port, needs, started
from tests.support.streams import (
    finished,
    in_thread,
    noise,
    read_exactly,
    read_to_end,
    soon,
    together,
)
from twisted_netsock import (
    CertificateVerificationError,
    SocketConnectionLostError,
    TLSError,
    TLSSocket,
    TLSTruncatedError,
    make_client_tls_socket,
    make_server_tls_socket,
)
from twisted_netsock.testing import CertificateAuthority

pytestmark = pytest.mark.long

VERSIONS = pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])


class Files:
    """PEM files of an authority, of a server and of a client."""

    def __init__(self, directory: Path, authority: CertificateAuthority) -> None:
        self.authority = directory / "authority.pem"
        self.server = directory / "server.pem"
        self.client = directory / "client.pem"
        self.authority.write_bytes(authority.certificate_pem)
        self.server.write_bytes(authority.issue("localhost", "127.0.0.1").pem)
        self.issued = authority.issue("a client")
        self.client.write_bytes(self.issued.pem)


@pytest.fixture
def files(authority: CertificateAuthority, tmp_path: Path) -> Files:
    return Files(tmp_path, authority)


class Conversation:
    """A program that runs beside the test, and what is typed into it."""

    def __init__(self, child: Child, keyboard: int) -> None:
        self.child = child
        self._keyboard = keyboard

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def shows(self, pattern: str) -> Deferred[re.Match[str]]:
        """Wait, beside the reactor, until a line that it printed has *pattern*."""
        return in_thread(self.child.wait_for_line, pattern)


@contextmanager
def conversing(output: Path, *arguments: str | Path) -> Iterator[Conversation]:
    """Run a program with something to type on."""
    listens, keyboard = os.pipe()
    try:
        with started(*arguments, output=output, stdin=listens) as child:
            yield Conversation(child, keyboard)
    finally:
        os.close(listens)
        os.close(keyboard)


@asynccontextmanager
async def served(
    authority: CertificateAuthority, files: Files, *arguments: str | Path, **fields: Any
) -> AsyncIterator[tuple[TLSSocket, Conversation]]:
    """Accept a program as client; PORT among its *arguments* stands for ours."""
    options = authority.server_options(**fields)
    async with await make_server_tls_socket("127.0.0.1", 0, options) as listener:
        port = str(listener.getsockname().port)
        command = [str(argument).replace("PORT", port) for argument in arguments]
        with conversing(files.client.with_name("output"), *command) as program:
            accepted: Any = await soon(listener.accept())
            try:
                yield accepted, program
            finally:
                accepted.abort()


@asynccontextmanager
async def dialled(
    authority: CertificateAuthority, files: Files, *arguments: str | Path, **fields: Any
) -> AsyncIterator[tuple[TLSSocket, Conversation]]:
    """Connect to a program that listens on PORT, and says so by taking connections."""
    port = free_port()
    command = [str(argument).replace("PORT", str(port)) for argument in arguments]
    with conversing(files.client.with_name("output"), *command) as program:
        await program.shows("ACCEPT|listening|ready")
        options = authority.client_options(**fields)
        sock = await soon(make_client_tls_socket("127.0.0.1", port, options))
        try:
            yield sock, program
        finally:
            sock.abort()


# openssl


# What it prints comes line by line, to a file too.
OPENSSL = ("stdbuf", "-oL", "openssl")
FLAGS = {"TLSv1.2": "-tls1_2", "TLSv1.3": "-tls1_3"}


def s_client(files: Files, version: str, *more: str | Path) -> list[str | Path]:
    return [
        *OPENSSL, "s_client", "-connect", "127.0.0.1:PORT", "-CAfile", files.authority,
        "-verify_return_error", FLAGS[version], *more,
    ]  # fmt: skip


def s_server(files: Files, version: str, *more: str | Path) -> list[str | Path]:
    return [
        *OPENSSL, "s_server", "-accept", "127.0.0.1:PORT", "-cert", files.server,
        "-key", files.server, FLAGS[version], *more,
    ]  # fmt: skip


@needs("openssl", "stdbuf")
@VERSIONS
class TestOpenSSL:
    async def test_its_client_agrees_with_us(
        self, authority: CertificateAuthority, files: Files, version: str
    ) -> None:
        identity = ["-cert", files.client, "-key", files.client]
        command = s_client(
            files, version, "-servername", "localhost", "-alpn", "imap,h2", *identity
        )
        asking = {"trusted_certificates": authority.certificate, "alpn": ["h2", "imap"]}
        async with served(authority, files, *command, **asking) as (ours, program):
            assert ours.tls_version == version
            assert ours.selected_alpn == "h2"
            assert ours.server_name == "localhost"
            assert ours.peer_certificate == files.issued.certificate
            assert ours.cipher is not None
            await program.shows("ALPN protocol: h2")
            await program.shows(f"Cipher is {ours.cipher}")
            await program.shows(r"Verif(y return code:|ication:) (0 \(ok\)|OK)")
            program.type("a question\n")
            assert await read_exactly(ours, 11) == b"a question\n"
            await soon(ours.sendall(b"an answer\n"))
            await program.shows("^an answer$")
            program.type("Q\n")
            assert await read_to_end(ours) == b""
            await soon(ours.close())

    async def test_its_server_agrees_with_us(
        self, authority: CertificateAuthority, files: Files, version: str
    ) -> None:
        command = s_server(
            files, version, "-rev", "-alpn", "h2", "-Verify", "1", "-CAfile", files.authority
        )
        identity = {"certificates": files.client, "sni": "localhost", "alpn": ["imap", "h2"]}
        async with dialled(authority, files, *command, **identity) as (ours, program):
            assert ours.tls_version == version
            assert ours.selected_alpn == "h2"
            assert ours.peer_certificate is not None
            await program.shows("Verification: OK|Peer certificate: CN")
            await soon(ours.sendall(b"a question\n"))
            assert await read_exactly(ours, 11) == b"noitseuq a\n"
            await soon(ours.close())

    async def test_its_server_refuses_us_without_a_certificate(
        self, authority: CertificateAuthority, files: Files, version: str
    ) -> None:
        command = s_server(files, version, "-rev", "-Verify", "1", "-CAfile", files.authority)
        with pytest.raises(TLSError) as caught:
            async with dialled(authority, files, *command) as (ours, _):
                await soon(ours.recv(1))
        expected = "handshake failure" if version == "TLSv1.2" else "certificate required"
        assert caught.value.alert == expected

    async def test_a_program_that_is_killed_has_not_finished(
        self, authority: CertificateAuthority, files: Files, version: str
    ) -> None:
        async with served(authority, files, *s_client(files, version)) as (ours, program):
            program.type("half a wo")
            program.type("rd\n")
            assert await read_exactly(ours, 12) == b"half a word\n"
            program.child.kill()
            for _ in range(2):
                with pytest.raises((TLSTruncatedError, SocketConnectionLostError)):
                    await soon(ours.recv(1))


@needs("openssl", "stdbuf")
class TestOpenSSLsCommands:
    @pytest.mark.parametrize("command", ["K", "k"])
    async def test_new_keys_from_its_client(
        self, authority: CertificateAuthority, files: Files, command: str
    ) -> None:
        async with served(authority, files, *s_client(files, "TLSv1.3")) as (ours, program):
            await self.update(ours, program, command)

    @pytest.mark.parametrize("command", ["K", "k"])
    async def test_new_keys_from_its_server(
        self, authority: CertificateAuthority, files: Files, command: str
    ) -> None:
        async with dialled(authority, files, *s_server(files, "TLSv1.3")) as (ours, program):
            await self.update(ours, program, command)

    async def update(self, ours: TLSSocket, program: Conversation, command: str) -> None:
        for number in range(3):
            receiving = ours.recv(100)
            program.type(f"{command}\n")
            await program.shows("(?s)" + ".*(KEYUPDATE|SSL_do_handshake -> 1)" * (number + 1))
            assert not receiving.called
            await soon(ours.sendall(b"heard %d\n" % number))
            await program.shows(f"^heard {number}$")
            program.type(f"said {number}\n")
            assert await soon(receiving) == b"said %d\n" % number

    async def test_its_client_may_not_renegotiate(
        self, authority: CertificateAuthority, files: Files
    ) -> None:
        async with served(authority, files, *s_client(files, "TLSv1.2")) as (ours, program):
            await program.shows("Verif")
            program.type("before\n")
            assert await read_exactly(ours, 7) == b"before\n"
            program.type("R\n")
            await program.shows("^RENEGOTIATING")
            with pytest.raises(TLSError) as caught:
                await soon(ours.recv(1))
            assert caught.value.alert == "handshake failure"
            await program.shows("no renegotiation")

    async def test_its_server_may_not_renegotiate(
        self, authority: CertificateAuthority, files: Files
    ) -> None:
        async with dialled(authority, files, *s_server(files, "TLSv1.2")) as (ours, program):
            program.type("before\n")
            assert await read_exactly(ours, 7) == b"before\n"
            program.type("r\n")
            await program.shows("no renegotiation|SSL_do_handshake")
            program.type("after\n")
            with pytest.raises(TLSError):
                assert await soon(ours.recv(100)) == b"after\n"
                await soon(ours.recv(100))

    async def test_its_server_may_not_ask_for_a_certificate_afterwards(
        self, authority: CertificateAuthority, files: Files
    ) -> None:
        command = s_server(files, "TLSv1.3", "-CAfile", files.authority)
        async with dialled(authority, files, *command, certificates=files.client) as (
            ours,
            program,
        ):
            program.type("c\n")
            await program.shows("Failed to initiate request")
            program.type("never mind\n")
            assert await read_exactly(ours, 11) == b"never mind\n"


# GnuTLS


def gnutls_priority(version: str) -> str:
    return f"NORMAL:-VERS-ALL:+VERS-{version.replace('v', '')}"


@needs("gnutls-cli", "gnutls-serv")
@VERSIONS
class TestGnuTLS:
    async def test_its_client_agrees_with_us(
        self, authority: CertificateAuthority, files: Files, version: str
    ) -> None:
        command: list[str | Path] = [
            "gnutls-cli", "--x509cafile", files.authority, "--port", "PORT", "--alpn", "imap",
            "--x509certfile", files.client, "--x509keyfile", files.client, "--inline-commands",
            "--priority", gnutls_priority(version), "127.0.0.1",
        ]  # fmt: skip
        asking = {
            "trusted_certificates": authority.certificate,
            "client_certificate_required": True,
            "alpn": ["h2", "imap"],
        }
        async with served(authority, files, *command, **asking) as (ours, program):
            assert (ours.tls_version, ours.selected_alpn) == (version, "imap")
            assert ours.peer_certificate == files.issued.certificate
            await program.shows("Handshake was completed")
            program.type("a question\n")
            assert await read_exactly(ours, 11) == b"a question\n"
            if version == "TLSv1.3":
                program.type("^rekey^\n")
            program.type("another\n")
            assert await read_exactly(ours, 8) == b"another\n"
            await soon(ours.sendall(b"an answer\n"))
            await program.shows("^an answer$")
            await soon(ours.close())
            assert await in_thread(program.child.wait) == 0

    async def test_its_server_agrees_with_us(
        self, authority: CertificateAuthority, files: Files, version: str
    ) -> None:
        command: list[str | Path] = [
            "gnutls-serv", "--echo", "--port", "PORT", "--x509certfile", files.server,
            "--x509keyfile", files.server, "--x509cafile", files.authority,
            "--require-client-cert", "--alpn", "h2", "--priority", gnutls_priority(version),
        ]  # fmt: skip
        identity = {"certificates": files.client, "sni": "localhost", "alpn": ["imap", "h2"]}
        data = noise(15_000).hex().encode() + b"\n"
        async with dialled(authority, files, *command, **identity) as (ours, _):
            assert (ours.tls_version, ours.selected_alpn) == (version, "h2")
            for _ in range(3):
                _, got = await together(
                    finished(ours.sendall(data)), read_exactly(ours, len(data))
                )
                assert got == data
            await soon(ours.close())


# curl


ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"


async def answer_http(sock: TLSSocket, body: bytes) -> str:
    """Answer one request, and end in order; return the request."""
    request = bytearray()
    while not request.endswith(b"\r\n\r\n"):
        piece = await soon(sock.recv(4096))
        assert piece
        request += piece
    await soon(sock.sendall(ANSWER + body))
    await soon(sock.close())
    return request.decode()


@needs("curl")
@VERSIONS
class TestCurl:
    def command(self, files: Files, version: str, *more: str | Path) -> list[str | Path]:
        number = version.removeprefix("TLSv")
        return [
            "curl", "-sS", "--cacert", files.authority, f"--tlsv{number}", "--tls-max", number,
            "-o", files.client.with_name("body"), *more, "https://localhost:PORT/",
            "--resolve", "localhost:PORT:127.0.0.1",
        ]  # fmt: skip

    async def test_it_gets_all_that_is_sent_and_closed_at_once(
        self, authority: CertificateAuthority, files: Files, version: str
    ) -> None:
        body = noise(200_000)
        command = self.command(files, version, "--cert", files.client)
        asking = {
            "trusted_certificates": authority.certificate,
            "client_certificate_required": True,
            "alpn": "http/1.1",
        }
        async with served(authority, files, *command, **asking) as (ours, program):
            assert (ours.tls_version, ours.selected_alpn) == (version, "http/1.1")
            assert ours.server_name == "localhost"
            assert ours.peer_certificate == files.issued.certificate
            assert (await answer_http(ours, body)).startswith("GET / HTTP/1.1\r\n")
            assert await in_thread(program.child.wait) == 0, program.child.output
            assert files.client.with_name("body").read_bytes() == body

    async def test_it_notices_a_stream_that_was_cut_off(
        self, authority: CertificateAuthority, files: Files, version: str
    ) -> None:
        """So that the test before this one can fail."""
        command = self.command(files, version)
        async with served(authority, files, *command) as (ours, program):
            await soon(ours.recv(4096))
            await soon(ours.sendall(ANSWER + b"half of it"))
            ours.abort()
            assert await in_thread(program.child.wait) == 56, program.child.output


# nginx

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr; events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {server}; ssl_certificate_key {server}; ssl_protocols {version};
        ssl_client_certificate {authority}; ssl_verify_client on;
        location / {{ return 200 "$ssl_protocol $ssl_server_name $ssl_client_s_dn"; }}
    }}
}}
"""


@needs("nginx")
@VERSIONS
async def test_nginx_agrees_with_us(
    authority: CertificateAuthority, files: Files, version: str, tmp_path: Path
) -> None:
    port = free_port()
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        NGINX.format(
            directory=tmp_path,
            port=port,
            server=files.server,
            version=version,
            authority=files.authority,
        )
    )
    command = [find("nginx"), "-e", "stderr", "-p", tmp_path, "-c", configuration]
    with started(*map(str, command), output=tmp_path / "output") as nginx:
        await in_thread(nginx.wait_for_port, port)
        options = authority.client_options(
            sni="localhost", alpn="http/1.1", maximum_version=version
        )
        for identity, said in ((files.client, f"{version} localhost CN=a client"), (None, "400")):
            mine = options if identity is None else options.replace(certificates=identity)
            async with await make_client_tls_socket("127.0.0.1", port, mine) as sock:
                assert (sock.tls_version, sock.selected_alpn) == (version, "http/1.1")
                await soon(
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                )
                assert said in (await read_to_end(sock)).decode()
        with pytest.raises(CertificateVerificationError):
            await soon(
                make_client_tls_socket("127.0.0.1", port, options.replace(sni="other.example"))
            )
