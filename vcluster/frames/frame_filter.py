"""Filters of captured frames: programs of the classic BPF machine (linux/filter.h). Pure.

The kernel runs the program for each frame of each interface. Its result is the number of bytes to keep, 0 for none.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vcluster.errors import RequestError

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
Program = Sequence[Instruction]

INSTRUCTIONS_MAX = 4096  # BPF_MAXINSNS
WHOLE = 0x40000  # more bytes than a frame has
NFS_PORT = 2049
FIRST_FREE_PORT = 1024  # programs of users have ports from here on
ETHERNET_BYTES = 14  # of the header of a frame

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30  # at a fixed offset
_LOAD_HALF_AFTER, _LENGTH_OF_HEADER = 0x48, 0xB1  # at an offset after the IPv4 header, whose length is in X
_EQUAL, _AT_LEAST, _HAS_BITS, _JUMP, _RETURN = 0x15, 0x35, 0x45, 0x05, 0x06
_INTERFACE = 0xFFFFF008  # SKF_AD_OFF + SKF_AD_IFINDEX
_ETH_P_IP, _TCP = 0x0800, 6

NOTHING: Program = ((_RETURN, 0, 0, 0),)


def everything(snap_bytes: int) -> Program:
    """Keep every frame."""
    return ((_RETURN, 0, 0, snap_bytes or WHOLE),)


def mpi(snap_bytes: int) -> Program:
    """Keep what MPI may have sent: TCP over IPv4 between ports that programs of users have, without NFS.

    So it keeps the connections of ranks and of mpiexec, and drops SSH and NFS. Of a packet in fragments, only the first
    one has ports; the others are dropped too.
    """
    conditions: list[tuple[Instruction, ...]] = [
        ((_LOAD_HALF, 0, 0, 12), (_EQUAL, 0, 1, _ETH_P_IP)),
        ((_LOAD_BYTE, 0, 0, ETHERNET_BYTES + 9), (_EQUAL, 0, 1, _TCP)),
        ((_LOAD_HALF, 0, 0, ETHERNET_BYTES + 6), (_HAS_BITS, 1, 0, 0x1FFF)),
        (
            (_LENGTH_OF_HEADER, 0, 0, ETHERNET_BYTES),
            (_LOAD_HALF_AFTER, 0, 0, ETHERNET_BYTES),
            (_AT_LEAST, 0, 1, FIRST_FREE_PORT),
        ),
        ((_EQUAL, 1, 0, NFS_PORT),),
        ((_LOAD_HALF_AFTER, 0, 0, ETHERNET_BYTES + 2), (_AT_LEAST, 0, 1, FIRST_FREE_PORT)),
        ((_EQUAL, 1, 0, NFS_PORT),),
    ]
    program = [instruction for condition in conditions for instruction in condition]
    drop = len(program) + 1
    return (
        *(_to(instruction, drop - number - 1) for number, instruction in enumerate(program)),
        *everything(snap_bytes),
        *NOTHING,
    )


def _to(instruction: Instruction, distance: int) -> Instruction:
    """A condition whose jump, marked by 1, goes to the end of the program."""
    code, if_true, if_false, constant = instruction
    return code, if_true * distance, if_false * distance, constant


def on_interfaces(indexes: Sequence[int], program: Program) -> Program:
    """Run a program for the frames of these interfaces, and drop all other frames.

    Raises RequestError if the result is too long for the kernel.
    """
    choice: list[Instruction] = [(_LOAD_WORD, 0, 0, _INTERFACE)]
    for number, index in enumerate(indexes):
        # A conditional jump reaches 255 instructions, a plain one reaches all.
        choice += [(_EQUAL, 0, 1, index), (_JUMP, 0, 0, 2 * (len(indexes) - number - 1) + 1)]
    whole = (*choice, *NOTHING, *program)
    if len(whole) > INSTRUCTIONS_MAX:
        raise RequestError(
            f"the filter has {len(whole)} instructions for {len(indexes)} ports; the kernel runs {INSTRUCTIONS_MAX}",
            hint="choose a simpler --filter, or fewer --ports",
        )
    return whole


def packed(program: Program) -> bytes:
    """The program as an array of `struct sock_filter`."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
