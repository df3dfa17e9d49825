"""The hosts that this machine talks to: its name servers, and the other ends of its TCP connections.

The route to them is often the default route, so that no other route shows that their subnet is in use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from pathlib import Path

RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
CONNECTIONS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = "01"  # proc(5)


def peers() -> tuple[IPv4Address, ...]:
    """The IPv4 addresses of these hosts, without this machine's loopback addresses."""
    found = {*_resolvers(), *_connected()}
    return tuple(sorted(address for address in found if not address.is_loopback))


def _resolvers() -> Iterator[IPv4Address]:
    for fields in _lines(RESOLVERS):
        if len(fields) > 1 and fields[0] == "nameserver":
            with suppress(AddressValueError):  # an IPv6 address
                yield IPv4Address(fields[1])


def _connected() -> Iterator[IPv4Address]:
    for fields in _lines(CONNECTIONS):
        if len(fields) > 3 and fields[3] == ESTABLISHED:
            address = socket_address(fields[2].partition(":")[0])
            if isinstance(address, IPv4Address):
                yield address


def socket_address(digits: str) -> IPv4Address | IPv6Address:
    """The address of a text from /proc/net/tcp or tcp6: words of 32 bits in this machine's byte order.

    An IPv4 address in an IPv6 socket is an IPv4 address.
    """
    words = [int(digits[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(digits), 8)]
    address = ip_address(b"".join(words))
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _lines(paths: tuple[Path, ...]) -> Iterator[list[str]]:
    for path in paths:
        with suppress(OSError):  # the file may be missing: without systemd-resolved, or without IPv6
            for line in path.read_text(errors="replace").splitlines():
                yield line.split()
