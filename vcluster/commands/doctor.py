"""Are the servers fit, and the paths between them? Each finding says what is wrong and the command that mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vcluster.agent.diagnostics import ERROR, OK, WARNING, libvirt_start
from vcluster.errors import VclusterError
from vcluster.fleet import observation, servers
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.images.store import DEFAULT_IMAGE
from vcluster.model.spec import LOCAL, Image, ServerSpec, Spec
from vcluster.planning.planner import VXLAN_OVERHEAD_BYTES, make_plan
from vcluster.resources import interfaces, rules
from vcluster.stages import tunnels
from vcluster.util.deadline import Deadline

# The cluster that the tunnels are tried with. It has no nodes, and is gone when the trial is over.
TRIAL = "doctor"
NO_IMAGE = Image("none", "sha256-none", Path("/none"), 0)
MEMORY_LOW_MIB = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `mend` is the command that puts it right. No server is said of this machine."""

    level: str
    what: str
    detail: str
    fix: str = ""
    server: str = ""


def check_this_machine(context: Context, *, carries_nodes: bool = True) -> tuple[Finding, ...]:
    """This machine: everything that can be looked at without changing anything."""
    with context.connector.open(servers.request_for_spec(LOCAL, carries_nodes=False)) as server:
        found = [*_of(server.call("diagnose", carries_nodes=carries_nodes, is_controller=True))]
    if carries_nodes:
        found += _libvirt_here(context)
    return (*found, *_image(context), *_namesake())


def check_servers(context: Context, spec: Spec) -> tuple[Finding, ...]:
    """Every server of a cluster to be, and real frames through a tunnel between each and the switch, and back."""
    requests = {one.name: servers.request_for_spec(one, carries_nodes=False) for one in (*spec.servers, spec.switch)}
    with context.fleet(list(requests.values()), allow_unreachable=True) as fleet:
        found = [
            Finding(ERROR, "ssh", error.message, error.hint or "", name) for name, error in fleet.unreachable.items()
        ]
        carriers = {server.name for server in spec.servers}
        for server in fleet.servers.values():
            found += _server(context, server, spec, carries_nodes=server.name in carriers)
        if spec.switch.name in fleet:
            for one in spec.servers:
                if one.name in fleet and one.name != spec.switch.name:
                    found += _tunnel(context, fleet, spec, one)
    return tuple(found)


def _of(found: Sequence[dict[str, Any]], server: str = "") -> Iterator[Finding]:
    return (Finding(**{"level": WARNING, **one}, server=server) for one in found)


def _server(context: Context, server: Server, spec: Spec, *, carries_nodes: bool) -> Iterator[Finding]:
    where = server.label
    if server.session:
        yield Finding(OK, "ssh", f"logged in as {server.session.user}", server=where)
        yield from _of(server.call("diagnose", carries_nodes=carries_nodes, is_controller=False), where)
    yield from _of(server.call("obstacles", port=spec.vxlan_port), where)
    if carries_nodes and server.session:
        one = next(one for one in spec.servers if one.name == server.name)
        yield from _libvirt_there(context, one)


def _libvirt_here(context: Context) -> Iterator[Finding]:
    try:
        with context.connector.open(servers.request_for_spec(LOCAL, carries_nodes=True)) as server:
            yield from _libvirt(context, server)
    except VclusterError as error:
        fix = "sudo vcluster doctor" if os.geteuid() else libvirt_start()
        yield Finding(ERROR, "libvirt", error.message, fix)


def _libvirt_there(context: Context, spec: ServerSpec) -> Iterator[Finding]:
    try:
        with context.connector.open(servers.request_for_spec(spec, carries_nodes=True)) as server:
            yield from _libvirt(context, server)
    except VclusterError as error:
        yield Finding(ERROR, "libvirt", error.message, error.hint or "", spec.name)


def _libvirt(context: Context, server: Server) -> Iterator[Finding]:
    versions, free = server.hypervisor.versions(), server.hypervisor.memory_free_mib()
    where = server.label
    yield Finding(OK, "libvirt", f"libvirt {versions['libvirt']}, QEMU {versions['qemu']}", server=where)
    yield Finding(OK if free > MEMORY_LOW_MIB else WARNING, "memory", f"{free} MiB free", server=where)
    verdict = observation.kvm_verdict(server, context.images.any_kernel(), context.state_root / "accel.json")
    if verdict.kvm_works:
        yield Finding(OK, "KVM", verdict.reason, server=where)
    else:
        yield Finding(WARNING, "KVM", f"nodes are emulated, several times slower: {verdict.reason}", server=where)


def _image(context: Context) -> Iterator[Finding]:
    if DEFAULT_IMAGE in context.images.names():
        yield Finding(OK, "image", f"{DEFAULT_IMAGE} is there")
    else:
        yield Finding(WARNING, "image", f"{DEFAULT_IMAGE} is not built yet", "vcluster image build")


def _namesake() -> Iterator[Finding]:
    first = shutil.which("vcluster")
    if first and b"vcluster.cli.main" not in Path(first).read_bytes()[:4096]:
        yield Finding(WARNING, "PATH", f"{first} is another tool of the same name and comes first")
    if (Path.home() / ".vcluster").is_dir():
        yield Finding(OK, "~/.vcluster", "belongs to another tool of the same name; it is left alone")


def _tunnel(context: Context, fleet: Fleet, spec: Spec, one: ServerSpec) -> Iterator[Finding]:
    """A tunnel between a server and the switch, for as long as frames are tried through it."""
    pair, where = (
        Fleet({name: fleet[name] for name in (one.name, spec.switch.name)}, {}),
        f"{one.name} to {spec.switch.name}",
    )
    asked = replace(
        spec, name=TRIAL, node_names=("node1",), servers=(replace(one, nodes=None),), memory_mib=1, disk_gib=1
    )
    try:
        seen = observation.observe(
            pair, asked, context.state_root, accel="tcg", kernel=None, deadline=Deadline(one.timeout_s)
        )
        seen = {name: replace(facts_of, memory_free_mib=2**20, disk_free_mib=2**20) for name, facts_of in seen.items()}
        way = seen[one.name].underlay_routes[spec.switch.name]
        plan = make_plan(asked, seen, image=NO_IMAGE, owner=context.connector.owner)
        try:
            for planned in plan.servers:
                rules.create(pair[planned.name], planned, TRIAL)
                interfaces.create(pair[planned.name], planned)
            tunnels.prove(pair, plan)
        finally:
            for server in pair.servers.values():
                with suppress(VclusterError):
                    interfaces.destroy(server, TRIAL)
                    rules.destroy(server, TRIAL)
    except VclusterError as error:
        yield Finding(ERROR, f"tunnel {where}", error.message, error.hint or "")
        return
    yield Finding(
        OK, f"tunnel {where}",
        f"{way.local} ({way.interface}) to {way.remote}, UDP {spec.vxlan_port}: frames of {spec.mtu} bytes pass both "
        f"ways; up to {way.mtu - VXLAN_OVERHEAD_BYTES} would fit",
    )  # fmt: skip
