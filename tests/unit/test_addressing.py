"""Subnets and addresses."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcluster.errors import ConflictError, RequestError, VclusterError
from vcluster.model.facts import Claim, Facts, Route, UnderlayRoute
from vcluster.planning import addressing

SUBNETS = st.builds(
    lambda address, prefix: IPv4Network((address, prefix), strict=False),
    st.integers(0x0A000000, 0x0AFFFFFF),
    st.integers(8, 30),
)


def facts(*, routes: tuple[Route, ...] = (), claims: tuple[Claim, ...] = ()) -> Facts:
    return Facts(memory_free_mib=1000, disk_free_mib=1000, routes=routes, claims=claims)


@pytest.mark.parametrize("text", ["10.0.0.0/24", "192.168.7.0/30", "172.16.0.0/12"])
def test_good_subnets(text: str) -> None:
    assert str(addressing.parse_subnet(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.0/31", "no room"),
        ("10.0.0.1/32", "no room"),
        ("10.0.0.1", "no room"),
        ("0.0.0.0/0", "too large"),
        ("10.0.0.1/24", "has host bits set"),
        ("fd00::/64", "is IPv6"),
        ("10.0.0.0/33", "is not a network"),
        ("10.0.0/24", "is not a network"),
        ("", "is not a network"),
        ("lab", "is not a network"),
        ("127.0.0.0/24", "not for ordinary hosts"),
        ("224.0.0.0/24", "not for ordinary hosts"),
        ("169.254.0.0/16", "not for ordinary hosts"),
        ("$(id)", "is not a network"),
    ],
)
def test_bad_subnets(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        addressing.parse_subnet(text)


@given(st.text(max_size=40))
def test_any_text_is_a_subnet_or_a_clear_error(text: str) -> None:
    try:
        addressing.parse_subnet(text)
    except RequestError as error:
        assert len(error.message.splitlines()) == 1


@pytest.mark.parametrize("mtu", [576, 1450, 9216])
def test_good_mtus(mtu: int) -> None:
    assert addressing.check_mtu(mtu) == mtu


@pytest.mark.parametrize("mtu", [-1, 0, 60, 575, 9217, 90000])
def test_bad_mtus(mtu: int) -> None:
    with pytest.raises(RequestError, match="is not possible"):
        addressing.check_mtu(mtu)


@given(SUBNETS, st.integers(1, 2000))
def test_addresses_are_unique_and_inside(subnet: IPv4Network, count: int) -> None:
    if count > addressing.hosts_max(subnet):
        with pytest.raises(RequestError, match=f"it holds {addressing.hosts_max(subnet)}|do not fit"):
            addressing.node_addresses(subnet, count)
        return
    addresses = addressing.node_addresses(subnet, count)
    assert len(set(addresses)) == count
    assert all(address in subnet for address in addresses)
    assert subnet.network_address not in addresses
    assert subnet.broadcast_address not in addresses
    assert addresses[0] == subnet[1]


@given(st.lists(SUBNETS, max_size=5), st.integers(1, 1000))
def test_a_chosen_subnet_is_free(taken: list[IPv4Network], count: int) -> None:
    known = facts(routes=tuple(Route(network, "eth0") for network in taken))
    try:
        subnet = addressing.choose_subnet(None, count, [known])
        management = addressing.choose_management(count, known, avoid=[subnet])
    except ConflictError:
        assert any(network.prefixlen < 16 for network in taken)
        return
    assert not any(subnet.overlaps(network) for network in taken)
    assert not management.overlaps(subnet)
    assert not any(management.overlaps(network) for network in taken)
    assert addressing.hosts_max(subnet) >= count
    gateway = management[1]
    addresses = addressing.management_addresses(management, count)
    assert gateway not in addresses
    assert len(set(addresses)) == count
    assert all(address in management and address != management.broadcast_address for address in addresses)


def test_the_management_network_contains_no_host_that_the_server_talks_to() -> None:
    """No route is in the way: the default route leads to these hosts."""
    resolver, switch = IPv4Address("172.28.0.53"), IPv4Address("172.28.1.10")
    route = UnderlayRoute(IPv4Address("192.0.2.1"), switch, "eth0", 1500)
    known = replace(facts(), hosts=frozenset({resolver}), underlay_routes={"switch": route})
    assert str(addressing.choose_management(4, known, avoid=())) == "172.28.2.0/24"


OTHER_CLUSTER = Claim("other", IPv4Network("10.0.0.0/24"), (IPv4Network("172.28.0.0/24"),))


def test_the_next_subnet_is_chosen_when_the_default_is_taken() -> None:
    assert str(addressing.choose_subnet(None, 4, [facts()])) == "10.0.0.0/24"
    assert str(addressing.choose_subnet(None, 4, [facts(), facts(claims=(OTHER_CLUSTER,))])) == "10.0.1.0/24"


@pytest.mark.parametrize(
    ("asked", "known", "message"),
    [
        ("10.0.0.0/25", facts(claims=(OTHER_CLUSTER,)), "overlaps a subnet of cluster other"),
        ("172.28.0.0/16", facts(claims=(OTHER_CLUSTER,)), "overlaps a subnet of cluster other"),
        ("10.0.0.0/8", facts(routes=(Route(IPv4Network("10.5.0.0/16"), "eth7"),)), "this machine reaches by eth7"),
    ],
)
def test_an_overlap_names_the_cluster_or_the_route(asked: str, known: Facts, message: str) -> None:
    with pytest.raises(ConflictError, match=message) as raised:
        addressing.choose_subnet(IPv4Network(asked), 4, [facts(), known])
    assert raised.value.exit_code == 4


def test_a_subnet_that_is_too_small_names_its_limit() -> None:
    with pytest.raises(VclusterError) as raised:
        addressing.choose_subnet(IPv4Network("10.0.0.0/29"), 7, facts())
    assert raised.value.exit_code == 2
    assert "it holds 6" in str(raised.value.hint)


def test_routes_of_interest() -> None:
    routes = [Route(IPv4Network(text), "x") for text in ("0.0.0.0/0", "127.0.0.0/8", "192.0.2.0/24")]
    assert [str(route.network) for route in addressing.routes_of_interest(routes)] == ["192.0.2.0/24"]
