"""Name look-up: what is answered at once, by whom, and what the threads do."""

from __future__ import annotations

import socket
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    AI_CANONNAME,
    AI_NUMERICHOST,
    AI_PASSIVE,
    EAI_FAIL,
    EAI_NONAME,
    EAI_SERVICE,
    SOCK_DGRAM,
    SOCK_STREAM,
)
from types import SimpleNamespace

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.testing import MemoryReactor

from tests.support.clocks import the_reactor
from twisted_netsock import HostNotFoundError
from twisted_netsock._hostnames import numeric_service
from twisted_netsock._net.resolver import Hints, look_up, look_up_system
from twisted_netsock.testing import ScriptedResolver

BOTH = pytest.mark.parametrize("find", [look_up, look_up_system])


def reactor_with(name_resolver):
    """Return what `look_up` needs of a reactor where *name_resolver* is installed."""
    real = the_reactor()
    return SimpleNamespace(nameResolver=name_resolver, callFromThread=real.callFromThread)


def addresses(infos):
    return [tuple(info.address) for info in infos]


def result_of(deferred):
    """Return what *deferred* has fired with already."""
    results = []
    deferred.addCallback(results.append)
    assert results, "the look-up waits"
    return results[0]


# What is numeric


@BOTH
@pytest.mark.parametrize(
    ("node", "service", "expected"),
    [
        ("127.0.0.1", 80, ("127.0.0.1", 80)),
        ("127.0.0.1", "80", ("127.0.0.1", 80)),
        ("127.0.0.1", None, ("127.0.0.1", 0)),
        ("::1", 65535, ("::1", 65535, 0, 0)),
        ("fe80::1%1", 80, ("fe80::1", 80, 0, 1)),
    ],
)
def test_a_numeric_node_and_service_are_answered_at_once(find, node, service, expected):
    (info,) = result_of(find(MemoryReactor(), node, service))
    assert tuple(info.address) == expected
    assert info.family == (AF_INET6 if ":" in node else AF_INET)
    assert info.socket_type == SOCK_STREAM


@BOTH
def test_the_kind_of_socket_is_the_one_asked_for(find):
    (info,) = result_of(find(MemoryReactor(), "127.0.0.1", 53, Hints(kind=SOCK_DGRAM)))
    assert (info.socket_type, info.protocol) == (SOCK_DGRAM, socket.IPPROTO_UDP)


def test_kind_0_gives_every_kind_of_socket():
    infos = result_of(look_up_system(MemoryReactor(), "127.0.0.1", 80, Hints(kind=0)))
    assert {SOCK_STREAM, SOCK_DGRAM} <= {info.socket_type for info in infos}


@BOTH
@pytest.mark.parametrize(
    ("flags", "family", "hosts"),
    [
        (AI_PASSIVE, AF_INET, {"0.0.0.0"}),
        (AI_PASSIVE, AF_INET6, {"::"}),
        (0, AF_INET, {"127.0.0.1"}),
        (0, AF_UNSPEC, {"127.0.0.1", "::1"}),
    ],
)
def test_no_node_is_any_address_with_ai_passive_else_loopback(find, flags, family, hosts):
    infos = result_of(find(MemoryReactor(), None, 80, Hints(family, flags=flags)))
    assert {info.address.host for info in infos} == hosts
    assert {info.flags for info in infos} == {flags}


@BOTH
@pytest.mark.parametrize(("node", "service"), [("::1", 80), ("::1", "80"), ("::1", None)])
async def test_a_numeric_node_of_another_family_is_not_found(find, node, service):
    with pytest.raises(HostNotFoundError) as caught:
        await find(the_reactor(), node, service, Hints(AF_INET))
    assert (caught.value.node, caught.value.service) == (node, service)
    assert caught.value.errno < 0


@pytest.mark.parametrize(
    ("service", "port"), [(None, 0), (0, 0), ("0", 0), (80, 80), ("080", 80), ("65535", 65535)]
)
def test_a_numeric_service_is_a_port(service, port):
    assert numeric_service(service) == port


