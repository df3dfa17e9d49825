"""Measure what links without limits give on the servers of a cluster, and keep it with the cluster."""

from __future__ import annotations

from datetime import datetime, timezone

from vcluster.commands.nodes import link
from vcluster.commands.nodes.link_probe import AWAITED, Opened, opened_nodes, running_nodes, session_of
from vcluster.commands.steps.inventory import read_ledger
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet import calibrations
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Server
from vcluster.model.plan import Plan
from vcluster.model.traffic.calibration_record import CalibratedPath, Calibration
from vcluster.planning.traffic import path_calibration
from vcluster.planning.traffic.path_calibration import BEGIN_S, ROUND_TRIPS, WINDOW_S, Pair
from vcluster.resources import port_traffic
from vcluster.stages.measuring import link_probe as stage


def calibrate(context: Context, name: str) -> Calibration:
    """Measure a path for each pair of servers whose nodes run, and write the calibration.

    Raises ConflictError if no two nodes without limits run.
    """
    files = context.files(name)
    plan, rows = read_ledger(files).plan, link.show(context, name, ())
    with context.fleet_of(plan) as fleet:
        running = running_nodes(fleet, plan)
        pairs = path_calibration.pairs(plan, rows, [node.name for node in running])
        if not pairs:
            hint = f"vcluster link reset --name {name}, or vcluster start {name}"
            raise ConflictError("no two nodes without limits run, so no path can be calibrated", hint=hint)
        senders = {start for start, _ in pairs.values()}
        with opened_nodes(context, plan, [node for node in running if node.name in senders], fleet) as opened:
            switch = fleet[plan.switch.server]
            paths = [_path(switch, plan, opened, servers, pair) for servers, pair in pairs.items()]
    found = Calibration(datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), tuple(paths))
    calibrations.write(files, found)
    return found


def _path(switch: Server, plan: Plan, opened: Opened, servers: tuple[str, ...], pair: Pair) -> CalibratedPath:
    session = session_of(opened, pair[0])
    address = plan.node(pair[1]).address
    _, times = stage.round_trips(session, address, ROUND_TRIPS)
    with stage.streaming(session, address, path_calibration.stream(plan)) as running:
        session.deadline.pause(BEGIN_S, AWAITED)
        before = port_traffic.sample(switch, plan)
        session.deadline.pause(WINDOW_S, AWAITED)
        after = port_traffic.sample(switch, plan)
        running.end()
        running.wait()
    found = path_calibration.path(plan, servers, pair, times, before, after)
    if found is None:
        raise VclusterError(
            f"{pair[1]} answered {len(times)} of {ROUND_TRIPS} pings of {pair[0]}, or its port was made again",
            hint=f"vcluster check {plan.name}",
        )
    return found
