"""Measure what the links of nodes really do: probes in the nodes, and the counters of the switch's ports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

from vcluster.adapters.ssh.ssh_session import Session
from vcluster.commands.nodes.access import sessions
from vcluster.commands.steps.inventory import powers_of
from vcluster.errors import VclusterError
from vcluster.fleet import calibrations
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Node, Plan
from vcluster.model.status import RUNNING
from vcluster.model.traffic.calibration_record import Calibration
from vcluster.model.traffic.link_figure import DELAY, LOSS, LinkFigure
from vcluster.planning.traffic import link_figures
from vcluster.planning.traffic.link_figures import Baseline, LinkProbe, Reading, Stream
from vcluster.planning.traffic_plan import LinkReading
from vcluster.resources import port_traffic, shaping
from vcluster.stages.measuring import link_probe as stage
from vcluster.stages.measuring.link_probe import RunningStream
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

NODE_TIMEOUT_S = 600.0  # for all probes of a node
SETTLE_S = 2.0  # until the last frames of a stream have passed the switch
POLL_S = 0.02
AWAITED = "frames at the ports of the switch"

Pair = tuple[str, str]
Opened = Mapping[str, Session | VclusterError]


def measured(context: Context, plan: Plan, rows: Sequence[LinkReading], chosen: Collection[str]) -> list[LinkReading]:
    """The rows of the chosen nodes, with what their links do. `rows` are the limits of all nodes.

    A limit that cannot be measured has the reason.
    """
    calibration = calibrations.read(context.files(plan.name))
    with context.fleet_of(plan) as fleet:
        running = running_nodes(fleet, plan)
        names = [node.name for node in running]
        probes = link_figures.probes(plan, rows, chosen, names)
        needed = {probe.sender for probe in probes}
        delays = [probe for probe in probes if probe.figure == DELAY and probe.other]
        pairs = {probe: link_figures.baseline_pair(plan, rows, names, probe) for probe in delays}
        needed |= {pair[0] for pair in pairs.values() if pair}
        with opened_nodes(context, plan, [node for node in running if node.name in needed], fleet) as opened:
            prober = _Prober(fleet[plan.switch.server], plan, rows, opened, pairs, calibration)
            figures = {probe: prober.figure(probe, names) for probe in probes}
    return [*link_figures.with_figures([row for row in rows if row.node in chosen], figures)]


def running_nodes(fleet: Fleet, plan: Plan) -> list[Node]:
    """The nodes that are on."""
    powers = powers_of(fleet, plan.nodes)
    return [node for node in plan.nodes if powers[node.name].state == RUNNING]


def session_of(opened: Opened, node: str) -> Session:
    """The session on a node. Raises the error of its login."""
    found = opened[node]
    if isinstance(found, VclusterError):
        raise found
    return found


@contextmanager
def opened_nodes(context: Context, plan: Plan, nodes: Sequence[Node], fleet: Fleet) -> Iterator[Opened]:
    """A session on each of these nodes, or the error of its login."""
    with ExitStack() as stack:

        def log_in(node: Node) -> Session:
            deadline = Deadline(NODE_TIMEOUT_S)
            opening = sessions(context, plan, [node], user="root", deadline=deadline, fleet=fleet)
            return stack.enter_context(opening)[node.name]

        outcomes = parallel.outcomes(nodes, log_in)
        yield {node.name: outcome for node, outcome in zip(nodes, outcomes, strict=True)}


class _Prober:
    """Carries out probes one after the other. Each baseline is measured once."""

    def __init__(
        self,
        server: Server,
        plan: Plan,
        rows: Sequence[LinkReading],
        opened: Opened,
        pairs: Mapping[LinkProbe, Pair | None],
        calibration: Calibration | None,
    ) -> None:
        self._server, self._plan, self._rows, self._opened, self._pairs = server, plan, rows, opened, pairs
        self._baselines: dict[Pair, Baseline] = {}
        self._calibration = calibration

    def figure(self, probe: LinkProbe, running: Collection[str]) -> LinkFigure:
        """The figure of a probe, or the reason why it is not measured."""
        if probe.row.node not in running:
            return probe.missing(f"{probe.row.node} is off")
        if not probe.other:
            return probe.missing(f"{probe.row.peer} is off" if probe.row.peer else "no other node is suitable")
        work: Callable[[LinkProbe], LinkFigure] = {DELAY: self._delay, LOSS: self._loss}.get(probe.figure, self._rate)
        try:
            return work(probe)
        except VclusterError as error:
            return probe.missing(error.message)

    def _delay(self, probe: LinkProbe) -> LinkFigure:
        pair, frames = self._pairs.get(probe), 0
        if pair and pair not in self._baselines:
            found, frames = self._round_trips(*pair)
            self._baselines[pair] = link_figures.measured_baseline(pair, found)
        baseline = (
            self._baselines[pair] if pair else link_figures.calibrated_baseline(self._plan, probe, self._calibration)
        )
        if baseline is None:
            return probe.missing("no two nodes without delays run on the same servers, for a baseline")
        times, sent = self._round_trips(probe.sender, probe.receiver)
        return link_figures.delay_figure(probe, times, frames + sent, baseline)

    def _round_trips(self, start: str, end: str) -> tuple[list[int], int]:
        """The times of round trips, and the number of frames."""
        sent, times = stage.round_trips(session_of(self._opened, start), self._plan.node(end).address)
        return times, sent + len(times)

    def _loss(self, probe: LinkProbe) -> LinkFigure:
        stream = link_figures.loss_stream(self._rows, probe)
        begin = self._read()
        with self._streaming(probe, stream) as running:
            running.wait()
        end = self._settled(probe, partial(link_figures.arrived, self._plan, probe))
        return link_figures.loss_figure(self._plan, probe, begin, end, running.sent)

    def _rate(self, probe: LinkProbe) -> LinkFigure:
        stream, window_s = link_figures.rate_stream(self._plan, probe.row)
        session = session_of(self._opened, probe.sender)
        with self._streaming(probe, stream) as running:
            begin = self._saturated(probe)
            session.deadline.pause(window_s, AWAITED)
            end = self._read()
            running.end()
            running.wait()
        self._settled(probe, partial(link_figures.arrived, self._plan, probe))
        return link_figures.rate_figure(probe, begin, end, running.sent, stream.frame_bytes)

    def _streaming(self, probe: LinkProbe, stream: Stream) -> AbstractContextManager[RunningStream]:
        address = self._plan.node(probe.receiver).address
        return stage.streaming(session_of(self._opened, probe.sender), address, stream)

    def _read(self) -> Reading:
        rows, t_ns = shaping.read_at(self._server, self._plan)
        return rows, t_ns, port_traffic.sample(self._server, self._plan)

    def _saturated(self, probe: LinkProbe) -> Reading:
        """The counters when frames wait in the queue of a probe, or after a while without."""
        deadline, found = Deadline(SETTLE_S), self._read()
        while not link_figures.is_saturated(link_figures.row_of(found[0], probe.row)) and deadline.remaining_s():
            found = self._read()
        return found

    def _settled(self, probe: LinkProbe, count: Callable[[Reading], int]) -> Reading:
        """The counters when a count does not change any more, and no frames wait."""
        delay_s = link_figures.round_trip_us(self._rows, probe.row.node, probe.other) / 10**6
        deadline, found = Deadline(SETTLE_S + delay_s), self._read()
        wait_s = delay_s + POLL_S
        while deadline.remaining_s() > wait_s:
            deadline.pause(wait_s, AWAITED)
            before, found = found, self._read()
            if count(before) == count(found) and not any(map(link_figures.is_saturated, found[0])):
                break
        return found
