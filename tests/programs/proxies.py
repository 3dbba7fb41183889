"""Proxies of Debian's, one for each way."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager

from common import FOLDER, free_port, program, tool, way


@contextmanager
def proxy() -> Iterator[str]:
    """Run a proxy for the script's way, and return its URL."""
    port = free_port()
    if way() == "microsocks":
        words = (tool("microsocks"), "-i", "127.0.0.1", "-p", port, "-u", "me", "-P", "secret")
        url = f"socks5://me:secret@127.0.0.1:{port}"
    elif way() == "Dante":
        settings, user = FOLDER / "dante.conf", getpass.getuser()
        settings.write_text(
            f"logoutput: stderr\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\n"
            f"clientmethod: none\nsocksmethod: none\n"
            f"user.privileged: {user}\nuser.unprivileged: {user}\n"
            "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
            "socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
        )
        words, url = (tool("danted"), "-f", settings), f"socks5://127.0.0.1:{port}"
    else:
        settings = FOLDER / "tinyproxy.conf"
        settings.write_text(f"Port {port}\nListen 127.0.0.1\nBasicAuth me secret\n")
        words = (tool("tinyproxy"), "-d", "-c", settings)
        url = f"http://me:secret@127.0.0.1:{port}"
    with program(port, *words):
        yield url
