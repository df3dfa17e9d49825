"""Observation of servers before planning: facts, KVM, and routes between servers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from vcluster.adapters.kvm_probe import KvmVerdict
from vcluster.adapters.ssh import openssh_config
from vcluster.errors import ConflictError, MissingError
from vcluster.fleet import ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.model import json_text
from vcluster.model.facts import Claim, Facts, Route, UnderlayRoute
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL_SERVER, ServerSpec
from vcluster.planning.addressing import routes_of_interest
from vcluster.planning.planner import CLUSTERS_FOLDER
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

KVM_TIMEOUT_S = 120.0  # longer than the test itself takes


def observe(
    fleet: Fleet,
    carriers: Sequence[ServerSpec],
    switch: ServerSpec,
    state_root: Path,
    *,
    accel: str,
    kernel: Path | None,
    deadline: Deadline,
) -> dict[str, Facts]:
    """The facts of every server by name, for planning.

    `carriers` are the servers that carry nodes. `accel` is auto, kvm or tcg; `kernel` is the kernel to test KVM.

    Raises MissingError if kvm is required and does not work, or if a server cannot reach the switch.
    """
    known = _known_ledgers(state_root)
    pending = _pending(known)
    plans = [found.plan for _, found in known]
    routes = _underlay_routes(fleet, carriers, switch, deadline)

    def observe_server(server: Server) -> Facts:
        chosen = choose_accel(server, accel, kernel, state_root)[0] if server.libvirt else "tcg"
        return _facts(server, plans, pending, chosen, routes.get(server.name, {}))

    return fleet.each(observe_server, deadline=deadline)


def _known_ledgers(state_root: Path) -> list[tuple[ledger.ClusterFiles, ledger.Ledger]]:
    """The clusters of the state folder that have a ledger."""
    names = ledger.cluster_names(state_root)
    every = [ledger.ClusterFiles(state_root, name) for name in names]
    return [(files, found) for files in every if (found := files.read_ledger())]


def _pending(known: Sequence[tuple[ledger.ClusterFiles, ledger.Ledger]]) -> list[Plan]:
    """The plans of clusters whose nodes a command creates or starts now."""
    return [
        found.plan
        for files, found in known
        if (found.state == "creating" and files.is_locked()) or files.is_starting_nodes()
    ]


def pending_plans(state_root: Path, *, besides: str) -> list[Plan]:
    """The plans of clusters `besides` this one whose nodes a command creates or starts now."""
    return [plan for plan in _pending(_known_ledgers(state_root)) if plan.name != besides]


def free_memory_mib(server: Server, pending: Sequence[Plan]) -> int:
    """The free memory of a server, less what the commands that carry out the `pending` plans are about to use."""
    return max(0, server.libvirt.memory_free_mib() - _promised_mib(server, pending)) if server.libvirt else 0


def _facts(
    server: Server, plans: Sequence[Plan], pending: Sequence[Plan], accel: str, underlay: dict[str, UnderlayRoute]
) -> Facts:
    """The facts of a server. The `plans` are those of all ledgers; commands carry out the `pending` ones now."""
    seen = server.call("observe", disks=str(server.storage / CLUSTERS_FOLDER))
    claims = tuple(map(_claim, plans))
    own_subnets = {network for claim in claims for network in (claim.subnet, *claim.management)}
    where = server.name if server.session else "this machine"
    routes = tuple(Route(IPv4Network(network), interface, where) for network, interface in seen["routes"])
    return Facts(
        memory_free_mib=free_memory_mib(server, pending),
        disk_free_mib=seen["disk_free_mib"],
        cpus=seen["cpus"],
        processors=tuple(seen["processors"]),
        accel=accel,
        tsc_mhz=seen["tsc_mhz"],
        routes=tuple(route for route in routes_of_interest(routes) if route.network not in own_subnets),
        hosts=frozenset(map(IPv4Address, seen["hosts"])),
        claims=claims,
        vnis=frozenset(seen["vnis"]) | _promised_vnis(server, plans),
        underlay_routes=underlay,
        host_key=server.host_key,
        is_dns_free=seen["is_dns_free"],
    )


def _claim(plan: Plan) -> Claim:
    return Claim(plan.name, plan.subnet, tuple(server.network.subnet for server in plan.servers if server.network))


def _promised_vnis(server: Server, plans: Sequence[Plan]) -> frozenset[int]:
    """The VNIs of our clusters on a server. Their tunnels may not exist yet, or no more after a reboot."""
    planned = (each for plan in plans for each in plan.servers if each.host_key == server.host_key)
    return frozenset(tunnel.vni for each in planned for tunnel in each.tunnels)


def _promised_mib(server: Server, pending: Sequence[Plan]) -> int:
    """The memory of nodes on a server that a command is about to start."""
    promised = [
        (node.domain, plan.memory_mib)
        for plan in pending
        for planned in plan.servers
        if planned.host_key == server.host_key
        for node in plan.nodes_on(planned.name)
    ]
    if not promised or not server.libvirt:
        return 0
    running = {domain.name for domain in server.libvirt.domains() if domain.power.is_active}
    return sum(memory_mib for domain, memory_mib in promised if domain not in running)


# KVM


def choose_accel(server: Server, asked: str, kernel: Path | None, state_root: Path) -> tuple[str, str]:
    """The accelerator of a server, kvm or tcg, and a note for the user, or an empty one.

    Raises MissingError if `asked` is kvm and KVM does not work.
    """
    if asked == "tcg":
        return "tcg", ""
    verdict = kvm_verdict(server, kernel, state_root / "accel.json")
    if verdict.kvm_works:
        return "kvm", ""
    where = f"on {server.name}" if server.session else "here"
    if asked == "kvm":
        raise MissingError(
            f"KVM does not work {where}: {verdict.reason}", hint="--accel auto emulates the nodes, several times slower"
        )
    return "tcg", f"KVM does not work {where} ({verdict.reason}): nodes are emulated (TCG), several times slower"


def kvm_verdict(server: Server, kernel: Path | None, cache: Path) -> KvmVerdict:
    """Test if KVM works on a server, by a boot of a kernel there. The cache holds results for unchanged conditions."""
    conditions = server.call("kvm_conditions")
    if conditions["against"]:
        return KvmVerdict(False, conditions["against"])
    if kernel is None:
        return KvmVerdict(False, "a test of it needs a guest kernel; run vcluster image build")
    known = _read(cache).get(json.dumps(conditions, sort_keys=True))
    if known is not None:
        return KvmVerdict(**known)
    with kernel.open("rb") as file:
        verdict = server.agent.send(
            "try_kvm", file, kernel.stat().st_size, deadline=Deadline(KVM_TIMEOUT_S), awaited="a kernel under KVM"
        )
    _write(cache, json.dumps(conditions, sort_keys=True), verdict)
    return KvmVerdict(**verdict)


def _read(cache: Path) -> dict[str, Any]:
    try:
        verdicts = json_text.parse(cache.read_text())
    except (OSError, ValueError):
        return {}
    return verdicts if isinstance(verdicts, dict) else {}


def _write(cache: Path, key: str, verdict: Mapping[str, object]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(_read(cache) | {key: verdict}) + "\n")
    except OSError:  # on a full disk, for example; without a cache, the next command tests again
        with suppress(OSError):
            cache.unlink(missing_ok=True)


# Routes between servers


def _underlay_routes(
    fleet: Fleet, carriers: Sequence[ServerSpec], switch: ServerSpec, deadline: Deadline
) -> dict[str, dict[str, UnderlayRoute]]:
    """The routes between each server that carries nodes and the switch, by the names of start and end."""
    routes: dict[str, dict[str, UnderlayRoute]] = {server.name: {} for server in carriers}
    routes.setdefault(switch.name, {})
    remote = [server for server in carriers if server.name != switch.name]
    found = parallel.each(remote, lambda server: _routes_to_switch(fleet, server, switch), deadline=deadline)
    for server, (there, back) in zip(remote, found, strict=True):
        routes[server.name][switch.name] = there
        if back:
            routes[switch.name][server.name] = back
    return routes


def _routes_to_switch(
    fleet: Fleet, node_server: ServerSpec, switch: ServerSpec
) -> tuple[UnderlayRoute, UnderlayRoute | None]:
    """The route from a server that carries nodes to the switch, and the route back if we can log in to the switch."""
    start = fleet[node_server.name]
    target = _address_of(fleet, switch, seen_from=start)
    there = underlay_route(start, target, node_server)
    if switch.name not in fleet:
        return there, None
    return there, underlay_route(fleet[switch.name], there.local, switch, local=target)


def underlay_route(
    server: Server, remote: IPv4Address, spec: ServerSpec, local: IPv4Address | None = None
) -> UnderlayRoute:
    """The route from a server to an address. `local` is the server's own address, if the other end sends to it.

    Raises ConflictError if both ends are one machine, MissingError if the server does not have its own address.
    """
    found = server.call("route_to", address=str(remote), interface=spec.interface)
    if found["is_local"]:
        raise ConflictError(
            f"{server.name} itself has the address {remote}, which is the other end of its tunnels",
            hint="if the nodes and the switch are on one server, use vcluster local create",
        )
    own = local or spec.address or IPv4Address(found["local"])
    if str(own) not in {address for _, address in server.call("addresses")}:
        raise MissingError(
            f"{server.name} lacks the address {own}, which its tunnels need; it may be behind NAT",
            hint="set address = … in the section of this server to its own address",
        )
    return UnderlayRoute(own, remote, found["interface"], found["mtu"])


def _address_of(fleet: Fleet, switch: ServerSpec, *, seen_from: Server) -> IPv4Address:
    """The address of the switch for tunnels: from the file, else the address of the SSH connection."""
    if switch.address:
        return switch.address
    if switch.name in fleet and fleet[switch.name].session is None:
        # The switch is this machine. The server reaches us at our source address towards it.
        there = _ssh_address(seen_from)
        found = fleet[switch.name].call("route_to", address=str(there), interface=switch.interface)
        return IPv4Address(found["local"])
    if switch.name in fleet:
        return _ssh_address(fleet[switch.name])
    raise MissingError(f"the address of {switch.name} is unknown", hint="set address = … in [switch]")


def _ssh_address(server: Server) -> IPv4Address:
    """The IPv4 address of the SSH connection to a server. Through a proxy or by IPv6: the address of its name.

    Raises ConflictError for a loopback address: Debian gives the host name of a machine 127.0.1.1 on that machine.
    """
    assert server.session is not None  # noqa: S101 - this machine has no SSH connection
    assert server.target is not None  # noqa: S101
    try:
        found = IPv4Address(server.session.address)
    except AddressValueError:
        found = IPv4Address(openssh_config.address_of(server.target.asked))
    if found.is_loopback:
        raise ConflictError(
            f"{server.name} has the address {found} here, which other servers cannot reach",
            hint=f"set address = … to an address that they reach; if {server.name} is this machine, write "
            f"{LOCAL_SERVER} for it",
        )
    return found
