"""Reach the nodes of a cluster that is up: check it, trace its traffic, run commands on many nodes at once."""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from vcluster.adapters.pipe import LineSplitter, OutputLimitError
from vcluster.adapters.process import Completed, Output
from vcluster.adapters.ssh.attached_command import without_input
from vcluster.adapters.ssh.ssh_session import NotStartedError, Session
from vcluster.commands.steps.deployment import Deployment
from vcluster.commands.steps.inventory import (
    accessible_fleet,
    describe_down,
    node_powers,
    observe_status,
    powers_of,
    report_faults,
)
from vcluster.commands.steps.node_console import console_log
from vcluster.commands.steps.node_login import log_in
from vcluster.commands.steps.node_watch import NodeWatch
from vcluster.errors import ConflictError, DeadlineError, RequestError, VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, requests_for_plan
from vcluster.model.checks import CheckReport
from vcluster.model.naming import check_size, folded
from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import one_line, shown
from vcluster.model.status import PowerState
from vcluster.stages import path
from vcluster.stages import provision as stage
from vcluster.stages.provision import Job
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

CONSOLE_BYTES = 2**24
NO_POLKIT = "Authorization not available. Check if polkit"  # virsh starts polkit's agent, though root needs none
FANOUT = 64
NAMES_SHOWN_MAX = 5
NODES_EXAMPLE = "node[1-3]"
LOGIN_TIMEOUT_S = 30.0  # a node that is up answers at once

OnLine = Callable[[str, str, str], None]  # called with the node's name, the stream (stdout or stderr) and a line
NodeLogin = Callable[[Node, str], Session]  # logs in to a node as a user


@contextmanager
def sessions(
    context: Context, plan: Plan, nodes: Sequence[Node], *, user: str, deadline: Deadline, fleet: Fleet | None = None
) -> Iterator[dict[str, Session]]:
    """Sessions on nodes, by name, closed at the end.

    Without an open `fleet`, servers are opened only as jump hosts, which needs no rights on them.
    """
    with ExitStack() as stack:
        login = stack.enter_context(_jump_hosts(context, plan, nodes, deadline, fleet))
        yield _open_all(login, nodes, user, deadline, stack)


def _open_all(
    login: NodeLogin, nodes: Sequence[Node], user: str, deadline: Deadline, stack: ExitStack
) -> dict[str, Session]:
    opened = parallel.each(nodes, lambda node: stack.enter_context(login(node, user)), deadline=deadline)
    return {session.name: session for session in opened}


@contextmanager
def _jump_hosts(
    context: Context, plan: Plan, nodes: Sequence[Node], deadline: Deadline, fleet: Fleet | None = None
) -> Iterator[NodeLogin]:
    """A function that logs in to nodes; the sessions on their jump hosts are opened first, and closed at the end.

    A server that cannot be reached fails the logins to its own nodes only.
    """
    keys = context.files(plan.name).read_keys()
    via_head = any(node.management is None for node in nodes)
    jump_hosts: dict[str, Session | VclusterError | None] = {}  # by server; the head's entry has an empty name

    def login(node: Node, user: str) -> Session:
        via = jump_hosts.get(node.server if node.management else "")
        if isinstance(via, VclusterError):
            raise via
        patience = Deadline(min(LOGIN_TIMEOUT_S, deadline.remaining_s())).with_check(deadline.check)
        try:
            session = log_in(keys, via, node, user=user, deadline=patience)
        except DeadlineError as error:
            raise DeadlineError(error.message, hint=f"vcluster status {plan.name}") from error
        server = fleet.servers.get(node.server) if fleet else None
        session.deadline = server.until_stop(node, deadline) if server and server.libvirt else deadline
        return session

    with ExitStack() as stack:
        if fleet:
            jump_hosts |= {name: server.session for name, server in fleet.servers.items()}
            jump_hosts |= fleet.unreachable
        else:
            first = [plan.head] if via_head else []
            jump_hosts |= _log_in_to_servers(context, plan, {node.server for node in (*first, *nodes)}, stack)
        if via_head:
            (jump_hosts[""],) = parallel.outcomes([plan.head], lambda head: stack.enter_context(login(head, "root")))
        yield login


