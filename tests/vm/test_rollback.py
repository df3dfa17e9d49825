"""All the ends that a create can have. Nothing is left after any of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.clusters import ENVIRONMENT, VCLUSTER, Host, Survey, changes, read_until, rest_of, survey
from tests.testbed import kill
from tests.vm.terminal import terminal

pytestmark = [pytest.mark.vm, pytest.mark.core]


@pytest.fixture(autouse=True)
def _clean_up(host: Host) -> Iterator[None]:
    """A test that fails must not make later tests fail."""
    yield
    host.kill_commands("doomed")
    host.vcluster("clear", "doomed", "-y", check=False)


@pytest.mark.parametrize(
    ("after_s", "boot"),
    [
        pytest.param(0.2, "auto", marks=pytest.mark.rare),
        (0.6, "auto"),
        pytest.param(0.9, "auto", marks=pytest.mark.rare),
        pytest.param(1.2, "cold", marks=pytest.mark.rare),
        (2.5, "auto"),
        (9.0, "cold"),
    ],
)
def test_kill_9_then_clear(host: Host, bare: Survey, after_s: float, boot: str) -> None:
    process = host.popen("local", "create", "--name", "doomed", "-n", "2", "--boot", boot)
    time.sleep(after_s)  # the moment of death is the subject of the test
    assert process.poll() is None, process.communicate()
    host.kill_commands("doomed")
    kill(process)
    cleared = host.vcluster("clear", "doomed", "-y", "--verify")
    assert cleared.stdout.splitlines()[-1] == "nothing left"
    again = host.vcluster("clear", "doomed", "-y")
    assert again.stdout == "doomed: nothing to clear\n"
    assert_unchanged(host, bare)


def test_kill_9_then_clear_with_the_ledger_lost(host: Host, bare: Survey) -> None:
    process = host.popen("local", "create", "--name", "doomed", "-n", "1")
    host.wait_for("virsh -q list --name | grep doomed")
    host.kill_commands("doomed")
    kill(process)
    host.sh("rm -r /var/lib/vcluster/clusters/doomed")
    assert [row["state"] for row in host.json("list") if row["name"] == "doomed"] == ["partial"]
    refused = host.vcluster("local", "create", "--name", "doomed", "-n", "1", check=False)
    assert refused.returncode == 4
    assert host.vcluster("clear", "doomed", "-y", "--verify").stdout == "doomed: cleared\nnothing left\n"
    assert_unchanged(host, bare)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.rare) for each in (signal.SIGTERM, signal.SIGHUP))]
)
def test_an_interrupt_removes_everything(host: Host, bare: Survey, number: signal.Signals) -> None:
    process = host.popen("local", "create", "--name", "doomed", "-n", "2")
    host.wait_for("virsh -q list --name | grep doomed")
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "vcluster: interrupted"
    assert "Traceback" not in errors
    assert_unchanged(host, bare)


@pytest.mark.parametrize("options", [(), ("-v",)])
def test_a_closed_terminal_is_an_interrupt(host: Host, bare: Survey, options: tuple[str, ...]) -> None:
    """Without -v there are bars, with it there are lines. None of them can be written any more."""
    argv = ["env", *(f"{name}={value}" for name, value in ENVIRONMENT.items()), *VCLUSTER]
    with terminal(host.server, [*argv, "local", "create", "--name", "doomed", "-n", "2", *options]) as screen:
        host.wait_for("virsh -q list --name | grep doomed")
        screen.close()
        assert screen.process.wait(60) == 130
    assert_unchanged(host, bare)


def test_more_interrupts_do_not_disturb_the_removal(host: Host, bare: Survey) -> None:
    process = host.popen("local", "create", "--name", "doomed", "-n", "2")
    host.wait_for("virsh -q list --name | grep doomed")
    process.send_signal(signal.SIGINT)
    errors = read_until(process, "interrupted: removing")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # the removal takes longer than sending them
        process.send_signal(number)
    errors += rest_of(process)
    assert process.returncode == 130, errors
    assert errors.count("interrupted: removing cluster doomed") == 1
    assert errors.index("interrupted: removing") < errors.index("remove domains took")
    assert "still removing cluster doomed" in errors
    assert "Traceback" not in errors
    assert_unchanged(host, bare)


def test_a_timeout_shows_node_stage_and_console(host: Host, bare: Survey) -> None:
    options = ("-n", "1", "--boot", "cold", "--timeout", "4")
    failed = host.vcluster("local", "create", "--name", "doomed", *options, check=False)
    assert failed.returncode == 1
    assert "timed out after 4 s waiting for node1 to boot" in failed.stderr
    assert "console" in failed.stderr
    assert_unchanged(host, bare)


def test_keep_leaves_the_cluster_for_inspection(host: Host, bare: Survey) -> None:
    options = ("-n", "1", "--boot", "cold", "--timeout", "4", "--keep")
    failed = host.vcluster("local", "create", "--name", "doomed", *options, check=False)
    assert failed.returncode == 1
    assert host.json("status", "doomed")["state"] == "partial"
    host.vcluster("clear", "doomed", "-y", "--verify")
    assert_unchanged(host, bare)


def test_repair_does_not_remake_a_kept_node_that_was_deleted_by_hand(host: Host, bare: Survey) -> None:
    """A user may have used the nodes of a failed create with --keep."""
    options = ("-n", "2", "--boot", "cold", "--timeout", "6", "--keep")
    assert host.vcluster("local", "create", "--name", "doomed", *options, check=False).returncode == 1
    host.sh("virsh destroy doomed.node2; virsh undefine doomed.node2; rm /var/log/libvirt/qemu/doomed.node2.log")
    refused = host.vcluster("repair", "doomed", check=False)
    assert refused.returncode == 1
    assert "missing: node2 " in refused.stderr
    disk = "/var/lib/libvirt/images/vcluster/clusters/doomed/node2.qcow2"
    assert host.sh(f"ls {disk}") == f"{disk}\n"
    host.vcluster("clear", "doomed", "-y", "--verify")
    assert_unchanged(host, bare)


def test_two_creates_of_one_name(host: Host, bare: Survey) -> None:
    first = host.popen("local", "create", "--name", "doomed", "-n", "1")
    host.wait_for("ls /var/lib/vcluster/clusters/doomed/ledger.json")
    second = host.vcluster("local", "create", "--name", "doomed", "-n", "1", check=False)
    assert second.returncode == 4
    busy = host.vcluster("clear", "doomed", "-y", check=False)
    assert busy.returncode == 4
    assert "another command is changing cluster" in busy.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=300)
    assert_unchanged(host, bare)


def test_a_foreign_bridge_of_the_same_name_stays(host: Host, bare: Survey) -> None:
    host.sh("ip link add vc-doomed type bridge")
    failed = host.vcluster("local", "create", "--name", "doomed", "-n", "1", check=False)
    assert failed.returncode == 4
    assert "interface vc-doomed exists" in failed.stderr
    host.sh("ip link show vc-doomed && ip link del vc-doomed")
    assert_unchanged(host, bare)


def test_foreign_things_are_never_removed(host: Host, bare: Survey) -> None:
    xml = "<domain type='qemu'><name>doomed.node1</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    host.server.run(
        ["sh", "-c", f'echo "{xml}" > /tmp/foreign-{os.getpid()}.xml; virsh define /tmp/foreign-{os.getpid()}.xml'],
        timeout_s=120,
    )
    try:
        failed = host.vcluster("local", "create", "--name", "doomed", "-n", "1", check=False)
        assert failed.returncode == 4
        assert "doomed.node1" in failed.stderr
        assert host.vcluster("clear", "doomed", "-y").stdout == "doomed: nothing to clear\n"
        assert "doomed.node1" in host.sh("virsh -q list --all --name")
    finally:
        host.sh(f"virsh undefine doomed.node1; rm /tmp/foreign-{os.getpid()}.xml")
    assert_unchanged(host, bare)


def test_nothing_to_clear(host: Host, bare: Survey) -> None:
    cleared = host.vcluster("clear", "unknown", "-y", "--verify")
    assert cleared.stdout == "unknown: nothing to clear\nnothing left\n"
    assert_unchanged(host, bare)


@pytest.fixture(scope="module")
def nothing_made(host: Host, bare: Survey) -> Iterator[None]:
    """After all bad requests, the server is as before."""
    yield
    assert_unchanged(host, bare)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason"),
    [
        (["-n", "0"], 2, "--nodes: 0 is out of range"),
        (["-n", "-1"], 2, "--nodes: -1 is out of range"),
        (["-n", "many"], 2, "--nodes: 'many' is not a number"),
        (["-n", "300", "--subnet", "10.9.0.0/24"], 2, "has room for 254"),
        (["-n", "1000"], 3, "the largest -n that fits is"),
        (["--name", "my lab"], 2, "is not a name"),
        (["--name", "../x"], 2, "is not a name"),
        (["--name", "-x"], 2, "is not a name"),
        (["--name", "x" * 64], 2, "has 64 characters"),
        (["--name", "läb"], 2, "is not a name"),
        (["--names", "a,a"], 2, "is given twice"),
        (["--names", "a b"], 2, "is not a name"),
        (["--names", "<b>"], 2, "is not a name"),
        (["--names", "x: {y}"], 2, "is not a name"),
        (["--subnet", "10.0.0.0/31"], 2, "no room"),
        (["--subnet", "fd00::/64"], 2, "is IPv6"),
        (["--subnet", "0.0.0.0/0"], 2, "too large"),
        (["--mtu", "60"], 2, "MTU 60"),
        (["--mtu", "90000"], 2, "MTU 90000"),
        (["--image", "none"], 2, "image 'none' does not exist"),
        (["--image", "../../etc"], 2, "is not an image"),
        (["--memory", "1"], 2, "--memory"),
        (["--accel", "fast"], 2, "--accel"),
        (["--boot", "warm"], 2, "--boot"),
        (["surplus"], 2, "surplus"),
        (["--no-such-option"], 2, "no-such-option"),
    ],
)
@pytest.mark.usefixtures("nothing_made")
def test_bad_requests(host: Host, arguments: list[str], exit_code: int, reason: str) -> None:
    refused = host.vcluster("local", "create", *arguments, check=False)
    errors = [line for line in refused.stderr.splitlines() if line.startswith("vcluster:")]
    assert refused.returncode == exit_code, refused.stderr
    assert len(errors) == 1
    assert reason in errors[0].replace("No such option", "no-such-option")
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


def test_no_libvirt(host: Host, bare: Survey) -> None:
    uri = "qemu+unix:///system?socket=/no/such/socket"
    refused = host.vcluster("local", "create", "-n", "1", check=False, LIBVIRT_DEFAULT_URI=uri)
    assert refused.returncode == 3
    assert "libvirt does not answer" in refused.stderr
    assert_unchanged(host, bare)


def test_no_permission(host: Host, bare: Survey) -> None:
    argv = ["setpriv", "--bounding-set=-net_admin", *VCLUSTER, "local", "create", "-n", "1"]
    refused = host.server.run(argv, timeout_s=120, check=False)
    assert refused.returncode == 3
    assert "root lacks CAP_NET_ADMIN" in refused.stderr
    assert "docker run --cap-add NET_ADMIN" in refused.stderr
    doctor = host.server.run([*argv[:2], *VCLUSTER, "doctor"], timeout_s=300, check=False)
    assert doctor.returncode == 3
    assert "error   rights: root lacks CAP_NET_ADMIN" in doctor.stdout
    assert_unchanged(host, bare)


def test_no_room_for_state(host: Host, bare: Survey) -> None:
    host.sh("mkdir -p /run/small && mount -t tmpfs -o size=16k small /run/small")
    try:
        refused = host.vcluster("local", "create", "-n", "9", check=False, VCLUSTER_STATE_DIR="/run/small")
        assert refused.returncode == 3
        assert "No space left" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        host.sh("umount /run/small && rmdir /run/small")
    assert_unchanged(host, bare)


def test_no_room_for_disks(host: Host, bare: Survey) -> None:
    folder = "/var/lib/libvirt/images/vcluster/clusters"
    host.sh(f"mkdir -p {folder} && mount -t tmpfs -o size=8m small {folder}")
    try:
        refused = host.vcluster("local", "create", "-n", "1", check=False)
        assert refused.returncode == 3
        assert "MiB on disk" in refused.stderr
    finally:
        host.sh(f"umount {folder} && rmdir {folder}")
    assert_unchanged(host, bare)


def test_kvm_is_tried_before_it_is_used(host: Host, bare: Survey) -> None:
    host.sh("rm -f /var/lib/vcluster/accel.json")
    doctor = host.json("doctor")
    works = any(finding["what"] == "KVM" and finding["level"] == "ok" for finding in doctor)
    if works:
        pytest.skip("KVM works on this machine")
    refused = host.vcluster("local", "create", "-n", "1", "--accel", "kvm", timeout_s=120, check=False)
    assert refused.returncode == 3
    assert "KVM does not work here" in refused.stderr
    assert_unchanged(host, bare)


def assert_unchanged(host: Host, bare: Survey) -> None:
    """Nothing is new, and nothing is gone. Next to a cluster of other tests: nothing has our name."""
    now = survey(host)
    if now["domains"] != bare["domains"]:
        assert "doomed" not in str(now)
        return
    assert changes(now, bare) == {}
