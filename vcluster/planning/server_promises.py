"""Compare the interfaces, rules, ports, domains and networks of a server with the plan of a cluster. Pure.

`seen` is the answer of the agent's operation survey_cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vcluster.model import naming
from vcluster.model.plan import Node, Plan, ServerPlan, Tunnel
from vcluster.model.promises import PRESENT, Fact
from vcluster.model.spec import PAUSE
from vcluster.planning import fault_plan, traffic_plan
from vcluster.planning.hops import switch_port
from vcluster.planning.packet_filter import guard_arguments
from vcluster.render import domain_xml

Seen = Mapping[str, Any]

AS_PLANNED, ABSENT, OFF, NONE = "as planned", "does not exist", "off", "none"
UP, DOWN = "up", "down"
# The names of settings in the answer of the agent (linux/if_link.h).
BRIDGE_SETTINGS = ("IFLA_BR_STP_STATE", "IFLA_BR_FORWARD_DELAY", "IFLA_BR_MCAST_SNOOPING")
TUNNEL_SETTINGS = ("IFLA_VXLAN_LEARNING",)
_DNS_PORT = 53


def survey_arguments(plan: Plan, server: ServerPlan, *, trees: tuple[str, ...], user: str) -> dict[str, Any]:
    """The arguments of the agent's operation survey_cluster for one server."""
    network, pool = server.network, server.pool
    return {
        "cluster": plan.name,
        "alias": naming.alias(plan.name, plan.owner),
        "interfaces": sorted(interface_names(plan, server)),
        "guard": guard_arguments(server, owner=plan.owner, cluster=plan.name, whole=plan),
        "network": network.name if network else "",
        "gateway": str(network.gateway) if network else "",
        "pool": pool.name if pool else "",
        "trees": trees,
        "user": user,
        "faults": fault_plan.label_arguments(plan, server.name),
        "links": traffic_plan.label_arguments(plan) if server.name == plan.switch.server else None,
    }


def interface_names(plan: Plan, server: ServerPlan) -> set[str]:
    """All interfaces of a cluster on a server: bridges, tunnels, taps, and shapers of links."""
    taps = {tap for node in plan.nodes_on(server.name) for tap in _taps(node, server)}
    bridges = [server.network.bridge] if server.network else []
    return {*server.interface_names, *taps, *bridges, *traffic_plan.shapers(plan, server.name)}


def _taps(node: Node, server: ServerPlan) -> dict[str, str]:
    """The taps of a node, each with its bridge."""
    management = {node.management.port: server.network.bridge} if node.management and server.network else {}
    return {node.port: node.bridge, **management}


def active_nodes(plan: Plan, server: ServerPlan, seen: Seen) -> list[Node]:
    """The nodes on a server that have a QEMU process."""
    domains = seen["domains"]
    return [node for node in plan.nodes_on(server.name) if domains.get(node.domain, {}).get("pid")]


def facts_of_server(plan: Plan, server: ServerPlan, seen: Seen) -> Iterator[Fact]:
    """Everything but files."""
    yield from _interface_facts(server, seen)
    yield from _port_facts(plan, server, seen)
    yield from _ipv6_facts(server, seen)
    yield from _address_facts(plan.name, server, seen)
    table = naming.table_name(plan.name, plan.owner)
    for promise, family in (("rules-ip", "inet"), ("rules-arp", "arp"), ("rules-bridge", "bridge")):
        yield Fact(promise, f"{family} {table}", AS_PLANNED, _found(seen["tables"].get(family, ABSENT)))
    yield from _fault_facts(plan, seen)
    yield from _listener_facts(plan, server, seen)
    held = seen["faults"]["held"] if seen["faults"] else ()
    paused = {one["node"] for one in held if one["kind"] == PAUSE and one["is_active"]}
    for node in plan.nodes_on(server.name):
        yield from _domain_facts(plan, node, seen["domains"].get(node.domain), is_paused=node.name in paused)
    yield from _storage_facts(plan, server, seen)
    if seen["links"] is not None:
        yield from _limit_facts(plan, seen)


