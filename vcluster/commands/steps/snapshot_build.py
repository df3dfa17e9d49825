"""Build snapshots on servers by booting a template once; find them, and discard those that no longer fit."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from vcluster import guest
from vcluster.adapters.libvirt.serial_channel import SerialChannel
from vcluster.adapters.process import python
from vcluster.adapters.serial_connection import SerialConnection
from vcluster.agent.snapshot_manifest import DISK, RAM, STATE
from vcluster.agent.snapshot_store import SEED
from vcluster.commands.steps import admission
from vcluster.commands.steps.inventory import read_ledger
from vcluster.config.options import CLUSTER
from vcluster.errors import MissingError, VclusterError
from vcluster.fleet import servers
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.keys import KeyPair, make_pair
from vcluster.model.plan import Plan
from vcluster.model.spec import Spec
from vcluster.model.versions import too_old
from vcluster.render.domain_xml import READY_CHANNEL, Machine, template_xml
from vcluster.render.node_actions import template_actions
from vcluster.resources import profiles
from vcluster.resources.seeds import seed_iso
from vcluster.resources.volumes import disk_bytes
from vcluster.snapshots.memory_access import SHARED, clone_access
from vcluster.snapshots.template import (
    FEATURE,
    NAME,
    REFUSED,
    Snapshot,
    SnapshotIndex,
    Template,
    compatibility,
    difference,
    is_outdated,
    key_of,
    snapshots_folder,
    template_of,
    template_seed,
)
from vcluster.stages import configure
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

PROGRAMS = ("apply", "check")  # loaded in the template, so that every clone starts with them
CONSOLE = "console.log"
BUSY_POLL_S = 0.5
_PREFIX = f"vcluster-{NAME}-"  # of the domains of templates


def build_for_spec(context: Context, spec: Spec, *, image_name: str, accel: str, low_priority: bool) -> tuple[str, ...]:
    """Build the snapshots that a cluster of this spec would clone. Returns the servers that lacked them."""
    image, deadline = context.images.find(image_name), Deadline(spec.timeout_s)
    with context.images.in_use(image.digest), context.fleet(admission.server_requests(spec)) as fleet:
        servers.require_rights(fleet)
        plan, _ = admission.plan_cluster(context, fleet, spec, image=image, accel=accel)
        admission.refuse_damaged_image(context, fleet, plan)
        return make(fleet, plan, deadline=deadline, report=context.report, low_priority=low_priority)


def build_for_cluster(context: Context, name: str, *, low_priority: bool) -> tuple[str, ...]:
    """Build the snapshots for more nodes of a cluster, on all its servers. Returns the servers that lacked them."""
    plan = read_ledger(context.files(name)).plan
    with context.fleet_of(plan) as fleet:
        deadline = Deadline(plan.timeout_s).with_check(fleet.check)
        return make(fleet, plan, deadline=deadline, report=context.report, low_priority=low_priority)


def templates_of(plan: Plan) -> dict[str, tuple[Template, ...]]:
    """The templates of the plan's nodes, by server; none if the image does not support clones."""
    if FEATURE not in plan.image.features:
        return {}
    return {
        server.name: tuple(dict.fromkeys(template_of(plan, node) for node in plan.nodes_on(server.name)))
        for server in plan.servers
        if server.carries_nodes
    }


def find(fleet: Fleet, plan: Plan, *, deadline: Deadline, report: Reporter) -> SnapshotIndex:
    """The snapshots that nodes of this plan can be cloned from. Waits for a snapshot that another command builds.

    If a server cannot make clones, each of its templates is REFUSED; the reason is reported once for the server.
    """
    templates = templates_of(plan)
    asked = parallel.each([fleet[name] for name in templates], _obstacle, deadline=deadline)
    obstacles = {name: obstacle for name, obstacle in zip(templates, asked, strict=True) if obstacle}
    for name, obstacle in obstacles.items():
        report.note(f"nodes boot{_where(fleet[name])}: {obstacle}")
    wanted = [(name, template) for name, found in templates.items() for template in found]

    def search(each: tuple[str, Template]) -> Snapshot | None:
        name, template = each
        return REFUSED if name in obstacles else _find(fleet[name], template, deadline=deadline, report=report)

    snapshots = parallel.each(wanted, search, deadline=deadline)
    return {each: snapshot for each, snapshot in zip(wanted, snapshots, strict=True) if snapshot}


def is_missing(plan: Plan, snapshots: SnapshotIndex) -> bool:
    """Whether nodes of this plan can be cloned, but a snapshot for them is missing."""
    return any((name, template) not in snapshots for name, found in templates_of(plan).items() for template in found)


def make(
    fleet: Fleet, plan: Plan, *, deadline: Deadline, report: Reporter, low_priority: bool = False
) -> tuple[str, ...]:
    """Build the missing snapshots for this plan's nodes. Returns the servers where one was missing.

    Raises MissingError for an image that does not support clones.
    """
    if FEATURE not in plan.image.features:
        raise MissingError(f"image {plan.image.name} does not support clones", hint="vcluster image build")
    built = [
        name
        for name, templates in templates_of(plan).items()
        for template in templates
        if build(fleet[name], template, deadline=deadline, report=report, low_priority=low_priority)
    ]
    return tuple(dict.fromkeys(built))


