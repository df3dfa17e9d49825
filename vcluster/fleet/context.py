"""The context of a command."""

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
    """The context of a command: the state folder, connections to servers, the image store, and the event reporter."""

    state_root: Path
    connector: Connector
    images: ImageStore
    report: Reporter

    def files(self, name: str) -> ClusterFiles:
        """The files of a cluster."""
        return ClusterFiles(self.state_root, name)

    @contextmanager
    def local_server(self) -> Iterator[Server]:
        """Open this machine."""
        with self.connector.open(servers.request_for_spec(LOCAL, carries_nodes=self.connector.has_libvirt)) as server:
            yield server

    @contextmanager
    def fleet(self, requests: Sequence[ServerRequest], *, allow_unreachable: bool = False) -> Iterator[Fleet]:
        """Open servers in parallel. See `servers.open_fleet`."""
        with servers.open_fleet(self.connector, requests, self.report, allow_unreachable=allow_unreachable) as opened:
            yield opened

    @contextmanager
    def fleet_of(self, plan: Plan, *, allow_unreachable: bool = False) -> Iterator[Fleet]:
        """Open the servers of a plan."""
        key = self.files(plan.name).server_key()
        requests = [servers.request_for_plan(server, key) for server in plan.servers]
        with self.fleet(requests, allow_unreachable=allow_unreachable) as opened:
            yield opened
