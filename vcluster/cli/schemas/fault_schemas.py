"""The schemas of results about faults."""

from __future__ import annotations

from vcluster.cli.schemas.schema_parts import Schema, many, one_of, optional, record, seconds, text

NODE = text("Name of the node")
FAULTS = many(
    "The active faults",
    record(
        "An active fault",
        {
            "fault": one_of("Kind of the fault", "cut", "partition", "flap", "unplug", "pause"),
            "nodes": many("The nodes", NODE),
            "direction": optional(one_of("Dropped frames: from the nodes, or to them; null without one", "from", "to")),
            "groups": optional(many("The groups of a partition; null for others", many("A group", NODE))),
            "left_s": optional(seconds("Time until its end, in seconds; null if it lasts until it is healed")),
        },
    ),
)
FAULTS_HEALED = record(
    "The result", {"name": text("Name of the cluster"), "healed": many("The nodes that had faults", NODE)}
)

SCHEMAS: dict[str, Schema] = {
    **dict.fromkeys((f"fault {kind}" for kind in ("cut", "partition", "flap", "unplug", "pause", "show")), FAULTS),
    "fault heal": FAULTS_HEALED,
}
