"""Send real frames through every tunnel before any node is made, to find a firewall or a wrong MTU early."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from vcluster.errors import MissingError, VclusterError
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Plan, Tunnel

TRIES = 3
TRY_TIMEOUT_S = 1.5

# By server, by interface: the tokens that must arrive there.
Tokens = Mapping[str, Mapping[str, list[str]]]


@dataclass(frozen=True, slots=True)
class Probe:
    """A frame with a token, out of a tunnel's end on a server. It must arrive at a tunnel's end on another server.

    `target` is the token of the frame that the switch has learned the receiver from; it is empty for a frame that only
    the next bridge gets.
    """

    token: str
    server: str
    link: str
    to_server: str
    to_link: str
    target: str = ""


def prove(fleet: Fleet, plan: Plan) -> None:
    """Send a full-size frame in both directions through every tunnel, and from every tunnel through the switch.

    Raises MissingError with the tunnels that lose frames, and with the known obstacles on the servers.
    """
    ends = _ends(plan)
    groups = (direct(plan, ends, has_switch=plan.switch.server in fleet), across(ends))
    wanted = expected([probe for group in groups for probe in group], fleet.servers)
    try:
        fleet.each(lambda server: _listen(server, wanted))
        silent = _silent_tunnels(fleet, plan, groups, wanted)
    finally:
        with suppress(VclusterError):
            fleet.each(lambda server: server.call("stop_listening") if server.name in wanted else None)
    if silent:
        raise MissingError(_message(fleet, plan, silent), hint=_hint(fleet, plan))


def _ends(plan: Plan) -> list[tuple[str, Tunnel]]:
    """The ends of the tunnels on the nodes' servers, each with its server."""
    carriers = [server for server in plan.servers if server.carries_nodes and server.name != plan.switch.server]
    return [(server.name, tunnel) for server in carriers for tunnel in server.tunnels]


def direct(plan: Plan, ends: Sequence[tuple[str, Tunnel]], *, has_switch: bool) -> list[Probe]:
    """The frames through each tunnel: to the switch, and back if we can log in to the switch. Pure."""
    switch = plan.switch.server
    up = [Probe(up_token(tunnel), server, tunnel.name, switch, tunnel.name) for server, tunnel in ends]
    down = [Probe(down_token(tunnel), switch, tunnel.name, server, tunnel.name) for server, tunnel in ends]
    return [*up, *down] if has_switch else up


def across(ends: Sequence[tuple[str, Tunnel]]) -> list[Probe]:
    """The frames from each tunnel through the switch to the next one, in a ring. Pure.

    The switch learned the receiver's place from its frame to the switch, so it sends each of them to one port only.
    """
    if len(ends) < 2:
        return []
    return [
        Probe(across_token(tunnel, following), server, tunnel.name, to_server, following.name, up_token(following))
        for (server, tunnel), (to_server, following) in zip(ends, [*ends[1:], ends[0]], strict=True)
    ]


def expected(probes: Iterable[Probe], servers: Container[str]) -> Tokens:
    """The tokens that arrive at each interface of these servers, if every tunnel and the switch carry frames. Pure."""
    wanted: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for probe in probes:
        if probe.to_server in servers:
            wanted[probe.to_server][probe.to_link].append(probe.token)
    return wanted


def up_token(tunnel: Tunnel) -> str:
    """The token of the frame from the node's end to the switch."""
    return f"{tunnel.name}>{tunnel.vni}"


def down_token(tunnel: Tunnel) -> str:
    """The token of the frame from the switch to the node's end."""
    return f"{tunnel.name}<{tunnel.vni}"


def across_token(tunnel: Tunnel, following: Tunnel) -> str:
    """The token of the frame from one node's end to another's."""
    return f"{tunnel.name}>{following.name}"


def _listen(server: Server, wanted: Tokens) -> None:
    if server.name in wanted:
        server.call("listen", interfaces=[*wanted[server.name]])


def _send(server: Server, probes: Iterable[Probe], size: int) -> None:
    frames = [[probe.link, probe.token, probe.target] for probe in probes if probe.server == server.name]
    if frames:
        server.call("send_frames", frames=frames, size=size)


def _missing(server: Server, wanted: Tokens) -> Mapping[str, list[str]]:
    """The tokens that did not arrive at a server in time, by interface."""
    if server.name not in wanted:
        return {}
    links = wanted[server.name]
    received = server.call("received_probes", expected=links, timeout_s=TRY_TIMEOUT_S)
    missing = {link: sorted({*tokens} - {*received.get(link, ())}) for link, tokens in links.items()}
    return {link: tokens for link, tokens in missing.items() if tokens}


def _silent_tunnels(fleet: Fleet, plan: Plan, groups: Iterable[Iterable[Probe]], wanted: Tokens) -> Tokens:
    """The tokens that did not arrive after several tries, by server and interface."""
    silent: Tokens = {}
    for _ in range(TRIES):
        for group in groups:  # every server has sent one group before the next
            fleet.each(partial(_send, probes=group, size=plan.mtu))
        found = fleet.each(lambda server: _missing(server, wanted))
        silent = {name: links for name, links in found.items() if links}
        if not silent:
            break
    return silent


def _message(fleet: Fleet, plan: Plan, silent: Tokens) -> str:
    lines = []
    for name, interfaces in silent.items():
        for link, tokens in interfaces.items():
            lines.append(f"  {name}: {link} did not receive {', '.join(tokens[:4])}{' …' if len(tokens) > 4 else ''}")
    for planned in plan.servers:
        with suppress(VclusterError):
            server = fleet[planned.name]
            obstacles = [*server.call("obstacles", port=_port(plan)), *_asymmetric_routes(server, planned.tunnels)]
            lines += [f"  {server.name}: {one['what']}: {one['detail']}; fix: {one['fix']}" for one in obstacles]
    return f"tunnels lose frames of {plan.mtu} bytes:\n" + "\n".join(lines)


def _asymmetric_routes(server: Server, tunnels: Iterable[Tunnel]) -> list[dict[str, str]]:
    """The peers that a server sends to by another interface than the one with its own address, as obstacles."""
    holders = {address: name for name, address in server.call("addresses")}
    found = {(one.remote, one.interface, one.local, holders.get(str(one.local), one.interface)) for one in tunnels}
    return [
        {
            "what": "asymmetric route",
            "detail": f"packets to {remote} leave by {interface}, but the server's address {local} is on {holder}; "
            f"packets from {remote} may arrive on these two interfaces only",
            "fix": f"sysctl -w net.ipv4.conf.{holder}.rp_filter=2",
        }
        for remote, interface, local, holder in sorted(found)
        if holder != interface
    ]


def _port(plan: Plan) -> int:
    return next(tunnel.port for server in plan.servers for tunnel in server.tunnels)


def _hint(fleet: Fleet, plan: Plan) -> str:
    first = next(tunnel for server in plan.servers for tunnel in server.tunnels)
    if plan.switch.server not in fleet:
        count = sum(node.vni is not None for node in plan.nodes)
        return (
            f"on the switch: vcluster switch up --name {plan.name} -n {count} --peer {first.local} "
            f"--vni-base {first.vni} --vxlan-port {first.port} --mtu {first.mtu}"
        )
    return f"open UDP port {first.port} in the firewalls between {first.local} and {first.remote}, in both directions"
