"""Reaching the nodes of a cluster that is up: checks, and commands on many nodes at once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from vcluster import cluster, parallel
from vcluster import nodes as nodes_work
from vcluster.errors import RequestError, VclusterError
from vcluster.events import Deadline
from vcluster.hosts.shell import Completed
from vcluster.hosts.ssh import Session
from vcluster.inventory import observe_status
from vcluster.model import Node, Plan
from vcluster.naming import one_line, shown
from vcluster.servers import Fleet, want_plan
from vcluster.site import Site
from vcluster.stages import check, path

CONSOLE_BYTES = 2**24


@contextmanager
def sessions(
    site: Site, plan: Plan, nodes: Sequence[Node], *, user: str, deadline: Deadline, fleet: Fleet | None = None
) -> Iterator[dict[str, Session]]:
    """Logged-in sessions on nodes, by name, closed at the end; through their servers where those are not this machine.

    Without an open `fleet` the servers are logged in to for that and nothing else: it needs no rights there.
    """
    keys = site.files(plan.name).read_keys()
    with ExitStack() as stack:
        ways = {name: server.session for name, server in fleet.servers.items()} if fleet else {}
        if fleet is None:
            ways |= _log_in_to_servers(site, plan, nodes, stack)
        made = parallel.each(
            nodes,
            lambda node: nodes_work.log_in(keys, ways.get(node.server), node, user=user, deadline=deadline),
            deadline=deadline,
        )
        yield {session.name: stack.enter_context(session) for session in made}


def _log_in_to_servers(site: Site, plan: Plan, nodes: Sequence[Node], stack: ExitStack) -> dict[str, Session]:
    key = site.files(plan.name).server_key()
    wanted = {node.server for node in nodes}
    away = [want_plan(one, key) for one in plan.servers if one.login and one.name in wanted]
    opened = parallel.outcomes(away, lambda want: stack.enter_context(site.doors.log_in(want)))
    parallel.raise_all([one for one in opened if isinstance(one, VclusterError)])
    return {session.name: session for session in opened if isinstance(session, Session)}


def check_cluster(site: Site, plan: Plan, *, timeout_s: float) -> check.Verdict:
    """Run the whole check on a cluster. Raises VclusterError when a node is not even running."""
    with site.fleet_of(plan) as fleet:
        state = observe_status(fleet, site.files(plan.name))
        down = [node.name for node in state.nodes if node.state != "running"]
        if down:
            raise VclusterError(f"not running: {', '.join(down)}", hint=f"vcluster repair {plan.name}")
        deadline = Deadline(timeout_s).watching(fleet.check)
        with sessions(site, plan, plan.nodes, user="root", deadline=deadline, fleet=fleet) as opened:
            return cluster.examine(site, fleet, plan, opened, deadline)


def trace(site: Site, plan: Plan, start: Node, end: Node, *, packets: int, timeout_s: float) -> path.Path:
    """Send a marked flow from one node to another, and read what every port on the way has counted."""
    if start.name == end.name:
        raise RequestError(f"a frame of {start.name} to itself crosses nothing", hint="name two nodes")
    deadline = Deadline(timeout_s)
    with (
        site.fleet_of(plan) as fleet,
        sessions(site, plan, [start], user="root", deadline=deadline, fleet=fleet) as opened,
    ):
        return path.trace(fleet, plan, [(start, end)], opened, packets=packets, deadline=deadline)[0]


def read_console(site: Site, plan: Plan, node: Node) -> str:
    """What a node's console has said since power-on."""
    with site.fleet_of(plan, may_lose=True) as fleet:
        return nodes_work.console_log(fleet[node.server], plan, node, size=CONSOLE_BYTES)


def attach_console(site: Site, plan: Plan, node: Node) -> int:
    """Let virsh have the terminal, on the node's console, until the user leaves it; returns its exit code."""
    with site.fleet_of(plan, may_lose=True) as fleet:
        uri = fleet[node.server].hypervisor.uri
        # Ctrl-C is the console's, not ours, for as long as virsh has the terminal.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return subprocess.run(["virsh", "-c", uri, "console", node.domain, "--force"], check=False).returncode  # noqa: S607
        finally:
            signal.signal(signal.SIGINT, before)


def run_everywhere(
    site: Site, plan: Plan, nodes: Sequence[Node], argv: Sequence[str], *, user: str, timeout_s: float
) -> dict[str, Completed]:
    """Run a command on nodes side by side; what each printed and its exit code, by node."""
    deadline = Deadline(timeout_s)
    with sessions(site, plan, nodes, user=user, deadline=deadline) as opened:
        ran = parallel.each(
            nodes, lambda node: opened[node.name].run(argv, awaited=f"{argv[0]} to end"), deadline=deadline
        )
    return {node.name: completed for node, completed in zip(nodes, ran, strict=True)}


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
        names = NodeSet.fromlist([node.name for node in plan.nodes], resolver=RESOLVER_NOGROUP)
        raise RequestError(
            f"cluster {plan.name} has no node {', '.join(map(shown, sorted(unknown))) or shown(nodeset)}",
            hint=f"it has {names}",
        )
    return tuple(node for node in plan.nodes if node.name in wanted)


def choose_node(plan: Plan, name: str) -> Node:
    """The node of that name."""
    found = next((node for node in plan.nodes if node.name == name), None)
    if found is None:
        raise RequestError(
            f"cluster {plan.name} has no node {shown(name)}",
            hint=f"it has {', '.join(node.name for node in plan.nodes)}",
        )
    return found
