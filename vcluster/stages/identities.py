"""What no two nodes may share. A clone that did not take its identity has that of its template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vcluster.model.checks import Check
from vcluster.model.plan import Plan
from vcluster.model.quoting import quoted

HOST_NAME = "host name"
OWN = ("machine id", "host key")  # of each node alone

Identity = Mapping[str, str]


def identity_of(received: object) -> Identity | None:
    """The identity in an answer of a node; None if it is not one."""
    if not isinstance(received, dict) or received.keys() != {HOST_NAME, *OWN}:
        return None
    return received if all(isinstance(value, str) for value in received.values()) else None


def compare(plan: Plan, identities: Mapping[str, Identity]) -> Iterator[Check]:
    """The check of each node's identity, by name. A failed one names the node that has the same."""
    first: dict[tuple[str, str], str] = {}
    for node in plan.nodes:
        found = identities[node.name]
        holders = {what: first.setdefault((what, found[what]), node.name) for what in OWN if found[what]}
        double = {what: holder for what, holder in holders.items() if holder != node.name}
        wrong = [f"its {what} is that of {holder} too" for what, holder in double.items()]
        if found[HOST_NAME] != node.name:
            wrong.append(f"its host name is {quoted(found[HOST_NAME]) or 'empty'}")
        yield Check("identity", node.name, next(iter(double.values()), node.name), not wrong, "; ".join(wrong))
