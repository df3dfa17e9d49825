"""Proof by real frames: what is sent out of one interface and comes in at another has found its way.

A probe is a broadcast Ethernet frame with an IPv4 UDP packet that may not be fragmented, and a token that tells it from
all others. One socket hears all interfaces, one speaks; they last until `close`, since the kernel takes its time to
close such sockets.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

from vcluster.errors import MissingError, RequestError, VclusterError

HEADERS_BYTES = 28  # IPv4 and UDP
SOURCE = "192.0.2.1"  # of TEST-NET-1, which is nobody's
TARGET = "192.0.2.255"
PORT = 9  # the discard service
MAGIC = b"vcluster-probe "

_ETH_P_IP = 0x0800
_ETH_P_ALL = 0x0003
_ETHERNET = 14  # bytes of its header
_DONT_FRAGMENT = 0x4000
_BUFFER_BYTES = 64 * 2**20  # a frame across a switch of n ports comes n times, and waits here until it is asked for
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SO_RCVBUFFORCE = 33
_PACKET_TYPE = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_LOAD_WORD, _LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06  # linux/filter.h

_lock = threading.Lock()
_ear: socket.socket | None = None
_mouth: socket.socket | None = None
_found: dict[str, set[str]] = {}


def listen(interfaces: Sequence[str]) -> None:
    """Hear the probes that come in on these interfaces from now on; what was heard before is forgotten.

    Raises MissingError when one does not exist or we have no right to listen.
    """
    global _ear  # noqa: PLW0603 - a socket for the whole process, as the agent has no other place to keep it
    present = {name for _, name in socket.if_nameindex()}
    for name in interfaces:
        if name not in present:
            raise MissingError(f"there is no interface {name} to listen on", hint="vcluster status")
    close()
    with _lock:
        _ear = _open_receiver()
        _found.update((name, set()) for name in interfaces)


def close() -> None:
    """Listen no more. Not to have listened is fine."""
    global _ear, _mouth  # noqa: PLW0603
    with _lock:
        for one in (_ear, _mouth):
            if one is not None:
                one.close()
        _ear = _mouth = None
        _found.clear()


def send(interface: str, token: str, size: int, count: int = 1) -> None:
    """Send `count` probes with this token out of an interface, each an IPv4 packet of `size` bytes.

    Raises RequestError when the interface's MTU is smaller, MissingError when there is no such interface.
    """
    global _mouth  # noqa: PLW0603
    frame = probe(token, size)
    try:
        with _lock:
            _mouth = _mouth or socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            for _ in range(count):
                _mouth.sendto(frame, (interface, _ETH_P_IP))
    except OSError as error:
        raise _translate_error(error, interface, size) from error


def received(timeout_s: float, wanted: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The tokens that came in, by interface, as soon as all that is wanted has come, or when time is up."""
    deadline = time.monotonic() + timeout_s
    with _lock:
        if _ear is None:
            raise VclusterError("nobody listens for frames; call listen first")
        _receive(_ear, 0.0)  # what waits already, also when time is up at once
        while _missing(wanted) and (left := deadline - time.monotonic()) > 0:
            _receive(_ear, left)
        return {name: sorted(tokens) for name, tokens in _found.items()}


def probe(token: str, size: int) -> bytes:
    """The frame that carries a token, its IPv4 packet `size` bytes long. Pure.

    Each token has a hardware address of its own, so that no bridge learns a node's address from a probe.
    """
    text = MAGIC + struct.pack(">H", len(token.encode())) + token.encode()
    room = size - HEADERS_BYTES
    if not len(text) <= room <= 0xFFFF - HEADERS_BYTES:
        raise RequestError(f"a probe of {size} bytes cannot hold its token, {token!r}; at least {len(text) + 28}")
    address = b"\x02" + hashlib.sha256(token.encode()).digest()[:5]
    payload = text.ljust(room, b"\0")
    datagram = struct.pack(">HHHH", PORT, PORT, 8 + room, 0) + payload
    ends = socket.inet_aton(SOURCE) + socket.inet_aton(TARGET)
    header = struct.pack(">BBHHHBBH", 0x45, 0, size, 0, _DONT_FRAGMENT, 64, socket.IPPROTO_UDP, 0) + ends
    header = header[:10] + struct.pack(">H", _checksum(header)) + header[12:]
    return b"\xff" * 6 + address + struct.pack(">H", _ETH_P_IP) + header + datagram


