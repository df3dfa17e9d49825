"""The guest program that applies actions: its first run makes the changes, its second run changes nothing."""

from __future__ import annotations

import errno
import itertools
import os
import pwd
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vcluster.guest import apply
from vcluster.stages.clocks import APART_MAX_S

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(autouse=True)
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for each time that all files were written to the disk. The disk here is that of the machine."""
    found: list[str] = []
    monkeypatch.setattr(os, "sync", lambda: found.append("sync"))
    return found


def file(path: Path, text: str, mode: int = 0o644) -> dict[str, object]:
    return {"do": "file", "path": str(path), "text": text, "owner": ME, "mode": mode}


def test_a_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    action = file(path, "hello\n", 0o600)
    assert apply.apply([action]) == [str(path)]
    assert path.read_text() == "hello\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert apply.apply([action]) == []


def test_changes_are_on_the_disk_at_the_end(tmp_path: Path, syncs: list[str]) -> None:
    actions = [file(tmp_path / name, "hello\n") for name in ("one", "two")]
    apply.apply(actions)
    assert syncs == ["sync"]
    apply.apply(actions)
    assert syncs == ["sync"]


@pytest.mark.parametrize("damage", [lambda path: path.write_text("other"), lambda path: path.chmod(0o666), Path.unlink])
def test_a_damaged_file_is_fixed(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "file"
    apply.apply([file(path, "hello\n")])
    damage(path)  # type: ignore[operator]
    assert apply.apply([file(path, "hello\n")]) == [str(path)]
    assert path.read_text() == "hello\n"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_directory(tmp_path: Path) -> None:
    action = {"do": "directory", "path": str(tmp_path / "a" / "b"), "owner": ME, "mode": 0o700}
    assert apply.apply([action]) == [str(tmp_path / "a" / "b")]
    assert apply.apply([action]) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "new /target x\n"),
        ("root / ext4\n", "root / ext4\nnew /target x\n"),
        ("root / ext4", "root / ext4\nnew /target x\n"),
        ("# a comment\nold /target y\nroot / ext4\n", "# a comment\nroot / ext4\nnew /target x\n"),
    ],
)
def test_a_line_of_a_table(tmp_path: Path, before: str, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fstab"
    path.write_text(before)
    monkeypatch.setattr(
        os, "fchown", lambda *_: None
    )  # the table belongs to root, and the test may run as another user
    action = {"do": "line", "path": str(path), "key": "/target", "text": "new /target x\n"}
    assert apply.apply([action]) == [str(path)]
    assert path.read_text() == after
    assert apply.apply([action]) == []


def test_to_an_nfs_server_every_user_of_a_client_is_the_clusters_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {"root": (os.geteuid(), os.getegid()), "teacher": (1500, 1600)}
    monkeypatch.setattr(apply, "ids_of", ids.__getitem__)
    table = tmp_path / "vcluster.exports"
    table.write_text("/exports 10.0.0.0/24(rw,sync,root_squash,no_subtree_check)\n")  # of an earlier version
    action = {"do": "export", "path": str(table), "folder": "/exports", "clients": "10.0.0.0/24", "owner": "teacher"}
    assert apply.apply([action]) == [str(table)]
    options = "rw,sync,all_squash,anonuid=1500,anongid=1600,no_subtree_check"
    assert table.read_text() == f"/exports 10.0.0.0/24({options})\n"
    assert apply.apply([action]) == []


def test_a_command_runs_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(apply, "run", ran.append)
    path = tmp_path / "table"
    actions = [file(path, "x"), {"do": "run", "argv": ["reload"], "if_changed": [str(path)]}]
    apply.apply(actions)
    apply.apply(actions)
    assert ran == [["reload"]]


def test_a_user_with_another_uid_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="exists with another uid"):
        apply.apply([{"do": "user", "name": ME, "uid": os.getuid() + 1, "home": "/"}])


def test_the_user_of_an_imported_image_may_have_any_uid() -> None:
    assert apply.apply([{"do": "user", "name": ME, "uid": None, "home": "/"}]) == []


class Probe:
    """A socket of a machine whose only address is 10.0.0.2."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None: ...

    def bind(self, address: tuple[str, int]) -> None:
        if address != ("10.0.0.2", 0):
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")


