"""The spine: create, stop, start and repair. Each reads like its description."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone

from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.ssh import ssh_session
from vcluster.commands import snapshot_build
from vcluster.commands.inventory import domains_on, observe_status, read_ledger, survey
from vcluster.commands.node_lifecycle import NodeLifecycle, concurrency_limit
from vcluster.commands.teardown import remove
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet import ledger, observation, servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles, Ledger
from vcluster.fleet.servers import Fleet, Server, ServerRequest
from vcluster.images import deliver
from vcluster.model import naming
from vcluster.model.facts import Facts
from vcluster.model.keys import Keys, make_keys
from vcluster.model.plan import Node, Plan, ServerPlan
from vcluster.model.spec import Image, ImageLogin, Spec
from vcluster.model.status import Status
from vcluster.planning.planner import make_plan
from vcluster.planning.resize import shrink
from vcluster.render.ssh_files import known_hosts, ssh_config
from vcluster.resources import domains, interfaces, networks, rules, server_keys, volumes
from vcluster.snapshots.template import SnapshotIndex
from vcluster.stages import check, path, provision, tunnels
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

SHUTDOWN_S, SHUTDOWN_LOOK_S = 60.0, 0.2

# Create


def server_requests(spec: Spec) -> list[ServerRequest]:
    """The servers that a create needs open."""
    requests = {server.name: servers.request_for_spec(server, carries_nodes=True) for server in spec.servers}
    if spec.sets_up_switch:
        requests.setdefault(spec.switch.name, servers.request_for_spec(spec.switch, carries_nodes=False))
    return list(requests.values())


def plan(context: Context, fleet: Fleet, spec: Spec, *, image: Image, accel: str) -> tuple[Plan, dict[str, Facts]]:
    """Decide everything a cluster will be, and touch nothing. With the facts that it was decided from, by server."""
    kernel = image.kernel or context.images.any_kernel()
    seen = observation.observe(
        fleet, spec, context.state_root, accel=accel, kernel=kernel, deadline=Deadline(spec.timeout_s)
    )
    return make_plan(spec, seen, image=image, owner=context.connector.owner), seen


def create(
    context: Context,
    spec: Spec,
    *,
    image_name: str,
    accel: str,
    keep: bool,
    boot: str = "auto",
    job: provision.Job | None = None,
) -> tuple[Status, bool]:
    """Make a cluster, prove it ready, and have the `job` done on every node.

    Nodes are copies of a memory that is kept, where `boot` is auto and one is at hand, or is clone. Whatever goes
    wrong, what was made is removed again, unless `keep`. Returns also whether a memory is lacking that could be kept.
    """
    files = context.files(spec.name)
    deadline = Deadline(spec.timeout_s)
    image = context.images.find(image_name)
    image_password = ask_image_password(context, spec.image_login)
    if spec.image_login:
        image_password()  # one that is missing is missed before anything is made
    with context.fleet(server_requests(spec)) as fleet, ExitStack() as stack:
        deadline = deadline.with_check(fleet.check)
        servers.require_rights(fleet)
        with ledger.planning(context.state_root):
            _refuse_existing(fleet, files)
            decided, _ = plan(context, fleet, spec, image=image, accel=accel)
            refuse_foreign(fleet, decided)
            stack.enter_context(files.locked())
            stack.push(_rollback(context, fleet, files, keep=keep))
            keys = make_keys(spec.name, spec.node_names, label=naming.alias(spec.name, decided.owner))
            save_plan(fleet, files, _ledger("creating", decided), keys)
        _report_emulation(context, fleet, decided, accel)
        with ExitStack() as open_sessions:
            _authorize_cluster_key(fleet, keys, deadline)
            deliver_image(context, fleet, decided, deadline)
            kept = _find_snapshots(context, fleet, decided, boot, deadline)
            create_networks(context, fleet, decided, deadline)
            work = NodeLifecycle(context, fleet, decided, keys, deadline, image_password=image_password, kept=kept)
            connections = work.all_nodes(work.bring_up, open_sessions)
            require_passed(prove_ready(context, fleet, decided, connections, deadline))
            if job:
                _provision(context, files, decided, job, work.sessions(connections, open_sessions), deadline)
        files.write_ledger(_ledger("ready", decided))
        return observe_status(fleet, files), boot == "auto" and snapshot_build.lacks(decided, kept)


def _rollback(context: Context, fleet: Fleet, files: ClusterFiles, *, keep: bool) -> Callable[..., None]:
    """What happens when a create ends by anything but success; an exit callback, so no failure can slip past it."""

    def end(_: type[BaseException] | None, error: BaseException | None, *__: object) -> None:
        if error is None:
            return
        if keep:
            context.report.note(f"kept as it is: vcluster clear {files.name} removes it")
            return
        try:
            remove(context, fleet, files)
        except VclusterError as left:
            parallel.raise_all([one for one in (error, left) if isinstance(one, VclusterError)])

    return end


def _refuse_existing(fleet: Fleet, files: ClusterFiles) -> None:
    found = next((server for server in fleet.servers.values() if survey(server, files.name)), None)
    if files.folder.exists() or found:
        away = found if found and found.session and not files.folder.exists() else None
        raise ConflictError(
            f"cluster {files.name} exists{f' on {away.name}' if away else ''}, or something is left of it",
            hint=f"vcluster clear {files.name}{f' --on {away.host}' if away else ''}, or take another --name",
        )


def refuse_foreign(fleet: Fleet, decided: Plan, present: Plan | None = None) -> None:
    """Nothing of ours bears these names, but for what is `present`; whatever does is somebody else's."""
    for planned in decided.servers:
        server = fleet[planned.name]
        taken: dict[str, Set[str]] = {"link": {link["name"] for link in server.call("interfaces")}}
        if server.libvirt:
            taken |= server.libvirt.names()
        ours = {*_names_on(present, present.server(planned.name))} if present else set()
        for kind, name in _names_on(decided, planned):
            if name in taken[kind] and (kind, name) not in ours:
                where = f" on {server.name}" if server.session else ""
                raise ConflictError(f"{kind} {name} exists{where} and is not ours", hint="take another --name")


