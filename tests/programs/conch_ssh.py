"""OpenSSH's client runs a command on a server of conch's, through ``netsock connect`` on TLS."""

from __future__ import annotations

import shlex
import sys

from common import FOLDER, client_string, in_thread, listen, on_reactor, right, run, tool
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.conch.avatar import ConchUser
from twisted.conch.checkers import InMemorySSHKeyDB, SSHPublicKeyChecker
from twisted.conch.interfaces import ISession
from twisted.conch.ssh.factory import SSHFactory
from twisted.conch.ssh.keys import Key
from twisted.conch.ssh.session import SSHSession
from twisted.cred.portal import IRealm, Portal
from twisted.internet import reactor
from zope.interface import implementer


def key():
    return Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
    )


@implementer(ISession)
class User(ConchUser):
    def __init__(self):
        super().__init__()
        self.channelLookup[b"session"] = SSHSession

    def __conform__(self, interface):
        return self if interface is ISession else None

    def execCommand(self, protocol, command):
        protocol.write(b"ran " + command + b"\n")
        reactor.callLater(0, self.end, protocol)

    def end(self, protocol):
        protocol.session.conn.sendRequest(protocol.session, b"exit-status", b"\0\0\0\0")
        protocol.loseConnection()

    def getPty(self, term, window, modes):
        """Do nothing."""

    def eofReceived(self):
        """Do nothing."""

    def closed(self):
        """Do nothing."""


@implementer(IRealm)
class Realm:
    def requestAvatar(self, who, mind, *interfaces):
        return interfaces[0], User(), lambda: None


async def main():
    mine, theirs = key(), key()
    path = FOLDER / "key"
    path.write_bytes(mine)
    path.chmod(0o600)
    public = Key.fromString(mine).public()
    factory = SSHFactory()
    factory.portal = Portal(Realm(), [SSHPublicKeyChecker(InMemorySSHKeyDB({b"me": [public]}))])
    factory.privateKeys = factory.publicKeys = {b"ssh-ed25519": Key.fromString(theirs)}
    factory.publicKeys = {b"ssh-ed25519": Key.fromString(theirs).public()}
    port = await listen(factory)
    proxy = shlex.join([sys.executable, "-m", "twisted_netsock", "connect", client_string(port)])
    options = [
        "UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "BatchMode=yes",
        f"IdentityFile={path}", "IdentitiesOnly=yes", "LogLevel=ERROR",
        f"ProxyCommand={proxy}",
    ]  # fmt: skip
    words = [word for option in options for word in ("-o", option)]
    command = (
        tool("ssh"),
        "-F",
        "/dev/null",
        *words,
        "-p",
        str(port),
        "me@127.0.0.1",
        "a",
        "command",
    )
    text = await in_thread(run, *command)
    right(text, holds=text.endswith("ran a command\n"))


on_reactor(main)
