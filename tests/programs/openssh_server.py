"""OpenSSH's server behind the relay: its client through ``netsock connect``, and paramiko."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from pathlib import Path

import paramiko
from common import (
    FOLDER,
    client_socket,
    client_string,
    free_port,
    in_thread,
    on_reactor,
    program,
    relay,
    right,
    run,
    tool,
)

ME = getpass.getuser()


def by_paramiko(port, key):
    with client_socket(port) as sock, paramiko.Transport(sock) as transport:
        transport.connect(username=ME, pkey=paramiko.Ed25519Key.from_private_key_file(str(key)))
        channel = transport.open_session()
        channel.exec_command("head -c 300000 /dev/zero")
        count = 0
        while data := channel.recv(65536):
            count += len(data)
        return count


def prepare():
    """Make the folder that the server of root asks for."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)


async def main():
    port, mine, theirs = free_port(), FOLDER / "mine", FOLDER / "theirs"
    for key in (mine, theirs):
        run(tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key)
    prepare()
    server = (
        tool("sshd"), "-D", "-e", "-f", "/dev/null", "-p", port, "-h", theirs,
        "-o", "ListenAddress=127.0.0.1", "-o", f"AuthorizedKeysFile={mine}.pub",
        "-o", "StrictModes=no", "-o", "PidFile=none", "-o", "UsePAM=no",
        "-o", "PermitRootLogin=prohibit-password",
    )  # fmt: skip
    with program(port, *server), relay(port) as front:
        proxy = [sys.executable, "-m", "twisted_netsock", "connect", client_string(front)]
        command = (
            tool("ssh"), "-F", "/dev/null", "-i", mine, "-o", "UserKnownHostsFile=/dev/null",
            "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
            "-o", f"ProxyCommand={shlex.join(proxy)}", f"{ME}@127.0.0.1", "echo ran",
        )  # fmt: skip
        right("by ssh", holds=(await in_thread(run, *command)).endswith("ran\n"))
        right("by paramiko", holds=await in_thread(by_paramiko, front, mine) == 300_000)


on_reactor(main)
