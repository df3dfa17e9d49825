"""From power-on to a node that reports that it is ready."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping

from vcluster.adapters.libvirt.serial_channel import SerialChannel
from vcluster.errors import VclusterError
from vcluster.fleet.servers import Server
from vcluster.model.plan import Node
from vcluster.model.quoting import quoted
from vcluster.render.domain_xml import READY_CHANNEL
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

RANDOM_BYTES = 256
MESSAGES_MAX = 10_000  # of a node that boots; it is not trusted


def listen(server: Server, node: Node) -> SerialChannel:
    """Open the channel on which a node that was just powered on reports its progress."""
    return server.hypervisor.open_channel(node.domain, READY_CHANNEL, node.name)


def wait_ready(channel: SerialChannel, node: Node, *, deadline: Deadline, report: Reporter) -> None:
    """Wait until the node writes `ready` on its channel. Messages before that are reported as progress.

    Raises DeadlineError, or VclusterError when the node stops.
    """
    with report.step("boot", node.name, awaiting="the node's report that it is ready"):
        for _ in range(MESSAGES_MAX):
            message = channel.read_line(deadline, f"{node.name} to boot").split(" ")[0]
            if message == "ready":
                return
            report.emit("progress", "boot", node.name, quoted(message))
        raise VclusterError(f"{node.name} sent {MESSAGES_MAX} messages, and none was that it is ready")


def identity(seed: Mapping[str, str]) -> dict[str, object]:
    """The request that makes a clone a separate node: its seed, and the values that a seed cannot hold."""
    return {
        "do": "become",
        "seed": dict(seed),
        "time_s": time.time(),
        "machine_id": uuid.uuid4().hex,
        "boot_id": str(uuid.uuid4()),
        "random": secrets.token_hex(RANDOM_BYTES),
    }
