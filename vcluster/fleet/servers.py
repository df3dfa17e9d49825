"""Servers and the doors to them: this machine, or one reached by SSH. Downstream of here there is no difference."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vcluster.adapters.libvirt.hypervisor import SYSTEM_URI, Hypervisor
from vcluster.adapters.libvirt.libvirt_proxy import LibvirtProxy
from vcluster.adapters.ssh import ssh_session
from vcluster.agent.client import Agent, LocalAgent, RemoteAgent
from vcluster.agent.operations import LIBVIRT_SOCKET, MACHINE_ID
from vcluster.config import passwords
from vcluster.errors import MissingError, VclusterError
from vcluster.model import naming
from vcluster.model.plan import ServerPlan
from vcluster.model.spec import ImageLogin, Login, ServerSpec
from vcluster.render.ssh_files import Jump
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

R = TypeVar("R")

LEAVE_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 60.0  # for what the agent is asked; each server's own time-out is for reaching it


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is open. `session` is None for this machine; one that is only a switch has no libvirt for us."""

    name: str
    owner: str
    storage: Path
    agent: Agent
    session: ssh_session.Session | None = None
    target: ssh_session.Target | None = None
    identities: tuple[Path, ...] = ()
    libvirt: Hypervisor | None = None
    has_password: bool = False

    @property
    def hypervisor(self) -> Hypervisor:
        """Its libvirt."""
        if self.libvirt is None:
            raise MissingError(f"{self.name} was opened as a switch only")
        return self.libvirt

    @property
    def host(self) -> str:
        """How the user calls it, to be given to --on."""
        return f"{self.session.user}@{self.target.asked}" if self.session and self.target else self.name

    @property
    def is_alive(self) -> bool:
        """Whether the connection to it stands."""
        return self.session is None or self.session.is_alive

    @property
    def label(self) -> str:
        """What it is called in progress: nothing for this machine."""
        return self.name if self.session else ""

    def jump_by(self, cluster_key: Path) -> Jump:
        """How plain ssh reaches it: with the cluster's key where a password let us in, else as the user does."""
        assert self.session is not None  # noqa: S101 - nobody jumps to this machine
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
        """The host key it has shown; empty for this machine."""
        return self.session.host_key if self.session else ""

    def call(self, operation: str, **arguments: Any) -> Any:
        """Have the agent do something there, within a minute."""
        return self.agent.call(operation, deadline=Deadline(CALL_TIMEOUT_S), awaited=operation, **arguments)


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """A server to be opened. `host_key` is the only one it may show; `key` is the cluster's own, once it is there.

    Where `carries_nodes` is None, its libvirt is opened if it has one.
    """

    name: str
    login: Login | None
    storage: Path
    timeout_s: float
    carries_nodes: bool | None
    host_key: str = ""
    key: str | None = None


def request_for_spec(spec: ServerSpec, *, carries_nodes: bool | None) -> ServerRequest:
    """A server as the user described it."""
    return ServerRequest(spec.name, spec.login, spec.path, spec.timeout_s, carries_nodes)


def request_for_plan(plan: ServerPlan, key: str | None) -> ServerRequest:
    """A server of a plan. Where a password let us in, the cluster's key does from then on."""
    key = key if plan.login and plan.login.password else None
    return ServerRequest(plan.name, plan.login, plan.storage, plan.timeout_s, plan.carries_nodes, plan.host_key, key)


