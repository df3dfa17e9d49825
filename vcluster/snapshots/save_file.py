"""The head of a file that libvirt keeps a domain's memory in (virDomainSave), read, and written with other XML. Pure.

libvirt restores a domain under its own name, UUID and disks; only the XML inside the file says which. The format is
not promised, so nothing is taken that is not known: 16 bytes of magic, then little-endian 32-bit numbers: version,
length of the data, whether it was running, compression, place of the cookie; zeros up to byte 92. The data is the XML
and the cookie, each ended by a zero byte, then zeros; QEMU's stream follows (src/qemu/qemu_saveimage.h in libvirt 9.0).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from vcluster.errors import VclusterError

MAGIC, MAGIC_PARTIAL = b"LibvirtQemudSave", b"LibvirtQemudPart"
VERSION = 2
HEADER_BYTES = 92
DATA_BYTES_MAX = 16 * 2**20
UNCOMPRESSED = 0

_NUMBERS = struct.Struct("<16s5I56s")


class SaveFileError(VclusterError):
    """A file that is no saved domain, not a whole one, or one of a format that is not known here."""


@dataclass(frozen=True, slots=True)
class SaveHead:
    """What a saved domain's file begins with, before QEMU's stream. `data_bytes` are kept when the XML is another."""

    xml: str
    cookie: str
    data_bytes: int
    was_running: bool

    @property
    def size_bytes(self) -> int:
        """Where QEMU's stream begins."""
        return HEADER_BYTES + self.data_bytes


def data_bytes_of(start: bytes) -> int:
    """How many bytes of data stand behind a header, which must be of the one kind that is known."""
    return _header(start)[0]


def read(start: bytes) -> SaveHead:
    """What a saved domain's file begins with; `start` holds the header and the data behind it at least."""
    data_bytes, was_running, cookie_at = _header(start)
    data = start[HEADER_BYTES : HEADER_BYTES + data_bytes]
    if len(data) < data_bytes:
        raise SaveFileError(f"the saved domain is cut off: {len(data)} of {data_bytes} bytes of XML")
    xml, end = _text(data, 0, "XML")
    cookie = ""
    if cookie_at:
        if cookie_at < end:
            raise SaveFileError(f"the saved domain has its cookie at {cookie_at}, within the XML of {end} bytes")
        cookie, end = _text(data, cookie_at, "cookie")
    if data[end:].strip(b"\0"):
        raise SaveFileError("the saved domain has something behind its XML and cookie that is not known")
    return SaveHead(xml, cookie, data_bytes, was_running)


def write(head: SaveHead) -> bytes:
    """The beginning of the file, as long as it was. Raises SaveFileError where the XML has grown too long for that."""
    xml, cookie = head.xml.encode() + b"\0", head.cookie.encode() + b"\0" if head.cookie else b""
    data = xml + cookie
    if len(data) > head.data_bytes:
        raise SaveFileError(f"{len(data)} bytes of XML do not fit into the {head.data_bytes} of the saved domain")
    cookie_at = len(xml) if cookie else 0
    header = _NUMBERS.pack(MAGIC, VERSION, head.data_bytes, head.was_running, UNCOMPRESSED, cookie_at, bytes(56))
    return header + data.ljust(head.data_bytes, b"\0")


def _header(start: bytes) -> tuple[int, bool, int]:
    """The length of the data, whether it was running, and the cookie's place in the data, 0 without one."""
    if len(start) < HEADER_BYTES:
        raise SaveFileError(f"the saved domain is cut off: {len(start)} bytes")
    magic, version, data_bytes, was_running, compression, cookie_at, reserved = _NUMBERS.unpack(start[:HEADER_BYTES])
    if magic == MAGIC_PARTIAL:
        raise SaveFileError("the saved domain was never finished")
    if magic != MAGIC:
        raise SaveFileError("this is no saved domain of libvirt's")
    if version != VERSION:
        raise SaveFileError(f"the saved domain is of version {version}; {VERSION} is known")
    if not 1 < data_bytes <= DATA_BYTES_MAX:
        raise SaveFileError(f"the saved domain tells of {data_bytes} bytes of XML")
    if was_running not in (0, 1) or compression != UNCOMPRESSED or any(reserved) or cookie_at >= data_bytes:
        raise SaveFileError("the saved domain has a header with something in it that is not known")
    return data_bytes, bool(was_running), cookie_at


def _text(data: bytes, start: int, what: str) -> tuple[str, int]:
    """A text that is XML, and where the next may begin."""
    end = data.find(b"\0", start)
    if end <= start:
        raise SaveFileError(f"the {what} of the saved domain has no end, or is not there")
    try:
        text = data[start:end].decode()
        ET.fromstring(text)  # noqa: S314 - libvirt has written it
    except (UnicodeDecodeError, ET.ParseError) as error:
        raise SaveFileError(f"the {what} of the saved domain is none: {error}") from error
    return text, end + 1
