"""Diagnose servers and the paths between them. A finding has a cause and, if possible, the command that fixes it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vcluster.agent import libvirt_daemons
from vcluster.agent.diagnostics import ERROR, OK, WARNING
from vcluster.errors import VclusterError
from vcluster.fleet import observation, servers
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.spec import DEFAULT_IMAGE, LOCAL, Image, ServerSpec, Spec
from vcluster.model.versions import too_old
from vcluster.planning.planner import make_plan
from vcluster.planning.topology import VXLAN_OVERHEAD_BYTES
from vcluster.resources import domains, interfaces, rules
from vcluster.snapshots.template import snapshots_folder
from vcluster.stages import tunnels
from vcluster.util.deadline import Deadline

VNI_BASES = range(2**23, 2**24 - 1)  # of trials: above the ones that clusters choose
NO_IMAGE = Image("none", "sha256-none", Path("/none"), 0)
MEMORY_LOW_MIB = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of the diagnosis; `fix` is the command that fixes it. The server is empty for this machine."""

    level: str
    what: str
    detail: str
    fix: str = ""
    server: str = ""


def check_this_machine(context: Context, *, carries_nodes: bool = True) -> tuple[Finding, ...]:
    """Diagnose this machine without changing anything."""
    with context.connector.open(servers.request_for_spec(LOCAL, carries_nodes=False)) as server:
        found = [*_findings(server.call("diagnose", carries_nodes=carries_nodes, is_controller=True))]
        if carries_nodes:
            found += _findings(server.call("obstacles", port=None))
    if carries_nodes:
        found += _libvirt_here(context)
    return (*found, *_image(context), *_other_tools())


def check_servers(context: Context, spec: Spec) -> tuple[Finding, ...]:
    """Diagnose every server of a spec; send frames through a tunnel between each server and the switch, and back."""
    requests = {each.name: servers.request_for_spec(each, carries_nodes=False) for each in (*spec.servers, spec.switch)}
    with context.fleet(list(requests.values()), allow_unreachable=True) as fleet:
        found = [
            Finding(ERROR, "ssh", error.message, error.hint or "", name) for name, error in fleet.unreachable.items()
        ]
        carriers = {server.name for server in spec.servers}
        for server in fleet.servers.values():
            found += _server(context, server, spec, carries_nodes=server.name in carriers)
        if spec.switch.name in fleet:
            for carrier in spec.servers:
                if carrier.name in fleet and carrier.name != spec.switch.name:
                    found += _tunnel(context, fleet, spec, carrier)
    return tuple(found)


def _findings(found: Sequence[dict[str, Any]], server: str = "") -> Iterator[Finding]:
    return (Finding(**{"level": WARNING, **each}, server=server) for each in found)


def _server(context: Context, server: Server, spec: Spec, *, carries_nodes: bool) -> Iterator[Finding]:
    where = server.label
    if server.session:
        yield Finding(OK, "ssh", f"logged in as {server.session.user}", server=where)
        yield from _findings(server.call("diagnose", carries_nodes=carries_nodes, is_controller=False), where)
    yield from _findings(server.call("obstacles", port=spec.vxlan_port), where)
    if carries_nodes and server.session:
        yield from _libvirt_there(context, next(each for each in spec.servers if each.name == server.name))


def _libvirt_here(context: Context) -> Iterator[Finding]:
    try:
        with context.connector.open(servers.request_for_spec(LOCAL, carries_nodes=True)) as server:
            yield from _libvirt(context, server)
    except VclusterError as error:
        fix = "run it with sudo" if os.geteuid() else libvirt_daemons.start_command()
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
    yield from (replace(finding, server=where) for finding in (*_old(versions), *_clones(server), *_mounts(server)))
    yield Finding(OK if free > MEMORY_LOW_MIB else WARNING, "memory", f"{free} MiB free", server=where)
    verdict = observation.kvm_verdict(server, context.images.any_kernel(), context.state_root / "accel.json")
    if verdict.kvm_works:
        yield Finding(OK, "KVM", verdict.reason, server=where)
    else:
        yield Finding(WARNING, "KVM", f"nodes are emulated, several times slower: {verdict.reason}", server=where)


