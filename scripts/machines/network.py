"""The network of all machines: a network namespace with a bridge, the LAN, and a route to the outside."""

from __future__ import annotations

import socket
import sys

from testbeds.namespaces import entering, fork_first_process, start
from testbeds.programs import NamespaceError, last_lines, run
from testbeds.servers import end, read_process, write_process
from testbeds.uplink import UPLINK, UPLINK_DNS, start_uplink

from .records import MACHINE, NETWORK, Machine

BRIDGE = "lan"
LOG = NETWORK / "log"
RESOLVER = NETWORK / "resolv.conf"  # the name server that the QEMUs ask


def ensure_network() -> int:
    """Start the network, unless it runs. Returns the process id of its first process."""
    if read_process(NETWORK) is None:
        NETWORK.mkdir(exist_ok=True)
        start([sys.executable, str(MACHINE), "_network"], LOG)
    process = read_process(NETWORK)
    if process is None:
        raise NamespaceError(f"the network did not start: {last_lines(LOG)}")
    inside = entering(process.pid, ["net"])
    links = run([*inside, "ip", "-brief", "link"])
    if BRIDGE not in links.split():
        run([*inside, "ip", "link", "add", BRIDGE, "type", "bridge"])
        run([*inside, "ip", "link", "set", BRIDGE, "up"])
    if UPLINK not in links.split():
        RESOLVER.write_text(f"nameserver {UPLINK_DNS}\n")
        start_uplink(process.pid, LOG)
    return process.pid


def be_network() -> None:
    """Fork the first process of the network. Its namespaces are new."""
    fork_first_process(write_process(NETWORK), prepare, None)


def prepare() -> None:
    socket.sethostname("vcluster-machines")
    run(["mount", "-t", "proc", "proc", "/proc"])
    run(["ip", "link", "set", "lo", "up"])


def plug_lan(machine: Machine) -> None:
    """Connect the second interface of a machine to the LAN."""
    run([*entering(machine.require_process().pid, ["net"]), "ip", "link", "set", machine.tap, "master", BRIDGE, "up"])


def end_network() -> None:
    process = read_process(NETWORK)
    if process is not None:
        end(process)
