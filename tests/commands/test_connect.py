"""What ``netsock connect`` makes of its arguments, and of the ends of lines."""

from __future__ import annotations

import pytest

from twisted_netsock.__main__ import main
from twisted_netsock.commands.connect import _CRLF, _is_host_and_port


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one ENDPOINT"),
        (["tpc:localhost:1"], "Unknown endpoint type: 'tpc'"),
        (["netsock:localhost:1:nodee=x"], "did you mean node?"),
        (["localhost", "--tls"], "the port is missing"),
        (["localhost:1", "--ca", "ca.pem"], "--ca goes with --tls"),
        (["localhost:1", "--no-sni"], "--no-sni goes with --tls"),
        (["localhost:1", "--strict"], "--strict goes with --tls"),
        (["localhost:1", "--idle", "5"], "--idle='5' must be a number with a unit"),
        (["localhost:1", "--idel", "5s"], "did you mean --idle?"),
        (["localhost:1", "localhost:2"], "give one ENDPOINT"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, said, capfd):
    assert main(["connect", *arguments]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("netsock: ")
    assert said in line


@pytest.mark.parametrize("text", ["example.com:80", "[::1]:80", "localhost:http", "example.com"])
def test_a_host_and_a_port_are_recognized(text):
    assert _is_host_and_port(text)


@pytest.mark.parametrize(
    "text", ["tcp:80", "unix:path", "unix:/run/x", "netsock:localhost:80", "tcp:port=80", "TCP:1"]
)
def test_endpoint_strings_are_recognized(text):
    assert not _is_host_and_port(text)


@pytest.mark.parametrize(
    ("pieces", "sent"),
    [
        ([b"a\nb\n"], b"a\r\nb\r\n"),
        ([b"a\r\nb\n"], b"a\r\nb\r\n"),
        ([b"a\r", b"\nb"], b"a\r\nb"),
        ([b"a\r", b"b\n", b"\n"], b"a\rb\r\n\r\n"),
        ([b"\n"], b"\r\n"),
    ],
)
def test_the_ends_of_lines_are_sent_as_wanted_wherever_the_pieces_end(pieces, sent):
    edit = _CRLF()
    assert b"".join(map(edit, pieces)) == sent
