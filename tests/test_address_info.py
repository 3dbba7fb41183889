"""Address information as values, and its order."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise
from socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AF_UNSPEC,
    AI_CANONNAME,
    AI_NUMERICHOST,
    AI_PASSIVE,
    IPPROTO_TCP,
    IPPROTO_UDP,
    SOCK_DGRAM,
    SOCK_RAW,
    SOCK_STREAM,
    AddressFamily,
    SocketKind,
)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.forms import NOTHING, UNIX, UNNAMED, V4, V4_TUPLES, V6
from twisted_netsock.addresses import (
    AddressInfo,
    SocketAddress,
    address_info_list,
    interleave_families,
    is_address_info,
    is_sockaddr,
    make_address_info,
)

pytestmark = pytest.mark.once


# AddressInfo


def test_make_address_info_makes_a_record_of_hints():
    info = make_address_info(AF_INET6, SOCK_DGRAM, IPPROTO_UDP, AI_PASSIVE | AI_CANONNAME)
    assert is_address_info(info)
    assert (info.family, info.socket_type, info.protocol) == (AF_INET6, SOCK_DGRAM, IPPROTO_UDP)
    assert info.flags == AI_PASSIVE | AI_CANONNAME
    assert (info.address, info.address_length, info.canonname, info.next) == (None, 0, "", None)


def test_the_hints_of_make_address_info_are_none_by_default():
    assert make_address_info(AF_INET, SOCK_STREAM, IPPROTO_TCP).flags == 0


@pytest.mark.parametrize("family", [AF_UNSPEC, AF_INET, AF_INET6, AF_UNIX])
@pytest.mark.parametrize("kind", [0, SOCK_STREAM, SOCK_DGRAM, SOCK_RAW])
def test_plain_numbers_become_the_standard_librarys_names(family, kind):
    info = make_address_info(int(family), int(kind), 0)
    assert info.family is family
    assert isinstance(info.family, AddressFamily)
    assert info.socket_type == kind
    assert isinstance(info.socket_type, SocketKind) == bool(kind)
    assert info == make_address_info(family, kind, 0)


@pytest.mark.parametrize("numbers", [(9999, SOCK_STREAM, 0), (AF_INET, 99, 0)])
def test_a_number_that_means_nothing_is_a_value_error_that_shows_it(numbers):
    with pytest.raises(ValueError, match="99"):
        make_address_info(*numbers)


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (V4, 16),
        (V6, 28),
        (SocketAddress(("/x",)), 2 + 2 + 1),
        (SocketAddress(("/ö",)), 2 + 3 + 1),
        (SocketAddress(("\0x",)), 2 + 2),
        (UNNAMED, 2),
        (NOTHING, 0),
        (None, 0),
    ],
)
def test_the_address_length_is_that_of_the_c_structure(address, length):
    assert AddressInfo(AF_UNSPEC, SOCK_STREAM, 0, address).address_length == length


def chain(*addresses: SocketAddress) -> AddressInfo:
    head = address_info_list([AddressInfo(a.family, SOCK_STREAM, 0, a) for a in addresses])
    assert head is not None
    return head


def test_an_address_info_is_followed_by_the_next():
    head = chain(V4, V6, UNIX)
    assert head.address == V4
    assert head.next.address == V6
    assert head.next.next.address == UNIX
    assert head.next.next.next is None


def test_an_address_info_iterates_over_itself_and_its_successors():
    head = chain(V4, V6, UNIX)
    assert [info.address for info in head] == [V4, V6, UNIX]
    assert [info.address for info in head.next] == [V6, UNIX]
    assert next(iter(head)) is head
    hints = make_address_info(AF_INET, SOCK_STREAM, 0)
    assert list(hints) == [hints]


def test_an_empty_list_has_no_head():
    assert address_info_list([]) is None


def test_chaining_leaves_the_records_alone_and_drops_old_successors():
    old = chain(V4, V6)
    assert [info.address for info in address_info_list([old])] == [V4]
    assert [info.address for info in old] == [V4, V6]


@given(hosts=st.lists(V4_TUPLES, min_size=1, max_size=20))
@settings(deadline=None)
def test_a_list_keeps_its_order(hosts):
    head = chain(*map(SocketAddress, hosts))
    assert [info.address for info in head] == hosts


def test_an_address_info_compares_by_value_and_without_its_successors():
    assert chain(V4, V6) == chain(V4)
    assert hash(chain(V4, V6)) == hash(chain(V4))
    assert chain(V4) != chain(V6)


def test_an_address_info_cannot_be_changed():
    with pytest.raises(AttributeError):
        chain(V4).family = AF_INET6


def test_an_address_info_survives_pickling():
    twin = pickle.loads(pickle.dumps(chain(V4, V6)))
    assert [info.address for info in twin] == [V4, V6]
    assert twin == chain(V4)


def test_the_repr_of_an_address_info_shows_where_to_and_how_many_follow():
    assert "192.0.2.1:80" in repr(chain(V4))
    assert "AF_INET" in repr(chain(V4))
    assert "more" not in repr(chain(V4))
    assert "2 more" in repr(chain(V4, V6, UNIX))


@pytest.mark.parametrize(
    ("o", "address_info", "sockaddr"),
    [
        (make_address_info(AF_INET, SOCK_STREAM, 0, AI_NUMERICHOST), True, False),
        (V4, False, True),
        (tuple(V4), False, False),
        (None, False, False),
        ("127.0.0.1", False, False),
        (SocketAddress, False, False),
    ],
)
def test_the_predicates_tell_what_is_what(o, address_info, sockaddr):
    assert is_address_info(o) is address_info
    assert is_sockaddr(o) is sockaddr


# interleave_families


def infos(letters: str) -> list[AddressInfo]:
    families = {"4": AF_INET, "6": AF_INET6, "u": AF_UNIX}
    return [AddressInfo(families[each], SOCK_STREAM, n) for n, each in enumerate(letters)]


def numbers(ordered: list[AddressInfo]) -> list[int]:
    return [info.protocol for info in ordered]


@pytest.mark.parametrize(
    ("families", "order"),
    [
        ("", []),
        ("4", [0]),
        ("444", [0, 1, 2]),
        ("6644", [0, 2, 1, 3]),
        ("4466", [0, 2, 1, 3]),
        ("6464", [0, 1, 2, 3]),
        ("66664", [0, 4, 1, 2, 3]),
        ("64444", [0, 1, 2, 3, 4]),
        ("664u", [0, 2, 3, 1]),
    ],
)
def test_families_take_turns_and_the_first_one_begins(families, order):
    assert numbers(interleave_families(infos(families))) == order


@given(families=st.text("46u", max_size=30))
@settings(deadline=None)
def test_interleaving_keeps_every_result_and_the_order_within_a_family(families):
    before = infos(families)
    after = interleave_families(before)
    assert Counter(numbers(after)) == Counter(numbers(before))
    for family in AF_INET, AF_INET6, AF_UNIX:
        mine = [info.protocol for info in after if info.family == family]
        assert mine == sorted(mine)
    assert [info.protocol for info in after[:1]] == [info.protocol for info in before[:1]]


@given(families=st.text("46", max_size=30))
@settings(deadline=None)
def test_a_family_repeats_only_when_the_other_is_used_up(families):
    after = interleave_families(infos(families))
    for at, (one, other) in enumerate(pairwise(after)):
        if one.family == other.family:
            assert {info.family for info in after[at:]} == {one.family}
