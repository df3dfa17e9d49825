"""Notice nodes that stop working while a command works on them, at every stage, and report the cause.

libvirt sends an event when a node reboots, ends or is paused. The watch reads the node's console at once, because the
next boot writes to it too. Then every wait of the command ends with the watch's error, so stages need no code for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial

from vcluster.adapters.libvirt.domain_events import DIED, PANICKED, PAUSED, REBOOTED, DomainEvent
from vcluster.commands.steps import node_console
from vcluster.commands.steps.inventory import domains_on
from vcluster.errors import VclusterError
from vcluster.fleet.servers import Fleet
from vcluster.model import status
from vcluster.model.plan import Node, Plan
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

CONSOLE_S = 0.2  # the last lines reach the console's log later than the event reaches vcluster
EVENT_S = 0.5  # the event may come after the end of a connection to the node
SETTLE_S = 5.0  # for the inspection of a node that stopped
INSPECTORS = 4


class NodeStoppedError(VclusterError):
    """A node stopped during a command: `what` is rebooted, died or was paused. `reason` is empty if it is unknown."""

    def __init__(self, message: str, *, what: str, reason: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.what, self.reason = what, reason


class NodeWatch:
    """Watches nodes from `begin` to `end`; the first error of each node stays.

    A node is in its trial until `promote`: its error ends only the waits for itself, since a clone that stops may be
    replaced by a boot. `hint` is that of the errors.
    """

    def __init__(self, fleet: Fleet, plan: Plan, report: Reporter, *, hint: str) -> None:
        self._fleet, self._plan, self._report, self._hint = fleet, plan, report, hint
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._trials: set[str] = set()
        self._starting: set[str] = set()
        self._errors: dict[str, NodeStoppedError] = {}
        self._closers: dict[str, list[Callable[[], None]]] = {}
        self._inspectors = ThreadPoolExecutor(INSPECTORS, "node watch")
        self._inspections: list[Future[None]] = []

    @contextmanager
    def starting(self, node: Node) -> Iterator[None]:
        """Watch a node that the block starts. If the block fails, its own error is the cause.

        In the block a node may be off, and a clone is paused until it is loaded.
        """
        self._starting.add(node.name)
        self.begin(node)
        yield
        self._starting.discard(node.name)

    def begin(self, node: Node) -> None:
        """Watch a node that runs, in its trial."""
        with self._lock:
            self._nodes[node.name] = node
            self._trials.add(node.name)
        self._fleet[node.server].hypervisor.events.listen(node.uuid, partial(self._on_event, node))

    def promote(self, node: Node) -> None:
        """End the trial of a node: from now on its error ends the waits for all nodes."""
        self._trials.discard(node.name)

    def end(self, node: Node) -> None:
        """Watch a node no more, because vcluster removes it, and forget its error."""
        self._ignore(node)
        self._settle()
        with self._lock:
            self._starting.discard(node.name)
            for found in (self._nodes, self._errors, self._closers):
                found.pop(node.name, None)

    def call_on_stop(self, node: Node, close: Callable[[], None]) -> None:
        """Call `close` when the node stops: it ends calls of libraries that wait for the node."""
        with self._lock:
            self._closers.setdefault(node.name, []).append(close)

    def close(self) -> None:
        """End the watch of all nodes."""
        for node in tuple(self._nodes.values()):
            self._ignore(node)
        self._inspectors.shutdown(wait=False)

    # Errors

    def check(self, _: str = "") -> None:
        """Raise the error of a node after its trial, if there is one. A check for `Deadline.with_check`."""
        for name, error in tuple(self._errors.items()):
            if name not in self._trials:
                raise error

    def deadline_of(self, node: Node, deadline: Deadline) -> Deadline:
        """The same deadline; a wait on it also ends when this node stops, also in its trial."""

        def check(_: str) -> None:
            if error := self._errors.get(node.name):
                raise error

        return deadline.with_check(check)

    def cause_of(self, error: VclusterError, node: Node) -> VclusterError:
        """Why the node stopped, if it did; else the error."""
        self._find_causes([node])
        return self._errors.get(node.name, error)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Replace the error of a block by those of the nodes that stopped; raise these also without another error."""
        try:
            yield
        except VclusterError as error:
            self._find_causes(tuple(self._nodes.values()))
            cause = parallel.joined(self._errors_in_order())
            if cause is None or cause is error:
                raise
            raise cause from error
        finally:
            self.close()
        self._settle()
        parallel.raise_all(self._errors_in_order())

    def _errors_in_order(self) -> list[VclusterError]:
        return [self._errors[node.name] for node in self._plan.nodes if node.name in self._errors]

    def _find_causes(self, nodes: Sequence[Node]) -> None:
        """Wait for the errors of these nodes; ask libvirt which nodes stopped without an event."""
        self._settle()
        if stops := self._present_stops(nodes):
            time.sleep(EVENT_S)
            self._settle()
            for node, event in stops:
                self._inspect(node, event, self._report.stages.of(node.name))

    def _present_stops(self, nodes: Sequence[Node]) -> list[tuple[Node, DomainEvent]]:
        """The nodes that do not run now. A server that is lost has none: the block's error is about the server."""
        servers = [self._fleet[name] for name in {node.server for node in nodes}]
        found = parallel.outcomes([server for server in servers if server.is_alive], domains_on)
        powers = {name: power for each in found if isinstance(each, dict) for name, power in each.items()}
        events = {status.STOPPED: DomainEvent(DIED), status.PAUSED: DomainEvent(PAUSED)}
        candidates = [node for node in nodes if node.domain in powers and node.name not in self._starting]
        return [(node, events[power.state]) for node in candidates if (power := powers[node.domain]).state in events]

    # Inspections

    def inspect_pause(self, node: Node) -> None:
        """Find a pause that libvirt reported before the watch began."""
        self._on_event(node, DomainEvent(PAUSED))

    def _on_event(self, node: Node, event: DomainEvent) -> None:
        """Called in the thread of libvirt's event loop, which must not wait."""
        with suppress(RuntimeError):  # the block has ended
            stage = self._report.stages.of(node.name)
            self._inspections.append(self._inspectors.submit(self._inspect, node, event, stage))

    def _inspect(self, node: Node, event: DomainEvent, stage: str) -> None:
        if node.name in self._errors:
            return
        with suppress(VclusterError):  # the server is lost
            if error := self._error_of(node, event, stage or "the command"):
                self._record(node, error)

    def _error_of(self, node: Node, event: DomainEvent, stage: str) -> NodeStoppedError | None:
        """The error for an event; None for a pause that is over, or belongs to the load of a clone."""
        server, name = self._fleet[node.server], node.name
        if event.what == PAUSED:
            power = server.hypervisor.power_state(node.domain)
            if power.state != status.PAUSED or (name in self._starting and not event.is_error):
                return None
            text, hint = power.reason, f"remove the reason, then {self._hint}"
            return NodeStoppedError(f"{name} was paused during {stage}: {text}", what=PAUSED, reason=text, hint=hint)
        time.sleep(CONSOLE_S)
        text = ""
        with suppress(VclusterError):  # the node is gone all the same
            text = node_console.console_log(server, self._plan, node)
        console = node_console.described(name, text)
        reason = PANICKED if event.what == REBOOTED and node_console.has_panicked(text) else event.reason
        because = f": {reason}" if reason else ""
        message = f"{name} {event.what} during {stage}{because}{console}"
        return NodeStoppedError(message, what=event.what, reason=reason, hint=self._hint)

    def _record(self, node: Node, error: NodeStoppedError) -> None:
        with self._lock:
            if node.name in self._nodes:
                self._errors.setdefault(node.name, error)
            closers = self._closers.pop(node.name, [])
        for close in closers:
            close()

    def _settle(self) -> None:
        wait(tuple(self._inspections), timeout=SETTLE_S)

    def _ignore(self, node: Node) -> None:
        with suppress(VclusterError):  # the server is lost
            self._fleet[node.server].hypervisor.events.ignore(node.uuid)
