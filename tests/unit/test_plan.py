"""Planning: everything decided, nothing twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import samples
from vcluster import codec
from vcluster.errors import MissingError
from vcluster.model import Plan
from vcluster.naming import INTERFACE_NAME_MAX


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 600))
def test_nothing_is_given_twice(count: int) -> None:
    plan = samples.plan(count, subnet=None)
    nodes = plan.nodes
    for values in (
        [node.name for node in nodes],
        [node.address for node in nodes],
        [node.management_address for node in nodes],
        [mac for node in nodes for mac in (node.mac, node.management_mac)],
        [port for node in nodes for port in (node.port, node.management_port)],
        [node.uuid for node in nodes],
    ):
        assert len(set(values)) == len(values)
    assert all(len(port) <= INTERFACE_NAME_MAX for node in nodes for port in (node.port, node.management_port))
    assert [node.role for node in nodes] == ["head"] + ["worker"] * (count - 1)


def test_a_local_cluster_has_one_bridge_and_every_node_is_a_port_of_it() -> None:
    plan = samples.plan(5)
    (server,) = plan.servers
    (bridge,) = server.bridges
    assert plan.switch.bridge == bridge.name
    assert plan.switch.server == server.name
    assert {node.bridge for node in plan.nodes} == {bridge.name}
    assert bridge.mtu == plan.mtu == 1450
    assert {node.vni for node in plan.nodes} == {None}


def test_a_plan_survives_json() -> None:
    plan = samples.plan(3, image=samples.ORDINARY)
    assert codec.from_json(codec.to_json(plan), Plan) == plan


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": 1}'])
def test_what_is_no_plan_is_refused(text: str) -> None:
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
    facts = replace(samples.ROOMY, disk_free_mib=512 + 2 * 256)
    samples.plan(2, facts=facts)
    with pytest.raises(MissingError, match="on disk") as raised:
        samples.plan(3, facts=facts)
    assert "the largest -n that fits is 2" in str(raised.value.hint)
