"""A DHCP client that gets a lease and does not set the address (RFC 2131, options of RFC 2132)."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

ETH_P_IP = 0x0800
SUBNET_MASK, ROUTER, DNS, MTU, ASKED, LEASE_TIME, KIND, SERVER, WANTED, NAME, CLIENT = (
    1,
    3,
    6,
    26,
    50,
    51,
    53,
    54,
    55,
    12,
    61,
)
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
_COOKIE = b"\x63\x82\x53\x63"


@dataclass(frozen=True)
class Lease:
    """A lease: the address, its options, and the time until the offer."""

    address: str
    options: dict[int, bytes]
    seconds: float

    def addresses(self, option: int) -> list[str]:
        """The addresses in an option; none if the option was not sent."""
        value = self.options.get(option, b"")
        return [socket.inet_ntoa(value[start : start + 4]) for start in range(0, len(value), 4)]


def ask(wire: socket.socket, mac: str, *, name: str = "", client: str = "", timeout_s: float = 10) -> Lease:
    """Get a lease over an AF_PACKET socket that is bound to an interface. Raises TimeoutError without an answer."""
    raw = bytes.fromhex(mac.replace(":", ""))
    named = {code: text.encode() for code, text in ((NAME, name), (CLIENT, client)) if text}
    begin = time.monotonic()
    wire.send(_frame(raw, DISCOVER, named))
    address, options = _answer(wire, raw, OFFER, timeout_s)
    seconds = time.monotonic() - begin
    wire.send(_frame(raw, REQUEST, {**named, ASKED: socket.inet_aton(address), SERVER: options[SERVER]}))
    return Lease(*_answer(wire, raw, ACK, timeout_s), seconds)


def _frame(mac: bytes, kind: int, options: dict[int, bytes]) -> bytes:
    sent = {KIND: bytes([kind]), WANTED: bytes([SUBNET_MASK, ROUTER, DNS, MTU]), **options}
    bootp = struct.pack("!4BIHH16x16s192x", 1, 1, 6, 0, int.from_bytes(mac[2:], "big"), 0, 0x8000, mac) + _COOKIE
    bootp += b"".join(bytes([code, len(value)]) + value for code, value in sent.items()) + b"\xff"
    udp = struct.pack("!4H", 68, 67, 8 + len(bootp), 0) + bootp  # without a checksum, as UDP allows
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    total = sum(struct.unpack("!10H", head))
    total = (total >> 16) + (total & 0xFFFF)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return b"\xff" * 6 + mac + struct.pack("!H", ETH_P_IP) + head + udp


def _answer(wire: socket.socket, mac: bytes, kind: int, timeout_s: float) -> tuple[str, dict[int, bytes]]:
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        wire.settimeout(left)
        bootp = wire.recv(2048)[42:]  # behind Ethernet, IP and UDP
        if bootp[:1] == b"\x02" and bootp[28:34] == mac and bootp[236:240] == _COOKIE:
            options = _options(bootp[240:])
            if options[KIND] == bytes([kind]):
                return socket.inet_ntoa(bootp[16:20]), options
    raise TimeoutError("no DHCP server has answered")


def _options(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return found
