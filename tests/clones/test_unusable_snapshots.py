"""A snapshot that cannot be used costs one line and the seconds of a boot. vcluster removes it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import SNAPSHOTS, Host, Survey, left_behind, survey
from vcluster.agent import sparse_digest

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("restored_snapshot")]

BOOTS = "virsh -q list --name | grep doomed.node1"


def flip(folder: Path) -> None:
    """Change one bit in the middle of the data."""
    with (folder / "ram").open("r+b") as ram:
        ram.seek(64 << 20)
        byte = ram.read(1)[0]
        ram.seek(64 << 20)
        ram.write(bytes([byte ^ 1]))


def cut(folder: Path) -> None:
    with (folder / "state").open("r+b") as state:
        state.truncate(100_000)


def age(folder: Path) -> None:
    """Make the manifest that of another QEMU."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["circumstances"]["qemu"] = "0.1.0"

    rewrite(folder, change)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(flip, "/ram has changed"), (cut, "/state has 100000 bytes, not"), (age, 'was made with qemu 0.1.0, not')],
)  # fmt: skip
def test_a_changed_snapshot_is_found_before_it_is_used(
    host: Host, snapshot: str, bare: Survey, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(host.server.path(f"{SNAPSHOTS}/{snapshot}"))
    process = host.popen("local", "create", "-n", "1", "--name", "doomed")
    host.wait_for(BOOTS)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    (line,) = (line for line in errors.splitlines() if "is deleted" in line)
    assert f"snapshot {snapshot} is deleted: " in line
    assert reason in line
    assert "clone took" not in errors
    assert not host.snapshots()
    assert "doomed" not in str(left_behind(survey(host), bare))


def test_a_snapshot_that_qemu_refuses_is_reported_and_the_node_boots(host: Host, snapshot: str, bare: Survey) -> None:
    """All digests are right, but QEMU cannot resume a node from the state."""
    folder = host.server.path(f"{SNAPSHOTS}/{snapshot}")
    (folder / "state").write_bytes(b"garbage" * 10_000)

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"]["state"] = {"size": 70_000, "digest": sparse_digest.digest(folder / "state")}

    rewrite(folder, change)
    made = host.vcluster("local", "create", "-n", "1", "--name", "doomed", timeout_s=300)
    assert "node1 boots, because it cannot be cloned: " in made.stderr, made.stderr
    assert "Traceback" not in made.stderr
    assert host.json("status", "doomed")["state"] == "ready"
    assert {"clone", "boot", "login", "configure", "check"} <= set(host.stages("doomed", "node1"))
    assert host.snapshots() == [f"{snapshot}.refused"]
    host.verify("doomed")
    assert host.vcluster("clear", "doomed", "-y", "--verify").stdout == "doomed: cleared\nnothing left\n"
    # The next create does not make a clone of it.
    process = host.popen("local", "create", "-n", "1", "--name", "doomed")
    host.wait_for(BOOTS)
    process.send_signal(signal.SIGINT)
    assert "nodes boot, because QEMU refused clones before: " in process.communicate(timeout=300)[1]
    host.sh(f"rm {SNAPSHOTS}/{snapshot}.refused")
    assert "doomed" not in str(left_behind(survey(host), bare))
