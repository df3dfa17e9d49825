"""The links of a cluster: their limits changed, computed for the ports of its switch, and read back. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vcluster.adapters.network.shaping.traffic_spec import (
    ALL,
    FIRST_PEER,
    MAJORS,
    UNLIMITED_BITS,
    Flow,
    ShapedDirection,
)
from vcluster.errors import ConflictError, MissingError, RequestError
from vcluster.frames.frame_filter import ETHERNET_BYTES
from vcluster.model import naming
from vcluster.model.plan import Plan
from vcluster.model.quoting import shown
from vcluster.model.spec import FROM, NETEM_FIELDS, TO, Link, LinkShape
from vcluster.model.traffic.link_figure import LinkFigure
from vcluster.planning import link_spec
from vcluster.planning.hops import switch_port
from vcluster.planning.link_spec import Changes

QUEUE_MS, QUEUE_MIN = 20, 2**16  # a computed queue holds what arrives in this time, and 44 frames of 1,464 bytes
ARRIVAL_BITS = 10**10  # the assumed rate of frames without a limit, while they wait for their delay
DELAY_FRAMES_MIN, DELAY_FRAMES_MAX = 1000, 100_000  # the room for delayed frames; the largest is 230 MB of memory
SMALLEST_FRAME = 60  # bytes
BURST_MS = 4  # a kernel that is busy handles a queue again after this time at the latest
DIRECTIONS = (FROM, TO)
SWITCH, GUEST = "switch", "guest"  # the places of limits
GUEST_FIELDS = (  # what the kernel of a node reports about a delay
    "delay_us", "jitter_us", "delay_frames", "sent_packets", "sent_bytes", "dropped_packets", "waiting_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LinkReading:
    """The limits of a direction of a link as the kernel has them; the field names are a contract with scripts.

    `peer` is null if it is about all frames. A limit that does not exist is null. `where` is the place of the limits:
    the switch, or the guest system of the node. `delay_frames` is the room for delayed frames. `measured` is null if
    nothing was measured. `traced` is whether a trace changes the rate now.
    """

    node: str
    direction: str
    peer: str | None
    rate_bits: int | None
    queue_bytes: int | None
    loss_ppm: int | None
    ecn_bytes: int | None
    delay_us: int | None
    jitter_us: int | None
    duplicate_ppm: int | None
    reorder_ppm: int | None
    corrupt_ppm: int | None
    burst_loss_ppm: int | None
    burst_frames: int | None
    delay_frames: int | None
    where: str
    sent_packets: int
    sent_bytes: int
    dropped_packets: int
    waiting_bytes: int
    marked_packets: int
    measured: tuple[LinkFigure, ...] | None = None
    traced: bool = False


# Changing the plan


def with_changes(plan: Plan, nodes: Collection[str], changes: Mapping[str, Changes], *, peer: str = "") -> Plan:
    """The plan with changed limits of the links of these nodes, by direction; other limits stay.

    Raises RequestError if the result has no meaning, ConflictError if vcluster did not make the switch.
    """
    require_own_switch(plan)
    links = {(link.node, link.direction, link.peer): link for link in plan.links}
    for node in nodes:
        for direction, changed in changes.items():
            key = (node, direction, peer)
            before = links[key].shape if key in links else LinkShape()
            links[key] = Link(node, direction, replace(before, **changed), peer)
    return with_links(plan, links.values())


def without_links(plan: Plan, nodes: Collection[str]) -> Plan:
    """The plan without limits of the links of these nodes."""
    return with_links(plan, [link for link in plan.links if link.node not in nodes])


def with_links(plan: Plan, links: Collection[Link]) -> Plan:
    """The plan with these links and no others.

    Raises RequestError if a limit has no meaning or a node does not exist, ConflictError as `require_own_switch`.
    """
    if links:
        require_own_switch(plan)
        _check_nodes(plan, links)
    order = {node.name: number for number, node in enumerate(plan.nodes)}
    kept = sorted(
        (link for link in links if link.shape != LinkShape()),
        key=lambda link: (order[link.node], link.direction, order.get(link.peer, -1)),
    )
    has_delays = any(link.shape.delay_us for link in kept)
    changed = replace(plan, links=tuple(kept), delays_in_guest=plan.delays_in_guest and has_delays)
    for link in kept:
        _check(changed, link, _limits_of_all(kept, link))
    return changed


def _check_nodes(plan: Plan, links: Collection[Link]) -> None:
    names = {node.name for node in plan.nodes}
    unknown = next((name for link in links for name in (link.node, link.peer) if name and name not in names), None)
    if unknown:
        known = naming.folded(node.name for node in plan.nodes)
        raise RequestError(
            f"link of {shown(unknown)}: the cluster has no node of this name", hint=f"the nodes are {known}"
        )
    if own := next((link.node for link in links if link.node == link.peer), None):
        raise RequestError(f"link of {own}: the peer {own} is the node itself", hint="name another node of the cluster")


def require_own_switch(plan: Plan, purpose: str = "limit its ports") -> None:
    """Raise ConflictError if the administrator of the switch made it: vcluster then has no access to its ports."""
    if plan.switch.server not in {server.name for server in plan.servers}:
        raise ConflictError(
            f"the switch of {plan.name} was set up by hand on {plan.switch.server}, so vcluster cannot {purpose}",
            hint="create the cluster with a switch that you can log in to",
        )


def _limits_of_all(links: Collection[Link], link: Link) -> LinkShape:
    """The limits for all frames in the direction of a link."""
    place = (link.node, link.direction, "")
    return next((each.shape for each in links if (each.node, each.direction, each.peer) == place), LinkShape())


def _check(plan: Plan, link: Link, default: LinkShape) -> None:
    """Raise RequestError if limits have no meaning. Those of a peer are checked with what they get from `default`."""
    where = f"{link.node} {link.direction}{f' peer {link.peer}' if link.peer else ''}"
    shape = _inherited(link.shape, default) if link.peer else link.shape
    for key, needed in (("queue", "rate"), ("ecn", "rate"), ("jitter", "delay"), ("reorder", "delay")):
        field, needed_field = link_spec.KEYS[key].field, link_spec.KEYS[needed].field
        if getattr(shape, field) and not getattr(shape, needed_field):
            hint = f"add {needed}=, or remove it: {key}=none"
            raise RequestError(f"{where}: {key}= has no effect without a {needed}", hint=hint)
    if shape.jitter_us > shape.delay_us:
        raise RequestError(f"{where}: the jitter is larger than the delay", hint="a delay varies by ± its jitter")
    if shape.queue_bytes and shape.queue_bytes < frame_bytes(plan):
        raise RequestError(
            f"{where}: a queue of {shape.queue_bytes} bytes cannot hold a frame",
            hint=f"the frames of {plan.name} have up to {frame_bytes(plan)} bytes",
        )
    queue = shape.queue_bytes or computed_queue(shape)
    if shape.ecn_bytes >= queue:
        raise RequestError(
            f"{where}: a queue of {queue} bytes drops frames before ecn= marks any", hint="give ecn= less than queue="
        )


# The ports of the switch


def frame_bytes(plan: Plan) -> int:
    """The largest frame of the cluster network."""
    return plan.mtu + ETHERNET_BYTES


def label_arguments(plan: Plan) -> dict[str, Any]:
    """The arguments that name the objects of a cluster to the agent's operations on links."""
    return {
        "table": naming.links_table_name(plan.name, plan.owner),
        "alias": naming.alias(plan.name, plan.owner),
        "switch_ports": [switch_port(plan, node) for node in plan.nodes],
    }


