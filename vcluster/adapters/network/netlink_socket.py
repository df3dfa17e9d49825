"""A netlink socket that sends many messages at once. pyroute2 encodes and decodes the messages.

pyroute2's own sockets await the answer to each message, in an event loop. That is too slow for hundreds of interfaces.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, TypeVar

from vcluster.errors import DeadlineError, MissingError

TIMEOUT_S = 60.0  # removing interfaces waits some milliseconds for each (RCU grace periods)
BUFFER_BYTES = 8 * 2**20

ROUTE = 0  # linux/netlink.h
NETFILTER = 12
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NLMSGERR_ATTR_MSG = 1
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_DUMP_TRIES = 10

Message = Any  # pyroute2 has no types
T = TypeVar("T")


class NetlinkError(Exception):
    """The kernel rejected `message`; `code` is an errno, `reason` the kernel's text."""

    def __init__(self, message: Message | None, code: int, reason: str) -> None:
        super().__init__(reason or os.strerror(code))
        self.message = message
        self.code = code
        self.reason = reason or os.strerror(code)


class NetlinkSocket:
    """A netlink socket of one protocol. Use as a context manager."""

    def __init__(self, protocol: int) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as error:
            raise MissingError(f"the kernel has no netlink protocol {protocol}", hint="modprobe nfnetlink") from error
        self._sequence = 0
        self._socket.settimeout(TIMEOUT_S)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            except PermissionError:  # the default is enough for reading, and changes need root
                break

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the kernel then removes what belongs to it. A second call does nothing."""
        self._socket.close()

    def change(self, messages: Sequence[Message], *, tolerated: Collection[int] = ()) -> None:
        """Send messages, if there are any, in one call and await the answers to those with NLM_F_ACK.

        The kernel handles all messages of one call before a signal can end this process. Raises NetlinkError for the
        first message that fails with an errno that is not tolerated; later messages may have taken effect.
        """
        if not messages:
            return
        by_number = {self._number(message): message for message in messages}
        self._socket.send(b"".join(_encoded(message) for message in messages))
        awaited = {number for number, message in by_number.items() if message["header"]["flags"] & NLM_F_ACK}
        while awaited:
            for kind, flags, number, body in self._receive("the answers"):
                if kind != _NLMSG_ERROR or number not in by_number:
                    continue
                code = -struct.unpack_from("=i", body)[0]
                if code and code not in tolerated:
                    raise NetlinkError(by_number[number], code, _reason(flags, body))
                awaited.discard(number)

    def dump(self, message: Message, answer: type[Message]) -> list[Message]:
        """All messages of the kernel's answer. Repeats the request when the kernel's list changed during the answer."""
        return _repeated(lambda: self._dump(message, answer))

    def dump_raw(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of these messages, not decoded, for a reader that needs little of each."""
        return _repeated(lambda: self._dump_raw(kind, body))

    def request(self, message: Message, answer: type[Message]) -> Message:
        """Send a message and return the one message that answers it."""
        number = self._number(message)
        self._socket.send(_encoded(message))
        while True:
            for kind, flags, which, body in self._receive("the answer"):
                if which != number:
                    continue
                if kind == _NLMSG_ERROR:
                    raise NetlinkError(message, -struct.unpack_from("=i", body)[0], _reason(flags, body))
                return _decoded(answer, kind, flags, body)

    def _dump(self, message: Message, answer: type[Message]) -> list[Message] | None:
        number = self._number(message)
        message["header"]["flags"] |= NLM_F_DUMP
        self._socket.send(_encoded(message))
        found = self._listed(number, message)
        return None if found is None else [_decoded(answer, kind, flags, body) for kind, flags, body in found]

    def _dump_raw(self, kind: int, body: bytes) -> list[bytes] | None:
        self._sequence += 1
        flags = NLM_F_REQUEST | NLM_F_DUMP
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        found = self._listed(self._sequence, None)
        return None if found is None else [each for _, _, each in found]

    def _listed(self, number: int, message: Message | None) -> list[tuple[int, int, bytes]] | None:
        """The messages of an answer: type, flags, body; None if the kernel's list changed meanwhile."""
        found: list[tuple[int, int, bytes]] = []
        is_whole = True
        while True:
            for kind, flags, which, body in self._receive("the list"):
                if which != number:
                    continue
                is_whole = is_whole and not flags & NLM_F_DUMP_INTR
                if kind == _NLMSG_ERROR:
                    raise NetlinkError(message, -struct.unpack_from("=i", body)[0], _reason(flags, body))
                if kind == _NLMSG_DONE:
                    return found if is_whole else None
                found.append((kind, flags, body))

    def _number(self, message: Message) -> int:
        self._sequence += 1
        message["header"]["sequence_number"] = self._sequence
        return self._sequence

    def _receive(self, awaited: str) -> list[tuple[int, int, int, bytes]]:
        """The messages of the next datagram: type, flags, sequence number, body."""
        try:
            data = self._socket.recv(2**20)
        except TimeoutError as error:
            raise DeadlineError(f"timed out after {TIMEOUT_S:.0f} s waiting for {awaited} of the kernel") from error
        except OSError as error:
            raise NetlinkError(None, error.errno or errno.EIO, "") from error
        found: list[tuple[int, int, int, bytes]] = []
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, flags, number, _ = _HEADER.unpack_from(data, at)
            found.append((kind, flags, number, data[at + _HEADER.size : at + length]))
            at += (length + 3) & ~3
        return found


def _repeated(read: Callable[[], list[T] | None]) -> list[T]:
    """What `read` returns, as soon as it is not None. Raises DeadlineError after some tries."""
    for _ in range(_DUMP_TRIES):
        found = read()
        if found is not None:
            return found
    raise DeadlineError("cannot read the kernel's list of interfaces or rules: it changes too often")


def as_received(message: Message) -> Message:
    """A message in the form in which the kernel would send it to us."""
    data = _encoded(message)
    return _decoded(type(message), message["header"]["type"], message["header"]["flags"], data[_HEADER.size :])


def _encoded(message: Message) -> bytes:
    message.reset()
    message.encode()
    data = bytes(message.data)
    return data + bytes(-len(data) % 4)


def _decoded(answer: type[Message], kind: int, flags: int, body: bytes) -> Message:
    message = answer(_HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body)
    message.decode()
    return message


def _reason(flags: int, body: bytes) -> str:
    """The text that the kernel adds to an error number (extended ACK); empty without one."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    at = 4 + _HEADER.size
    if not flags & NLM_F_CAPPED:
        at = 4 + ((_HEADER.unpack_from(body, 4)[0] + 3) & ~3)
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            break
        if kind == _NLMSGERR_ATTR_MSG:
            return body[at + 4 : at + length].rstrip(b"\0").decode(errors="replace")
        at += (length + 3) & ~3
    return ""
