"""Measure TCP between nodes, pair after pair, and prove that only the measurement used the switch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vcluster.adapters.ssh.ssh_session import Session
from vcluster.commands.nodes.access import require_running, sessions
from vcluster.commands.nodes.measure import Traffic, counted, starved, traffic_between, vcpu_times
from vcluster.errors import MissingError
from vcluster.fleet.context import Context
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.planning import traffic_plan
from vcluster.planning.traffic.tcp_figures import FlowChoice, FlowEnds, TcpRow, TcpSample, sender_port, summary
from vcluster.stages.measuring import tcp_flow as stage
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

OnRow = Callable[[TcpRow, Sequence[TcpSample]], None]


@dataclass(frozen=True, slots=True)
class MeasuredTcp:
    """The result of a measurement. `traffic` is None if it ended early."""

    rows: tuple[TcpRow, ...]
    traffic: Traffic | None


def measure(
    context: Context,
    plan: Plan,
    pairs: Sequence[tuple[Node, Node]],
    choice: FlowChoice,
    on_row: OnRow,
    *,
    timeout_s: float,
) -> MeasuredTcp:
    """Send data from the first to the second node of each pair. `on_row` gets each row and its samples when it ends.

    Raises ConflictError if a node does not run, or if the switch was set up by hand, and MissingError if a node lacks
    iperf3.
    """
    traffic_plan.require_own_switch(plan, "count frames at its ports")
    nodes = list({node.name: node for pair in pairs for node in pair}.values())
    require_running(context, plan, nodes)
    deadline = Deadline(timeout_s)
    rows: list[TcpRow] = []
    with (
        context.fleet_of(plan) as fleet,
        sessions(context, plan, nodes, user="root", deadline=deadline, fleet=fleet) as opened,
        counted(fleet[plan.switch.server], plan) as read,
    ):
        _require_iperf3([opened[node.name] for node in nodes], deadline)
        before, sent_bytes = read(0), 0
        for start, end in pairs:
            times = vcpu_times(fleet, (start, end))
            ends = FlowEnds(start.address, end.address, sender_port(plan.mpi_ports))
            seen = stage.flow(opened[start.name], opened[end.name], ends, choice, deadline)
            waited = starved(times, vcpu_times(fleet, (start, end)), (start.name, end.name))
            sent_bytes += seen.exchanged_bytes
            rows.append(replace(summary(start.name, end.name, choice, seen), starved=waited))
            on_row(rows[-1], seen.samples)
        after = read(sent_bytes)
    return MeasuredTcp(tuple(rows), traffic_between(before, after))


def _require_iperf3(opened: Sequence[Session], deadline: Deadline) -> None:
    found = parallel.each(opened, stage.has_iperf3, deadline=deadline)
    if missing := [session.name for session, is_there in zip(opened, found, strict=True) if not is_there]:
        raise MissingError(
            f"{folded(missing)}: iperf3 is not installed",
            hint=f"vcluster exec -l root -w '{folded(missing)}' -- apt-get install -y iperf3",
        )
