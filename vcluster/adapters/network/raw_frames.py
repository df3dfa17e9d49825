"""Probe frames: sent out of one interface and received at another, they prove the path between the two.

A probe is an Ethernet frame with an IPv4 UDP packet that must not be fragmented. It carries a unique token, from which
its source address follows. A probe without a target goes to the next bridge, which learns the source address and does
not forward the frame. A probe whose target is another token goes to the source address of that one: a bridge that has
learned it sends the frame to one port. So a switch with N ports forwards N probes, not N².

One socket receives from all interfaces and one sends. Both stay open until `close`, because the kernel closes such
sockets slowly.
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
SOURCE = "192.0.2.1"  # of TEST-NET-1, for documentation only (RFC 5737)
TARGET = "192.0.2.255"
PORT = 9  # the discard service
MAGIC = b"vcluster-probe "

_ETH_P_IP = 0x0800
_ETH_P_ALL = 0x0003
_ETHERNET = 14  # bytes of its header
_DONT_FRAGMENT = 0x4000
_NEAREST_BRIDGE = bytes.fromhex("0180c200000e")  # no bridge forwards it (IEEE 802.1Q)
_BUFFER_BYTES = 64 * 2**20  # all frames wait here until they are read
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_SO_RCVBUFFORCE = 33
_PACKET_TYPE = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_LOAD_WORD, _LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06  # linux/filter.h

_lock = threading.Lock()
_receiver: socket.socket | None = None
_sender: socket.socket | None = None
_found: dict[str, set[str]] = {}


def listen(interfaces: Sequence[str]) -> None:
    """Record the probes that arrive on these interfaces from now on; forget earlier ones.

    Raises MissingError when an interface does not exist or this process is not root.
    """
    global _receiver  # noqa: PLW0603 - the agent's operations are functions, so the socket belongs to the process
    present = {name for _, name in socket.if_nameindex()}
    for name in interfaces:
        if name not in present:
            raise MissingError(f"cannot listen: interface {name} does not exist", hint="vcluster status")
    close()
    with _lock:
        _receiver = _open_receiver()
        _found.update((name, set()) for name in interfaces)


def close() -> None:
    """Stop listening, if `listen` was called."""
    global _receiver, _sender  # noqa: PLW0603
    with _lock:
        for opened in (_receiver, _sender):
            if opened is not None:
                opened.close()
        _receiver = _sender = None
        _found.clear()


def send(interface: str, token: str, size: int, target: str = "") -> None:
    """Send a probe with this token out of an interface, an IPv4 packet of `size` bytes.

    Raises RequestError when the interface's MTU is smaller, MissingError when the interface does not exist.
    """
    global _sender  # noqa: PLW0603
    frame = probe(token, size, target)
    try:
        with _lock:
            _sender = _sender or socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            _sender.sendto(frame, (interface, _ETH_P_IP))
    except OSError as error:
        raise _translate_error(error, interface, size) from error


def received(timeout_s: float, expected: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The tokens that arrived, by interface; waits for all `expected` tokens, at most `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    with _lock:
        if _receiver is None:
            raise VclusterError("not listening for frames; call listen first")
        _receive(_receiver, 0.0)  # read the waiting frames even if the timeout is 0
        while _missing(expected) and (left := deadline - time.monotonic()) > 0:
            _receive(_receiver, left)
        return {name: sorted(tokens) for name, tokens in _found.items()}


def probe(token: str, size: int, target: str = "") -> bytes:
    """The frame that carries a token to a target; its IPv4 packet has `size` bytes. Pure.

    Each token has its own source MAC address, so that no bridge learns a node's address from a probe.
    """
    text = MAGIC + struct.pack(">H", len(token.encode())) + token.encode()
    room = size - HEADERS_BYTES
    if not len(text) <= room <= 0xFFFF - HEADERS_BYTES:
        raise RequestError(
            f"a probe of {size} bytes is too small for token {token!r}; it needs {len(text) + HEADERS_BYTES}"
        )
    payload = text.ljust(room, b"\0")
    datagram = struct.pack(">HHHH", PORT, PORT, 8 + room, 0) + payload
    ends = socket.inet_aton(SOURCE) + socket.inet_aton(TARGET)
    header = struct.pack(">BBHHHBBH", 0x45, 0, size, 0, _DONT_FRAGMENT, 64, socket.IPPROTO_UDP, 0) + ends
    header = header[:10] + struct.pack(">H", _checksum(header)) + header[12:]
    addresses = (_address_of(target) if target else _NEAREST_BRIDGE) + _address_of(token)
    return addresses + struct.pack(">H", _ETH_P_IP) + header + datagram


def _address_of(token: str) -> bytes:
    return b"\x02" + hashlib.sha256(token.encode()).digest()[:5]


def token_of(frame: bytes) -> str | None:
    """The token that a frame carries, or None if it is not a probe. Pure."""
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


def _missing(expected: Mapping[str, Iterable[str]]) -> bool:
    return any(set(tokens) - _found.get(name, set()) for name, tokens in expected.items())


def _receive(receiver: socket.socket, timeout_s: float) -> None:
    """Record the waiting frames; wait up to `timeout_s` seconds for the first."""
    receiver.settimeout(timeout_s)
    while True:
        try:
            frame, (interface, *_) = receiver.recvfrom(2048)
        except (TimeoutError, BlockingIOError):
            return
        except OSError as error:
            if error.errno == errno.ENETDOWN:  # an interface went down
                continue
            raise VclusterError(f"cannot receive frames: {error.strerror or error}") from error
        token = token_of(frame)
        if token is not None and interface in _found:
            _found[interface].add(token)
        receiver.settimeout(0)


def _open_receiver() -> socket.socket:
    """A socket that gets only probes, of all interfaces, before a bridge takes them."""
    try:
        receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    except PermissionError as error:
        raise MissingError("receiving frames needs root", hint="run it with sudo") from error
    _attach_filter(receiver)
    with contextlib.suppress(PermissionError):  # root of a container has to use a smaller buffer
        receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    return receiver


def _attach_filter(receiver: socket.socket) -> None:
    """Have the kernel drop outgoing frames and frames that are not probes."""
    conditions = (
        (_LOAD_HALF, 12, _ETH_P_IP),
        (_LOAD_WORD, _ETHERNET + 12, struct.unpack(">I", socket.inet_aton(SOURCE))[0]),
        (_LOAD_WORD, _ETHERNET + 16, struct.unpack(">I", socket.inet_aton(TARGET))[0]),
        (_LOAD_HALF, _ETHERNET + 22, PORT),
    )
    drop_outgoing = 2 * len(conditions) + 1
    program = struct.pack("=HBBI", _LOAD_WORD, 0, 0, _PACKET_TYPE)
    program += struct.pack("=HBBI", _JUMP_EQUAL, drop_outgoing, 0, socket.PACKET_OUTGOING)
    for number, (load, at, value) in enumerate(conditions):
        to_drop = 2 * (len(conditions) - number) - 1
        program += struct.pack("=HBBI", load, 0, 0, at) + struct.pack("=HBBI", _JUMP_EQUAL, 0, to_drop, value)
    program += struct.pack("=HBBI", _RETURN, 0, 0, 0xFFFF) + struct.pack("=HBBI", _RETURN, 0, 0, 0)
    buffer = ctypes.create_string_buffer(program)
    receiver.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
    )


def _translate_error(error: OSError, interface: str, size: int) -> VclusterError:
    if isinstance(error, PermissionError):
        return MissingError("sending frames needs root", hint="run it with sudo")
    if error.errno == errno.ENODEV:
        return MissingError(f"cannot send: interface {interface} does not exist", hint="vcluster status")
    if error.errno == errno.EMSGSIZE:
        return RequestError(
            f"a packet of {size} bytes is too large for {interface}", hint=f"ip link show {interface} prints its MTU"
        )
    return VclusterError(f"cannot send out of {interface}: {error.strerror or error}")
