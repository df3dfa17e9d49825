"""Which clusters exist, and the state of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from vcluster.errors import MissingError, RequestError, VclusterError
from vcluster.fleet import ledger as ledgers
from vcluster.fleet import login_files, servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles, Ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.model import naming
from vcluster.model.plan import Node, Plan
from vcluster.model.status import MISSING, PAUSED, STOPPED, UNKNOWN, Observed, PowerState, Status, status_of
from vcluster.planning import fault_plan
from vcluster.resources import faults, rules, shaping
from vcluster.resources.kinds import KINDS
from vcluster.resources.owned import OwnedItem
from vcluster.util import parallel


def status(context: Context, name: str) -> Status:
    """The state of a cluster and of its nodes."""
    files = context.files(name)
    with context.fleet_of(read_ledger(files).plan, allow_unreachable=True) as fleet:
        return observe_status(fleet, files)


def observe_status(fleet: Fleet, files: ClusterFiles) -> Status:
    """Compare the ledger with what the servers have."""
    ledger = read_ledger(files)
    outcomes = parallel.outcomes(tuple(fleet.servers.values()), lambda server: _observe_server(server, ledger.plan))
    found = dict(zip(fleet.servers, outcomes, strict=True)) | fleet.unreachable
    seen = {name: outcome for name, outcome in found.items() if isinstance(outcome, Observed)}
    lost = {name: outcome.message for name, outcome in found.items() if isinstance(outcome, VclusterError)}
    return status_of(
        ledger.plan,
        ledger_state=ledger.state,
        is_being_changed=files.is_locked(),
        seen=seen,
        lost=lost,
        faults=fault_plan.faults(ledger.plan, {name: each.faults for name, each in seen.items() if each.faults}),
        lost_files=login_files.damaged(files, ledger.plan) if ledger.state == "ready" else (),
    )


def _observe_server(server: Server, plan: Plan) -> Observed:
    limits, lost_limits = shaping.compare(server, plan)
    domains = [node.domain for node in plan.nodes_on(server.name)]
    return Observed(
        domains=domains_on(server),
        interfaces={link["name"]: link["master"] for link in server.call("interfaces")},
        networks={network.name for network in server.libvirt.networks() if network.is_active}
        if server.libvirt
        else set(),
        pools={pool.name for pool in server.libvirt.pools() if pool.is_active} if server.libvirt else set(),
        lacking_tables=rules.lacking(server, plan),
        limits=limits,
        lost_limits=lost_limits,
        faults=faults.read(server, plan),
        vcpu_times=server.call("vcpu_times", domains=domains)["times"] if domains else {},
    )


def report_faults(context: Context, status: Status) -> None:
    """Report the active faults, which explain why nodes do not answer."""
    for fault in status.faults:
        context.report.note(f"active fault: {fault}")


def cluster_names(context: Context) -> tuple[str, ...]:
    """All clusters of this machine, by ledger or by owner label."""
    with context.local_server() as server:
        labelled = {item.cluster for item in survey(server)}
    return tuple(sorted(labelled | set(ledgers.cluster_names(context.state_root))))


def read_ledger(files: ClusterFiles) -> Ledger:
    """The ledger of a cluster that must have one."""
    ledger = files.read_ledger()
    if ledger is None and files.is_of_another_version():
        raise VclusterError(
            f"cluster {files.name} was made by another version of vcluster, and this version cannot read its ledger",
            hint=f"use that version, or vcluster clear {files.name}",
        )
    if ledger is None and files.folder.exists():
        raise VclusterError(f"the ledger of cluster {files.name} is lost", hint=f"vcluster clear {files.name}")
    if ledger is None:
        raise RequestError(f"cluster {files.name} does not exist", hint="vcluster list")
    return ledger


def keep_nodes(fleet: Fleet, files: ClusterFiles) -> Ledger:
    """Write into the ledger that users may use the nodes that exist now, and return it: `repair` must not remake them.

    Nodes of servers that were not reached stay as the ledger has them.
    """
    ledger = read_ledger(files)
    present = {name for domains in fleet.each(domains_on).values() for name in domains}
    new = (node for node in ledger.plan.nodes if node.name in ledger.unfinished)
    left = tuple(node.name for node in new if node.domain not in present)
    if left != ledger.unfinished:
        ledger = replace(ledger, unfinished=left)
        files.write_ledger(ledger)
    return ledger


def survey(server: Server, name: str | None = None) -> tuple[OwnedItem, ...]:
    """Everything on a server that carries our owner label: of the cluster `name`, or of any cluster."""
    items = (item for resource in KINDS.values() for item in resource.observe(server))
    where = server.name if server.session else ""
    return tuple(replace(item, server=where) for item in items if name in (None, item.cluster))


def leftovers(context: Context, name: str | None) -> tuple[OwnedItem, ...]:
    """What is left on this machine of the cluster `name`, or of any cluster: labelled items, and state folders."""
    with context.local_server() as server:
        labelled = survey(server, name)
    names = [known for known in ledgers.cluster_names(context.state_root) if name in (None, known)]
    return labelled + tuple(OwnedItem("state", str(context.files(known).folder), known) for known in names)


def data_disks(context: Context, name: str) -> tuple[str, ...]:
    """Descriptions of the disks with users' data that the ledger of a cluster lists."""
    ledger = context.files(name).read_ledger()
    nodes = ledger.plan.nodes if ledger else ()
    return tuple(f"a disk of {node.data_gib} GiB that {node.name} serves" for node in nodes if node.data_gib)