def _old(versions: Mapping[str, str]) -> Iterator[Finding]:
    for program, oldest in too_old(versions).items():
        detail = f"{versions[program]} is too old: vcluster needs {oldest} or newer"
        yield Finding(ERROR, program, detail, "upgrade to Debian 12 or newer")


def _clones(server: Server) -> Iterator[Finding]:
    if obstacle := server.call("clone_obstacle", root=str(snapshots_folder(server.storage))):
        yield Finding(WARNING, "clones", f"none can be made, so nodes boot: {obstacle}")


def _mounts(server: Server) -> Iterator[Finding]:
    """An error if mounts below /dev hide each other and no domain starts. A setting of libvirt can prevent that."""
    hidden = server.call("hidden_mounts")
    if not hidden:
        return
    try:
        domains.try_one(server, "doctor")
    except VclusterError as error:
        detail = f"two mounts at {hidden[0]}, and no domain starts: {error.message}"
        yield Finding(ERROR, "mounts", detail, "echo 'namespaces = [ ]' >>/etc/libvirt/qemu.conf, and restart libvirtd")


def _image(context: Context) -> Iterator[Finding]:
    if DEFAULT_IMAGE in context.images.names():
        yield Finding(OK, "image", f"{DEFAULT_IMAGE} is built")
    else:
        yield Finding(WARNING, "image", f"{DEFAULT_IMAGE} is not built yet", "vcluster image build")


def _other_tools() -> Iterator[Finding]:
    first = shutil.which("vcluster")
    if first and b"vcluster.cli.main" not in Path(first).read_bytes()[:4096]:
        yield Finding(WARNING, "PATH", f"{first} is another tool with the same name and comes first")
    if Path(os.path.expanduser("~/.vcluster")).is_dir():  # noqa: PTH111 - it raises no error without a home
        yield Finding(OK, "~/.vcluster", "belongs to another tool with the same name; vcluster does not touch it")


def _tunnel(context: Context, fleet: Fleet, spec: Spec, carrier: ServerSpec) -> Iterator[Finding]:
    """Create a tunnel between a server and the switch, send frames through it, and remove it."""
    pair = Fleet({name: fleet[name] for name in (carrier.name, spec.switch.name)}, {})
    what = f"tunnel {carrier.name} to {spec.switch.name}"
    trial = _trial(spec, carrier)
    try:
        facts = observation.observe(
            pair,
            trial.servers,
            trial.switch,
            context.state_root,
            accel="tcg",
            kernel=None,
            deadline=Deadline(carrier.timeout_s),
        )
        facts = {
            name: replace(each, memory_free_mib=2**20, disk_free_mib=2**20, is_dns_free=True)
            for name, each in facts.items()
        }
        route = facts[carrier.name].underlay_routes[spec.switch.name]
        plan = make_plan(trial, facts, image=NO_IMAGE, owner=context.connector.owner)
        try:
            for planned in plan.servers:
                rules.create(pair[planned.name], planned, trial.name)
                interfaces.create(pair[planned.name], planned)
            tunnels.prove(pair, plan)
        finally:
            for server in pair.servers.values():
                with suppress(VclusterError):
                    interfaces.destroy(server, trial.name)
                    rules.destroy(server, trial.name)
    except VclusterError as error:
        yield Finding(ERROR, what, error.message, error.hint or "")
        return
    yield Finding(
        OK, what,
        f"{route.local} ({route.interface}) to {route.remote}, UDP {spec.vxlan_port}: frames of {spec.mtu} bytes pass "
        f"in both directions; {route.mtu - VXLAN_OVERHEAD_BYTES} bytes are possible",
    )  # fmt: skip


def _trial(spec: Spec, carrier: ServerSpec) -> Spec:
    """The cluster that tunnels are tried with: it has no nodes, and it is removed after the trial.

    Name and VNI are random, so the removal meets no user's cluster and no trial of another doctor.
    """
    return replace(
        spec,
        name=f"doctor-{secrets.token_hex(4)}",
        node_names=("node1",),
        servers=(replace(carrier, nodes=None, processors=()),),
        processors=(),
        memory_mib=1,
        disk_gib=1,
        vni_base=secrets.choice(VNI_BASES),
    )
