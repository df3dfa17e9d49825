"""Finds the machines on the cluster network by leases, ARP answers and ping answers.

The controller sends it to the head, where python3 runs it as root. It reads from standard input
  {"interface", "subnet", "own", "leases", "sweep_max", "timeout"}
`own` is this machine's address. `leases` is dnsmasq's file, which may be missing. `sweep_max` is the largest number of
addresses to try, from the lowest on. `timeout` is the wait for the last answers in seconds. It writes
  {"found": [{"address", "mac", "name", "found_by"}], "swept": "FIRST-LAST"}
sorted by address, or {"error"}. `name` is the name that a machine sent when it asked for a lease. `found_by` holds
"self", "lease", "neighbour" (the machine answered ARP, which no host can refuse) and "ping". A lease alone means only
that the machine was there earlier.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from typing import Any, Dict

Request = Dict[str, Any]
Machines = Dict[str, Dict[str, Any]]

# The neighbour table holds 1024 entries (net.ipv4.neigh.default.gc_thresh3), and an unanswered one for 3 s.
BATCH, PAUSE_S = 256, 1.0
# Packets that wait for ARP count against the socket's buffer; the kernel's default is too small for a batch.
BUFFER_BYTES = 4 << 20
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h; Python does not name them
COMPLETE = 0x2  # in /proc/net/arp: the address is known (ATF_COM, linux/if_arp.h)


def checksum(data: bytes) -> int:
    """RFC 1071, for an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def echo(identifier: int, number: int) -> bytes:
    """An ICMP echo request, RFC 792."""
    return struct.pack("!BBHHH", 8, 0, checksum(struct.pack("!BBHHH", 8, 0, 0, identifier, number)), identifier, number)


def forget(interface: str) -> None:
    """Empty the neighbour table, which holds machines long after they left. New entries are fresh answers."""
    argv = ["ip", "-4", "neigh", "flush", "dev", interface]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")


def open_socket(interface: str) -> socket.socket:
    ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    ping.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    ping.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    ping.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    return ping


def receive(ping: socket.socket, identifier: int, seconds: float) -> set[str]:
    """The addresses that answer within this time."""
    answered, end = set(), time.monotonic() + seconds
    while select.select([ping], [], [], max(0.0, end - time.monotonic()))[0]:
        packet, (sender, _) = ping.recvfrom(2048)
        message = packet[(packet[0] & 15) * 4 :]  # after the IP header
        if len(message) >= 8 and message[0] == 0 and message[4:6] == struct.pack("!H", identifier):
            answered.add(sender)
    return answered


def sweep(interface: str, addresses: list[str], timeout: float) -> set[str]:
    """Send one ping to each address; return the addresses that answered."""
    identifier, answered = os.getpid() & 0xFFFF, set()
    with open_socket(interface) as ping:
        for start in range(0, len(addresses), BATCH):
            for number, address in enumerate(addresses[start : start + BATCH], start):
                ping.sendto(echo(identifier, number & 0xFFFF), (address, 0))
            answered |= receive(ping, identifier, PAUSE_S if start + BATCH < len(addresses) else timeout)
    return answered


def neighbours(interface: str) -> dict[str, str]:
    """The MAC of each machine that answered ARP, by its address (proc_net(5), arp)."""
    with open("/proc/net/arp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return {row[0]: row[3] for row in rows if row[5] == interface and int(row[2], 16) & COMPLETE}


def leases(path: str) -> dict[str, tuple[str, str]]:
    """MAC and name of each valid lease, by address. A line of dnsmasq: end (or 0), MAC, address, name, client."""
    try:
        with open(path, errors="replace") as file:  # machines choose their names
            rows = [line.split() for line in file]
    except FileNotFoundError:
        return {}
    now = time.time()
    valid = [row for row in rows if len(row) >= 4 and row[0].isdigit() and (row[0] == "0" or int(row[0]) > now)]
    return {row[2]: (row[1], "" if row[3] == "*" else row[3]) for row in valid}


def mac_of(interface: str) -> str:
    with open(f"/sys/class/net/{interface}/address") as file:
        return file.read().strip()


def targets(request: Request) -> list[str]:
    hosts = ipaddress.ip_network(request["subnet"]).hosts()
    return [str(address) for address in itertools.islice(hosts, request["sweep_max"])]


def note(found: Machines, address: str, by: str, mac: str = "", name: str = "") -> None:
    entry = found.setdefault(address, {"address": address, "mac": mac, "name": name, "found_by": []})
    entry["found_by"].append(by)
    if mac and mac != entry["mac"]:  # not the machine that has the lease
        entry.update(mac=mac, name=name)


def discover(request: Request) -> dict[str, Any]:
    interface, addresses = request["interface"], targets(request)
    forget(interface)
    answered = sweep(interface, [address for address in addresses if address != request["own"]], request["timeout"])
    found: Machines = {}
    note(found, request["own"], "self", mac_of(interface))
    for address, (mac, name) in leases(request["leases"]).items():
        note(found, address, "lease", mac, name)
    for address, mac in neighbours(interface).items():
        note(found, address, "neighbour", mac)
    for address in answered:
        note(found, address, "ping")
    ordered = sorted(found.values(), key=lambda entry: ipaddress.ip_address(entry["address"]))
    return {"found": ordered, "swept": f"{addresses[0]}-{addresses[-1]}"}


def main() -> None:
    answer: dict[str, Any]
    try:
        answer = discover(json.load(sys.stdin))
    except OSError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
