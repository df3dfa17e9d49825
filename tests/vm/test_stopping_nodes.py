"""A node that stops working during a command: the command reports the node, the stage and the reason at once.

Each kind of stop is tried at each stage of a create whose nodes are clones, and at the stages of a boot.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests import snapshot_cache
from tests.clusters import Host, Survey, changes, survey
from vcluster.stages.stage_table import STAGE_ORDER

pytestmark = pytest.mark.vm

# A root shell waits on the console of every node, also of a clone that has no identity yet.
KINDS = {
    "reset": "virsh -q reset {domain}",
    "destroy": "virsh -q destroy {domain}",
    "panic": "printf '\\necho c >/proc/sysrq-trigger\\n' >$(virsh -q ttyconsole {domain})",
}
REASONS = {
    "reset": "rebooted during {stage}",
    "destroy": "died during {stage}: another command cut its power",
    "panic": "rebooted during {stage}: its kernel panicked",
}
SETUP = "#!/bin/sh\nsleep 60\n"


@pytest.fixture(autouse=True)
def _clean_up(host: Host) -> Iterator[None]:
    """A test that fails must not make later tests fail."""
    yield
    host.sh("pkill -KILL -f 'vcluster.*[d]oomed' || true")
    host.vcluster("clear", "doomed", "-y", check=False)


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """The lines of a command's progress up to the first one with this text."""
    assert process.stderr
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"no line with {text!r} in:\n{''.join(lines)}")


def rest_of(process: subprocess.Popen[str]) -> str:
    """The rest of a command's progress; the beginning may be in the buffer of the stream."""
    assert process.stderr
    with process.stderr as stream:
        errors = stream.read()
    process.wait(10)
    return errors


def stop(host: Host, kind: str, domain: str) -> None:
    host.sh(KINDS[kind].format(domain=domain))


def assert_reported(errors: str, kind: str, node: str, stage: str) -> None:
    """The message names the stage, or a later one that had begun when the stop came."""
    found = re.search(rf"{node} ({REASONS[kind].format(stage='(?P<stage>[a-z]+)')})\n", errors)
    assert found, errors
    assert STAGE_ORDER.index(found["stage"]) >= STAGE_ORDER.index(stage), errors
    assert f"\n  the last lines of {node}'s console:\n  | " in errors or "printed nothing on its console" in errors
    if kind == "panic":
        assert "Kernel panic - not syncing: sysrq triggered crash" in errors


def created(host: Host, *options: str) -> subprocess.Popen[str]:
    """A create that has begun."""
    return host.popen("local", "create", "--name", "doomed", *options)


def assert_fails(process: subprocess.Popen[str], kind: str, node: str, stage: str) -> None:
    errors = rest_of(process)
    assert process.returncode == 1, errors
    assert len(re.findall("^vcluster: ", errors, re.MULTILINE)) == 1, errors
    assert_reported(errors, kind, node, stage)


CLONES = {"identity": "clone took", "configure": "identity took", "sshd": "configure took"}


@pytest.mark.parametrize("kind", ["reset", "panic"])
@pytest.mark.parametrize("stage", CLONES)
def test_a_clone_that_stops_before_it_is_ready_boots(host: Host, bare: Survey, kind: str, stage: str) -> None:
    """Its snapshot may be the reason."""
    process = created(host, "-n", "1")
    read_until(process, CLONES[stage])
    stop(host, kind, "doomed.node1")
    lines = read_until(process, "node1 boots, because it cannot be cloned")
    process.send_signal(signal.SIGINT)
    errors = "".join(lines) + rest_of(process)
    assert process.returncode == 130, errors
    assert_reported(errors, kind, "node1", stage)
    assert changes(survey(host), bare) == {}
    snapshot_cache.provide(host)


@pytest.mark.parametrize("stage", ["clone", *CLONES])
def test_a_clone_whose_power_another_command_cuts(host: Host, bare: Survey, stage: str) -> None:
    """Its snapshot is not the reason, so it stays."""
    process = created(host, "-n", "1")
    if stage == "clone":
        host.wait_for("virsh -q list --name | grep doomed")
    else:
        read_until(process, CLONES[stage])
    stop(host, "destroy", "doomed.node1")
    assert_fails(process, "destroy", "node1", stage)
    assert len(host.snapshots()) == 1
    assert changes(survey(host), bare) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("stage", "sign"), [("nfs", "node2: sshd took"), ("check", "node2: nfs took"), ("provision", "mpiexec took")]
)
def test_a_node_stops_after_it_was_cloned(host: Host, bare: Survey, kind: str, stage: str, sign: str) -> None:
    host.server.path("/run/setup.sh").write_text(SETUP)
    process = created(host, "-n", "2", *(["--provision", "/run/setup.sh"] if stage == "provision" else []))
    read_until(process, sign)
    stop(host, kind, "doomed.node2")
    assert_fails(process, kind, "node2", stage)
    assert changes(survey(host), bare) == {}


@pytest.mark.parametrize("kind", ["reset", "destroy"])
@pytest.mark.parametrize(("stage", "sign"), [("boot", "create took"), ("login", "boot took")])
def test_a_node_stops_while_it_boots(host: Host, bare: Survey, kind: str, stage: str, sign: str) -> None:
    process = created(host, "-n", "1", "--boot", "cold")
    read_until(process, sign)
    stop(host, kind, "doomed.node1")
    assert_fails(process, kind, "node1", stage)
    assert changes(survey(host), bare) == {}


def test_commands_on_a_cluster(host: Host, bare: Survey) -> None:
    """The cluster stays, and `start` makes it ready again."""
    host.server.path("/run/setup.sh").write_text(SETUP)
    created(host, "-n", "2").communicate(timeout=60)

    process = host.popen("add", "--name", "doomed")
    read_until(process, "node3: identity took")
    stop(host, "destroy", "doomed.node3")
    assert_fails(process, "destroy", "node3", "configure")
    assert host.json("status", "doomed")["state"] == "ready"

    process = host.popen("check", "doomed")
    time.sleep(1.5)  # it has begun, and needs four seconds
    stop(host, "reset", "doomed.node2")
    assert_fails(process, "reset", "node2", "check")

    process = host.popen("repair", "doomed")  # waits for the login to node2, which boots
    read_until(process, "node1: configure took")
    stop(host, "destroy", "doomed.node2")
    assert_fails(process, "destroy", "node2", "login")

    process = host.popen("start", "doomed")
    read_until(process, "node2: start took")
    stop(host, "reset", "doomed.node2")
    assert_fails(process, "reset", "node2", "boot")

    assert host.vcluster("start", "doomed", timeout_s=120).stdout == "doomed: ready\n"

    process = host.popen("provision", "--name", "doomed", "/run/setup.sh")
    host.wait_for("ls /var/lib/vcluster/clusters/doomed/logs/*/node2.log")
    stop(host, "panic", "doomed.node2")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert_reported(output, "panic", "node2", "provision")
    host.vcluster("clear", "doomed", "-y")
    assert changes(survey(host), bare) == {}