def _found(text: str) -> str:
    """The found state; empty if the thing is not there."""
    return "" if text == ABSENT else text


# Interfaces


def _interface_facts(server: ServerPlan, seen: Seen) -> Iterator[Fact]:
    found = seen["interfaces"]
    labels = {bridge.name: bridge.alias for bridge in server.bridges}
    labels |= {tunnel.name: tunnel.alias for tunnel in server.tunnels}
    for name, label in labels.items():
        present = (found[name]["alias"] or "no label") if name in found else ""
        yield Fact("interface-label", name, label, present)
    for bridge in server.bridges:
        if one := found.get(bridge.name):
            yield Fact("bridge-settings", bridge.name, _bridge_text(bridge.mtu), _found_bridge(one))
    for tunnel in server.tunnels:
        if one := found.get(tunnel.name):
            # The kernel keeps this setting when repair changes the others.
            remedy = f"ip link set dev {tunnel.name} type vxlan nolearning" if _learns(one) else ""
            yield Fact("tunnel-settings", tunnel.name, _tunnel_text(tunnel), _found_tunnel(one), remedy)


def _bridge_text(mtu: int, state: str = UP, stp: object = 0, delay: object = 0, snooping: object = 0) -> str:
    return f"{state}, MTU {mtu}, spanning tree {stp}, forward delay {delay}, multicast snooping {snooping}"


def _found_bridge(one: Seen) -> str:
    if one["kind"] != "bridge":
        return f"is of kind {one['kind'] or '?'}"
    settings = one["settings"]
    return _bridge_text(one["mtu"], UP if one["is_up"] else DOWN, *(settings.get(name) for name in BRIDGE_SETTINGS))


def _tunnel_text(tunnel: Tunnel) -> str:
    ends = f"{tunnel.local} to {tunnel.remote} by {tunnel.interface}"
    return f"{UP}, MTU {tunnel.mtu}, VNI {tunnel.vni}, {ends}, UDP port {tunnel.port}, learning 0"


def _learns(one: Seen) -> bool:
    return bool(one["settings"].get(TUNNEL_SETTINGS[0]))


def _found_tunnel(one: Seen) -> str:
    if one["kind"] != "vxlan":
        return f"is of kind {one['kind'] or '?'}"
    state, learning = UP if one["is_up"] else DOWN, int(_learns(one))
    ends = f"{one['local']} to {one['remote']} by {one['interface']}"
    return f"{state}, MTU {one['mtu']}, VNI {one['vni']}, {ends}, UDP port {one['port']}, learning {learning}"


def _port_facts(plan: Plan, server: ServerPlan, seen: Seen) -> Iterator[Fact]:
    found = seen["interfaces"]
    planned = {tunnel.name: tunnel.bridge for tunnel in server.tunnels if tunnel.name in found}
    for node in active_nodes(plan, server, seen):
        planned |= _taps(node, server)
    bridges = {*(bridge.name for bridge in server.bridges), *([server.network.bridge] if server.network else [])}
    for port, bridge in planned.items():
        yield Fact("bridge-ports", port, bridge, (found[port]["master"] or "no bridge") if port in found else "")
    for name, one in found.items():
        if one["master"] in bridges and name not in planned:
            yield Fact("bridge-ports", name, "", one["master"])


def _ipv6_facts(server: ServerPlan, seen: Seen) -> Iterator[Fact]:
    """libvirt turns IPv6 off on the management bridge, without the second setting."""
    own = server.network.bridge if server.network else ""
    for name, one in seen["interfaces"].items():
        settings = one["ipv6"]
        checked = {"disable_ipv6": "1"} | ({} if name == own else {"accept_ra": "0"})
        if one["is_named"]:
            is_off = all(settings.get(key, value) == value for key, value in checked.items())
            text = ", ".join(f"{key} {value}" for key, value in sorted(settings.items()))
            yield Fact("no-ipv6", name, OFF, OFF if is_off else text)


