"""The agent's operations: functions with JSON arguments and results.

For this machine they run in this process; for a server they run in a process there. They use only the standard library,
pyroute2 and the modules that travel with the agent (bundle.py).
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from vcluster.adapters import kvm_probe, online_processors, system_logs, tsc
from vcluster.adapters.network import guard_table, ipv6, netlink_interfaces, netlink_routes, peers, raw_frames
from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.adapters.network.obstacles import find_obstacles
from vcluster.agent import confinement, image_store, libvirt_daemons, snapshot_store
from vcluster.agent.diagnostics import diagnose, has_rights, hidden_mounts, is_dns_port_free
from vcluster.agent.faults import fault_operations
from vcluster.agent.links import counters, frame_counts, link_limits
from vcluster.agent.support import server_report
from vcluster.agent.survey import cluster_survey, vcpu_times
from vcluster.agent.survey.file_states import LABEL, label_of
from vcluster.errors import ConflictError, VclusterError
from vcluster.model.json_types import require_fields

LIBVIRT_RUN = Path("/run/libvirt/network")
LIBVIRT_DNSMASQ = Path("/var/lib/libvirt/dnsmasq")
DNSMASQ_SUFFIXES = ("addnhosts", "conf", "hostsfile", "leases", "macs", "status")
LIBVIRT_DOMAINS = Path("/run/libvirt/qemu")
OWNER_LABEL = "vcluster:"  # begins the alias of each interface (vcluster.model.naming, which is not in the archive)
NICEST = 19
LIBVIRT_LOGS = Path("/var/log/libvirt/qemu")
LIBVIRT_SOCKETS = (Path("/var/lib/libvirt/qemu"), Path("/var/lib/libvirt/qemu/channel/target"))
LIBVIRT_NAME_CUT = 20  # libvirt truncates a domain's name to this length in the folder's name, so it may be ambiguous
MACHINE_ID, CPU_INFO = Path("/etc/machine-id"), Path("/proc/cpuinfo")


# Facts about the server


def identity() -> dict[str, Any]:
    """The server's machine-id and host name, and whether this process is root and may change the network."""
    return {
        "machine": MACHINE_ID.read_text().strip() if MACHINE_ID.exists() else "",
        "hostname": platform.node(),
        "is_root": os.geteuid() == 0,
        "has_rights": has_rights(),
        "cpus": os.cpu_count() or 1,
        "has_libvirt": libvirt_daemons.is_running(),
    }


def clock() -> float:
    """The time of this machine, in seconds since 1970."""
    return time.time()


def observe(disks: str) -> dict[str, Any]:
    """The facts for planning: free disk space at `disks`, CPUs and their TSC, routes, hosts, DNS, and VNIs in use."""
    interfaces = netlink_interfaces.interfaces()
    place = Path(disks)
    existing = next(path for path in (place, *place.parents) if path.exists())
    return {
        "disk_free_mib": shutil.disk_usage(existing).free // 2**20,
        "cpus": os.cpu_count() or 1,
        "processors": online_processors.online_processors(),
        "tsc_mhz": tsc.tsc_mhz(),
        "routes": [[str(network), interface] for network, interface in netlink_routes.routes()],
        "hosts": [*(address for _, address in addresses()), *map(str, peers.peers())],
        "is_dns_free": is_dns_port_free(),
        "vnis": sorted(found.vni for found in interfaces if found.vni),
    }


def route_to(address: str, interface: str) -> dict[str, Any]:
    """How this server reaches an address."""
    return asdict(netlink_routes.route_to(address, interface))


def addresses() -> list[list[str]]:
    """This server's IPv4 addresses, as pairs of interface and address."""
    return [[interface, str(address)] for interface, address in netlink_routes.addresses()]


# Interfaces and packet filter rules


def interfaces() -> list[dict[str, Any]]:
    """All interfaces, with their owner labels and counters."""
    return [asdict(found) for found in netlink_interfaces.interfaces()]


def has_clusters() -> bool:
    """Whether a cluster of any user has interfaces here."""
    return any(found.alias.startswith(OWNER_LABEL) for found in netlink_interfaces.interfaces())


def create_interfaces(specs: Sequence[dict[str, Any]]) -> None:
    """Create interfaces; existing ones of the same owner are changed to match."""
    for number, spec in enumerate(specs):
        if wrong := require_fields(InterfaceSpec, spec, f"specs[{number}]"):
            raise VclusterError(f"create_interfaces: {wrong}")
    netlink_interfaces.create([InterfaceSpec(**spec) for spec in specs])


def destroy_interfaces(alias: str, names: Sequence[str] | None = None) -> list[str]:
    """Remove the interfaces with this owner label: all, or those in `names`."""
    return list(netlink_interfaces.destroy(alias, names))