def _log_in_to_servers(
    context: Context, plan: Plan, names: Set[str], stack: ExitStack
) -> dict[str, Session | VclusterError]:
    key = context.files(plan.name).server_key()
    requests = [each for each in requests_for_plan(plan, key) if each.login and each.name in names]
    outcomes = parallel.outcomes(requests, lambda request: stack.enter_context(context.connector.log_in(request)))
    return {request.name: outcome for request, outcome in zip(requests, outcomes, strict=True)}


def check_cluster(context: Context, plan: Plan, *, timeout_s: float, pairs: bool = False) -> CheckReport:
    """Run the whole check on a cluster; with `pairs`, try every login between two nodes.

    Raises VclusterError if a node is not running.
    """
    files = context.files(plan.name)
    with context.fleet_of(plan) as fleet:
        status = observe_status(fleet, files)
        if down := describe_down({node.name: node.power for node in status.nodes}):
            report_faults(context, status)
            raise VclusterError(down, hint=f"vcluster start {plan.name}")
        deadline = Deadline(timeout_s).with_check(fleet.check)
        cluster = Deployment(context, fleet, plan, files.read_keys(), deadline)
        with (
            cluster.watched(hint=f"vcluster repair {plan.name}") as (watched, watch),
            _jump_hosts(context, plan, plan.nodes, watched.deadline, fleet) as login,
            ExitStack() as stack,
        ):
            for node in plan.nodes:
                watch.begin(node)
                watch.promote(node)
            opened = _open_all(login, plan.nodes, "root", watched.deadline, stack)
            for node in plan.nodes:
                watch.call_on_stop(node, opened[node.name].close)
            report = watched.check(opened, lambda node: login(node, plan.user).close(), pairs=pairs)
            return replace(report, faults=status.faults)


def running_nodes(context: Context, plan: Plan) -> tuple[Node, ...]:
    """The nodes that run and can be reached. Those in an unknown state count as running."""
    return tuple(_reachable(plan, plan.nodes, node_powers(context, plan, plan.nodes)))


def _reachable(plan: Plan, nodes: Sequence[Node], powers: Mapping[str, PowerState]) -> list[Node]:
    is_down = {name: bool(describe_down({name: power})) for name, power in powers.items()}
    return [node for node in nodes if not is_down[node.name] and (node.management or not is_down[plan.head.name])]


def require_running(context: Context, plan: Plan, nodes: Sequence[Node]) -> None:
    """Raise ConflictError if one of the nodes does not run, or the head that they are reached through."""
    _require_up(plan, node_powers(context, plan, _with_jump_hosts(plan, nodes)))


def _require_up(plan: Plan, powers: Mapping[str, PowerState]) -> None:
    if down := describe_down(powers):
        raise ConflictError(down, hint=f"vcluster start {plan.name}")


