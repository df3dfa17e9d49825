"""Reaching the nodes of a cluster that is up: checks, and commands on many nodes at once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from vcluster.adapters.pipe import LineSplitter
from vcluster.adapters.process import Completed
from vcluster.adapters.ssh.ssh_session import Session
from vcluster.commands import create
from vcluster.commands import node_lifecycle as nodes_work
from vcluster.commands.inventory import observe_status
from vcluster.errors import DeadlineError, RequestError, VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, request_for_plan
from vcluster.model.naming import folded, one_line, shown
from vcluster.model.plan import Node, Plan
from vcluster.stages import check, path
from vcluster.stages import provision as stage
from vcluster.stages.provision import Job
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

CONSOLE_BYTES = 2**24
FANOUT = 64
LOGIN_TIMEOUT_S = 30.0  # a node that is up answers at once

Heard = Callable[[str, str, str], None]  # hears a node's name, the stream's, stdout or stderr, and a line
Reach = Callable[[Node, str], Session]  # logs in to a node as a user


@contextmanager
def sessions(
    context: Context, plan: Plan, nodes: Sequence[Node], *, user: str, deadline: Deadline, fleet: Fleet | None = None
) -> Iterator[dict[str, Session]]:
    """Logged-in sessions on nodes, by name, closed at the end; through servers, or the head, where that is the way.

    Without an open `fleet` the servers are logged in to for that and nothing else: it needs no rights there.
    """
    with ExitStack() as stack:
        reach = stack.enter_context(_jump_hosts(context, plan, nodes, deadline, fleet))
        made = parallel.each(nodes, lambda node: stack.enter_context(reach(node, user)), deadline=deadline)
        yield {session.name: session for session in made}


@contextmanager
def _jump_hosts(
    context: Context, plan: Plan, nodes: Sequence[Node], deadline: Deadline, fleet: Fleet | None = None
) -> Iterator[Reach]:
    """How to log in to nodes: what leads there is opened before, and closed at the end.

    A server that is lost fails the logins of its nodes only.
    """
    keys = context.files(plan.name).read_keys()
    by_head = any(node.management is None for node in nodes)
    ways: dict[str, Session | VclusterError | None] = {}  # by server; the way by the head has no name

    def reach(node: Node, user: str) -> Session:
        way = ways.get(node.server if node.management else "")
        if isinstance(way, VclusterError):
            raise way
        patience = Deadline(min(LOGIN_TIMEOUT_S, deadline.remaining_s())).with_check(deadline.check)
        try:
            session = nodes_work.log_in(keys, way, node, user=user, deadline=patience)
        except DeadlineError as error:
            raise DeadlineError(error.message, hint=f"vcluster status {plan.name}") from error
        session.deadline = deadline
        return session

    with ExitStack() as stack:
        if fleet:
            ways |= {name: server.session for name, server in fleet.servers.items()}
            ways |= fleet.unreachable
        else:
            first = [plan.head] if by_head else []
            ways |= _log_in_to_servers(context, plan, {node.server for node in (*first, *nodes)}, stack)
        if by_head:
            (ways[""],) = parallel.outcomes([plan.head], lambda head: stack.enter_context(reach(head, "root")))
        yield reach


def _log_in_to_servers(
    context: Context, plan: Plan, wanted: Set[str], stack: ExitStack
) -> dict[str, Session | VclusterError]:
    key = context.files(plan.name).server_key()
    away = [request_for_plan(one, key) for one in plan.servers if one.login and one.name in wanted]
    opened = parallel.outcomes(away, lambda request: stack.enter_context(context.connector.log_in(request)))
    return {request.name: one for request, one in zip(away, opened, strict=True)}


def check_cluster(context: Context, plan: Plan, *, timeout_s: float, pairs: bool = False) -> check.CheckReport:
    """Run the whole check on a cluster, with every login between two nodes for `pairs`.

    Raises VclusterError when a node is not even running.
    """
    with context.fleet_of(plan) as fleet:
        state = observe_status(fleet, context.files(plan.name))
        down = [node.name for node in state.nodes if node.state != "running"]
        if down:
            raise VclusterError(f"not running: {', '.join(down)}", hint=f"vcluster start {plan.name}")
        deadline = Deadline(timeout_s).with_check(fleet.check)
        with sessions(context, plan, plan.nodes, user="root", deadline=deadline, fleet=fleet) as opened:
            return create.prove_ready(context, fleet, plan, opened, deadline, pairs=pairs)


def trace(context: Context, plan: Plan, start: Node, end: Node, *, packets: int, timeout_s: float) -> path.Path:
    """Send a marked flow from one node to another, and read what every port on the way has counted."""
    if start.name == end.name:
        raise RequestError(f"a frame of {start.name} to itself crosses nothing", hint="name two nodes")
    deadline = Deadline(timeout_s)
    with (
        context.fleet_of(plan) as fleet,
        sessions(context, plan, [start], user="root", deadline=deadline, fleet=fleet) as opened,
    ):
        return path.trace(fleet, plan, [(start, end)], opened, packets=packets, deadline=deadline)[0]


def read_console(context: Context, plan: Plan, node: Node) -> str:
    """What a node's console has said since power-on."""
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        return nodes_work.console_log(fleet[node.server], plan, node, size=CONSOLE_BYTES)


