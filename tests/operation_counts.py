"""The number of operations that some work takes for a cluster of any size.

An operation is an instruction of Python's virtual machine, of any function. So the count is the same on each machine.
Loops in C compare or hash the names of nodes; these are `Name`s, so each comparison counts too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from types import FrameType
from typing import Any
from unittest import mock

from tests import samples
from vcluster.model import naming
from vcluster.model.facts import Facts
from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import Login, ServerSpec, Spec
from vcluster.planning.planner import make_plan

SERVERS = tuple(ServerSpec(f"server{number}", Login(host=f"server{number}")) for number in range(1, 21))
SWITCH = ServerSpec("switch", Login(host="switch"))
SUBNET = IPv4Network("10.0.0.0/16")

Work = Callable[[], object]
mac_for = naming.mac_for


class Name(str):
    """A name whose comparisons and hashes are counted, also those in loops of C."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)


def operations(work: Work) -> int:
    """The number of operations of some work."""
    count = 0

    def step(_: FrameType, event: str, __: object) -> Any:
        nonlocal count
        count += event == "opcode"
        return step

    def begin(frame: FrameType, _: str, __: object) -> Any:
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return step

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@dataclass(frozen=True)
class Cluster:
    """A cluster of `count` nodes on 20 servers, with its switch on another one."""

    count: int
    spec: Spec
    facts: dict[str, Facts]
    plan: Plan
    keys: Keys

    @classmethod
    def of(cls, count: int) -> Cluster:
        names = tuple(map(Name, naming.default_node_names(count)))
        spec = replace(samples.spec(1, mode="shared", subnet=SUBNET), node_names=names, servers=SERVERS, switch=SWITCH)
        facts = samples.shared_facts(spec)
        keys = Keys(samples.pair("admin"), samples.pair("user"), {name: samples.pair(name) for name in names})
        return cls(count, spec, facts, make_plan(spec, facts, image=samples.DIRECT, owner=samples.OWNER), keys)

    @property
    def names(self) -> tuple[str, ...]:
        return self.spec.node_names

    def planned(self, spec: Spec) -> Plan:
        with counted_macs():
            return make_plan(spec, self.facts, image=samples.DIRECT, owner=samples.OWNER)

    def local(self, **options: Any) -> Spec:
        return replace(self.spec, mode="local", servers=(samples.LOCAL,), switch=samples.LOCAL, **options)

    def of_each(self, work: Callable[[Node], object]) -> list[object]:
        return [work(node) for node in self.plan.nodes]


def counted_macs() -> Any:
    """Have comparisons of MACs counted too."""
    return mock.patch.object(naming, "mac_for", lambda *arguments: Name(mac_for(*arguments)))


def counts(work: Callable[[Cluster], Work], sizes: tuple[int, ...]) -> Iterator[int]:
    """The operations of some work, for each number of nodes. Something done once for a process is not counted."""
    work(Cluster.of(10))()
    for size in sizes:
        yield operations(work(Cluster.of(size)))
