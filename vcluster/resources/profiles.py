"""AppArmor profiles of the nodes' domains: with our owner label, so that `clear` finds them, and with our rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vcluster.fleet.servers import Server
from vcluster.model.plan import Node, Plan
from vcluster.resources.owned import OwnedItem


def create(server: Server, cluster: str, domain: str, uuid: str, rules: Sequence[tuple[Path, str]] = ()) -> None:
    """Write the profile of a domain before its first start, if AppArmor confines QEMU on the server.

    `rules` are files that QEMU opens and libvirt does not know, each with a mode such as r or rw.
    """
    label = {"cluster": cluster, "domain": domain, "by": server.owner}
    server.call("write_profile", uuid=uuid, label=label, rules=[[str(path), mode] for path, mode in rules])


def discard(server: Server, domain: str) -> None:
    """Remove the profile of a domain that has stopped, of any owner: no two domains of a server have one name."""
    remove(server, [found for found in server.call("profiles") if found["domain"] == domain])


def of_templates(server: Server) -> list[dict[str, str]]:
    """The profiles of templates, of any owner, because snapshots belong to all users: each with `uuid` and `domain`."""
    return [found for found in server.call("profiles") if not found["cluster"]]


def remove(server: Server, found: Sequence[dict[str, str]]) -> None:
    """Remove these profiles. Their domains have stopped."""
    if found:
        server.call("remove_profiles", uuids=[each["uuid"] for each in found])


def destroy(server: Server, cluster: str) -> None:
    """Remove the profiles of all nodes of the cluster, except of those whose domain could not be removed."""
    present = server.libvirt.names("domain") if server.libvirt else frozenset()
    found = [each for each in _owned(server) if each["cluster"] == cluster and each["domain"] not in present]
    remove(server, found)


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """The same for the nodes of the plan `before` that are not in the plan `after`."""
    removed = _domains(before.nodes_on(server.name)) - _domains(after.nodes)
    remove(server, [found for found in _owned(server) if found["domain"] in removed])


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All profiles with our owner label, of nodes; each has the name of its domain."""
    return tuple(
        OwnedItem("profile", found["domain"], found["cluster"]) for found in _owned(server) if found["cluster"]
    )


def _domains(nodes: Sequence[Node]) -> set[str]:
    return {node.domain for node in nodes}


def _owned(server: Server) -> list[dict[str, str]]:
    return [found for found in server.call("profiles") if found["by"] == server.owner]
