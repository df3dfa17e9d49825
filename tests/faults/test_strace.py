"""Each change that the kernel or libvirt sees lies between two points, so the points are complete."""

from __future__ import annotations

import json

import pytest

from tests.clusters import ENVIRONMENT
from tests.faults.commands import COMMAND_S, COMMANDS, Bed
from tests.faults.points import ORDER, PROGRAM
from tests.faults.strace import ARGV, Trace
from tests.faults.trial import RECORD

pytestmark = pytest.mark.faults

TRACE = "/run/trace"


CHANGES = {"execve", "unlink", "netlink", "libvirt"}


@pytest.mark.parametrize(("name", "kinds"), [("create-clone", CHANGES | {"rename", "mkdir"}), ("clear", CHANGES)])
def test_each_change_lies_between_two_points(bed: Bed, name: str, kinds: set[str]) -> None:
    command = COMMANDS[name]
    command.prepare(bed)
    order = json.dumps({"record": RECORD, "reads": True})
    env = {**ENVIRONMENT, ORDER: order, "PYTHONDONTWRITEBYTECODE": "1"}  # Python itself writes no files
    argv = [*ARGV, TRACE, *PROGRAM, *bed.named(command.arguments)]
    bed.control.server.run(argv, timeout_s=COMMAND_S, env=env)
    trace = Trace()
    outside = list(trace.outside(bed.control.server.path(TRACE).read_text().splitlines()))
    bed.control.sh(f"rm {TRACE} {RECORD}")
    command.undo(bed, is_ledger_lost=False)
    assert outside == []
    assert kinds <= trace.checked.keys()
