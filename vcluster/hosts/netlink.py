"""Links of this machine, by pyroute2. Needs nothing else of the project but the data it is given."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vcluster.errors import ConflictError, MissingError, VclusterError


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel shows it."""

    name: str
    index: int
    kind: str
    mtu: int
    alias: str
    is_up: bool
    master: int | None


def links() -> tuple[Link, ...]:
    """All links of this network namespace."""
    with IPRoute() as netlink:
        return tuple(_link(message) for message in netlink.get_links())


def routes() -> tuple[tuple[IPv4Network, str], ...]:
    """The IPv4 routes of this machine's main table, each with the interface it leaves by."""
    with IPRoute() as netlink:
        names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in netlink.get_links()}
        found = []
        for route in netlink.get_routes(family=2, table=254):
            target = route.get_attr("RTA_DST") or "0.0.0.0"  # noqa: S104 - the default route
            interface = names.get(route.get_attr("RTA_OIF"), "?")
            found.append((IPv4Network(f"{target}/{route['dst_len']}"), interface))
        return tuple(found)


def create_bridge(name: str, *, mtu: int, alias: str) -> None:
    """Make a bridge, marked and up. One of ours is brought to what is asked; a foreign one is refused."""
    found = {link.name: link for link in links()}.get(name)
    if found and found.alias != alias:
        owner = f"carries the mark {found.alias!r}" if found.alias else "carries no mark of ours"
        raise ConflictError(f"link {name} exists and {owner}", hint=f"ip link show {name}")
    with IPRoute() as netlink, _errors(f"bridge {name}"):
        if not found:
            # The mark goes in with the link itself: a bridge without it would be nobody's if we were killed between
            # two steps.
            netlink.link("add", ifname=name, kind="bridge", mtu=mtu, ifalias=alias, br_stp_state=0, br_forward_delay=0)
        index = netlink.link_lookup(ifname=name)[0]
        netlink.link("set", index=index, mtu=mtu, ifalias=alias, state="up")


def destroy_link(index: int, name: str) -> None:
    """Remove a link. One that is gone already is a success."""
    with IPRoute() as netlink, _errors(f"link {name}"):
        try:
            netlink.link("del", index=index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise


class _errors:  # noqa: N801 - reads as a word of the with statement
    """Translates the kernel's refusals."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, NetlinkError):
            return
        if error.code in (errno.EPERM, errno.EACCES):
            raise MissingError(f"{self.what}: making links needs root", hint="run it with sudo") from error
        if error.code in (errno.EOPNOTSUPP, errno.ENOENT):
            raise MissingError(f"{self.what}: the kernel has no such kind of link", hint="modprobe bridge") from error
        raise VclusterError(f"{self.what}: {error}") from error


def _link(message: Any) -> Link:
    get = message.get_attr
    info = get("IFLA_LINKINFO")
    return Link(
        name=get("IFLA_IFNAME"),
        index=message["index"],
        kind=(info.get_attr("IFLA_INFO_KIND") if info else None) or "",
        mtu=get("IFLA_MTU") or 0,
        alias=get("IFLA_IFALIAS") or "",
        is_up=bool(message["flags"] & 1),
        master=get("IFLA_MASTER"),
    )
