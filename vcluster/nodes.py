"""One node, from nothing to configured, beside the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from vcluster.errors import DeadlineError, VclusterError
from vcluster.events import Deadline
from vcluster.hosts import ssh
from vcluster.keys import Keys
from vcluster.model import Node, Plan
from vcluster.recipes import guest_file
from vcluster.render import guest
from vcluster.render.domain import console_path
from vcluster.render.seed import seed_files
from vcluster.resources import domains, seeds, volumes
from vcluster.servers import Fleet, Server
from vcluster.site import Site
from vcluster.stages import boot, configure

CONSOLE_BYTES = 16384


class NodeWork:
    """What happens to each node, beside the others; workers wait for the head's export and for nothing else."""

    def __init__(self, site: Site, fleet: Fleet, decided: Plan, keys: Keys, deadline: Deadline) -> None:
        self._site, self._fleet = site, fleet
        self._plan, self._keys, self._deadline = decided, keys, deadline
        self._exported = threading.Event()

    def bring_up(self, node: Node) -> ssh.Session:
        """From nothing to a configured node, logged in to. What takes too long shows the node's last words."""
        with self._last_words(node):
            with self._site.report.step("create", node.name, awaiting="its disk, seed and domain"):
                seed = seed_files(self._plan, node, self._keys, guest_file=guest_file)
                server = self._fleet[node.server]
                volumes.create(server, self._plan, node, seeds.seed_iso(seed))
                domains.create(server, self._plan, node)
            return self._await_and_settle(node)

    def start_again(self, node: Node) -> ssh.Session:
        """Power a stopped node on and bring it to what the plan says."""
        with self._last_words(node):
            with self._site.report.step("start", node.name, awaiting="its power"):
                self._fleet[node.server].hypervisor.start_domain(node.domain)
            return self._await_and_settle(node)

    def settle(self, node: Node, deadline: Deadline | None = None) -> ssh.Session:
        """Log in to a node that is up and bring it to what the plan says."""
        server = self._fleet[node.server]
        with self._site.report.step("login", node.name, awaiting="a login by ssh"):
            session = log_in(self._keys, server.session, node, user="root", deadline=deadline or self._deadline)
        try:
            self.configure(node, session)
        except BaseException:
            session.close()
            raise
        return session

    def configure(self, node: Node, session: ssh.Session) -> tuple[str, ...]:
        """Bring a node to what the plan says; returns what had to be changed."""
        report, decided = self._site.report, self._plan
        changed = configure.apply(session, "ssh", guest.ssh_actions(decided, node, self._keys), report=report)
        if not node.is_head:
            self._await_export(node)
        changed += configure.apply(session, "nfs", guest.nfs_actions(decided, node), report=report)
        if node.is_head:
            self._exported.set()
        return changed + configure.apply(session, "mpi", guest.mpi_actions(decided), report=report)

    def _await_and_settle(self, node: Node) -> ssh.Session:
        with closing(boot.listen(self._fleet[node.server], node)) as words:
            deadline = self._deadline.watching(words.check)
            boot.wait_ready(words, node, deadline=deadline, report=self._site.report)
            return self.settle(node, deadline)

    def _await_export(self, node: Node) -> None:
        while not self._exported.wait(0.2):
            self._deadline.check(f"{node.name}: nfs: the head's export")

    @contextmanager
    def _last_words(self, node: Node) -> Iterator[None]:
        try:
            yield
        except DeadlineError as error:
            words = ""
            with suppress(VclusterError):
                words = boot.last_words(node, console_log(self._fleet[node.server], self._plan, node))
            raise DeadlineError(error.message + words, hint=error.hint) from error


def console_log(server: Server, decided: Plan, node: Node, size: int = CONSOLE_BYTES) -> str:
    """The end of what a node's console has said since power-on."""
    return str(server.call("tail", path=str(console_path(decided, node)), size=size))


def log_in(keys: Keys, via: ssh.Session | None, node: Node, *, user: str, deadline: Deadline) -> ssh.Session:
    """A session on a node, its host key pinned; `via` its server's where that is not this machine."""
    return ssh.connect(
        node.name,
        str(node.management_address),
        user=user,
        private_key=keys.admin.private,
        host_key=keys.hosts[node.name].public,
        deadline=deadline,
        via=via,
    )
