"""Servers and the connections to them: this machine, or a server reached by SSH. All other code treats both alike."""

from __future__ import annotations

import functools
import os
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vcluster.adapters.libvirt.hypervisor import SYSTEM_URI, Hypervisor
from vcluster.adapters.libvirt.libvirt_proxy import LibvirtProxy
from vcluster.adapters.ssh import openssh_config, ssh_login, ssh_session
from vcluster.adapters.ssh.authentication import LoginRefusedError
from vcluster.agent import libvirt_daemons
from vcluster.agent.client import Agent, LocalAgent
from vcluster.agent.diagnostics import ADD_CAPABILITY
from vcluster.agent.remote_agent import RemoteAgent
from vcluster.config import passwords
from vcluster.errors import ConnectionLostError, MissingError, VclusterError
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import ImageLogin, Login, ServerSpec
from vcluster.render.ssh_files import Jump
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter, timed_call

R = TypeVar("R")

LEAVE_TIMEOUT_S = 5.0
SHOWN_MAX = 80  # characters of an argument that -v prints
CALL_TIMEOUT_S = 60.0  # for one operation of the agent; the server's own timeout limits the login


@dataclass(frozen=True, slots=True)
class Server:
    """An open server.

    `session` and `target` are None for this machine. `libvirt` is None for a server that is used only as the switch.
    `cluster_folder` is the folder that a ledger names for the disks of its nodes.
    """

    name: str
    owner: str
    storage: Path
    agent: Agent
    session: ssh_session.Session | None = None
    target: openssh_config.Target | None = None
    identities: tuple[Path, ...] = ()
    libvirt: Hypervisor | None = None
    has_password: bool = False
    cluster_folder: Path | None = None

    @property
    def hypervisor(self) -> Hypervisor:
        """The connection to its libvirt. Raises MissingError if there is none."""
        if self.libvirt is None:
            raise MissingError(f"{self.name} carries only the switch, so vcluster does not use its libvirt")
        return self.libvirt

    def until_stop(self, node: Node, deadline: Deadline) -> Deadline:
        """The same deadline; a wait on it also ends when this running node stops."""
        return deadline.with_check(self.hypervisor.run_of(node.domain, node.name).check)

    @property
    def host(self) -> str:
        """The server as the user types it, for example for --on."""
        return shlex.quote(f"{self.session.user}@{self.target.asked}") if self.session and self.target else self.name

    @property
    def is_alive(self) -> bool:
        """True if the connection is open."""
        return self.session is None or self.session.is_alive

    @property
    def has_lost_libvirt(self) -> bool:
        """True if the connection to its libvirt was open and is not any more."""
        return self.libvirt is not None and not self.libvirt.is_alive

    @property
    def label(self) -> str:
        """The name for progress output; empty for this machine."""
        return self.name if self.session else ""

    def jump_host(self, cluster_key: Path) -> Jump:
        """The jump host for plain ssh: with the cluster's key if a password is in use, else with the user's keys."""
        assert self.session is not None  # noqa: S101 - this machine is never a jump host
        assert self.target is not None  # noqa: S101
        return Jump(
            hostname=self.target.hostname,
            user=self.session.user,
            port=self.target.port,
            identities=(cluster_key,) if self.has_password else self.identities,
            is_strict=self.has_password,
            options=self.target.proxy_options,
        )

    @property
    def host_key(self) -> str:
        """The host key of the SSH server; empty for this machine."""
        return self.session.host_key if self.session else ""

    def call(self, operation: str, *, deadline: Deadline | None = None, **arguments: Any) -> Any:
        """Run an operation of the agent, with a limit of CALL_TIMEOUT_S unless there is a deadline."""
        with timed_call(self.name, _described(operation, arguments)):
            return self.agent.call(operation, deadline=deadline or Deadline(CALL_TIMEOUT_S), **arguments)


def _described(operation: str, arguments: Mapping[str, Any]) -> str:
    """An operation with the objects it is about, without contents such as keys and rules."""
    names = map(_named, arguments.values())
    return " ".join((operation, *(name for name in names if 0 < len(name) < SHOWN_MAX)))


def _named(value: object) -> str:
    if isinstance(value, dict):
        return str(value.get("name", ""))
    if isinstance(value, list | tuple):
        return ",".join(filter(None, map(_named, value)))
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """A server to open.

    `host_key` is the only host key to accept, or empty. `key` is the private key of the cluster, if it has one.
    `carries_nodes` decides whether to open libvirt; None means: if the server has libvirt. `owner` is the owner id of
    the cluster; empty means that of the state folder. `cluster_folder` is the folder that the cluster's ledger names.
    """

    name: str
    login: Login | None
    storage: Path
    timeout_s: float
    carries_nodes: bool | None
    host_key: str = ""
    key: str | None = None
    owner: str = ""
    cluster_folder: Path | None = None


