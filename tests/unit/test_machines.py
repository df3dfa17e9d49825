"""The pure parts of scripts/machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import whole_machines
from tests.whole_machines import PanicError

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "scripts"))

from machines import identity, kinds, qemu  # noqa: E402  the path to it is set above
from machines.connection import remote  # noqa: E402
from machines.emulator import Emulator  # noqa: E402
from machines.records import Machine  # noqa: E402
from testbeds import caches  # noqa: E402

LISTS = (ROOT / "scripts/lib.sh").read_text()
BARE, PREPARED = kinds.Kind("bookworm", True, 6144), kinds.Kind("bookworm", False, 6144)


def machine(*, index: int = 3, is_on_lan: bool = False) -> Machine:
    return Machine("red", index, BARE, is_on_lan, None, "0123")


# Kinds


def test_the_packages_are_those_that_install_installs() -> None:
    names = kinds.packages(PREPARED)
    assert {"libvirt-daemon-system", "qemu-system-x86", "slirp4netns", "linux-image-amd64"} <= set(names)
    assert len(names) == len(set(names))


def test_a_bare_machine_has_no_package_of_vcluster() -> None:
    names = set(kinds.packages(BARE))
    assert {"libvirt-daemon-system", "qemu-utils", "tmux", "mmdebstrap"}.isdisjoint(names)
    assert {"apparmor", "sudo", "openssh-server"} <= names


def test_a_list_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no list elsewhere"):
        kinds.listed_packages(LISTS, "elsewhere")


def test_a_disk_is_named_by_all_that_it_depends_on() -> None:
    names = {
        kinds.disk_digest(kind, key, images, mirrors)
        for kind in (BARE, PREPARED, kinds.Kind("trixie", False, 6144))
        for key in ("a", "b")
        for images in ([], ["sha256-0"])
        for mirrors in ([], ["http://mirror"])
    }
    assert len(names) == 20  # a bare disk has no guest image
    more = kinds.Kind("bookworm", False, 8192)
    assert kinds.disk_digest(more, "a", [], []) == kinds.disk_digest(PREPARED, "a", [], [])


def test_a_digest_tells_where_a_part_ends() -> None:
    assert caches.digest({"a": b"bc", "d": b""}) != caches.digest({"a": b"b", "cd": b""})


# The cache


def entry(name: str, size: int, used: float) -> caches.Entry:
    return caches.Entry(Path(name), size, used)


@pytest.mark.parametrize(
    ("limit", "in_use", "removed"),
    [
        (100, [], []),
        (60, [], []),
        (59, [], ["old"]),
        (59, ["old"], ["middle"]),
        (1, ["middle"], ["old", "new"]),
        (1, ["old", "middle", "new"], []),
    ],
)
def test_the_least_recently_used_goes_first(limit: int, in_use: list[str], removed: list[str]) -> None:
    found = [entry("new", 10, 30.0), entry("old", 20, 10.0), entry("middle", 30, 20.0)]
    assert [one.name for one in caches.to_remove(found, in_use, limit)] == removed


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "entry"
    with pytest.raises(ZeroDivisionError), caches.unfinished(final) as draft:
        (draft / "file").touch()
        _ = 1 // 0
    assert list(tmp_path.iterdir()) == []
    with caches.unfinished(final) as draft:
        (draft / "file").touch()
        assert not final.exists()
    assert [path.name for path in final.iterdir()] == ["file"]


def test_holes_of_a_file_do_not_count(tmp_path: Path) -> None:
    with (tmp_path / "disk.raw").open("wb") as file:
        file.write(b"x" * 4096)
        file.truncate(1 << 30)
    assert 4096 <= caches.size_bytes(tmp_path) < 1 << 20


# QEMU


def test_two_machines_differ_in_their_ports_and_addresses() -> None:
    one, two = machine(index=0), machine(index=1)
    for attribute in ("port", "address", "tap", "lan_mac"):
        assert getattr(one, attribute) != getattr(two, attribute)


@pytest.mark.parametrize(
    ("keeps_memory", "resumes", "share", "incoming"),
    [(True, False, "share=on", False), (False, True, "share=off", True), (False, False, "share=off", False)],
)
def test_only_a_snapshot_is_written_to(keeps_memory: bool, resumes: bool, share: str, incoming: bool) -> None:
    argv = qemu.arguments(machine(), Path("/x/ram"), keeps_memory=keeps_memory, resumes=resumes)
    backend = next(word for word in argv if word.startswith("memory-backend-file"))
    assert backend.endswith(share)
    assert ("-incoming" in argv) == incoming


def test_the_emulator_uses_files_of_its_own_suite_only(tmp_path: Path) -> None:
    command = Emulator(tmp_path).command
    assert [Path(word).name for word in command if word.startswith(str(tmp_path))] == [
        "ld-linux-x86-64.so.2", "x86_64-linux-gnu", "qemu-system-x86_64", "qemu", "seabios"
    ]  # fmt: skip
    assert command[1:3] == ("--argv0", "qemu-system-x86_64")


def test_sshd_is_reached_by_the_loopback_interface_only() -> None:
    argv = qemu.arguments(machine(), Path("/x/ram"), keeps_memory=False, resumes=True)
    forwarded = [word for word in argv if "hostfwd" in word]
    assert len(forwarded) == 1
    assert "hostfwd=tcp:127.0.0.1:2203-:22" in forwarded[0]


# Identity and commands


def test_the_script_sets_clock_name_and_identity() -> None:
    script = identity.identity_script(machine(), now=1234.5, machine_id="f" * 32)
    for line in ("date --set=@1234.500 >/dev/null", "hostname red", f"echo {'f' * 32} >/etc/machine-id"):
        assert line in script.splitlines()
    assert "eth1" not in script


def test_a_machine_on_the_lan_gets_its_own_address_and_mac() -> None:
    script = identity.identity_script(machine(is_on_lan=True), now=0, machine_id="")
    assert "address 172.31.254.13/24" in script
    assert "hwaddress ether 02:76:63:6d:01:03" in script


def test_the_hosts_file_names_all_machines_once() -> None:
    script = identity.hosts_script([machine(index=0), machine(index=1)])
    assert "/^172\\.31\\.254\\./d" in script  # the lines of an earlier `up`
    assert "172.31.254.10 red\n172.31.254.11 red\n" in script


@pytest.mark.parametrize(
    ("argv", "as_root", "line"),
    [
        (["echo", "a b", "$HOME"], False, "echo 'a b' '$HOME'"),
        (["id"], True, "sudo -H -- id"),
    ],
)
def test_arguments_reach_the_program_as_they_are(argv: list[str], as_root: bool, line: str) -> None:
    assert remote(argv, as_root=as_root) == line


# Tests on machines


@pytest.mark.parametrize(
    ("console", "error"), [("[   9.1] Kernel panic - not syncing\n", PanicError), ("", ValueError)]
)
def test_a_failure_on_a_machine_whose_kernel_panicked(
    console: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_machines, "STATE", tmp_path)
    monkeypatch.setattr(whole_machines, "manage", lambda *_, **__: None)
    with pytest.raises(error), whole_machines.whole_machines("red") as (red,):
        (tmp_path / red.name).mkdir()
        (tmp_path / red.name / "console.log").write_text(console)
        raise ValueError
