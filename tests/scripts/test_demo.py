"""scripts/demo on a server whose /dev/kvm is closed. It boots four nodes."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.scripts.conftest import PATH, Checkout, Installed
from tests.testbed import STATE

pytestmark = pytest.mark.vm

NO_WARM = "VCLUSTER_NO_WARM=1"  # no snapshot is made meanwhile
TIMEOUT_S = 900


@pytest.fixture
def checkout(installed: Installed) -> Iterator[Checkout]:
    installed.checkout.close_kvm()
    yield installed.checkout
    installed.checkout.sh("vcluster clear --all -y")


def demo(checkout: Checkout) -> tuple[str, str]:
    """Run scripts/demo as a user of sudo: what it prints."""
    script = str(checkout.path / "scripts/demo")
    done = checkout.server.run(
        ["runuser", "-u", "operator", "--", "sudo", "-n", NO_WARM, script], timeout_s=TIMEOUT_S, env={"PATH": PATH}
    )
    return done.stdout, done.stderr


def suggestions(printed: str) -> list[str]:
    """The commands of the last lines of the demo."""
    return [re.split("  +", line)[0] for line in printed.splitlines() if line.startswith("sudo ")]


def start_and_kill_demo(checkout: Checkout) -> None:
    """Start scripts/demo, and kill it when it has begun to make its cluster."""
    ledger = checkout.server.path("/var/lib/vcluster/clusters/demo/ledger.json")
    process = checkout.server.popen(
        ["env", f"PATH={PATH}", NO_WARM, str(checkout.path / "scripts/demo")], env={"PATH": PATH}
    )
    deadline = time.monotonic() + 60
    while not ledger.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no ledger was made; see {STATE}"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_demo_after_one_that_was_killed_opens_the_device_and_prints_commands_that_work(checkout: Checkout) -> None:
    start_and_kill_demo(checkout)
    checkout.close_kvm()
    stdout, stderr = demo(checkout)
    assert "the create of the cluster demo was interrupted: creating it again" in stderr
    assert "no udev sets the mode of /dev/kvm here." in stderr
    assert stderr.index("no udev sets the mode") < stderr.index("==> a cluster of four nodes")
    assert checkout.kvm() == "root:kvm 660"
    assert {f"node{number}" for number in range(1, 5)} <= set(stdout.split())

    listed, login, everywhere, console, clear = suggestions(stdout)
    assert "demo" in checkout.sh(listed, user="operator")
    assert checkout.sh(f"echo hostname | {login}", user="operator").split()[-1] == "node1"
    assert checkout.sh(everywhere, user="operator").count("load average") == 4
    checkout.sh(f"{console} --log", user="operator")
    checkout.sh(clear, user="operator")
    assert "demo" not in checkout.sh(listed, user="operator")
