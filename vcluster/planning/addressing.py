"""Addresses of the cluster network and the management network. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError, ip_network
from itertools import chain, islice

from vcluster.errors import ConflictError, RequestError
from vcluster.model.facts import Claim, Facts, Route
from vcluster.model.naming import one_line, shown
from vcluster.model.spec import DEFAULT_SUBNET, AddressRange

MTU_MIN = 576  # the datagram every IPv4 host must accept, RFC 791 section 3.1
MTU_MAX = 9216  # what common jumbo-frame hardware carries
STRANGERS_MAX = 50  # how many addresses are kept for machines that are not the cluster's, where nothing is said
# Management networks are cut from here: it is private (RFC 1918) and neither libvirt's nor Docker's first choice.
MANAGEMENT_SPACE = IPv4Network("172.28.0.0/14")


def parse_subnet(text: str) -> IPv4Network:
    """A subnet a cluster can live in, from text such as 10.0.0.0/24."""
    try:
        network = ip_network(text)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise RequestError(
            f"subnet {shown(text)} is not a network: {one_line(error)}", hint="such as 10.0.0.0/24"
        ) from error
    if not isinstance(network, IPv4Network):
        raise RequestError(f"subnet {shown(text)} is IPv6", hint="the cluster network is IPv4, such as 10.0.0.0/24")
    if network.prefixlen < 8:
        raise RequestError(f"subnet {text} is too large", hint="a prefix from /8 to /30")
    if network.prefixlen > 30:
        raise RequestError(f"subnet {text} has no room for two nodes", hint="a prefix from /8 to /30")
    if network.is_loopback or network.is_multicast or network.is_link_local or network.is_reserved:
        raise RequestError(f"subnet {text} is not for ordinary hosts", hint="a private one, such as 10.0.0.0/24")
    return network


def check_mtu(mtu: int) -> int:
    """An MTU the nodes' interfaces can have, in bytes."""
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise RequestError(
            f"MTU {mtu} is not possible", hint=f"{MTU_MIN} to {MTU_MAX} bytes; 1450 leaves room for VXLAN"
        )
    return mtu


def hosts_max(subnet: IPv4Network) -> int:
    """How many nodes a subnet holds."""
    return subnet.num_addresses - 2


def node_addresses(subnet: IPv4Network, count: int) -> tuple[IPv4Address, ...]:
    """The addresses of `count` nodes, from .1 on."""
    if count > hosts_max(subnet):
        raise RequestError(
            f"{count} nodes do not fit into {subnet}",
            hint=f"it holds {hosts_max(subnet)}; take a larger --subnet or fewer nodes",
        )
    return tuple(subnet[number] for number in range(1, count + 1))


def choose_dhcp_range(asked: AddressRange | None, subnet: IPv4Network, nodes: Sequence[IPv4Address]) -> AddressRange:
    """The addresses for machines that are not the cluster's: those asked for, or the top of the subnet."""
    if asked is None:
        last = subnet.broadcast_address - 1
        first = max(max(nodes) + 1, last - (STRANGERS_MAX - 1), key=int)
        if first > last:
            raise RequestError(
                f"{subnet} has no address left for machines that are not the cluster's",
                hint="take a larger --subnet, or a --dhcp-range",
            )
        return AddressRange(first, last)
    if not subnet.network_address < asked.first <= asked.last < subnet.broadcast_address:
        raise RequestError(f"--dhcp-range {asked} is not within {subnet}", hint="another --dhcp-range or --subnet")
    if held := next((address for address in nodes if address in asked), None):
        raise RequestError(
            f"--dhcp-range {asked} holds {held}, the address of a node", hint="it is for machines that are no nodes"
        )
    return asked


def choose_subnet(asked: IPv4Network | None, count: int, servers: Sequence[Facts]) -> IPv4Network:
    """The cluster's subnet: the one asked for, or the first free one of the default's size from the default on.

    Raises ConflictError naming the owner when the one asked for overlaps another cluster or a route of a server.
    """
    if asked is not None:
        node_addresses(asked, count)
        for facts in servers:
            _refuse_overlap(asked, facts)
        return asked
    size = DEFAULT_SUBNET if count <= hosts_max(DEFAULT_SUBNET) else _network_for(count, DEFAULT_SUBNET)
    taken = [network for facts in servers for network in _taken(facts)]
    return _first_free(size, IPv4Network("10.0.0.0/8"), taken)