def destroy_bridge(name: str) -> None:
    """Remove the bridge of a network that libvirt has stopped, and drafts of its files, if libvirt was killed."""
    netlink_interfaces.destroy_bridge(name)
    for draft in LIBVIRT_DNSMASQ.glob(f"{name}.*.new"):
        draft.unlink(missing_ok=True)


def attach(ports: dict[str, str]) -> list[str]:
    """Attach existing interfaces to their bridges. Return those that were not attached there."""
    masters = {found.name: found.master for found in netlink_interfaces.interfaces()}
    detached = [port for port, master in ports.items() if masters.get(port, master) != master]
    for port in detached:
        netlink_interfaces.attach(port, ports[port])
    return detached


def guard(
    table: str,
    tunnels: Sequence[Sequence[Any]],
    port: int,
    closed: Sequence[str] = (),
    management: tuple[str, str, Sequence[str]] | None = None,
    servers: Sequence[str] = (),
    macs: Sequence[tuple[str, str]] = (),
    ports: tuple[str, str, Sequence[tuple[str, str]], Sequence[tuple[str, str, bool]]] | None = None,
) -> list[tuple[str, str]]:
    """Drop packets that the two servers of a tunnel did not send, and what nodes send to servers.

    A tunnel is given by its VNI, its peer, the interface of the route to the peer, and its own address. Packets of the
    peer may arrive on that interface, and on the one that has the own address. `closed` are interfaces of nodes from
    which this server receives nothing; `management` is the bridge of the management network, its gateway, and the
    networks of its ARP senders. `servers` are the addresses of the cluster's servers. `macs` are the addresses of nodes
    on the management network, each with its MAC. `ports` are the taps of the management network and of the cluster
    network, the ranges of the addresses of all nodes, and for each node its tap, its address and whether it may be a
    DHCP server.
    Returns what root of a node can still do, and why.
    """
    return guard_table.guard(table, guard_table.arrivals(tunnels), port, closed, management, servers, macs, ports)


def remove_guard(table: str) -> None:
    """Remove the table of `guard`."""
    guard_table.remove(table)


def guards(prefix: str) -> list[str]:
    """The names of the tables with this prefix; none without the rights to read them."""
    return list(guard_table.tables(prefix)) if has_rights() else []


def lacking_guards(table: str) -> list[str]:
    """Of inet, arp and bridge, those whose table is missing; none without the rights to read tables."""
    return list(guard_table.lacking(table)) if has_rights() else []


def obstacles(port: int | None) -> list[dict[str, str]]:
    """The settings that would drop traffic of bridges, and with a port of tunnels; none without the rights to read."""
    return [dict(obstacle) for obstacle in find_obstacles(port)] if has_rights() else []


# Frames


def listen(interfaces: Sequence[str]) -> None:
    """Record the probe frames that arrive on these interfaces from now on."""
    raw_frames.listen(interfaces)


def send_frames(frames: Sequence[Sequence[str]], size: int) -> None:
    """Send probe frames of `size` bytes, each given as its interface, its token and its target."""
    for interface, token, target in frames:
        raw_frames.send(interface, token, size, target)


def received_probes(expected: dict[str, list[str]], timeout_s: float) -> dict[str, list[str]]:
    """The tokens that arrived; waits for all `expected` tokens, at most `timeout_s` seconds."""
    return raw_frames.received(timeout_s, expected)


def stop_listening() -> None:
    """Stop recording probe frames."""
    raw_frames.close()


# Files


def folders(path: str) -> list[str]:
    """The names of the folders in a folder."""
    place = Path(path)
    return sorted(entry.name for entry in place.iterdir() if entry.is_dir()) if place.is_dir() else []


def files(path: str) -> list[str]:
    """The names of the files in a folder; none if it does not exist."""
    place = Path(path)
    return sorted(entry.name for entry in place.iterdir() if not entry.is_dir()) if place.is_dir() else []


def label_folder(path: str, label: str) -> None:
    """Write the owner label of a cluster into its folder, if the folder exists. A right one stays as it is.

    So a command on a cluster that has one also works on a full file system.
    """
    if Path(path).is_dir() and label_of(Path(path)) != label:
        draft = Path(path) / f"{LABEL}.new"
        draft.write_text(f"{label}\n")
        draft.rename(Path(path) / LABEL)


def labelled_folders(path: str) -> dict[str, str]:
    """The folders in a folder: their names, with their owner labels, which are empty without one."""
    return {name: label_of(Path(path) / name) for name in folders(path)}


def remove_folder(path: str) -> None:
    """Remove a folder with its content, its owner label last.

    Raises ConflictError for a link: its target may be a folder of a user.
    """
    if Path(path).is_symlink():
        raise ConflictError(
            f"{path} is a link, so vcluster does not remove the folder {os.path.realpath(path)}",
            hint="remove the folder and the link",
        )
    for entry in Path(path).iterdir() if Path(path).is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LABEL:
            entry.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def remove_empty_folders(path: str) -> None:
    """Remove a folder, and the one that it is in, if they are empty."""
    for folder in (Path(path), Path(path).parent):
        try:
            folder.rmdir()
        except OSError:
            return


