"""Check that a server can carry nodes or a switch. Each finding names the problem and the command that fixes it.

It runs on the server, so it uses only the standard library.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vcluster.adapters.network import ipv6
from vcluster.agent import libvirt_daemons
from vcluster.agent.confinement import APPARMOR, SELINUX, confinement
from vcluster.model.facts import DNS_FIX, DNS_IS_TAKEN

OK, WARNING, ERROR = "ok", "warning", "error"
KVM = Path("/dev/kvm")
DNS_PORT, FREE_ADDRESS = 53, "127.53.53.53"

# Program: Debian package and purpose.
PROGRAMS = {
    "qemu-system-x86_64": ("qemu-system-x86", "running nodes"),
    "qemu-img": ("qemu-utils", "checking images"),
    "dnsmasq": ("dnsmasq-base", "DNS of the management network"),
    "iptables": ("iptables", "libvirt's NAT network"),
    "virsh": ("libvirt-clients", "clones, and vcluster console"),
}
# Programs that only the controller needs.
CONTROLLER_PROGRAMS = {
    "mmdebstrap": ("mmdebstrap", "building the image"),
    "mke2fs": ("e2fsprogs", "building the image"),
    "ssh": ("openssh-client", "vcluster ssh, and connections to other servers"),
}

Finding = dict[str, Any]

STATUS = Path("/proc/self/status")
CAP_NET_ADMIN = 12  # linux/capability.h
ADD_CAPABILITY = "start the container with: docker run --cap-add NET_ADMIN"


def diagnose(*, carries_nodes: bool, is_controller: bool) -> list[Finding]:
    """Run all checks; they change nothing."""
    findings = [*_rights(), *_settings()]
    if carries_nodes:
        findings += [
            *_programs(PROGRAMS),
            *_libvirt(),
            *device_findings(KVM),
            *_forwarding(),
            *_dns(),
            *_confinement(),
        ]
    if is_controller:
        findings += _programs(CONTROLLER_PROGRAMS)
    else:
        findings.append(_finding(OK, "python3", platform.python_version()))
    return findings


def _finding(level: str, what: str, detail: str, fix: str = "") -> Finding:
    return {"level": level, "what": what, "detail": detail, "fix": fix}


def has_rights() -> bool:
    """Whether this process may create interfaces and packet filter rules."""
    status = STATUS.read_text()
    capabilities = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return bool(capabilities >> CAP_NET_ADMIN & 1)


def _rights() -> Iterator[Finding]:
    if os.geteuid() == 0 and not has_rights():
        yield _finding(
            ERROR, "rights", "root lacks CAP_NET_ADMIN, so it cannot create network interfaces", ADD_CAPABILITY
        )
    elif os.geteuid() == 0:
        yield _finding(OK, "rights", "root")
    else:
        yield _finding(WARNING, "rights", "creating and clearing clusters here needs root", "run it with sudo")


def _settings() -> Iterator[Finding]:
    """An error if root cannot turn off IPv6 on interfaces, as in most containers."""
    if os.geteuid() == 0 and not ipv6.can_disable():
        yield _finding(
            ERROR,
            "IPv6",
            "/proc/sys is read-only, so vcluster cannot turn off IPv6 on the cluster network",
            ipv6.WRITABLE,
        )


def _programs(required: dict[str, tuple[str, str]]) -> Iterator[Finding]:
    for program, (package, purpose) in required.items():
        if shutil.which(program) or Path("/usr/sbin", program).exists():
            yield _finding(OK, program, purpose)
        else:
            yield _finding(ERROR, program, f"missing; needed for {purpose}", f"apt-get install {package}")


def _libvirt() -> Iterator[Finding]:
    if libvirt_daemons.is_running():
        return
    if daemon := libvirt_daemons.installed_daemon():
        yield _finding(ERROR, daemon, "is not running", libvirt_daemons.start_command())
    else:
        yield _finding(ERROR, "libvirtd", "missing; it runs the nodes", "apt-get install libvirt-daemon-system")


def _confinement() -> Iterator[Finding]:
    found = confinement()
    if found == APPARMOR:
        yield _finding(OK, "AppArmor", "confines each node; a clone may also use its own snapshot")
    elif found == SELINUX:
        yield _finding(OK, "SELinux", "confines each node")


def device_findings(device: Path) -> Iterator[Finding]:
    """A warning if /dev/kvm exists but QEMU, which libvirt runs as another user, cannot open it."""
    if not device.exists():
        return
    state = device.stat()
    everyone = state.st_mode & (stat.S_IROTH | stat.S_IWOTH) == stat.S_IROTH | stat.S_IWOTH
    group = state.st_gid != 0 and state.st_mode & stat.S_IRGRP and state.st_mode & stat.S_IWGRP
    if not (everyone or group):
        yield _finding(
            WARNING,
            str(device),
            f"mode {stat.S_IMODE(state.st_mode):04o}, group {state.st_gid}: libvirt's QEMU cannot "
            "open it, and libvirt probes QEMU again at every start of a node (about 16 s)",
            f"chown root:kvm {device} && chmod 0660 {device}",
        )


def is_dns_port_free() -> bool:
    """Whether libvirt can start the DNS server of a network: another one may listen on all addresses.

    It is tried at an address that no program uses, with the options of dnsmasq.
    """
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((FREE_ADDRESS, DNS_PORT))
                if kind == socket.SOCK_STREAM:
                    trial.listen()
            except OSError as error:  # a user who is not root may not try it
                if error.errno == errno.EADDRINUSE:
                    return False
    return True


def _dns() -> Iterator[Finding]:
    if not is_dns_port_free():
        yield _finding(ERROR, "DNS", f"{DNS_IS_TAKEN}, so libvirt cannot start the management network", DNS_FIX)


def hidden_mounts() -> list[str]:
    """The mount points below /dev at which one mount hides another. libvirt may fail to give QEMU a private /dev."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted({point for point in points if point.startswith("/dev/") and points.count(point) > 1})


def _forwarding() -> Iterator[Finding]:
    path = Path("/proc/sys/net/ipv4/ip_forward")
    if path.exists() and path.read_text().strip() == "0":
        yield _finding(
            OK, "ip_forward", "off; libvirt turns it on for the management network", "sysctl net.ipv4.ip_forward=1"
        )
