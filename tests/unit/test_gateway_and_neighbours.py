"""The texts of the gateway: rules, units, dnsmasq settings. tests/netns/test_gateway.py tries the rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests import samples
from vcluster.model.plan import Plan
from vcluster.model.spec import DHCP, PRIVATE, PortRange, StorageNode
from vcluster.planning import neighbours
from vcluster.planning.neighbours import Neighbour
from vcluster.render import gateway_actions

Golden = Callable[[str, str], None]

PORTS = PortRange(10000, 10100)
STORES = (StorageNode("node2", 1),)
PRIVATE_PLAN = samples.plan(3, layout=PRIVATE)
FULL = samples.plan(3, layout=PRIVATE, addresses=DHCP, mpi_ports=PORTS, stores=STORES)
DIRECT_DHCP = samples.plan(3, addresses=DHCP, mpi_ports=PORTS)


@pytest.mark.parametrize(
    ("name", "plan", "node"),
    [
        ("open", PRIVATE_PLAN, "node1"),
        ("closed", replace(PRIVATE_PLAN, is_gateway_open=False), "node1"),
        ("full-head", FULL, "node1"),
        ("full-storage", FULL, "node2"),
        ("full-worker", FULL, "node3"),
        ("direct-head", DIRECT_DHCP, "node1"),
    ],
)
def test_rules(golden: Golden, name: str, plan: Plan, node: str) -> None:
    golden(f"gateway/{name}.nft", gateway_actions.firewall(plan, plan.node(node)))


@pytest.mark.parametrize(
    ("name", "plan"), [("private", PRIVATE_PLAN), ("private-dhcp", FULL), ("direct-dhcp", DIRECT_DHCP)]
)
def test_dnsmasq(golden: Golden, name: str, plan: Plan) -> None:
    golden(f"gateway/dnsmasq-{name}.conf", gateway_actions.dnsmasq_conf(plan))


def test_dnsmasq_reloads_when_nodes_change() -> None:
    larger, smaller = (
        gateway_actions.gateway_actions(samples.plan(n, addresses=DHCP), DIRECT_DHCP.head) for n in (4, 3)
    )
    different = [new for new, old in zip(larger, smaller, strict=True) if new != old]
    assert [action["path"] for action in different] == [gateway_actions.DHCP_HOSTS, gateway_actions.LEASES]
    (service,) = (action for action in larger if action["do"] == "service")
    assert service["reload"]
    assert not {gateway_actions.DHCP_HOSTS, gateway_actions.LEASES} & {*service["restart_if"]}


def test_units(golden: Golden) -> None:
    golden("gateway/firewall-head.service", gateway_actions.firewall_unit(routes=True))
    golden("gateway/firewall.service", gateway_actions.firewall_unit(routes=False))
    golden("gateway/dnsmasq.service", gateway_actions.dnsmasq_unit())


def test_a_closed_gateway_forwards_nothing() -> None:
    closed = gateway_actions.firewall(replace(PRIVATE_PLAN, is_gateway_open=False), PRIVATE_PLAN.head)
    forward = closed.split("chain forward")[1].split("}")[0]
    assert "accept" not in forward


@pytest.mark.parametrize(
    ("plan", "node", "units"),
    [
        (samples.plan(2), "node1", []),
        (samples.plan(2), "node2", []),
        (samples.plan(2, addresses=DHCP), "node1", [gateway_actions.DNSMASQ_UNIT]),
        (samples.plan(2, mpi_ports=PORTS), "node2", [gateway_actions.FIREWALL_UNIT]),
        (PRIVATE_PLAN, "node1", [gateway_actions.FIREWALL_UNIT, gateway_actions.DNSMASQ_UNIT]),
        (PRIVATE_PLAN, "node2", []),
        (FULL, "node1", [gateway_actions.FIREWALL_UNIT, gateway_actions.DNSMASQ_UNIT]),
        (FULL, "node2", [gateway_actions.FIREWALL_UNIT]),
    ],
)
def test_each_node_gets_its_units(plan: Plan, node: str, units: list[str]) -> None:
    actions = gateway_actions.gateway_actions(plan, plan.node(node))
    assert [action["unit"] for action in actions if action["do"] == "service"] == units
    for service in (action for action in actions if action["do"] == "service"):
        before = [action["path"] for action in actions[: actions.index(service)] if action["do"] == "file"]
        assert f"/etc/systemd/system/{service['unit']}" in before
        assert set(service["restart_if"]) <= set(before)


def test_opening_and_closing_change_only_the_rules() -> None:
    opened, closed = (
        gateway_actions.gateway_actions(replace(FULL, is_gateway_open=is_open), FULL.head) for is_open in (True, False)
    )
    different = [new for new, old in zip(opened, closed, strict=True) if new != old]
    assert [action["path"] for action in different] == [gateway_actions.FIREWALL]


def listed(*rules: list[object]) -> str:
    """Output of `nft -j list chain inet vcluster forward`."""
    here = {"family": "inet", "table": "vcluster"}
    chain = {"chain": {**here, "name": "forward", "handle": 1, "type": "filter", "hook": "forward", "policy": "drop"}}
    listing = [{"rule": {**here, "chain": "forward", "handle": 2, "expr": expression}} for expression in rules]
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, chain, *listing]})


def interface(key: str, name: str) -> dict[str, object]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": name}}


OUT = [interface("iifname", "lab0"), interface("oifname", "mgmt0"), {"accept": None}]
REJECTED = [interface("iifname", "lab0"), {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (listed(OUT, REJECTED), True),
        (listed(REJECTED), False),
        ("Welcome, {root}!" + listed(OUT, REJECTED), True),
        (listed(), False),
        ('{"nftables": [{"metainfo": {}}]}', None),
        ("[]", None),
        ("{}", None),
        ("", None),
        ("Error: No such file or directory", None),
        ('{"nftables": ' + "[" * 100_000, None),
        ('{"nftables": 5}', None),
        ('{"nftables": [{"chain": 1}, {"rule": 5}]}', None),
    ],
)
def test_the_live_state_is_read(text: str, expected: bool | None) -> None:
    assert gateway_actions.is_open(text) is expected


# Hosts on the cluster network

NODES = PRIVATE_PLAN.nodes


def entry(address: str, mac: str, *found_by: str, name: str = "") -> dict[str, object]:
    return {"address": address, "mac": mac, "name": name, "found_by": list(found_by)}


def found(number: int, *found_by: str) -> Neighbour:
    node = NODES[number - 1]
    return Neighbour(node.name, node.address, node.mac, found_by)


SELF = entry("10.0.0.1", NODES[0].mac, "self")
ALIEN = "02:00:00:00:00:99"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], [found(1), found(2), found(3)]),
        ([SELF], [found(1, "self"), found(2), found(3)]),
        (
            [SELF, entry("10.0.0.2", NODES[1].mac.upper(), "lease", "neighbour", "ping", name="other")],
            [found(1, "self"), found(2, "lease", "neighbour", "ping"), found(3)],
        ),
        (
            [SELF, entry("10.0.0.200", ALIEN, "lease", "ping", name="laptop")],
            [
                *[found(1, "self"), found(2), found(3)],
                Neighbour("laptop", IPv4Address("10.0.0.200"), ALIEN, ("lease", "ping"), is_unknown=True),
            ],
        ),
        (  # a node at a foreign address
            [SELF, entry("10.0.0.77", NODES[2].mac, "ping")],
            [
                *[found(1, "self"), found(2)],
                replace(found(3, "ping"), address=IPv4Address("10.0.0.77"), is_misplaced=True),
            ],
        ),
        (  # an unknown host at a node's address
            [SELF, entry("10.0.0.2", ALIEN, "neighbour")],
            [
                *[found(1, "self"), found(2)],
                Neighbour("", NODES[1].address, ALIEN, ("neighbour",), is_unknown=True),
                found(3),
            ],
        ),
    ],
    ids=["empty", "head", "node", "unknown host", "misplaced node", "unknown host at a node's address"],
)
def test_nodes_and_unknown_hosts_are_distinguished(entries: list[dict[str, object]], expected: list[Neighbour]) -> None:
    assert list(neighbours.classify(PRIVATE_PLAN, {"found": entries})) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"address": 5}, {"address": "10.0.0"}, {"mac": 5}, {"mac": "\x1b]0;x\x07"}, {"mac": "02:00:00:00:00:99\n"},
        {"name": None}, {"name": ["x"]}, {"found_by": "ping"}, {"found_by": ["\x1b[2J"]}, {"found_by": [[]]},
    ],
)  # fmt: skip
def test_an_answer_of_the_head_is_checked(change: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        neighbours.classify(PRIVATE_PLAN, {"found": [entry("10.0.0.200", ALIEN, "ping") | change]})


@pytest.mark.parametrize("found", [None, {}, "x", [{}] * 65537])
def test_an_answer_without_a_list_of_hosts_is_refused(found: object) -> None:
    with pytest.raises((ValueError, KeyError)):
        neighbours.classify(PRIVATE_PLAN, {"found": found})


def test_an_unknown_host_cannot_send_control_characters_or_a_long_name() -> None:
    sent = entry("10.0.0.200", ALIEN, "lease", name="\x1b]52;c;x\x07\n" + "y" * 9999)
    (unknown,) = [one for one in neighbours.classify(PRIVATE_PLAN, {"found": [sent]}) if one.is_unknown]
    assert unknown.name == "?]52;c;x??" + "y" * 243


@pytest.mark.parametrize(
    ("found_by", "is_present"), [((), False), (("lease",), False), (("self",), True), (("lease", "neighbour"), True)]
)
def test_a_lease_alone_does_not_mean_present(found_by: tuple[str, ...], is_present: bool) -> None:
    assert found(1, *found_by).is_present is is_present