def token_of(frame: bytes) -> str | None:
    """The token that a frame carries, or None when it is no probe. Pure."""
    at = _ETHERNET + HEADERS_BYTES
    body = frame[at + len(MAGIC) :]
    if frame[at : at + len(MAGIC)] != MAGIC or len(body) < 2:
        return None
    length = int.from_bytes(body[:2], "big")
    return body[2 : 2 + length].decode(errors="replace")


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _missing(wanted: Mapping[str, Iterable[str]]) -> bool:
    return any(set(tokens) - _found.get(name, set()) for name, tokens in wanted.items())


def _receive(ear: socket.socket, timeout_s: float) -> None:
    """Take in what waits; when nothing does, what comes next."""
    ear.settimeout(timeout_s)
    while True:
        try:
            frame, (interface, *_) = ear.recvfrom(2048)
        except (TimeoutError, BlockingIOError):
            return
        except OSError as error:
            if error.errno == errno.ENETDOWN:  # some interface went down
                continue
            raise VclusterError(f"frames cannot be heard: {error.strerror or error}") from error
        token = token_of(frame)
        if token is not None and interface in _found:
            _found[interface].add(token)
        ear.settimeout(0)


def _open_receiver() -> socket.socket:
    """A socket that gets the probes of all interfaces, and no other frame, before any bridge takes them."""
    try:
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    except PermissionError as error:
        raise MissingError("hearing frames needs root", hint="run it with sudo") from error
    _attach_filter(ear)
    with contextlib.suppress(PermissionError):  # root of a container: less room will have to do
        ear.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    return ear


def _attach_filter(ear: socket.socket) -> None:
    """Let the kernel drop what is no probe or is on its way out."""
    conditions = (
        (_LOAD_WORD, _PACKET_TYPE, socket.PACKET_BROADCAST),
        (_LOAD_HALF, 12, _ETH_P_IP),
        (_LOAD_WORD, _ETHERNET + 12, struct.unpack(">I", socket.inet_aton(SOURCE))[0]),
        (_LOAD_WORD, _ETHERNET + 16, struct.unpack(">I", socket.inet_aton(TARGET))[0]),
        (_LOAD_HALF, _ETHERNET + 22, PORT),
    )
    program = b""
    for number, (load, at, value) in enumerate(conditions):
        to_refusal = 2 * (len(conditions) - number) - 1
        program += struct.pack("=HBBI", load, 0, 0, at) + struct.pack("=HBBI", _JUMP_EQUAL, 0, to_refusal, value)
    program += struct.pack("=HBBI", _RETURN, 0, 0, 0xFFFF) + struct.pack("=HBBI", _RETURN, 0, 0, 0)
    buffer = ctypes.create_string_buffer(program)
    ear.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(buffer)))


def _translate_error(error: OSError, interface: str, size: int) -> VclusterError:
    if isinstance(error, PermissionError):
        return MissingError("sending frames needs root", hint="run it with sudo")
    if error.errno == errno.ENODEV:
        return MissingError(f"there is no interface {interface} to send from", hint="vcluster status")
    if error.errno == errno.EMSGSIZE:
        return RequestError(
            f"a packet of {size} bytes is too large for {interface}", hint=f"ip link show {interface} tells its MTU"
        )
    return VclusterError(f"nothing can be sent out of {interface}: {error.strerror or error}")
