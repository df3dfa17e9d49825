"""Our own way into a server: the cluster's key where a password was used, and the agent's program.

Neither outlives the cluster: the key goes with it, the program with the last cluster of anybody's on that server.
"""

from __future__ import annotations

import json

from vcluster import guest, naming
from vcluster.errors import VclusterError
from vcluster.events import Deadline
from vcluster.hosts.shell import last_words
from vcluster.servers import Server

TIMEOUT_S = 30.0


def create(server: Server, public_key: str) -> None:
    """Let the cluster's key in where a password did, in the login user's own authorized_keys."""
    if server.has_password:
        _authorize(server, {"do": "add", "line": public_key})


def destroy(server: Server, cluster: str) -> None:
    """Take key and program away again; called when nothing else of the cluster is left there."""
    if server.session is None:
        return
    if server.has_password:
        _authorize(server, {"do": "remove", "mark": naming.alias(cluster, server.owner)})
    server.leave_if_unused()


def _authorize(server: Server, request: dict[str, str]) -> None:
    """As the user we logged in as, who need not be root."""
    assert server.session is not None  # noqa: S101 - only a server reached by SSH has a password
    data = json.dumps(request).encode()
    done = server.session.run_program(
        guest.program("authorize"), data, awaited="authorized_keys", deadline=Deadline(TIMEOUT_S)
    )
    if done.exit_code != 0:
        raise VclusterError(f"{server.name}: ~/.ssh/authorized_keys cannot be written: {last_words(done, 1)}")