def attach_console(context: Context, plan: Plan, node: Node) -> int:
    """Let virsh have the terminal, on the node's console, until the user leaves it; returns its exit code."""
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        uri = fleet[node.server].hypervisor.uri
        # Ctrl-C is the console's, not ours, for as long as virsh has the terminal.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return subprocess.run(["virsh", "-c", uri, "console", node.domain, "--force"], check=False).returncode  # noqa: S607
        finally:
            signal.signal(signal.SIGINT, before)


def run_everywhere(
    context: Context,
    plan: Plan,
    nodes: Sequence[Node],
    argv: Sequence[str],
    *,
    user: str,
    timeout_s: float,
    fanout: int = FANOUT,
    hear: Heard | None = None,
) -> dict[str, Completed | VclusterError]:
    """Run a command on nodes side by side, at most `fanout` at a time; by node what it printed and its exit code.

    Where a node could not be reached, or the command did not end, that is the error instead. Each line is passed to
    `hear` as it comes.
    """
    deadline = Deadline(timeout_s)
    with _jump_hosts(context, plan, nodes, deadline) as reach:

        def work(node: Node) -> Completed:
            lines = LineSplitter(lambda stream, line: hear(node.name, stream, line) if hear else None)
            with reach(node, user) as session:
                ended = session.run(argv, awaited=f"{argv[0]} to end", on_output=lines if hear else None)
            lines.end()
            return ended

        ran = parallel.outcomes(nodes, work, deadline=deadline, limit=fanout)
    return {node.name: one for node, one in zip(nodes, ran, strict=True)}


def provision(
    context: Context, plan: Plan, nodes: Sequence[Node], job: Job, *, timeout_s: float, logs: Path
) -> dict[str, Completed | None]:
    """Run a job on nodes; see vcluster.stages.provision."""
    deadline = Deadline(timeout_s)
    opened = [node for node in plan.nodes if node in nodes or (node.is_head and job.payload)]
    with (
        context.files(plan.name).locked(),
        sessions(context, plan, opened, user="root", deadline=deadline) as by_name,
    ):
        return stage.run(plan, by_name, job, nodes=nodes, deadline=deadline, report=context.report, logs=logs)


def choose_copy(plan: Plan, source: str, destination: str) -> None:
    """Raise RequestError unless exactly one of two operands is NODE:PATH of a node there is, and a local source exists.

    As scp reads them: what has a slash before its first colon is a path here.
    """
    sides = [_remote_part(operand) for operand in (source, destination)]
    match [side for side in sides if side is not None]:
        case [node]:
            if "@" in node:
                raise RequestError(f"{shown(node)} is not a node", hint="-l USER says as whom")
            choose_node(plan, node)
        case []:
            raise RequestError(
                f"neither {shown(source)} nor {shown(destination)} is on a node", hint=f"such as {plan.head.name}:/tmp"
            )
        case _:
            raise RequestError(
                f"both {shown(source)} and {shown(destination)} are on nodes",
                hint="a path here that has a colon is written ./a:b; between nodes there is scp on the nodes",
            )
    if sides[0] is None and not Path(source).exists():
        raise RequestError(f"there is no {shown(source)} here to be copied")


def _remote_part(operand: str) -> str | None:
    """The node of NODE:PATH; None for a path here."""
    before, colon, _ = operand.partition(":")
    return before if colon and "/" not in before else None


def choose_nodes(plan: Plan, nodeset: str | None) -> tuple[Node, ...]:
    """The nodes a nodeset names, in the plan's order; all of them for None."""
    if nodeset is None:
        return plan.nodes
    try:
        wanted = set(NodeSet(nodeset, resolver=RESOLVER_NOGROUP))
    except NodeSetException as error:
        raise RequestError(
            f"-w {shown(nodeset)} is not a nodeset: {one_line(error)}", hint="such as 'node[1-3]'"
        ) from error
    unknown = wanted - {node.name for node in plan.nodes}
    if unknown or not wanted:
        raise RequestError(
            f"cluster {plan.name} has no node {', '.join(map(shown, sorted(unknown))) or shown(nodeset)}",
            hint=f"it has {folded(node.name for node in plan.nodes)}",
        )
    return tuple(node for node in plan.nodes if node.name in wanted)


def choose_node(plan: Plan, name: str) -> Node:
    """The node of that name."""
    found = next((node for node in plan.nodes if node.name == name), None)
    if found is None:
        raise RequestError(
            f"cluster {plan.name} has no node {shown(name)}",
            hint=f"it has {folded(node.name for node in plan.nodes)}",
        )
    return found
