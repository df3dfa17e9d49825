"""One node, from nothing to configured, beside the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress

from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.serial_connection import SerialConnection
from vcluster.adapters.ssh import ssh_login, ssh_session
from vcluster.adapters.ssh.authentication import LoginRefusedError
from vcluster.errors import DeadlineError, VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.guest import program
from vcluster.images.recipes import guest_file
from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import ImageLogin
from vcluster.render import node_actions
from vcluster.render.domain_xml import READY_CHANNEL, console_path
from vcluster.render.seed_files import seed_files
from vcluster.resources import domains, seeds, volumes
from vcluster.snapshots.template import REFUSED, Snapshot, SnapshotIndex, template_of
from vcluster.stages import boot, configure, key_install
from vcluster.util import parallel
from vcluster.util.deadline import Cancelled, Deadline

CONSOLE_BYTES = 16384
SSH_PORT = 22
CALL_S = 5.0
IDENTITY_S = 120.0  # many side by side may need some of it; one that never wakes is not waited for any longer
LOOK_S = 0.1
RELOAD_LOOKS, RELOAD_S = 10, 0.5


class NodeLifecycle:
    """What happens to each node, beside the others. A node that only the head reaches waits until the head is up.

    `image_password` is called where the image's own user must let us in.
    """

    def __init__(
        self,
        context: Context,
        fleet: Fleet,
        decided: Plan,
        keys: Keys,
        deadline: Deadline,
        *,
        image_password: Callable[[], str],
        kept: SnapshotIndex | None = None,
    ) -> None:
        self._site, self._fleet, self._image_password = context, fleet, image_password
        self._plan, self._keys, self._deadline = decided, keys, deadline
        self._kept = {key: one for key, one in (kept or {}).items() if one is not REFUSED}
        self._head_knows = threading.Event()
        self._jump_hosts = JumpHosts(decided, {name: server.session for name, server in fleet.servers.items()})

    def all_nodes(self, work: Callable[[Node], NodeConnection], stack: ExitStack) -> dict[str, NodeConnection]:
        """Doors to all nodes, by name, after `work` on each, side by side; then every node mounts what others serve.

        The doors are closed with the stack, those of the first when a later one fails as well.
        """
        connections: dict[str, NodeConnection] = {}

        def open_door(node: Node) -> None:
            connections[node.name] = work(node)

        stack.callback(self._jump_hosts.close)
        stack.callback(lambda: parallel.outcomes([*connections.values()], lambda connection: connection.close()))
        limit = concurrency_limit(self._fleet, self._plan)
        parallel.each(
            self._plan.nodes, open_door, deadline=self._deadline, limit=limit if self._kept else parallel.WORKERS_MAX
        )
        parallel.each(
            self._plan.nodes,
            lambda node: self.mount_shares(node, connections[node.name]),
            deadline=self._deadline,
            limit=limit,
        )
        return connections

    def sessions(self, connections: Mapping[str, NodeConnection], stack: ExitStack) -> dict[str, ssh_session.Session]:
        """Sessions on all nodes, by name, also on those that were reached by another door; closed with the stack."""
        sessions = {
            name: connection for name, connection in connections.items() if isinstance(connection, ssh_session.Session)
        }
        opened: list[ssh_session.Session] = []

        def open_session(node: Node) -> None:
            if node.name in sessions:
                return
            session = sessions[node.name] = self._log_in(node, self._deadline)
            opened.append(session)
            if node.is_head:
                self._jump_hosts.set_head(session)

        stack.callback(lambda: parallel.outcomes(opened, lambda session: session.close()))
        # The head's first: it may be the way to the others.
        parallel.each(self._plan.nodes, open_session, deadline=self._deadline)
        return sessions

    def bring_up(self, node: Node) -> NodeConnection:
        """From nothing to a configured node, as a copy of one that runs already or by booting it.

        What takes too long shows the node's last words.
        """
        with self.console_on_timeout(node):
            return self._copy(node) or self._boot(node)

    def _boot(self, node: Node) -> NodeConnection:
        with self._site.report.step("create", node.name, awaiting="its disk, seed and domain"):
            server, seed = self._fleet[node.server], self._seed(node)
            volumes.create(server, self._plan, node, seeds.seed_iso(seed))
            domains.create(server, self._plan, node)
        return self._await_boot(node)

    def _copy(self, node: Node) -> NodeConnection | None:
        """A node made from a memory that is kept; None where there is none, or it is no good after all."""
        kept = self._kept.get((node.server, template_of(self._plan, node)))
        if kept is None:
            return None
        server = self._fleet[node.server]
        try:
            return self._restore_clone(server, node, kept)
        except Cancelled:
            raise
        except VclusterError as error:
            if isinstance(error, DeadlineError) and not self._deadline.remaining_s():
                raise
            self._deadline.check(f"{node.name}: a boot instead")
            self._site.report.note(f"{node.name} is booted, as it could not be made from the snapshot: {error.message}")
            self._kept.clear()
            refused = error.message if isinstance(error, domains.CloneRefusedError) else ""
            server.call("drop_snapshot", root=kept.root, key=kept.key, refused=refused)
            domains.discard(server, node)
            volumes.discard(server, self._plan, node)
            return None

    def _restore_clone(self, server: Server, node: Node, kept: Snapshot) -> NodeConnection:
        seed = self._seed(node)
        with self._site.report.step("clone", node.name, awaiting="its disk, seed and memory"):
            volumes.create(server, self._plan, node, seeds.seed_iso(seed), kept)
            domains.start_clone(server, self._plan, node, kept)
        with closed_on_error(SerialConnection(node.name, boot.listen(server, node), self._deadline)) as connection:
            with self._site.report.step("identity", node.name, awaiting="its name, keys and addresses"):
                within = Deadline(self._deadline.remaining_s(IDENTITY_S)).with_check(self._deadline.check)
                connection.ask(boot.identity(seed), within, "its identity")
            self.configure(node, connection)
            with self._site.report.step("sshd", node.name, awaiting="sshd with its keys"):
                connection.ask({"do": "listening", "port": SSH_PORT}, self._deadline, "sshd with its keys")
        self._provide_jump_host(node)
        return connection

    def _seed(self, node: Node) -> dict[str, str]:
        return seed_files(self._plan, node, self._keys, guest_file=guest_file)

    def bring_up_during_add(self, node: Node) -> NodeConnection:
        """The same where the head is up: before a node asks it for an address, it has to know of that node."""
        while self._plan.dhcp_range and not self._head_knows.is_set():
            self._deadline.pause(LOOK_S, f"{self._plan.head.name} to know of {node.name}")
        return self.bring_up(node)

    def start_again(self, node: Node) -> ssh_session.Session:
        """Power a stopped node on and bring it to what the plan says."""
        with self.console_on_timeout(node):
            with self._site.report.step("start", node.name, awaiting="its power"):
                self._fleet[node.server].hypervisor.start_domain(node.domain)
            return self._await_boot(node)

    def configure_running(self, node: Node, deadline: Deadline | None = None) -> ssh_session.Session:
        """Log in to a node that is up and bring it to what the plan says."""
        with self._site.report.step("login", node.name, awaiting="a login by ssh"):
            session = self._log_in(node, deadline or self._deadline)
        try:
            if node.is_head:
                self._jump_hosts.set_head(session)
            self.configure(node, session)
            if node.is_head:
                self._head_knows.set()
        except BaseException:
            if node.is_head:
                self._deadline.cancel()  # ahead of those whose way is closed with it
            session.close()
            raise
        return session

    def configure_via_serial(self, node: Node) -> NodeConnection:
        """The same with a node that has been up for a while: if somebody waits at its serial port, without a login."""
        connection = self._call(node)
        if connection is None:
            return self.configure_running(node)
        with closed_on_error(connection):
            self.configure(node, connection)
        self._provide_jump_host(node)
        return connection

    def _provide_jump_host(self, node: Node) -> None:
        """Through the head others are reached, by a login that is made once somebody needs it."""
        if node.is_head:
            self._jump_hosts.set_head_later(lambda: self._log_in(node, self._deadline))
            self._head_knows.set()

    def _call(self, node: Node) -> SerialConnection | None:
        server = self._fleet[node.server]
        if not server.hypervisor.is_channel_open(node.domain, READY_CHANNEL):
            return None
        try:
            words = boot.listen(server, node)
        except VclusterError:  # another command speaks with it just now
            return None
        connection = SerialConnection(node.name, words, self._deadline)
        try:
            connection.ask({"do": "here"}, Deadline(CALL_S), "a word that somebody is there")
        except VclusterError:  # whoever it is does not speak with us
            connection.disconnect()
            return None
        return connection

    def has_no_identity(self, node: Node) -> bool:
        """Whether it is a copy that was not told who it is: the command that woke it was killed."""
        connection = self._call(node)
        if connection is None:
            return False
        with connection:
            return bool(connection.ask({"do": "here"}, Deadline(CALL_S), "its name") == "")

    def configure(self, node: Node, session: NodeConnection) -> tuple[str, ...]:
        """Bring a node to what the plan says of it alone; returns what had to be changed."""
        actions = node_actions.actions(self._plan, node, self._keys)
        return configure.apply(session, "configure", actions, report=self._site.report)

    def mount_shares(self, node: Node, session: NodeConnection) -> tuple[str, ...]:
        """Mount what the others serve; returns what had to be changed."""
        actions = node_actions.mount_actions(self._plan, node, watcher=program("storage_watch").decode())
        return configure.apply(session, "nfs", actions, report=self._site.report) if actions else ()

    def _await_boot(self, node: Node) -> ssh_session.Session:
        with closing(boot.listen(self._fleet[node.server], node)) as words:
            boot.wait_ready(words, node, deadline=self._deadline, report=self._site.report)
            # From here on the node's death shows at once, and not when the deadline passes.
            return self.configure_running(node, self._deadline.with_check(words.check))

    def _log_in(self, node: Node, deadline: Deadline) -> ssh_session.Session:
        way = self._jump_hosts.to(node, deadline)
        try:
            return log_in(self._keys, way, node, user="root", deadline=deadline)
        except LoginRefusedError:
            if not self._plan.image_login:
                raise
        except VclusterError as error:
            if self._deadline.is_cancelled and not node.management:
                # The head was left, through which this one is reached; why that was is told by its own error.
                raise Cancelled(error.message) from error
            raise
        self._install_key(self._plan.image_login, way, node, deadline)
        for _ in range(RELOAD_LOOKS):
            try:
                return log_in(self._keys, way, node, user="root", deadline=deadline)
            except LoginRefusedError:  # its sshd has not read its settings again yet
                deadline.pause(RELOAD_S, f"{node.name} to let root in")
        return log_in(self._keys, way, node, user="root", deadline=deadline)

    def _install_key(self, login: ImageLogin, way: ssh_session.Session | None, node: Node, deadline: Deadline) -> None:
        """By the password of the image's own user our key is let in, once."""
        password, host_key = self._image_password(), self._keys.hosts[node.name].public
        address = str(node.login_address)
        with ssh_login.connect_node(
            node.name, address, user=login.user, password=password, host_key=host_key, deadline=deadline, via=way
        ) as session:
            key_install.install_key(session, self._keys.admin.public, password)

    @contextmanager
    def console_on_timeout(self, node: Node) -> Iterator[None]:
        try:
            yield
        except DeadlineError as error:
            words = ""
            with suppress(VclusterError):
                words = boot.console_tail(node, console_log(self._fleet[node.server], self._plan, node))
            raise DeadlineError(error.message + words, hint=error.hint) from error


