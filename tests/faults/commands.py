"""The commands that are killed, what is there before each of them, and what removes its rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.clusters import SNAPSHOTS, Host
from vcluster.images.store import DEFAULT_ROOT
from vcluster.model.spec import DEFAULT_IMAGE

CLUSTER, NEIGHBOUR = "doomed", "neighbour"
PATIENCE = ("--timeout", "300")
COMMAND_S = 320
OTHER_SIZE = ("--memory", "500")  # a snapshot that nothing else uses
DISK = "/run/disk.raw"  # an image to import: a disk with one partition
IMAGES = str(DEFAULT_ROOT)
STORE = "own-images"  # the source of the mount that hides the images of all servers
REMOVE_OWN_STORE = (
    f"while [ $(findmnt -no SOURCE {IMAGES} | tail -n 1) = {STORE} ]; do umount {IMAGES}; done 2>/dev/null;"
    " umount /usr/bin/mmdebstrap 2>/dev/null || true"
)
RECIPE = DEFAULT_IMAGE
BUILD = ("image", "build", RECIPE, "--name", CLUSTER)
# In place of mmdebstrap, which would install packages for two minutes in each trial. The last argument but one is the
# folder for the tree; `image build` reads these files of it.
INSTALL = """#!/bin/sh
for argument; do folder=$last last=$argument; done
mkdir -p $folder/boot/grub $folder/var/lib/dpkg
for file in boot/grub/boot.img boot/grub/core.img vmlinuz-1 initrd-1; do head -c 4096 /dev/zero >$folder/$file; done
ln -s vmlinuz-1 $folder/vmlinuz
ln -s initrd-1 $folder/initrd.img
echo >$folder/var/lib/dpkg/status
"""
TRACE, CAPTURE = "/run/trace.csv", "/run/capture.pcapng"
LIMITS = ("--both", "rate=50mbit,loss=1%")
SWITCH_UP = ("switch", "up", "-n", "2", "--name", CLUSTER, "--peer", "172.31.255.254")


@dataclass(frozen=True)
class Bed:
    """The servers: one with nodes, where the commands run, and one that only carries the switch."""

    control: Host
    switch: Host

    @property
    def all(self) -> tuple[Host, ...]:
        return (self.control, self.switch)

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run vcluster on the controller. The name of the switch server takes the place of SWITCH."""
        done = self.control.vcluster(*self.named(arguments), timeout_s=COMMAND_S, check=check)
        return done.stdout

    def named(self, arguments: tuple[str, ...]) -> list[str]:
        """The arguments with the name of the switch server."""
        return [argument.replace("SWITCH", self.switch.server.name) for argument in arguments]


def nothing(bed: Bed) -> None:
    """Nothing is there."""


def cluster_of(count: int, *options: str) -> Callable[[Bed], None]:
    """A cluster of clones."""

    def prepare(bed: Bed) -> None:
        bed.run("local", "create", "--name", CLUSTER, "-n", str(count), *options, *PATIENCE)

    return prepare


def stopped(bed: Bed) -> None:
    """A cluster that is stopped."""
    cluster_of(2)(bed)
    bed.run("stop", CLUSTER)


def damaged(bed: Bed) -> None:
    """A cluster without its bridge."""
    cluster_of(2)(bed)
    bed.control.sh(f"ip link delete vc-{CLUSTER}")


def with_script(bed: Bed) -> None:
    """A cluster, and a setup script with a payload."""
    cluster_of(2)(bed)
    bed.control.sh("mkdir -p /run/payload; echo data >/run/payload/file; printf '#!/bin/sh\nhostname\n' >/run/setup")


def after(*arguments: str) -> Callable[[Bed], None]:
    """A cluster on which a command has run."""

    def prepare(bed: Bed) -> None:
        cluster_of(2)(bed)
        bed.run(*arguments, "--name", CLUSTER)

    return prepare


def with_trace(bed: Bed) -> None:
    """A cluster, and a file with the rates of a link."""
    cluster_of(2)(bed)
    bed.control.server.path(TRACE).write_text("t_s,from,to\n0,50mbit,50mbit\n600,10mbit,10mbit\n")


def with_remote_switch(bed: Bed) -> None:
    """A cluster whose switch is on another server."""
    bed.run("remote", "create", "--switch", "SWITCH", "--name", CLUSTER, "-n", "2", *PATIENCE)


