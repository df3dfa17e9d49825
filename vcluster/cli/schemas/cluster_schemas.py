"""The schemas of results about whole clusters, for example of create, status and clear."""

from __future__ import annotations

from vcluster.cli.schemas.fault_schemas import FAULTS
from vcluster.cli.schemas.plan_schema import CPU_LIMIT, DATA_GIB, MODE, MTU, PROCESSORS, SUBNET, SWITCH
from vcluster.cli.schemas.schema_parts import (
    Schema,
    address,
    flag,
    integer,
    mac,
    many,
    one_of,
    optional,
    record,
    seconds,
    text,
)
from vcluster.model.promises import PROMISES

CLUSTER = text("Name of the cluster")
STATE = one_of("State of the cluster", "creating", "ready", "partial", "stopped")

NODE_STATUS = record(
    "A node",
    {
        "name": text("Name of the node"),
        "role": one_of(
            "The head node starts MPI programs; a storage node shares its own disk", "head", "worker", "storage"
        ),
        "server": text("The server that carries the node"),
        "state": one_of(
            "State of the node; unknown if its server does not answer",
            "running", "paused", "stopped", "missing", "unknown",
        ),
        "address": address("Address on the cluster network"),
        "management_address": optional(address("Address on the management network; null without one")),
        "mac": mac("MAC address on the cluster network"),
        "bridge": text("The bridge that the node is connected to"),
        "port": text("The port of the bridge for this node"),
        "vni": optional(integer("VNI of the node's tunnel; null for a node without a tunnel")),
        "reason": text("Why the node is paused; empty if it is not"),
        "data_gib": DATA_GIB,
        "limits": many(
            "Limits of its link that the kernel has; empty for users without the rights to read them",
            text("A direction and its limits, for example from rate=100mbit,queue=64KiB"),
        ),
        "cpu_s": optional(seconds("Time that its virtual processors ran since its power-on; null if it is not on")),
        "waited_s": optional(
            seconds("Time that they could run and waited for a processor of the server; null if it is not on")
        ),
        "cpu_limit_percent": CPU_LIMIT,
        "processors": PROCESSORS,
    },
)  # fmt: skip
STATUS_FIELDS = {
    "name": CLUSTER,
    "mode": MODE,
    "state": STATE,
    "subnet": SUBNET,
    "mtu": MTU,
    "switch": SWITCH,
    "nodes": many("The nodes; the first is the head node", NODE_STATUS),
    "missing": many("Planned resources that do not exist", text("Description of a resource")),
    "faults": FAULTS,
}
STATUS = record("The cluster", STATUS_FIELDS)
NODE_NAMES = text("Name of a node")

CREATED = record("The new cluster", {**STATUS_FIELDS, "ready_after_s": seconds("Duration of the create")})
ADDED = record("The cluster", {**STATUS_FIELDS, "added": many("The new nodes", NODE_NAMES)})
REMOVED = record("The cluster", {**STATUS_FIELDS, "removed": many("The removed nodes", NODE_NAMES)})

LIST = many(
    "The clusters of this machine",
    record(
        "A cluster; fields that only its ledger has are null if the ledger is lost",
        {
            "name": CLUSTER,
            "mode": optional(MODE),
            "state": STATE,
            "subnet": optional(SUBNET),
            "nodes": optional(integer("Number of nodes")),
            "is_lost": flag("True if you made it on this machine with a state folder that is lost"),
        },
    ),
)

TIMING = record(
    "The duration of a create",
    {
        "stages": many(
            "The stages, in the order of their ends",
            record(
                "A stage of a node",
                {
                    "stage": text("Name of the stage"),
                    "node": text("Name of the node or server; empty for a stage of the whole cluster"),
                    "started_s": seconds("Time from the start of the command to the start of the stage"),
                    "seconds": seconds("Duration of the stage"),
                },
            ),
        )
    },
)

REPAIRED = record(
    "The result",
    {
        "name": CLUSTER,
        "state": one_of("State of the cluster", "ready"),
        "repaired": many("Resources that were missing; empty if none was", text("Description of a resource")),
    },
)
STOPPED = record(
    "The result",
    {
        "name": CLUSTER,
        "state": one_of("State of the cluster", "stopped"),
        "stopped": many("Nodes that were running", NODE_NAMES),
    },
)
STARTED = record(
    "The result",
    {
        "name": CLUSTER,
        "state": one_of("State of the cluster", "ready"),
        "started": flag("False if the cluster was running already"),
    },
)
CLEARED = record(
    "The result",
    {
        "clusters": many(
            "The clusters", record("A cluster", {"name": CLUSTER, "cleared": flag("False if it did not exist")})
        ),
        "left": optional(
            many(
                "Resources that still have an owner label of this controller; null without --verify",
                record("A resource", {"cluster": CLUSTER, "item": text("Description of the resource")}),
            )
        ),
    },
)
PROMISE_ID = one_of("Id of the promise", *(promise.id for promise in PROMISES))
VERIFIED_CLUSTER = record(
    "The promises about the cluster",
    {
        "name": CLUSTER,
        "kept": flag("Whether every promise is kept"),
        "promises": many(
            "The promises, for each server that they are about",
            record(
                "A promise on a server",
                {
                    "id": PROMISE_ID,
                    "server": text("Name of the server; localhost is this machine"),
                    "inspected": integer("Number of things that were inspected"),
                    "kept": flag("Whether each of them is as planned"),
                },
            ),
        ),
        "broken": many(
            "The things that are not as planned",
            record(
                "A thing",
                {
                    "id": PROMISE_ID,
                    "server": text("Name of the server; localhost is this machine"),
                    "thing": text("Name of the thing, for example of an interface or a file"),
                    "found": optional(text("Its state; null if it is not there")),
                    "planned": optional(text("Its planned state; null if the plan does not name it")),
                    "fix": text("The command that fixes it, on the server, or on the controller if it is of vcluster"),
                },
            ),
        ),
    },
)
SSH_CONFIG = record(
    "The OpenSSH configuration",
    {"name": CLUSTER, "path": text("Path of the file"), "config": text("Content of the file")},
)
GATEWAY = record("The gateway of a private cluster", {"name": CLUSTER, "gateway": one_of("Its state", "on", "off")})

SCHEMAS: dict[str, Schema] = {
    **dict.fromkeys(("local create", "remote create", "shared create"), CREATED),
    "clear": CLEARED,
    "list": LIST,
    "status": STATUS,
    "add": ADDED,
    "remove": REMOVED,
    "start": STARTED,
    "stop": STOPPED,
    "repair": REPAIRED,
    "timing": TIMING,
    "verify": VERIFIED_CLUSTER,
    "gateway": GATEWAY,
    "ssh-config": SSH_CONFIG,
}