@pytest.mark.parametrize("service", ["http", "HTTP", "iso-tsap", "9pfs", "z39.50", "whois++"])
def test_text_with_a_letter_is_the_name_of_a_service(service):
    assert numeric_service(service) is None


@pytest.mark.parametrize(
    "service",
    ["", " ", "*", "-1", "+1", "1.5", " 80", "80 ", "\t80", "80\n", "0 80", "- 1", "http ", "a\0b",
     "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT EIGHT}", "\N{FULLWIDTH LATIN SMALL LETTER H}"],
)  # fmt: skip
def test_what_the_c_library_would_read_as_a_port_is_none(service):
    with pytest.raises(ValueError, match="service"):
        numeric_service(service)


# Arguments that are wrong


@BOTH
@pytest.mark.parametrize(
    ("node", "service", "error", "named"),
    [
        (b"localhost", 80, TypeError, "node"),
        (127, 80, TypeError, "node"),
        ("localhost", 80.0, TypeError, "service"),
        ("localhost", b"http", TypeError, "service"),
        ("localhost", True, TypeError, "service"),
        ("localhost", -1, ValueError, "service"),
        ("localhost", 65536, ValueError, "service"),
        ("localhost", "65536", ValueError, "service"),
        ("localhost", "", ValueError, "service"),
        ("localhost", "ht\0tp", ValueError, "service"),
        ("localhost", " 80", ValueError, "service"),
        ("localhost", "+80", ValueError, "service"),
        ("", 80, ValueError, "node"),
        ("*", 80, ValueError, "node"),
        ("127.1", 80, ValueError, "node"),
        ("local\0host", 80, ValueError, "node"),
        ("\N{SNOWMAN}..\N{SNOWMAN}", 80, ValueError, "host name"),
    ],
)
@pytest.mark.parametrize("application_decides", [False, True])
def test_wrong_arguments_are_refused_at_once(
    find, node, service, error, named, application_decides
):
    resolver_there = ScriptedResolver({}, delay=None) if application_decides else None
    with pytest.raises(error, match=named):
        find(reactor_with(resolver_there), node, service)


# What the system answers


@BOTH
async def test_a_name_is_looked_up(find):
    infos = await find(the_reactor(), "localhost", 80)
    assert {info.address.host for info in infos} <= {"127.0.0.1", "::1"}
    assert {info.address.port for info in infos} == {80}


@BOTH
async def test_a_service_is_looked_up(find):
    infos = await find(the_reactor(), "127.0.0.1", "https")
    assert addresses(infos) == [("127.0.0.1", 443)]


@BOTH
async def test_the_canonical_name_comes_with_ai_canonname_only(find):
    (named, *_) = await find(the_reactor(), "localhost", 80, Hints(flags=AI_CANONNAME))
    (unnamed, *_) = await find(the_reactor(), "localhost", 80)
    assert (named.canonname, unnamed.canonname) == ("localhost", "")


@BOTH
@pytest.mark.parametrize(
    ("node", "service", "flags", "code"),
    [
        ("localhost", 80, AI_NUMERICHOST, EAI_NONAME),
        ("localhost", "no-such-service", 0, EAI_SERVICE),
        ("a" * 70 + ".invalid", 80, 0, EAI_FAIL),
    ],
)
async def test_what_is_not_found_is_reported_with_node_service_and_code(
    find, node, service, flags, code
):
    with pytest.raises(HostNotFoundError) as caught:
        await find(the_reactor(), node, service, Hints(flags=flags))
    error = caught.value
    assert (error.node, error.service, error.errno) == (node, service, code)
    assert isinstance(error, socket.gaierror)


# A resolver of the application's


async def test_a_resolver_that_the_application_installed_is_asked():
    scripted = ScriptedResolver({"name.invalid": ["127.0.0.7", "::1"]})
    before = scripted.install()
    try:
        infos = await look_up(the_reactor(), "name.invalid", 80)
    finally:
        the_reactor().installNameResolver(before)
    assert scripted.asked == ["name.invalid"]
    assert addresses(infos) == [("127.0.0.7", 80), ("::1", 80, 0, 0)]
    assert [info.family for info in infos] == [AF_INET, AF_INET6]


