"""Subnets and addresses of the cluster network and the management networks. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError, ip_network
from itertools import chain, islice

from vcluster.errors import ConflictError, RequestError
from vcluster.model.facts import Claim, Facts, Route
from vcluster.model.quoting import one_line, shown
from vcluster.model.spec import DEFAULT_SUBNET, AddressRange

MTU_MIN = 576  # the datagram every IPv4 host must accept, RFC 791 section 3.1
MTU_MAX = 9216  # the limit of common jumbo-frame hardware
UNKNOWN_HOSTS_MAX = 50  # the most addresses in a default range for unknown hosts
# The space of management networks: private (RFC 1918), and neither libvirt's nor Docker's first choice.
MANAGEMENT_SPACE = IPv4Network("172.28.0.0/14")


def parse_subnet(text: str) -> IPv4Network:
    """The subnet of a text like 10.0.0.0/24. Raises RequestError if no cluster can use it."""
    try:
        network = ip_network(text)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise RequestError(
            f"subnet {shown(text)} is not a network: {one_line(error)}", hint="for example 10.0.0.0/24"
        ) from error
    if not isinstance(network, IPv4Network):
        raise RequestError(f"subnet {shown(text)} is IPv6", hint="the cluster network is IPv4, for example 10.0.0.0/24")
    if network.prefixlen < 8:
        raise RequestError(f"subnet {text} is too large", hint="use a prefix from /8 to /30")
    if network.prefixlen > 30:
        raise RequestError(f"subnet {text} has no room for two nodes", hint="use a prefix from /8 to /30")
    if network.is_loopback or network.is_multicast or network.is_link_local or network.is_reserved:
        raise RequestError(
            f"subnet {text} is not for ordinary hosts", hint="use a private subnet, for example 10.0.0.0/24"
        )
    return network


def check_mtu(mtu: int) -> int:
    """The MTU in bytes, unchanged. Raises RequestError if interfaces of nodes cannot have it."""
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise RequestError(
            f"MTU {mtu} is not possible", hint=f"use {MTU_MIN} to {MTU_MAX} bytes; 1450 leaves room for VXLAN"
        )
    return mtu


def hosts_max(subnet: IPv4Network) -> int:
    """The largest number of nodes in a subnet."""
    return subnet.num_addresses - 2


def node_addresses(subnet: IPv4Network, count: int) -> tuple[IPv4Address, ...]:
    """The addresses of `count` nodes, from .1 on. Raises RequestError if the subnet is too small."""
    most = hosts_max(subnet)
    if count > most:
        raise RequestError(
            f"{count} nodes do not fit into {subnet}",
            hint=f"it holds {most}; use a larger --subnet or fewer nodes",
        )
    return tuple(subnet[number] for number in range(1, count + 1))


def choose_dhcp_range(asked: AddressRange | None, subnet: IPv4Network, nodes: Sequence[IPv4Address]) -> AddressRange:
    """The addresses for unknown hosts: the range asked for, or the top of the subnet.

    Raises RequestError if that range has addresses of nodes or outside of the subnet.
    """
    if asked is None:
        last = subnet.broadcast_address - 1
        first = max(max(nodes) + 1, last - (UNKNOWN_HOSTS_MAX - 1), key=int)
        if first > last:
            raise RequestError(
                f"{subnet} has no address left for unknown hosts",
                hint="use a larger --subnet, or set --dhcp-range",
            )
        return AddressRange(first, last)
    if not subnet.network_address < asked.first <= asked.last < subnet.broadcast_address:
        raise RequestError(f"--dhcp-range {asked} is not within {subnet}", hint="use another --dhcp-range or --subnet")
    if taken := next((address for address in nodes if address in asked), None):
        raise RequestError(
            f"--dhcp-range {asked} contains {taken}, the address of a node",
            hint="the range is for unknown hosts; use a range without addresses of nodes",
        )
    return asked


def choose_subnet(asked: IPv4Network | None, count: int, servers: Sequence[Facts]) -> IPv4Network:
    """The cluster's subnet: the one asked for, or the first free subnet of the default size, from the default on.

    Raises ConflictError when the one asked for overlaps a subnet of another cluster or a route of a server.
    """
    if asked is not None:
        node_addresses(asked, count)
        for facts in servers:
            _refuse_overlap(asked, facts)
        return asked
    size = DEFAULT_SUBNET if count <= hosts_max(DEFAULT_SUBNET) else _network_for(count, DEFAULT_SUBNET)
    taken = [network for facts in servers for network in _taken(facts)]
    return _first_free(size, IPv4Network("10.0.0.0/8"), taken)


def choose_management(count: int, facts: Facts, *, avoid: Iterable[IPv4Network]) -> IPv4Network:
    """A free subnet for the management network of `count` nodes and its gateway, outside of the subnets to avoid.

    It has no host that the server talks to: the server would reach this address through the bridge of the network.
    """
    size = _network_for(max(count + 1, 254), MANAGEMENT_SPACE)
    ends = {end for route in facts.underlay_routes.values() for end in (route.local, route.remote)}
    hosts = (IPv4Network(address) for address in sorted(facts.hosts | ends))
    return _first_free(size, MANAGEMENT_SPACE, (*_taken(facts), *hosts, *avoid))


def management_addresses(
    subnet: IPv4Network, count: int, taken: Collection[IPv4Address] = ()
) -> tuple[IPv4Address, ...]:
    """The management addresses of `count` nodes, without those that are taken; .1 is the gateway."""
    free = (subnet[number] for number in range(2, subnet.num_addresses - 1) if subnet[number] not in taken)
    return _first(count, free, f"the management network {subnet}")


def more_addresses(
    subnet: IPv4Network, count: int, *, nodes: Collection[IPv4Address], unknown_hosts: AddressRange | None
) -> tuple[IPv4Address, ...]:
    """The addresses of `count` more nodes: free ones from the lowest of `nodes` upwards, then free ones below it."""
    free = (address for address in _from_lowest(subnet, min(nodes), unknown_hosts) if address not in nodes)
    excluded = f" without {unknown_hosts}, the range for unknown hosts" if unknown_hosts else ""
    return _first(count, free, f"{subnet}{excluded}")


def _first(count: int, free: Iterator[IPv4Address], subnet: str) -> tuple[IPv4Address, ...]:
    addresses = tuple(islice(free, count))
    if len(addresses) < count:
        hint = f"{len(addresses)} more fit" if addresses else "it is full"
        raise RequestError(f"{count} more nodes do not fit into {subnet}", hint=hint)
    return addresses


def _from_lowest(subnet: IPv4Network, lowest: IPv4Address, unknown_hosts: AddressRange | None) -> Iterator[IPv4Address]:
    """All addresses outside of the range for unknown hosts; the range may be long, so it is not iterated."""
    first, start, end = int(subnet.network_address) + 1, int(lowest), int(subnet.broadcast_address)
    for part in (range(start, end), range(first, start)):
        if unknown_hosts is None:
            allowed: tuple[range, ...] = (part,)
        else:
            low, high = int(unknown_hosts.first), int(unknown_hosts.last)
            allowed = (range(part.start, min(part.stop, low)), range(max(part.start, high + 1), part.stop))
        yield from map(IPv4Address, chain(*allowed))


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
        candidate = _next_network(
            obstacle if obstacle.prefixlen < candidate.prefixlen else candidate, candidate.prefixlen
        )
    raise ConflictError(f"{space} has no free /{size.prefixlen} subnet", hint="choose a free subnet with --subnet")


def _next_network(network: IPv4Network, prefixlen: int) -> IPv4Network | None:
    """The network with this prefix length that follows another, or None at the end of all addresses."""
    start = int(network.broadcast_address) + 1
    return IPv4Network((start, prefixlen)) if start < 2**32 else None


def _refuse_overlap(subnet: IPv4Network, facts: Facts) -> None:
    claim = next((claim for claim in facts.claims if _claims(claim, subnet)), None)
    if claim:
        raise ConflictError(
            f"subnet {subnet} overlaps a subnet of cluster {claim.cluster}",
            hint="use another --subnet, or leave the option out",
        )
    route = next((route for route in facts.routes if route.network.overlaps(subnet)), None)
    if route:
        raise ConflictError(
            f"subnet {subnet} overlaps {route.network}, which {route.server} reaches by {route.interface}",
            hint="use another --subnet, or leave the option out",
        )


def _claims(claim: Claim, subnet: IPv4Network) -> bool:
    return any(network is not None and network.overlaps(subnet) for network in (claim.subnet, *claim.management))


def routes_of_interest(routes: Iterable[Route]) -> tuple[Route, ...]:
    """The routes that a subnet can overlap: all but the default route and loopback routes."""
    return tuple(route for route in routes if route.network.prefixlen > 0 and not route.network.is_loopback)