def test_a_disk_that_is_checked_at_the_boot_is_mounted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    mounted: dict[str, str] = {}

    def run(argv: list[str]) -> None:
        ran.append(argv)
        if len(ran) < 3:
            raise RuntimeError("/dev/vdc: Can't open blockdev")
        mounted["/exports"] = "/dev/vdc"

    monkeypatch.setattr(apply, "run", run)
    monkeypatch.setattr(apply, "mounts", lambda: mounted)
    monkeypatch.setattr(apply, "DISK_POLL_S", 0.0)
    apply.mount_disk("/dev/vdc", "/exports")
    assert ran == [["mount", "/dev/vdc", "/exports"]] * 3
    apply.mount_disk("/dev/vdc", "/exports")  # systemd may have mounted it meanwhile
    assert len(ran) == 3


def test_a_disk_that_stays_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: list[str]) -> None:
        raise RuntimeError("/dev/vdc: Can't open blockdev")

    clock = itertools.count(0, 30)
    monkeypatch.setattr(apply, "run", run)
    monkeypatch.setattr(apply, "mounts", dict)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(RuntimeError, match="Can't open blockdev"):
        apply.mount_disk("/dev/vdc", "/exports")


def test_a_present_address_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", Probe)
    assert apply.apply([{"do": "address", "address": "10.0.0.2"}]) == []


def test_an_address_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    polls = iter([False, False, True])
    monkeypatch.setattr(apply, "is_own", lambda _: next(polls))
    monkeypatch.setattr(apply, "ADDRESS_POLL_S", 0.0)
    assert apply.apply([{"do": "address", "address": "10.0.0.2"}]) == []
    assert list(polls) == []


def test_an_address_that_never_appears(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(socket, "socket", Probe)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(RuntimeError, match=r"timed out after 60 s waiting for the address 10\.0\.0\.3"):
        apply.apply([{"do": "address", "address": "10.0.0.3"}])


class Clocks:
    """The clocks of a node and of its server, and the real-time clock of the node, which is late by `late_s`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, path: Path, *, node: float, server: float, late_s: float = 0.0
    ) -> None:
        self.node, self._server, self._path, self._late_s = node, server, path, late_s
        self._second = 0
        monkeypatch.setattr(apply, "HARDWARE_CLOCK", str(path))
        monkeypatch.setattr(apply, "is_synchronised", lambda: False)
        monkeypatch.setattr(time, "time", lambda: self.node)
        monkeypatch.setattr(time, "monotonic", lambda: self._server)  # it stands still while the machine is busy
        monkeypatch.setattr(time, "sleep", self.advance)
        monkeypatch.setattr(time, "clock_settime", self.set)
        self.advance(0)

    def advance(self, seconds: float) -> None:
        self.node += seconds
        self._server += seconds
        if (second := int(self._server - self._late_s)) != self._second:
            self._path.write_text(f"{second}\n")
            self._second = second

    def set(self, clock: int, seconds: float) -> None:
        assert clock == time.CLOCK_REALTIME
        self.node = seconds

    @property
    def apart_s(self) -> float:
        return self.node - self._server


@pytest.mark.parametrize("ahead_s", [0, 300, -300])
@pytest.mark.parametrize("late_s", [0.0, 0.4, 0.99])
@pytest.mark.parametrize("apart_s", [-600.0, -2.3, 2.3, 86400.0])
def test_a_wrong_clock_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart_s: float, late_s: float, ahead_s: int
) -> None:
    clocks = Clocks(
        monkeypatch, tmp_path / "rtc", node=1e9 + apart_s - ahead_s + 0.25, server=1e9 + 0.25, late_s=late_s
    )
    action = {"do": "clock", "ahead_s": ahead_s}
    assert apply.apply([action]) == ["clock"]
    assert abs(clocks.apart_s + ahead_s) < 0.6
    assert apply.apply([action]) == []


@pytest.mark.parametrize("late_s", [0.0, 0.4, 0.99])
@pytest.mark.parametrize("apart_s", [-0.15, 0.0, 0.15])
def test_a_right_clock_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart_s: float, late_s: float) -> None:
    clocks = Clocks(monkeypatch, tmp_path / "rtc", node=1e9 + apart_s, server=1e9, late_s=late_s)
    assert apply.apply([{"do": "clock", "ahead_s": 0}]) == []
    assert clocks.node == 1e9 + apart_s


ROUNDING_MAX_S = 0.5  # of `ServerClocks.ahead_s`, for a node that is not on the head's server


def test_nodes_whose_clocks_stay_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of one node is as much ahead as one that stays can be, and that of the other as much behind."""
    staying = [0.0]
    for late_s, phase_s, tenths in itertools.product(
        (0.0, 0.99), (0.0, 0.5, 0.99), (*range(-30, -9, 2), *range(10, 31, 2))
    ):
        start_s = 1e9 + phase_s
        clocks = Clocks(monkeypatch, tmp_path / "rtc", node=start_s + tenths / 10, server=start_s, late_s=late_s)
        if apply.apply([{"do": "clock", "ahead_s": 0}]) == []:
            staying.append(clocks.apart_s)
    assert max(staying) > 1.4  # the comparison is up to 1 s wrong
    assert max(staying) - min(staying) + ROUNDING_MAX_S <= APART_MAX_S


@pytest.mark.parametrize("fault", ["absent", "unreadable", "no time"])
def test_a_clock_of_the_hardware_without_a_time_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    rtc = tmp_path / "rtc"
    clocks = Clocks(monkeypatch, rtc, node=1e9 - 600, server=1e9)
    rtc.unlink()
    if fault == "unreadable":
        rtc.mkdir()  # read by root, too, it raises OSError
    elif fault == "no time":
        rtc.write_text("\n")
    assert apply.apply([{"do": "clock", "ahead_s": 0}]) == []
    assert clocks.node == 1e9 - 600


@pytest.mark.parametrize(
    ("apart_s", "changed"), [(-600.0, ["clock"]), (-5.0, ["clock"]), (-2.9, []), (0.0, []), (2.9, []), (5.0, ["clock"])]
)
def test_a_synchronised_clock_is_set_only_if_the_check_would_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart_s: float, changed: list[str]
) -> None:
    """After a pause of a node, its kernel still reports that NTP synchronises the clock."""
    clocks = Clocks(monkeypatch, tmp_path / "rtc", node=1e9 + apart_s, server=1e9)
    monkeypatch.setattr(apply, "is_synchronised", lambda: True)
    assert apply.apply([{"do": "clock", "ahead_s": 0}]) == changed
    assert abs(clocks.apart_s - (0.0 if changed else apart_s)) < 0.6


