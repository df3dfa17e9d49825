"""Send real frames through every tunnel before any node is made, to find a firewall or a wrong MTU early."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from vcluster.errors import MissingError, VclusterError
from vcluster.fleet.servers import Fleet
from vcluster.model.plan import Plan, ServerPlan, Tunnel

TRIES = 3
TRY_TIMEOUT_S = 1.5

# By server, by interface: the tokens that must arrive there.
Tokens = dict[str, dict[str, list[str]]]


def prove(fleet: Fleet, plan: Plan) -> None:
    """Send a full-size frame in both directions through every tunnel, and through the switch to all other tunnels.

    Raises MissingError with the tunnels that lose frames, and with the known obstacles on the servers.
    """
    wanted = expected(plan, has_switch=plan.switch.server in fleet)
    for name, interfaces in wanted.items():
        fleet[name].call("listen", interfaces=list(interfaces))
    try:
        silent = _silent_tunnels(fleet, plan, wanted)
    finally:
        for name in wanted:
            with suppress(VclusterError):
                fleet[name].call("stop_listening")
    if silent:
        raise MissingError(_message(fleet, plan, silent), hint=_hint(fleet, plan))


def expected(plan: Plan, *, has_switch: bool) -> Tokens:
    """The tokens that arrive at each interface if every tunnel and the switch carry frames. Pure."""
    wanted: Tokens = {}
    ends = [
        (server, tunnel) for server in plan.servers if server.carries_nodes for tunnel in _remote_tunnels(plan, server)
    ]
    for server, tunnel in ends:
        across = [up_token(other) for _, other in ends if other.name != tunnel.name]
        down = [down_token(tunnel)] if has_switch else []
        if across or down:
            wanted.setdefault(server.name, {})[tunnel.name] = [*across, *down]
    if has_switch:
        ports = plan.server(plan.switch.server).tunnels
        wanted[plan.switch.server] = {port.name: [up_token(port)] for port in ports}
    return wanted


def up_token(tunnel: Tunnel) -> str:
    """The token that the node's end sends."""
    return f"{tunnel.name}>{tunnel.vni}"


def down_token(tunnel: Tunnel) -> str:
    """The token that the switch's end sends."""
    return f"{tunnel.name}<{tunnel.vni}"


def _remote_tunnels(plan: Plan, server: ServerPlan) -> tuple[Tunnel, ...]:
    return server.tunnels if server.name != plan.switch.server else ()


def _silent_tunnels(fleet: Fleet, plan: Plan, wanted: Tokens) -> dict[str, Mapping[str, list[str]]]:
    """The tokens that did not arrive after several tries, by server and interface."""
    silent: dict[str, Mapping[str, list[str]]] = {}
    for _ in range(TRIES):
        for server in plan.servers:
            token = down_token if server.name == plan.switch.server else up_token
            if server.tunnels:
                fleet[server.name].call(
                    "send_frames", tokens={one.name: token(one) for one in server.tunnels}, size=plan.mtu
                )
        silent = {}
        for name, interfaces in wanted.items():
            received = fleet[name].call("received_probes", expected=interfaces, timeout_s=TRY_TIMEOUT_S)
            missing = {link: sorted(set(tokens) - set(received.get(link, ()))) for link, tokens in interfaces.items()}
            if any(missing.values()):
                silent[name] = {link: tokens for link, tokens in missing.items() if tokens}
        if not silent:
            return {}
    return silent


def _message(fleet: Fleet, plan: Plan, silent: Mapping[str, Mapping[str, list[str]]]) -> str:
    lines = []
    for name, interfaces in silent.items():
        for link, tokens in interfaces.items():
            lines.append(f"  {name}: {link} did not receive {', '.join(tokens[:4])}{' …' if len(tokens) > 4 else ''}")
    for server in plan.servers:
        with suppress(VclusterError):
            obstacles = fleet[server.name].call("obstacles", port=_port(plan))
            lines += [f"  {server.name}: {one['what']}: {one['detail']}; fix: {one['fix']}" for one in obstacles]
    return f"tunnels lose frames of {plan.mtu} bytes:\n" + "\n".join(lines)


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