@dataclass(frozen=True, slots=True)
class Connector:
    """How servers are opened from here: this machine's libvirt, whom to ask, and where passwords come from.

    `confirm` and `ask` are None where nobody can be asked.
    """

    uri: str = SYSTEM_URI
    environment: Mapping[str, str] = field(default_factory=dict)
    confirm: Callable[[str], bool] | None = None
    ask: Callable[[str], str] | None = None

    @property
    def has_libvirt(self) -> bool:
        """Whether this machine may carry nodes of this user's; one that only controls others need not."""
        if self.uri != SYSTEM_URI or os.access(LIBVIRT_SOCKET, os.W_OK):
            return True
        return os.geteuid() == 0 and any(map(shutil.which, ("libvirtd", "virtqemud")))

    @property
    def owner(self) -> str:
        """What stands for this machine in marks."""
        return naming.owner_of(MACHINE_ID.read_text() if MACHINE_ID.exists() else "")

    def image_password(self, login: ImageLogin) -> str:
        """The password of an image's own user, from where it is kept."""
        what = f"password of {login.user} in the image"
        return passwords.find(login.password, environment=self.environment, ask=self.ask, what=what) or ""

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        """One server, with all doors to it."""
        with ExitStack() as stack:
            if request.login is None:
                libvirt = stack.enter_context(Hypervisor(self.uri, self.owner)) if request.carries_nodes else None
                yield Server(request.name, self.owner, request.storage, LocalAgent(), libvirt=libvirt)
            else:
                yield self._open_remote(request, request.login, stack)

    @contextmanager
    def log_in(self, request: ServerRequest) -> Iterator[ssh_session.Session]:
        """A login to another server and no more: the way to its nodes, which needs no rights there."""
        assert request.login is not None  # noqa: S101 - nobody logs in to this machine
        target = ssh_session.resolve(request.login.host, user=request.login.user, port=request.login.port)
        with self._log_in(
            request, request.login, target, self._password_of(request.login), Deadline(request.timeout_s)
        ) as session:
            yield session

    def _open_remote(self, request: ServerRequest, login: Login, stack: ExitStack) -> Server:
        deadline = Deadline(request.timeout_s)
        target = ssh_session.resolve(login.host, user=login.user, port=login.port)
        password = self._password_of(login)
        session = stack.enter_context(self._log_in(request, login, target, password, deadline))
        agent = RemoteAgent(session, password=password, deadline=deadline)
        stack.callback(_uninstall_if_unused, agent)
        libvirt = None
        if request.carries_nodes or (request.carries_nodes is None and _has_libvirt(agent, deadline)):
            tunnel = stack.enter_context(LibvirtProxy(agent))
            libvirt = stack.enter_context(Hypervisor(tunnel.uri, self.owner, name=request.name))
        return Server(
            request.name,
            self.owner,
            request.storage,
            agent,
            session,
            target,
            identities=(login.key,) if login.key else target.identity_files,
            libvirt=libvirt,
            has_password=bool(login.password),
        )

    def _log_in(
        self,
        request: ServerRequest,
        login: Login,
        target: ssh_session.Target,
        password: Callable[[], str | None],
        deadline: Deadline,
    ) -> ssh_session.Session:
        def connect(cluster_key: str | None) -> ssh_session.Session:
            return ssh_session.connect_server(
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

        if request.key is None:
            return connect(None)
        try:
            return connect(request.key)
        except ssh_session.LoginRefusedError:
            return connect(None)  # a command that was killed may have taken the key away, or never have put it there

    def _password_of(self, login: Login) -> Callable[[], str | None]:
        """The password of a login, from where it is kept, looked up when it is first needed: people are asked once."""
        what = f"password of {login.user + '@' if login.user else ''}{login.host}"
        return functools.cache(
            lambda: passwords.find(login.password, environment=self.environment, ask=self.ask, what=what)
        )


def _has_libvirt(agent: Agent, deadline: Deadline) -> bool:
    return bool(agent.call("identity", deadline=deadline)["has_libvirt"])


def _uninstall_if_unused(agent: Agent) -> None:
    """The last thing on a server: unless a cluster of anybody's is there, the agent's program goes too."""
    try:
        with suppress(VclusterError):  # what is left is a file that the next agent finds and uses
            links = agent.call("interfaces", deadline=Deadline(LEAVE_TIMEOUT_S))
            if not any(naming.parse_alias(link["alias"]) for link in links):
                agent.uninstall(Deadline(LEAVE_TIMEOUT_S))
    finally:
        agent.close()


class Fleet:
    """Servers that are open, by name, and the ones that could not be reached, with the reason."""

    def __init__(self, servers: Mapping[str, Server], lost: Mapping[str, VclusterError]) -> None:
        self.servers = dict(servers)
        self.lost = dict(lost)

    def __getitem__(self, name: str) -> Server:
        if name in self.lost:
            raise self.lost[name]
        return self.servers[name]

    def __contains__(self, name: str) -> bool:
        return name in self.servers

    def check(self, awaited: str) -> None:
        """Raise VclusterError when a server is gone, without which nothing that is awaited will come."""
        for server in self.servers.values():
            if not server.is_alive:
                raise VclusterError(f"{server.name}: the connection broke during {awaited}")

    def each(self, work: Callable[[Server], R], *, deadline: Deadline) -> dict[str, R]:
        """The results of `work` on every server, by name, side by side."""
        done = parallel.each(tuple(self.servers.values()), work, deadline=deadline)
        return dict(zip(self.servers, done, strict=True))


@contextmanager
def fleet(
    connector: Connector, requests: Sequence[ServerRequest], report: Reporter, *, may_lose: bool = False
) -> Iterator[Fleet]:
    """Open servers side by side. Raises what went wrong with any of them, unless `may_lose`."""
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
        lost = {name: error for name, error in outcomes_by_name(requests, outcomes) if isinstance(error, VclusterError)}
        if lost and not may_lose:
            parallel.raise_all(list(lost.values()))
        found = {name: one for name, one in outcomes_by_name(requests, outcomes) if isinstance(one, Server)}
        yield Fleet(found, lost)


def outcomes_by_name(requests: Sequence[ServerRequest], outcomes: Sequence[R]) -> Iterator[tuple[str, R]]:
    """Each want's name with what became of it."""
    return zip((request.name for request in requests), outcomes, strict=True)


def require_rights(fleet: Fleet) -> None:
    """Raise MissingError unless we may make links on every server."""
    for server in fleet.servers.values():
        require_rights_on(server)


def require_rights_on(server: Server) -> None:
    """Raise MissingError unless we may make links there."""
    if not server.call("identity")["has_rights"]:
        where = f" on {server.name}" if server.session else ""
        raise MissingError(f"making links{where} needs root (CAP_NET_ADMIN)", hint="run it with sudo")
