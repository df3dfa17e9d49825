"""What the agent does on a server when it is asked: plain functions, with arguments and results that are JSON.

They run in this process for this machine, and in a process on the server for any other. Nothing here but the standard
library, pyroute2 and the doors that travel with it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from vcluster.adapters import kvm_probe
from vcluster.adapters.network import netlink_interfaces, netlink_routes, raw_frames, tunnel_guard
from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.adapters.network.obstacles import find_obstacles
from vcluster.adapters.process import run
from vcluster.agent import snapshot_manifest, snapshot_store
from vcluster.agent.diagnostics import diagnose
from vcluster.errors import MissingError, VclusterError

LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")
LIBVIRT_RUN = Path("/run/libvirt/network")
LIBVIRT_DOMAINS = Path("/run/libvirt/qemu")
NICEST = 19
LIBVIRT_LOGS = Path("/var/log/libvirt/qemu")
LIBVIRT_SOCKETS = (Path("/var/lib/libvirt/qemu"), Path("/var/lib/libvirt/qemu/channel/target"))
LIBVIRT_NAME_CUT = 20  # so much of a domain's name is in such a folder's: one of that length may be another's
MACHINE_ID = Path("/etc/machine-id")
CPU_INFO = Path("/proc/cpuinfo")
IMAGE_TOOL_TIMEOUT_S = 30.0
UNFINISHED = ".unfinished-"  # images/store.py removes what bears it
CAP_NET_ADMIN = 12  # linux/capability.h


# What it is like


def identity() -> dict[str, Any]:
    """Who this server is, and whether we may change it."""
    return {
        "machine": MACHINE_ID.read_text().strip() if MACHINE_ID.exists() else "",
        "hostname": platform.node(),
        "has_rights": has_rights(),
        "cpus": os.cpu_count() or 1,
        "has_libvirt": LIBVIRT_SOCKET.exists(),
    }


def has_rights() -> bool:
    """Whether this process may make links and rules."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return bool(capabilities >> CAP_NET_ADMIN & 1)


def observe(disks: str) -> dict[str, Any]:
    """What planning must know: room where `disks` will be, CPUs, routes, and VNIs in use."""
    links = netlink_interfaces.interfaces()
    place = Path(disks)
    existing = next(path for path in (place, *place.parents) if path.exists())
    return {
        "disk_free_mib": shutil.disk_usage(existing).free // 2**20,
        "cpus": os.cpu_count() or 1,
        "routes": [[str(network), interface] for network, interface in netlink_routes.routes()],
        "vnis": sorted(link.vni for link in links if link.vni),
    }


def route_to(address: str, interface: str) -> dict[str, Any]:
    """How this server reaches an address."""
    return asdict(netlink_routes.route_to(address, interface))


def addresses() -> list[list[str]]:
    """This server's own IPv4 addresses, each with its interface."""
    return [[interface, str(address)] for interface, address in netlink_routes.addresses()]


# Links and rules


def interfaces() -> list[dict[str, Any]]:
    """All links, with their marks and counters."""
    return [asdict(link) for link in netlink_interfaces.interfaces()]


def create_interfaces(specs: Sequence[dict[str, Any]]) -> None:
    """Make links as told; those that are there already are brought to it."""
    netlink_interfaces.create([InterfaceSpec(**spec) for spec in specs])


def destroy_interfaces(alias: str, names: Sequence[str] | None = None) -> list[str]:
    """Remove the links with this mark, all of them or those of these names."""
    return list(netlink_interfaces.destroy(alias, names))


def attach(ports: dict[str, str]) -> list[str]:
    """Put existing links into their bridges; returns those that were elsewhere."""
    found = {link.name: link for link in netlink_interfaces.interfaces()}
    astray = [port for port, master in ports.items() if port in found and found[port].master != master]
    for port in astray:
        netlink_interfaces.attach(port, ports[port])
    return astray


def guard(table: str, tunnels: Sequence[Sequence[Any]], port: int) -> None:
    """Let nobody but each tunnel's peer send into it."""
    tunnel_guard.guard(table, [(int(vni), str(peer)) for vni, peer in tunnels], port)


def remove_guard(table: str) -> None:
    """Take that back."""
    tunnel_guard.remove(table)


def guards(prefix: str) -> list[str]:
    """The names of the tables that begin so. Who may not make any may not see any either, and has none."""
    return list(tunnel_guard.tables(prefix)) if has_rights() else []


def obstacles(port: int) -> list[dict[str, str]]:
    """What on this server would silently eat the traffic of bridges and tunnels; only root may see that."""
    return [dict(one) for one in find_obstacles(port)] if has_rights() else []


# Frames


def listen(interfaces: Sequence[str]) -> None:
    """Note the probe frames that come in on these interfaces, from now on."""
    raw_frames.listen(interfaces)


def send_frames(tokens: dict[str, str], size: int) -> None:
    """Send a probe frame of `size` bytes out of each interface."""
    for interface, token in tokens.items():
        raw_frames.send(interface, token, size)


def received_probes(expected: dict[str, list[str]], timeout_s: float) -> dict[str, list[str]]:
    """What has come in, as soon as all that is wanted has, or when time is up."""
    return raw_frames.received(timeout_s, expected)


def stop_listening() -> None:
    """Listen no more."""
    raw_frames.close()


# Files


