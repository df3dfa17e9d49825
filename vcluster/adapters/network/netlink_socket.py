"""A netlink socket that sends many messages at once. pyroute2 writes and reads the messages themselves.

pyroute2's own sockets await the answer to each message, inside an event loop: too slow for hundreds of links.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any

from vcluster.errors import DeadlineError, MissingError

TIMEOUT_S = 60.0  # removing links waits for the kernel's readers, some milliseconds for each
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

Message = Any  # a message of pyroute2's, which has no types


class Refused(Exception):
    """The kernel refused a message; `message` is ours, `code` an errno, `reason` the kernel's words."""

    def __init__(self, message: Message | None, code: int, reason: str) -> None:
        super().__init__(reason or os.strerror(code))
        self.message = message
        self.code = code
        self.reason = reason or os.strerror(code)


class Channel:
    """A netlink socket of one protocol, to be used in a `with`."""

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
            except PermissionError:  # enough for looking, and changing needs root anyway
                break

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def change(self, messages: Sequence[Message], *, tolerated: Collection[int] = ()) -> None:
        """Send messages in one go and await the answers to those that ask for one.

        The kernel deals with all that is sent in one go before a signal can end this process. Raises Refused for the
        first message that fails with an errno not tolerated; those after it may have been done all the same.
        """
        by_number = {self._number(message): message for message in messages}
        self._socket.send(b"".join(_encoded(message) for message in messages))
        awaited = {number for number, message in by_number.items() if message["header"]["flags"] & NLM_F_ACK}
        while awaited:
            for kind, flags, number, body in self._receive("the kernel's answers"):
                if kind != _NLMSG_ERROR or number not in by_number:
                    continue
                code = -struct.unpack_from("=i", body)[0]
                if code and code not in tolerated:
                    raise Refused(by_number[number], code, _reason(flags, body))
                awaited.discard(number)

    def dump(self, message: Message, answer: type[Message]) -> list[Message]:
        """All messages of the kernel's answer to a question. Asks again when something changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            found = self._dump(message, answer)
            if found is not None:
                return found
        raise DeadlineError("the kernel's lists of links or rules change too fast to be read")

    def ask(self, message: Message, answer: type[Message]) -> Message:
        """The one message that answers a question."""
        number = self._number(message)
        self._socket.send(_encoded(message))
        while True:
            for kind, flags, which, body in self._receive("the kernel's answer"):
                if which != number:
                    continue
                if kind == _NLMSG_ERROR:
                    raise Refused(message, -struct.unpack_from("=i", body)[0], _reason(flags, body))
                return _decoded(answer, kind, flags, body)

    def _dump(self, message: Message, answer: type[Message]) -> list[Message] | None:
        number = self._number(message)
        message["header"]["flags"] |= NLM_F_DUMP
        self._socket.send(_encoded(message))
        found: list[Message] = []
        is_whole = True
        while True:
            for kind, flags, which, body in self._receive("the kernel's list"):
                if which != number:
                    continue
                is_whole = is_whole and not flags & NLM_F_DUMP_INTR
                if kind == _NLMSG_ERROR:
                    raise Refused(message, -struct.unpack_from("=i", body)[0], _reason(flags, body))
                if kind == _NLMSG_DONE:
                    return found if is_whole else None
                found.append(_decoded(answer, kind, flags, body))

    def _number(self, message: Message) -> int:
        self._sequence += 1
        message["header"]["sequence_number"] = self._sequence
        return self._sequence

    def _receive(self, awaited: str) -> list[tuple[int, int, int, bytes]]:
        """The messages of the next datagram: type, flags, sequence number, body."""
        try:
            data = self._socket.recv(2**20)
        except TimeoutError as error:
            raise DeadlineError(f"{awaited} did not come within {TIMEOUT_S:.0f} s") from error
        except OSError as error:
            raise Refused(None, error.errno or errno.EIO, "") from error
        found: list[tuple[int, int, int, bytes]] = []
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, flags, number, _ = _HEADER.unpack_from(data, at)
            found.append((kind, flags, number, data[at + _HEADER.size : at + length]))
            at += (length + 3) & ~3
        return found


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
    """The words the kernel adds to an error number, if any."""
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
