"""Plan a cluster, and refuse what is in the way, before anything is created."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Set

from vcluster.adapters.libvirt.hypervisor import NAMED_KINDS
from vcluster.commands.steps.inventory import survey
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet import observation, servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles
from vcluster.fleet.servers import Fleet, Server, ServerRequest
from vcluster.model.facts import Facts
from vcluster.model.plan import Node, Plan, ServerPlan
from vcluster.model.spec import LOCAL, Image, Spec
from vcluster.planning import placement
from vcluster.planning.planner import CLUSTERS_FOLDER, make_plan
from vcluster.resources import domains, shaping
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter


def admit(context: Context, fleet: Fleet, spec: Spec, *, image: Image, accel: str) -> tuple[Plan, dict[str, Facts]]:
    """Make every check that comes before the first effect of a create, and plan the cluster.

    Overcommitted CPUs and disks are reported, and so are settings of servers that drop frames of bridges. Raises what
    forbids the create. Returns the plan and the facts behind it.
    """
    servers.require_rights(fleet)
    refuse_existing(fleet, context.files(spec.name))
    plan, facts = plan_cluster(context, fleet, spec, image=image, accel=accel)
    refuse_foreign(fleet, plan)
    refuse_damaged_image(context, fleet, plan)
    fleet.each(lambda server: domains.try_cpu_tuning(server, plan))
    if plan.links:
        plan = shaping.placed(fleet[plan.switch.server], plan)
    for text in placement.overcommitments(plan, facts):
        context.report.note(text)
    report_obstacles(fleet, context.report)
    return plan, facts


def refuse_damaged_image(context: Context, fleet: Fleet, plan: Plan) -> None:
    """Raise VclusterError if the image was damaged in the store of this machine, or on a server that has it."""
    name = plan.image.name
    if found := context.images.problem(plan.image):
        raise VclusterError(f"image {name} cannot be used: {found}", hint=f"vcluster image verify {name}")

    def problem(server: Server) -> str:
        image = plan.server(server.name).image
        if not image or not server.session:
            return ""
        return str(server.call("image_problem", root=str(image.disk.parent.parent), digest=image.digest))

    for server_name, found in fleet.each(problem).items():
        if found:
            server = fleet[server_name]
            hint = f"vcluster image rm {name}{_on(server)}, and run the command again"
            raise VclusterError(f"image {name} on {server_name} cannot be used: {found}", hint=hint)


def report_obstacles(fleet: Fleet, report: Reporter) -> None:
    """Report the settings that drop frames between ports of a bridge, with the commands that change them.

    These are warnings, so a server whose settings cannot be read is another warning.
    """
    for texts in fleet.each(_obstacles).values():
        for text in texts:
            report.note(text)


def _obstacles(server: Server) -> list[str]:
    where = f" on {server.name}" if server.session else ""
    try:
        found = server.call("obstacles", port=None)
    except VclusterError as error:
        return [f"cannot check whether packet filter rules stop the nodes{where}: {error.message}"]
    return [
        f"nodes may not reach each other{where}: {one['what']}: {one['detail']}; fix: {one['fix']}" for one in found
    ]


def server_requests(spec: Spec) -> list[ServerRequest]:
    """The servers that a create opens."""
    requests = {server.name: servers.request_for_spec(server, carries_nodes=True) for server in spec.servers}
    if spec.sets_up_switch:
        requests.setdefault(spec.switch.name, servers.request_for_spec(spec.switch, carries_nodes=False))
    return list(requests.values())


def plan_cluster(
    context: Context, fleet: Fleet, spec: Spec, *, image: Image, accel: str
) -> tuple[Plan, dict[str, Facts]]:
    """Decide everything about a cluster and change nothing. Returns the plan and the facts behind it, by server."""
    kernel = image.kernel or context.images.any_kernel()
    facts = observation.observe(
        fleet,
        spec.servers,
        spec.switch,
        context.state_root,
        accel=accel,
        kernel=kernel,
        deadline=Deadline(spec.timeout_s),
    )
    return make_plan(spec, facts, image=image, owner=context.connector.owner), facts


def memory_errors(context: Context, fleet: Fleet, plan: Plan, nodes: Collection[Node]) -> dict[str, VclusterError]:
    """Why servers cannot start these nodes of a cluster, by server name: lack of memory, or no answer about it.

    Servers without such nodes are not asked.
    """
    counts = Counter(node.server for node in nodes)
    pending = observation.pending_plans(context.state_root, besides=plan.name) if nodes else []

    def check(name: str) -> None:
        server = fleet[name]
        placement.check_memory(
            counts[name],
            plan.memory_mib,
            plan.server(name).accel,
            observation.free_memory_mib(server, pending),
            where=f" on {name}" if server.session else "",
            do_exist=True,
        )

    answers = zip(counts, parallel.outcomes([*counts], check), strict=True)
    return {name: error for name, error in answers if error is not None}


def refuse_existing(fleet: Fleet, files: ClusterFiles) -> None:
    """Raise ConflictError if the cluster exists here or on a server of the fleet, also if only parts are left of it."""
    ledger = files.read_ledger()
    if files.is_locked() or files.is_of_another_version() or (ledger and ledger.state == "ready"):
        raise ConflictError(
            f"cluster {files.name} exists already", hint=f"vcluster status {files.name}, or use another --name"
        )
    surveys = fleet.each(lambda server: survey(server, files.name))
    found = next((fleet[name] for name, items in surveys.items() if items), None)
    if files.folder.exists() or found:
        away = found if found and found.session and not files.folder.exists() else None
        raise ConflictError(
            f"parts of cluster {files.name} are left{f' on {away.name}' if away else ''}",
            hint=f"vcluster clear {files.name}{_on(away) if away else ''}, or use another --name",
        )


def _on(server: Server) -> str:
    """The option with which `clear` searches a server, and the variables for its password."""
    if server.storage != LOCAL.path:  # only a configuration file specifies another folder than the usual one
        return " --on CONFIG.ini"
    password = f" with VCLUSTER_SWITCH_PASSWORD and VCLUSTER_SWITCH={server.host}" if server.has_password else ""
    return f" --on {server.host}{password}"


def refuse_foreign(fleet: Fleet, plan: Plan, present: Plan | None = None) -> None:
    """Raise ConflictError if a name of the plan is taken; names of the plan that is `present` already are ours."""
    all_taken = fleet.each(_taken_names)
    for planned in plan.servers:
        server, taken = fleet[planned.name], all_taken[planned.name]
        ours = {*_names_on(present, present.server(planned.name))} if present else set()
        for kind, name in _names_on(plan, planned):
            if name in taken[kind] and (kind, name) not in ours:
                where = f" on {server.name}" if server.session else ""
                raise ConflictError(
                    f"{kind} {name} exists{where} and does not belong to this cluster", hint="use another --name"
                )


def _taken_names(server: Server) -> Mapping[str, Set[str]]:
    """Every name in use on a server, of any owner, by kind."""
    clusters = server.storage / CLUSTERS_FOLDER
    taken: dict[str, Set[str]] = {
        "interface": {link["name"] for link in server.call("interfaces")},
        "folder": {str(clusters / name) for name in server.call("folders", path=str(clusters))},
    }
    return taken | {kind: server.libvirt.names(kind) for kind in NAMED_KINDS if server.libvirt}


def _names_on(plan: Plan, planned: ServerPlan) -> Iterator[tuple[str, str]]:
    """Every name that a cluster takes on a server, with its kind."""
    for node in plan.nodes_on(planned.name):
        yield "domain", node.domain
        yield "interface", node.port
        if node.management:
            yield "interface", node.management.port
    if planned.network:
        yield "network", planned.network.name
        yield "interface", planned.network.bridge
    if planned.pool:
        yield "pool", planned.pool.name
        yield "folder", str(planned.pool.path)
    for name in planned.interface_names:
        yield "interface", name
