"""The owner and mode of /dev/kvm: what install sets, what it leaves alone, and the fix that it prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.scripts.conftest import RECORDS, Checkout

pytestmark = pytest.mark.netns

CLOSED = "/dev/kvm is closed to QEMU's user libvirt-qemu, so each node starts 16 s or more later."


@pytest.fixture(autouse=True)
def closed(plain: Checkout) -> Iterator[None]:
    """Each test starts with a closed device and without a record, and leaves the device open."""
    before = plain.server.path("/etc/group").read_text(), plain.server.path("/etc/passwd").read_text()
    record = plain.server.path(f"{RECORDS}/kvm")
    kept = record.read_text() if record.exists() else None
    record.unlink(missing_ok=True)
    plain.close_kvm()
    yield
    plain.server.path("/etc/group").write_text(before[0])
    plain.server.path("/etc/passwd").write_text(before[1])
    plain.sh("chown root:kvm /dev/kvm; chmod 660 /dev/kvm")
    record.unlink(missing_ok=True)
    if kept is not None:
        record.write_text(kept)


def open_kvm(checkout: Checkout) -> list[str]:
    return checkout.call("open_kvm").stderr.splitlines()


def fix(lines: list[str]) -> str:
    """The command of the printed fix."""
    assert lines[-2] == CLOSED
    assert lines[-1].startswith("Fix: ")
    return lines[-1].removeprefix("Fix: ")


def without_lines(checkout: Checkout, path: str, begin: str) -> None:
    there = checkout.server.path(path)
    there.write_text("".join(line for line in there.read_text().splitlines(True) if not line.startswith(begin)))


def test_the_mode_is_set_once_and_put_back(plain: Checkout) -> None:
    assert len(open_kvm(plain)) == 1
    assert plain.kvm() == "root:kvm 660"
    assert open_kvm(plain) == []
    assert plain.call("restore_kvm_mode").stderr == "the owner and mode of /dev/kvm are as before: 0:0 600\n"
    assert plain.kvm() == "root:root 600"
    assert plain.call("restore_kvm_mode").stderr == ""


def test_a_mode_that_was_changed_since_stays(plain: Checkout) -> None:
    open_kvm(plain)
    plain.sh("chmod 666 /dev/kvm")
    assert plain.call("restore_kvm_mode").stderr == ""
    assert plain.kvm() == "root:kvm 666"


def test_an_open_device_stays_as_it_is(plain: Checkout) -> None:
    plain.sh("chmod 666 /dev/kvm")
    assert open_kvm(plain) == []
    assert plain.kvm() == "root:root 666"


def test_without_the_device_nodes_are_emulated(plain: Checkout) -> None:
    plain.sh("rm /dev/kvm")
    assert open_kvm(plain) == ["/dev/kvm does not exist: nodes are emulated, which works but is slow"]
    plain.close_kvm()


def test_without_the_user_of_qemu_nothing_is_changed(plain: Checkout) -> None:
    without_lines(plain, "/etc/passwd", "libvirt-qemu:")
    assert open_kvm(plain) == []
    assert plain.kvm() == "root:root 600"


@contextmanager
def udev(checkout: Checkout) -> Iterator[None]:
    """A process that has the name of udev's."""
    checkout.sh("cp /bin/sleep /run/systemd-udevd")
    process = checkout.server.popen(["/run/systemd-udevd", "600"])
    try:
        checkout.sh("for i in $(seq 500); do grep -qsx systemd-udevd /proc/*/comm && exit; sleep 0.01; done; exit 1")
        yield
    finally:
        process.terminate()
        process.communicate(timeout=300)


def test_where_udev_runs_the_fix_is_printed(plain: Checkout) -> None:
    with udev(plain):
        command = fix(open_kvm(plain))
    assert plain.kvm() == "root:root 600"
    plain.sh(command)
    assert plain.call("kvm_is_closed", check=False).returncode != 0


def test_the_printed_fix_works_without_the_group(plain: Checkout) -> None:
    without_lines(plain, "/etc/group", "kvm:")
    command = fix(open_kvm(plain))
    assert command.startswith("groupadd --system kvm && ")
    plain.sh(command)
    assert plain.call("kvm_is_closed", check=False).returncode != 0


def test_the_printed_fix_works_when_the_user_is_not_in_the_group(plain: Checkout) -> None:
    passwd = plain.server.path("/etc/passwd")
    lines = [line.split(":") for line in passwd.read_text().splitlines()]
    passwd.write_text(
        "".join(":".join([*f[:3], "65534" if f[0] == "libvirt-qemu" else f[3], *f[4:]]) + "\n" for f in lines)
    )
    command = fix(open_kvm(plain))
    assert command == "usermod --append --groups kvm libvirt-qemu"
    plain.sh(command)
    assert plain.call("kvm_is_closed", check=False).returncode != 0


def test_the_printed_fix_carries_sudo(plain: Checkout) -> None:
    with udev(plain):
        done = plain.run_argv(
            ["bash", "-c", '. "$0"; open_kvm', str(plain.path / "scripts/lib.sh")], env={"SUDO_USER": "operator"}
        )
    command = fix(done.stderr.splitlines())
    assert command == "sudo chown root:kvm /dev/kvm && sudo chmod 0660 /dev/kvm"
    plain.sh(command, user="operator")
    assert plain.kvm() == "root:kvm 660"