def test_a_unit_is_enabled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "UNITS", str(tmp_path))
    (tmp_path / "my.service").touch()
    for _ in range(2):
        apply.enable("my.service")
        assert (tmp_path / "multi-user.target.wants/my.service").readlink() == tmp_path / "my.service"


def test_a_missing_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "UNITS", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"this system has no unit none\.service"):
        apply.enable("none.service")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("server", [{}, {"address": "192.0.2.1"}])
def test_mount_8_is_run_when_the_system_call_fails(
    server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It mounts at a place that no user can change."""
    ran: list[list[str]] = []
    bound: list[str] = []
    monkeypatch.setattr(apply, "run", ran.append)
    monkeypatch.setattr(apply, "bind", lambda source, _: bound.append(source))
    monkeypatch.setattr(apply, "MOUNT_POINT", str(tmp_path / "point"))
    action = {"do": "mount", "source": "a:/b", "target": str(tmp_path), "type": "none", "options": "rw,hard"}
    assert apply.apply([action | server]) == [f"mount {tmp_path}"]
    assert ran == [
        ["mount", "-t", "none", "-o", "rw,hard", "a:/b", str(tmp_path / "point")],
        ["umount", str(tmp_path / "point")],
    ]
    assert bound == [str(tmp_path / "point")]


def test_mounts_are_recognised() -> None:
    with Path("/proc/self/mounts").open() as mounts:
        source, target = mounts.read().splitlines()[-1].split()[:2]
    assert apply.mounts()[target] == source
    assert "/no/such/folder" not in apply.mounts()


LEASES = [
    "0 02:00:00:00:00:02 10.0.0.2 node2 *\n",
    "0 02:00:00:00:00:03 10.0.0.3 node3 *\n",
    "1700000000 02:00:00:00:00:99 10.0.0.210 passer-by ff:00\n",
    "duid 00:01:00:01\n",
]


@pytest.mark.parametrize(
    ("hosts", "left"),
    [
        ({"10.0.0.2": "02:00:00:00:00:02", "10.0.0.3": "02:00:00:00:00:03"}, [0, 1, 2, 3]),
        ({"10.0.0.2": "02:00:00:00:00:02"}, [0, 2, 3]),
        ({"10.0.0.2": "02:00:00:00:00:02", "10.0.0.3": "02:00:00:00:00:04"}, [0, 2, 3]),
        ({}, [2, 3]),
    ],
)
def test_leases_of_removed_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: dict[str, str], left: list[int]
) -> None:
    path = tmp_path / "leases"
    ran: list[list[str]] = []
    monkeypatch.setattr(apply, "run", ran.append)
    unknown_hosts = ["10.0.0.205", "10.0.0.254"]
    action = {"do": "leases", "path": str(path), "unit": "x.service", "hosts": hosts, "unknown_hosts": unknown_hosts}
    assert apply.apply([action]) == []  # no lease yet
    path.write_text("".join(LEASES))
    has_removed = len(left) < len(LEASES)
    assert apply.apply([action]) == ([str(path)] if has_removed else [])
    assert path.read_text() == "".join(LEASES[at] for at in left)
    assert ran == ([["systemctl", "stop", "x.service"]] if has_removed else [])
    assert apply.apply([action]) == []


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "Hit:1 x\nW: Failed to fetch http://deb.example/: Could not connect\nE: Unable to locate package mpich\n",
            "W: Failed to fetch http://deb.example/: Could not connect; E: Unable to locate package mpich",
        ),
        ("Killed\n", "Killed"),
        (None, "it did not run"),
    ],
)
def test_missing_programs_are_named_with_the_reason(tmp_path: Path, log: str | None, reason: str) -> None:
    path = tmp_path / "log"
    if log:
        path.write_text(log)
    action = {"do": "programs", "names": ["sh", "no-such-program", "nor-this"], "log": str(path), "unless": "/none"}
    with pytest.raises(RuntimeError) as raised:
        apply.apply([action])
    assert str(raised.value) == f"no-such-program, nor-this not installed at the first boot; apt-get: {reason}"
    assert apply.apply([action | {"names": ["sh"]}]) == []


def test_programs_that_the_user_removed_later_are_not_required(tmp_path: Path) -> None:
    action = {"do": "programs", "names": ["no-such-program"], "log": "/none", "unless": str(tmp_path / "settings")}
    with pytest.raises(RuntimeError, match="no-such-program not installed"):
        apply.apply([action])
    (tmp_path / "settings").touch()
    assert apply.apply([action]) == []


def test_other_lines_of_a_table_keep_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "fstab"
    before = b"# d\xe9j\xe0\r\nserver:/d\xe9j\xe0 /mnt/d\xe9j\xe0 nfs\n"
    path.write_bytes(before)
    changed: list[str] = []
    apply.do_line({"path": str(path), "key": "/data", "text": "disk /data ext4\n"}, changed)
    assert changed == [str(path)]
    assert path.read_bytes() == before + b"disk /data ext4\n"


def test_a_service_is_removed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(apply, "run", ran.append)
    monkeypatch.setattr(apply, "UNITS", str(tmp_path))
    unit, program = tmp_path / "my.service", tmp_path / "my.py"
    unit.touch()
    action = {"do": "no_service", "unit": "my.service", "paths": [str(unit), str(program)]}
    assert apply.apply([action]) == ["my.service"]
    assert ran == [["systemctl", "disable", "--now", "my.service"], ["systemctl", "daemon-reload"]]
    assert not unit.exists()
    assert apply.apply([action]) == []


@pytest.mark.parametrize("is_unit_lost", [False, True], ids=["killed", "root removed the unit"])
def test_a_service_is_removed_after_an_end_at_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_unit_lost: bool
) -> None:
    """systemctl fails without the unit, so a second run fails if a first one removed the unit before another file."""
    unit, program, link = (tmp_path / name for name in ("my.service", "my.py", "multi-user.target.wants/my.service"))
    link.parent.mkdir()
    for path in (unit, program):
        path.touch()
    link.symlink_to(unit)
    stopped: list[list[str]] = []

    def run(argv: list[str]) -> None:
        if argv[1] == "disable":
            if not unit.exists():
                raise RuntimeError("systemctl disable --now my.service: Unit file my.service does not exist.")
            link.unlink(missing_ok=True)

    def unlink(path: str) -> None:
        Path(path).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(apply, "UNITS", str(tmp_path))
    monkeypatch.setattr(apply, "run", run)
    monkeypatch.setattr(apply.subprocess, "run", lambda argv, **_: stopped.append(argv))
    action = {"do": "no_service", "unit": "my.service", "paths": [str(unit), str(program)]}
    if is_unit_lost:
        unit.unlink()
    else:
        with monkeypatch.context() as patched:
            patched.setattr(apply, "os", SimpleNamespace(**{**vars(os), "unlink": unlink}))
            with pytest.raises(KeyboardInterrupt):
                apply.apply([action])
    assert apply.apply([action]) == ["my.service"]
    assert [path for path in (unit, program, link) if path.is_symlink() or path.exists()] == []
    assert stopped == ([["systemctl", "stop", "my.service"]] if is_unit_lost else [])
