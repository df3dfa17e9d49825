"""Planning: complete plans in which all names and addresses differ."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import samples
from vcluster.errors import MissingError, RequestError
from vcluster.model import codec
from vcluster.model.naming import INTERFACE_NAME_MAX
from vcluster.model.plan import Plan
from vcluster.model.spec import DHCP, PRIVATE, AddressRange


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 600))
def test_all_names_and_addresses_differ(count: int) -> None:
    plan = samples.plan(count, subnet=None)
    nodes = plan.nodes
    management = [node.management for node in nodes if node.management]
    assert len(management) == count
    ports = [node.port for node in nodes] + [interface.port for interface in management]
    for values in (
        [node.name for node in nodes],
        [node.address for node in nodes],
        [interface.address for interface in management],
        [node.mac for node in nodes] + [interface.mac for interface in management],
        ports,
        [node.uuid for node in nodes],
    ):
        assert len(set(values)) == len(values)
    assert all(len(port) <= INTERFACE_NAME_MAX for port in ports)
    assert [node.role for node in nodes] == ["head"] + ["worker"] * (count - 1)
    assert all(node.address in plan.node_range for node in nodes)
    assert count == 1 or plan.node_range.num_addresses <= 4 * count


def test_a_local_cluster_has_one_bridge_with_all_nodes() -> None:
    plan = samples.plan(5)
    (server,) = plan.servers
    (bridge,) = server.bridges
    assert plan.switch.bridge == bridge.name
    assert plan.switch.server == server.name
    assert {node.bridge for node in plan.nodes} == {bridge.name}
    assert bridge.mtu == plan.mtu == 1450
    assert {node.vni for node in plan.nodes} == {None}


def test_a_plan_in_json_keeps_its_meaning() -> None:
    plan = samples.plan(3, image=samples.ORDINARY)
    assert codec.from_json(codec.to_json(plan), Plan) == plan


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": 1}'])
def test_text_that_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a Plan"):
        codec.from_json(text, Plan)


@pytest.mark.parametrize(
    ("accel", "free_mib", "hint"),
    [
        ("tcg", 512 + 3 * 704, "the largest -n that fits is 3"),
        ("kvm", 512 + 3 * 576, "the largest -n that fits is 3"),
        ("tcg", 600, "--memory"),
    ],
)
def test_too_little_memory(accel: str, free_mib: int, hint: str) -> None:
    facts = replace(samples.ROOMY, memory_free_mib=free_mib)
    with pytest.raises(MissingError, match="of memory") as raised:
        samples.plan(4, accel=accel, facts=facts)
    assert hint in str(raised.value.hint)
    assert raised.value.exit_code == 3


def test_too_little_disk() -> None:
    facts = replace(samples.ROOMY, disk_free_mib=768 + 2 * 256)
    samples.plan(2, facts=facts)
    text = "3 nodes need 1536 MiB on disk at first, 3 times 256 and a reserve of 768, but 1280 MiB are free"
    with pytest.raises(MissingError, match=text) as raised:
        samples.plan(3, facts=facts)
    assert "the largest -n that fits is 2" in str(raised.value.hint)


def test_in_the_private_layout_only_the_head_has_a_management_interface() -> None:
    plan = samples.plan(4, layout=PRIVATE)
    assert [node.management is not None for node in plan.nodes] == [True, False, False, False]
    assert [str(node.login_address) for node in plan.workers] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]


@pytest.mark.parametrize(
    ("count", "subnet", "asked", "expected"),
    [
        (4, "10.0.0.0/24", None, "10.0.0.205-10.0.0.254"),
        (4, "10.0.0.0/24", ("10.0.0.100", "10.0.0.120"), "10.0.0.100-10.0.0.120"),
        (4, "10.0.0.0/29", None, "10.0.0.5-10.0.0.6"),
    ],
)
def test_the_range_for_unknown_hosts(count: int, subnet: str, asked: tuple[str, str] | None, expected: str) -> None:
    dhcp_range = AddressRange(*map(IPv4Address, asked)) if asked else None
    plan = samples.plan(count, subnet=IPv4Network(subnet), addresses=DHCP, dhcp_range=dhcp_range)
    assert str(plan.dhcp_range) == expected


@pytest.mark.parametrize(
    ("count", "subnet", "asked", "message"),
    [
        (2, "10.0.0.0/30", None, "no address left"),
        (4, "10.0.0.0/24", ("10.0.0.4", "10.0.0.20"), "contains 10.0.0.4, the address of a node"),
        (4, "10.0.0.0/24", ("10.0.0.100", "10.0.0.255"), "not within"),
        (4, "10.0.0.0/24", ("10.0.1.100", "10.0.1.200"), "not within"),
    ],
)
def test_impossible_ranges_for_unknown_hosts(
    count: int, subnet: str, asked: tuple[str, str] | None, message: str
) -> None:
    dhcp_range = AddressRange(*map(IPv4Address, asked)) if asked else None
    with pytest.raises(RequestError, match=message):
        samples.plan(count, subnet=IPv4Network(subnet), addresses=DHCP, dhcp_range=dhcp_range)


def test_nodes_get_the_requested_addresses() -> None:
    addresses = tuple(IPv4Address(f"10.0.0.{number}") for number in (101, 103, 102))
    assert [node.address for node in samples.plan(3, node_addresses=addresses).nodes] == list(addresses)