@pytest.mark.parametrize(
    ("family", "hosts"),
    [
        (AF_UNSPEC, ["127.0.0.7", "::1"]),
        (AF_INET, ["127.0.0.7"]),
        (AF_INET6, ["::1"]),
    ],
)
async def test_it_is_asked_for_the_family_alone(family, hosts):
    reactor = reactor_with(ScriptedResolver({"name.invalid": ["127.0.0.7", "::1"]}))
    infos = await look_up(reactor, "name.invalid", "80", Hints(family))
    assert [info.address.host for info in infos] == hosts
    assert [info.address.port for info in infos] == [80] * len(hosts)


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_DGRAM, 0])
async def test_its_addresses_are_of_the_kind_that_was_asked_for(kind):
    reactor = reactor_with(ScriptedResolver({"name.invalid": ["127.0.0.7"]}))
    looked_up = look_up(reactor, "name.invalid", 53, Hints(kind=kind))
    (info,) = await looked_up.addTimeout(2, the_reactor())
    assert info.socket_type == kind


@pytest.mark.parametrize("service", [80, "80", None])
async def test_a_name_that_it_does_not_know_is_not_found(service):
    reactor = reactor_with(ScriptedResolver({}))
    with pytest.raises(HostNotFoundError) as caught:
        await look_up(reactor, "name.invalid", service)
    assert (caught.value.node, caught.value.service) == ("name.invalid", service)


@pytest.mark.parametrize(
    ("node", "service", "flags"),
    [
        ("127.0.0.1", 80, 0),
        ("::1", "80", 0),
        (None, 80, AI_PASSIVE),
        ("localhost", "http", 0),
        ("localhost", 80, AI_NUMERICHOST),
    ],
)
async def test_it_is_never_asked_about_numbers_and_services(node, service, flags):
    scripted = ScriptedResolver({}, delay=None)
    try:
        await look_up(reactor_with(scripted), node, service, Hints(flags=flags))
    except HostNotFoundError:
        assert flags == AI_NUMERICHOST
    assert scripted.asked == []


async def test_look_up_system_never_asks_it():
    scripted = ScriptedResolver({"localhost": ["127.0.0.7"]})
    infos = await look_up_system(reactor_with(scripted), "localhost", 80)
    assert "127.0.0.7" not in [info.address.host for info in infos]
    assert scripted.asked == []


async def test_cancelling_cancels_its_resolution():
    scripted = ScriptedResolver({"name.invalid": ["127.0.0.7"]}, delay=100.0)
    looked_up = look_up(reactor_with(scripted), "name.invalid", 80)
    looked_up.cancel()
    with pytest.raises(CancelledError):
        await looked_up
    # The clean fixture sees that the answer is not on its way any more.
    assert scripted._resolutions[0].cancelled


class StubbornResolver:
    """A resolver whose resolutions cannot be cancelled, as Twisted's own wrappers'."""

    def resolveHostName(self, receiver, name, *rest, **more):
        self.receiver = receiver
        receiver.resolutionBegan(self)
        return self

    def cancel(self):
        raise NotImplementedError


async def test_an_answer_after_cancelling_is_dropped():
    stubborn = StubbornResolver()
    looked_up: Deferred = look_up(reactor_with(stubborn), "name.invalid", 80)
    results = []
    looked_up.addBoth(results.append)
    looked_up.cancel()
    stubborn.receiver.resolutionComplete()
    assert [type(result.value) for result in results] == [CancelledError]


class EagerResolver(StubbornResolver):
    """A resolver whose resolutions are complete when they are cancelled, without an answer."""

    def cancel(self):
        self.receiver.resolutionComplete()


async def test_a_resolution_that_cancelling_completes_was_cancelled():
    looked_up: Deferred = look_up(reactor_with(EagerResolver()), "name.invalid", 80)
    looked_up.cancel()
    with pytest.raises(CancelledError):
        await looked_up