def _names_on(decided: Plan, planned: ServerPlan) -> Iterator[tuple[str, str]]:
    """Every name that a cluster will take on a server, by kind."""
    for node in decided.nodes_on(planned.name):
        yield "domain", node.domain
        yield "link", node.port
        if node.management:
            yield "link", node.management.port
    if planned.network:
        yield "network", planned.network.name
        yield "link", planned.network.bridge
    if planned.pool:
        yield "pool", planned.pool.name
    for name in planned.interface_names:
        yield "link", name


def save_plan(fleet: Fleet, files: ClusterFiles, kept: Ledger, keys: Keys) -> None:
    """The ledger first: from here on a killed command leaves a trace to follow."""
    decided = kept.plan
    files.write_ledger(kept)
    files.write_keys(keys)
    jumps = {
        server.name: server.jump_host(files.identity)
        for server in fleet.servers.values()
        if server.session and decided.nodes_on(server.name)
    }
    config = ssh_config(decided, identity=files.identity, known_hosts=files.known_hosts, jumps=jumps)
    files.write_ssh(config=config, known_hosts=known_hosts(decided, keys))


def _ledger(state: str, decided: Plan) -> Ledger:
    return Ledger(ledger.VERSION, state, datetime.now(timezone.utc).isoformat(timespec="seconds"), decided)


def _report_emulation(context: Context, fleet: Fleet, decided: Plan, asked: str) -> None:
    """Say once for each server that nodes are emulated there, where that was not asked for."""
    for planned in decided.servers:
        if planned.image:
            kernel = decided.image.kernel or context.images.any_kernel()
            remark = observation.choose_accel(fleet[planned.name], asked, kernel, context.state_root)[1]
            if remark:
                context.report.note(remark)


def ask_image_password(context: Context, login: ImageLogin | None) -> Callable[[], str]:
    """The password of an image's own user, looked up when it is first needed: people are asked once."""
    return functools.cache(lambda: context.connector.image_password(login) if login else "")


def warm(context: Context, spec: Spec, *, image_name: str, accel: str, is_gentle: bool) -> tuple[str, ...]:
    """Make the memories that such a cluster's nodes would be made from; returns the servers where some were made."""
    image, deadline = context.images.find(image_name), Deadline(spec.timeout_s)
    with context.fleet(server_requests(spec)) as fleet:
        servers.require_rights(fleet)
        decided, _ = plan(context, fleet, spec, image=image, accel=accel)
        return snapshot_build.make(fleet, decided, deadline=deadline, report=context.report, is_gentle=is_gentle)


def build_snapshots_for(context: Context, name: str, *, is_gentle: bool) -> tuple[str, ...]:
    """The same for more nodes like those of a cluster, on every server of its."""
    decided = read_ledger(context.files(name)).plan
    with context.fleet_of(decided) as fleet:
        deadline = Deadline(decided.timeout_s).with_check(fleet.check)
        return snapshot_build.make(fleet, decided, deadline=deadline, report=context.report, is_gentle=is_gentle)


