"""``netsock probe`` and ``netsock connect`` at a terminal."""

from __future__ import annotations

import socket
import threading

from tests.support.loopback import LONGEST
from tests.support.processes import in_terminal, mute_after, needs, serving, tls, write_authority

pytestmark = needs("setsid")


# Probe


def test_colours_are_for_terminals_that_want_them(tmp_path, authority):
    ca = write_authority(tmp_path, authority)
    good = tls(authority.issue("localhost").pem, tmp_path)
    with serving(good) as port:
        arguments = ("probe", f"localhost:{port}", "-4", "--ca", ca)
        with in_terminal(*arguments) as coloured:
            assert coloured.ends() == 0
        with in_terminal(*arguments, env={"NO_COLOR": "1"}) as plain:
            assert plain.ends() == 0
    assert "\x1b[32;1mverified\x1b[0m" in coloured.shown
    assert "\x1b" not in plain.shown
    assert "verified: 1 of 1" in plain.shown


def test_ctrl_c_ends_a_probe_with_130():
    arrived = threading.Event()
    with (
        serving(mute_after(arrived)) as port,
        in_terminal("probe", f"127.0.0.1:{port}") as terminal,
    ):
        assert arrived.wait(LONGEST)
        terminal.type("\x03")
        assert terminal.ends() == 130
    assert "Traceback" not in terminal.shown


# Connect


def talk(connection: socket.socket) -> None:
    with connection.makefile("rb") as reader:
        for line in reader:
            if line == b"quit\n":
                return
            connection.sendall(b"you said " + line)
    connection.sendall(b"goodbye\n")


def test_lines_typed_at_a_terminal_are_sent_and_answered():
    with serving(talk) as port, in_terminal("connect", f"127.0.0.1:{port}") as terminal:
        terminal.sees("connected to 127.0.0.1, port")
        terminal.type("one\n")
        terminal.sees("you said one")
        terminal.type("two\n")
        terminal.sees("you said two")
        # Ctrl-D at the beginning of a line is the end of the input.
        terminal.type("\x04")
        terminal.sees("goodbye")
        assert terminal.ends() == 0


def test_at_a_terminal_the_peers_end_is_the_end():
    """Nobody wants to type on at a connection that has ended."""
    arguments = ("connect", "--linger", "1h")
    with serving(talk) as port, in_terminal(*arguments, f"127.0.0.1:{port}") as terminal:
        terminal.sees("connected")
        terminal.type("quit\n")
        assert terminal.ends() == 0


def test_ctrl_c_ends_a_connection_with_130():
    with serving(talk) as port, in_terminal("connect", f"127.0.0.1:{port}") as terminal:
        terminal.sees("connected")
        terminal.type("half a line\x03")
        assert terminal.ends() == 130
    assert "Traceback" not in terminal.shown
