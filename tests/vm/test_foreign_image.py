"""A node of a foreign image, which has its own user with a password and does not let root in."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import Cluster, Host, changes, survey
from vcluster.images.build import PARTITION_START
from vcluster.images.store import DEFAULT_ROOT
from vcluster.model.spec import DEFAULT_IMAGE

pytestmark = pytest.mark.vm

PASSWORD = "correct horse; 'battery' $staple # %"
IMAGES = "/var/lib/libvirt/images/foreign"
# What makes the image foreign, by path: the mode, the group, and the text of a new file.
NEW = {
    "/etc/ssh/sshd_config.d/00-teacher.conf": (0o644, 0, "PermitRootLogin no\nPasswordAuthentication yes\n"),
    "/etc/sudoers.d/teacher": (0o440, 0, "teacher ALL=(ALL) ALL\n"),
    "/etc/pam.d/sshd": (0o644, 0, "@include common-auth\n@include common-account\n@include common-session\n"),
}
APPENDED = {  # the same, but the text follows that of the image
    "/etc/passwd": (0o644, 0, "teacher:x:1500:1500::/home/teacher:/bin/bash\n"),
    "/etc/group": (0o644, 0, "teacher:x:1500:\n"),
    "/etc/shadow": (0o640, 42, "teacher:{hash}:20000:0:99999:7:::\n"),
}


@pytest.fixture(scope="module")
def foreign(cluster: Cluster) -> Iterator[Host]:
    """The server with one more image, in another folder."""
    host = cluster.host
    folder = host.server.path(IMAGES)
    folder.mkdir()
    try:
        disk = folder / "disk.raw"
        subprocess.run(
            ["qemu-img", "convert", "-O", "raw", built_image() / "disk.qcow2", disk], check=True, timeout=120
        )
        add_files(disk, folder, hashed(host))
        host.vcluster("image", "import", f"{IMAGES}/disk.raw", "--name", "foreign", VCLUSTER_IMAGE_DIR=IMAGES)
        disk.unlink()
        complete(folder / "names" / "foreign")
        host.vcluster("image", "verify", "foreign", VCLUSTER_IMAGE_DIR=IMAGES)
        yield host
    finally:
        host.vcluster("clear", "foreign", "-y", check=False)
        shutil.rmtree(folder)


def built_image() -> Path:
    """The folder of the image that was built on this machine."""
    return (DEFAULT_ROOT / "names" / DEFAULT_IMAGE).resolve()


def hashed(host: Host) -> str:
    """The hash of the password, as in /etc/shadow."""
    host.server.set_password("student", PASSWORD)
    lines = host.server.path("/etc/shadow").read_text().splitlines()
    return next(fields[1] for line in lines if (fields := line.split(":"))[0] == "student")


def add_files(disk: Path, scratch: Path, password: str) -> None:
    """Put the files into a disk that is not in use."""
    device = f"{disk}?offset={PARTITION_START}"
    commands = ["mkdir /home/teacher", "sif /home/teacher uid 1500", "sif /home/teacher gid 1500"]
    files = dict(NEW)
    for path, (mode, group, text) in APPENDED.items():
        shown = subprocess.run(["debugfs", "-R", f"cat {path}", device], capture_output=True, text=True, check=True)
        files[path] = (mode, group, shown.stdout + text.format(hash=password))
    for number, (path, (mode, group, text)) in enumerate(files.items()):
        (scratch / f"{number}.part").write_text(text)
        commands += [f"rm {path}", f"write {scratch}/{number}.part {path}"]
        commands += [f"sif {path} mode 0{0o100000 | mode:o}", f"sif {path} gid {group}"]
    # debugfs continues after an error; to remove a missing file is one, and does no harm.
    argv = ["debugfs", "-w", "-f", "-", device]
    subprocess.run(argv, input="\n".join(commands), capture_output=True, text=True, check=True)
    for number in range(len(files)):
        (scratch / f"{number}.part").unlink()


def complete(image: Path) -> None:
    """Let it boot directly from its kernel, as the built image does: an imported image boots from its boot sector."""
    for name in ("vmlinuz", "initrd.img"):
        shutil.copyfile(built_image() / name, image / name)
    manifest, known = (json.loads((folder / "manifest.json").read_text()) for folder in (image, built_image()))
    manifest["files"] = known["files"] | manifest["files"]
    for key in ("kernel_cmdline", "features"):
        manifest[key] = known[key]
    (image / "manifest.json").write_text(json.dumps(manifest))


CREATE = (
    "local", "create", "-n", "1", "--name", "foreign", "--image", "foreign", "--image-user", "teacher",
    "--image-password", "env:TEACHER_PASSWORD", "--timeout", "200",
)  # fmt: skip


@pytest.mark.parametrize(
    ("env", "exit_code", "reason"),
    [
        ({}, 3, "the variable TEACHER_PASSWORD for the password of"),
        pytest.param(
            {"TEACHER_PASSWORD": "wrong"}, 3, "node1 refuses the password for user teacher", marks=pytest.mark.rare
        ),
    ],
)
def test_without_the_password_nothing_is_made(foreign: Host, env: dict[str, str], exit_code: int, reason: str) -> None:
    before = survey(foreign)
    refused = foreign.vcluster(*CREATE, timeout_s=220, check=False, VCLUSTER_IMAGE_DIR=IMAGES, **env)
    errors = [line for line in refused.stderr.splitlines() if line.startswith("vcluster:")]
    assert refused.returncode == exit_code, refused.stderr
    assert len(errors) == 1
    assert reason in errors[0]
    assert ("boot" in refused.stderr) == bool(env), "a missing password must be found before anything is made"
    assert changes(survey(foreign), before) == {}


def test_an_image_that_changed_makes_nothing_until_it_is_verified(foreign: Host) -> None:
    before = survey(foreign)
    foreign.sh(f"touch {IMAGES}/sha256-*/disk.qcow2")
    env = {"VCLUSTER_IMAGE_DIR": IMAGES, "TEACHER_PASSWORD": PASSWORD}
    refused = foreign.vcluster(*CREATE, check=False, **env)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith("vcluster: image foreign cannot be used: ")
    assert line.endswith("/disk.qcow2 was changed after it was stored (vcluster image verify foreign)")
    assert changes(survey(foreign), before) == {}
    assert foreign.vcluster("image", "verify", "foreign", **env).stdout == "image foreign: unchanged\n"


def test_the_password_installs_our_key_and_then_no_password_is_accepted(foreign: Host) -> None:
    before = survey(foreign)
    foreign.vcluster(*CREATE, timeout_s=220, VCLUSTER_IMAGE_DIR=IMAGES, TEACHER_PASSWORD=PASSWORD)
    assert foreign.json("status", "foreign")["state"] == "ready"
    assert foreign.json("status", "lab")["state"] == "ready"

    config = foreign.vcluster("ssh-config", "--name", "foreign", "--path").stdout.strip()
    node = Cluster(foreign, "foreign", ("node1",), config)
    assert node.ssh("node1", "id -un", user="root") == "root\n"
    assert node.ssh("node1", "id -u; cat hostfile") == "2000\nnode1:1\n"
    # The user still exists, but sshd accepts no password.
    assert node.ssh("node1", "id -u teacher") == "1500\n"
    login = ["ssh", "-F", config, "-o", "PubkeyAuthentication=no", "-o", "PasswordAuthentication=yes"]
    for user in ("teacher", "root", "mpiuser"):
        argv = [*login, "-o", "BatchMode=yes", "-l", user, "node1", "true"]
        refused = foreign.server.run(argv, timeout_s=120, check=False)
        assert refused.stderr.strip().endswith("Permission denied (publickey).")

    places = "/var/lib/vcluster /var/lib/libvirt/images/vcluster/clusters /var/log/libvirt /etc/libvirt"
    assert "ledger.json" in foreign.sh(f"grep -rlF TEACHER_PASSWORD {places}")
    assert foreign.sh(f"grep -rlF {shlex.quote(PASSWORD)} {places} || true") == ""
    foreign.verify("foreign", VCLUSTER_IMAGE_DIR=IMAGES)
    cleared = foreign.vcluster("clear", "foreign", "-y", "--verify")
    assert cleared.stdout == "foreign: cleared\nnothing left\n"
    assert changes(survey(foreign), before) == {}
