"""More and fewer nodes: remaining nodes do not change, and all names and addresses differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import samples
from tests.samples import BLUE, MIDDLE, RED
from vcluster.errors import ConflictError, MissingError, RequestError, VclusterError
from vcluster.model import codec
from vcluster.model.facts import Facts
from vcluster.model.keys import add_keys, drop_keys
from vcluster.model.naming import expand
from vcluster.model.plan import Plan
from vcluster.model.spec import DHCP, LOCAL, PRIVATE, AddressRange, ServerSpec, Spec, StorageNode
from vcluster.planning import addressing
from vcluster.planning.planner import make_plan
from vcluster.planning.resize import grow, new_names, server_spec, shrink
from vcluster.render import common_files, node_actions

LOCAL_FACTS = {LOCAL.name: samples.ROOMY}


def larger(plan: Plan, number: int = 1, asked: Sequence[str] = (), facts: dict[str, Facts] | None = None) -> Plan:
    return grow(plan, facts or LOCAL_FACTS, new_names(plan, number, asked))


def names(plan: Plan) -> list[str]:
    return [node.name for node in plan.nodes]


def shared(*servers: ServerSpec, count: int = 4, **options: object) -> tuple[Plan, dict[str, Facts]]:
    """A plan over servers with the switch on `middle`, and their facts with its VNIs in use."""
    carriers = servers or (RED, BLUE)
    asked: Spec = samples.spec(count, mode="shared", servers=carriers, switch=MIDDLE)
    plan = samples.shared_plan(*carriers, count=count, **options)
    facts = samples.shared_facts(asked)
    used = {one.name: frozenset(tunnel.vni for tunnel in one.tunnels) for one in plan.servers}
    return plan, {name: replace(one, vnis=used[name]) for name, one in facts.items()}


# Growing


@pytest.mark.parametrize("options", [{}, {"layout": PRIVATE}, {"addresses": DHCP, "layout": PRIVATE}])
def test_a_grown_plan_equals_a_new_plan_of_that_size(options: dict[str, object]) -> None:
    plan = samples.plan(3, **options)  # type: ignore[arg-type]
    grown = larger(plan, 2)
    assert grown == replace(samples.plan(5, **options), dhcp_range=plan.dhcp_range)  # type: ignore[arg-type]
    assert grown.nodes[:3] == plan.nodes
    assert codec.from_json(codec.to_json(grown), Plan) == grown


def test_new_nodes_get_the_processors_that_the_fewest_nodes_have() -> None:
    options = {"vcpus": 2, "processors": (0, 1, 2), "cpu_limit_percent": 40}
    plan = samples.plan(3, **options)
    assert larger(plan, 2) == samples.plan(5, **options)
    rest = shrink(plan, ["node2"])  # it has the processors 2 and 0
    assert [node.processors for node in larger(rest, 2).nodes] == [(0, 1), (0, 2), (1, 2), (0, 1)]


def test_a_server_that_has_lost_a_processor_gets_no_more_nodes() -> None:
    plan = samples.plan(2, processors=(0, 1))
    with pytest.raises(MissingError, match="nodes cannot be pinned to processor 1, which this machine lacks"):
        larger(plan, facts={LOCAL.name: replace(samples.ROOMY, processors=(0, 2))})


def test_growing_over_servers() -> None:
    plan, facts = shared()
    grown = larger(plan, 3, facts=facts)
    assert grown.nodes[:4] == plan.nodes
    assert [(node.name, node.server, node.vni, node.bridge) for node in grown.nodes[4:]] == [
        ("node5", "red", 44, "vb-lab-5"),
        ("node6", "blue", 45, "vb-lab-6"),
        ("node7", "red", 46, "vb-lab-7"),
    ]
    for server in plan.servers:
        now = grown.server(server.name)
        assert now.bridges[: len(server.bridges)] == server.bridges
        assert now.tunnels[: len(server.tunnels)] == server.tunnels
        assert replace(now, bridges=server.bridges, tunnels=server.tunnels) == server
    switch_ends = {tunnel.vni: tunnel for tunnel in grown.server("middle").tunnels}
    assert len(grown.server("middle").bridges) == 1
    for tunnel in (*grown.server("red").tunnels, *grown.server("blue").tunnels):
        other = switch_ends[tunnel.vni]
        assert (tunnel.name, tunnel.local, tunnel.remote) == (other.name, other.remote, other.local)
    assert sorted(switch_ends) == [40, 41, 42, 43, 44, 45, 46]


def test_growing_a_remote_cluster() -> None:
    asked: Spec = samples.spec(2, mode="remote", servers=(LOCAL,), switch=MIDDLE, vxlan_port=5000, vni_base=7)
    facts = samples.shared_facts(asked)
    plan = make_plan(asked, facts, image=samples.DIRECT, owner=samples.OWNER)
    facts["middle"] = replace(facts["middle"], vnis=frozenset({7, 8, 9}))
    facts[LOCAL.name] = replace(facts[LOCAL.name], vnis=frozenset({7, 8, 10}))
    grown = larger(plan, facts=facts)
    assert [node.vni for node in grown.nodes] == [7, 8, 11]
    assert grown.server("middle").tunnels[-1].port == 5000
    # After a restart of the servers no VNI is in use there, but those of the plan are still taken.
    bare = {name: replace(one, vnis=frozenset()) for name, one in facts.items()}
    assert [node.vni for node in larger(plan, facts=bare).nodes] == [7, 8, 9]


def test_new_nodes_on_the_switchs_server_need_no_tunnels() -> None:
    plan, facts = shared(RED, MIDDLE, count=3)
    grown = larger(plan, 2, facts=facts)
    assert [(node.server, node.vni) for node in grown.nodes] == [
        ("red", 40), ("red", 41), ("middle", None), ("middle", None), ("red", 42),
    ]  # fmt: skip
    assert [bridge.name for bridge in grown.server("middle").bridges] == ["vc-lab"]


def test_new_tunnels_have_the_ends_that_the_old_ones_have() -> None:
    plan, _ = shared(RED, BLUE, LOCAL, count=3)
    specs = map(server_spec, plan.servers)
    assert [(one.name, str(one.address), one.interface, one.login) for one in specs] == [
        ("red", "192.0.2.10", "eth0", RED.login),
        ("blue", "192.0.2.11", "eth0", BLUE.login),
        ("localhost", "192.0.2.12", "eth0", None),
        ("middle", "192.0.2.13", "eth0", MIDDLE.login),
    ]
    assert [*map(server_spec, samples.plan(2).servers)] == [LOCAL]


def test_the_server_with_the_fewest_nodes_and_room_is_chosen() -> None:
    plan, facts = shared(count=3)  # two on red, one on blue
    assert [node.server for node in larger(plan, 2, facts=facts).nodes[3:]] == ["blue", "red"]
    facts["blue"] = replace(facts["blue"], memory_free_mib=512 + 700)
    assert [node.server for node in larger(plan, 2, facts=facts).nodes[3:]] == ["red", "red"]
    facts["red"] = replace(facts["red"], memory_free_mib=512 + 704)
    with pytest.raises(MissingError) as raised:
        larger(plan, 2, facts=facts)
    assert raised.value.message.splitlines() == [
        "2 more nodes do not fit on the servers; at most 1 fit",
        "red: at most 1 more, by ram (704 MiB free for nodes, a node and its QEMU take 704)",
        "blue: at most 0 more, by ram (700 MiB free for nodes, a node and its QEMU take 704)",
    ]


def test_memory_is_counted_by_the_accelerator_of_the_plan() -> None:
    plan = samples.plan(2, accel="kvm")
    facts = {LOCAL.name: replace(samples.ROOMY, memory_free_mib=512 + 576, accel="tcg")}
    assert len(larger(plan, facts=facts).nodes) == 3


def test_in_the_private_layout_new_nodes_have_no_management_interface() -> None:
    plan, facts = shared(layout=PRIVATE)
    grown = larger(plan, 4, facts=facts)
    assert [node.management is not None for node in grown.nodes] == [True] + [False] * 7


# Names


@pytest.mark.parametrize(
    ("nodeset", "number", "expected"),
    [
        ("node[1-4]", 2, "node[5-6]"),
        ("w[051-053]", 1, "w054"),
        ("w[098-099]", 2, "w[100-101]"),
        ("w[8-9]", 1, "w10"),
        ("head,red[1-2]", 1, "red3"),
        ("head1,red[1-2]", 1, "red3"),
        ("a-1-lab,a-2-lab", 1, "a-3-lab"),
        ("node1", 1, "node2"),
        ("node[1-2],gpu", 1, "node3"),
    ],
)
def test_new_names_follow_the_pattern(nodeset: str, number: int, expected: str) -> None:
    plan = make_plan(
        replace(samples.spec(), node_names=expand(nodeset)), LOCAL_FACTS, image=samples.DIRECT, owner=samples.OWNER
    )
    assert new_names(plan, number) == expand(expected)


@pytest.mark.parametrize("nodeset", ["head,alice", "red,blue", "a1,b1,c1"])
def test_names_without_a_pattern(nodeset: str) -> None:
    plan = make_plan(
        replace(samples.spec(), node_names=expand(nodeset)), LOCAL_FACTS, image=samples.DIRECT, owner=samples.OWNER
    )
    with pytest.raises(RequestError, match="cannot derive new names from the names of") as raised:
        new_names(plan, 1)
    assert raised.value.hint == "set the names with --names"
    assert names(larger(plan, asked=("eve",)))[-1] == "eve"


@pytest.mark.parametrize(
    ("number", "asked", "error", "message"),
    [
        (1, ("node2",), RequestError, "cluster lab has node2 already"),
        (4093, (), RequestError, "4093 more nodes are too many"),
        (1, tuple(f"x{at}" for at in range(4093)), RequestError, "4093 more nodes are too many"),
    ],
)
def test_impossible_names(number: int, asked: tuple[str, ...], error: type[VclusterError], message: str) -> None:
    with pytest.raises(error, match=message):
        new_names(samples.plan(2), number, asked)


def test_a_name_that_would_be_too_long() -> None:
    long = "a" * 62 + "9"
    plan = make_plan(
        replace(samples.spec(1), node_names=(long,)), LOCAL_FACTS, image=samples.DIRECT, owner=samples.OWNER
    )
    with pytest.raises(RequestError, match="has 64 characters"):
        new_names(plan, 1)


def test_a_switch_that_was_set_up_by_hand_does_not_grow() -> None:
    asked: Spec = samples.spec(2, mode="remote", servers=(LOCAL,), switch=MIDDLE, sets_up_switch=False)
    facts = {LOCAL.name: samples.shared_facts(asked)[LOCAL.name]}
    plan = make_plan(asked, facts, image=samples.DIRECT, owner=samples.OWNER)
    with pytest.raises(ConflictError, match="was set up by hand") as raised:
        new_names(plan, 1)
    assert "vcluster clear lab" in str(raised.value.hint)
    assert names(shrink(plan, ["node2"])) == ["node1"]


# Addresses


def test_new_addresses_start_at_the_first_node_and_avoid_the_range_for_unknown_hosts() -> None:
    addresses = tuple(IPv4Address(f"10.0.0.{last}") for last in (101, 103))
    unknown_hosts = AddressRange(IPv4Address("10.0.0.105"), IPv4Address("10.0.0.253"))
    plan = samples.plan(2, node_addresses=addresses, addresses=DHCP, dhcp_range=unknown_hosts)
    assert [str(node.address) for node in larger(plan, 5).nodes[2:]] == [
        "10.0.0.102", "10.0.0.104", "10.0.0.254", "10.0.0.1", "10.0.0.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("subnet", "options", "fits"),
    [("10.0.0.0/29", {}, 4), ("10.0.0.0/30", {}, 0), ("10.0.0.0/29", {"addresses": DHCP}, 0)],
)
def test_a_full_subnet(subnet: str, options: dict[str, object], fits: int) -> None:
    plan = samples.plan(2, subnet=IPv4Network(subnet), **options)  # type: ignore[arg-type]
    if fits:
        assert len(larger(plan, fits).nodes) == fits + 2
    with pytest.raises(RequestError, match=f"{fits + 1} more nodes do not fit into {subnet}") as raised:
        larger(plan, fits + 1)
    assert raised.value.hint == (f"{fits} more fit" if fits else "it is full")


def test_a_full_management_network() -> None:
    plan = samples.plan(250, subnet=IPv4Network("10.0.0.0/16"))
    assert len(larger(plan, 3).nodes) == 253
    with pytest.raises(
        RequestError, match=r"4 more nodes do not fit into the management network 172.28.0.0/24"
    ) as raised:
        larger(plan, 4)
    assert raised.value.hint == "3 more fit"


@given(st.sets(st.integers(1, 14), min_size=1), st.integers(1, 14), st.integers(1, 14))
def test_free_addresses(taken: set[int], start: int, end: int) -> None:
    subnet = IPv4Network("10.0.0.0/28")
    nodes = {subnet[last] for last in taken}
    unknown_hosts = AddressRange(subnet[min(start, end)], subnet[max(start, end)])
    usable = [address for address in subnet.hosts() if address not in nodes and address not in unknown_hosts]
    found = addressing.more_addresses(subnet, len(usable), nodes=nodes, unknown_hosts=unknown_hosts)
    assert sorted(found) == usable
    above = [address for address in usable if address > min(nodes)]
    assert list(found[: len(above)]) == above


# Shrinking


def test_a_removed_node_is_added_again_unchanged() -> None:
    plan = samples.plan(4)
    rest = shrink(plan, ["node3"])
    assert rest.nodes == (*plan.nodes[:2], plan.nodes[3])
    assert larger(rest) == plan
    assert names(larger(shrink(plan, ["node2", "node3"]), 3)) == ["node1", "node2", "node3", "node4", "node5"]


def test_the_first_worker_is_added_again_unchanged() -> None:
    spec = replace(samples.spec(), node_names=expand("head,red[1-3]"))
    plan = make_plan(spec, LOCAL_FACTS, image=samples.DIRECT, owner=samples.OWNER)
    assert larger(shrink(plan, ["red1"])) == plan


def test_a_free_index_is_used_with_another_name() -> None:
    plan = larger(shrink(samples.plan(4), ["node3"]), asked=("gpu",))
    assert names(plan) == ["node1", "node2", "gpu", "node4"]
    assert (plan.node("gpu").index, str(plan.node("gpu").address), plan.node("gpu").port) == (3, "10.0.0.3", "vp-lab-3")


def test_interfaces_of_removed_nodes_are_removed_and_servers_stay() -> None:
    plan, facts = shared()
    rest = shrink(plan, ["node3", "node4"])
    assert rest.nodes_on("blue") == ()
    assert rest.server("blue").interface_names == ()
    assert rest.server("blue").carries_nodes
    assert [tunnel.vni for tunnel in rest.server("middle").tunnels] == [40, 41]
    assert [bridge.name for bridge in rest.server("middle").bridges] == ["vc-lab"]
    assert rest.server("red") == plan.server("red")
    assert codec.from_json(codec.to_json(rest), Plan) == rest
    free = {name: replace(one, vnis=frozenset({40, 41})) for name, one in facts.items()}
    assert larger(rest, 2, facts=free) == plan


def test_the_vxlan_port_stays_in_the_plan_without_tunnels() -> None:
    plan, facts = shared(MIDDLE, RED, count=2, vxlan_port=5000)
    rest = shrink(plan, ["node2"])
    assert not rest.has_tunnels
    free = {name: replace(one, vnis=frozenset()) for name, one in facts.items()}
    assert larger(rest, facts=free) == plan


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["node1"], RequestError, "node1 is the head"),
        (["node2", "node1"], RequestError, "node1 is the head"),
        (["node9"], RequestError, "cluster lab has no node 'node9'"),
        (["node4"], ConflictError, "node4 serves a shared folder that the other nodes use"),
    ],
)
def test_nodes_that_cannot_be_removed(names: list[str], error: type[VclusterError], message: str) -> None:
    plan = samples.plan(4, stores=(StorageNode("node4", 1),))
    with pytest.raises(error, match=message) as raised:
        shrink(plan, names)
    assert raised.value.hint


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=6))
def test_all_names_and_addresses_differ_after_any_changes(steps: list[tuple[bool, int]]) -> None:
    plan, facts = shared(RED, MIDDLE, count=3)
    for is_growth, number in steps:
        before = plan
        plan = larger(plan, number, facts=facts) if is_growth else shrink(plan, names(plan)[1:][-number:])
        stayed = {node.name for node in before.nodes} & {node.name for node in plan.nodes}
        assert all(before.node(name) == plan.node(name) for name in stayed)
    management = [node.management for node in plan.nodes if node.management]
    for values in (
        names(plan),
        [node.index for node in plan.nodes],
        [node.address for node in plan.nodes],
        [node.mac for node in plan.nodes] + [interface.mac for interface in management],
        [(node.server, interface.address) for node, interface in zip(plan.nodes, management, strict=True)],
        [node.vni for node in plan.nodes if node.vni],
        [node.port for node in plan.nodes] + [interface.port for interface in management],
        *[server.interface_names for server in plan.servers],
    ):
        assert len(set(values)) == len(values)
    assert [node.index for node in plan.nodes] == sorted(node.index for node in plan.nodes)
    assert [node.role for node in plan.nodes] == ["head"] + ["worker"] * len(plan.workers)
    tunnels = {tunnel.vni for tunnel in plan.server("middle").tunnels}
    assert tunnels == {tunnel.vni for tunnel in plan.server("red").tunnels} == {n.vni for n in plan.nodes if n.vni}


# Keys and files


def test_keys_are_added_and_dropped_with_nodes() -> None:
    keys = samples.keys(3)
    more = add_keys(keys, ["node4"])
    assert list(more.hosts) == ["node1", "node2", "node3", "node4"]
    assert more.hosts["node3"] == keys.hosts["node3"]
    assert (more.admin, more.user) == (keys.admin, keys.user)
    assert drop_keys(more, {"node1", "node2", "node3"}) == keys


def test_remaining_nodes_only_get_new_files() -> None:
    plan, keys = samples.plan(3), samples.keys(4)
    grown = larger(plan)
    for node in plan.nodes:
        before, after = (
            node_actions.actions(each, node, keys, common_files.common_files(each, keys)) for each in (plan, grown)
        )
        different = [one for one, other in zip(after, before, strict=True) if one != other]
        assert {action["do"] for action in different} == {"file", "arp"}
        changed = {action["path"] for action in different if action["do"] == "file"}
        assert {"/etc/hosts", "/etc/ssh/ssh_known_hosts", "/home/mpiuser/hostfile", "/etc/genders"} <= changed
        restarts = [path for action in after for path in action.get("restart_if", action.get("if_changed", ()))]
        assert not changed & set(restarts)
