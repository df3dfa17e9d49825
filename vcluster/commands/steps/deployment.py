"""A cluster that a command changes, and the steps that create, add, start and repair share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from vcluster.adapters.node_connection import NodeConnection
from vcluster.commands.steps.node_watch import NodeWatch
from vcluster.fleet import login_files
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles, Ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.images import deliver
from vcluster.model.checks import CheckReport
from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan, ServerPlan
from vcluster.model.spec import ImageLogin
from vcluster.render.ssh_files import known_hosts, ssh_config
from vcluster.resources import interfaces, networks, rules, segmentation, shaping, volumes
from vcluster.stages import check, path, tunnels
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter


@dataclass(frozen=True, slots=True)
class Deployment:
    """A plan that a command carries out on open servers until the deadline; `keys` are the cluster's."""

    context: Context
    fleet: Fleet
    plan: Plan
    keys: Keys
    deadline: Deadline

    @property
    def report(self) -> Reporter:
        """The reporter of the command."""
        return self.context.report

    @property
    def files(self) -> ClusterFiles:
        """The state folder of the cluster."""
        return self.context.files(self.plan.name)

    @property
    def concurrency_limit(self) -> int:
        """How many nodes the command works on at once.

        Emulated nodes slow each other down when too few processors are shared. The nodes come in the plan's order, so
        the head is among the first.
        """
        carriers = [planned for planned in self.plan.servers if planned.carries_nodes]
        if any(planned.accel != "tcg" for planned in carriers):
            return parallel.WORKERS_MAX
        return sum(2 * int(self.fleet[planned.name].call("identity")["cpus"]) for planned in carriers)

    @contextmanager
    def watched(self, *, hint: str) -> Iterator[tuple[Deployment, NodeWatch]]:
        """The same cluster, and a watch of its nodes. All waits end when a watched node stops.

        The error names the node, and has the `hint`.
        """
        watch = NodeWatch(self.fleet, self.plan, self.report, hint=hint)
        with watch.explained():
            yield replace(self, deadline=self.deadline.with_check(watch.check)), watch

    def save(self, ledger: Ledger) -> None:
        """Write the ledger, then keys and SSH files. `clear` needs the ledger if this command is killed."""
        self.files.write_ledger(ledger)
        self.write_login_files()

    def write_login_files(self) -> None:
        """Write the keys and the files that ssh reads."""
        files = self.files
        files.write_keys(self.keys)
        files.write_ssh(**ssh_texts(self.fleet, files, self.plan, self.keys))

    def restore_files(self) -> None:
        """Write keys and SSH files again if ssh cannot use them, or if they differ from those of the plan.

        If nothing differs, it writes nothing: `repair` also works on a full disk.
        """
        wanted = self.keys.admin.private, ssh_texts(self.fleet, self.files, self.plan, self.keys)
        if login_files.damaged(self.files, self.plan) or self.files.read_ssh() != wanted:
            self.write_login_files()

    def deliver_image(self) -> None:
        """Send the image once to each server that does not have it."""

        def send(server: Server) -> None:
            image = self.plan.server(server.name).image
            if image and server.session:
                deliver.deliver(
                    self.context.images, image, server.agent, image.disk.parent.parent,
                    name=server.name, deadline=self.deadline, report=self.report,
                )  # fmt: skip

        self.fleet.each(send, deadline=self.deadline)

    def create_networks(self) -> None:
        """Create rules, bridges, tunnels, networks and pools on every server; then send frames through every tunnel."""

        def create(server: Server) -> None:
            planned = self.plan.server(server.name)
            with self.report.step("network", server.label, awaiting="bridges, tunnels, networks and pools"):
                self._guard(server, planned)
                interfaces.create(server, planned)
                segmentation.create(server, self.plan)
                shaping.create(server, self.plan)
                networks.create(server, planned, self.plan.name)
                volumes.create_pool(server, planned, self.plan.name)

        self.fleet.each(create, deadline=self.deadline)
        if self.plan.has_tunnels:
            with self.report.step("tunnels", awaiting="frames through every tunnel, in both directions"):
                tunnels.prove(self.fleet, self.plan)

    def _guard(self, server: Server, planned: ServerPlan) -> None:
        """Make the rules of a server. A note reports each thing that its kernel lacks for them."""
        for what, why in rules.create(server, planned, self.plan.name, whole=self.plan):
            self.report.note(f"root of a node can {what} of {server.label or 'this machine'}: {why}")

    def check(
        self,
        connections: Mapping[str, NodeConnection],
        enter: Callable[[Node], object],
        *,
        pairs: bool = False,
        proven: Collection[str] = (),
        mount: Callable[[Node], object] | None = None,
    ) -> CheckReport:
        """Check everything that "ready" means: from inside the nodes, and by the counters of the switch.

        `enter` logs in to a node as the cluster's user. `proven` names nodes that passed an earlier check and have not
        changed since. `mount` mounts the shared folders of a node, if they are not mounted yet.
        """
        report = check.run(
            self.plan, connections, deadline=self.deadline, report=self.report,
            pairs=pairs, proven=proven, limit=self.concurrency_limit, enter=enter, mount=mount,
        )  # fmt: skip
        if self.plan.has_tunnels:
            crossed = path.check_all(self.fleet, self.plan, connections, deadline=self.deadline, report=self.report)
            report = replace(report, checks=(*report.checks, *crossed))
        return report


def ssh_texts(fleet: Fleet, files: ClusterFiles, plan: Plan, keys: Keys) -> dict[str, str]:
    """The texts of the files for plain ssh: `config` and `known_hosts`."""
    jumps = {
        server.name: server.jump_host(files.identity)
        for server in fleet.servers.values()
        if server.session and plan.nodes_on(server.name)
    }
    config = ssh_config(plan, identity=files.identity, known_hosts=files.known_hosts, jumps=jumps)
    return {"config": config, "known_hosts": known_hosts(plan, keys)}


def image_password(context: Context, login: ImageLogin | None) -> Callable[[], str]:
    """Return a function that looks up the password of an image's own user; the user is asked once."""
    return functools.cache(lambda: context.connector.image_password(login) if login else "")
