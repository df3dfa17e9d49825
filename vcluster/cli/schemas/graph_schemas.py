"""The schemas of the graph of a cluster, and of what is watched at its switch and its nodes."""

from __future__ import annotations

from vcluster.cli.schemas.plan_schema import MODE, MTU, SUBNET, SWITCH
from vcluster.cli.schemas.schema_parts import (
    Schema,
    address,
    flag,
    integer,
    mac,
    many,
    number,
    one_of,
    optional,
    record,
    seconds,
    text,
)

NODE, PORT, SERVER = text("Name of the node"), text("Name of the interface"), text("Name of the server")
FAULTS = many("What disturbs the link on purpose", text("Description of a fault"))
LIMITS = text("The limits as they are written for link set, for example rate=100mbit,queue=64KiB")

GRAPH_NODE = record(
    "A node",
    {
        "name": NODE,
        "role": one_of("Its role", "head", "worker", "storage"),
        "server": SERVER,
        "address": address("Address on the cluster network"),
        "mac": mac("MAC address on the cluster network"),
        "switch_port": text("Its port of the switch"),
    },
)
GRAPH_PORT = record(
    "A port of a bridge",
    {
        "name": PORT,
        "kind": one_of("The tap of a node, or an end of its tunnel", "tap", "tunnel"),
        "server": SERVER,
        "bridge": text("Name of the bridge"),
        "node": NODE,
        "present": optional(flag("Whether it exists; null if it was not read, as ports of other bridges")),
    },
)
GRAPH_TUNNEL = record(
    "A tunnel",
    {
        "node": NODE,
        "port": text("Name of the interface at both ends"),
        "vni": integer("Its VNI"),
        "server": text("The server of the node"),
        "switch_server": text("The server of the switch"),
        "address": address("Address of the end at the server of the node"),
        "switch_address": address("Address of the end at the switch"),
    },
)
GRAPH_LINK = record(
    "The link of a node to the switch",
    {
        "node": NODE,
        "switch_port": text("Its port of the switch"),
        "shaping": optional(
            many(
                "The limits that the kernel has; null if they cannot be read",
                record(
                    "A direction",
                    {
                        "direction": one_of("Frames from the node, or to it", "from", "to"),
                        "peer": optional(text("The other node of these frames; null if they are all frames")),
                        "limits": LIMITS,
                    },
                ),
            )
        ),
        "faults": FAULTS,
        "load": optional(
            record(
                "Its load; null without --load",
                {
                    "from_rate_bits": optional(
                        integer("Frames that the node sent, in bits a second; null if not countable")
                    ),
                    "to_rate_bits": optional(
                        integer("Frames that the node received, in bits a second; null if not countable")
                    ),
                },
            )
        ),
    },
)
GRAPH = record(
    "The graph",
    {
        "name": text("Name of the cluster"),
        "mode": MODE,
        "subnet": SUBNET,
        "mtu": MTU,
        "switch": SWITCH,
        "load_s": optional(seconds("Time in which the load was counted; null without --load")),
        "servers": many(
            "The servers; the first has the switch",
            record(
                "A server",
                {
                    "name": SERVER,
                    "has_switch": flag("Whether it has the switch"),
                    "bridges": many("Its bridges of the cluster network", text("Name of a bridge")),
                },
            ),
        ),
        "nodes": many("The nodes; the first is the head node", GRAPH_NODE),
        "ports": many("The ports of bridges", GRAPH_PORT),
        "tunnels": many("The tunnels", GRAPH_TUNNEL),
        "links": many("The links, in the order of the nodes", GRAPH_LINK),
    },
)

COUNT = "; null if the port does not exist or was made again"
UNREAD = "; null if the node is off or was not reached"
WATCH = record(
    "An interval; with -o ndjson and in the file of --record, each line is one",
    {
        "name": text("Name of the cluster"),
        "t_ns": integer("End of the interval on the monotonic clock of the switch's server, in nanoseconds"),
        "unix_ns": integer("The same moment on its other clock, in nanoseconds since 1970"),
        "interval_ns": integer("Length of the interval, in nanoseconds"),
        "ports": many(
            "The ports of the switch, in the order of the nodes",
            record(
                "A port, with counts of the interval",
                {
                    "node": NODE,
                    "port": PORT,
                    "present": flag("Whether the port exists"),
                    "from_bytes": optional(integer(f"Frames that the node sent, in bytes{COUNT}")),
                    "to_bytes": optional(integer(f"Frames that it received, in bytes{COUNT}")),
                    "from_packets": optional(integer(f"Number of frames that it sent{COUNT}")),
                    "to_packets": optional(integer(f"Number of frames that it received{COUNT}")),
                    "from_rate_bits": optional(integer(f"Frames that it sent, in bits a second{COUNT}")),
                    "to_rate_bits": optional(integer(f"Frames that it received, in bits a second{COUNT}")),
                    "waiting_bytes": optional(integer(f"Frames that wait in queues of the link now, in bytes{COUNT}")),
                    "dropped_packets": optional(integer(f"Frames that port, queues and losses dropped{COUNT}")),
                    "limits": many("The directions of the link that have limits", text("A direction and its limits")),
                    "faults": FAULTS,
                },
            ),
        ),
        "nodes": many(
            "What the nodes did, in the same order",
            record(
                "A node, with counts of the interval",
                {
                    "node": NODE,
                    "retransmits": optional(
                        integer(f"TCP segments that its kernel sent again, on all of its networks{UNREAD}")
                    ),
                    "cpu_ns": optional(integer(f"Time that all its virtual processors ran, in nanoseconds{UNREAD}")),
                    "waited_ns": optional(
                        integer(f"Time that they could run and waited for the server, in nanoseconds{UNREAD}")
                    ),
                    "cpu_percent": optional(number(f"Share of the interval that they ran, in percent{UNREAD}")),
                    "waited_percent": optional(number(f"Share that they waited, in percent{UNREAD}")),
                },
            ),
        ),
        "matrix": optional(
            many(
                "The pairs of nodes with frames in the interval; null with --no-matrix",
                record(
                    "A pair",
                    {
                        "from_node": text("Node that sent"),
                        "to_node": text("Node that received"),
                        "packets": integer("Number of frames that the switch forwarded"),
                        "bytes": integer("Their size, in bytes"),
                    },
                ),
            )
        ),
    },
)

SCHEMAS: dict[str, Schema] = {"graph": GRAPH, "watch": WATCH}
