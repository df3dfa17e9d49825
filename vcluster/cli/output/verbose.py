"""The option -v: a line on standard error for each call to a server, libvirt, a node or the ledger."""

from __future__ import annotations

import sys
import threading

from vcluster.cli.output.progress import fit
from vcluster.util import events
from vcluster.util.events import Call

LINE_COLUMNS = 200
_lock = threading.Lock()
_started = False


def start() -> None:
    """Print every call from now on. A second start, by -v before and after the command, has no effect."""
    global _started  # noqa: PLW0603 - the listeners of calls belong to the process too
    if not _started:
        _started = True
        events.listen_to_calls(print_call)


def is_on() -> bool:
    """Whether every call is printed."""
    return _started


def print_call(call: Call) -> None:
    """Print one call: its duration, where it went, and the operation."""
    failed = f": {call.error}" if call.error else ""
    line = fit(f"{call.where}: {call.operation}{failed}", LINE_COLUMNS)
    with _lock:
        print(f"  {call.seconds * 1000:8.1f} ms  {line}", file=sys.stderr, flush=True)