def _with_jump_hosts(plan: Plan, nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes, and the head if one of them is reached through it; in the plan's order."""
    names = {node.name for node in nodes} | {plan.head.name for node in nodes if node.management is None}
    return tuple(node for node in plan.nodes if node.name in names)


def trace(context: Context, plan: Plan, start: Node, end: Node, *, packets: int, timeout_s: float) -> path.Path:
    """Send a marked flow from one node to another, and read the counters of every port on its path."""
    if start.name == end.name:
        raise RequestError(f"a frame from {start.name} to itself crosses no port", hint="name two nodes")
    require_running(context, plan, [start, end])
    deadline = Deadline(timeout_s)
    with (
        context.fleet_of(plan) as fleet,
        sessions(context, plan, [start], user="root", deadline=deadline, fleet=fleet) as opened,
    ):
        return path.trace(fleet, plan, [(start, end)], opened, packets=packets, deadline=deadline)[0]


def read_console(context: Context, plan: Plan, node: Node) -> str:
    """The text that a node has printed on its console since power-on."""
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        return console_log(fleet[node.server], plan, node, size=CONSOLE_BYTES)


def attach_console(context: Context, plan: Plan, node: Node, *, on_error: Callable[[str], object]) -> int:
    """Connect the terminal to a node's console by virsh until the user leaves it. Returns virsh's exit code.

    Each line of virsh's standard error is passed to `on_error`.
    """
    with context.fleet_of(plan, allow_unreachable=True) as fleet:
        uri = fleet[node.server].hypervisor.uri
        # virsh has the terminal: Ctrl-C belongs to the console, not to us.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            argv = ["virsh", "-c", uri, "console", node.domain, "--force"]
            with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as virsh:
                for line in virsh.stderr or ():
                    if NO_POLKIT not in line:
                        on_error(line)
            return virsh.returncode
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
    on_line: OnLine | None = None,
) -> dict[str, Completed | VclusterError]:
    """Run a command without input on nodes, at most `fanout` at once. Returns its output and exit code by node.

    It ends with its connection: after an interrupt or the deadline it runs on no node. The value is the error if a node
    does not run or was not reached, or if the command did not end. `on_line` is called with each line of output.
    """
    deadline, powers = Deadline(timeout_s), node_powers(context, plan, _with_jump_hosts(plan, nodes))
    up = _reachable(plan, nodes, powers)
    down = ConflictError(describe_down(powers), hint=f"vcluster start {plan.name}")
    with _jump_hosts(context, plan, up, deadline) as login:

        def run(node: Node, on_output: Output | None) -> Completed:
            with login(node, user) as session:
                try:
                    return session.run(without_input(argv), stdin=None, awaited="the command", on_output=on_output)
                except OutputLimitError as error:
                    raise VclusterError(error.message, hint="vcluster exec --lines has no limit") from error

        def work(node: Node) -> Completed:
            lines = LineSplitter(lambda stream, line: on_line(node.name, stream, line) if on_line else None)
            try:
                completed = run(node, lines if on_line else None)
            except NotStartedError:  # sshd may close a connection after the login; nothing has run yet
                completed = run(node, lines if on_line else None)
            lines.end()
            return completed

        outcomes = dict(zip(up, parallel.outcomes(up, work, deadline=deadline, limit=fanout), strict=True))
    return {node.name: outcomes.get(node, down) for node in nodes}


def provision(
    context: Context, plan: Plan, nodes: Sequence[Node], job: Job, *, timeout_s: float, logs: Path
) -> dict[str, Completed | None]:
    """Run a job on nodes; see vcluster.stages.provision."""
    deadline = Deadline(timeout_s)
    names = {node.name for node in nodes}
    involved = [node for node in plan.nodes if node.name in names or (node.is_head and job.payload)]
    with accessible_fleet(context, plan, involved) as fleet, ExitStack() as stack:
        _require_up(plan, powers_of(fleet, _with_jump_hosts(plan, involved)))
        stack.enter_context(context.files(plan.name).locked())
        watch = stack.enter_context(
            closing(NodeWatch(fleet, plan, context.report, hint=f"vcluster repair {plan.name}"))
        )
        opened = stack.enter_context(sessions(context, plan, involved, user="root", deadline=deadline))
        for node in involved:
            if node.server in fleet:
                watch.begin(node)
                watch.call_on_stop(node, opened[node.name].close)
                opened[node.name].deadline = watch.deadline_of(node, deadline)
        return stage.run(plan, opened, job, nodes=nodes, deadline=deadline, report=context.report, logs=logs)