def _find_snapshots(context: Context, fleet: Fleet, decided: Plan, boot: str, deadline: Deadline) -> SnapshotIndex:
    """What nodes can be made from, rather than booted; for `clone` it is made if need be."""
    if boot == "cold":
        return {}
    if boot == "clone":
        snapshot_build.make(fleet, decided, deadline=deadline, report=context.report)
    return snapshot_build.find(fleet, decided, deadline=deadline, report=context.report)


def _provision(
    context: Context,
    files: ClusterFiles,
    decided: Plan,
    job: provision.Job,
    sessions: Mapping[str, ssh_session.Session],
    deadline: Deadline,
) -> None:
    """The last step: the user's own script on every node. The logs go with a cluster that fails, so it says why."""
    logs = files.make_logs(job.log_name)
    results = provision.run(decided, sessions, job, deadline=deadline, report=context.report, logs=logs)
    provision.require_passed(results, job, hint="--keep leaves the cluster for a look", with_output=True)


def _authorize_cluster_key(fleet: Fleet, keys: Keys, deadline: Deadline) -> None:
    """Where a password let us in, the cluster's own key does from now on, until clear takes it away."""
    fleet.each(lambda server: server_keys.create(server, keys.admin.public), deadline=deadline)


def deliver_image(context: Context, fleet: Fleet, decided: Plan, deadline: Deadline) -> None:
    """The image to every server that has not got it, each once."""

    def send(server: Server) -> None:
        planned = decided.server(server.name)
        if planned.image and server.session:
            root = planned.image.disk.parent.parent
            deliver.deliver(
                context.images,
                planned.image,
                server.agent,
                root,
                name=server.name,
                deadline=deadline,
                report=context.report,
            )

    fleet.each(send, deadline=deadline)


def create_networks(context: Context, fleet: Fleet, decided: Plan, deadline: Deadline) -> None:
    """Rules, bridges, tunnels, networks and pools on every server; then real frames through every tunnel."""

    def join(server: Server) -> None:
        planned = decided.server(server.name)
        with context.report.step("network", server.label, awaiting="bridges, tunnels, networks and pools"):
            rules.create(server, planned, decided.name)
            interfaces.create(server, planned)
            networks.create(server, planned, decided.name)
            volumes.create_pool(server, planned)

    fleet.each(join, deadline=deadline)
    if decided.has_tunnels:
        with context.report.step("tunnels", awaiting="frames through every tunnel, in both directions"):
            tunnels.prove(fleet, decided)


def prove_ready(
    context: Context,
    fleet: Fleet,
    decided: Plan,
    sessions: Mapping[str, NodeConnection],
    deadline: Deadline,
    *,
    pairs: bool = False,
    proven: Collection[str] = (),
) -> check.CheckReport:
    """Everything that "ready" means: from inside the nodes, and by the counters of the switch.

    `proven` are nodes that were found so before and have not been changed.
    """
    verdict = check.run(
        decided,
        sessions,
        deadline=deadline,
        report=context.report,
        pairs=pairs,
        proven=proven,
        limit=concurrency_limit(fleet, decided),
    )
    if decided.has_tunnels:
        crossed = path.check_all(fleet, decided, sessions, deadline=deadline, report=context.report)
        verdict = replace(verdict, checks=(*verdict.checks, *crossed))
    return verdict


def require_passed(verdict: check.CheckReport) -> None:
    """Raise VclusterError with every failure, unless all went well."""
    if not verdict.passed:
        raise VclusterError("the cluster is not ready:" + "".join(f"\n  {failure}" for failure in verdict.failed))


# Stop and start


def stop(context: Context, name: str, *, timeout_s: float) -> tuple[str, ...]:
    """Shut all nodes down, those last that serve the others. Returns the ones that ran."""
    files = context.files(name)
    with context.fleet_of(read_ledger(files).plan) as fleet, files.locked():
        decided = read_ledger(files).plan  # others may have changed it meanwhile
        deadline = Deadline(timeout_s).with_check(fleet.check)
        seen = {domain: runs for server in fleet.servers.values() for domain, runs in domains_on(server).items()}
        running = [node for node in decided.nodes if seen.get(node.domain)]
        serving = {decided.head.name, *decided.stores}
        for group in (
            [node for node in running if node.name not in serving],
            [node for node in running if node.name in serving and not node.is_head],
            [node for node in running if node.is_head],
        ):
            parallel.each(group, lambda node: _shut_down(context, fleet, node, deadline), deadline=deadline)
    return tuple(node.name for node in running)