@contextmanager
def closed_on_error(connection: SerialConnection) -> Iterator[SerialConnection]:
    """A door that is closed if the block fails, and only then."""
    try:
        yield connection
    except BaseException:
        connection.close()
        raise


def concurrency_limit(fleet: Fleet, decided: Plan) -> int:
    """How many nodes to have at work at once: emulated ones that share too few processors only get in each other's way.

    Boots are another matter, they wait a lot. The head has its turn first, whatever the others do.
    """
    emulated = [one for one in decided.servers if one.carries_nodes and one.accel == "tcg"]
    if len(emulated) < sum(one.carries_nodes for one in decided.servers):
        return parallel.WORKERS_MAX
    return sum(2 * int(fleet[one.name].call("identity")["cpus"]) for one in emulated)


def console_log(server: Server, decided: Plan, node: Node, size: int = CONSOLE_BYTES) -> str:
    """The end of what a node's console has said since power-on."""
    return str(server.call("tail", path=str(console_path(decided, node)), size=size))


class JumpHosts:
    """Through whom nodes are reached: their server where that is not this machine, or the head where only it does."""

    def __init__(self, decided: Plan, by_server: Mapping[str, ssh_session.Session | None]) -> None:
        self._head, self._by_server = decided.head, by_server
        self._by_head: ssh_session.Session | None = None
        self._lock = threading.Lock()
        self._log_in: Callable[[], ssh_session.Session] | None = None
        self._own: ssh_session.Session | None = None

    def set_head(self, head: ssh_session.Session) -> None:
        """From now on nodes are reached through the head."""
        self._by_head = head

    def set_head_later(self, log_in: Callable[[], ssh_session.Session]) -> None:
        """The same, by a session that is opened for the first who needs it."""
        self._log_in = log_in

    def close(self) -> None:
        """Close a session that was opened so."""
        if self._own:
            self._own.close()

    def to(self, node: Node, deadline: Deadline) -> ssh_session.Session | None:
        """The session that leads to a node, None where it is reached from here; waits for the head's."""
        if node.management:
            return self._by_server.get(node.server)
        while self._by_head is None:
            deadline.pause(LOOK_S, f"{self._head.name}, through which {node.name} is reached")
            with self._lock:
                if self._by_head is None and self._log_in:
                    self._by_head = self._own = self._log_in()
        return self._by_head


def log_in(
    keys: Keys, via: ssh_session.Session | None, node: Node, *, user: str, deadline: Deadline
) -> ssh_session.Session:
    """A session on a node, its host key pinned; `via` is what `Ways` tells."""
    return ssh_login.connect_node(
        node.name,
        str(node.login_address),
        user=user,
        private_key=keys.admin.private,
        host_key=keys.hosts[node.name].public,
        deadline=deadline,
        via=via,
    )