def own_images(bed: Bed) -> None:
    """An empty store of images, in place of the one that all servers read; and a disk to import."""
    bed.control.sh(
        f"mount -t tmpfs {STORE} {IMAGES}; truncate -s 8M {DISK};"
        rf" printf '\200\0\0\0\203\0\0\0\0\010\0\0\0\070\0\0' | dd of={DISK} bs=1 seek=446 conv=notrunc status=none;"
        rf" printf '\125\252' | dd of={DISK} bs=1 seek=510 conv=notrunc status=none"
    )


def imported(bed: Bed) -> None:
    """A store with one image."""
    own_images(bed)
    bed.run("image", "import", DISK, "--name", CLUSTER)


def own_recipe(bed: Bed) -> None:
    """An empty store of images, and packages that are installed at once."""
    own_images(bed)
    bed.control.server.path("/run/mmdebstrap").write_text(INSTALL)
    bed.control.sh("chmod 755 /run/mmdebstrap; mount --bind /run/mmdebstrap /usr/bin/mmdebstrap")


def clear(bed: Bed, *, is_ledger_lost: bool) -> None:
    """Remove the cluster. Without its ledger, only the user knows the server of its switch."""
    on = ("--on", "SWITCH") if is_ledger_lost else ()
    lines = bed.run("clear", CLUSTER, "-y", "--verify", *on).splitlines()
    assert lines[-1] == "nothing left", lines


def forget_snapshot(bed: Bed, *, is_ledger_lost: bool) -> None:  # noqa: ARG001 - as `clear`
    """`clear` removes the unfinished snapshot, also without a cluster. This removes a complete one."""
    bed.run("clear", CLUSTER, "-y", "--verify")
    keys = bed.control.snapshots()
    assert [key for key in keys if key.startswith(".")] == []
    found = [snapshot for image in bed.control.json("image", "list") for snapshot in image["snapshots"]]
    for key in (snapshot["key"] for snapshot in found if snapshot["memory_mib"] == int(OTHER_SIZE[1])):
        bed.control.sh(f"rm -r {SNAPSHOTS}/{key}")


def forget_images(bed: Bed, *, is_ledger_lost: bool) -> None:  # noqa: ARG001 - as `clear`
    """The next import works, and nothing unfinished is left after it."""
    bed.run("image", "import", DISK, "--name", CLUSTER)
    _forget_image(bed, "disk.qcow2", "manifest.json", "stamps.json")


def forget_recipe(bed: Bed, *, is_ledger_lost: bool) -> None:  # noqa: ARG001 - as `clear`
    """The next build works, and nothing unfinished is left after it."""
    bed.run(*BUILD)
    bed.control.sh("umount /usr/bin/mmdebstrap; rm /run/mmdebstrap")
    _forget_image(bed, "disk.qcow2", "initrd.img", "manifest.json", "stamps.json", "vmlinuz")


def _forget_image(bed: Bed, *names: str) -> None:
    """Remove the only image, which has these files, and the store."""
    assert [image["name"] for image in bed.control.json("image", "list")] == [CLUSTER]
    files = bed.control.sh(f"cd {IMAGES} && find . -mindepth 1 | sed -E 's/[0-9a-f]{{64}}/DIGEST/' | sort").split()
    folder = "./sha256-DIGEST"
    assert files == ["./names", f"./names/{CLUSTER}", folder, *(f"{folder}/{name}" for name in names)], files
    bed.run("image", "rm", CLUSTER)
    assert bed.control.sh(f"find {IMAGES} -mindepth 2").split() == []
    bed.control.sh(f"umount {IMAGES}; rm {DISK}")


def switch_up(bed: Bed) -> None:
    """A switch for a cluster of another controller."""
    bed.run(*SWITCH_UP)


def switch_down(bed: Bed, *, is_ledger_lost: bool) -> None:  # noqa: ARG001 - as `clear`
    """Remove the switch as its administrator does."""
    bed.run("switch", "down", CLUSTER)
    assert bed.run("switch", "down", CLUSTER) == f"{CLUSTER}: nothing to clear\n"


