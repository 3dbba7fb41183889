"""An IRC server and client of twisted.words."""

from __future__ import annotations

from common import connect, listen, on_reactor, right
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.words.protocols.irc import IRCClient
from twisted.words.service import InMemoryWordsRealm, IRCFactory


class Client(IRCClient):
    def __init__(self, nickname):
        self.nickname = nickname
        self.password = "password"
        self.signed, self.in_channel, self.heard = Deferred(), Deferred(), Deferred()

    def signedOn(self):
        self.signed.callback(None)

    def joined(self, channel):
        self.in_channel.callback(channel)

    def privmsg(self, user, channel, message):
        if not self.heard.called:
            self.heard.callback(message)


async def main():
    realm = InMemoryWordsRealm("localhost")
    realm.createGroupOnRequest = realm.createUserOnRequest = True
    users = InMemoryUsernamePasswordDatabaseDontUse()
    for name in ("one", "two"):
        users.addUser(name, "password")
    port = await listen(IRCFactory(realm, Portal(realm, [users])))
    people = []
    for name in ("one", "two"):
        client = await connect(Factory.forProtocol(lambda name=name: Client(name)), port)
        people.append(client)
        await client.signed
        client.join("room")
        await client.in_channel
    people[0].msg("#room", "hello")
    right("a line", holds=await people[1].heard == "hello")
    for client in people:
        client.quit()


on_reactor(main)
