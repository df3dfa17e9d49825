"""Record the points of commands: each runs once, on servers of the testbed.

    sudo .venv/bin/python -m tests.faults.record [COMMAND…]

Without a name, it records the commands whose points are not known for the present code.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests import snapshot_cache
from tests.clusters import Host, booting_servers
from tests.faults import plan
from tests.faults.commands import COMMANDS, NEIGHBOUR, PATIENCE, Bed
from tests.faults.trial import record


@contextmanager
def fault_bed() -> Iterator[Bed]:
    """A server with a snapshot of a node and another cluster, and a server for the switch.

    With another cluster, a command does not remove folders that clusters share.
    """
    with booting_servers("faults", "switch") as (control, switch):
        bed = Bed(Host(control), Host(switch))
        switch.allow_login_of(control)
        bed.control.initialize_libvirt()
        snapshot_cache.provide(bed.control)
        bed.run("local", "create", "--name", NEIGHBOUR, "-n", "2", *PATIENCE)
        yield bed
        bed.run("clear", NEIGHBOUR, "-y")


def main(names: Sequence[str]) -> None:
    """Record the points of these commands, and keep those of each as soon as they are known."""
    known = plan.recorded()
    missing = names or [name for name in COMMANDS if name not in known]
    if missing:
        with fault_bed() as bed:
            for name in missing:
                began_s = time.monotonic()
                passed = record(bed, COMMANDS[name])
                plan.store({name: plan.distinct(passed)})
                (plan.POINTS.parent / f"{name}.txt").write_text("".join(f"{point}\n" for point in passed))
                seconds, count = time.monotonic() - began_s, len(dict.fromkeys(passed))
                print(f"{name}: {len(plan.distinct(passed))} trials, {count} points, {seconds:.0f} s", flush=True)
    count = len(plan.trials(plan.recorded()))
    print(f"{count} trials of {len(plan.recorded())} commands in {plan.POINTS}")
    if count > plan.POINTS_MAX:
        sys.exit(f"these are more than {plan.POINTS_MAX}: the tier would take too long")


if __name__ == "__main__":
    main(sys.argv[1:])