def shaped_directions(plan: Plan) -> list[dict[str, Any]]:
    """The requests of the plan's links, as the agent's operations take them."""
    return [asdict(each) for each in _directions(plan)]


def shapers(plan: Plan, server: str) -> set[str]:
    """The interfaces on a server through which frames from nodes pass."""
    is_switch = server == plan.switch.server
    return {each.shaper for each in _directions(plan) if each.is_redirected} if is_switch else set()


def _directions(plan: Plan) -> Iterator[ShapedDirection]:
    by_place: dict[tuple[str, str], list[Link]] = {}
    for link in plan.links:
        by_place.setdefault((link.node, link.direction), []).append(link)
    for node in plan.nodes if by_place else ():
        for direction in DIRECTIONS:
            if links := by_place.get((node.name, direction)):
                yield ShapedDirection(
                    port=switch_port(plan, node),
                    direction=direction,
                    shaper=naming.shaper_name(plan.name, node.index),
                    flows=tuple(_flows(plan, links)),
                )


def _flows(plan: Plan, links: Sequence[Link]) -> Iterator[Flow]:
    """First that of all frames. A peer shares its queue, if only the loss of its frames is another."""
    default = next((_at_switch(plan, link.shape) for link in links if not link.peer), LinkShape())
    yield _flow(plan, ALL, default)
    for link in links:
        if link.peer:
            peer, own = plan.node(link.peer), _at_switch(plan, link.shape)
            has_queue = own != LinkShape(loss_ppm=own.loss_ppm)
            flow = _flow(plan, FIRST_PEER + peer.index, _inherited(own, default) if has_queue else own)
            yield replace(
                flow, loss_ppm=own.loss_ppm or default.loss_ppm, peer_port=switch_port(plan, peer), peer_mac=peer.mac
            )


