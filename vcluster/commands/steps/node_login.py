"""Log in to nodes: directly, through their server, or through the head."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from vcluster.adapters.ssh import ssh_login, ssh_session
from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan
from vcluster.util.deadline import Deadline

POLL_S = 0.1


class JumpHosts:
    """The hosts that logins to nodes go through.

    A node on another server is reached through that server. A node without a management address is reached through
    the head.
    """

    def __init__(self, plan: Plan, by_server: Mapping[str, ssh_session.Session | None]) -> None:
        self._head, self._by_server = plan.head, by_server
        self._head_session: ssh_session.Session | None = None
        self._lock = threading.Lock()
        self._log_in: Callable[[], ssh_session.Session] | None = None
        self._own_session: ssh_session.Session | None = None

    def set_head(self, session: ssh_session.Session) -> None:
        """Reach nodes through this session on the head from now on."""
        self._head_session = session

    def set_head_later(self, log_in: Callable[[], ssh_session.Session]) -> None:
        """Reach nodes through the head by a session that the first login opens."""
        self._log_in = log_in

    def close(self) -> None:
        """Close the session that a login opened."""
        if self._own_session:
            self._own_session.close()

    def to(self, node: Node, deadline: Deadline) -> ssh_session.Session | None:
        """The session that leads to a node; None if this machine reaches it directly. Waits for the head's session."""
        if node.management:
            return self._by_server.get(node.server)
        while self._head_session is None:
            deadline.pause(POLL_S, f"a login to {self._head.name}, the jump host of {node.name}")
            with self._lock:
                if self._head_session is None and self._log_in:
                    self._head_session = self._own_session = self._log_in()
        return self._head_session


def log_in(
    keys: Keys, via: ssh_session.Session | None, node: Node, *, user: str, deadline: Deadline
) -> ssh_session.Session:
    """Open a session on a node with its host key pinned; `via` comes from `JumpHosts.to`."""
    return ssh_login.connect_node(
        node.name,
        str(node.login_address),
        user=user,
        private_key=keys.admin.private,
        host_key=keys.hosts[node.name].public,
        deadline=deadline,
        via=via,
    )
