"""Memories that are kept on servers: made by booting a node once, found, thrown away where they are no good."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from vcluster import guest
from vcluster.adapters.libvirt.serial_channel import SerialChannel
from vcluster.adapters.serial_connection import SerialConnection
from vcluster.agent.snapshot_manifest import DISK
from vcluster.agent.snapshot_store import SAVE, SEED
from vcluster.config.options import CLUSTER
from vcluster.errors import MissingError, VclusterError
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.keys import make_pair
from vcluster.model.plan import Plan
from vcluster.render.domain_xml import READY_CHANNEL, Machine, template_xml
from vcluster.render.node_actions import template_actions
from vcluster.resources.seeds import seed_iso
from vcluster.resources.volumes import disk_bytes
from vcluster.snapshots.template import (
    FEATURE,
    NAME,
    REFUSED,
    Snapshot,
    SnapshotIndex,
    Template,
    circumstances,
    is_outdated,
    key_of,
    root_on,
    template_of,
    template_seed,
)
from vcluster.stages import configure
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

PROGRAMS = ("apply", "check")  # kept ready in every copy
BUSY_LOOK_S = 0.5


def templates_of(plan: Plan) -> dict[str, tuple[Template, ...]]:
    """The kinds of nodes on each server, of an image that can be copied while it runs."""
    if FEATURE not in plan.image.features:
        return {}
    return {
        server.name: tuple(dict.fromkeys(template_of(plan, node) for node in plan.nodes_on(server.name)))
        for server in plan.servers
        if server.carries_nodes
    }


def find(fleet: Fleet, plan: Plan, *, deadline: Deadline, report: Reporter) -> SnapshotIndex:
    """The memories that this plan's nodes can be made from; one that is being made is waited for."""
    wanted = [(fleet[name], template) for name, templates in templates_of(plan).items() for template in templates]
    found = parallel.each(wanted, lambda one: _find(*one, deadline=deadline, report=report), deadline=deadline)
    return {(server.name, template): kept for (server, template), kept in zip(wanted, found, strict=True) if kept}


def lacks(plan: Plan, kept: SnapshotIndex) -> bool:
    """Whether a memory could be kept for nodes like these that is not at hand."""
    return any((name, template) not in kept for name, found in templates_of(plan).items() for template in found)


def make(fleet: Fleet, plan: Plan, *, deadline: Deadline, report: Reporter, is_gentle: bool = False) -> tuple[str, ...]:
    """Make the memories that this plan's nodes could be made from, unless they are at hand; returns where some were.

    Raises MissingError for an image whose nodes cannot be copied while they run.
    """
    if FEATURE not in plan.image.features:
        raise MissingError(
            f"image {plan.image.name} cannot be copied while it runs", hint="vcluster image build makes one that can"
        )
    made = [
        name
        for name, templates in templates_of(plan).items()
        for template in templates
        if keep(fleet[name], template, deadline=deadline, report=report, is_gentle=is_gentle)
    ]
    return tuple(dict.fromkeys(made))


def _facts(server: Server, template: Template) -> tuple[str, str, dict[str, str]]:
    """Where a memory is kept, under what name, and all that it depends on."""
    programs = {name: guest.program(name) for name in PROGRAMS} | {"": json.dumps(template_actions()).encode()}
    found = circumstances(
        template, versions=server.hypervisor.versions(), processor=server.call("processor"), programs=programs
    )
    return str(root_on(server.storage)), key_of(found), found


def _find(server: Server, template: Template, *, deadline: Deadline, report: Reporter) -> Snapshot | None:
    root, key, found = _facts(server, template)

    def look() -> Any:
        return _call(server, "check_snapshot", deadline, root=root, key=key, circumstances=found)

    state = _when_free(server, look, deadline, report)
    if state["refused"]:
        why = f"{state['refused']} (vcluster image warm has it tried again)"
        report.note(f"nodes boot{_where(server)}, as copies were refused before: {why}")
        return REFUSED
    if state["wrong"]:
        drop(server, root, key, state["wrong"], report=report)
        return None
    return Snapshot(key, root, state["xml"], Path(state["ram"]), template.macs) if state["is_there"] else None


def _when_free(server: Server, look: Callable[[], Any], deadline: Deadline, report: Reporter) -> Any:
    """What is seen once no other command is making the snapshot; its user is told of the wait."""
    is_told = False
    while (seen := look())["is_busy"]:
        if not is_told:
            report.note(f"waiting for the snapshot that another command makes{_where(server)}")
            is_told = True
        deadline.pause(BUSY_LOOK_S, "the snapshot that another command makes")
    return seen


def _call(server: Server, operation: str, deadline: Deadline, **arguments: Any) -> Any:
    """What goes through all of a node's memory takes as long as that is large."""
    return server.agent.call(operation, deadline=deadline, awaited=operation, **arguments)


