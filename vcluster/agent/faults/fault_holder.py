"""The process on a server that begins a fault, holds its end, and ends it. It also changes the rates of links.

It needs neither the controller nor the agent. It reads an order: a record, with a time, or with the steps of a flap or
of a trace. Its argument is the descriptor of the lock that the agent hands over. It writes one line of JSON when the
fault has begun: `{}`, or the error.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vcluster.adapters.network.faults import fault_table
from vcluster.adapters.network.faults.fault_table import Cut
from vcluster.adapters.network.shaping import shaper
from vcluster.adapters.network.shaping.link_lock import inherited, locked
from vcluster.adapters.network.shaping.traffic_spec import directions as requested
from vcluster.agent import request_loop
from vcluster.agent.faults import node_faults
from vcluster.agent.faults.node_faults import FaultRecord
from vcluster.errors import ConflictError, VclusterError
from vcluster.model.spec import FLAP

RETRY_S = 1.0  # while libvirt does not answer
RETRIES = 600


def main() -> None:
    """Hold the fault of the order."""
    lock = int(sys.argv[1])
    try:
        order = json.loads(sys.stdin.buffer.read())
        record = node_faults.record_of(order["record"])
        if "trace" in order:
            _trace(record, order["trace"], order["period_s"], lock)
        elif order["steps"]:
            _flap(record, order["table"], order["port"], order["steps"], lock)
        else:
            _hold(record, order["for_s"], lock)
    except VclusterError as error:
        _answer({"error": request_loop.error_to_json(error)})


def _answer(fields: dict[str, Any]) -> None:
    """Report the begin, and close the output: the agent may be gone later."""
    with suppress(OSError):
        os.write(1, json.dumps(fields).encode() + b"\n")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)


def _begun(record: FaultRecord, for_s: float | None) -> FaultRecord:
    """The record of a fault that this process holds."""
    process = node_faults.identity_of(os.getpid())
    ends_s = None if for_s is None else time.monotonic() + for_s
    return replace(node_faults.begun(record), holder=process, ends_s=ends_s)


def _wait_until(moment_s: float) -> None:
    while (left_s := moment_s - time.monotonic()) > 0:
        time.sleep(left_s)


def _hold(record: FaultRecord, for_s: float, lock: int) -> None:
    with inherited(lock):
        record = _begun(record, for_s)
        node_faults.apply(record)
    _answer({})
    _wait_until(record.ends_s or 0.0)
    for _ in range(RETRIES):
        with suppress(VclusterError), locked():  # libvirt may restart, for example
            node_faults.undo(record)
            if node_faults.is_recorded(record):  # otherwise it may be the record of a later fault
                node_faults.forget(record)
            break
        time.sleep(RETRY_S)


def _flap(record: FaultRecord, table: str, port: str, steps: Sequence[Sequence[float]], lock: int) -> None:
    """Drop the frames of a link again and again, as long as the record is there.

    The kernel ends each time by itself, also if this process is killed.
    """
    with inherited(lock):
        record = _begun(record, sum(down_s + up_s for down_s, up_s in steps))
        node_faults.write(record)
        try:
            _drop(table, port, steps[0][0])
        except VclusterError:
            node_faults.forget(record)
            raise
    _answer({})
    moment_s = time.monotonic()
    for (down_s, up_s), (next_s, _) in zip(steps, [*steps[1:], (0.0, 0.0)], strict=True):
        moment_s += down_s + up_s
        _wait_until(moment_s)
        with locked():
            if not node_faults.is_recorded(record):  # the cluster may not exist any more
                return
            if next_s:
                with suppress(ConflictError):  # the kernel has not ended the time before yet
                    _drop(table, port, next_s)
            else:
                node_faults.forget(record)


def _trace(
    record: FaultRecord, steps: Sequence[tuple[float, Sequence[dict[str, Any]]]], period_s: float | None, lock: int
) -> None:
    """Change the limits of queues at the times of the steps, as long as the record is there.

    A step that fails is left out: the node may be off, so its link has no queue.
    """
    with inherited(lock):
        record = _begun(record, None if period_s else steps[-1][0])
        node_faults.write(record)
        try:
            shaper.change_queues(requested(steps[0][1]))
        except VclusterError:
            node_faults.forget(record)
            raise
    _answer({})
    begin_s = time.monotonic()
    for at_s, directions in _later(steps, period_s):
        _wait_until(begin_s + at_s)
        with locked():
            if not node_faults.is_recorded(record):  # the cluster may not exist any more
                return
            with suppress(VclusterError):
                shaper.change_queues(requested(directions))
    with locked():
        if node_faults.is_recorded(record):
            node_faults.forget(record)


def _later(
    steps: Sequence[tuple[float, Sequence[dict[str, Any]]]], period_s: float | None
) -> Iterator[tuple[float, Sequence[dict[str, Any]]]]:
    """The steps after the first one; without an end if there is a period."""
    yield from steps[1:]
    rounds = itertools.count(1) if period_s else ()
    for number in rounds:
        for at_s, directions in steps:
            yield number * (period_s or 0.0) + at_s, directions


def _drop(table: str, port: str, down_s: float) -> None:
    fault_table.add(table, [Cut(FLAP, [[port]])], round(down_s * 1000))
