"""The context of a command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vcluster.fleet import ledger, servers
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

    def with_owner(self) -> Context:
        """The same context after its state folder has got an owner id, which everything that is made needs."""
        return self.as_owner(ledger.make_owner(self.state_root))

    def as_owner(self, owner: str) -> Context:
        """The same context with another owner id."""
        return self if owner == self.connector.owner else replace(self, connector=replace(self.connector, owner=owner))

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
        with self.fleet(servers.requests_for_plan(plan, key), allow_unreachable=allow_unreachable) as opened:
            yield opened
