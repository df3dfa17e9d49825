"""The schemas of results about machines, images and switches: doctor, image, switch."""

from __future__ import annotations

from vcluster.cli.schemas.plan_schema import VNI
from vcluster.cli.schemas.schema_parts import (
    Schema,
    address,
    by_name,
    flag,
    integer,
    many,
    matching,
    one_of,
    optional,
    record,
    text,
)

DIGEST = matching("Digest of the image, sha256-…", "^sha256-[0-9a-f]{64}$")
CREATED = text("Date and time of its making, as in ISO 8601")
ORIGIN = text("The recipe that it was built from, or the file that it was imported from")

DOCTOR = many(
    "The findings",
    record(
        "A finding",
        {
            "level": one_of("How severe it is", "ok", "warning", "error"),
            "what": text("What was checked"),
            "detail": text("What was found"),
            "fix": text("The command that fixes it; empty if there is none"),
            "server": text("The server; empty for this machine"),
            "mend": text("The former name of fix, with the same value"),
        },
    ),
)

SUPPORT = record(
    "The result",
    {
        "path": text("Path of the file"),
        "parts": many(
            "The parts",
            record(
                "A part",
                {
                    "part": text("Name of the part"),
                    "files": many("Its files in the folder of the archive", text("Path of a file")),
                    "error": optional(text("Why it is missing or not complete; null if it is whole")),
                },
            ),
        ),
    },
)

MANIFEST = record(
    "The image",
    {
        "name": text("Name of the image"),
        "digest": DIGEST,
        "origin": ORIGIN,
        "created": CREATED,
        "virtual_size_bytes": integer("Size of the disk as a node sees it, in bytes"),
        "kernel_cmdline": text("Command line of the kernel; empty if the image boots from its disk"),
        "features": many("Abilities of the image", text("Name of an ability")),
        "recipe": text("Digest of the recipe; empty for an imported image"),
        "files": by_name("The SHA-256 digest of each file, by its name", text("SHA-256 digest, in hexadecimal digits")),
    },
)
SNAPSHOT = record(
    "A snapshot",
    {
        "key": text("Key of the snapshot"),
        "image": text("Digest of its image"),
        "created": text("Date and time of its making, as in ISO 8601; empty if its manifest cannot be read"),
        "memory_mib": integer("Size of its memory file, in MiB"),
        "circumstances": by_name(
            "The properties of nodes that the snapshot fits, by name; empty if its manifest cannot be read",
            text("A value, with its unit"),
        ),
        "bytes": integer("Space that it takes on the disk, in bytes"),
    },
)
IMAGES = many(
    "The images",
    record(
        "An image",
        {
            "name": optional(text("Name of the image; null if another image has taken its name")),
            "digest": DIGEST,
            "created": CREATED,
            "origin": ORIGIN,
            "bytes": integer("Space that it takes on the disk, in bytes"),
            "used_by": many("The clusters that use it", text("Name of a cluster")),
            "snapshots": many("The snapshots on this machine that were made with this image", SNAPSHOT),
        },
    ),
)
WARMED = record("The result", {"servers": many("The servers that got a new snapshot", text("Name of a server"))})
VERIFIED = record(
    "The result",
    {
        "name": text("The image, as written in the command"),
        "digest": DIGEST,
        "verified": flag("Whether every file has its digest"),
        "problems": many("What is wrong; empty if nothing is", text("Description of a problem")),
    },
)
IMAGE_REMOVED = record(
    "The result",
    {
        "name": text("The image, as written in the command"),
        "digest": DIGEST,
        "servers": many(
            "The servers",
            record(
                "A server",
                {
                    "server": optional(text("Name of the server; null for this machine")),
                    "removed": flag("False if the image was not there"),
                },
            ),
        ),
    },
)

PORT = record(
    "A port of the switch",
    {
        "name": text("Name of the interface"),
        "vni": VNI,
        "peer": address("Address of the other end of the tunnel"),
        "mtu": integer("MTU, in bytes"),
        "is_up": flag("Whether the interface is up"),
        "received_packets": integer("Packets received"),
        "sent_packets": integer("Packets sent"),
    },
)
SWITCH = record(
    "A switch",
    {
        "cluster": text("Name of the cluster"),
        "is_ours": flag("Whether this controller created it"),
        "bridge": text("Name of the bridge"),
        "mtu": integer("MTU, in bytes"),
        "ports": many("The ports", PORT),
    },
)
SWITCH_REMOVED = record(
    "The result", {"name": text("Name of the cluster"), "cleared": flag("False if it did not exist")}
)

RANK_END = record(
    "An end of a connection",
    {
        "rank": integer("MPI rank"),
        "node": text("Name of the node; empty if the address is not that of a node"),
        "address": address("Address"),
        "port": integer("TCP port"),
    },
)
CONNECTION = record("A connection", {"first": RANK_END, "second": RANK_END})
CAPTURED = record(
    "The result of a capture",
    {
        "file": text("The file; - is standard output"),
        "frames": integer("Number of frames in the file"),
        "dropped": integer("Number of frames that the kernel had no room for"),
        "bytes": integer("Length of the file, in bytes"),
        "ports": many(
            "The ports, in the order of the interfaces of the file",
            record(
                "A port",
                {
                    "node": text("Its node, the name of the interface in the file"),
                    "port": text("Its interface on the server of the switch"),
                    "vni": optional(VNI),
                    "frames": integer("Number of its frames in the file, in both directions"),
                    "seen": integer("Number of frames that the switch has seen, before super-frames were cut"),
                },
            ),
        ),
        "connections": optional(many("The connections between MPI ranks; null if they were not watched", CONNECTION)),
        "brief_connections": optional(
            many("Those that closed before another one of the same ranks; null if they were not watched", CONNECTION)
        ),
        "exit_code": optional(integer("Exit code of the command; null without one")),
    },
)

BACKGROUND = record(
    "The capture in the background",
    {
        "running": flag("Whether it runs"),
        "file": optional(text("The file; null if no capture was started")),
        "frames": optional(integer("Number of frames so far")),
        "dropped": optional(integer("Number of frames that the kernel had no room for")),
        "bytes": optional(integer("Length of the file, in bytes")),
        "seconds": optional({"type": "number", "description": "Time since its start, in seconds"}),
    },
)

SCHEMAS: dict[str, Schema] = {
    "capture run": CAPTURED,
    "capture stop": CAPTURED,
    "capture status": BACKGROUND,
    "doctor": DOCTOR,
    "support": SUPPORT,
    "image build": MANIFEST,
    "image import": MANIFEST,
    "image list": IMAGES,
    "image warm": WARMED,
    "image verify": VERIFIED,
    "image rm": IMAGE_REMOVED,
    "switch up": SWITCH,
    "switch show": many("The switches of this machine", SWITCH),
    "switch down": SWITCH_REMOVED,
}
