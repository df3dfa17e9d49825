"""Logins between nodes: which ones the check makes, and what follows from them for the others. All of it is pure.

A login from node to node costs half a second of CPU under emulation, and N nodes have N² logins. So this machine logs
in to each node, one node logs in to the head, and the check derives the others. `derive` uses these logins and what
the nodes report about their keys, names and settings. With `pairs` all logins are made.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from vcluster.model.checks import Check
from vcluster.model.plan import Plan

Login = tuple[str, str]  # from a node, to a node


def chosen(plan: Plan, *, proven: Collection[str] = ()) -> list[Login]:
    """The login that the check makes in any case: from the first worker to the head, unless the head is proven."""
    head, first = plan.head.name, plan.nodes[:2][-1].name
    return [] if head in proven else [(first, head)]


def all_pairs(plan: Plan) -> list[Login]:
    """All logins. Each node begins with itself, so that not all log in to the same one at the same time."""
    names = [node.name for node in plan.nodes]
    return [(start, end) for place, start in enumerate(names) for end in names[place:] + names[:place]]


def doubtful(same: Mapping[str, Mapping[str, str]], tested: Collection[Check], entered: Collection[str]) -> list[Login]:
    """The logins that were not made and do not follow from others, so that the check must make them.

    These are all from and to a node that differs from the others, and one to each node that no login has reached;
    `entered` are the nodes that this machine has logged in to. If a login failed, the first equal node tries all equal
    nodes.
    """
    known = {(check.from_node, check.to_node) for check in tested}
    odd = differences(same)
    equal = [name for name in same if name not in odd]
    odd_ends = [end for end in same if end in odd]
    logins = {(start, end): None for start in same for end in (same if start in odd else odd_ends)}
    reached = {*entered, *(end for start, end in known if start not in odd)}
    for end in equal:
        if end not in reached:
            logins[next((start for start in reversed(equal) if start != end), end), end] = None
    if not all(check.passed for check in tested):
        logins |= {(start, end): None for start in equal[:1] for end in equal}
    return [login for login in logins if login not in known]


def derive(
    same: Mapping[str, Mapping[str, str]], tested: Iterable[Check], proven: Collection[str] = ()
) -> Iterator[Check]:
    """A login from every node to every other: its result if it was made, else derived from other logins.

    A login passes if its first node could log in to any equal node that others can enter, if no login to its second
    node failed or another one passed, and if both nodes have the keys, names and settings of the others. A node that
    was not tried in a direction has the same chance as the equal nodes. Proven nodes did both in an earlier check.
    """
    known = {(check.from_node, check.to_node): check for check in tested}  # the later of two
    odd = differences(same)
    of_equals = [check for check in known.values() if check.from_node not in odd]
    entering = _grouped((check.to_node, check) for check in of_equals)
    shut = {end: _none_passed(entering[end]) for end in same} | dict.fromkeys(proven, "")
    to_equals = [check for check in known.values() if not shut[check.to_node] and check.to_node not in odd]
    leaving = _grouped((check.from_node, check) for check in to_equals)
    usual = _none_passed([check for check in to_equals if check.from_node not in odd])
    for start in same:
        of_start = _none_passed(leaving[start]) if leaving[start] else usual
        cannot_leave = "" if start in proven else of_start
        for end in same:
            detail = cannot_leave or shut[end]
            check = known.get((start, end)) or Check("ssh", start, end, not detail, detail)
            yield _explained(check, odd.get(start) or odd.get(end, ""))


def _grouped(checks: Iterable[tuple[str, Check]]) -> Mapping[str, list[Check]]:
    """The checks of each node, by name; an empty list for any other name."""
    found: dict[str, list[Check]] = defaultdict(list)
    for name, check in checks:
        found[name].append(check)
    return found


def _none_passed(tested: Sequence[Check]) -> str:
    """Why another login must fail after these; empty if one of them passed."""
    if not tested or any(check.passed for check in tested):
        return ""
    return f"not tried, as the one from {tested[0].from_node} to {tested[0].to_node} failed"


def _explained(check: Check, difference: str) -> Check:
    if check.passed or not difference:
        return check
    return Check(check.check, check.from_node, check.to_node, False, f"{check.detail} ({difference})")


def differences(same: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """By node, the first difference of each node that does not equal the majority; the first value wins a tie."""
    found: dict[str, str] = {}
    for name in next(iter(same.values())):
        digests = {node: seen[name] for node, seen in same.items()}
        ((usual, _),) = Counter(digests.values()).most_common(1)  # the first of equally frequent ones
        model = next(node for node, digest in digests.items() if digest == usual)
        for node, digest in digests.items():
            if digest != usual:
                found.setdefault(node, f"{name} of {node} differs from that of {model}")
    return found