def _address_facts(cluster: str, server: ServerPlan, seen: Seen) -> Iterator[Fact]:
    network = server.network
    for kind, own in (
        ("addresses", f"{network.gateway}/{network.subnet.prefixlen}" if network else ""),
        ("routes", str(network.subnet) if network else ""),
    ):
        found = {
            f"{text} dev {name}" for name, one in seen["interfaces"].items() if one["is_named"] for text in one[kind]
        }
        planned = {f"{own} dev {network.bridge}"} if network else set()
        has_bridge = network is not None and network.bridge in seen["interfaces"]
        remedy = "" if has_bridge or not network else f"virsh net-destroy {network.name}; vcluster repair {cluster}"
        for thing in sorted(found | planned):
            yield _presence(kind, thing, thing in planned, thing in found, remedy if thing in planned else "")


def _presence(promise: str, thing: str, is_planned: bool, is_found: bool, remedy: str = "") -> Fact:
    return Fact(promise, thing, PRESENT * is_planned, PRESENT * is_found, remedy)


def _limit_facts(plan: Plan, seen: Seen) -> Iterator[Fact]:
    """The links whose port of the switch exists; the node of another one is off. A trace changes the rates of some."""
    planned = traffic_plan.texts_of(traffic_plan.planned_limits(plan))
    found = traffic_plan.texts_of(traffic_plan.found_limits(traffic_plan.readings(plan, seen["links"])))
    ports = {*seen["links"]["present"]}
    for node in plan.nodes:
        for direction in traffic_plan.DIRECTIONS:
            wanted, present = (limits.get((node.name, direction), NONE) for limits in (planned, found))
            remedy = f"vcluster link reset --name {plan.name}" if wanted == NONE else ""
            if switch_port(plan, node) in ports and node.name not in seen["links"]["traced"]:
                yield Fact("link-limits", f"{node.name} {direction}", wanted, present, remedy)


def _fault_facts(plan: Plan, seen: Seen) -> Iterator[Fact]:
    """The table with the faults of links, if there is one: a fault that vcluster made breaks no promise."""
    faults = seen["faults"]
    if not faults or faults["table"] in ("", ABSENT):
        return
    table = naming.faults_table_name(plan.name, plan.owner)
    yield Fact("fault-rules", f"bridge {table}", AS_PLANNED, faults["table"])
    own = {switch_port(plan, node) for node in plan.nodes}
    for port in sorted({port for element in faults["elements"] for port in element["ports"]} - own):
        yield Fact("fault-rules", port, "", "frames are dropped")


# Ports


def _listener_facts(plan: Plan, server: ServerPlan, seen: Seen) -> Iterator[Fact]:
    network = server.network
    if network and seen["network"] and seen["network"]["is_active"]:
        planned = {f"{protocol} {network.gateway}:{_DNS_PORT}" for protocol in ("tcp", "udp")}
        for thing in sorted({*planned, *seen["dns"]}):
            yield _presence("dns-ports", thing, thing in planned, thing in seen["dns"])
    for node in active_nodes(plan, server, seen):
        yield Fact("qemu-ports", node.domain, NONE, ", ".join(seen["domains"][node.domain]["listeners"]) or NONE)


# libvirt


