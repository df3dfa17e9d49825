"""Read the head of a file by virDomainSave, and write it with other XML. Pure.

libvirt restores the domain that the XML in the file describes: its name, UUID and disks. The format is not stable, so
this module refuses everything that it does not know.

The file begins with 16 bytes of magic. Little-endian 32-bit numbers follow: version, length of the data, whether the
domain was running, compression, offset of the cookie; zeros up to byte 92. The data is the XML and the cookie, each
with a final zero byte, then zeros. QEMU's stream follows (src/qemu/qemu_saveimage.h in libvirt 9.0).
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
    """The file is not a saved domain, is incomplete, or has an unknown format."""


@dataclass(frozen=True, slots=True)
class SaveHead:
    """The head of a saved domain's file, before QEMU's stream. `data_bytes` stays the same for other XML."""

    xml: str
    cookie: str
    data_bytes: int
    was_running: bool

    @property
    def size_bytes(self) -> int:
        """The offset of QEMU's stream."""
        return HEADER_BYTES + self.data_bytes


def data_bytes_of(start: bytes) -> int:
    """The length of the data after a header. Raises SaveFileError for an unknown header."""
    return _header(start)[0]


def read(start: bytes) -> SaveHead:
    """The head of a saved domain's file; `start` has at least the header and the data. Raises SaveFileError."""
    data_bytes, was_running, cookie_at = _header(start)
    data = start[HEADER_BYTES : HEADER_BYTES + data_bytes]
    if len(data) < data_bytes:
        raise SaveFileError(f"the saved domain is cut off: {len(data)} of {data_bytes} bytes of XML")
    xml, end = _text(data, 0, "XML")
    cookie = ""
    if cookie_at:
        if cookie_at < end:
            raise SaveFileError(f"the saved domain has its cookie at byte {cookie_at}, inside the XML of {end} bytes")
        cookie, end = _text(data, cookie_at, "cookie")
    if data[end:].strip(b"\0"):
        raise SaveFileError("the saved domain has unknown data after its XML and cookie")
    return SaveHead(xml, cookie, data_bytes, was_running)


def write(head: SaveHead) -> bytes:
    """The head as bytes, of unchanged length. Raises SaveFileError if the new XML is too long for that."""
    xml, cookie = head.xml.encode() + b"\0", head.cookie.encode() + b"\0" if head.cookie else b""
    data = xml + cookie
    if len(data) > head.data_bytes:
        raise SaveFileError(f"{len(data)} bytes of XML do not fit into the {head.data_bytes} of the saved domain")
    cookie_at = len(xml) if cookie else 0
    header = _NUMBERS.pack(MAGIC, VERSION, head.data_bytes, head.was_running, UNCOMPRESSED, cookie_at, bytes(56))
    return header + data.ljust(head.data_bytes, b"\0")


def _header(start: bytes) -> tuple[int, bool, int]:
    """The length of the data, whether the domain was running, and the cookie's offset in the data (0 without one)."""
    if len(start) < HEADER_BYTES:
        raise SaveFileError(f"the saved domain is cut off: {len(start)} bytes")
    magic, version, data_bytes, was_running, compression, cookie_at, reserved = _NUMBERS.unpack(start[:HEADER_BYTES])
    if magic == MAGIC_PARTIAL:
        raise SaveFileError("the saved domain is incomplete: libvirt did not finish the file")
    if magic != MAGIC:
        raise SaveFileError("the file is not a domain saved by libvirt")
    if version != VERSION:
        raise SaveFileError(f"the saved domain has version {version}, but only {VERSION} is known")
    if not 1 < data_bytes <= DATA_BYTES_MAX:
        raise SaveFileError(f"the saved domain has an impossible length of XML: {data_bytes} bytes")
    if was_running not in (0, 1) or compression != UNCOMPRESSED or any(reserved) or cookie_at >= data_bytes:
        raise SaveFileError("the saved domain has unknown values in its header")
    return data_bytes, bool(was_running), cookie_at


def _text(data: bytes, start: int, part: str) -> tuple[str, int]:
    """An XML text, and the offset after it."""
    end = data.find(b"\0", start)
    if end <= start:
        raise SaveFileError(f"the {part} of the saved domain is missing or has no end")
    try:
        text = data[start:end].decode()
        ET.fromstring(text)  # noqa: S314 - written by libvirt
    except (UnicodeDecodeError, ET.ParseError) as error:
        raise SaveFileError(f"the {part} of the saved domain is not XML: {error}") from error
    return text, end + 1
