"""An LDAP server of ldaptor's, and its client: a search."""

from __future__ import annotations

from common import connect, listen, on_reactor, right
from ldaptor.inmemory import ReadOnlyInMemoryLDAPEntry
from ldaptor.interfaces import IConnectedLDAPEntry
from ldaptor.protocols.ldap.ldapclient import LDAPClient
from ldaptor.protocols.ldap.ldapserver import LDAPServer
from ldaptor.protocols.ldap.ldapsyntax import LDAPEntry
from twisted.internet.protocol import Factory, ServerFactory
from twisted.python.components import registerAdapter


class Directory(ServerFactory):
    protocol = LDAPServer

    def __init__(self, root):
        self.root = root


async def main():
    root = ReadOnlyInMemoryLDAPEntry("dc=example,dc=com", {"objectClass": ["dcObject"]})
    root.addChild("cn=somebody", {"objectClass": ["person"], "cn": ["somebody"], "sn": ["x"]})
    registerAdapter(lambda factory: factory.root, Directory, IConnectedLDAPEntry)
    port = await listen(Directory(root))
    client = await connect(Factory.forProtocol(LDAPClient), port)
    await client.bind()
    found = await LDAPEntry(client, "dc=example,dc=com").search(filterText="(cn=somebody)")
    right(
        "one entry",
        holds=[entry.dn.getText() for entry in found] == ["cn=somebody,dc=example,dc=com"],
    )
    client.unbind()


on_reactor(main)
