"""The schema of the report of a captured file."""

from __future__ import annotations

from vcluster.cli.schemas.schema_parts import Schema, integer, many, one_of, optional, record, text

KINDS = {
    "mpi": "TCP between ports of 1024 and more, without NFS",
    "tcp": "Other TCP",
    "ssh": "SSH",
    "nfs": "NFS",
    "udp": "UDP without NFS",
    "icmp": "ICMP, for example ping",
    "arp": "ARP",
    "other": "Everything else, for example IPv6",
}
LENGTH = "whole Ethernet frames without their checksum, in bytes"


def nanoseconds(about: str) -> Schema:
    """A time in nanoseconds."""
    return integer(f"{about}, in nanoseconds")


TRAFFIC = record(
    "The frames by kind",
    {
        kind: record(about, {"frames": integer("Number of frames"), "bytes": integer(f"Their length: {LENGTH}")})
        for kind, about in KINDS.items()
    },
)
FIGURES = {
    "frames": integer("Number of frames, counted at their entry into the switch"),
    "bytes": integer(f"Their length: {LENGTH}"),
    "traffic": TRAFFIC,
    "rounds": integer("Number of messages of MPI"),
    "crossed_frames": optional(integer("Those that also left; null if the port of the receiver was not captured")),
    "unmatched_frames": optional(
        integer("Those that were not seen to leave; null if the port of the receiver was not captured")
    ),
    "switch_time_least_ns": optional(nanoseconds("Least time in the switch; null without crossed frames")),
    "switch_time_median_ns": optional(nanoseconds("Median of the time in the switch; null without crossed frames")),
    "switch_time_p99_ns": optional(nanoseconds("Time that 99 % of frames do not exceed; null without crossed frames")),
    "switch_time_greatest_ns": optional(nanoseconds("Greatest time in the switch; null without crossed frames")),
    "queue_growth_ns": optional(
        nanoseconds("Greatest minus least time: by how much waiting grew; null without crossed frames")
    ),
    "queue_max_bytes": optional(
        integer("Most that left to the receiver while a frame was in the switch, with this frame, in bytes")
    ),
    "retransmissions": integer("Segments of TCP that begin with data which entered before"),
    "silences": integer("Pauses of more than 100 ms between frames of MPI"),
    "silence_max_ns": nanoseconds("The longest of them; 0 without one"),
    "silent_ns": nanoseconds("All of them together"),
}
ENDS = {"from": text("Node that sent"), "to": text("Node that received")}
RANKS = {"from_rank": integer("Rank that sent"), "to_rank": integer("Rank that received")}
PORT = record(
    "A port",
    {
        "node": text("Its node"),
        "received_frames": integer("Frames that the switch got from the node"),
        "received_bytes": integer(f"Their length: {LENGTH}"),
        "sent_frames": integer("Frames that the switch sent to the node"),
        "sent_bytes": integer(f"Their length: {LENGTH}"),
        "traffic": TRAFFIC,
        "group_frames": integer("Received frames for all nodes or for a group: broadcast and multicast"),
        "group_bytes": integer(f"Their length: {LENGTH}"),
        "elsewhere_frames": integer("Received frames for one receiver that is not another node of the cluster"),
        "flooded_frames": integer("Sent frames for one receiver that is not this node"),
        "unmatched_frames": integer("Sent frames that were not seen to enter"),
        "queue_max_bytes": integer("Most that left here while a frame was in the switch, with this frame, in bytes"),
    },
)
REPORT = record(
    "The report of a captured file",
    {
        "file": text("The file"),
        "cluster": text("Name of the cluster"),
        "frames": integer("Number of frames in the file"),
        "dropped": integer("Number of frames that the capture had no room for"),
        "began_ns": optional(nanoseconds("Time of the first frame since 1970; null without frames")),
        "duration_ns": nanoseconds("Time from the first frame to the last one"),
        "rounds": integer("Fewest rounds that hold all messages, if a rank sends and receives at most one in a round"),
        "rounds_of": one_of("Who has at most one message in a round: nodes, if no rank is known", "ranks", "nodes"),
        "pairs": many("The pairs of nodes, each in one direction", record("A pair", {**ENDS, **FIGURES})),
        "rank_pairs": many(
            "The pairs of ranks, each in one direction; empty without a map of ranks",
            record("A pair", {**RANKS, **ENDS, **FIGURES}),
        ),
        "ports": many("The ports that were captured", PORT),
        "forgotten_frames": integer("Frames that were in the switch for too long; they count as unmatched"),
        "forgotten_streams": integer("Connections that were followed in parts, because there were too many"),
        "backward_frames": integer("Frames that left before they entered, because the clock was set"),
    },
)

SCHEMAS: dict[str, Schema] = {"capture report": REPORT}
