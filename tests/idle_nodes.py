"""Nodes that never boot: the first sector of their disk halts, so their QEMU runs and uses no processor.

Tests of libvirt and QEMU need no more, and such nodes start in a second.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tests.clusters import RUN, Host, Survey, survey
from tests.testbed import testbed

FOLDER = "/run/idle-images"
IMAGES = {"VCLUSTER_IMAGE_DIR": FOLDER}
MIB, SECTOR = 2**20, 512
HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jump to the hlt
CLUSTER = "doomed"
END = "the test ends here"
_MODULES = (
    "from vcluster.commands.steps.node_lifecycle import NodeLifecycle; from vcluster.errors import VclusterError\n"
    "from vcluster.util import parallel\n"
)
# A create that ends where it would start its nodes.
WITHOUT_NODES = [
    sys.executable, "-c",
    f"{_MODULES}def end(*_): raise VclusterError({END!r})\n"
    f"NodeLifecycle.all_nodes = end; {RUN}",
]  # fmt: skip
# A create that ends when its nodes run, before they boot.
WITHOUT_BOOT = (
    sys.executable, "-c",
    f"{_MODULES}def end(self, work, stack):\n"
    "    parallel.each(self._plan.nodes, work, deadline=self._deadline)\n"
    f"    raise VclusterError({END!r})\n"
    f"NodeLifecycle.all_nodes, NodeLifecycle._await_boot = end, lambda *_: None; {RUN}",
)  # fmt: skip


def provide(host: Host) -> None:
    """Give a server the image `idle`: a disk with one empty partition."""
    folder = host.server.path(FOLDER)
    folder.mkdir()
    entry = struct.pack("<BxxxBxxxII", 0x80, 0x83, 2048, 8 * MIB // SECTOR - 2048)
    head = HALT.ljust(446, b"\0") + entry.ljust(64, b"\0") + b"\x55\xaa"
    (folder / "disk.raw").write_bytes(head.ljust(8 * MIB, b"\0"))
    host.vcluster("image", "import", f"{FOLDER}/disk.raw", "--name", "idle", **IMAGES)


@contextmanager
def idle_host(name: str) -> Iterator[Host]:
    """A server with the image `idle`. libvirt has made the folders and chains that it makes for its first domain."""
    with testbed(name) as (server,):
        host = Host(server)
        provide(host)
        make(host, nodes=1)
        host.vcluster("clear", CLUSTER, "-y")
        yield host


@contextmanager
def bare(host: Host) -> Iterator[Survey]:
    """The server without a cluster. A test that fails must not make later tests fail."""
    yield survey(host)
    host.sh("pgrep -x libvirtd || libvirtd --daemon")
    host.wait_for("virsh -q list && echo answers")
    host.kill_commands(CLUSTER)
    host.vcluster("clear", CLUSTER, "-y", check=False)


def make(host: Host, *, nodes: int = 2) -> None:
    """Make the cluster and keep it. Its nodes run."""
    done = created(replace(host, program=WITHOUT_BOOT), "local", "create", *options(CLUSTER, nodes=nodes), "--keep")
    errors = done.communicate(timeout=120)[1]
    assert (done.returncode, errors.splitlines()[-1]) == (1, f"vcluster: {END}"), errors


def options(name: str, *, nodes: int = 2, timeout_s: int = 200) -> tuple[str, ...]:
    """The options of a create that waits for these nodes to boot until the timeout."""
    return ("--name", name, "-n", str(nodes), "--image", "idle", "--boot", "cold", "--timeout", str(timeout_s))


def created(host: Host, *arguments: str) -> subprocess.Popen[str]:
    """A create, for example of `local create` and `options`, that has begun."""
    return host.popen(*arguments, **IMAGES)