def remove_traces(networks: Sequence[str], domains: Sequence[str]) -> None:
    """Remove the files that libvirt leaves of removed networks and domains: pid files, port folders, and logs.

    A power cut also leaves the socket folders of domains, named by a number and the domain. A libvirtd that is killed
    leaves the state of a domain that it stops, and the files of dnsmasq of a network. Some have the name of its bridge.
    """
    for name in networks:
        for suffix in DNSMASQ_SUFFIXES:
            (LIBVIRT_DNSMASQ / f"{name}.{suffix}").unlink(missing_ok=True)
        (LIBVIRT_RUN / f"{name}.pid").unlink(missing_ok=True)
        shutil.rmtree(LIBVIRT_RUN / name, ignore_errors=True)
    for name in domains:
        for suffix in ("pid", "xml"):
            (LIBVIRT_DOMAINS / f"{name}.{suffix}").unlink(missing_ok=True)
    removed = {*domains}
    for log in LIBVIRT_LOGS.glob("*.log*"):
        if _domain_of(r"(.+)\.log.*", log) in removed:
            log.unlink(missing_ok=True)
    for sockets in LIBVIRT_SOCKETS:
        for folder in sockets.glob("domain-*"):
            name = _domain_of(r"domain-\d+-(.+)", folder)
            if name in removed and len(name) < LIBVIRT_NAME_CUT:
                shutil.rmtree(folder, ignore_errors=True)


def _domain_of(pattern: str, path: Path) -> str:
    """The domain in the name of a file of libvirt; empty if the name is another."""
    match = re.fullmatch(pattern, path.name)
    return match[1] if match else ""


def tail(path: str, size: int) -> str:
    """The last `size` bytes of a file as text; empty if the file cannot be read."""
    try:
        return system_logs.tail(Path(path), size)
    except (OSError, VclusterError):
        return ""


# Templates


def processor() -> str:
    """The processor as guests with host-passthrough see it: its model and a digest of its flags (proc(5), cpuinfo)."""
    pairs = dict(line.split(":", 1) for line in CPU_INFO.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in pairs.items()}
    flags = hashlib.sha256(fields.get("flags", "").encode()).hexdigest()[:12]
    return " ".join((*(fields.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping")), flags))


def lower_priority(domain: str) -> None:
    """Lower the CPU priority of a domain below all other processes."""
    for thread in _threads(domain):
        with suppress(ProcessLookupError):  # the thread has ended
            os.setpriority(os.PRIO_PROCESS, thread, NICEST)


def prepare_domain(domain: str, taps: Sequence[str], *, is_emulated: bool) -> None:
    """Turn off IPv6 on the taps of a domain that starts; an emulated one also runs as a batch."""
    ipv6.disable(taps)
    if is_emulated:
        with suppress(FileNotFoundError):  # the domain has ended
            _run_as_batch(domain)


def _run_as_batch(domain: str) -> None:
    """Have the threads of a domain interrupted less often (SCHED_BATCH in sched(7)), if this process has the right.

    A container often lacks CAP_SYS_NICE. It is a matter of a few percent of time, so nothing is reported.
    """
    with suppress(PermissionError):
        for thread in _threads(domain):
            with suppress(ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def _threads(domain: str) -> list[int]:
    pid = (LIBVIRT_DOMAINS / f"{domain}.pid").read_text().strip()
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


# KVM


def kvm_conditions() -> dict[str, Any]:
    """The conditions that the KVM verdict depends on, and a reason why KVM cannot work, or empty."""
    return kvm_probe.conditions()


def try_kvm(body: BinaryIO, size: int) -> dict[str, Any]:
    """Boot a kernel under KVM, and return the verdict."""
    return asdict(kvm_probe.boot(body.read(size)))


_MODULES = (
    image_store, snapshot_store, confinement, cluster_survey, server_report, link_limits, counters, frame_counts,
    fault_operations, vcpu_times,
)  # fmt: skip
OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        identity,
        diagnose,
        hidden_mounts,
        clock,
        observe,
        route_to,
        addresses,
        interfaces,
        has_clusters,
        create_interfaces,
        destroy_interfaces,
        destroy_bridge,
        attach,
        guard,
        remove_guard,
        guards,
        lacking_guards,
        obstacles,
        listen,
        send_frames,
        received_probes,
        stop_listening,
        folders,
        files,
        label_folder,
        labelled_folders,
        remove_folder,
        remove_empty_folders,
        remove_traces,
        tail,
        processor,
        lower_priority,
        prepare_domain,
        kvm_conditions,
        try_kvm,
    )
} | {function.__name__: function for module in _MODULES for function in module.OPERATIONS}
