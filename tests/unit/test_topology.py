"""Bridges and tunnels in every mode, and the ports that a frame passes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import samples
from tests.samples import BLUE, MIDDLE, RED
from vcluster.errors import ConflictError, MissingError, RequestError
from vcluster.model import codec, naming
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL, Spec
from vcluster.planning.hops import hops
from vcluster.planning.planner import make_plan

REMOTE = {"mode": "remote", "servers": (LOCAL,), "switch": MIDDLE}


def remote_plan(count: int = 2, **options: object) -> Plan:
    asked = samples.spec(count, **{**REMOTE, **options})
    return make_plan(asked, samples.shared_facts(asked), image=samples.DIRECT, owner=samples.OWNER)


def test_local_nodes_share_the_switch() -> None:
    plan = samples.plan(3)
    assert [server.name for server in plan.servers] == ["localhost"]
    assert [bridge.name for bridge in plan.servers[0].bridges] == ["vc-lab"]
    assert plan.servers[0].tunnels == ()
    assert {(node.bridge, node.vni) for node in plan.nodes} == {("vc-lab", None)}
    assert not plan.has_tunnels


def test_every_remote_node_has_its_own_bridge_and_tunnel() -> None:
    plan = remote_plan(3)
    local, switch = plan.server("localhost"), plan.server("middle")
    assert [bridge.name for bridge in local.bridges] == ["vb-lab-1", "vb-lab-2", "vb-lab-3"]
    assert [bridge.name for bridge in switch.bridges] == ["vc-lab"]
    assert [(tunnel.bridge, tunnel.vni) for tunnel in local.tunnels] == [
        ("vb-lab-1", 40),
        ("vb-lab-2", 41),
        ("vb-lab-3", 42),
    ]
    assert {tunnel.bridge for tunnel in switch.tunnels} == {"vc-lab"}
    assert [(node.bridge, node.vni) for node in plan.nodes] == [("vb-lab-1", 40), ("vb-lab-2", 41), ("vb-lab-3", 42)]
    assert plan.switch.server == "middle"
    assert switch.pool is switch.network is switch.image is None
    assert not switch.carries_nodes


@given(st.integers(1, 12), st.lists(st.integers(38, 60), max_size=12), st.lists(st.integers(38, 60), max_size=12))
def test_tunnels_have_two_ends_that_agree(count: int, used_locally: list[int], used_at_switch: list[int]) -> None:
    asked = samples.spec(count, **REMOTE)  # type: ignore[arg-type]
    facts = samples.shared_facts(asked)
    facts["localhost"] = replace(facts["localhost"], vnis=frozenset(used_locally))
    facts["middle"] = replace(facts["middle"], vnis=frozenset(used_at_switch))
    plan = make_plan(asked, facts, image=samples.DIRECT, owner=samples.OWNER)
    node_ends, switch_ends = plan.server("localhost").tunnels, plan.server("middle").tunnels
    assert [(tunnel.name, tunnel.vni, tunnel.local, tunnel.remote) for tunnel in node_ends] == [
        (tunnel.name, tunnel.vni, tunnel.remote, tunnel.local) for tunnel in switch_ends
    ]
    vnis = [tunnel.vni for tunnel in node_ends]
    assert len(set(vnis)) == count
    assert vnis == sorted(vnis)
    assert min(vnis) >= 40
    assert not set(vnis) & {*used_locally, *used_at_switch}


def test_a_node_on_the_switchs_server_needs_no_tunnel() -> None:
    plan = samples.shared_plan(RED, MIDDLE, count=4)
    assert [(node.server, node.bridge, node.vni) for node in plan.nodes] == [
        ("red", "vb-lab-1", 40),
        ("red", "vb-lab-2", 41),
        ("middle", "vc-lab", None),
        ("middle", "vc-lab", None),
    ]
    assert [server.name for server in plan.servers] == ["red", "middle"]
    assert plan.server("middle").carries_nodes


def test_a_switch_side_that_is_set_up_by_hand_is_left_out() -> None:
    asked = samples.spec(2, **{**REMOTE, "sets_up_switch": False, "vni_base": 7})
    facts = {"localhost": samples.shared_facts(asked)["localhost"]}
    plan = make_plan(asked, facts, image=samples.DIRECT, owner=samples.OWNER)
    assert [server.name for server in plan.servers] == ["localhost"]
    assert [node.vni for node in plan.nodes] == [7, 8]
    assert plan.switch.server == "middle"
    facts["localhost"] = replace(facts["localhost"], vnis=frozenset({8}))
    with pytest.raises(ConflictError, match="VNI 8 is in use here"):
        make_plan(asked, facts, image=samples.DIRECT, owner=samples.OWNER)
    with pytest.raises(RequestError, match="VNI 16777216 is too high; the highest VNI is 16777215"):
        make_plan(replace(asked, vni_base=2**24 - 1), facts, image=samples.DIRECT, owner=samples.OWNER)


@pytest.mark.parametrize(("underlay", "mtu", "fits"), [(1500, 1450, True), (1499, 1450, False), (9000, 8950, True)])
def test_an_underlay_that_is_too_narrow_is_refused_with_the_mtu_that_fits(underlay: int, mtu: int, fits: bool) -> None:
    asked: Spec = samples.spec(2, mtu=mtu, **REMOTE)  # type: ignore[arg-type]
    facts = samples.shared_facts(asked)
    routes = {name: replace(route, mtu=underlay) for name, route in facts["middle"].underlay_routes.items()}
    facts["localhost"] = replace(
        facts["localhost"],
        underlay_routes={name: replace(route, mtu=9000) for name, route in facts["localhost"].underlay_routes.items()},
    )
    facts["middle"] = replace(facts["middle"], underlay_routes=routes)
    if fits:
        assert make_plan(asked, facts, image=samples.DIRECT, owner=samples.OWNER).mtu == mtu
        return
    with pytest.raises(MissingError, match=f"from middle to localhost: eth0 carries packets of {underlay}") as raised:
        make_plan(asked, facts, image=samples.DIRECT, owner=samples.OWNER)
    assert f"--mtu {underlay - 50}" in str(raised.value.hint)


def test_interface_names_have_at_most_fifteen_characters() -> None:
    for cluster in ("lab", "x" * 32):
        names = [naming.node_bridge_name(cluster, naming.NODES_MAX), naming.tunnel_name(cluster, naming.NODES_MAX)]
        assert all(len(name) <= naming.INTERFACE_NAME_MAX for name in names)


def test_management_networks_of_servers_differ() -> None:
    plan = samples.shared_plan(RED, BLUE, count=4)
    subnets = [server.network.subnet for server in plan.servers if server.network]
    assert len(set(subnets)) == len(subnets) == 2
    for node in plan.nodes:
        assert node.management is not None
        assert node.management.address in plan.network_of(node).subnet
    assert plan.nodes[2].management.address == plan.network_of(plan.nodes[2]).subnet[2]


def test_a_plan_in_json_keeps_its_meaning_and_has_no_password() -> None:
    plan = samples.shared_plan(RED, BLUE)
    text = codec.to_json(plan)
    assert codec.from_json(text, Plan) == plan
    assert "env:SECRET" in text


def test_the_image_has_its_path_on_each_server() -> None:
    plan = samples.shared_plan(LOCAL, RED)
    local, remote = plan.server("localhost").image, plan.server("red").image
    assert local == samples.DIRECT
    assert remote is not None
    assert str(remote.disk) == f"/var/lib/libvirt/images/vcluster/images/{samples.DIRECT.digest}/disk.qcow2"


# The ports that a frame passes


def test_hops_between_two_nodes_of_one_server_go_through_the_switch() -> None:
    plan = remote_plan(3)
    assert [(hop.server, hop.link, hop.comes_in) for hop in hops(plan, plan.nodes[0], plan.nodes[2])] == [
        ("localhost", "vp-lab-1", True),
        ("localhost", "vx-lab-1", False),
        ("middle", "vx-lab-1", True),
        ("middle", "vx-lab-3", False),
        ("localhost", "vx-lab-3", True),
        ("localhost", "vp-lab-3", False),
    ]


def test_hops_of_a_local_cluster_are_two_ports_of_the_switch() -> None:
    plan = samples.plan(2)
    assert [(hop.link, hop.bridge) for hop in hops(plan, *plan.nodes)] == [
        ("vp-lab-1", "vc-lab"),
        ("vp-lab-2", "vc-lab"),
    ]


def test_tunnels_use_the_addresses_of_the_underlay_routes() -> None:
    tunnel = remote_plan(1).server("localhost").tunnels[0]
    assert (tunnel.local, tunnel.remote) == (IPv4Address("192.0.2.10"), IPv4Address("192.0.2.11"))
    assert (tunnel.interface, tunnel.port, tunnel.mtu) == ("eth0", 4789, 1450)
