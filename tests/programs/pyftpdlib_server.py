"""pyftpdlib, on its own TLS: ftplib with a context of ours, data connections protected too."""

from __future__ import annotations

import ftplib
import io
import sys
from textwrap import dedent

from common import (
    FOLDER,
    SERVER_PEM,
    client_context,
    free_port,
    in_thread,
    on_reactor,
    program,
    right,
)

SERVER = """
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import TLS_FTPHandler
from pyftpdlib.servers import FTPServer

TLS_FTPHandler.authorizer = DummyAuthorizer()
TLS_FTPHandler.authorizer.add_user("me", "password", {folder!r}, perm="elradfmw")
TLS_FTPHandler.certfile = {pem!r}
TLS_FTPHandler.tls_control_required = TLS_FTPHandler.tls_data_required = True
FTPServer(("127.0.0.1", {port}), TLS_FTPHandler).serve_forever()
"""


def transfer(port):
    data = bytes(range(256)) * 4000
    with ftplib.FTP_TLS(context=client_context(), timeout=20) as client:
        # ftplib verifies the name that it has connected to.
        client.connect("localhost", port)
        client.login("me", "password")
        client.prot_p()
        client.storbinary("STOR file", io.BytesIO(data))
        got = io.BytesIO()
        client.retrbinary("RETR file", got.write)
        names = client.nlst()
        client.quit()
    return names, got.getvalue() == data


async def main():
    port, folder = free_port(), FOLDER / "files"
    folder.mkdir()
    script = FOLDER / "server.py"
    script.write_text(dedent(SERVER.format(folder=str(folder), pem=str(SERVER_PEM), port=port)))
    with program(port, sys.executable, script):
        right("the same", holds=await in_thread(transfer, port) == (["file"], True))


on_reactor(main)