def folders(path: str) -> list[str]:
    """The names of the folders in a folder."""
    place = Path(path)
    return sorted(entry.name for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []


def remove_folder(path: str) -> None:
    """Remove a folder with all that is in it; the two above it, which are ours too, go once they are empty."""
    shutil.rmtree(path, ignore_errors=True)
    for parent in list(Path(path).parents)[:2]:
        try:
            parent.rmdir()
        except OSError:
            return


def remove_traces(networks: Sequence[str], domains: Sequence[str]) -> None:
    """What libvirt keeps of things that are gone: the name server's process number, a folder of ports, logs.

    And of domains that a power cut ended: folders with their sockets, which bear a number and the name.
    """
    for name in networks:
        (LIBVIRT_RUN / f"{name}.pid").unlink(missing_ok=True)
        shutil.rmtree(LIBVIRT_RUN / name, ignore_errors=True)
    for name in domains:
        for log in LIBVIRT_LOGS.glob(f"{name}.log*"):
            log.unlink(missing_ok=True)
        if len(name) < LIBVIRT_NAME_CUT:
            for place in LIBVIRT_SOCKETS:
                for folder in place.glob("domain-*"):
                    if re.fullmatch(rf"domain-\d+-{re.escape(name)}", folder.name):
                        shutil.rmtree(folder, ignore_errors=True)


def tail(path: str, size: int) -> str:
    """The last `size` bytes of a file as text; nothing when there is no such file."""
    try:
        return Path(path).read_bytes()[-size:].decode(errors="replace")
    except OSError:
        return ""


# Images


def image_state(root: str, digest: str) -> dict[str, Any]:
    """Whether an image is there; else how much of each of its files has come already."""
    if (Path(root) / digest / "manifest.json").exists():
        return {"is_there": True, "partial": {}}
    unfinished = Path(root) / f"{UNFINISHED}{digest}"
    partial = {path.name: path.stat().st_size for path in unfinished.iterdir()} if unfinished.is_dir() else {}
    return {"is_there": False, "partial": partial}


def receive_image_file(root: str, digest: str, name: str, offset: int, body: BinaryIO, size: int) -> None:
    """Take in `size` bytes of an image's file, from `offset` on."""
    folder = Path(root) / f"{UNFINISHED}{digest}"
    with _disk(f"image {digest[:19]}"):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("r+b" if (folder / name).exists() else "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            while size:
                chunk = body.read(min(size, 2**20))
                if not chunk:
                    raise VclusterError(
                        f"image file {name} was cut off", hint="the same command again goes on from there"
                    )
                file.write(chunk)
                size -= len(chunk)


def finish_image(root: str, digest: str, files: dict[str, str], manifest: str) -> None:
    """Compare what has come with its digests and give it its name."""
    folder = Path(root) / f"{UNFINISHED}{digest}"
    for name, wanted in files.items():
        if _sha256(folder / name) != wanted:
            shutil.rmtree(folder)
            raise VclusterError(f"image file {name} came over changed", hint="the same command again sends it anew")
    with _disk(f"image {digest[:19]}"):
        (folder / "manifest.json").write_text(manifest)
        for path in folder.iterdir():
            path.chmod(0o644)
        folder.chmod(0o755)
        os.sync()
        folder.rename(Path(root) / digest)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _disk(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MissingError(f"{what} cannot be stored: {error.strerror or error}", hint="make room there") from error


# Templates


def prepare_template(folder: str, backing: str, size_bytes: int, seed: str) -> None:
    """Put a disk over an image, and a seed (in base64), into a folder."""
    place = Path(folder)
    argv = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        backing,
        str(place / snapshot_manifest.DISK),
    ]
    run([*argv, str(size_bytes)], timeout_s=IMAGE_TOOL_TIMEOUT_S)
    (place / snapshot_store.SEED).write_bytes(base64.b64decode(seed))


def processor() -> str:
    """What guests see of the processor where they are shown all of it (proc(5), /proc/cpuinfo)."""
    told = dict(line.split(":", 1) for line in CPU_INFO.read_text().split("\n\n")[0].splitlines() if ":" in line)
    words = {name.strip(): value.strip() for name, value in told.items()}
    flags = hashlib.sha256(words.get("flags", "").encode()).hexdigest()[:12]
    return " ".join((*(words.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping")), flags))


def owner_of(path: str) -> list[int]:
    """The user and the group that own a file."""
    state = Path(path).stat()
    return [state.st_uid, state.st_gid]


def lower_priority(domain: str) -> None:
    """Have a domain's processor give way to all else that wants the server's."""
    pid = (LIBVIRT_DOMAINS / f"{domain}.pid").read_text().strip()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that has ended meanwhile
            os.setpriority(os.PRIO_PROCESS, int(task.name), NICEST)


# KVM


def kvm_conditions() -> dict[str, Any]:
    """All that a verdict on KVM depends on, and a reason against it that needs no trying."""
    return kvm_probe.conditions()


def try_kvm(body: BinaryIO, size: int) -> dict[str, Any]:
    """Boot a kernel under KVM."""
    return asdict(kvm_probe.boot(body.read(size)))


OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        identity,
        diagnose,
        observe,
        route_to,
        addresses,
        interfaces,
        create_interfaces,
        destroy_interfaces,
        attach,
        guard,
        remove_guard,
        guards,
        obstacles,
        listen,
        send_frames,
        received_probes,
        stop_listening,
        folders,
        remove_folder,
        remove_traces,
        tail,
        image_state,
        receive_image_file,
        finish_image,
        prepare_template,
        processor,
        owner_of,
        lower_priority,
        kvm_conditions,
        try_kvm,
    )
} | {function.__name__: function for function in snapshot_store.OPERATIONS}
