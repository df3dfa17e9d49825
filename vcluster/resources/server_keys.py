"""The cluster's key, which opens a server once a password did, for as long as the cluster is there."""

from __future__ import annotations

import json

from vcluster import guest
from vcluster.adapters.process import last_words
from vcluster.errors import VclusterError
from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.util.deadline import Deadline

TIMEOUT_S = 30.0


def create(server: Server, public_key: str) -> None:
    """Let the cluster's key in where a password did, in the login user's own authorized_keys."""
    if server.has_password:
        _authorize(server, {"do": "add", "line": public_key})


def destroy(server: Server, cluster: str) -> None:
    """Take it away again: the last thing, when nothing else of the cluster is left there."""
    if server.has_password:
        _authorize(server, {"do": "remove", "mark": naming.alias(cluster, server.owner)})


def _authorize(server: Server, request: dict[str, str]) -> None:
    """As the user we logged in as, who need not be root."""
    assert server.session is not None  # noqa: S101 - only a server reached by SSH has a password
    data = json.dumps(request).encode()
    done = server.session.run_program(
        guest.program("authorize"), data, awaited="authorized_keys", deadline=Deadline(TIMEOUT_S)
    )
    if done.exit_code != 0:
        raise VclusterError(f"{server.name}: ~/.ssh/authorized_keys cannot be written: {last_words(done, 1)}")
