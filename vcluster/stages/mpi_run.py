"""Run an MPI program on nodes as mpiexec does, but without its logins.

mpiexec of MPICH (Hydra) logs in to every node to start a proxy there, and the proxy starts the ranks of the node. With
the launcher "manual" it prints the commands of the proxies instead, and waits until they connect to it. This machine
starts them over the connections that it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

from vcluster import guest
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.pipe import Pipe
from vcluster.errors import VclusterError
from vcluster.stages.guest_answer import receive
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

AWAITED = "the MPI program"
PROXY = "hydra_pmi_proxy"
ARGUMENT = re.compile(r"[\w.:/-]{1,200}")  # the head node is not trusted
POLL_S = 0.02
EXIT_CODE_S = 5.0  # the exit code of a program arrives after the end of its output
END_S = 5.0  # after a proxy has failed, mpiexec has this time to report the reason


def run(
    sessions: Mapping[str, NodeConnection], head: str, names: Sequence[str], request: Mapping[str, object]
) -> dict[str, Any]:
    """Send the `request` "mpi" of guest/check.py to the head node, and start a proxy on each of the nodes `names`.

    Returns the answer of the program. If a proxy fails, the answer is one failed result for each node.
    """
    with ExitStack() as stack:
        mpiexec = stack.enter_context(closing(_start(sessions[head], request)))
        answer = receive(mpiexec, sessions[head].deadline, AWAITED)
        if "proxies" not in answer:
            return answer
        argvs = _proxies(mpiexec, answer["proxies"])
        if len(argvs) != len(names):
            return _failed(names, head, f"mpiexec uses {len(argvs)} nodes, not {len(names)}: the hostfile was changed")
        commands = list(zip(names, argvs, strict=True))

        def start(command: tuple[str, list[str]]) -> Pipe:
            name, argv = command
            parts = {key: request[key] for key in ("user", "home", "environment")}
            return stack.enter_context(closing(_start(sessions[name], {"do": "proxy", "argv": argv, **parts})))

        proxies = parallel.each(commands, start, deadline=sessions[head].deadline)
        failed, reason, patience = "", "", Deadline(END_S)
        while not mpiexec.has_more():
            for name, proxy in zip(names, proxies, strict=True):
                if not failed and not proxy.is_alive and proxy.wait(EXIT_CODE_S) != 0:
                    failed, reason, patience = name, proxy.reason(), Deadline(END_S)
                sessions[name].deadline.check(f"{AWAITED} on {name}")
            if failed and not patience.remaining_s():
                return _failed(names, failed, reason)
            sessions[head].deadline.pause(POLL_S, AWAITED)
        return receive(mpiexec, sessions[head].deadline, AWAITED)


def _start(session: NodeConnection, request: Mapping[str, object]) -> Pipe:
    pipe = session.start_program(guest.program("check"), awaited=AWAITED)
    try:
        pipe.write(json.dumps(request).encode() + b"\n", session.deadline, AWAITED)
    except BaseException:
        pipe.close()
        raise
    return pipe


def _proxies(pipe: Pipe, proxies: object) -> list[list[str]]:
    """The commands of the proxies, if they can be such."""
    if isinstance(proxies, list) and all(map(_is_proxy, proxies)):
        return proxies
    raise VclusterError(f"{pipe.name}: mpiexec printed commands that vcluster does not know")


def _is_proxy(argv: object) -> bool:
    return (
        isinstance(argv, list)
        and all(isinstance(argument, str) and ARGUMENT.fullmatch(argument) for argument in argv)
        and bool(argv)
        and str(argv[0]).rpartition("/")[2] == PROXY
    )


def _failed(names: Sequence[str], failed: str, reason: str) -> dict[str, Any]:
    details = dict.fromkeys(names, f"not tried, as it failed on {failed}") | {failed: reason}
    results = [{"check": "mpi", "to": name, "passed": False, "detail": details[name]} for name in names]
    return {"results": results, "program": PROXY}