def _domain_facts(plan: Plan, node: Node, domain: Seen | None, *, is_paused: bool) -> Iterator[Fact]:
    """The facts of a node. A fault that vcluster made has paused it if `is_paused`; then it need not run."""
    found = domain or {"defined": None, "running": None, "state": "", "pid": 0}
    yield Fact(
        "node-runs",
        node.domain,
        "paused" if is_paused else "running",
        found["state"] if found["pid"] else "off" if domain else "",
    )
    versions = [found["defined"], found["running"]] if found["pid"] else [found["defined"]]
    label = {"cluster": plan.name, "node": node.name, "image": plan.image.digest, "by": plan.owner}
    planned = _label_text(label)
    texts = [_found_label(node, version) for version in versions]
    yield Fact("domain-label", node.domain, planned, next((text for text in texts if text != planned), planned))
    if domain:
        differences = [text for version in versions if version and (text := _device_text(plan, node, version))]
        yield Fact("domain-devices", node.domain, AS_PLANNED, differences[0] if differences else AS_PLANNED)
        tunings = [", ".join(version["processors"]) or NONE for version in versions if version]
        tuning = ", ".join(planned_cpu_tuning(plan, node)) or NONE
        yield Fact("domain-processors", node.domain, tuning, next((one for one in tunings if one != tuning), tuning))


def _label_text(label: Mapping[str, str]) -> str:
    return " ".join(f'{name}="{value}"' for name, value in sorted(label.items()))


def _found_label(node: Node, version: Seen | None) -> str:
    if version is None:
        return ""
    if version["uuid"] != node.uuid:
        return f"UUID {version['uuid']}"
    return _label_text(version["label"]) or "no label"


def _device_text(plan: Plan, node: Node, version: Seen) -> str:
    """How the devices of a domain differ from the planned ones; empty if they do not."""
    planned, found = planned_devices(plan, node), set(version["devices"])
    parts = [f"lacks {one}" for one in sorted(planned - found)] + [f"also has {one}" for one in sorted(found - planned)]
    return "; ".join(parts)


def planned_cpu_tuning(plan: Plan, node: Node) -> list[str]:
    """The parts of a node's limit and pins, each as a text like those of the agent."""
    parts = [part for tuning in domain_xml.cpu_tuning_of(plan, node) for part in tuning]
    return sorted(" ".join((part.tag, *part.attrib.values(), *([part.text] if part.text else []))) for part in parts)


def planned_devices(plan: Plan, node: Node) -> set[str]:
    """The disks and interfaces of a node's domain, each as a text."""
    disks = {f"disk {domain_xml.volume_path(plan, node)}", f"disk {domain_xml.seed_path(plan, node)} (read-only)"}
    if node.data_gib:
        disks.add(f"disk {domain_xml.data_path(plan, node)}")
    own = {f"interface {node.mac} {node.port} in {node.bridge}"}
    if node.management:
        network = plan.network_of(node).name
        own.add(f"interface {node.management.mac} {node.management.port} in {network}")
    return disks | own


def _storage_facts(plan: Plan, server: ServerPlan, seen: Seen) -> Iterator[Fact]:
    if network := server.network:
        gateway, label = f"{network.gateway}/{network.subnet.prefixlen}", naming.alias(plan.name, plan.owner)
        planned = _network_text(network.uuid, network.bridge, "nat", [gateway], label)
        yield Fact("network", network.name, planned, _found_network(seen["network"]))
    if pool := server.pool:
        found = seen["pool"]
        yield Fact(
            "pool",
            pool.name,
            _pool_text(pool.uuid, str(pool.path)),
            _pool_text(found["uuid"], found["path"]) if found else "",
        )


def _network_text(
    uuid: str, bridge: str, forward: str, addresses: list[str], label: str, *, is_active: bool = True, rest: str = ""
) -> str:
    state = "active" if is_active else "not active"
    return f"{state}, UUID {uuid}, bridge {bridge}, {forward}, {' '.join(addresses)}, label {label or NONE}{rest}"


def _found_network(found: Seen | None) -> str:
    if found is None:
        return ""
    rest = (", with DHCP" if found["has_dhcp"] else "") + (", starts with the server" * found["starts_with_server"])
    return _network_text(
        found["uuid"], found["bridge"], found["forward"], found["addresses"], found["label"],
        is_active=found["is_active"], rest=rest,
    )  # fmt: skip


def _pool_text(uuid: str, path: str) -> str:
    return f"UUID {uuid}, folder {path}"