def choose_management(count: int, facts: Facts, *, besides: Iterable[IPv4Network]) -> IPv4Network:
    """A free subnet for the management network of `count` nodes and its gateway."""
    size = _network_for(max(count + 1, 254), MANAGEMENT_SPACE)
    return _first_free(size, MANAGEMENT_SPACE, (*_taken(facts), *besides))


def management_addresses(
    subnet: IPv4Network, count: int, taken: Collection[IPv4Address] = ()
) -> tuple[IPv4Address, ...]:
    """The management addresses of `count` nodes, beside those that are taken; .1 is the gateway."""
    free = (subnet[number] for number in range(2, subnet.num_addresses - 1) if subnet[number] not in taken)
    return _first(count, free, f"the management network {subnet}")


def more_addresses(
    subnet: IPv4Network, count: int, *, nodes: Collection[IPv4Address], unknown_hosts: AddressRange | None
) -> tuple[IPv4Address, ...]:
    """The addresses of `count` more nodes: the free ones from the lowest of the `nodes` on, then those below it."""
    free = (address for address in _from_lowest(subnet, min(nodes), unknown_hosts) if address not in nodes)
    besides = f" beside {unknown_hosts}, which is for machines that are no nodes" if unknown_hosts else ""
    return _first(count, free, f"{subnet}{besides}")


def _first(count: int, free: Iterator[IPv4Address], where: str) -> tuple[IPv4Address, ...]:
    found = tuple(islice(free, count))
    if len(found) < count:
        raise RequestError(
            f"{count} more nodes do not fit into {where}", hint=f"{len(found)} more fit" if found else "it is full"
        )
    return found


def _from_lowest(subnet: IPv4Network, lowest: IPv4Address, unknown_hosts: AddressRange | None) -> Iterator[IPv4Address]:
    """Every address for a node, without looking at each of a range for strangers, which may be long."""
    first, start, end = int(subnet.network_address) + 1, int(lowest), int(subnet.broadcast_address)
    for part in (range(start, end), range(first, start)):
        if unknown_hosts is None:
            pieces: tuple[range, ...] = (part,)
        else:
            low, high = int(unknown_hosts.first), int(unknown_hosts.last)
            pieces = (range(part.start, min(part.stop, low)), range(max(part.start, high + 1), part.stop))
        yield from map(IPv4Address, chain(*pieces))


def _network_for(count: int, start: IPv4Network) -> IPv4Network:
    prefix = 32 - (count + 1).bit_length()
    return IPv4Network((start.network_address, min(prefix, 30)))


def _taken(facts: Facts) -> tuple[IPv4Network, ...]:
    claimed = (network for claim in facts.claims for network in (claim.subnet, *claim.management) if network)
    return (*(route.network for route in facts.routes), *claimed)


def _first_free(size: IPv4Network, space: IPv4Network, taken: Iterable[IPv4Network]) -> IPv4Network:
    taken = tuple(taken)
    candidate: IPv4Network | None = IPv4Network((space.network_address, size.prefixlen))
    while candidate and candidate.subnet_of(space):
        obstacle = next((network for network in taken if network.overlaps(candidate)), None)
        if obstacle is None:
            return candidate
        candidate = _behind(obstacle if obstacle.prefixlen < candidate.prefixlen else candidate, candidate.prefixlen)
    raise ConflictError(f"no /{size.prefixlen} of {space} is free", hint="give one with --subnet")


def _behind(network: IPv4Network, prefixlen: int) -> IPv4Network | None:
    """The network of that size right behind another, or None at the end of all addresses."""
    start = int(network.broadcast_address) + 1
    return IPv4Network((start, prefixlen)) if start < 2**32 else None


def _refuse_overlap(subnet: IPv4Network, facts: Facts) -> None:
    claim = next((claim for claim in facts.claims if _claims(claim, subnet)), None)
    if claim:
        raise ConflictError(
            f"subnet {subnet} overlaps that of cluster {claim.cluster}",
            hint="take another --subnet, or leave the option out",
        )
    route = next((route for route in facts.routes if route.network.overlaps(subnet)), None)
    if route:
        raise ConflictError(
            f"subnet {subnet} overlaps {route.network}, which {route.server} reaches by {route.interface}",
            hint="take another --subnet, or leave the option out",
        )


def _claims(claim: Claim, subnet: IPv4Network) -> bool:
    return any(network is not None and network.overlaps(subnet) for network in (claim.subnet, *claim.management))


def routes_of_interest(routes: Iterable[Route]) -> tuple[Route, ...]:
    """The routes a subnet can clash with: all but the default route and host routes to ourselves."""
    return tuple(route for route in routes if route.network.prefixlen > 0 and not route.network.is_loopback)
