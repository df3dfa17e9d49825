"""The split of QEMU's stream: every page stays in its place, and unknown content is refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from tempfile import TemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.migration import (
    BIOS,
    CONTINUE,
    EOS,
    MACHINE,
    PAGE_BYTES,
    RAM,
    be,
    blocks,
    configuration,
    devices,
    end,
    named,
    page,
    part,
    start,
    stream,
    zero,
)
from vcluster.snapshots import qemu_stream
from vcluster.snapshots.qemu_stream import BLOCK, Split, StreamError, split

SIZE = 16 * PAGE_BYTES


def data(number: int) -> bytes:
    return number.to_bytes(4, "big") * (PAGE_BYTES // 4)


def split_bytes(content: bytes) -> tuple[Split, bytes, bytes]:
    state = io.BytesIO()
    with TemporaryFile() as ram:  # a BytesIO does not grow by truncate
        result = split(io.BytesIO(content), ram, state)
        ram.seek(0)
        return result, ram.read(), state.getvalue()


def memory_in(content: bytes) -> dict[bytes, dict[int, bytes]]:
    """The pages of each block in a stream with one memory section, as QEMU would load them."""
    source = io.BytesIO(content)
    source.seek(8 + 5 + len(MACHINE) + 1 + 4 + 4 + 8)
    pages: dict[bytes, dict[int, bytes]] = {}
    block = b""
    ended = 0
    while ended < 2:  # the start section and the end section
        header = int.from_bytes(source.read(8), "big")
        address, flags = header & ~0xFFF, header & 0xFFF
        if flags == 4:
            while address:
                name = source.read(source.read(1)[0])
                pages[name] = {}
                address -= int.from_bytes(source.read(8), "big")
        elif flags == EOS:
            ended += 1
            source.seek(5 + 5, 1)
        else:
            if not flags & CONTINUE:
                block = source.read(source.read(1)[0])
            pages[block][address] = source.read(PAGE_BYTES if flags & 8 else 1)
    return pages


def test_pages_go_to_the_file_and_the_rest_stays_a_stream() -> None:
    records = [
        page(0, data(1), RAM),
        page(1, data(2)),
        zero(2),
        zero(0, BIOS),
        page(1, data(3)),
        page(15, data(4), RAM),
        page(2, data(5), BIOS),
    ]
    result, ram, state = split_bytes(stream([blocks({RAM: SIZE, BIOS: SIZE})], records))
    assert result == Split("pc-i440fx-7.2", SIZE, 3)
    assert ram == data(1) + data(2) + bytes(13 * PAGE_BYTES) + data(4)
    rest = [zero(0, BIOS), page(1, data(3)), page(2, data(5))]
    assert state == stream([blocks({BLOCK: SIZE, BIOS: SIZE})], rest)


def test_continue_refers_to_a_page_of_an_earlier_section() -> None:
    sections = [
        start(blocks({RAM: SIZE, BIOS: SIZE})),
        part(page(0, data(1), RAM), page(0, data(2), BIOS)),
        part(),
        part(page(1, data(3)), page(1, data(4), RAM)),
        end(page(2, data(5)), zero(2, BIOS)),
    ]
    head, tail = configuration(), devices()
    _, ram, state = split_bytes(head + b"".join(sections) + tail)
    assert ram[: 3 * PAGE_BYTES] == data(1) + data(4) + data(5)
    rest = [
        start(blocks({BLOCK: SIZE, BIOS: SIZE})),
        part(page(0, data(2), BIOS)),
        part(),
        part(page(1, data(3))),
        end(zero(2)),
    ]
    assert state == head + b"".join(rest) + tail


def test_the_last_record_of_a_page_counts() -> None:
    records = [page(0, data(1), RAM), page(1, data(2)), zero(0), page(1, data(3)), zero(2), page(2, data(4)), zero(0)]
    result, ram, _ = split_bytes(stream([blocks({RAM: SIZE})], records))
    assert result.pages == 2
    assert ram == (bytes(PAGE_BYTES) + data(3) + data(4)).ljust(SIZE, b"\0")


def test_a_guest_without_data_has_its_full_size() -> None:
    result, ram, _ = split_bytes(stream([blocks({RAM: SIZE})], [zero(0, RAM)]))
    assert (result.pages, ram) == (0, bytes(SIZE))


PAGES = st.tuples(st.sampled_from([RAM, BIOS, b"pc.rom"]), st.integers(0, 15), st.integers(0, 3))


@given(st.lists(PAGES, max_size=60), st.lists(PAGES, max_size=20))
def test_the_two_parts_together_have_every_page(first: Sequence[tuple[bytes, int, int]], last: object) -> None:
    """A page is (block, number, content); content 0 is a page of zeros."""
    names = {RAM: SIZE, BIOS: SIZE, b"pc.rom": SIZE}
    before: dict[bytes, dict[int, bytes]] = {name: {} for name in names}
    sections: list[list[bytes]] = []
    block = b""
    for pages in (first, last):
        sections.append([])
        for name, number, content in pages:  # type: ignore[attr-defined]
            label = b"" if name == block else name
            block = name
            sections[-1].append(page(number, data(content), label) if content else zero(number, label))
            before[name][number * PAGE_BYTES] = data(content) if content else b"\0"
    _, ram, state = split_bytes(stream([blocks(names), *sections[0]], sections[1]))
    after = memory_in(state)
    assert after.pop(BLOCK) == {}
    assert after == {name: pages for name, pages in before.items() if name != RAM}
    image = bytearray(SIZE)
    for address, content in before[RAM].items():
        image[address : address + PAGE_BYTES] = content.ljust(PAGE_BYTES, b"\0")
    assert ram == image


GOOD = [blocks({RAM: SIZE, BIOS: SIZE})]
WHOLE = stream(GOOD, [page(0, data(1), RAM), page(0, data(2), BIOS)])


def memory(*records: bytes) -> bytes:
    return stream(GOOD, records)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut off"),
        (b"LibvirtQemudSave", "not a stream of QEMU"),
        (be(0x5145564D, 4) + be(2, 4), "has version 2, but only 3 is known"),
        (WHOLE[:8] + start(*GOOD), "begins with section 1, not with the machine's name"),
        (configuration(b""), "a bad machine name"),
        (configuration(b"\xff"), "a bad machine name"),
        (configuration(b"a\nb"), "a bad machine name"),
        (configuration(b"x" * 256), "a bad machine name"),
        (configuration() + b"\5", "section of kind 5 before"),  # a subsection: QEMU has an extra capability
        (configuration() + configuration()[8:], "section of kind 7 before"),
        (configuration() + devices(), "section of kind 4 before the end of the memory"),
        (configuration() + start(*GOOD) + devices(), "section of kind 4 before the end of the memory"),
        (configuration() + start(*GOOD) + b"\0", "section of kind 0 before"),
        (configuration() + part(), "section 2 before the end of the memory, section None"),
        (configuration() + start(*GOOD) + start(*GOOD), "a second start section, 'ram'"),
        (configuration() + start(*GOOD) + part(number=3), "section 3 before the end of the memory, section 2"),
        (configuration() + start(*GOOD, name=b"block"), "starts with 'block' 0 of version 4"),
        (configuration() + start(*GOOD, version=3), "starts with 'ram' 0 of version 3"),
        (configuration() + start(*GOOD, instance=1), "starts with 'ram' 1 of"),
        (configuration() + start(*GOOD, footer=b"\x7d\0\0\0\2"), "7d00000002 instead of the footer of section 2"),
        (configuration() + start(*GOOD, footer=b"\x7e\0\0\0\3"), "7e00000003 instead of the footer of section 2"),
        (stream([], []), "no block 'pc.ram'"),
        (stream([blocks({BIOS: SIZE})], []), "no block 'pc.ram'"),
        (stream([blocks({RAM: SIZE}), blocks({BIOS: SIZE})], []), "a second list of blocks"),
        (stream([blocks({RAM: SIZE}, twice=True)], []), "a block 'pc.ram' of 65536 bytes, of 131072"),
        (stream([blocks({RAM: SIZE, BLOCK: SIZE})], []), "a block 'vcluster.ram'"),
        (stream([blocks({RAM: SIZE + 1})], []), "a block 'pc.ram' of 65537 bytes"),
        (stream([blocks({RAM: 0, BIOS: SIZE})], []), "a block 'pc.ram' of 0 bytes"),
        (stream([blocks({BIOS: SIZE, RAM: SIZE}, total=SIZE + PAGE_BYTES)], []), "a block 'pc.ram' of 65536 bytes, of"),
        (memory(page(0, data(1))), "a page without a block"),
        (memory(zero(0)), "a page without a block"),
        (memory(page(0, data(1), b"x\xff")), "a page of 'x\\\\xff', which its list of blocks lacks"),
        (memory(page(16, data(1), RAM)), "a page at 65536 of 'pc.ram', which has 65536 bytes"),
        (memory(page(0, data(1), RAM), zero(16)), "a page at 65536 of 'pc.ram'"),
        (memory(page(16, data(1), BIOS)), "a page at 65536 of 'pc.bios'"),
        (memory(zero(2**51, RAM)), "a page at 9223372036854775808"),
        (memory(zero(0, RAM)[:-1] + b"\1"), "a page of bytes 01"),
        (memory(be(0x01, 8)), r"an unknown kind: 0x1 \(an old kind\)"),
        (memory(be(0x40 | CONTINUE, 8)), r"an unknown kind: 0x60 \(XBZRLE\)"),
        (memory(be(0x80, 8)), r"an unknown kind: 0x80 \(a hook\)"),
        (memory(be(0x100, 8) + named(RAM)), r"an unknown kind: 0x100 \(compression\)"),
        (memory(be(0x200, 8)), r"an unknown kind: 0x200 \(several channels\)"),
        (memory(be(0x400, 8)), "an unknown kind: 0x400"),
        (memory(be(0x0A, 8)), "an unknown kind: 0xa"),
        (memory(be(EOS | CONTINUE, 8)), "an unknown kind: 0x30"),
        (memory(be(0, 8)), "an unknown kind: 0x0"),
        (configuration() + start(*GOOD) + end(), "cut off"),
        (configuration() + start(*GOOD) + end() + part(), "section of kind 2 after the memory"),
        (configuration() + start(*GOOD) + end() + start(name=b"block"), "section of kind 1 after the memory"),
        (configuration() + start(*GOOD) + end() + b"\0", "section of kind 0 after the memory"),
        (WHOLE + b"\0", "data after its end"),
    ],
)
def test_unknown_content_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message) as raised:
        split_bytes(content)
    assert "\n" not in raised.value.message


def test_a_stream_that_is_cut_off_anywhere_is_refused() -> None:
    split_bytes(WHOLE)
    for length in range(len(WHOLE)):
        with pytest.raises(StreamError, match="cut off"):
            split_bytes(WHOLE[:length])


@pytest.mark.parametrize("change", [lambda tail: b"\4" * 3_000_000 + tail, lambda tail: b"\4\0\6{" + tail])
def test_long_and_odd_devices_are_copied(change: Callable[[bytes], bytes]) -> None:
    content = WHOLE.removesuffix(devices()) + change(devices())
    assert split_bytes(content)[2].endswith(change(devices()))
    assert qemu_stream.PAGE_BYTES == PAGE_BYTES
