"""The head of a saved domain's file: read and written in libvirt's format, and refused in other forms."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcluster.snapshots import save_file
from vcluster.snapshots.save_file import HEADER_BYTES, SaveFileError

# Written by libvirt 9.0.0 (Debian 12), without the padding of zeros.
RECORDED = (Path(__file__).parent.parent / "golden" / "savefile" / "libvirt-9.0.0.head").read_bytes()
HEAD = RECORDED.ljust(HEADER_BYTES + save_file.data_bytes_of(RECORDED), b"\0")
STREAM = b"QEVM\0\0\0\3"  # the beginning of QEMU's stream


def test_a_head_by_libvirt_is_read() -> None:
    head = save_file.read(HEAD + STREAM)
    domain = ET.fromstring(head.xml)
    assert domain.findtext("name") == "lab.template"
    assert domain.findtext("uuid") == "6e6e6d0c-6a5b-5d3c-9c43-0c1f0f5a3a01"
    assert ET.fromstring(head.cookie).tag == "cookie"
    assert head.was_running
    assert (head.data_bytes, head.size_bytes) == (66970, len(HEAD))


def test_a_head_is_written_unchanged() -> None:
    assert save_file.write(save_file.read(HEAD)) == HEAD


@pytest.mark.parametrize("name", ["x", "lab.node1", "lab." + "n" * 5000])
def test_another_name_moves_only_the_cookie(name: str) -> None:
    head = save_file.read(HEAD)
    renamed = replace(head, xml=head.xml.replace("lab.template", name))
    written = save_file.write(renamed)
    assert len(written) == len(HEAD)
    assert save_file.read(written + STREAM) == renamed


def test_xml_that_is_too_long_is_refused() -> None:
    head = save_file.read(HEAD)
    with pytest.raises(SaveFileError, match="do not fit into the 66970"):
        save_file.write(replace(head, xml=head.xml.replace("lab.template", "x" * 70000)))


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), max_size=200), st.booleans())
def test_any_text_in_the_xml_is_read_back(text: str, was_running: bool) -> None:
    element = ET.Element("domain")
    element.text = text
    head = save_file.SaveHead(ET.tostring(element, "unicode"), "", 4096, was_running)
    assert save_file.read(save_file.write(head)) == head


def numbers(**changed: int) -> Callable[[bytes], bytes]:
    """Change numbers in the header."""
    offsets = {"version": 16, "data_bytes": 20, "was_running": 24, "compression": 28, "cookie_at": 32, "reserved": 88}

    def change(head: bytes) -> bytes:
        altered = bytearray(head)
        for name, value in changed.items():
            struct.pack_into("<I", altered, offsets[name], value)
        return bytes(altered)

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda _: b"", "cut off: 0 bytes"),
        (lambda head: head[: HEADER_BYTES - 1], "cut off: 91 bytes"),
        (lambda head: head[:-1], "cut off: 66969 of 66970"),
        (lambda head: b"LibvirtQemudPart" + head[16:], "is incomplete"),
        (lambda head: b"QEVM" + head[4:], "not a domain saved by libvirt"),
        (lambda head: b"\0" * len(head), "not a domain saved by libvirt"),
        (numbers(version=1), "has version 1, but only 2 is known"),
        (numbers(version=3), "has version 3"),
        (numbers(version=0x02000000), "has version 33554432"),  # of a machine with the other byte order
        (numbers(data_bytes=0), "impossible length of XML: 0 bytes"),
        (numbers(data_bytes=2**32 - 1), "impossible length of XML: 4294967295 bytes"),
        (numbers(data_bytes=100, cookie_at=0), "the XML of the saved domain is missing or has no end"),
        (numbers(was_running=2), "unknown values in its header"),
        (numbers(compression=1), "unknown values in its header"),
        (numbers(reserved=1), "unknown values in its header"),
        (numbers(cookie_at=66970), "unknown values in its header"),
        (numbers(cookie_at=10), "inside the XML"),
        (numbers(cookie_at=2000), "the cookie of the saved domain is missing or has no end"),
        (numbers(cookie_at=0), "unknown data after its XML"),
        (lambda head: head.replace(b"<domain", b"<\xff\xfe----", 1), "the XML of the saved domain is not XML"),
        (lambda head: head.replace(b"</domain>", b"</nothing>", 1), "the XML of the saved domain is not XML"),
        (lambda head: head[:HEADER_BYTES] + b"\0" + head[HEADER_BYTES + 1 :], "the XML of the saved domain is missing"),
        (lambda head: head[:-1] + b"x", "unknown data after"),
    ],
)
def test_unknown_heads_are_refused(spoil: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(SaveFileError, match=message):
        save_file.read(spoil(HEAD))
