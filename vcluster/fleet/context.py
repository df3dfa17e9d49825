"""Where a command works."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vcluster.fleet import servers
from vcluster.fleet.ledger import ClusterFiles
from vcluster.fleet.servers import Connector, Fleet, Server, ServerRequest
from vcluster.images.store import ImageStore
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL
from vcluster.util.events import Reporter


@dataclass(frozen=True, slots=True)
class Context:
    """Where a command works: the state on disk, the doors to servers, the images, and who listens."""

    state_root: Path
    connector: Connector
    images: ImageStore
    report: Reporter

    def files(self, name: str) -> ClusterFiles:
        """The folder of a cluster."""
        return ClusterFiles(self.state_root, name)

    @contextmanager
    def here(self) -> Iterator[Server]:
        """This machine, opened."""
        with self.connector.open(servers.request_for_spec(LOCAL, carries_nodes=self.connector.has_libvirt)) as server:
            yield server

    @contextmanager
    def fleet(self, requests: Sequence[ServerRequest], *, may_lose: bool = False) -> Iterator[Fleet]:
        """Servers, opened side by side."""
        with servers.fleet(self.connector, requests, self.report, may_lose=may_lose) as opened:
            yield opened

    @contextmanager
    def fleet_of(self, plan: Plan, *, may_lose: bool = False) -> Iterator[Fleet]:
        """The servers of a cluster, opened as its ledger tells."""
        key = self.files(plan.name).server_key()
        with self.fleet([servers.request_for_plan(one, key) for one in plan.servers], may_lose=may_lose) as opened:
            yield opened
