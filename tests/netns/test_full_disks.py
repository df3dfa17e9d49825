"""Full disks: commands end with one line before they make anything, and leave no part of a file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.clusters import ENVIRONMENT, SNAPSHOTS, VCLUSTER, Host, Survey, left_behind, survey
from tests.idle_nodes import WITHOUT_NODES
from tests.testbed import Server, testbed
from vcluster.images.store import ImageStore
from vcluster.model.spec import DEFAULT_IMAGE

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

IMAGES = "/var/lib/libvirt/images/vcluster/images"
STATE = {"VCLUSTER_STATE_DIR": "/run/state"}
PEER = "172.31.255.254"
needs_image = pytest.mark.skipif(
    not any(one.name == DEFAULT_IMAGE for one in ImageStore().images()),
    reason=f"the image {DEFAULT_IMAGE} is not built",
)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with testbed("full", "far", are_friends=True) as (here, far):
        for server in (here, far):  # libvirt makes these folders for the first cluster, and keeps them
            server.run(
                ["sh", "-c", "mkdir -p /etc/libvirt/qemu/networks /etc/libvirt/storage /var/lib/libvirt/dnsmasq"],
                timeout_s=10,
            )
        yield here, far


@pytest.fixture
def host(servers: tuple[Server, Server]) -> Host:
    return Host(servers[0])


@contextmanager
def small_disk(host: Host, folder: str, size: str) -> Iterator[None]:
    """A file system of this size at a folder."""
    host.sh(f"mkdir -p {folder} && mount -t tmpfs -o size={size} small {folder}")
    try:
        yield
    finally:
        host.sh(f"umount {folder}")


def fill(host: Host, folder: str) -> None:
    host.sh(f"dd if=/dev/zero of={folder}/filler bs=4k 2>/dev/null || true")


def require_refused(host: Host, arguments: tuple[str, ...], reason: str, **env: str) -> None:
    refused = host.vcluster(*arguments, check=False, **env)
    lines = [line for line in refused.stderr.splitlines() if line.startswith("vcluster: ")]
    assert (refused.returncode, len(lines), refused.stdout) == (3, 1, ""), refused.stderr
    assert re.search(reason, lines[0]), lines[0]
    assert "Traceback" not in refused.stderr


@pytest.fixture
def bare(host: Host) -> Iterator[Survey]:
    """The server before a test; afterwards nothing may be left."""
    before = survey(host)
    yield before
    assert left_behind(survey(host), before) == {}


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("local", "create", "-n", "1"), marks=needs_image),
        pytest.param(("remote", "create", "-n", "1", "--switch", "FAR"), marks=needs_image),
        ("switch", "up", "-n", "1", "--name", "hand", "--peer", PEER),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_full_state_folder(host: Host, servers: tuple[Server, Server], arguments: tuple[str, ...]) -> None:
    arguments = tuple(servers[1].name if part == "FAR" else part for part in arguments)
    with small_disk(host, "/run/state", "64k"):
        fill(host, "/run/state")
        require_refused(host, arguments, "cannot write /run/state/owner: No space left on device", **STATE)
        assert host.sh("find /run/state -type f") == "/run/state/filler\n"


@needs_image
@pytest.mark.usefixtures("bare")
def test_a_state_folder_that_is_full_after_the_owner_id(host: Host) -> None:
    """The folder of the cluster can be made, and its ledger cannot be written."""
    with small_disk(host, "/run/state", "64k"):
        host.vcluster("switch", "up", "-n", "1", "--name", "hand", "--peer", PEER, **STATE)
        host.vcluster("switch", "down", "hand", **STATE)
        ours = "find /run/state -not -name 'commands.*' -not -name accel.json | sort"
        before = host.sh(ours)
        fill(host, "/run/state")
        require_refused(host, ("local", "create", "-n", "1"), "cannot write .*: No space left on device", **STATE)
        assert host.sh(f"rm /run/state/filler; {ours}") == before


@needs_image
@pytest.mark.usefixtures("bare")
def test_commands_that_read_and_clear_work_on_a_full_state_folder(host: Host) -> None:
    with small_disk(host, "/run/state", "256k"):
        create = [*WITHOUT_NODES, "local", "create", "-n", "1", "--boot", "cold", "--keep"]
        host.server.run(create, timeout_s=120, check=False, env=ENVIRONMENT | STATE)
        fill(host, "/run/state")
        assert "lab" in host.vcluster("list", **STATE).stdout
        assert "node1" in host.vcluster("status", **STATE).stdout
        assert host.vcluster("clear", "lab", "-y", "--verify", **STATE).stdout == "lab: cleared\nnothing left\n"


def disk(host: Host) -> str:
    """A disk image with one partition and 8 MiB of data."""
    host.sh(
        r"dd if=/dev/urandom of=/run/disk bs=1M count=8 status=none;"
        r" dd if=/dev/zero of=/run/disk bs=1 seek=446 count=66 conv=notrunc status=none;"
        r" printf '\200\0\0\0\203\0\0\0\0\010\0\0\0\070\0\0' |"
        r" dd of=/run/disk bs=1 seek=446 conv=notrunc status=none;"
        r" printf '\125\252' | dd of=/run/disk bs=1 seek=510 conv=notrunc status=none"
    )
    return "/run/disk"


def test_a_full_folder_of_images_at_an_import(host: Host) -> None:
    with small_disk(host, "/run/images", "4m"):
        arguments = ("image", "import", disk(host), "--name", "big")
        reason = r"/run/images has no room for the image: 9 MiB needed, [34] MiB free \(free space on that disk\)"
        require_refused(host, arguments, reason, VCLUSTER_IMAGE_DIR="/run/images")
        assert host.sh("find /run/images -mindepth 1") == ""


def test_another_program_fills_the_disk_during_an_import(host: Host) -> None:
    """Without the check in advance, qemu-img meets the full disk."""
    unchecked = "import vcluster.images.store as s; s.require_room = lambda *_: None; "
    argv = [sys.executable, "-c", unchecked + VCLUSTER[2], "image", "import", disk(host), "--name", "big"]
    with small_disk(host, "/run/images", "4m"):
        env = ENVIRONMENT | {"VCLUSTER_IMAGE_DIR": "/run/images"}
        refused = host.server.run(argv, timeout_s=60, check=False, env=env)
        assert refused.returncode == 3, refused.stderr
        assert "/run/images has no room for the image: No space left on device" in refused.stderr
        assert host.sh("find /run/images -mindepth 1") == ""


@needs_image
@pytest.mark.usefixtures("bare")
def test_a_full_folder_of_images_at_a_delivery(host: Host, servers: tuple[Server, Server]) -> None:
    far = Host(servers[1])
    config = f"[cluster]\nname = lab\n[switch]\nhost = {far.server.name}\n[server {far.server.name}]\nnodes = 1\n"
    host.server.path("/run/config.ini").write_text(config)
    with small_disk(far, IMAGES, "16m"):
        reason = rf"{far.server.name}: {IMAGES} has no room for the image: \d+ MiB needed, 1[56] MiB free"
        require_refused(host, ("shared", "create", "/run/config.ini", "--boot", "cold"), reason)
        assert far.sh(f"find {IMAGES} -mindepth 1") == ""
    assert "vcluster" not in far.sh("virsh -q net-list --all --name; virsh -q pool-list --all --name")


@needs_image
def test_a_full_folder_of_snapshots(host: Host) -> None:
    with small_disk(host, SNAPSHOTS, "16m"):
        reason = rf"{SNAPSHOTS} has no room for the memory: 512 MiB needed, 1[56] MiB free"
        require_refused(host, ("image", "warm"), reason)
        assert host.sh(f"find {SNAPSHOTS} -mindepth 1") == ""
