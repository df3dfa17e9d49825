"""Nodes that never boot: their disk is empty, so their QEMU runs and uses no processor.

Tests of libvirt and QEMU need no more, and such nodes start in a second.
"""

from __future__ import annotations

import struct
import subprocess
import sys

from tests.clusters import VCLUSTER, Host

FOLDER = "/run/idle-images"
IMAGES = {"VCLUSTER_IMAGE_DIR": FOLDER}
MIB, SECTOR = 2**20, 512
END = "the test ends here"
# A create that ends where it would start its nodes.
WITHOUT_NODES = [
    sys.executable, "-c",
    "from vcluster.commands.steps.node_lifecycle import NodeLifecycle; from vcluster.errors import VclusterError\n"
    f"def end(*_): raise VclusterError({END!r})\n"
    f"NodeLifecycle.all_nodes = end; {VCLUSTER[2]}",
]  # fmt: skip


def provide(host: Host) -> None:
    """Give a server the image `idle`: an empty disk with one partition."""
    folder = host.server.path(FOLDER)
    folder.mkdir()
    entry = struct.pack("<BxxxBxxxII", 0x80, 0x83, 2048, 8 * MIB // SECTOR - 2048)
    head = bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"
    (folder / "disk.raw").write_bytes(head.ljust(8 * MIB, b"\0"))
    host.vcluster("image", "import", f"{FOLDER}/disk.raw", "--name", "idle", **IMAGES)


def options(name: str, *, nodes: int = 2, timeout_s: int = 200) -> tuple[str, ...]:
    """The options of a create that waits for these nodes to boot until the timeout."""
    return ("--name", name, "-n", str(nodes), "--image", "idle", "--boot", "cold", "--timeout", str(timeout_s))


def created(host: Host, *arguments: str) -> subprocess.Popen[str]:
    """A create, for example of `local create` and `options`, that has begun."""
    return host.popen(*arguments, **IMAGES)
