"""Bring nodes up and configure them, many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager

from vcluster.adapters.libvirt.domain_events import DESTROYED, REBOOTED
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.serial_connection import SerialConnection
from vcluster.adapters.ssh import ssh_login, ssh_session
from vcluster.adapters.ssh.authentication import LoginRefusedError
from vcluster.commands.steps.deployment import Deployment
from vcluster.commands.steps.node_console import console_on_timeout
from vcluster.commands.steps.node_login import POLL_S, JumpHosts, log_in
from vcluster.commands.steps.node_watch import NodeStoppedError, NodeWatch
from vcluster.errors import DeadlineError, VclusterError
from vcluster.fleet.server_clocks import ServerClocks
from vcluster.fleet.servers import Server
from vcluster.guest import program
from vcluster.images.recipes import guest_file
from vcluster.model.plan import Node
from vcluster.model.spec import ImageLogin
from vcluster.render import node_actions
from vcluster.render.common_files import common_files
from vcluster.render.domain_xml import READY_CHANNEL
from vcluster.render.seed_files import seed_files
from vcluster.resources import domains, seeds, segmentation, volumes
from vcluster.snapshots.template import FEATURE, REFUSED, Snapshot, SnapshotIndex, template_of
from vcluster.stages import boot, configure, key_install, node_links
from vcluster.util import parallel
from vcluster.util.deadline import Cancelled, Deadline

SSH_PORT = 22
GREETING_S = 5.0
IDENTITY_S = 120.0  # many clones at once need a part of it; a clone that does not resume is given up after it
ENTER_S = 30.0  # many nodes at once answer late
RELOAD_TRIES, RELOAD_S = 10, 0.5


class NodeLifecycle:
    """What happens to each node of a cluster. A node that only the head reaches waits until the head is configured.

    `watch` watches each node that runs. `image_password` is called only if the image's own user must install our key.
    """

    def __init__(
        self,
        cluster: Deployment,
        watch: NodeWatch,
        *,
        image_password: Callable[[], str],
        snapshots: SnapshotIndex | None = None,
    ) -> None:
        self._cluster, self._watch, self._image_password = cluster, watch, image_password
        self._plan, self._deadline = cluster.plan, cluster.deadline
        self._snapshots = {key: each for key, each in (snapshots or {}).items() if each is not REFUSED}
        self._common = common_files(cluster.plan, cluster.keys)
        self._head_configured = threading.Event()
        self._clocks = ServerClocks(cluster.fleet, cluster.plan.head.server)
        sessions = {name: server.session for name, server in cluster.fleet.servers.items()}
        self._jump_hosts = JumpHosts(cluster.plan, sessions)

    def all_nodes(self, work: Callable[[Node], NodeConnection], stack: ExitStack) -> dict[str, NodeConnection]:
        """Do `work` on all nodes at once. Returns the connections that it opened, by node.

        They are closed with the stack, also when another node fails.
        """
        connections: dict[str, NodeConnection] = {}

        def connect(node: Node) -> None:
            connections[node.name] = work(node)
            self._watch.promote(node)

        stack.callback(self._jump_hosts.close)
        stack.callback(lambda: parallel.outcomes([*connections.values()], lambda connection: connection.close()))
        limit = self._cluster.concurrency_limit
        # Boots mostly wait, so they need no limit.
        parallel.each(
            self._plan.nodes,
            connect,
            deadline=self._deadline,
            limit=limit if self._snapshots else parallel.WORKERS_MAX,
        )
        return connections

    def require_ready(self, connections: Mapping[str, NodeConnection], *, proven: Collection[str] = ()) -> None:
        """Mount the shared folders of all nodes and check the cluster; raise VclusterError with every failed check."""
        report = self._cluster.check(
            connections, self._enter, proven=proven, mount=lambda node: self.mount_shares(node, connections[node.name])
        )
        if not report.passed:
            raise VclusterError("the cluster is not ready:" + "".join(f"\n  {failure}" for failure in report.failed))

    def _enter(self, node: Node) -> None:
        """Log in to a node as the cluster's user."""
        deadline = Deadline(self._deadline.remaining_s(ENTER_S)).with_check(self._deadline.check)
        via = self._jump_hosts.to(node, deadline)
        log_in(self._cluster.keys, via, node, user=self._plan.user, deadline=deadline).close()

    def mount_all(self, connections: Mapping[str, NodeConnection]) -> None:
        """Mount the shared folders of all nodes."""
        parallel.each(
            self._plan.nodes,
            lambda node: self.mount_shares(node, connections[node.name]),
            deadline=self._deadline,
            limit=self._cluster.concurrency_limit,
        )

    def sessions(self, connections: Mapping[str, NodeConnection], stack: ExitStack) -> dict[str, ssh_session.Session]:
        """SSH sessions on all nodes, by name. A node with a serial connection gets a session, closed with the stack.

        Serial connections are closed: a clone holds udevd back until then, and users' programs may need it.
        """
        sessions = {
            name: connection for name, connection in connections.items() if isinstance(connection, ssh_session.Session)
        }
        serial = [connection for name, connection in connections.items() if name not in sessions]
        parallel.outcomes(serial, lambda connection: connection.close())
        opened: list[ssh_session.Session] = []

        def open_session(node: Node) -> None:
            if node.name in sessions:
                return
            session = sessions[node.name] = self._log_in(node, self._deadline)
            opened.append(session)
            if node.is_head:
                self._jump_hosts.set_head(session)

        stack.callback(lambda: parallel.outcomes(opened, lambda session: session.close()))
        # The head is the first node of the plan; the others may be reached through it.
        parallel.each(self._plan.nodes, open_session, deadline=self._deadline)
        return sessions

    def bring_up(self, node: Node) -> NodeConnection:
        """Create a node and configure it: as a clone if there is a snapshot, else by a boot.

        A DeadlineError quotes the last lines of the node's console.
        """
        with console_on_timeout(self._server(node), self._plan, node):
            return self._clone(node) or self._boot(node)

    def _boot(self, node: Node) -> NodeConnection:
        with self._cluster.report.step("create", node.name, awaiting="its disk, seed and domain"):
            server, seed = self._server(node), self._seed(node)
            volumes.create(server, self._plan, node, seeds.seed_iso(seed))
            with self._watch.starting(node):
                domains.create(server, self._plan, node)
        return self._await_boot(node)

    def _clone(self, node: Node) -> NodeConnection | None:
        """Create a node from a snapshot; None if a snapshot is missing, or the clone failed and the node must boot."""
        snapshot = self._snapshots.get((node.server, template_of(self._plan, node)))
        if snapshot is None:
            return None
        server = self._server(node)
        try:
            return self._restore_clone(server, node, snapshot)
        except Cancelled:
            raise
        except VclusterError as error:
            if isinstance(error, DeadlineError) and not self._deadline.remaining_s():
                raise
            self._deadline.check(f"{node.name} to boot")
            cause = self._watch.cause_of(error, node)
            if isinstance(cause, NodeStoppedError) and cause.reason == DESTROYED:  # the snapshot is not the reason
                raise cause from error
            self._snapshots.clear()
            refused = error.message if isinstance(error, domains.CloneRefusedError) else ""
            server.call("drop_snapshot", root=snapshot.root, key=snapshot.key, refused=refused)
            self._cluster.report.note(f"{node.name} boots, because it cannot be cloned: {cause.message}")
            self._watch.end(node)
            domains.discard(server, node)
            volumes.discard(server, self._plan, node)
            return None

    def _restore_clone(self, server: Server, node: Node, snapshot: Snapshot) -> NodeConnection:
        seed, deadline = self._seed(node), self._deadline_of(node)
        with self._cluster.report.step("clone", node.name, awaiting="its disk, seed and memory"):
            volumes.create(server, self._plan, node, seeds.seed_iso(seed), snapshot)
            with self._watch.starting(node):
                domains.start_clone(server, self._plan, node, snapshot, deadline)
        with closed_on_error(SerialConnection(node.name, boot.listen(server, node), deadline)) as connection:
            self._watch.call_on_stop(node, connection.disconnect)
            with self._cluster.report.step("identity", node.name, awaiting="its name, keys and addresses"):
                within = Deadline(deadline.remaining_s(IDENTITY_S)).with_check(deadline.check)
                connection.request(boot.identity(seed), within, "the new identity")
            self.configure(node, connection)
            with self._cluster.report.step("sshd", node.name, awaiting="sshd with its keys"):
                connection.request({"do": "listening", "port": SSH_PORT}, deadline, "sshd")
        self._provide_jump_host(node)
        return connection

    def _server(self, node: Node) -> Server:
        return self._cluster.fleet[node.server]

    def _deadline_of(self, node: Node) -> Deadline:
        return self._watch.deadline_of(node, self._deadline)

    def _seed(self, node: Node) -> dict[str, str]:
        return seed_files(self._plan, node, self._cluster.keys, guest_file=guest_file)

    def bring_up_during_add(self, node: Node) -> NodeConnection:
        """Bring up a node of a cluster that is up; the head must know the node before it asks for a DHCP lease."""
        while self._plan.dhcp_range and not self._head_configured.is_set():
            self._deadline.pause(POLL_S, f"the DHCP server of {self._plan.head.name} to know {node.name}")
        return self.bring_up(node)

    def start_again(self, node: Node) -> ssh_session.Session:
        """Start a stopped node and configure it as the plan specifies."""
        with console_on_timeout(self._server(node), self._plan, node):
            with self._cluster.report.step("start", node.name, awaiting="its power"), self._watch.starting(node):
                domains.power_on(self._server(node), self._plan, node)
            return self._await_boot(node)

    def resume(self, node: Node) -> ssh_session.Session:
        """Let a paused node run again and configure it as the plan specifies.

        Raises VclusterError if the node is paused again, for example because its disk is still full.
        """
        with self._cluster.report.step("start", node.name, awaiting="its resumption"):
            resume_domain(self._cluster, node)
        return self.configure_running(node)

    def configure_running(self, node: Node) -> ssh_session.Session:
        """Log in to a running node and configure it as the plan specifies."""
        self._watch.begin(node)
        self._watch.inspect_pause(node)
        return self._configure_by_ssh(node)

    def _configure_by_ssh(self, node: Node) -> ssh_session.Session:
        with self._cluster.report.step("login", node.name, awaiting="a login by ssh"):
            session = self._log_in(node, self._deadline_of(node))
        try:
            if node.is_head:
                self._jump_hosts.set_head(session)
            self.configure(node, session)
            if node.is_head:
                self._head_configured.set()
        except BaseException:
            if node.is_head:
                self._deadline.cancel()  # before the nodes that are reached through this session lose it
            session.close()
            raise
        return session

    def configure_via_serial(self, node: Node) -> NodeConnection:
        """Configure a running node over its serial port; over SSH if nothing answers there."""
        self._watch.begin(node)
        connection = self._open_serial(node)
        if connection is None:
            return self.configure_running(node)
        with closed_on_error(connection):
            self.configure(node, connection)
        self._provide_jump_host(node)
        return connection

    def _provide_jump_host(self, node: Node) -> None:
        """Let other nodes be reached through the head; the first login that needs the session opens it."""
        if node.is_head:
            self._jump_hosts.set_head_later(lambda: self._log_in(node, self._deadline))
            self._head_configured.set()

    def _open_serial(self, node: Node) -> SerialConnection | None:
        """A serial connection to a running node; None if the agent in the node does not answer."""
        server = self._server(node)
        if not server.hypervisor.is_channel_open(node.domain, READY_CHANNEL):
            return None
        try:
            channel = boot.listen(server, node)
        except VclusterError:  # another command uses the channel
            return None
        connection = SerialConnection(node.name, channel, self._deadline_of(node))
        self._watch.call_on_stop(node, connection.disconnect)
        try:
            connection.request({"do": "here"}, Deadline(GREETING_S), "an answer on the serial port")
        except VclusterError:  # another program uses the port inside the node
            connection.disconnect()
            return None
        return connection

    def has_no_identity(self, node: Node) -> bool:
        """Whether the node is a clone without an identity, because the command that resumed it was killed."""
        connection = self._open_serial(node)
        if connection is None:
            return False
        with connection:
            return bool(connection.request({"do": "here"}, Deadline(GREETING_S), "the host name") == "")

    def configure(self, node: Node, connection: NodeConnection) -> tuple[str, ...]:
        """Apply what the plan specifies for this node alone. Returns what changed."""
        actions = node_actions.actions(self._plan, node, self._cluster.keys, self._common)
        actions.insert(0, node_actions.clock_action(self._clocks.ahead_s(node.server)))
        actions += node_links.actions(self._plan, node)
        changed = configure.apply(connection, "configure", actions, report=self._cluster.report)
        # The node has loaded its driver, which turns them on.
        segmentation.create_tap(self._server(node), self._plan, node)
        return changed

    def mount_shares(self, node: Node, connection: NodeConnection) -> tuple[str, ...]:
        """Mount the NFS shares of other nodes. Returns what changed."""
        actions = node_actions.mount_actions(self._plan, node, watcher=program("storage_watch").decode())
        return configure.apply(connection, "nfs", actions, report=self._cluster.report) if actions else ()

    def _await_boot(self, node: Node) -> ssh_session.Session:
        """Wait until a node is ready and configure it. An image of other origin may reboot once, at its first boot."""
        try:
            self._wait_ready(node)
        except VclusterError as error:
            cause = self._watch.cause_of(error, node)
            has_rebooted = isinstance(cause, NodeStoppedError) and cause.what == REBOOTED
            if not has_rebooted or FEATURE in self._plan.image_of(node).features:
                raise
            self._cluster.report.note(cause.message)
            self._watch.end(node)
            self._watch.begin(node)
            self._wait_ready(node)
        return self._configure_by_ssh(node)

    def _wait_ready(self, node: Node) -> None:
        with closing(boot.listen(self._server(node), node)) as channel:
            boot.wait_ready(channel, node, deadline=self._deadline_of(node), report=self._cluster.report)

    def _log_in(self, node: Node, deadline: Deadline) -> ssh_session.Session:
        """Log in to a running node. The session's waits end when the node stops."""
        session = self._open_session(node, deadline)
        self._watch.call_on_stop(node, session.close)
        return session

    def _open_session(self, node: Node, deadline: Deadline) -> ssh_session.Session:
        deadline = self._server(node).until_stop(node, deadline)
        via = self._jump_hosts.to(node, deadline)
        keys = self._cluster.keys
        try:
            return log_in(keys, via, node, user="root", deadline=deadline)
        except LoginRefusedError:
            if not self._plan.image_login:
                raise
        except VclusterError as error:
            if self._deadline.is_cancelled and not node.management:
                # The session on the head was closed because the head failed; the head's own error has the reason.
                raise Cancelled(error.message) from error
            raise
        self._install_key(self._plan.image_login, via, node, deadline)
        for _ in range(RELOAD_TRIES):
            try:
                return log_in(keys, via, node, user="root", deadline=deadline)
            except LoginRefusedError:  # sshd has not reloaded its settings yet
                deadline.pause(RELOAD_S, f"sshd on {node.name} to admit root")
        return log_in(keys, via, node, user="root", deadline=deadline)

    def _install_key(self, login: ImageLogin, via: ssh_session.Session | None, node: Node, deadline: Deadline) -> None:
        """Install our key on a node, with the password of the image's own user."""
        password, keys = self._image_password(), self._cluster.keys
        host_key, address = keys.hosts[node.name].public, str(node.login_address)
        with ssh_login.connect_node(
            node.name, address, user=login.user, password=password, host_key=host_key, deadline=deadline, via=via
        ) as session:
            key_install.install_key(session, keys.admin.public, password)


def resume_domain(cluster: Deployment, node: Node) -> None:
    """Let a paused node run again, and report if a fault had paused it."""
    if domains.resume(cluster.fleet[node.server], cluster.plan, node):
        cluster.report.note(f"{node.name} was paused by a fault, which is over now")


@contextmanager
def closed_on_error(connection: SerialConnection) -> Iterator[SerialConnection]:
    """Close a connection if the block fails, and only then."""
    try:
        yield connection
    except BaseException:
        connection.close()
        raise
