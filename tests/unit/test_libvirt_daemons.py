"""Which daemon of libvirt a server has: libvirtd, or virtqemud and its companions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vcluster.agent import diagnostics, libvirt_daemons


@pytest.fixture
def found(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with these daemons installed, and a socket of each of these, with systemd or without it."""
    installed, running, has_systemd = request.param
    sockets = {name: tmp_path / f"{name}-sock" for name in libvirt_daemons.SOCKETS}
    for name in running:
        sockets[name].touch()
    monkeypatch.setattr(libvirt_daemons, "SOCKETS", sockets)
    monkeypatch.setattr(libvirt_daemons, "SYSTEMD", tmp_path if has_systemd else tmp_path / "absent")
    monkeypatch.setattr(libvirt_daemons, "PROGRAMS", tmp_path / "absent")
    monkeypatch.setattr(shutil, "which", lambda name: name if name in installed else None)


def findings() -> list[tuple[str, str, str]]:
    return [(found["what"], found["detail"], found["fix"]) for found in diagnostics._libvirt()]


@pytest.mark.parametrize(
    "found",
    [
        ({"libvirtd"}, {"libvirtd"}, True),
        ({"virtqemud"}, {"virtqemud"}, True),
        ({"libvirtd", "virtqemud"}, {"virtqemud"}, False),
    ],
    indirect=True,
)
@pytest.mark.usefixtures("found")
def test_one_daemon_with_a_socket_is_enough() -> None:
    assert libvirt_daemons.is_running()
    assert libvirt_daemons.is_open()
    assert findings() == []


BY_SYSTEMD = "systemctl start virtqemud.socket virtnetworkd.socket virtstoraged.socket"


@pytest.mark.parametrize(
    ("found", "finding"),
    [
        (({"libvirtd"}, set(), True), ("libvirtd", "is not running", "systemctl start libvirtd")),
        (({"virtqemud"}, set(), True), ("virtqemud", "is not running", BY_SYSTEMD)),
        ((set(), set(), True), ("libvirtd", "missing; it runs the nodes", "apt-get install libvirt-daemon-system")),
    ],
    indirect=["found"],
)
@pytest.mark.usefixtures("found")
def test_without_a_socket_the_fix_starts_what_is_installed(finding: tuple[str, str, str]) -> None:
    assert not libvirt_daemons.is_open()
    assert findings() == [finding]


@pytest.mark.parametrize(
    ("found", "started"),
    [
        (({"libvirtd"}, set(), False), ["virtlogd", "libvirtd"]),
        (({"virtqemud"}, set(), False), ["virtlogd", "virtstoraged", "virtnetworkd", "virtqemud"]),
    ],
    indirect=["found"],
)
@pytest.mark.usefixtures("found")
def test_without_systemd_the_daemons_are_started_by_hand(started: list[str]) -> None:
    commands = [command.split() for command in libvirt_daemons.start_command().split("; ")]
    assert [name for name, option in commands[1:] if option == "-d"] == started
