"""Finds the machines on the cluster network: who has a lease, who answers a ping, who answers at all.

Sent to the head and run there as root by its own python3. Reads from standard input
  {"interface", "subnet", "own", "leases", "sweep_max", "timeout"}
where `own` is this machine's address, `leases` dnsmasq's file (it need not be there), `sweep_max` how many addresses
are tried at most, from the lowest on, and `timeout` how many seconds the last of them is given to answer; and writes
  {"found": [{"address", "mac", "name", "found_by"}], "swept": "FIRST-LAST"}
sorted by address, or {"error"}. `name` is what a machine called itself when it asked for a lease. `found_by` holds
"self", "lease", "neighbour" (it answered ARP, which no host can refuse) and "ping"; a lease alone says that a machine
was there once.
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
OwnedItem = Dict[str, Dict[str, Any]]

# Who does not answer ARP stays in the neighbour table, which holds 1024 (net.ipv4.neigh.default.gc_thresh3), for 3 s.
BATCH, PAUSE_S = 256, 1.0
# Packets that wait for ARP count against the socket; the kernel's own limit would do for no batch.
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
    """The neighbour table keeps the dead for long; what it holds after this has just been heard."""
    argv = ["ip", "-4", "neigh", "flush", "dev", interface]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")


def ears(interface: str) -> socket.socket:
    one = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    one.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    return one


def listen(one: socket.socket, identifier: int, seconds: float) -> set[str]:
    """Who answers within this time."""
    answered, end = set(), time.monotonic() + seconds
    while select.select([one], [], [], max(0.0, end - time.monotonic()))[0]:
        packet, (sender, _) = one.recvfrom(2048)
        message = packet[(packet[0] & 15) * 4 :]  # behind the IP header
        if len(message) >= 8 and message[0] == 0 and message[4:6] == struct.pack("!H", identifier):
            answered.add(sender)
    return answered


def sweep(interface: str, addresses: list[str], timeout: float) -> set[str]:
    """Ask each address once; return those that answered."""
    identifier, answered = os.getpid() & 0xFFFF, set()
    with ears(interface) as one:
        for start in range(0, len(addresses), BATCH):
            for number, address in enumerate(addresses[start : start + BATCH], start):
                one.sendto(echo(identifier, number & 0xFFFF), (address, 0))
            answered |= listen(one, identifier, PAUSE_S if start + BATCH < len(addresses) else timeout)
    return answered


def neighbours(interface: str) -> dict[str, str]:
    """The MAC of each machine that has answered ARP, by its address (proc_net(5), arp)."""
    with open("/proc/net/arp") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return {row[0]: row[3] for row in rows if row[5] == interface and int(row[2], 16) & COMPLETE}


def leases(path: str) -> dict[str, tuple[str, str]]:
    """MAC and name of each lease that lasts, by its address. dnsmasq writes: end (or 0), MAC, address, name, client."""
    try:
        with open(path) as file:
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


def note(found: OwnedItem, address: str, by: str, mac: str = "", name: str = "") -> None:
    entry = found.setdefault(address, {"address": address, "mac": mac, "name": name, "found_by": []})
    entry["found_by"].append(by)
    if mac and mac != entry["mac"]:  # another machine than the one that has the lease
        entry.update(mac=mac, name=name)


def discover(request: Request) -> dict[str, Any]:
    interface, addresses = request["interface"], targets(request)
    forget(interface)
    answered = sweep(interface, [one for one in addresses if one != request["own"]], request["timeout"])
    found: OwnedItem = {}
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
