"""A node that stops working during a command: the command ends at once, and names the node, the stage and the reason.

Nodes are clones, except at the stages of a boot.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests import snapshot_cache
from tests.clusters import Host, Survey, changes, read_until, rest_of, survey
from tests.testbed import kill
from vcluster.stages.stage_table import STAGE_ORDER

pytestmark = pytest.mark.vm

RESET, DESTROY, PANIC, SUSPEND = "reset", "destroy", "panic", "suspend"
REASONS = {
    RESET: "rebooted during {stage}",
    DESTROY: "died during {stage}: another command cut its power",
    PANIC: "rebooted during {stage}: its kernel panicked",
    SUSPEND: "was paused during {stage}: paused by a user of libvirt",
}
# A root shell waits on the console of every node, also of a clone that has no identity yet. QEMU needs a second to
# notice that its terminal is open, so it is opened early, and the shell prints prompts from then on. A reader empties
# the terminal, so that QEMU never waits.
PANIC_ON_SIGN = """
rm -f /run/panic /run/prompts
until tty=$(virsh -q ttyconsole {domain} 2>/dev/null) && [ "$tty" ]; do sleep 0.05; done
exec 3<>$tty
stty raw -echo <&3
cat <&3 >/run/prompts &
until [ -e /run/panic ]; do [ -s /run/prompts ] || printf '\\r' >&3; sleep 0.1; done
printf '\\recho c >/proc/sysrq-trigger\\r' >&3
sleep 60
"""
SETUP = "#!/bin/sh\nsleep 60\n"
NO_STAGE = "the command"  # what messages name before the first stage of a node


class Stopper:
    """Stops a node in one of these ways. It prepares a panic before the node runs."""

    def __init__(self, host: Host, kind: str, node: str) -> None:
        self._host, self._kind, self._domain = host, kind, f"doomed.{node}"
        argv = ["sh", "-c", PANIC_ON_SIGN.format(domain=self._domain)]
        self._shell = host.server.popen(argv) if kind == PANIC else None

    def __enter__(self) -> Stopper:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shell:
            kill(self._shell)

    def stop(self) -> None:
        self._host.sh("touch /run/panic" if self._shell else f"virsh -q {self._kind} {self._domain}")


@pytest.fixture(autouse=True)
def _clean_up(host: Host) -> Iterator[None]:
    """A test that fails must not make later tests fail."""
    host.server.path("/run/setup.sh").write_text(SETUP)
    snapshots = host.snapshots()
    yield
    host.kill_commands("doomed")
    host.vcluster("clear", "doomed", "-y", check=False)
    if host.snapshots() != snapshots:
        snapshot_cache.provide(host)


def created(host: Host, *options: str) -> subprocess.Popen[str]:
    """A create that has begun."""
    return host.popen("local", "create", "--name", "doomed", *options)


def assert_reported(errors: str, kind: str, node: str, stage: str) -> None:
    """The message names the stage, or a later one that had begun when the stop came."""
    found = re.search(rf"{node} {REASONS[kind].format(stage='(?P<stage>[a-z ]+)')}( \(remove .*)?\n", errors)
    assert found, errors
    stages = [NO_STAGE, *STAGE_ORDER]
    assert stages.index(found["stage"]) >= stages.index(stage), errors
    console = re.search(
        rf"\n *(the last lines of {node}'s console:\n *\| |{node} printed nothing on its console)", errors
    )
    assert bool(console) is (kind != SUSPEND), errors
    if kind == PANIC:
        assert "Kernel panic - not syncing: sysrq triggered crash" in errors


def assert_fails(process: subprocess.Popen[str], kind: str, node: str, stage: str) -> None:
    errors = rest_of(process)
    assert process.returncode == 1, errors
    assert len(re.findall("^vcluster: ", errors, re.MULTILINE)) == 1, errors
    assert_reported(errors, kind, node, stage)


@pytest.mark.parametrize(
    ("stage", "sign"),
    [("identity", "clone took"), pytest.param("configure", "identity took", marks=pytest.mark.rare)],
)
def test_a_clone_that_stops_before_it_is_ready_boots(host: Host, bare: Survey, stage: str, sign: str) -> None:
    """Its snapshot may be the reason."""
    process = created(host, "-n", "1")
    read_until(process, sign)
    Stopper(host, RESET, "node1").stop()
    progress = read_until(process, "node1 boots, because it cannot be cloned")
    process.send_signal(signal.SIGINT)
    progress += rest_of(process)
    assert process.returncode == 130, progress
    assert_reported(progress, RESET, "node1", stage)
    assert changes(survey(host), bare) == {}
    snapshot_cache.provide(host)


ONE, TWO, SETS_UP, BOOTS = (
    ("-n", "1"),
    ("-n", "2"),
    ("-n", "2", "--provision", "/run/setup.sh"),
    ("-n", "1", "--boot", "cold"),
)
# A stop before that looks to libvirt as if QEMU could not start.
QEMU_ANSWERS = "virsh domstate --reason doomed.node1 2>/dev/null | grep -E 'paused|running' | grep -v 'starting up'"
CHECKED = ("node1: check took", "node2: check took", "mpiexec took")
# The first kind of each stage is in the tier full. A stop during clone is not: sometimes libvirt takes it for a QEMU
# that cannot start, and then the node boots.
STOPS = {
    "clone": (ONE, (), [DESTROY]),
    "configure": (ONE, ("identity took",), [DESTROY]),
    "nfs": (TWO, ("node1: sshd took", "node2: sshd took"), [RESET, DESTROY, PANIC]),
    "check": (TWO, ("node2: nfs took",), [SUSPEND, RESET, DESTROY, PANIC]),
    "provision": (SETS_UP, CHECKED, [PANIC, RESET, DESTROY]),
    "boot": (BOOTS, ("create took",), [DESTROY, RESET]),
    "login": (BOOTS, ("boot took",), [RESET]),
}


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        pytest.param(stage, kind, marks=[] if kind == kinds[0] and stage != "clone" else pytest.mark.rare)
        for stage, (_, _, kinds) in STOPS.items()
        for kind in kinds
    ],
)
def test_a_node_stops_during_a_create(host: Host, bare: Survey, stage: str, kind: str) -> None:
    """A snapshot is not the reason for the power that another command cut, so it stays."""
    options, signs, _ = STOPS[stage]
    node = f"node{options[1]}"
    snapshots = host.snapshots()
    with Stopper(host, kind, node) as stopper:
        process = created(host, *options)
        if signs:
            read_until(process, *signs)
        else:
            host.wait_for(QEMU_ANSWERS)
        if stage == "provision":
            host.wait_for("ls /var/lib/vcluster/clusters/doomed/logs/*/node2.log")
        stopper.stop()
        assert_fails(process, kind, node, stage)
    assert host.snapshots() == snapshots
    assert changes(survey(host), bare) == {}


def test_a_node_stops_during_add_and_check(host: Host, bare: Survey) -> None:
    """The cluster stays."""
    created(host, *TWO).communicate(timeout=300)

    process = host.popen("add", "--name", "doomed")
    read_until(process, "node3: identity took")
    Stopper(host, DESTROY, "node3").stop()
    assert_fails(process, DESTROY, "node3", "configure")
    assert host.json("status", "doomed")["state"] == "ready"

    process = host.popen("check", "doomed", "-v")
    read_until(process, "libvirt: inspecting doomed.node2")  # it does this after the login to node2, before the tests
    Stopper(host, DESTROY, "node2").stop()
    assert_fails(process, DESTROY, "node2", NO_STAGE)
    host.vcluster("clear", "doomed", "-y")
    assert changes(survey(host), bare) == {}


@pytest.mark.rare  # the test above stops nodes during other commands
def test_a_node_stops_during_start_repair_and_provision(host: Host, bare: Survey) -> None:
    """The cluster stays, and `repair` makes it ready again."""
    created(host, *TWO).communicate(timeout=300)
    host.vcluster("power", "off", "-w", "node2", "--name", "doomed")

    process = host.popen("start", "doomed")
    read_until(process, "node2: start took")
    Stopper(host, RESET, "node2").stop()
    assert_fails(process, RESET, "node2", "boot")

    process = host.popen("repair", "doomed")  # waits for the login to node2, which boots
    read_until(process, "node1: configure took")
    Stopper(host, RESET, "node2").stop()
    assert_fails(process, RESET, "node2", "login")
    host.vcluster("repair", "doomed", timeout_s=300)
    assert host.json("status", "doomed")["state"] == "ready"
    host.verify("doomed")  # not at the end: a node has stopped then

    with Stopper(host, PANIC, "node2") as stopper:
        process = host.popen("provision", "--name", "doomed", "/run/setup.sh")
        host.wait_for("ls /var/lib/vcluster/clusters/doomed/logs/*/node2.log")
        host.wait_for("cat /run/prompts")  # the terminal is open
        stopper.stop()
        output, errors = process.communicate(timeout=300)  # the script ends on node1
    assert process.returncode == 1, errors
    assert_reported(output, PANIC, "node2", "provision")
    host.vcluster("clear", "doomed", "-y")
    assert changes(survey(host), bare) == {}