def _identify(server: Server, template: Template) -> tuple[str, str, dict[str, str]]:
    """The folder of a template's snapshot, its key, and everything that it depends on."""
    found = compatibility(
        template,
        versions=server.hypervisor.versions(),
        processor=server.call("processor"),
        content=_content(template),
    )
    return str(snapshots_folder(server.storage)), key_of(found), found


def _content(template: Template) -> dict[str, bytes]:
    """What a template is made from, without what differs between two templates of one key: names, keys, files."""
    xml = template_xml(_machine(template, Path()), "", "", by="", macs=template.macs, mtu=template.mtu, ram=Path(RAM))
    texts = {"xml": xml, "actions": json.dumps(template_actions()), **template_seed(template, KeyPair("", ""))}
    return {name: guest.program(name) for name in PROGRAMS} | {name: text.encode() for name, text in texts.items()}


def _machine(template: Template, folder: Path) -> Machine:
    """A template's machine, with its files in a folder."""
    files = (folder / DISK, folder / SEED, folder / CONSOLE)
    size = (template.memory_mib, template.vcpus)
    return Machine(template.image, template.accel, *size, *files, tsc_mhz=template.tsc_mhz)


def _find(server: Server, template: Template, *, deadline: Deadline, report: Reporter) -> Snapshot | None:
    root, key, found = _identify(server, template)

    def check() -> Any:
        return _call(server, "check_snapshot", deadline, root=root, key=key, circumstances=found)

    state = _wait_while_busy(server, check, deadline, report)
    if state["refused"]:
        report.note(
            f"nodes boot{_where(server)}, because QEMU refused clones before: {state['refused']} "
            "(to try again: vcluster image warm)"
        )
        return REFUSED
    if state["wrong"]:
        discard(server, root, key, state["wrong"], report=report)
        return None
    if not state["is_there"]:
        _report_outdated(server, root, template, found, report)
        return None
    access = clone_access(found["qemu"])
    return Snapshot(key, root, state["xml"], Path(state["ram"]), Path(state["state"]), access, template.macs)


def _obstacle(server: Server) -> str:
    """Why no clone can be made on a server, or empty. It is known before a template boots."""
    versions = server.hypervisor.versions()
    if old := too_old(versions):
        return ", ".join(f"clones need {name} {oldest} or newer, not {versions[name]}" for name, oldest in old.items())
    return str(server.call("clone_obstacle", root=str(snapshots_folder(server.storage))))


def _report_outdated(
    server: Server, root: str, template: Template, current: Mapping[str, str], report: Reporter
) -> None:
    """Report why the snapshots of a template do not fit any more."""
    for snapshot in server.call("list_snapshots", root=root):
        saved = snapshot["circumstances"]
        if is_outdated(saved, template, current):
            reason = difference(saved, current)
            report.note(f"nodes boot{_where(server)}, because snapshot {snapshot['key']} was made with {reason}")


def _wait_while_busy(server: Server, call: Callable[[], Any], deadline: Deadline, report: Reporter) -> Any:
    """The answer to `call` once no other command builds the snapshot; the wait is reported once."""
    is_reported = False
    while (answer := call())["is_busy"]:
        if not is_reported:
            report.note(f"waiting for the snapshot that another command builds{_where(server)}")
            is_reported = True
        deadline.pause(BUSY_POLL_S, "the snapshot that another command builds")
    return answer


def _call(server: Server, operation: str, deadline: Deadline, **arguments: Any) -> Any:
    """Call an operation whose time grows with the memory of a node, so only the command's deadline limits it."""
    return server.agent.call(operation, deadline=deadline, **arguments)


def discard(server: Server, root: str, key: str, reason: str, *, report: Reporter) -> None:
    """Delete a snapshot and report why. Its clones do not need it any more."""
    report.note(f"snapshot {key}{_where(server)} is deleted: {reason}")
    server.call("drop_snapshot", root=root, key=key)


def build(
    server: Server, template: Template, *, deadline: Deadline, report: Reporter, low_priority: bool = False
) -> bool:
    """Boot a template, wait until it is idle, and save its memory. Returns False if the snapshot exists already.

    Outdated snapshots of the same template, made by another version of QEMU for example, are deleted. With
    `low_priority` other work on the server has precedence. A failure leaves nothing.
    """
    root, key, found = _identify(server, template)
    if obstacle := _obstacle(server):
        raise MissingError(f"no snapshot can be made{_where(server)}: {obstacle}", hint="nodes boot without a snapshot")
    server.call("permit_snapshot", root=root, key=key)
    begun = _wait_while_busy(server, lambda: server.call("begin_snapshot", root=root, key=key), deadline, report)
    if begun["is_there"]:
        return False
    folder = Path(begun["folder"])
    try:
        with report.step("warm", server.label, awaiting="an idle template and its memory"):
            owner = server.hypervisor.qemu_user()
            xml = _boot_and_save(
                server, template, domain_of(root, key), folder, owner, deadline, report, low_priority=low_priority
            )
            _call(
                server,
                "finish_snapshot",
                deadline,
                folder=str(folder),
                key=key,
                circumstances=found,
                image_digest=template.image.digest,
                xml=xml,
                qemu_owner=owner,
            )
    except BaseException:
        server.call("drop_snapshot", root=root, key=key)
        raise
    for snapshot in server.call("list_snapshots", root=root):
        if is_outdated(snapshot["circumstances"], template, found):
            server.call("drop_snapshot", root=root, key=snapshot["key"])
    return True