@dataclass(frozen=True)
class FaultCommand:
    """A command, what is there before it, and what a user does after it was killed.

    `points` is about how many points it has, for a draw.
    """

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Bed], None] = nothing
    undo: Callable[..., None] = field(default=clear)
    has_cluster: bool = True
    points: int = field(kw_only=True)


def _create(mode: str, *options: str) -> tuple[str, ...]:
    return (mode, "create", "--name", CLUSTER, "-n", "2", *options, *PATIENCE)


COMMANDS = {
    command.name: command
    for command in (
        FaultCommand("create-clone", _create("local"), points=116),
        FaultCommand("create-boot", _create("local", "--boot", "cold"), points=98),
        FaultCommand("create-clone-remote", _create("remote", "--switch", "SWITCH"), points=166),
        FaultCommand("create-boot-remote", _create("remote", "--switch", "SWITCH", "--boot", "cold"), points=148),
        FaultCommand("add", ("add", "--name", CLUSTER, *PATIENCE), cluster_of(1), points=108),
        FaultCommand("remove", ("remove", "node2", "--name", CLUSTER, "-y", *PATIENCE), cluster_of(2), points=64),
        FaultCommand("clear", ("clear", CLUSTER, "-y"), cluster_of(2), points=70),
        FaultCommand("repair", ("repair", CLUSTER, *PATIENCE), damaged, points=36),
        FaultCommand("stop", ("stop", CLUSTER), cluster_of(2), points=6),
        FaultCommand("start", ("start", CLUSTER, *PATIENCE), stopped, points=40),
        FaultCommand("gateway", ("gateway", "on", "--name", CLUSTER), cluster_of(2, "--layout", "private"), points=12),
        FaultCommand(
            "provision",
            ("provision", "--payload", "/run/payload", "/run/setup", "--name", CLUSTER),
            with_script,
            points=16,
        ),
        FaultCommand("switch-up", SWITCH_UP, undo=switch_down, points=20),
        FaultCommand("switch-down", ("switch", "down", CLUSTER), switch_up, switch_down, points=8),
        FaultCommand("image-build", BUILD, own_recipe, forget_recipe, False, points=68),
        FaultCommand(
            "image-import", ("image", "import", DISK, "--name", CLUSTER), own_images, forget_images, False, points=28
        ),
        FaultCommand("image-rm", ("image", "rm", CLUSTER), imported, forget_images, False, points=16),
        FaultCommand("link-set", ("link", "set", "node2", *LIMITS, "--name", CLUSTER), cluster_of(2), points=20),
        FaultCommand(
            "link-set-remote", ("link", "set", "node2", *LIMITS, "--name", CLUSTER), with_remote_switch, points=10
        ),
        FaultCommand(
            "link-reset", ("link", "reset", "--name", CLUSTER), after("link", "set", "node2", *LIMITS), points=20
        ),
        FaultCommand("link-trace", ("link", "trace", "node2", TRACE, "--name", CLUSTER), with_trace, points=20),
        FaultCommand("fault-cut", ("fault", "cut", "node2", "--name", CLUSTER), cluster_of(2), points=6),
        FaultCommand(
            "fault-flap", ("fault", "flap", "node2", "--times", "1000", "--name", CLUSTER), cluster_of(2), points=10
        ),
        FaultCommand("fault-pause", ("fault", "pause", "node2", "--name", CLUSTER), cluster_of(2), points=10),
        FaultCommand("fault-heal", ("fault", "heal", "--name", CLUSTER), after("fault", "pause", "node2"), points=10),
        FaultCommand(
            "capture", ("capture", "-o", CAPTURE, "--name", CLUSTER, "--", "hostname"), cluster_of(2), points=20
        ),
        FaultCommand("capture-start", ("capture", "start", "-o", CAPTURE, "--name", CLUSTER), cluster_of(2), points=20),
        FaultCommand(
            "capture-stop", ("capture", "stop", "--name", CLUSTER), after("capture", "start", "-o", CAPTURE), points=6
        ),
        FaultCommand(
            "measure",
            ("measure", "latency", "--ci", "50%", "--row-time", "2", "--name", CLUSTER),
            cluster_of(2),
            points=20,
        ),
        FaultCommand(
            "image-warm", ("image", "warm", *OTHER_SIZE, *PATIENCE), nothing, forget_snapshot, False, points=68
        ),
    )
}
