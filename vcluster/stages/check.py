"""Is the cluster ready? Tried from inside the nodes, all of them side by side.

A login costs a second of CPU under emulation, and there are N² of them. So each node is logged in to and from at least
once, along a ring and by mpiexec, and what else logins depend on is compared; `logins` concludes from that how each of
the others would go. With `pairs` all of them are tried.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from vcluster import guest
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.pipe import Pipe
from vcluster.errors import VclusterError
from vcluster.model.plan import Node, Plan
from vcluster.render import node_actions as paths
from vcluster.stages.configure import ask
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

HEADERS_BYTES = 28  # IPv4 (20) and ICMP (8) before the payload of a ping
MPI_TIMEOUT_S = 120
LOOK_S = 0.1
END_S = 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """One try: what, from which node, to which, and how it went."""

    check: str
    from_node: str
    to_node: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.check} from {self.from_node} to {self.to_node or '?'}: {self.detail or 'ok'}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All tries together."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every try went well."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The tries that did not."""
        return tuple(check for check in self.checks if not check.passed)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program on a node found; `same` are digests, by path, of what has to be the same on all nodes."""

    node: str
    checks: tuple[Check, ...]
    same: Mapping[str, str]


def run(
    plan: Plan,
    sessions: Mapping[str, NodeConnection],
    *,
    deadline: Deadline,
    report: Reporter,
    pairs: bool = False,
    proven: Collection[str] = (),
    limit: int = parallel.WORKERS_MAX,
) -> CheckReport:
    """Ping, log in, share files and run MPI between all nodes; with `pairs` every login between two is made.

    Between nodes that are `proven` logins and MPI are taken as they were found when the last of them came, as long as
    what they depend on is the same on all. So many as `limit` nodes are at work at once, beside the head.
    """
    tries = _Tries(plan, sessions, deadline, report, pairs, proven)
    # The head's first: all others wait for it, and not all may fit beside each other.
    works: list[Callable[[], Answer]] = [
        tries.lead,
        tries.launch,
        *(partial(tries.follow, node) for node in plan.workers),
    ]
    led, launched, *followed = parallel.each(works, lambda work: work(), deadline=deadline, limit=limit + 2)
    return judge((led, *followed), launched.checks, proven)


class _Tries:
    """What happens on each node; arguments as those of `run`."""

    def __init__(
        self,
        plan: Plan,
        sessions: Mapping[str, NodeConnection],
        deadline: Deadline,
        report: Reporter,
        pairs: bool,
        proven: Collection[str],
    ) -> None:
        self._plan, self._sessions, self._deadline, self._report = plan, sessions, deadline, report
        self._pairs, self._proven = pairs, proven
        self._token = secrets.token_hex(16)
        self._written, self._read = threading.Event(), threading.Semaphore(0)

    def lead(self) -> Answer:
        """The head's part. The shared files are there while its program's input is open."""
        head, deadline = self._plan.head, self._deadline
        with self._start(head) as pipe:
            try:
                with self._report.step("check", head.name, awaiting="ping, ssh and NFS"):
                    _receive(pipe, deadline)
                    self._written.set()
                    answer = _answer(head, _receive(pipe, deadline))
                for _ in self._plan.workers:
                    _wait(self._read.acquire, deadline)
            finally:  # it removes the files, whatever has failed
                pipe.shut()
                pipe.wait(END_S)
        return answer

    def follow(self, node: Node) -> Answer:
        """Another node's, which reads the files once they are there."""
        with self._report.step("check", node.name, awaiting="ping, ssh and NFS"), self._start(node) as pipe:
            _wait(self._written.wait, self._deadline)
            pipe.shut()
            answer = _answer(node, _receive(pipe, self._deadline))
        self._read.release()
        return answer

    def launch(self) -> Answer:
        """MPI, from the head."""
        head, asked = self._plan.head, _mpi(self._plan, self._proven)
        with self._report.step("mpiexec", head.name, awaiting="mpiexec hostname"):
            return _answer(head, ask(self._sessions[head.name], "check", asked, awaited="mpiexec"))

    @contextmanager
    def _start(self, node: Node) -> Iterator[Pipe]:
        asked = _probe(self._plan, node, self._token, pairs=self._pairs, proven=self._proven)
        program = self._sessions[node.name].start_program(
            guest.program("check"), awaited="check", deadline=self._deadline
        )
        with closing(program) as pipe:
            pipe.write(json.dumps(asked).encode() + b"\n", self._deadline, "check")
            yield pipe


def _wait(ready: Callable[..., bool], deadline: Deadline) -> None:
    while not ready(timeout=LOOK_S):
        deadline.check("the other nodes' part of the check")


def _receive(pipe: Pipe, deadline: Deadline) -> dict[str, Any]:
    line = pipe.read_line(deadline, "check")
    try:
        answer: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise VclusterError(f"{pipe.name}: check: {line.decode(errors='replace')}") from error
    return answer


