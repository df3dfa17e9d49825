"""The schemas of results about nodes and the hosts next to them: exec, provision, power, check, path, discover."""

from __future__ import annotations

from vcluster.cli.schemas.fault_schemas import FAULTS
from vcluster.cli.schemas.plan_schema import MTU
from vcluster.cli.schemas.schema_parts import (
    Schema,
    address,
    by_name,
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
from vcluster.model.checks import CHECK_KINDS

NODE = text("Name of the node")
CHECKS = " or ".join(", ".join(kind.name for kind in CHECK_KINDS).rsplit(", ", 1))
OUTPUT = {"stdout": text("Standard output"), "stderr": text("Standard error")}
EXIT_CODE = integer("Exit code; 255 if the connection broke")

EXEC = by_name(
    "The result of each node, by its name",
    record(
        "The result of a node",
        {
            "exit_code": optional(integer("Exit code; null if the command was not run to its end")),
            **OUTPUT,
            "error": optional(text("Why the exit code is null; null if the command ended")),
        },
    ),
)
PROVISION = by_name(
    "The result of each node, by its name",
    optional(record("The result of a node; null if the script was not run there", {"exit_code": EXIT_CODE, **OUTPUT})),
)

POWER = many(
    "The nodes",
    record(
        "A node",
        {
            "node": NODE,
            "power": optional(
                one_of(
                    "What was done; null after an error",
                    "on", "already on", "resumed", "off", "already off", "off and on",
                )
            ),
            "error": optional(text("Why nothing was done; null without an error")),
        },
    ),
)  # fmt: skip
POWER_STATUS = many(
    "The nodes",
    record(
        "A node",
        {
            "node": NODE,
            "power": one_of(
                "gone: it has no domain; unknown: its server does not answer",
                "on", "off", "paused", "gone", "unknown",
            ),
            "reason": text("Why the node is paused; empty if it is not"),
        },
    ),
)  # fmt: skip

_MEASURED = {"type": ["number", "null"]}  # a delay is negative if the baseline took longer
_FIGURE = record(
    "A limit that was measured",
    {
        "figure": one_of("The limit; a delay is that of a round trip, so of both directions", "rate", "delay", "loss"),
        "other": optional(text("The node at the other end of the probe; null if no node was suitable")),
        "unit": one_of("Bits a second, microseconds, or frames of a million", "bit/s", "us", "ppm"),
        "asked": integer("The limit in the unit; of a delay, all delays of the round trip"),
        "value": {**_MEASURED, "description": "What was measured, in the unit; null if it was not"},
        "low": {**_MEASURED, "description": "Begin of its 95 % interval, in the unit; null without one"},
        "high": {**_MEASURED, "description": "End of its 95 % interval, in the unit; null without one"},
        "detail": text("How it was measured, or why it was not"),
        "frames": integer("Frames that the probe sent"),
        "bytes": integer("Their size, in bytes"),
    },
)
LINKS = many(
    "The directions of links that have limits",
    record(
        "A direction of a link, as the kernel has it",
        {
            "node": NODE,
            "direction": one_of("Frames from the node, or to it", "from", "to"),
            "peer": optional(text("The other node of these frames; null if the limits are for all frames")),
            "rate_bits": optional(integer("Rate of whole Ethernet frames, in bits a second; null if unlimited")),
            "queue_bytes": optional(integer("Room for frames that wait, in bytes; null without a rate")),
            "loss_ppm": optional(integer("Frames of a million that are dropped at random; null if none is")),
            "ecn_bytes": optional(integer("Frames that find more waiting are marked (ECN), in bytes; null if none is")),
            "delay_us": optional(integer("Delay, in microseconds; null without one")),
            "jitter_us": optional(integer("Variation of the delay, in microseconds; null if it does not vary")),
            "duplicate_ppm": optional(integer("Frames of a million that arrive twice; null if none does")),
            "reorder_ppm": optional(integer("Frames of a million that pass the delayed ones; null if none does")),
            "corrupt_ppm": optional(integer("Frames of a million in which a bit is changed; null if there are none")),
            "burst_loss_ppm": optional(integer("Frames of a million that are lost in bursts; null if none is")),
            "burst_frames": optional(integer("Mean number of frames in a burst; null without bursts")),
            "delay_frames": optional(integer("Room for delayed frames, computed; null if netem has no work")),
            "where": one_of("The place of the limits", "switch", "guest"),
            "sent_packets": integer("Frames that left the queue"),
            "sent_bytes": integer("Their size, in bytes"),
            "dropped_packets": integer("Frames that found no room, were dropped at random, or were lost in bursts"),
            "waiting_bytes": integer("Size of the frames that wait now, in bytes"),
            "marked_packets": integer("Frames that were marked (ECN)"),
            "measured": optional(many("What the link does; null without --measured", _FIGURE)),
            "traced": flag("Whether a trace changes the rate now"),
        },
    ),
)
LINK_CALIBRATION = record(
    "What links without limits give",
    {
        "name": text("Name of the cluster"),
        "at": text("Time of the measurement, in UTC"),
        "paths": many(
            "The paths, one for each pair of servers",
            record(
                "The path between two nodes without limits",
                {
                    "servers": many("The servers of the two nodes", text("Name of the server")),
                    "from": NODE,
                    "to": NODE,
                    "round_trip_us": number("Median of the round trips of pings, in microseconds"),
                    "low_us": number("Begin of its 95 % interval, in microseconds"),
                    "high_us": number("End of its 95 % interval, in microseconds"),
                    "rate_bits": integer("Highest rate of whole frames in this direction, in bits a second"),
                },
            ),
        ),
    },
)
LINK_TRACE = record(
    "A trace that has begun",
    {
        "name": text("Name of the cluster"),
        "node": NODE,
        "file": text("The file with the rates"),
        "lines": integer("Number of its lines, without the header"),
        "seconds": seconds("How long its lines last"),
        "repeat": flag("Whether it begins again at its end"),
    },
)
LINKS_RESET = record(
    "The result", {"name": text("Name of the cluster"), "reset": many("The nodes that had limits", NODE)}
)

_VALUE = number("Value in the unit")
_BOUND = optional(number("End of the 95 % interval of the median, in the unit; null with fewer than 6 samples"))


def _traffic(cause: str, about: str) -> Schema:
    return optional(
        record(
            "Bytes of frames that entered the switch's ports meanwhile; null if the measurement ended early",
            {
                "port_bytes": integer("All, by the counters of the ports, in bytes"),
                f"{cause}_bytes": integer(about),
                "ssh_bytes": integer("Those of SSH, in bytes"),
                "nfs_bytes": integer("Those of NFS, in bytes"),
                "arp_bytes": integer("Those of ARP, in bytes"),
                "difference_bytes": integer("The rest, in bytes; negative if the ports counted less", minimum=-(2**63)),
            },
        )
    )


MEASURE = record(
    "A measurement",
    {
        "kind": one_of("What was measured", "latency", "bandwidth", "pingpong", "collectives"),
        "nodes": many("The nodes, in the order of their ranks", NODE),
        "library": optional(text("Version of the MPI library; null if the measurement ended early")),
        "ci_percent": number("Wanted distance of the interval's ends from the median, in percent of it"),
        "skipped": integer("Times at the begin of each series that are left out"),
        "rows": many(
            "The rows",
            record(
                "An operation of one size",
                {
                    "operation": text("pingpong, stream, or a collective operation"),
                    "from": optional(text("First node; null for a collective operation")),
                    "to": optional(text("Second node; null for a collective operation")),
                    "bytes": integer("Size of a message, or the part of each rank of a collective operation, in bytes"),
                    "unit": one_of("Microseconds, or megabits of data a second", "us", "Mbit/s"),
                    "samples": integer("Number of values"),
                    "minimum": _VALUE, "median": _VALUE, "p99": _VALUE, "maximum": _VALUE,
                    "low": _BOUND, "high": _BOUND,
                    "reached": flag("Whether the interval is as narrow as wanted"),
                    "starved": many("Nodes whose processors waited for one of the server", NODE),
                },
            ),
        ),
        "traffic": _traffic("mpi", "Those of the ranks, by their own counters of TCP, in bytes"),
    },
)  # fmt: skip
_RATE_BOUND = optional(integer("End of the 95 % interval of the median, in bits a second; null without one"))
MEASURE_TCP = record(
    "A measurement",
    {
        "kind": one_of("What was measured", "tcp"),
        "nodes": many("The nodes", NODE),
        "seconds": seconds("How long data were sent in each direction, after the warm-up"),
        "skipped_seconds": seconds("Length of the warm-up, which is left out"),
        "streams": integer("Number of connections at a time"),
        "rows": many(
            "The rows",
            record(
                "A direction between two nodes",
                {
                    "from": text("Node that sent"),
                    "to": text("Node that received"),
                    "congestion": text("Congestion control of the sender"),
                    "samples": integer("Number of intervals for which the goodput was counted"),
                    "goodput_bits": integer("Median of the data that the receiver acknowledged, in bits a second"),
                    "low_bits": _RATE_BOUND,
                    "high_bits": _RATE_BOUND,
                    "mean_bits": integer("Mean of iperf3 at the receiver, with the warm-up, in bits a second"),
                    "retransmits": integer("Segments that the sender sent again, also in the warm-up"),
                    "rtt_us": number("Median of the round trips in the samples, in microseconds"),
                    "min_rtt_us": optional(
                        integer("Least round trip that the kernel knew, in microseconds; null if it knew none")
                    ),
                    "starved": many("Nodes whose processors waited for one of the server", NODE),
                },
            ),
        ),
        "traffic": _traffic("tcp", "Those of the connections, by the counters of their kernels, in bytes"),
    },
)

CHECK = record(
    "The result of all checks",
    {
        "passed": flag("Whether every check passed"),
        "checks": many(
            "The checks",
            record(
                "A check",
                {
                    "check": text(f"Kind of the check: {CHECKS}"),
                    "from": text("Node that tried"),
                    "to": text("Node that was tried; empty if the check has no second node"),
                    "passed": flag("Whether it passed"),
                    "detail": text("Why it failed; empty if it passed"),
                },
            ),
        ),
        "name": text("Name of the cluster"),
        "mtu": MTU,
        "nodes": many("The nodes", NODE),
        "faults": FAULTS,
    },
)

PATH = record(
    "The path of packets from one node to another and back",
    {
        "from": text("The first node"),
        "to": text("The second node"),
        "packets": integer("Number of packets sent"),
        "answered": integer("Number of packets answered"),
        "crossed": flag("Whether all packets crossed every port in both directions"),
        "detail": text("Which port missed packets; empty if none did"),
        "hops": many(
            "The ports, in the order of the path",
            record(
                "A port",
                {
                    "what": text("Description of the port"),
                    "server": text("Its server"),
                    "port": text("Name of the interface"),
                    "bridge": text("Its bridge"),
                    "mtu": optional(integer("MTU, in bytes; null if it cannot be read")),
                    "there": optional(integer("Counted packets to the second node; null if they cannot be read")),
                    "back": optional(integer("Counted packets to the first node; null if they cannot be read")),
                    "passed": optional(flag("Whether it counted all packets; null if it cannot be read")),
                },
            ),
        ),
    },
)

DISCOVER = many(
    "The hosts on the cluster network, and the nodes that were not found",
    record(
        "A host",
        {
            "name": text("Name of the node, or the name that an unknown host sends; empty without a name"),
            "address": address("Address on the cluster network"),
            "mac": mac("MAC address"),
            "found_by": many("Methods that found it; empty for a node that was not found", text("Name of a method")),
            "stranger": flag("Whether it is an unknown host"),
            "misplaced": flag("Whether it is a node that does not have its planned address"),
            "present": flag("Whether it answered"),
        },
    ),
)

SCHEMAS: dict[str, Schema] = {
    "exec": EXEC,
    "provision": PROVISION,
    "link set": LINKS,
    "link show": LINKS,
    "link reset": LINKS_RESET,
    "link trace": LINK_TRACE,
    "link calibrate": LINK_CALIBRATION,
    **{f"measure {kind}": MEASURE for kind in ("latency", "bandwidth", "pingpong", "collectives")},
    "measure tcp": MEASURE_TCP,
    "power on": POWER,
    "power off": POWER,
    "power cycle": POWER,
    "power status": POWER_STATUS,
    "check": CHECK,
    "path": PATH,
    "discover": DISCOVER,
}