def _inherited(shape: LinkShape, default: LinkShape) -> LinkShape:
    """The limits of a peer, with those of all frames in place of missing ones. Its own delay has its own jitter."""
    found = link_spec.completed(shape, default)
    return replace(found, jitter_us=shape.jitter_us) if shape.delay_us else found


def _at_switch(plan: Plan, shape: LinkShape) -> LinkShape:
    """The limits that the switch carries out."""
    return replace(shape, delay_us=0, jitter_us=0) if plan.delays_in_guest else shape


def _flow(plan: Plan, number: int, shape: LinkShape) -> Flow:
    if not shape.rate_bits and not shape.needs_netem:
        return Flow(number=number, loss_ppm=shape.loss_ppm)
    frame, room = frame_bytes(plan), delay_frames(plan, shape)
    rate = shape.rate_bits or UNLIMITED_BITS
    return Flow(
        **asdict(replace(shape, queue_bytes=_queue_bytes(shape, room * frame))),
        number=number,
        burst_bytes=max(2 * frame, rate * BURST_MS // 8000),
        frame_bytes=frame,
        delay_frames=room,
    )


def _queue_bytes(shape: LinkShape, room_bytes: int) -> int:
    """The room below a rate. Delayed frames without a rate find the same room there."""
    if not shape.rate_bits:
        return min(room_bytes, link_spec.QUEUE_MAX)
    return shape.queue_bytes or computed_queue(shape)


def delay_frames(plan: Plan, shape: LinkShape) -> int:
    """The room that delayed frames need: twice what arrives during the delay, and what waits for the rate."""
    bits = 2 * (shape.rate_bits or ARRIVAL_BITS) * (shape.delay_us + shape.jitter_us) // 10**6
    waiting = (shape.queue_bytes or computed_queue(shape)) // SMALLEST_FRAME if shape.rate_bits else 0
    needed = bits // (8 * frame_bytes(plan)) + waiting
    return min(max(needed, DELAY_FRAMES_MIN), DELAY_FRAMES_MAX)


def computed_queue(shape: LinkShape) -> int:
    """The queue that a rate needs, in whole KiB."""
    return max(QUEUE_MIN, shape.rate_bits * QUEUE_MS // 8000 // 1024 * 1024)


# Delays in nodes


def has_delays(plan: Plan) -> bool:
    """Whether frames of a link are delayed."""
    return any(link.shape.delay_us for link in plan.links)


def with_delays_in_guest(plan: Plan) -> Plan:
    """The plan whose nodes delay frames themselves. Raises MissingError for a delay of the frames of one peer."""
    delays = (link for link in plan.links if link.peer and (link.shape.delay_us or link.shape.jitter_us))
    if link := next(delays, None):
        raise MissingError(
            f"{link.node} {link.direction} peer {link.peer}: the kernel of {plan.switch.server} cannot delay frames, "
            "and a node can only delay the frames of all peers",
            hint=f"on {plan.switch.server}: modprobe sch_netem",
        )
    return replace(plan, delays_in_guest=True)


def guest_delays(plan: Plan, node: str) -> dict[str, tuple[int, int, int]]:
    """The delays that a node makes itself, by direction: delay, jitter, and room for frames."""
    return {
        link.direction: (link.shape.delay_us, link.shape.jitter_us, delay_frames(plan, link.shape))
        for link in plan.links
        if plan.delays_in_guest and link.node == node and link.shape.delay_us
    }


def guest_readings(found: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[LinkReading]:
    """The delays that the kernels of nodes have, by node and direction."""
    return [
        replace(_reading(node, direction, None, one), where=GUEST)
        for node, by_direction in found.items()
        for direction, one in by_direction.items()
    ]


# Reading back

Key = tuple[str, str, str]  # a node, a direction, and a peer, which is empty for all frames


def planned_limits(plan: Plan) -> dict[Key, LinkShape]:
    """The limits that the kernel has if all is as planned, with computed queues."""
    nodes = {switch_port(plan, node): node.name for node in plan.nodes if plan.links}
    return {
        (nodes[each.port], each.direction, nodes.get(flow.peer_port, "")): _shape_of(flow)
        for each in _directions(plan)
        for flow in each.flows
        if flow.has_queue or flow.loss_ppm
    }


def _shape_of(flow: Flow) -> LinkShape:
    """The kernel counts whole bytes a second."""
    values = {each.name: getattr(flow, each.name) for each in fields(LinkShape)}
    shape = LinkShape(**values | {"rate_bits": flow.rate_bits // 8 * 8})
    return shape if shape.rate_bits else replace(shape, queue_bytes=0)


def found_limits(found: Sequence[LinkReading]) -> dict[Key, LinkShape]:
    """The limits that the kernel of the switch has."""
    return {(one.node, one.direction, one.peer or ""): shape_of(asdict(one)) for one in found if one.where == SWITCH}


def shape_of(reading: Mapping[str, Any]) -> LinkShape:
    """The limits of a reading, as fields by name."""
    return LinkShape(**{each.name: reading[each.name] or 0 for each in fields(LinkShape)})


def texts_of(limits: Mapping[Key, LinkShape]) -> dict[tuple[str, str], str]:
    """The limits of each direction of a link as a text."""
    texts: dict[tuple[str, str], list[str]] = {}
    for (node, direction, peer), shape in limits.items():
        about = f"peer {peer} " if peer else ""
        texts.setdefault((node, direction), []).append(f"{about}{link_spec.text_of(shape)}")
    return {key: "; ".join(sorted(parts)) for key, parts in texts.items()}


def readings(plan: Plan, found: Mapping[str, Any]) -> list[LinkReading]:
    """The limits of links that an answer of the agent has, in the order of nodes."""
    seen: dict[tuple[int, str, int], dict[str, int]] = {}
    ports = {switch_port(plan, node): node for node in plan.nodes}
    shaper_of = {naming.shaper_name(plan.name, node.index): switch_port(plan, node) for node in plan.nodes}
    for queue in found["queues"]:
        is_from = queue["interface"] in shaper_of
        port = shaper_of.get(queue["interface"], queue["interface"])
        is_used = found["redirections"].get(port) == queue["interface"] if is_from else True
        if port in ports and is_used and queue["major"] == MAJORS[FROM if is_from else TO]:
            peer = 0 if queue["number"] == ALL else queue["number"] - FIRST_PEER
            seen[ports[port].index, FROM if is_from else TO, peer] = dict(queue)
    for loss in found["losses"]:
        peer_node = ports.get(loss["peer_port"])
        if loss["port"] in ports and (peer_node or not loss["peer_port"]):
            key = (ports[loss["port"]].index, loss["direction"], peer_node.index if peer_node else 0)
            one = seen.setdefault(key, {})
            dropped = one.get("dropped_packets", 0) + loss["dropped_packets"]
            one.update(loss_ppm=loss["loss_ppm"], dropped_packets=dropped)
    names = {node.index: node.name for node in plan.nodes}
    return [
        replace(_reading(names[index], direction, names.get(peer), one), traced=names[index] in found["traced"])
        for (index, direction, peer), one in sorted(seen.items(), key=lambda item: item[0])
    ]


def _reading(node: str, direction: str, peer: str | None, one: Mapping[str, int]) -> LinkReading:
    """What does not exist is null: a rate that is not there has no queue."""
    limits: dict[str, Any] = {each.name: one.get(each.name) or None for each in fields(LinkShape)}
    if not limits["rate_bits"]:
        limits["queue_bytes"] = None
    needs_netem = any(limits[name] for name in NETEM_FIELDS)
    return LinkReading(
        node=node,
        direction=direction,
        peer=peer,
        **limits,
        delay_frames=one["delay_frames"] if needs_netem else None,
        where=SWITCH,
        sent_packets=one.get("sent_packets", 0),
        sent_bytes=one.get("sent_bytes", 0),
        dropped_packets=one.get("dropped_packets", 0),
        waiting_bytes=one.get("waiting_bytes", 0),
        marked_packets=one.get("marked_packets", 0),
    )
