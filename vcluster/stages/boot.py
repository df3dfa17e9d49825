"""From power-on to a node that says it is ready."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping

from vcluster.adapters.libvirt.hypervisor import SerialChannel
from vcluster.fleet.servers import Server
from vcluster.model.plan import Node
from vcluster.render.domain_xml import READY_CHANNEL
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

CONSOLE_LINES = 5
RANDOM_BYTES = 256


def listen(server: Server, node: Node) -> SerialChannel:
    """What a node that was just powered on says of itself."""
    return server.hypervisor.words(node.domain, READY_CHANNEL)


def wait_ready(words: SerialChannel, node: Node, *, deadline: Deadline, report: Reporter) -> None:
    """Wait until the node says `ready` on its channel; what it says before is passed on as progress."""
    with report.step("boot", node.name, awaiting="the node's word that it is up"):
        while (said := words.next(deadline, f"{node.name}: boot: ready").split(" ")[0]) != "ready":
            report.emit("progress", "boot", node.name, said)


def identity(seed: Mapping[str, str]) -> dict[str, object]:
    """What a copy is told to become a node of its own: its seed, and what no seed can hold."""
    return {
        "do": "become",
        "seed": dict(seed),
        "time_s": time.time(),
        "machine_id": uuid.uuid4().hex,
        "boot_id": str(uuid.uuid4()),
        "random": secrets.token_hex(RANDOM_BYTES),
    }


def last_words(node: Node, console: str) -> str:
    """The end of a node's console, to go with a message."""
    lines = [line for line in console.replace("\r", "\n").splitlines() if line.strip()][-CONSOLE_LINES:]
    if not lines:
        return f"\n  {node.name} has printed nothing on its console"
    return f"\n  the last lines of {node.name}'s console:" + "".join(f"\n  | {line}" for line in lines)