def describe_down(powers: Mapping[str, PowerState]) -> str:
    """Which of these nodes do not run, and why; empty if all run. Nodes in an unknown state count as running."""
    off = [name for name, power in powers.items() if power.state in (STOPPED, MISSING)]
    texts = [f"not running: {naming.folded(off)}"] if off else []
    texts += [f"{name} is paused: {power.reason}" for name, power in powers.items() if power.state == PAUSED]
    return "; ".join(texts)


def node_powers(context: Context, plan: Plan, nodes: Sequence[Node]) -> dict[str, PowerState]:
    """The power of nodes, by name. It is unknown for nodes of a server whose libvirt this user cannot open."""
    with accessible_fleet(context, plan, nodes) as fleet:
        return powers_of(fleet, nodes)


@contextmanager
def accessible_fleet(
    context: Context, plan: Plan, nodes: Sequence[Node], *, uses_libvirt: bool = True
) -> Iterator[Fleet]:
    """The servers that carry these nodes, if this user can open them, with their libvirt if it is used.

    vcluster does not ask for passwords here: commands that log in to nodes need no rights on servers.
    """
    names = {node.server for node in nodes}
    key = context.files(plan.name).server_key()
    requests = [request for request in servers.requests_for_plan(plan, key) if request.name in names]
    if not uses_libvirt:
        requests = [replace(request, carries_nodes=False) for request in requests]
    silent = replace(context, connector=replace(context.connector, ask=None, confirm=None))
    with silent.fleet(requests, allow_unreachable=True) as fleet:
        yield fleet


def powers_of(fleet: Fleet, nodes: Sequence[Node]) -> dict[str, PowerState]:
    """The power of nodes, by name; unknown for nodes of other servers, and of those that do not answer."""
    outcomes = parallel.outcomes(tuple(fleet.servers.values()), domains_on)
    found = dict(zip(fleet.servers, outcomes, strict=True))
    return {node.name: _power(found.get(node.server), node) for node in nodes}


def _power(domains: Mapping[str, PowerState] | VclusterError | None, node: Node) -> PowerState:
    if domains is None or isinstance(domains, VclusterError):
        return PowerState(UNKNOWN)
    return domains.get(node.domain, PowerState(MISSING))


def domains_on(server: Server) -> dict[str, PowerState]:
    """The power of our domains on a server."""
    return {domain.name: domain.power for domain in server.libvirt.domains()} if server.libvirt else {}


@contextmanager
def switch_server(context: Context, plan: Plan) -> Iterator[Server]:
    """Open the server of the switch; its libvirt is not needed. Raises MissingError if vcluster has no login for it."""
    key = context.files(plan.name).server_key()
    requests = [each for each in servers.requests_for_plan(plan, key) if each.name == plan.switch.server]
    if not requests:
        raise MissingError(
            f"vcluster has no login for {plan.switch.server}, so it cannot reach the ports of the switch",
            hint=f"on {plan.switch.server}: tcpdump -ni {plan.switch.bridge}",
        )
    with context.fleet([replace(each, carries_nodes=False) for each in requests]) as fleet:
        yield fleet[plan.switch.server]
