"""Machines of scripts/machine for tests: whole emulated Debian systems, until a `with` ends.

with whole_machines("red", "blue", suite="trixie", is_on_lan=True) as (red, blue):
    red.run(["ping", "-c", "1", blue.name])
    red.run(["vcluster", "local", "create", "-n", "2"], as_root=True, timeout_s=600)
    red.reboot()
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "machine"
STATE = Path("/var/lib/vcluster-machines/machines")
PANIC = "Kernel panic"
PANIC_LINES = 60  # of the console: the kernel's report of a panic, and what led to it
START_TIMEOUT_S = 1800  # the first start of a kind makes its disk
BOOT_TIMEOUT_S = 400
COPY_TIMEOUT_S = 300


class PanicError(AssertionError):
    """The kernel of a machine panicked: QEMU emulates its KVM, and that is not perfect."""


@dataclass(frozen=True, slots=True)
class WholeMachine:
    """A machine that is up. On the LAN, its name resolves on the other machines."""

    name: str

    def run(
        self,
        argv: Sequence[str],
        *,
        as_root: bool = False,
        input: str = "",  # noqa: A002  as subprocess.run calls it
        timeout_s: float = 60,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as student, or as root, and wait for it. The machine ends it after `timeout_s`."""
        limited = ["timeout", f"{timeout_s}", *argv]
        options = ["--root"] if as_root else []
        return manage("exec", self.name, *options, "--", *limited, input=input, timeout_s=timeout_s + 30, check=check)

    def put(self, source: Path, target: str, *, as_root: bool = False) -> None:
        """Copy a file to a path, or the content of a folder into a folder."""
        options = ["--root"] if as_root else []
        manage("put", self.name, str(source), target, *options, timeout_s=COPY_TIMEOUT_S)

    def reboot(self) -> None:
        """Reboot it in order. It answers when this returns."""
        manage("reboot", self.name, timeout_s=BOOT_TIMEOUT_S)

    def reset(self) -> None:
        """Restart it as after a power cut. It answers when this returns."""
        manage("reset", self.name, timeout_s=BOOT_TIMEOUT_S)


@contextlib.contextmanager
def whole_machines(
    *names: str, suite: str = "bookworm", is_bare: bool = False, is_on_lan: bool = False
) -> Iterator[tuple[WholeMachine, ...]]:
    """Machines of these names, in this order. The process id is added to each name, to make it unique.

    The machines end with this process, even if it is killed. If the body fails and the kernel of a machine panicked,
    raises PanicError instead.
    """
    unique = [f"{name}-{os.getpid()}" for name in names]
    options = ["--suite", suite, "--owner", str(os.getpid()), *["--bare"] * is_bare, *["--lan"] * is_on_lan]
    try:
        manage("up", *unique, *options, timeout_s=START_TIMEOUT_S)
        yield tuple(map(WholeMachine, unique))
    except Exception as error:
        if panics := [report for name in unique if (report := panic_report(name))]:
            raise PanicError("\n".join(panics)) from error
        raise
    finally:
        manage("down", *unique)


def panic_report(name: str) -> str:
    """The last lines of the console of a machine whose kernel panicked; empty for another machine."""
    console = STATE / name / "console.log"
    text = console.read_text(errors="replace") if console.exists() else ""
    return "\n".join([f"{name}: its kernel panicked", *text.splitlines()[-PANIC_LINES:]]) if PANIC in text else ""


def machine_states() -> dict[str, str]:
    """The state of each machine on record, by name."""
    return {row["name"]: row["state"] for row in json.loads(manage("list", "--json").stdout)}


def manage(
    *arguments: str,
    input: str = "",  # noqa: A002  as subprocess.run calls it
    timeout_s: float = 60,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run scripts/machine itself."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        input=input,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=timeout_s,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"machine {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done
