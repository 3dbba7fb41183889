"""``netsock probe --starttls``: what is said before TLS begins, to servers good and bad."""

from __future__ import annotations

import json
import socket

import pytest

from tests.support.processes import (
    Handler,
    dialogue,
    drain,
    netsock,
    serving,
    tls,
    write_authority,
)

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
}
SAID = {
    "smtp": b"EHLO netsock.invalid\r\nSTARTTLS\r\n",
    "imap": b"a STARTTLS\r\n",
    "pop3": b"STLS\r\n",
    "ftp": b"AUTH TLS\r\n",
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
def test_a_server_that_does_not_want_tls_is_told_apart(protocol, steps, said):
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


def test_each_protocol_has_its_port(monkeypatch):
    from twisted_netsock.commands.probe.options import ProbeOptions

    found = {}
    for protocol in (None, *DIALOGUES):
        options = ProbeOptions()
        extra = [] if protocol is None else ["--starttls", protocol]
        options.parseOptions(["localhost", *extra])
        found[protocol] = options.request.target.service
    assert found == {None: 443, "smtp": 25, "imap": 143, "pop3": 110, "ftp": 21}
