"""
OpenLDAP's server: ldaptor by a string of ours and StartTLS, and ldap3 through the relay.

With a context of ours, ldap3 connects by itself, over TLS and by StartTLS.
"""

from __future__ import annotations

import ssl

import ldap3
from common import (
    AUTHORITY,
    CA_PEM,
    FOLDER,
    OURS,
    SERVER_PEM,
    client_context,
    free_port,
    in_thread,
    on_reactor,
    program,
    relay,
    right,
    tool,
    way,
)
from ldaptor.protocols.ldap.ldapclient import LDAPClient
from ldaptor.protocols.ldap.ldapsyntax import LDAPEntry
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory

from twisted_netsock import client_context_factory

CONFIGURATION = f"""
include /etc/ldap/schema/core.schema
modulepath /usr/lib/ldap
moduleload back_ldif
TLSCertificateFile {SERVER_PEM}
TLSCertificateKeyFile {SERVER_PEM}
pidfile {FOLDER}/slapd.pid
argsfile {FOLDER}/slapd.args
database ldif
suffix dc=example
rootdn cn=me,dc=example
rootpw password
directory {FOLDER}
"""


def by_ldap3(port):
    tls = ldap3.Tls(validate=ssl.CERT_REQUIRED, ca_certs_file=str(CA_PEM))
    server = ldap3.Server("localhost", port, use_ssl=True, tls=tls)
    with ldap3.Connection(server, "cn=me,dc=example", "password") as client:
        client.add("dc=example", ["dcObject", "organization"], {"o": "x"})
        client.add("ou=here,dc=example", "organizationalUnit")
        client.search("dc=example", "(ou=here)")
        return [entry.entry_dn for entry in client.entries]


class OurTLS(ldap3.Tls):
    """What the documentation shows."""

    def wrap_socket(self, connection, do_handshake=False):
        connection.socket = client_context().wrap_socket(
            connection.socket,
            server_hostname=connection.server.host,
            do_handshake_on_connect=do_handshake,
        )


def with_our_context(port, tls_port):
    over_tls = ldap3.Server("localhost", tls_port, use_ssl=True, tls=OurTLS())
    with ldap3.Connection(over_tls, "cn=me,dc=example", "password") as client:
        client.add("dc=example", ["dcObject", "organization"], {"o": "x"})
        right("over TLS", holds=client.socket.version() == "TLSv1.3")
    plain = ldap3.Server("localhost", port, tls=OurTLS())
    with ldap3.Connection(
        plain, "cn=me,dc=example", "password", auto_bind=ldap3.AUTO_BIND_TLS_BEFORE_BIND
    ) as client:
        client.search("dc=example", "(o=x)")
        right("by StartTLS", holds=client.socket.version() == "TLSv1.3")
        return [entry.entry_dn for entry in client.entries]


async def main():
    port, path = free_port(), FOLDER / "slapd.conf"
    path.write_text(CONFIGURATION)
    tls_port = free_port()
    places = f"ldap://127.0.0.1:{port} ldaps://127.0.0.1:{tls_port}"
    server = (tool("slapd"), "-d", "0", "-f", path, "-h", places)
    if way().endswith(OURS):
        with program(port, *server):
            found = await in_thread(with_our_context, port, tls_port)
            right("found", holds=found == ["dc=example"])
        return
    with program(port, *server), relay(port) as front:
        here = ["ou=here,dc=example"]
        right("by ldap3", holds=await in_thread(by_ldap3, front) == here)
        endpoint = clientFromString(reactor, f"netsock:127.0.0.1:{port}")
        client = await endpoint.connect(Factory.forProtocol(LDAPClient))
        await client.startTLS(client_context_factory(AUTHORITY.client_options(), "localhost"))
        await client.bind("cn=me,dc=example", "password")
        found = await LDAPEntry(client, "dc=example").search(filterText="(ou=here)")
        right("by ldaptor", holds=[entry.dn.getText() for entry in found] == here)
        right("TLS", holds=client.transport.getPeerCertificate() is not None)
        client.unbind()


on_reactor(main)
