"""Functions of the project, called in one process inside a server of the testbed.

    with inside(server) as call:
        call("netlink_interfaces.destroy", alias="vcluster:lab:00000000")

A result comes back as JSON. An error of the project is raised here again.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tests.testbed import Server, kill
from vcluster import errors

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 60


class Call(Protocol):
    """Calls MODULE.FUNCTION of vcluster.adapters.network, or an operation of the agent, by keyword."""

    def __call__(self, function: str, /, **arguments: Any) -> Any: ...


@contextlib.contextmanager
def inside(server: Server) -> Iterator[Call]:
    process = server.popen([sys.executable, "-m", "tests.inside"], cwd=ROOT, takes_input=True)

    def call(function: str, /, **arguments: Any) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([function, arguments]) + "\n")
        process.stdin.flush()
        assert select.select([process.stdout], [], [], TIMEOUT_S)[0], f"{function} did not end in {server.name}"
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        answer = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"], hint=answer["hint"])
        return answer["result"]

    try:
        yield call
    finally:
        kill(process)


def _serve() -> None:
    """The process inside the server: each line is a request."""
    from dataclasses import asdict, is_dataclass

    from vcluster.adapters.network import guard_table, netlink_interfaces, netlink_routes, obstacles, peers, raw_frames
    from vcluster.adapters.network.interface_spec import InterfaceSpec
    from vcluster.agent import operations
    from vcluster.agent.links import frame_counts

    modules = {
        module.__name__.rpartition(".")[2]: module
        for module in (
            frame_counts,
            guard_table,
            netlink_interfaces,
            netlink_routes,
            obstacles,
            operations,
            peers,
            raw_frames,
        )
    }

    def plain(value: object) -> object:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    for line in sys.stdin:
        function, arguments = json.loads(line)
        module, name = function.split(".")
        if function == "netlink_interfaces.create":
            arguments["specs"] = [InterfaceSpec(**spec) for spec in arguments["specs"]]
        try:
            answer = {"result": getattr(modules[module], name)(**arguments)}
        except errors.VclusterError as error:
            answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
        print(json.dumps(answer, default=plain), flush=True)


if __name__ == "__main__":
    _serve()