def _shut_down(context: Context, fleet: Fleet, node: Node, deadline: Deadline) -> None:
    """By the power button; a node that does not heed it has its power cut."""
    libvirt = fleet[node.server].hypervisor
    patience = Deadline(min(SHUTDOWN_S, deadline.remaining_s()))
    with context.report.step("stop", node.name, awaiting="its shutdown"):
        libvirt.shut_down_domain(node.domain)
        while libvirt.is_active(node.domain):
            deadline.pause(SHUTDOWN_LOOK_S, f"{node.name} to shut down")
            if patience.remaining_s() == 0:
                context.report.note(
                    f"{node.name} did not shut down within {patience.timeout_s:.0f} s: its power is cut"
                )
                libvirt.stop_domain(node.domain)


def start(context: Context, name: str, *, timeout_s: float) -> bool:
    """Bring a stopped cluster up and prove it ready. Returns False where it was up already."""
    return _repair(context, name, timeout_s=timeout_s, unless_ready=True) is not None


# Repair


def repair(context: Context, name: str, *, timeout_s: float) -> tuple[str, ...]:
    """Put right what is missing of a cluster, after a reboot of a server for one, and prove it ready.

    What is right is left alone. Returns what was put right, in words.
    """
    return _repair(context, name, timeout_s=timeout_s, unless_ready=False) or ()


def _repair(context: Context, name: str, *, timeout_s: float, unless_ready: bool) -> tuple[str, ...] | None:
    """What `repair` does and returns; None where a cluster is ready that is to be left alone then."""
    files = context.files(name)
    with context.fleet_of(read_ledger(files).plan) as fleet, ExitStack() as stack:
        # What is up is told so even to those who may not change it, or while another command does.
        if unless_ready and observe_status(fleet, files).state == "ready":
            return None
        stack.enter_context(files.locked())
        kept = read_ledger(files)  # another command may have changed the nodes meanwhile, but never the servers
        decided = kept.plan
        deadline = Deadline(timeout_s).with_check(fleet.check)
        servers.require_rights(fleet)
        missing = observe_status(fleet, files).missing
        if missing:
            create_networks(context, fleet, decided, deadline)
            fleet.each(lambda server: interfaces.attach(server, decided), deadline=deadline)
        keys = files.read_keys()
        _restore_nodes(context, fleet, kept, keys, deadline)
        if kept.state != "ready":
            save_plan(fleet, files, replace(kept, state="ready"), keys)
        return missing


def _restore_nodes(context: Context, fleet: Fleet, kept: Ledger, keys: Keys, deadline: Deadline) -> None:
    """Start the nodes that are off; then all nodes are brought to what the plan says and looked at."""
    decided = kept.plan
    seen = {name: runs for server in fleet.servers.values() for name, runs in domains_on(server).items()}
    work = NodeLifecycle(
        context, fleet, decided, keys, deadline, image_password=ask_image_password(context, decided.image_login)
    )
    lost = [node for node in decided.nodes if node.domain not in seen]
    if kept.state != "ready":
        lost += [node for node in decided.nodes if seen.get(node.domain) and work.has_no_identity(node)]
    if lost:
        _discard_unfinished(context, fleet, kept, lost, deadline)

    def bring_back(node: Node) -> NodeConnection:
        if node in lost:
            return work.bring_up_during_add(node)
        return work.configure_running(node) if seen[node.domain] else work.start_again(node)

    with ExitStack() as stack:
        require_passed(prove_ready(context, fleet, decided, work.all_nodes(bring_back, stack), deadline))


def _discard_unfinished(context: Context, fleet: Fleet, kept: Ledger, lost: Sequence[Node], deadline: Deadline) -> None:
    """Nodes that a killed command has not come to make can be made now; those that were there once are not replaced.

    What there is of them, disks or a copy that knows not who it is, holds nothing of anybody's.
    """
    decided, names = kept.plan, [node.name for node in lost]
    others_need = any(node.is_head or node.data_gib for node in lost)
    if kept.state == "ready" or others_need:
        without = "" if others_need else f"vcluster remove {naming.folded(names)} --name {decided.name}, or "
        raise VclusterError(
            f"gone for good: {', '.join(names)}", hint=f"{without}vcluster clear {decided.name}, and create it again"
        )
    rest = shrink(decided, names)
    for kind in (domains, volumes):
        fleet.each(lambda server, kind=kind: kind.reduce(server, decided, rest), deadline=deadline)  # type: ignore[misc]
    deliver_image(context, fleet, decided, deadline)