def _answer(node: Node, answer: dict[str, Any]) -> Answer:
    found = (Check(one["check"], node.name, one["to"], one["passed"], one["detail"]) for one in answer["results"])
    return Answer(node.name, tuple(found), answer.get("same", {}))


# What is asked


def _probe(plan: Plan, node: Node, token: str, *, pairs: bool, proven: Collection[str]) -> dict[str, object]:
    return {
        "do": "probe_first" if node.is_head else "probe",
        "user": plan.user,
        "targets": [{"name": target.name, "address": str(target.address)} for target in plan.nodes],
        "payload": plan.mtu - HEADERS_BYTES,
        "logins": [target.name for target in targets(plan, node, pairs=pairs, proven=proven)],
        "shares": _shares(plan, node, token),
        "token": token,
    }


def targets(plan: Plan, node: Node, *, pairs: bool, proven: Collection[str] = ()) -> tuple[Node, ...]:
    """To whom a node logs in: to the next one, the last to the head; the head, unless it is alone, by mpiexec.

    Those that are proven have done so before.

    For `pairs` to all. Each begins with itself then, so that they do not all log in to the same one at the same time.
    """
    if node.name in proven:
        return ()
    place = plan.nodes.index(node)
    if pairs:
        return plan.nodes[place:] + plan.nodes[:place]
    return () if node.is_head and plan.workers else (plan.nodes[(place + 1) % len(plan.nodes)],)


def _shares(plan: Plan, node: Node, token: str) -> list[dict[str, object]]:
    """The file of this check on every shared folder, and where a mount must be for it to be the shared one."""
    return [
        {
            "node": share.node,
            "file": f"{share.target}/.check-{token[:8]}",
            "mount": None if share.is_in_place and share.node == node.name else share.target,
        }
        for share in paths.shares(plan)
    ]


def _mpi(plan: Plan, proven: Collection[str]) -> dict[str, object]:
    """From the head to itself and all nodes that are not proven."""
    names = [node.name for node in plan.nodes if node.is_head or node.name not in proven]
    return {
        "do": "mpi",
        "user": plan.user,
        "home": paths.home(plan),
        "hosts": ["-hosts", ",".join(names)] if proven else ["-f", paths.hostfile_path(plan)],
        "environment": paths.mpi_environment(plan),  # which sshd gives to logins, and a serial port does not
        "targets": [{"name": name} for name in names],
        "timeout": MPI_TIMEOUT_S,
    }


# What is concluded


def judge(answers: Sequence[Answer], launched: Sequence[Check], proven: Collection[str] = ()) -> CheckReport:
    """All tries, and a login from every node to every other; `launched` says where mpiexec came from the head."""
    checks = [check for answer in answers for check in answer.checks]
    tried = [check for check in checks if check.check == "ssh"]
    logins = conclude({answer.node: answer.same for answer in answers}, [*_logins_of_mpiexec(launched), *tried], proven)
    return CheckReport((*(check for check in checks if check.check != "ssh"), *logins, *launched))


def _logins_of_mpiexec(launched: Sequence[Check]) -> Iterator[Check]:
    """It logs in to every node but its own."""
    for one in launched:
        if one.from_node != one.to_node:
            yield Check("ssh", one.from_node, one.to_node, one.passed, one.detail and f"mpiexec: {one.detail}")


def conclude(
    same: Mapping[str, Mapping[str, str]], tried: Iterable[Check], proven: Collection[str] = ()
) -> Iterator[Check]:
    """A login from every node to every other: as it went, or, where it was not made, as it must go.

    It goes well from a node that could log in somewhere to one where somebody could log in, if the first knows all
    nodes, and is known to them, just as the others do. Nodes that are proven have done both.
    """
    known = {(one.from_node, one.to_node): one for one in tried}  # the later of two
    odd = _odd(same)
    for start in same:
        leaving = [one for (one_start, _), one in known.items() if one_start == start]
        for end in same:
            # One that fails from an odd node says nothing of where it went.
            arriving = [
                one
                for (_, one_end), one in known.items()
                if one_end == end and (one.passed or one.from_node not in odd)
            ]
            detail = odd.get(start, "")
            detail = detail or ("" if start in proven else _none_passed(leaving))
            detail = detail or ("" if end in proven else _none_passed(arriving))
            yield known.get((start, end)) or Check("ssh", start, end, not detail, detail)


def _none_passed(tried: Sequence[Check]) -> str:
    """Why there is no hope for another login after those; empty where there is, or none of them says anything."""
    if not tried or any(one.passed for one in tried):
        return ""
    return f"not tried, as the one from {tried[0].from_node} to {tried[0].to_node} failed"


def _odd(same: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What is wrong, by node, with those that do not have what most have, and the first among equals."""
    found: dict[str, str] = {}
    for path in next(iter(same.values())):
        digests = {node: seen[path] for node, seen in same.items()}
        usual = max(digests.values(), key=list(digests.values()).count)
        model = next(node for node, digest in digests.items() if digest == usual)
        for node, digest in digests.items():
            if digest != usual:
                found.setdefault(node, f"{path} is not as on {model}")
    return found
