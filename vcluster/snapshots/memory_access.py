"""How QEMU uses the memory file of a snapshot. Pure. (docs/system/vm-templating.rst in QEMU.)"""

from __future__ import annotations

from dataclasses import dataclass

READ_ONLY_SINCE = (8, 2)  # the version of QEMU


@dataclass(frozen=True, slots=True)
class Access:
    """Options of QEMU's memory backend, and the mode of the rule of AppArmor that allows it."""

    options: str
    mode: str


SHARED = Access("share=on", "rw")  # for a template: what the guest writes is in the file
# For clones: a page that the guest writes to is copied, and the file does not change.
WRITABLE = Access("share=off", "rw")  # QEMU opens the file for writing all the same
READ_ONLY = Access("share=off,readonly=on,rom=off", "r")


def clone_access(qemu_version: str) -> Access:
    """The access of a clone: without the right to write to the file, if this version of QEMU can."""
    version = tuple(int(number) for number in qemu_version.split(".")[:2])
    return READ_ONLY if version >= READ_ONLY_SINCE else WRITABLE