def request_for_spec(spec: ServerSpec, *, carries_nodes: bool | None) -> ServerRequest:
    """The request for a server that the user describes."""
    return ServerRequest(spec.name, spec.login, spec.path, spec.timeout_s, carries_nodes)


def requests_for_plan(plan: Plan, key: str | None) -> list[ServerRequest]:
    """The requests for the servers of a plan. The cluster's key replaces a password.

    The owner id is the plan's: a cluster that an earlier version made has another one than the state folder.
    """
    return [
        ServerRequest(
            server.name,
            server.login,
            server.storage,
            server.timeout_s,
            server.carries_nodes,
            server.host_key,
            key if server.login and server.login.password else None,
            plan.owner,
            server.pool.path if server.pool else None,
        )
        for server in plan.servers
    ]


@dataclass(frozen=True, slots=True)
class Connector:
    """Opens servers: with the libvirt URI of this machine, the environment, and questions to the user.

    `owner` is the owner id of the state folder. `confirm` and `ask` are None without a terminal.
    """

    owner: str
    uri: str = SYSTEM_URI
    environment: Mapping[str, str] = field(default_factory=dict)
    confirm: Callable[[str], bool] | None = None
    ask: Callable[[str], str] | None = None

    @property
    def has_libvirt(self) -> bool:
        """True if this user can run nodes on this machine. A controller without nodes needs no libvirt."""
        if self.uri != SYSTEM_URI or libvirt_daemons.is_open():
            return True
        return os.geteuid() == 0 and bool(libvirt_daemons.installed_daemon())

    def image_password(self, login: ImageLogin) -> str:
        """The password of the image's user, from its source."""
        secret = f"password of {login.user} in the image"
        return passwords.find(login.password, environment=self.environment, ask=self.ask, secret=secret) or ""

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        """Open a server with all connections to it."""
        owner = request.owner or self.owner
        with ExitStack() as stack:
            if request.login is None:
                libvirt = stack.enter_context(Hypervisor(self.uri, owner)) if request.carries_nodes else None
                yield Server(
                    request.name,
                    owner,
                    request.storage,
                    LocalAgent(),
                    libvirt=libvirt,
                    cluster_folder=request.cluster_folder,
                )
            else:
                yield self._open_remote(request, request.login, stack)

    @contextmanager
    def log_in(self, request: ServerRequest) -> Iterator[ssh_session.Session]:
        """Log in to a remote server without an agent, to reach its nodes. This needs no root there."""
        assert request.login is not None  # noqa: S101 - this machine needs no login
        target = openssh_config.resolve(request.login.host, user=request.login.user, port=request.login.port)
        with self._log_in(
            request, request.login, target, self._password_of(request.login), Deadline(request.timeout_s)
        ) as session:
            yield session

    def _open_remote(self, request: ServerRequest, login: Login, stack: ExitStack) -> Server:
        deadline = Deadline(request.timeout_s)
        target = openssh_config.resolve(login.host, user=login.user, port=login.port)
        password = self._password_of(login)
        session = stack.enter_context(self._log_in(request, login, target, password, deadline))
        agent = RemoteAgent(session, password=password, deadline=deadline)
        stack.callback(_uninstall_if_unused, agent)
        libvirt = None
        if request.carries_nodes or (request.carries_nodes is None and _has_libvirt(agent, deadline)):
            proxy = stack.enter_context(LibvirtProxy(agent))
            libvirt = stack.enter_context(Hypervisor(proxy.uri, request.owner or self.owner, name=request.name))
        return Server(
            request.name,
            request.owner or self.owner,
            request.storage,
            agent,
            session,
            target,
            identities=(login.key,) if login.key else target.identity_files,
            libvirt=libvirt,
            has_password=bool(login.password),
            cluster_folder=request.cluster_folder,
        )

    def _log_in(
        self,
        request: ServerRequest,
        login: Login,
        target: openssh_config.Target,
        password: Callable[[], str | None],
        deadline: Deadline,
    ) -> ssh_session.Session:
        def connect(cluster_key: str | None) -> ssh_session.Session:
            try:
                return ssh_login.connect_server(
                    request.name,
                    target,
                    key=login.key,
                    password=None if cluster_key else password(),
                    cluster_key=cluster_key,
                    fingerprint=login.fingerprint,
                    pinned=request.host_key,
                    ask=self.confirm,
                    deadline=deadline,
                )
            except MissingError as error:
                raise self._with_sudo(error) from error

        if request.key is None:
            return connect(None)
        try:
            return connect(request.key)
        except LoginRefusedError:
            return connect(None)  # a killed command may have removed the key, or may not have installed it

    def _with_sudo(self, error: MissingError) -> MissingError:
        """The error of a login; with sudo, the cause is often that ssh reads other files than without it."""
        unread = openssh_config.ssh_folder_without_sudo(self.environment)
        if unread is None:
            return error
        remark = f"with sudo, ssh reads {openssh_config.ssh_folder()} and not {unread}"
        return type(error)(f"{error.message}; {remark}", hint=error.hint)

    def _password_of(self, login: Login) -> Callable[[], str | None]:
        """A function that reads the password of a login once, at the first call."""
        secret = f"password of {login.user + '@' if login.user else ''}{login.host}"
        return functools.cache(
            lambda: passwords.find(login.password, environment=self.environment, ask=self.ask, secret=secret)
        )


