"""Looking at servers before anything is decided."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from vcluster.adapters.kvm_probe import KvmVerdict
from vcluster.adapters.ssh import openssh_config
from vcluster.errors import ConflictError, MissingError
from vcluster.fleet import ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.facts import Claim, Facts, Route, UnderlayRoute
from vcluster.model.spec import ServerSpec, Spec
from vcluster.planning.addressing import routes_of_interest
from vcluster.planning.planner import CLUSTERS_FOLDER
from vcluster.util.deadline import Deadline

KVM_TIMEOUT_S = 60.0


def observe(
    fleet: Fleet, spec: Spec, state_root: Path, *, accel: str, kernel: Path | None, deadline: Deadline
) -> dict[str, Facts]:
    """What planning must know of every server, by name. `accel` is auto, kvm or tcg; `kernel` is to try KVM with."""
    claims = tuple(claim for name in ledger.cluster_names(state_root) if (claim := _claim(state_root, name)))
    ways = _jump_hosts(fleet, spec)

    def look(server: Server) -> Facts:
        chosen = choose_accel(server, accel, kernel, state_root)[0] if server.libvirt else "tcg"
        return _facts(server, claims, chosen, ways.get(server.name, {}))

    return fleet.each(look, deadline=deadline)


def _facts(server: Server, claims: tuple[Claim, ...], accel: str, ways: dict[str, UnderlayRoute]) -> Facts:
    seen = server.call("observe", disks=str(server.storage / CLUSTERS_FOLDER))
    mine = {network for claim in claims for network in (claim.subnet, *claim.management)}
    where = server.name if server.session else "this machine"
    routes = tuple(Route(IPv4Network(network), interface, where) for network, interface in seen["routes"])
    return Facts(
        memory_free_mib=server.libvirt.memory_free_mib() if server.libvirt else 0,
        disk_free_mib=seen["disk_free_mib"],
        cpus=seen["cpus"],
        accel=accel,
        routes=tuple(route for route in routes_of_interest(routes) if route.network not in mine),
        claims=claims,
        vnis=frozenset(seen["vnis"]),
        ways=ways,
        host_key=server.host_key,
    )


def _claim(state_root: Path, name: str) -> Claim | None:
    kept = ledger.ClusterFiles(state_root, name).read_ledger()
    if kept is None:
        return None
    return Claim(name, kept.plan.subnet, tuple(one.network.subnet for one in kept.plan.servers if one.network))


# KVM


def choose_accel(server: Server, asked: str, kernel: Path | None, state_root: Path) -> tuple[str, str]:
    """kvm where it works on a server, else tcg, and a line for the user where there is something to say.

    Raises MissingError when kvm is asked for and does not work.
    """
    if asked == "tcg":
        return "tcg", ""
    verdict = kvm_verdict(server, kernel, state_root / "accel.json")
    if verdict.kvm_works:
        return "kvm", ""
    where = f"on {server.name}" if server.session else "here"
    if asked == "kvm":
        raise MissingError(
            f"KVM does not work {where}: {verdict.reason}", hint="--accel auto emulates instead, more slowly"
        )
    return "tcg", f"KVM does not work {where} ({verdict.reason}): nodes are emulated (TCG), several times slower"


def kvm_verdict(server: Server, kernel: Path | None, cache: Path) -> KvmVerdict:
    """Whether KVM works on a server: what was found before if nothing has changed, else by booting a kernel there."""
    conditions = server.call("kvm_conditions")
    if conditions["against"]:
        return KvmVerdict(False, conditions["against"])
    if kernel is None:
        return KvmVerdict(False, "no kernel is at hand to try it with: vcluster image build")
    known = _read(cache).get(json.dumps(conditions, sort_keys=True))
    if known is not None:
        return KvmVerdict(**known)
    with kernel.open("rb") as file:
        said = server.agent.send(
            "try_kvm", file, kernel.stat().st_size, deadline=Deadline(KVM_TIMEOUT_S), awaited="a kernel under KVM"
        )
    _keep(cache, json.dumps(conditions, sort_keys=True), said)
    return KvmVerdict(**said)


def _read(cache: Path) -> dict[str, Any]:
    try:
        kept = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(cache: Path, key: str, verdict: Mapping[str, object]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(_read(cache) | {key: verdict}) + "\n")
    except OSError:
        return  # a verdict that cannot be kept is found again next time


# Ways between servers


def _jump_hosts(fleet: Fleet, spec: Spec) -> dict[str, dict[str, UnderlayRoute]]:
    """From each server that carries nodes to the switch and back, by both names."""
    ways: dict[str, dict[str, UnderlayRoute]] = {server.name: {} for server in spec.servers}
    ways.setdefault(spec.switch.name, {})
    for one in spec.servers:
        if one.name == spec.switch.name:
            continue
        there, back = underlay_between(fleet, one, spec.switch)
        ways[one.name][spec.switch.name] = there
        if back:
            ways[spec.switch.name][one.name] = back
    return ways


def underlay_between(
    fleet: Fleet, node_server: ServerSpec, switch: ServerSpec
) -> tuple[UnderlayRoute, UnderlayRoute | None]:
    """The underlay's way from a server that carries nodes to the switch, and back if the switch is open to us."""
    start = fleet[node_server.name]
    target = _address_of(fleet, switch, seen_from=start)
    there = way(start, target, node_server)
    if switch.name not in fleet:
        return there, None
    return there, way(fleet[switch.name], there.local, switch, local=target)


def way(server: Server, remote: IPv4Address, spec: ServerSpec, local: IPv4Address | None = None) -> UnderlayRoute:
    """The underlay's way from a server to an address; `local` is the server's own address if the other end knows it."""
    found = server.call("route_to", address=str(remote), interface=spec.interface)
    if found["is_local"]:
        raise ConflictError(
            f"{remote}, the other end of the tunnels, is an address of {server.name} itself",
            hint="a switch on the nodes' own server needs no tunnels: vcluster local create",
        )
    own = local or spec.address or IPv4Address(found["local"])
    if str(own) not in {address for _, address in server.call("addresses")}:
        raise MissingError(
            f"{server.name} has no address {own}, which the other end would send to (is there NAT between them?)",
            hint="address = … in its section of the file gives its own",
        )
    return UnderlayRoute(own, remote, found["interface"], found["mtu"])


def _address_of(fleet: Fleet, switch: ServerSpec, *, seen_from: Server) -> IPv4Address:
    """Where tunnels to the switch go: as the file says, else where we reached it by SSH, else what its name means."""
    if switch.address:
        return switch.address
    if switch.name in fleet and fleet[switch.name].session is None:
        # The switch is this machine: our address towards that server is where it reaches us.
        there = _reached(seen_from)
        found = fleet[switch.name].call("route_to", address=str(there), interface=switch.interface)
        return IPv4Address(found["local"])
    if switch.name in fleet:
        return _reached(fleet[switch.name])
    raise MissingError(f"the address of {switch.name} is not known", hint="address = … in [switch] gives it")


def _reached(server: Server) -> IPv4Address:
    """The IPv4 address that a server was reached at; through a proxy, or by IPv6, the one its name stands for."""
    assert server.session is not None  # noqa: S101 - nobody reaches this machine
    assert server.target is not None  # noqa: S101
    with suppress(AddressValueError):
        return IPv4Address(server.session.address)
    return IPv4Address(openssh_config.address_of(server.target.asked))
