"""A command is killed at a point. Then `status` names what there is, and `clear` leaves nothing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from typing import Any

from tests.clusters import ENVIRONMENT, Host, Survey, changes, survey
from tests.faults.commands import CLUSTER, COMMAND_S, Bed, FaultCommand
from tests.faults.plan import read_points
from tests.faults.points import ORDER, PROGRAM, Point

RECORD = "/run/points"
LEDGER = f"/var/lib/vcluster/clusters/{CLUSTER}/ledger.json"
SIGKILLED = -signal.SIGKILL
SETTLED_S = 20  # libvirt ends what it did for a client that is gone
LABELLED = ("domains", "networks", "pools", "rules")


def record(bed: Bed, command: FaultCommand) -> list[Point]:
    """The points that a command passes. It is prepared before, and its cluster is removed afterwards."""
    command.prepare(bed)
    done = _run(bed, command, {"record": RECORD})
    assert done == 0, f"{command.name}: exit code {done}"
    points = _read_record(bed)
    command.undo(bed, is_ledger_lost=False)
    return points


def kill_at(bed: Bed, command: FaultCommand, fields: Mapping[str, Any]) -> tuple[bool, list[Point]]:
    """Prepare and run a command that kills itself at a point.

    Returns whether it reached the point, and the points that it passed.
    """
    command.prepare(bed)
    code = _run(bed, command, {"kill": dict(fields), "record": RECORD})
    return code == SIGKILLED, _read_record(bed)


def _read_record(bed: Bed) -> list[Point]:
    return read_points(bed.control.sh(f"cat {RECORD}; rm {RECORD}").splitlines())


def _run(bed: Bed, command: FaultCommand, order: Mapping[str, Any]) -> int:
    env = {**ENVIRONMENT, ORDER: json.dumps(order)}
    arguments = bed.named(command.arguments)
    done = bed.control.server.run([*PROGRAM, *arguments], timeout_s=COMMAND_S, check=False, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, SIGKILLED), done.stderr
    return done.returncode


def survey_all(bed: Bed) -> dict[str, Survey]:
    """Everything on each server that a command could leave behind."""
    return {host.server.name: survey(host) for host in bed.all}


def assert_survived(bed: Bed, command: FaultCommand, bare: Mapping[str, Survey], *, is_ledger_lost: bool) -> None:
    """After the kill: `status` names what there is, the usual command removes it, and nothing is left."""
    if is_ledger_lost:
        bed.control.sh(f"rm -f {LEDGER}")
    if command.has_cluster:
        assert_named(bed.control, bare[bed.control.server.name])
    command.undo(bed, is_ledger_lost=is_ledger_lost)
    deadline = time.monotonic() + SETTLED_S
    while left := _left(bed, bare):
        assert time.monotonic() < deadline, left
        time.sleep(0.3)


def _left(bed: Bed, bare: Mapping[str, Survey]) -> dict[str, Survey]:
    return {name: found for name, now in survey_all(bed).items() if (found := changes(now, bare[name]))}


def assert_named(host: Host, bare: Survey) -> None:
    """`list` has the cluster if anything of it is there, and `status` counts its nodes."""
    extra = changes(survey(host), bare)
    has_ledger = bool(host.sh(f"ls {LEDGER} 2>/dev/null || true"))
    if has_ledger or any(extra.get(kind) for kind in LABELLED):
        assert CLUSTER in {row["name"] for row in host.json("list")}, extra
    if not has_ledger:
        return
    found = host.json("status", CLUSTER)
    there = [node["name"] for node in found["nodes"] if node["state"] != "missing"]
    domains = [name for name in host.sh("virsh -q list --all --name").split() if f"{CLUSTER}" in name]
    assert len(there) == len(domains), (found, domains)
