"""Compare the files of a cluster on the controller with its plan. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vcluster.model.keys import Keys
from vcluster.model.plan import Plan
from vcluster.model.promises import Fact
from vcluster.planning.file_promises import file_fact
from vcluster.planning.server_promises import AS_PLANNED

READY = "ready"
PRIVATE = "only its user can read it"
_OTHERS = 0o077
# Below these, users' files keep their own modes; the folder of the cluster protects them.
_COPIES = ("setup", "logs")


def facts_of_state_files(
    folder: Path, tree: Mapping[str, Any], *, required: Collection[str], uid: int
) -> Iterator[Fact]:
    """The mode and the owner of each file in the folder of a cluster, and of those that must be there."""
    for name in sorted({*tree, *required}):
        if Path(name).parts[:1] not in [(copy,) for copy in _COPIES]:
            yield file_fact("state-files", folder / name, tree.get(name), PRIVATE, forbidden=_OTHERS, owners={uid})


def owner_fact(plan: Plan, path: Path, state: Mapping[str, Any] | None, text: str, *, uid: int) -> Fact:
    """The owner id of the state folder. Clusters of earlier versions have another one, and keep it."""
    planned = plan.owner if len(plan.owner) == len(text) else text
    fact = file_fact("owner-id", path, state, text, forbidden=0o022, owners={uid})
    return replace(fact, planned=planned)


def key_facts(plan: Plan, path: Path, keys: Keys | None, identity: Path, private: str) -> Iterator[Fact]:
    """The nodes that have keys, and the key that ssh uses."""
    nodes = " ".join(node.name for node in plan.nodes)
    yield Fact(
        "keys", str(path), f"keys of {nodes}", f"keys of {' '.join(sorted_as(plan, keys))}" if keys else "unreadable"
    )
    if keys:
        found = AS_PLANNED if private == keys.admin.private else "is another key" if private else ""
        yield Fact("keys", str(identity), AS_PLANNED, found)


def sorted_as(plan: Plan, keys: Keys) -> list[str]:
    """The names of nodes that have a key, those of the plan first and in its order."""
    order = [node.name for node in plan.nodes]
    return sorted(keys.hosts, key=lambda name: (order.index(name) if name in order else len(order), name))


def text_fact(path: Path, planned: str, found: str) -> Fact:
    """A file for plain ssh, whose text is made from the plan."""
    return Fact("ssh-files", str(path), AS_PLANNED, "differs" if found and found != planned else found and AS_PLANNED)