def domain_of(root: str, key: str) -> str:
    """The name of a template's domain: one for each snapshot folder, as there is one lock for each folder."""
    return f"{_PREFIX}{key}-{hashlib.sha256(root.encode()).hexdigest()[:6]}"


def _is_of(root: str, domain: str) -> bool:
    """Whether a domain is that of a template whose snapshot is in this folder."""
    key = domain.removeprefix(_PREFIX).rpartition("-")[0]
    return domain == domain_of(root, key)


def _boot_and_save(
    server: Server,
    template: Template,
    name: str,
    folder: Path,
    qemu_owner: Sequence[int],
    deadline: Deadline,
    report: Reporter,
    *,
    low_priority: bool,
) -> str:
    """Leave the template's disk, memory and devices in the folder's files. Returns the XML of its domain."""
    image, ram = template.image, folder / RAM
    seed = seed_iso(template_seed(template, make_pair(NAME)))
    server.call(
        "prepare_template",
        folder=str(folder),
        backing=str(image.disk),
        disk_bytes=disk_bytes(template.disk_gib, image),
        seed=base64.b64encode(seed).decode(),
        ram_bytes=template.memory_mib * 2**20,
        qemu_owner=list(qemu_owner),
    )
    libvirt, machine = server.hypervisor, _machine(template, folder)
    libvirt.stop_domain(name)  # left by a command whose libvirtd was killed; the lock is ours, so it has no other user
    identity = str(uuid.uuid4())

    def lend(request: Mapping[str, Any]) -> None:
        server.call("lend_file", domain=name, path=str(folder / STATE), request=request, is_new=True)

    try:
        profiles.create(server, "", name, identity, [(ram, SHARED.mode)])
        libvirt.start_transient_domain(
            template_xml(machine, name, identity, by=server.owner, macs=template.macs, mtu=template.mtu, ram=ram)
        )
        server.call("prepare_domain", domain=name, taps=libvirt.taps_of(name), is_emulated=False)
        if low_priority:
            server.call("lower_priority", domain=name)
        with closing(libvirt.open_channel(name, READY_CHANNEL, NAME)) as channel:
            _wait_until_idle(channel, deadline, report)
        libvirt.save_devices(name, lend, deadline)
        xml = libvirt.xml_of(name)
    finally:
        libvirt.stop_domain(name)
        profiles.discard(server, name)
        server.call("remove_traces", networks=[], domains=[name])
    _call(server, "dig_holes", deadline, folder=str(folder))
    return xml


def _wait_until_idle(channel: SerialChannel, deadline: Deadline, report: Reporter) -> None:
    """Load and compile the programs that clones run first; then wait until the template has no work left."""
    while not channel.read_line(deadline, "the template to boot").startswith("{"):
        pass  # progress of the boot; a line of JSON comes from the program that listens on the channel
    connection = SerialConnection(NAME, channel, deadline)
    try:
        connection.load([guest.program(name) for name in PROGRAMS], deadline, "the loading of programs")
        configure.apply(connection, "warm", template_actions(), report=report)
        if failed := connection.request({"do": "rest"}, deadline, "the end of all work"):
            raise VclusterError(f"services of the template failed: {', '.join(failed)}")
    finally:
        connection.disconnect()


def _where(server: Server) -> str:
    return f" on {server.name}" if server.session else ""


def start_in_background(cluster: str) -> None:
    """Build the snapshots for a cluster's nodes in a process of its own, while the user continues.

    The plan of the cluster has all settings of nodes, so their environment variables are not passed on.
    """
    settings = {f"VCLUSTER_{key.upper()}" for key in CLUSTER}
    subprocess.Popen(
        python("from vcluster.cli.main import run; run()", "image", "warm", "--name", cluster, "--gently"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name not in settings},
    )


def remove_unfinished(server: Server) -> None:
    """Remove the unfinished snapshots of killed commands, and the profiles of their templates.

    A template's profile exists only while its snapshot is locked. So profiles are listed before the locks are checked:
    a listed profile without a locked snapshot is left over.
    """
    root = str(snapshots_folder(server.storage))
    templates = profiles.of_templates(server)
    swept = server.call("sweep_snapshots", root=root)
    if swept["removed"]:
        domains = [domain_of(root, key) for key in swept["removed"]]
        server.call("remove_traces", networks=[], domains=domains)
    in_use = {domain_of(root, key) for key in swept["in_use"]}
    profiles.remove(
        server, [found for found in templates if _is_of(root, found["domain"]) and found["domain"] not in in_use]
    )
