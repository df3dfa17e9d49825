"""The files that are the same on all nodes of a cluster. They are made once, not once for each node. Pure.

Most of them have a line for each node. So N nodes get N² lines, which is necessary: each node must know the name, the
address and the host key of every other node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vcluster.model import naming
from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan


@dataclass(frozen=True, slots=True)
class CommonFiles:
    """The texts of the files, by what they are for.

    `neighbours` are the cluster address and the MAC of each node, in the plan's order; `places` are their positions in
    it, by node.
    """

    hosts: str
    known_hosts: str
    hostfile: str
    clustershell_groups: str
    genders: str
    neighbours: tuple[tuple[str, str], ...]
    places: Mapping[str, int]


def common_files(plan: Plan, keys: Keys) -> CommonFiles:
    """The files of a cluster."""
    return CommonFiles(
        hosts=etc_hosts(plan),
        known_hosts="".join(_host_key(_names(node), keys.hosts[node.name].public) for node in plan.nodes),
        hostfile=hostfile(plan),
        clustershell_groups=clustershell_groups(plan),
        genders=genders(plan),
        neighbours=tuple((str(node.address), node.mac) for node in plan.nodes),
        places={node.name: place for place, node in enumerate(plan.nodes)},
    )


def etc_hosts(plan: Plan) -> str:
    """The cluster address of every node. A node's own name is not on 127.0.1.1, since MPI would bind to that."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{node.address} {node.name}" for node in plan.nodes]
    return "\n".join(lines) + "\n"


def known_hosts(common: CommonFiles, node: Node, keys: Keys) -> str:
    """The host key of every node, by each name and address that it has for `node`."""
    return common.known_hosts + _host_key(["localhost", "127.0.0.1", "::1"], keys.hosts[node.name].public)


def _names(node: Node) -> list[object]:
    return [node.name, node.address, *([node.management.address] if node.management else [])]


def _host_key(names: Iterable[object], public: str) -> str:
    return f"{','.join(map(str, names))} {' '.join(public.split()[:2])}\n"


def hostfile(plan: Plan) -> str:
    """The hostfile: every node, with as many processes as it has CPUs."""
    return "".join(f"{node.name}:{plan.vcpus}\n" for node in plan.nodes)


def groups(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The node groups for parallel shells, by name."""
    members = {
        "all": tuple(node.name for node in plan.nodes),
        "head": (plan.head.name,),
        "workers": tuple(node.name for node in plan.workers),
        "storage": plan.stores,
    }
    return {name: nodes for name, nodes in members.items() if nodes}


def clustershell_groups(plan: Plan) -> str:
    """The groups file of ClusterShell; `clush -a` uses the group `all` (groups.conf(5), file-based groups)."""
    return "".join(f"{name}: {naming.folded(nodes)}\n" for name, nodes in groups(plan).items())


def genders(plan: Plan) -> str:
    """The groups file of pdsh's genders module, for `pdsh -a` and `pdsh -g workers` (genders(3))."""
    groups_of: dict[str, list[str]] = {node.name: [] for node in plan.nodes}
    for group, names in groups(plan).items():
        for name in names:
            groups_of[name].append(group)
    return "".join(f"{name} {','.join(found)}\n" for name, found in groups_of.items())