def choose_copy(plan: Plan, sources: Sequence[str], destination: str) -> Node:
    """The node of a copy. Raises RequestError unless the sources, or the destination, are NODE:PATH of one node.

    As scp reads operands: text with a slash before its first colon is a path on this machine.
    """
    remote_sources, to = [_remote_part(source) for source in sources], _remote_part(destination)
    nodes = list(dict.fromkeys(side for side in (*remote_sources, to) if side is not None))
    for node in nodes:
        _require_copy_node(plan, node)
    operands = ", ".join(map(shown, (*sources, destination)))
    if not nodes:
        hint = shlex.join(("vcluster", "copy", *_with_node(plan, sources, destination)))
        raise RequestError(f"no path names a node: {operands}; write NODE:PATH", hint=hint)
    if to is not None and any(side is not None for side in remote_sources):
        raise RequestError(
            f"both ends of the copy are on nodes: {operands}",
            hint=f"vcluster ssh {nodes[0]}, then use scp there; write a local path with a colon as ./a:b",
        )
    if to is None and (len(nodes) > 1 or None in remote_sources):
        raise RequestError(f"the sources are not all on one node: {operands}", hint="copy from one node at a time")
    missing = [
        source for source, side in zip(sources, remote_sources, strict=True) if side is None and not _exists(source)
    ]
    if missing:
        raise RequestError(f"{shown(missing[0])} does not exist on this machine")
    return choose_node(plan, nodes[0])


def _exists(path: str) -> bool:
    """Whether a path exists on this machine. A text that no path can be does not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _with_node(plan: Plan, sources: Sequence[str], destination: str) -> tuple[str, ...]:
    """The operands with a node: the one whose name is an operand, or else the head as the destination."""
    names = {node.name for node in plan.nodes}
    if destination in names:
        return (*sources, f"{destination}:cloud/")
    if names & set(sources):
        return (*(f"{source}:cloud/" if source in names else source for source in sources), destination)
    return (*sources, f"{plan.head.name}:{destination}")


def _require_copy_node(plan: Plan, node: str) -> None:
    if "@" in node:
        raise RequestError(f"{shown(node)} is not the name of a node", hint="leave USER@ out; -l USER sets the user")
    folder = "cloud/0" if plan.stores else "cloud"
    if set(node) & set("[],*?"):
        raise RequestError(
            f"copy takes one node, not the set {shown(node)}",
            hint=f"copy to {plan.head.name}:{folder}, which all nodes share, or to one node after the other",
        )
    choose_node(plan, node)


def _remote_part(operand: str) -> str | None:
    """The node of NODE:PATH; None for a local path."""
    before, colon, _ = operand.partition(":")
    return before if colon and "/" not in before else None


def choose_nodes(plan: Plan, nodeset: str | None, *, option: str = "-w ") -> tuple[Node, ...]:
    """The nodes of a nodeset in the plan's order; all nodes for None. An error names the `option`."""
    if nodeset is None:
        return plan.nodes
    try:
        check_size(nodeset, example=NODES_EXAMPLE)
        names = set(NodeSet(nodeset, resolver=RESOLVER_NOGROUP))
    except RequestError as error:
        raise RequestError(f"{option}{error.message}", hint=error.hint) from error
    except NodeSetException as error:
        raise RequestError(
            f"{option}{shown(nodeset)} is not a nodeset: {one_line(error)}", hint=f"for example '{NODES_EXAMPLE}'"
        ) from error
    unknown = names - {node.name for node in plan.nodes}
    if unknown or not names:
        raise RequestError(
            f"cluster {plan.name} has no node {_listed(sorted(unknown)) or shown(nodeset)}",
            hint=f"it has {folded(node.name for node in plan.nodes)}",
        )
    return tuple(node for node in plan.nodes if node.name in names)


def choose_listed(plan: Plan, names: Sequence[str]) -> tuple[Node, ...]:
    """The nodes of several nodesets, which are arguments; all nodes for none."""
    return choose_nodes(plan, ",".join(names) if names else None, option="")


def _listed(names: Sequence[str]) -> str:
    """Names for a message; of many, the first ones."""
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    return ", ".join(map(shown, names[:NAMES_SHOWN_MAX])) + more


def choose_node(plan: Plan, name: str) -> Node:
    """The node with that name."""
    found = next((node for node in plan.nodes if node.name == name), None)
    if found is None:
        raise RequestError(
            f"cluster {plan.name} has no node {shown(name)}",
            hint=f"it has {folded(node.name for node in plan.nodes)}",
        )
    return found
