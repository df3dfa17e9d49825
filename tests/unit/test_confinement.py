"""AppArmor profiles of domains: written before libvirt writes them, labelled, and found by their label."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcluster.agent import confinement
from vcluster.errors import VclusterError

UUID = "54facf48-3f02-56b3-8654-5c8d97656075"
ROOT = "/var/lib/libvirt/images/vcluster/snapshots"
OTHER = "00000000-0000-4000-8000-000000000001"
LABEL = {"cluster": "lab", "domain": "lab.node1", "by": "2360ac0d"}
TEMPLATE = """#
# This profile is for the domain whose UUID matches this file.
#

#include <tunables/global>

profile LIBVIRT_TEMPLATE flags=(attach_disconnected) {
  #include <abstractions/libvirt-qemu>
}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enabled = tmp_path / "enabled"
    enabled.write_text("Y\n")
    (tmp_path / "TEMPLATE.qemu").write_text(TEMPLATE)
    monkeypatch.setattr(confinement, "FOLDER", tmp_path)
    monkeypatch.setattr(confinement, "APPARMOR_ENABLED", enabled)
    monkeypatch.setattr(confinement, "SELINUX_ENFORCES", tmp_path / "enforce")
    return tmp_path


def test_a_profile_has_the_rules_of_its_domain_only(folder: Path) -> None:
    assert confinement.confinement() == "apparmor"
    assert confinement.write_profile(UUID, LABEL, [["/srv/my snapshots/key/ram", "r"]])
    text = (folder / f"libvirt-{UUID}").read_text()
    assert text == (
        '# vcluster {"cluster": "lab", "domain": "lab.node1", "by": "2360ac0d"}\n'
        + TEMPLATE.replace("LIBVIRT_TEMPLATE", f"libvirt-{UUID}").replace(
            "qemu>\n}",
            f'qemu>\n  #include <libvirt/libvirt-{UUID}.files>\n  "/srv/my snapshots/key/ram" r,\n}}',
        )
    )


def test_profiles_are_found_by_their_label_and_removed_with_their_list_of_files(folder: Path) -> None:
    confinement.write_profile(UUID, LABEL, [])
    (folder / f"libvirt-{UUID}.files").write_text("  # DO NOT EDIT\n")
    (folder / f"libvirt-{OTHER}").write_text(TEMPLATE)  # of another program
    assert confinement.profiles() == [LABEL | {"uuid": UUID}]
    confinement.remove_profiles([UUID])
    confinement.remove_profiles([UUID])
    assert {path.name for path in folder.glob("libvirt-*")} == {f"libvirt-{OTHER}"}


@pytest.mark.parametrize("missing", ["enabled", "TEMPLATE.qemu"])
def test_nothing_is_written_without_apparmor(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    assert confinement.confinement() == ""
    assert not confinement.write_profile(UUID, LABEL, [])
    assert confinement.profiles() == []


@pytest.mark.parametrize(("enforce", "expected"), [("1\n", "selinux"), ("0\n", "")])
def test_selinux_is_recognised_when_it_enforces(folder: Path, enforce: str, expected: str) -> None:
    (folder / "enabled").write_text("N\n")
    (folder / "enforce").write_text(enforce)
    assert confinement.confinement() == expected


@pytest.mark.parametrize("path", ['/a"b', "/a\nb", "/a*b", "/a?b", "/a{b}", "/a[b]", "/a^b", "/@{HOME}", "/a\\b"])
def test_a_path_that_means_more_to_apparmor_is_refused(folder: Path, path: str) -> None:
    with pytest.raises(VclusterError, match="cannot contain the path"):
        confinement.write_profile(UUID, LABEL, [[path, "r"]])
    assert not list(folder.glob("libvirt-*"))


@pytest.mark.parametrize("uuid", ["", "../../passwd", f"{UUID}/x", UUID.upper()])
def test_an_invalid_uuid_is_refused(uuid: str) -> None:
    with pytest.raises(VclusterError, match="is not a domain's UUID"):
        confinement.write_profile(uuid, LABEL, [])
    with pytest.raises(VclusterError, match="is not a domain's UUID"):
        confinement.remove_profiles([uuid])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# vcluster",
        '# vcluster {"cluster": "la',
        "# vcluster []",
        '# vcluster {"cluster": "lab", "domain": "lab.node1"}',
        '# vcluster {"cluster": 1, "domain": "lab.node1", "by": "x"}',
        "# vcluster " + "[" * 5000,
    ],
)
def test_a_file_without_a_complete_label_is_not_ours(folder: Path, text: str) -> None:
    (folder / f"libvirt-{UUID}").write_text(text)
    assert confinement.profiles() == []


def test_a_link_to_nothing_is_not_a_profile(folder: Path) -> None:
    (folder / f"libvirt-{UUID}").symlink_to(folder / "nothing")
    assert confinement.profiles() == []


def test_a_rule_has_the_path_that_apparmor_sees(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "images").symlink_to(tmp_path / "disk")
    confinement.write_profile(UUID, LABEL, [[str(tmp_path / "images" / "ram"), "r"]])
    assert f'"{tmp_path}/disk/ram" r,' in (folder / f"libvirt-{UUID}").read_text()


def test_a_missing_program_is_an_obstacle_to_clones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del folder
    monkeypatch.setattr(confinement.shutil, "which", lambda name: None if name == "virsh" else f"/usr/bin/{name}")
    assert confinement.clone_obstacle(ROOT) == "missing programs: virsh"


def test_what_qemu_or_apparmor_cannot_do_is_an_obstacle_to_clones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert confinement.clone_obstacle(ROOT) == ""
    assert confinement.clone_obstacle("/srv/a,b") == (
        "QEMU cannot use a memory file in /srv/a,b, because the path contains a comma"
    )
    assert confinement.clone_obstacle("/srv/a*b") == "a rule of AppArmor cannot contain the path '/srv/a*b'"
    (folder / "TEMPLATE.qemu").write_text("profile other {\n}\n")
    assert confinement.clone_obstacle(ROOT) == f"{folder}/TEMPLATE.qemu is not a template of AppArmor profiles"
    (folder / "enabled").write_text("N\n")
    assert confinement.clone_obstacle(ROOT) == ""
    assert confinement.clone_obstacle("/srv/a*b") == ""
