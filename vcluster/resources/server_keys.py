"""The cluster's key on servers with password login. It replaces the password while the cluster exists."""

from __future__ import annotations

import json

from vcluster import guest
from vcluster.adapters.process import last_lines
from vcluster.errors import VclusterError
from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.util.deadline import Deadline

TIMEOUT_S = 30.0


def create(server: Server, public_key: str) -> None:
    """Add the cluster's key to the login user's authorized_keys, if the user logs in by password."""
    if server.has_password:
        _authorize(server, {"do": "add", "line": public_key})


def destroy(server: Server, cluster: str) -> None:
    """Remove the key. This is the last step, after all other resources of the cluster."""
    if server.has_password:
        _authorize(server, {"do": "remove", "mark": naming.alias(cluster, server.owner)})


def _authorize(server: Server, request: dict[str, str]) -> None:
    """Run the guest program `authorize` as the login user, who can be an ordinary user."""
    assert server.session is not None  # noqa: S101 - only a server with an SSH session has a password
    data = json.dumps(request).encode()
    done = server.session.run_program(
        guest.program("authorize"), data, awaited="the change of authorized_keys", deadline=Deadline(TIMEOUT_S)
    )
    if done.exit_code != 0:
        raise VclusterError(f"{server.name}: cannot write ~/.ssh/authorized_keys: {last_lines(done, 1)}")
