"""A node made from an image of somebody else's, which knows its own user with a password, and keeps root out."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import Cluster, Host, survey
from vcluster.images.build import PARTITION_START
from vcluster.images.store import DEFAULT_IMAGE, DEFAULT_ROOT

pytestmark = pytest.mark.vm

PASSWORD = "correct horse; 'battery' $staple # %"
IMAGES = "/var/lib/libvirt/images/theirs"
# What makes it somebody else's: by path the mode, the group, and the text, or what comes behind the text that is there.
NEW = {
    "/etc/ssh/sshd_config.d/00-teacher.conf": (0o644, 0, "PermitRootLogin no\nPasswordAuthentication yes\n"),
    "/etc/sudoers.d/teacher": (0o440, 0, "teacher ALL=(ALL) ALL\n"),
    "/etc/pam.d/sshd": (0o644, 0, "@include common-auth\n@include common-account\n@include common-session\n"),
}
MORE = {
    "/etc/passwd": (0o644, 0, "teacher:x:1500:1500::/home/teacher:/bin/bash\n"),
    "/etc/group": (0o644, 0, "teacher:x:1500:\n"),
    "/etc/shadow": (0o640, 42, "teacher:{hash}:20000:0:99999:7:::\n"),
}


@pytest.fixture(scope="module")
def theirs(cluster: Cluster) -> Iterator[Host]:
    """The server with one more image, in a folder of its own."""
    host = cluster.host
    folder = host.server.path(IMAGES)
    folder.mkdir()
    try:
        disk = folder / "disk.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", ours() / "disk.qcow2", disk], check=True, timeout=120)
        alienate(disk, folder, hashed(host))
        host.vcluster("image", "import", f"{IMAGES}/disk.raw", "--name", "theirs", VCLUSTER_IMAGE_DIR=IMAGES)
        disk.unlink()
        complete(folder / "names" / "theirs")
        yield host
    finally:
        host.vcluster("clear", "theirs", "-y", check=False)
        shutil.rmtree(folder)


def ours() -> Path:
    """Where the machine keeps the image that was built."""
    return (DEFAULT_ROOT / "names" / DEFAULT_IMAGE).resolve()


def hashed(host: Host) -> str:
    """The password as /etc/shadow has it."""
    host.server.set_password("student", PASSWORD)
    lines = host.server.path("/etc/shadow").read_text().splitlines()
    return next(fields[1] for line in lines if (fields := line.split(":"))[0] == "student")


def alienate(disk: Path, scratch: Path, password: str) -> None:
    """Put the files into a disk that nobody uses."""
    device = f"{disk}?offset={PARTITION_START}"
    commands = ["mkdir /home/teacher", "sif /home/teacher uid 1500", "sif /home/teacher gid 1500"]
    files = dict(NEW)
    for path, (mode, group, text) in MORE.items():
        shown = subprocess.run(["debugfs", "-R", f"cat {path}", device], capture_output=True, text=True, check=True)
        files[path] = (mode, group, shown.stdout + text.format(hash=password))
    for number, (path, (mode, group, text)) in enumerate(files.items()):
        (scratch / f"{number}.part").write_text(text)
        commands += [f"rm {path}", f"write {scratch}/{number}.part {path}"]
        commands += [f"sif {path} mode 0{0o100000 | mode:o}", f"sif {path} gid {group}"]
    # What it cannot do it says, and goes on; removing what is not there is no failure.
    argv = ["debugfs", "-w", "-f", "-", device]
    subprocess.run(argv, input="\n".join(commands), capture_output=True, text=True, check=True)
    for number in range(len(files)):
        (scratch / f"{number}.part").unlink()


def complete(image: Path) -> None:
    """Let it boot as fast as the one that it was made from: an image that is imported goes the long way."""
    for name in ("vmlinuz", "initrd.img"):
        shutil.copyfile(ours() / name, image / name)
    manifest, known = (json.loads((folder / "manifest.json").read_text()) for folder in (image, ours()))
    manifest["files"] = known["files"] | manifest["files"]
    for key in ("kernel_cmdline", "features"):
        manifest[key] = known[key]
    (image / "manifest.json").write_text(json.dumps(manifest))


CREATE = (
    "local", "create", "-n", "1", "--name", "theirs", "--image", "theirs", "--image-user", "teacher",
    "--image-password", "env:TEACHER_PASSWORD", "--timeout", "200",
)  # fmt: skip


@pytest.mark.parametrize(
    ("env", "exit_code", "words"),
    [
        ({}, 3, "the variable TEACHER_PASSWORD, which gives the password of"),
        ({"TEACHER_PASSWORD": "wrong"}, 3, "node1 refuses the password for user teacher"),
    ],
)
def test_without_the_password_nothing_is_made(theirs: Host, env: dict[str, str], exit_code: int, words: str) -> None:
    before = survey(theirs)
    refused = theirs.vcluster(*CREATE, timeout_s=220, check=False, VCLUSTER_IMAGE_DIR=IMAGES, **env)
    errors = [line for line in refused.stderr.splitlines() if line.startswith("vcluster:")]
    assert refused.returncode == exit_code, refused.stderr
    assert len(errors) == 1
    assert words in errors[0]
    assert ("boot" in refused.stderr) == bool(env), "a password that is missing is missed before anything is made"
    assert survey(theirs) == before


def test_by_its_password_our_key_gets_in_and_no_password_does_afterwards(theirs: Host) -> None:
    before = survey(theirs)
    theirs.vcluster(*CREATE, timeout_s=220, VCLUSTER_IMAGE_DIR=IMAGES, TEACHER_PASSWORD=PASSWORD)
    assert theirs.json("status", "theirs")["state"] == "ready"
    assert theirs.json("status", "lab")["state"] == "ready"

    config = theirs.vcluster("ssh-config", "--name", "theirs", "--path").stdout.strip()
    node = Cluster(theirs, "theirs", ("node1",), config)
    assert node.ssh("node1", "id -un", user="root") == "root\n"
    assert node.ssh("node1", "id -u; cat hostfile") == "2000\nnode1:1\n"
    # The user is there still, but what would let it in is not asked for any more.
    assert node.ssh("node1", "id -u teacher") == "1500\n"
    login = ["ssh", "-F", config, "-o", "PubkeyAuthentication=no", "-o", "PasswordAuthentication=yes"]
    for user in ("teacher", "root", "mpiuser"):
        argv = [*login, "-o", "BatchMode=yes", "-l", user, "node1", "true"]
        refused = theirs.server.run(argv, timeout_s=30, check=False)
        assert refused.stderr.strip().endswith("Permission denied (publickey).")

    places = "/var/lib/vcluster /var/lib/libvirt/images/vcluster/clusters /var/log/libvirt /etc/libvirt"
    assert "ledger.json" in theirs.sh(f"grep -rlF TEACHER_PASSWORD {places}")
    assert theirs.sh(f"grep -rlF {shlex.quote(PASSWORD)} {places} || true") == ""
    cleared = theirs.vcluster("clear", "theirs", "-y", "--verify")
    assert cleared.stdout == "theirs: cleared\nnothing left\n"
    assert survey(theirs) == before
