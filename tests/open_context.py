"""A context of commands whose servers are already open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vcluster.fleet.ledger import ClusterFiles
from vcluster.fleet.servers import Fleet
from vcluster.model.plan import Plan
from vcluster.util.events import Reporter


class OpenContext:
    """Answers as Context does, for commands on a cluster."""

    def __init__(self, fleet: Fleet, root: Path) -> None:
        self.fleet, self.state_root, self.report = fleet, root, Reporter()

    def files(self, name: str) -> ClusterFiles:
        return ClusterFiles(self.state_root, name)

    @contextmanager
    def fleet_of(self, plan: Plan, *, allow_unreachable: bool = False) -> Iterator[Fleet]:  # noqa: ARG002
        yield self.fleet