def _has_libvirt(agent: Agent, deadline: Deadline) -> bool:
    return bool(agent.call("identity", deadline=deadline)["has_libvirt"])


def _uninstall_if_unused(agent: Agent) -> None:
    """Remove the agent's program from the server, unless any user's cluster is there. Then close the agent."""
    try:
        with suppress(VclusterError):  # a file that stays is used by the next agent
            if not agent.call("has_clusters", deadline=Deadline(LEAVE_TIMEOUT_S)):
                agent.uninstall(Deadline(LEAVE_TIMEOUT_S))
    finally:
        agent.close()


class Fleet:
    """Open servers by name, and the errors of unreachable servers by name."""

    def __init__(self, servers: Mapping[str, Server], unreachable: Mapping[str, VclusterError]) -> None:
        self.servers = dict(servers)
        self.unreachable = dict(unreachable)

    def __getitem__(self, name: str) -> Server:
        if name in self.unreachable:
            raise self.unreachable[name]
        return self.servers[name]

    def __contains__(self, name: str) -> bool:
        return name in self.servers

    def check(self, awaited: str) -> None:
        """Raise ConnectionLostError if a server's connection is lost. `awaited` is the event that now cannot come."""
        for server in self.servers.values():
            if not server.is_alive:
                message = f"{server.name}: the connection broke while vcluster waited for {awaited}"
                raise ConnectionLostError(message, peer=server.name)

    def each(self, work: Callable[[Server], R], *, deadline: Deadline | None = None) -> dict[str, R]:
        """Run `work` on every server in parallel and return the results by server name."""
        results = parallel.each(tuple(self.servers.values()), work, deadline=deadline or Deadline(CALL_TIMEOUT_S))
        return dict(zip(self.servers, results, strict=True))


@contextmanager
def open_fleet(
    connector: Connector, requests: Sequence[ServerRequest], report: Reporter, *, allow_unreachable: bool = False
) -> Iterator[Fleet]:
    """Open servers in parallel. Raises all their errors, unless `allow_unreachable`."""
    with ExitStack() as stack:
        lock = threading.Lock()

        def open_one(request: ServerRequest) -> Server:
            context = connector.open(request)
            with report.step("connect", request.name, "a login by ssh") if request.login else nullcontext():
                server = context.__enter__()
            with lock:
                stack.push(context.__exit__)
            return server

        outcomes = parallel.outcomes(requests, open_one)
        results = dict(zip((request.name for request in requests), outcomes, strict=True))
        unreachable = {name: result for name, result in results.items() if isinstance(result, VclusterError)}
        if unreachable and not allow_unreachable:
            parallel.raise_all(list(unreachable.values()))
        opened = {name: result for name, result in results.items() if isinstance(result, Server)}
        yield Fleet(opened, unreachable)


def require_rights(fleet: Fleet) -> None:
    """Raise MissingError if we lack the rights to make interfaces on a server of the fleet."""
    fleet.each(require_rights_on)


def require_rights_on(server: Server) -> None:
    """Raise MissingError if we lack the rights to make interfaces on the server."""
    identity = server.call("identity")
    where = f" on {server.name}" if server.session else ""
    if not identity["has_rights"] and identity["is_root"]:
        raise MissingError(
            f"root lacks CAP_NET_ADMIN{where}, so it cannot create network interfaces", hint=ADD_CAPABILITY
        )
    if not identity["has_rights"]:
        raise MissingError(f"creating network interfaces{where} needs root (CAP_NET_ADMIN)", hint="run it with sudo")
