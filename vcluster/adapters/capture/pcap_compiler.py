"""Filter expressions in the language of pcap-filter(7), compiled by libpcap."""

from __future__ import annotations

import ctypes
import ctypes.util
import os

from vcluster.errors import MissingError, RequestError
from vcluster.frames.frame_filter import WHOLE, Instruction

LIBRARIES = ("libpcap.so.0.8", "libpcap.so.1")  # Debian's name, and that of other distributions
_ETHERNET = 1  # DLT_EN10MB
_NO_NETMASK = 0xFFFFFFFF  # PCAP_NETMASK_UNKNOWN


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort), ("if_true", ctypes.c_ubyte), ("if_false", ctypes.c_ubyte),
        ("constant", ctypes.c_uint32),
    )  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(_Instruction)))


def compile_filter(expression: str, snap_bytes: int) -> list[Instruction]:
    """The program that keeps `snap_bytes` of the frames that fit an expression; 0 keeps them whole.

    Raises RequestError with libpcap's reason for a bad expression, and MissingError without libpcap.
    """
    pcap = _library()
    handle = pcap.pcap_open_dead(_ETHERNET, snap_bytes or WHOLE)
    program = _Program()
    try:
        if pcap.pcap_compile(handle, ctypes.byref(program), os.fsencode(expression), 1, _NO_NETMASK) != 0:
            reason = pcap.pcap_geterr(handle).decode(errors="replace")
            raise RequestError(f"--filter is not an expression of pcap-filter: {reason}", hint="man 7 pcap-filter")
        found = [program.instructions[number] for number in range(program.length)]
        result = [(each.code, each.if_true, each.if_false, each.constant) for each in found]
        pcap.pcap_freecode(ctypes.byref(program))
        return result
    finally:
        pcap.pcap_close(handle)


def _library() -> ctypes.CDLL:
    for name in LIBRARIES:
        try:
            pcap = ctypes.CDLL(name)
        except OSError:
            continue
        pcap.pcap_open_dead.restype = ctypes.c_void_p
        pcap.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        pcap.pcap_compile.argtypes = (
            ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32,
        )  # fmt: skip
        pcap.pcap_geterr.restype = ctypes.c_char_p
        pcap.pcap_geterr.argtypes = (ctypes.c_void_p,)
        pcap.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
        pcap.pcap_close.argtypes = (ctypes.c_void_p,)
        return pcap
    raise MissingError("--filter needs libpcap, which is not installed", hint="apt-get install libpcap0.8")
