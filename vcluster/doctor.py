"""Is this machine fit for clusters? Each finding says what is wrong and the command that mends it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vcluster.cluster import Site
from vcluster.errors import VclusterError
from vcluster.hosts import accel
from vcluster.images.store import DEFAULT_IMAGE

OK, WARNING, ERROR = "ok", "warning", "error"

# Program: Debian package, and what it is for.
PROGRAMS = {
    "qemu-system-x86_64": ("qemu-system-x86", "running nodes"),
    "qemu-img": ("qemu-utils", "checking images"),
    "dnsmasq": ("dnsmasq-base", "DNS of the management network"),
    "iptables": ("iptables", "libvirt's NAT network"),
    "mmdebstrap": ("mmdebstrap", "building the guest image"),
    "mke2fs": ("e2fsprogs", "building the guest image"),
    "ssh": ("openssh-client", "vcluster ssh"),
    "virsh": ("libvirt-clients", "vcluster console"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `mend` is the command that puts it right."""

    level: str
    what: str
    detail: str
    mend: str = ""


def examine(site: Site) -> tuple[Finding, ...]:
    """Everything that can be looked at without changing anything."""
    looks: tuple[Callable[[Site], Iterator[Finding]], ...] = (
        _rights,
        _programs,
        _libvirt,
        _kvm,
        _image,
        _forwarding,
        _namesake,
    )
    return tuple(finding for look in looks for finding in look(site))


def _rights(_: Site) -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding(OK, "rights", "root")
    else:
        yield Finding(WARNING, "rights", "making and clearing clusters needs root", "sudo vcluster …")


def _programs(_: Site) -> Iterator[Finding]:
    for program, (package, purpose) in PROGRAMS.items():
        if shutil.which(program) or Path("/usr/sbin", program).exists():
            yield Finding(OK, program, purpose)
        else:
            yield Finding(ERROR, program, f"missing; needed for {purpose}", f"apt-get install {package}")


def _libvirt(site: Site) -> Iterator[Finding]:
    try:
        with site.server() as server:
            versions = server.hypervisor.versions()
            free = server.hypervisor.memory_free_mib()
    except VclusterError as error:
        mend = "systemctl start libvirtd" if Path("/run/systemd/system").is_dir() else "virtlogd -d; libvirtd -d"
        yield Finding(ERROR, "libvirt", error.message, mend)
        return
    yield Finding(OK, "libvirt", f"libvirt {versions['libvirt']}, QEMU {versions['qemu']} at {site.uri}")
    yield Finding(OK if free > 1024 else WARNING, "memory", f"{free} MiB free")


def _kvm(site: Site) -> Iterator[Finding]:
    yield from device_findings(accel.DEVICE)
    if shutil.which(accel.QEMU) is None:
        return
    verdict = accel.probe(site.images.any_kernel(), site.state_root / "accel.json")
    if verdict.kvm_works:
        yield Finding(OK, "KVM", verdict.reason)
    else:
        yield Finding(WARNING, "KVM", f"nodes are emulated, several times slower: {verdict.reason}")


def device_findings(device: Path) -> Iterator[Finding]:
    """/dev/kvm that exists but that QEMU, run by libvirt as another user, cannot open."""
    if not device.exists():
        return
    state = device.stat()
    everyone = state.st_mode & (stat.S_IROTH | stat.S_IWOTH) == stat.S_IROTH | stat.S_IWOTH
    group = state.st_gid != 0 and state.st_mode & stat.S_IRGRP and state.st_mode & stat.S_IWGRP
    if not (everyone or group):
        yield Finding(
            WARNING,
            str(device),
            f"mode {stat.S_IMODE(state.st_mode):04o}, group {state.st_gid}: libvirt's QEMU cannot "
            "open it, and libvirt looks QEMU over again at every start of a node (some 16 s)",
            f"chown root:kvm {device} && chmod 0660 {device}",
        )


def _mounts(_: Site) -> Iterator[Finding]:
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    hidden = sorted({point for point in points if point.startswith("/dev/") and points.count(point) > 1})
    settings = Path("/etc/libvirt/qemu.conf")
    if hidden and not (settings.exists() and "\nnamespaces = [ ]" in settings.read_text()):
        yield Finding(
            ERROR,
            "mounts",
            f"two mounts at {hidden[0]}: libvirt cannot give QEMU a /dev of its own",
            f"echo 'namespaces = [ ]' >>{settings}, and start libvirtd again",
        )


def _image(site: Site) -> Iterator[Finding]:
    if DEFAULT_IMAGE in site.images.names():
        yield Finding(OK, "image", f"{DEFAULT_IMAGE} is there")
    else:
        yield Finding(WARNING, "image", f"{DEFAULT_IMAGE} is not built yet", "vcluster image build")


def _forwarding(_: Site) -> Iterator[Finding]:
    path = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if path.exists() and path.read_text().strip() == "1":
        yield Finding(
            WARNING,
            "bridge-nf-call-iptables",
            "bridged frames pass the firewall of this machine, which may drop them",
            "sysctl net.bridge.bridge-nf-call-iptables=0",
        )


def _namesake(_: Site) -> Iterator[Finding]:
    first = shutil.which("vcluster")
    if first and b"vcluster.cli.main" not in Path(first).read_bytes()[:4096]:
        yield Finding(WARNING, "PATH", f"{first} is another tool of the same name and comes first")
    if (Path.home() / ".vcluster").is_dir():
        yield Finding(OK, "~/.vcluster", "belongs to another tool of the same name; it is left alone")
