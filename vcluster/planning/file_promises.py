"""Compare the files of a server, and its owner labels, with the plan of a cluster. Pure.

`seen` is the answer of the agent's operation survey_cluster.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from vcluster.model import naming
from vcluster.model.plan import Node, Plan, ServerPlan
from vcluster.model.promises import PRESENT, Fact
from vcluster.planning.server_promises import NONE, interface_names
from vcluster.render import domain_xml
from vcluster.snapshots.template import snapshots_folder

Seen = Mapping[str, Any]

AGENT_FOLDER = Path("/var/lib/vcluster/agent")
APPARMOR = "apparmor"
LABEL = ".vcluster-owner"
SAFE = "only root and QEMU can write it"
CLOSED = "only root and QEMU can read it"
_HIDDEN = re.compile(r"\.unfinished-.*|\.refused.*")
_ROTATED = re.compile(r"(.+\.console\.log)\.\d+")  # virtlogd(8) keeps former parts of a long log
_OTHERS, _WRITERS = 0o077, 0o022


def trees(server: ServerPlan) -> tuple[str, ...]:
    """The folders whose files are inspected on a server."""
    pool, image = server.pool, server.image
    return (
        *([str(pool.path)] if pool else []),
        *([str(image.disk.parent)] if image else []),
        *([str(snapshots_folder(server.storage))] if pool else []),
        *([str(AGENT_FOLDER)] if server.login else []),
    )


def facts_of_files(plan: Plan, server: ServerPlan, seen: Seen, *, key: str) -> Iterator[Fact]:
    """All promises about files. `key` is the public key that must be in authorized_keys of the login; else empty."""
    if server.pool:
        yield from _pool_facts(plan, server, seen)
    if server.image:
        yield from _tree_facts("image-files", str(server.image.disk.parent), seen, SAFE, _WRITERS)
    if server.pool:
        yield from _snapshot_facts(str(snapshots_folder(server.storage)), seen)
    if server.login and _tree(seen, str(AGENT_FOLDER)):
        yield from _tree_facts("agent-files", str(AGENT_FOLDER), seen, SAFE, _WRITERS)
    if seen["authorized"] is not None:
        yield from _key_facts(seen["authorized"], key)
    if seen["confinement"] == APPARMOR:
        yield from (_profile_fact(plan, server, node, seen) for node in plan.nodes_on(server.name))
    yield from _label_facts(plan, server, seen)


def file_text(state: Seen | None, good: str, forbidden: int, owners: Collection[int]) -> str:
    """The state of a file: `good`, or why it is not; empty if it is not there. `forbidden` are bits of its mode."""
    if state is None:
        return ""
    if state["kind"] in ("link", "special file"):
        return f"is a {state['kind']}"
    if state["mode"] & forbidden or state["uid"] not in owners:
        return f"mode {state['mode']:04o}, owner {state['uid']}"
    return good


def file_fact(
    promise: str, path: Path, state: Seen | None, good: str, *, forbidden: int, owners: Collection[int]
) -> Fact:
    """A file: no bit of its mode is `forbidden`, and one of `owners` has it. The remedy changes only what differs."""
    found, owner, text = file_text(state, good, forbidden, owners), min(owners), shlex.quote(str(path))
    if state is None or found == good:
        return Fact(promise, str(path), good, found)
    mode = f"chmod {state['mode'] & ~forbidden:04o} {text}" if state["mode"] & forbidden else ""
    change = f"chown {owner} {text}" if state["uid"] not in owners else ""
    is_file = state["kind"] in ("file", "folder")
    remedy = " && ".join(filter(None, (mode, change))) if is_file else f"rm {text}"
    return Fact(promise, str(path), good, found, remedy)


def _tree(seen: Seen, folder: str) -> Seen:
    found: Seen = seen["trees"].get(folder, {})
    return found


def _tree_facts(promise: str, folder: str, seen: Seen, good: str, forbidden: int) -> Iterator[Fact]:
    for name, state in _tree(seen, folder).items():
        path = Path(folder, name)
        yield file_fact(promise, path, state, good, forbidden=forbidden, owners=seen["qemu_uids"])


# The folder of the disks


def _pool_facts(plan: Plan, server: ServerPlan, seen: Seen) -> Iterator[Fact]:
    assert server.pool  # noqa: S101 - the caller has checked it
    folder = str(server.pool.path)
    tree, label = _tree(seen, folder), naming.alias(plan.name, plan.owner)
    yield Fact("folder-label", folder, label, seen["labels"].get(folder) or ("no label" if tree else ""))
    if "." in tree:
        yield Fact(
            "folder-mode", folder, "mode 0711, owner 0", f"mode {tree['.']['mode']:04o}, owner {tree['.']['uid']}"
        )
    for name in _disk_names(plan, server):
        path = Path(folder, name)
        yield file_fact("disk-files", path, tree.get(name), CLOSED, forbidden=_OTHERS, owners=seen["qemu_uids"])


def _disk_names(plan: Plan, server: ServerPlan) -> list[str]:
    return [path.name for node in plan.nodes_on(server.name) for path in node_files(plan, node)]


def node_files(plan: Plan, node: Node) -> list[Path]:
    """The files of a node in the folder of the disks."""
    data = [domain_xml.data_path(plan, node)] if node.data_gib else []
    kinds = (domain_xml.volume_path, domain_xml.seed_path, domain_xml.console_path)
    return [*(path(plan, node) for path in kinds), *data]


def _snapshot_facts(folder: str, seen: Seen) -> Iterator[Fact]:
    """Complete snapshots. Those that are being made belong to another command."""
    for name, state in _tree(seen, folder).items():
        if not _HIDDEN.search(name):
            forbidden = _OTHERS & ~0o011 if state["kind"] == "folder" else _OTHERS
            path = Path(folder, name)
            yield file_fact("snapshot-files", path, state, CLOSED, forbidden=forbidden, owners=seen["qemu_uids"])


# Labels, keys and profiles


def _key_facts(found: Seen, key: str) -> Iterator[Fact]:
    """The lines of authorized_keys that have our mark."""
    lines = found["lines"]
    if key:
        yield Fact("authorized-keys", found["path"], key, key if lines == [key] else "\n".join(lines))
    elif lines:
        yield Fact("authorized-keys", found["path"], "", "\n".join(lines))
    else:
        yield Fact("authorized-keys", found["path"], NONE, NONE)


def _profile_fact(plan: Plan, server: ServerPlan, node: Node, seen: Seen) -> Fact:
    planned = _profile_text({"domain": node.domain, "by": plan.owner}, [], "mode 0644, owner 0")
    profile = next((one for one in seen["profiles"] if one["uuid"] == node.uuid), None)
    if profile is None:
        return Fact("apparmor-profile", node.domain, planned, "")
    snapshots = snapshots_folder(server.storage)
    others = [path for path, _ in profile["rules"] if snapshots not in Path(path).parents or Path(path).name != "ram"]
    state = profile["state"]
    mode = f"mode {state['mode']:04o}, owner {state['uid']}" if state else "no file"
    return Fact("apparmor-profile", node.domain, planned, _profile_text(profile, others, mode))


def _profile_text(label: Mapping[str, str], others: Collection[str], mode: str) -> str:
    return f"{mode}, domain {label['domain']}, owner id {label['by']}, files {', '.join(others) or 'of a snapshot'}"


def _label_facts(plan: Plan, server: ServerPlan, seen: Seen) -> Iterator[Fact]:
    """Everything with our owner label or in our folder. The remedy removes what the plan does not name."""
    label, nodes = naming.alias(plan.name, plan.owner), plan.nodes_on(server.name)
    interfaces, domains = interface_names(plan, server), {node.domain for node in nodes}
    for name, one in seen["interfaces"].items():
        if one["alias"] == label:
            yield _labelled(f"interface {name}", f"ip link del {shlex.quote(name)}", is_planned=name in interfaces)
    for name, domain in seen["domains"].items():
        versions = [one for one in (domain["defined"], domain["running"]) if one]
        if any(one["label"].get("by") == plan.owner for one in versions):
            remove = "; ".join(f"virsh {what} {shlex.quote(name)}" for what in ("destroy", "undefine"))
            yield _labelled(f"domain {name}", remove, is_planned=name in domains)
    for profile in seen["profiles"]:
        if profile["by"] == plan.owner:
            is_planned = profile["domain"] in domains
            yield _labelled(f"profile {profile['domain']}", f"rm {shlex.quote(profile['path'])}", is_planned=is_planned)
    if server.pool:
        names = {".", LABEL, *_disk_names(plan, server)}
        for name in _tree(seen, str(server.pool.path)):
            rotated, path = _ROTATED.fullmatch(name), Path(server.pool.path, name)
            is_planned = name in names or (rotated is not None and rotated[1] in names)
            yield _labelled(f"file {path}", f"rm -r {shlex.quote(str(path))}", is_planned=is_planned)


def _labelled(thing: str, removal: str, *, is_planned: bool) -> Fact:
    return Fact("unplanned", thing, PRESENT, PRESENT) if is_planned else Fact("unplanned", thing, "", PRESENT, removal)