def drop(server: Server, root: str, key: str, why: str, *, report: Reporter) -> None:
    """Throw a memory away and say so; who was made from it needs it no more."""
    report.note(f"snapshot {key}{_where(server)} is thrown away: {why}")
    server.call("drop_snapshot", root=root, key=key)


def keep(server: Server, template: Template, *, deadline: Deadline, report: Reporter, is_gentle: bool = False) -> bool:
    """Boot a node, let it come to rest and keep its memory. Returns False where that is at hand already.

    Others of the same kind, made by another QEMU for one, are of no use any more and go. Where `is_gentle`, all else on
    the server goes first. Raises VclusterError; nothing is left then.
    """
    root, key, found = _facts(server, template)
    server.call("permit_snapshot", root=root, key=key)
    begun = _when_free(server, lambda: server.call("begin_snapshot", root=root, key=key), deadline, report)
    if begun["is_there"]:
        return False
    folder = Path(begun["folder"])
    try:
        with report.step("warm", server.label, awaiting="a node at rest, and its memory"):
            owner = _boot_and_save(
                server, template, domain_of(root, key), folder, deadline, report, is_gentle=is_gentle
            )
            _call(
                server,
                "finish_snapshot",
                deadline,
                folder=str(folder),
                key=key,
                circumstances=found,
                image_digest=template.image.digest,
                qemu_owner=owner,
            )
    except BaseException:
        server.call("drop_snapshot", root=root, key=key)
        raise
    for one in server.call("list_snapshots", root=root):
        if is_outdated(one["circumstances"], found):
            server.call("drop_snapshot", root=root, key=one["key"])
    return True


def domain_of(root: str, key: str) -> str:
    """The domain of a template: one for each folder that memories are kept in, as the lock on it is."""
    return f"vcluster-{NAME}-{key}-{hashlib.sha256(root.encode()).hexdigest()[:6]}"


def _boot_and_save(
    server: Server,
    template: Template,
    name: str,
    folder: Path,
    deadline: Deadline,
    report: Reporter,
    *,
    is_gentle: bool,
) -> list[int]:
    """Leaves the memory in the folder's file `save`. Returns the user and group that QEMU runs as."""
    image, disk = template.image, folder / DISK
    seed = seed_iso(template_seed(template, make_pair(NAME)))
    server.call(
        "prepare_template",
        folder=str(folder),
        backing=str(image.disk),
        size_bytes=disk_bytes(template.disk_gib, image),
        seed=base64.b64encode(seed).decode(),
    )
    machine = Machine(
        image, template.accel, template.memory_mib, template.vcpus, disk, folder / SEED, folder / "console.log"
    )
    libvirt = server.hypervisor
    libvirt.stop_domain(name)  # one whose libvirtd was killed, for nobody else makes this one now
    libvirt.start_transient_domain(template_xml(machine, name, by=server.owner, macs=template.macs, mtu=template.mtu))
    try:
        if is_gentle:
            server.call("lower_priority", domain=name)
        with closing(libvirt.words(name, READY_CHANNEL)) as words:
            _wait_until_idle(words, deadline, report)
        owner: list[int] = server.call("owner_of", path=str(disk))
        libvirt.save_domain(name, str(folder / SAVE))
    finally:
        libvirt.stop_domain(name)
        server.call("remove_traces", networks=[], domains=[name])
    return owner


def _wait_until_idle(words: SerialChannel, deadline: Deadline, report: Reporter) -> None:
    """What nodes run first is read and compiled; then nothing is left to be done."""
    watched = deadline.with_check(words.check)
    while not words.next(watched, "a node to make others from").startswith("{"):
        pass  # its boot's words; a line of JSON says that somebody listens
    connection = SerialConnection(NAME, words, watched)
    try:
        connection.load([guest.program(name) for name in PROGRAMS], watched, "its programs")
        configure.apply(connection, "warm", template_actions(), report=report)
        if failed := connection.ask({"do": "rest"}, watched, "its rest"):
            raise VclusterError(f"of a node to make others from failed: {', '.join(failed)}")
    finally:
        connection.disconnect()


def _where(server: Server) -> str:
    return f" on {server.name}" if server.session else ""


def start_in_background(cluster: str) -> None:
    """Have the memories made that a cluster's nodes could have been made from, while its user goes on.

    What the environment says of nodes is in the cluster's plan already.
    """
    said = {f"VCLUSTER_{key.upper()}" for key in CLUSTER}
    argv = [sys.executable, "-c", "from vcluster.cli.main import run; run()"]
    subprocess.Popen(
        [*argv, "image", "warm", "--name", cluster, "--gently"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name not in said},
    )


def remove_unfinished(server: Server) -> None:
    """Take away what killed commands have left of memories that were being made."""
    root = str(root_on(server.storage))
    swept = server.call("sweep_snapshots", root=root)
    keys = {folder.split("-", 1)[1].partition(".")[0] for folder in swept}  # .unfinished-KEY, with digits behind it
    if keys:
        server.call("remove_traces", networks=[], domains=sorted(domain_of(root, key) for key in keys))
