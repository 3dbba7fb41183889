"""``netsock probe --starttls``: what is said before TLS begins, to servers good and bad."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import (
    Handler,
    dialogue,
    drain,
    free_port,
    netsock,
    serving,
    tls,
    write_authority,
)
from twisted_netsock.commands._common.outcomes import Outcome

pytestmark = pytest.mark.once

DIALOGUES = {
    "smtp": (
        ("220-mail.example", "220 hello"),
        ("250-mail.example", "250-SIZE 1000", "250 STARTTLS"),
        "220 go ahead",
    ),
    "imap": ("* OK ready", ("* CAPABILITY IMAP4rev1", "a OK begin")),
    "pop3": ("+OK ready", "+OK begin"),
    "ftp": (("220-a", "220 b"), "234 begin"),
    "lmtp": (("220 hello",), ("250-mail.example", "250 STARTTLS"), "220 go ahead"),
    "nntp": ("201 no posting", "382 begin"),
    "sieve": (('"IMPLEMENTATION" "x"', '"STARTTLS"', 'OK "ready"'), "OK"),
}
SAID = {
    "smtp": b"EHLO netsock.invalid\r\nSTARTTLS\r\n",
    "imap": b"a STARTTLS\r\n",
    "pop3": b"STLS\r\n",
    "ftp": b"AUTH TLS\r\n",
    "lmtp": b"LHLO netsock.invalid\r\nSTARTTLS\r\n",
    "nntp": b"STARTTLS\r\n",
    "sieve": b"STARTTLS\r\n",
}

STREAM = b"<?xml version='1.0'?><stream:stream xmlns:stream='x' version='1.0'>"
FEATURES = (
    STREAM + b"<stream:features><starttls xmlns='y'><required/></starttls></stream:features>"
)
ASK = b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
LDAP = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"


def opened(namespace: str) -> bytes:
    return (
        "<?xml version='1.0'?><stream:stream version='1.0' "
        f"xmlns='{namespace}' xmlns:stream='http://etherx.jabber.org/streams' "
        'to="127.0.0.1">'
    ).encode()


def mysql(capabilities: int) -> bytes:
    """Return a greeting of protocol 10."""
    body = b"\x0a8.0.36\0" + b"\1\0\0\0" + b"a" * 8 + b"\0" + capabilities.to_bytes(2, "little")
    return len(body).to_bytes(3, "little") + b"\0" + body + b""


def ldap(code: int) -> bytes:
    """Return an extended response, its lengths in the long form."""
    response = b"\x0a\x01" + bytes([code]) + b"\x04\0\x04\0"
    message = b"\x02\x01\x01\x78\x81" + bytes([len(response)]) + response
    return b"\x30\x82\0" + bytes([len(message)]) + message


# Of each what the server reads, to the byte, and what it says then; the last is followed by TLS.
EXCHANGES = {
    "postgres": [(b"\0\0\0\x08\x04\xd2\x16\x2f", b"S")],
    "mysql": [
        (b"", mysql(0xFFFF)),
        (b"\x20\0\0\1\0\x8a\0\0\0\0\0\1\x21" + bytes(23), b""),
    ],
    "ldap": [(LDAP, ldap(0))],
    "xmpp": [(opened("jabber:client"), FEATURES), (ASK, b"<proceed xmlns='z'/>")],
    "xmpp-server": [
        (opened("jabber:server"), FEATURES),
        (ASK, b"<proceed xmlns='z'></proceed >"),
    ],
}


def probe(protocol: str, handle: Handler, *arguments: object):
    with serving(handle) as port:
        done = netsock(
            "probe", f"127.0.0.1:{port}", "--starttls", protocol, "--json", *map(str, arguments)
        )
    [address] = json.loads(done.output)["addresses"]
    return done.code, address


@pytest.mark.parametrize("protocol", DIALOGUES)
def test_tls_begins_where_the_server_says_so(protocol, tmp_path, authority):
    good = tls(authority.issue("127.0.0.1").pem, tmp_path)
    code, address = probe(
        protocol,
        dialogue(*DIALOGUES[protocol], then=good),
        "--ca",
        write_authority(tmp_path, authority),
    )
    assert (code, address["verified"]) == (0, True)
    assert address["seconds"]["starttls"] > 0


@pytest.mark.parametrize("protocol", DIALOGUES)
def test_nothing_is_said_but_what_the_protocol_has(protocol):
    said: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        for number, lines in enumerate(DIALOGUES[protocol]):
            if number:
                said.append(connection.recv(1000))
            for line in (lines,) if isinstance(lines, str) else lines:
                connection.sendall(line.encode() + b"\r\n")
        assert connection.recv(1) == b"\x16"

    code, _ = probe(protocol, listen)
    assert code == 5
    assert b"".join(said) == SAID[protocol]


def exchange(*steps: tuple[bytes, bytes], then: Handler) -> Handler:
    """Return what reads exactly the first bytes of each step, and says the others."""

    def handle(connection: socket.socket) -> None:
        for expected, said in steps:
            read = b""
            while len(read) < len(expected) and (data := connection.recv(len(expected))):
                read += data
            assert read == expected
            connection.sendall(said)
        then(connection)

    return handle


@pytest.mark.parametrize("protocol", EXCHANGES)
def test_tls_begins_where_a_server_without_lines_says_so(protocol, tmp_path, authority):
    good = tls(authority.issue("127.0.0.1").pem, tmp_path)
    ca = write_authority(tmp_path, authority)
    code, address = probe(protocol, exchange(*EXCHANGES[protocol], then=good), "--ca", ca)
    assert (code, address["verified"]) == (0, True)


@pytest.mark.parametrize("protocol", [*DIALOGUES, *EXCHANGES])
def test_what_is_said_in_plain_text_behind_the_last_word_is_refused(protocol, tmp_path, authority):
    """In one segment with it, as whoever can write to the connection would put it there."""
    good = tls(authority.issue("127.0.0.1").pem, tmp_path)
    if protocol in DIALOGUES:
        *steps, last = DIALOGUES[protocol]
        lines = (last,) if isinstance(last, str) else last
        handle = dialogue(*steps, (*lines, "injected"), then=good)
    else:
        *before, (read, said) = EXCHANGES[protocol]
        handle = exchange(*before, (read, said + b"injected"), then=good)
    code, address = probe(protocol, handle, "--ca", write_authority(tmp_path, authority))
    assert (code, address["verified"]) == (5, False)
    assert address["error"]["type"] in {"SocketPortError", "TLSHandshakeError"}


WITHOUT_LINES = {
    "postgres-no": ("postgres", [(b"", b"N")], "does not offer TLS"),
    "postgres-error": ("postgres", [(b"", b"E")], "said 'E'"),
    "postgres-closed": (
        "postgres",
        [(bytes.fromhex("0000000804d2162f"), b"")],
        "closed the connection before TLS began",
    ),
    "mysql-no": ("mysql", [(b"", mysql(0xF7FF))], "does not offer TLS"),
    "mysql-error": ("mysql", [(b"", b"\x0a\0\0\0\xff\x10\x04Host is")], "Host is"),
    "mysql-endless": ("mysql", [(b"", b"\xff\xff\xff\0")], "a message of 16777215 bytes"),
    "mysql-cut": ("mysql", [(b"", b"\x05\0\0\0\x0a8.0\0")], "said "),
    "ldap-no": ("ldap", [(LDAP, ldap(2))], "resultCode 2"),
    "ldap-another": ("ldap", [(LDAP, b"HTTP/1.1 400")], "said 'HT'"),
    "ldap-endless": ("ldap", [(LDAP, b"\x30\x84\xff\xff\xff\xff")], "4294967295 bytes"),
    "xmpp-no": ("xmpp", [(b"", STREAM + b"<stream:features/>")], "does not offer STARTTLS"),
    "xmpp-error": ("xmpp", [(b"", STREAM + b"<stream:error/></stream:stream>")], "stream:error"),
    "xmpp-failure": (
        "xmpp",
        [(opened("jabber:client"), FEATURES), (ASK, b"<failure xmlns='x'/>")],
        "<failure",
    ),
    "xmpp-endless": ("xmpp", [(b"", STREAM + b"<a>" * 10000)], "more than 16384 bytes"),
    "sieve-no": ("sieve", [(b"", b'"SIEVE" "x"\r\nOK\r\n')], "does not offer STARTTLS"),
    "nntp-no": ("nntp", [(b"", b"200 x\r\n580 no\r\n")], "580 no"),
}


@pytest.mark.parametrize(("protocol", "steps", "said"), WITHOUT_LINES.values(), ids=WITHOUT_LINES)
def test_a_refusal_without_lines_is_distinguished(protocol, steps, said):
    code, address = probe(protocol, exchange(*steps, then=lambda _: None))
    assert (code, address["outcome"], address["stage"]) == (5, "tls", "starttls")
    assert said in address["error"]["message"]


REFUSALS = {
    "smtp-greeting": ("smtp", ["554 go away"], "554 go away"),
    "smtp-without": ("smtp", ["220 hello", ("250-x", "250 SIZE")], "does not offer STARTTLS"),
    "smtp-refused": ("smtp", ["220 x", ("250-x", "250 STARTTLS"), "454 not now"], "454 not now"),
    "imap-greeting": ("imap", ["* BYE"], "* BYE"),
    "imap-refused": ("imap", ["* OK", "a NO never"], "a NO never"),
    "pop3-refused": ("pop3", ["+OK", "-ERR never"], "-ERR never"),
    "ftp-refused": ("ftp", ["220 x", "502 never"], "502 never"),
    "another": ("smtp", ["SSH-2.0-OpenSSH"], "SSH-2.0-OpenSSH"),
    "escape": ("ftp", ["220 x", "502 \x1b[2J"], "\\x1b[2J"),
    "closed": ("pop3", [()], "closed the connection before TLS began"),
}


@pytest.mark.parametrize(("protocol", "steps", "said"), REFUSALS.values(), ids=REFUSALS)
def test_a_server_that_does_not_want_tls_is_distinguished(protocol, steps, said):
    code, address = probe(protocol, dialogue(*steps, then=lambda _: None))
    assert (code, address["outcome"], address["stage"]) == (5, "tls", "starttls")
    assert said in address["error"]["message"]
    assert (address["reached"], address["verified"], address["tls"]) == (True, False, None)


def endless_lines(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"220-more\r\n" * 100)


def endless_line(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 10000)


@pytest.mark.parametrize("handle", [endless_lines, endless_line, drain])
def test_a_server_that_goes_on_or_says_nothing_is_left_in_bounded_time(handle):
    code, address = probe("smtp", handle, "--timeout", "2s")
    assert (code, address["stage"]) == (5, "starttls")


def test_what_comes_before_tls_is_not_taken_for_a_part_of_it(tmp_path, authority):
    """Whoever can write to the connection may have put it there."""
    good = tls(authority.issue("127.0.0.1").pem, tmp_path)
    steps = ("+OK ready", ("+OK begin", "+OK injected"))
    code, address = probe(
        "pop3", dialogue(*steps, then=good), "--ca", write_authority(tmp_path, authority)
    )
    assert code == 5
    assert address["verified"] is False
    assert address["error"]["type"] in {"SocketPortError", "TLSHandshakeError"}


def test_each_protocol_has_its_port():
    from twisted_netsock.commands.probe.options import ProbeOptions

    found = {}
    for protocol in (None, *DIALOGUES, *EXCHANGES):
        options = ProbeOptions()
        extra = [] if protocol is None else ["--starttls", protocol]
        options.parseOptions(["localhost", *extra])
        found[protocol] = options.requests[0].target.service
    assert found == {
        None: 443, "smtp": 25, "lmtp": 24, "imap": 143, "pop3": 110, "ftp": 21, "nntp": 119,
        "sieve": 4190, "ldap": 389, "xmpp": 5222, "xmpp-server": 5269, "postgres": 5432,
        "mysql": 3306,
    }  # fmt: skip


def postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    beside = shutil.which("initdb")
    return found[-1].parent if found else Path(beside).parent if beside else None


@pytest.mark.skipif(postgres_binaries() is None, reason="install PostgreSQL, postgresql on Debian")
def test_postgresql_is_probed(authority, tmp_path):
    binaries = postgres_binaries()
    assert binaries is not None
    # It refuses to run as root, and to read a key that others might.
    user: dict[str, Any] = {} if os.getuid() else {"user": "postgres", "group": "postgres"}
    port = free_port()
    issued = authority.issue("localhost")
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        if user:
            shutil.chown(data, **user)
        how: dict[str, Any] = {"cwd": data, "stdout": subprocess.DEVNULL, **user}
        subprocess.run([binaries / "initdb", "-D", data, "-A", "trust"], check=True, **how)
        for file in ("server.crt", "server.key"):
            path = data / file
            path.write_bytes(issued.pem)
            path.chmod(0o600)
            if user:
                shutil.chown(path, **user)
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-p", str(port), "-k", data, "-c", "ssl=on"],
            stderr=subprocess.DEVNULL,
            **how,
        )
        try:
            ca = write_authority(tmp_path, authority)
            arguments = ("--starttls", "postgres", "--ca", ca, "--json")
            for _ in range(200):
                done = netsock("probe", f"localhost:{port}", "-4", *arguments)
                if done.code != Outcome.UNREACHABLE:
                    break
                time.sleep(0.05)
        finally:
            server.terminate()
            server.wait()
    assert done.code == 0, done.output
