"""The check: is the cluster ready? Guest programs test it from inside the nodes, on all nodes at the same time.

Few of the logins between nodes are made; see `logins`.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from vcluster import guest
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.pipe import Pipe
from vcluster.errors import VclusterError
from vcluster.images.recipes import guest_file
from vcluster.model.checks import NODE_CHECKS, Check, CheckReport
from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import quoted
from vcluster.render import node_actions as paths
from vcluster.stages import identities, mpi_run
from vcluster.stages.clocks import UNKNOWN_CLOCK, Clock, compare
from vcluster.stages.guest_answer import ask, receive, unknown_result
from vcluster.stages.identities import Identity, identity_of
from vcluster.stages.logins import Login, all_pairs, chosen, derive, doubtful
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

HEADERS_BYTES = 28  # IPv4 (20) and ICMP (8) before the payload of a ping
MPI_TIMEOUT_S = 120
POLL_S = 0.1
END_S = 10.0
AWAITED = "the check"

# With one rank on each node, MPI needs no shared memory, no other transport, no hooks for registered memory and no
# topology. To prepare them takes most of the start of an MPI program (ucx_info -cf; hwloc, "Environment Variables").
# UCX's modules are for other transports.
QUICK_START = {
    "UCX_TLS": "tcp",
    "UCX_MODULES": "",
    "UCX_MEM_MMAP_HOOK_MODE": "none",
    "HWLOC_COMPONENTS": "-linux,-x86,-pci",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The results of a node.

    `same` are digests, by name, of everything that must be equal on all nodes; `identity` is what no two may share.
    """

    node: str
    checks: tuple[Check, ...]
    same: Mapping[str, str]
    clock: Clock = UNKNOWN_CLOCK
    identity: Identity = field(default_factory=dict)


def run(
    plan: Plan,
    sessions: Mapping[str, NodeConnection],
    *,
    deadline: Deadline,
    report: Reporter,
    pairs: bool = False,
    proven: Collection[str] = (),
    limit: int = parallel.WORKERS_MAX,
    enter: Callable[[Node], object],
    mount: Callable[[Node], object] | None = None,
) -> CheckReport:
    """Ping, log in, share files and run MPI between all nodes. With `pairs` every login is made.

    The deadline of each session derives from `deadline`: to cancel one cancels all.

    `proven` nodes passed an earlier check. Their logins and MPI are tested again only if what they depend on differs.
    At most `limit` nodes work at the same time, in addition to the head and to one node that logs in to it.
    `enter` logs in to a node from this machine, as the cluster's user, or raises VclusterError. `mount` mounts the
    shared folders of a node. Both are called before the node's own tests. MPI waits for the mounts if nodes have
    addresses by DHCP, or if there are proven nodes.
    """
    tests = _Tests(plan, sessions, deadline, report, pairs, proven, enter, mount)
    # The head's part comes first: all other nodes wait for it, and the limit may leave some of them out at first.
    works: list[Callable[[], Answer]] = [
        tests.lead,
        tests.launch,
        partial(tests.log_in, [] if pairs else chosen(plan, proven=proven), limit),
        *(partial(tests.follow, node) for node in plan.workers),
    ]
    led, launched, logged_in, *followed = parallel.each(works, lambda work: work(), deadline=deadline, limit=limit + 3)
    same = {answer.node: answer.same for answer in (led, *followed)}
    tested, entered = logged_in.checks, {*tests.entered, *proven}
    if pairs:  # after the pings, which have a time limit
        tested = tests.log_in(all_pairs(plan), limit).checks
    tested += tests.log_in(doubtful(same, tested, entered), limit).checks
    others = [check for answer in (led, *followed, launched) for check in answer.checks if check.check != "ssh"]
    clocks = {answer.node: answer.clock for answer in (led, *followed)}
    found = {answer.node: answer.identity for answer in (led, *followed)}
    compared = (*compare(plan, clocks), *identities.compare(plan, found))
    return CheckReport((*others, *derive(same, tested, proven), *compared))


class _Tests:
    """The tests of each node; arguments as those of `run`."""

    def __init__(
        self,
        plan: Plan,
        sessions: Mapping[str, NodeConnection],
        deadline: Deadline,
        report: Reporter,
        pairs: bool,
        proven: Collection[str],
        enter: Callable[[Node], object],
        mount: Callable[[Node], object] | None,
    ) -> None:
        self._plan, self._sessions, self._deadline, self._report = plan, sessions, deadline, report
        self._pairs, self._proven, self._enter, self._mount = pairs, proven, enter, mount
        self.entered: set[str] = set()  # the nodes that this machine could log in to
        self._token = secrets.token_hex(16)
        self._names = {node.name for node in plan.nodes}
        self._targets = [{"name": node.name, "address": str(node.address)} for node in plan.nodes]
        self._mounted: set[str] = set()
        self._changed = threading.Condition()
        self._written, self._read = threading.Event(), threading.Semaphore(0)

    def lead(self) -> Answer:
        """The head's part. Its program removes the shared files at the end of its input."""
        head, session = self._plan.head, self._sessions[self._plan.head.name]
        self._prepare(head)
        asked_s = time.monotonic()
        with self._start(head) as pipe:
            try:
                with self._report.step("check", head.name, awaiting="pings and NFS"):
                    receive(pipe, session.deadline, AWAITED)
                    self._written.set()
                    answer = self._whole_answer(head, pipe, asked_s)
                for _ in self._plan.workers:
                    _wait(self._read.acquire, session.deadline)
            finally:  # after a failure, too, so that the files are removed
                pipe.shut()
                pipe.wait(END_S)
        return answer

    def follow(self, node: Node) -> Answer:
        """The part of another node, which reads the files after the head has written them."""
        session = self._sessions[node.name]
        self._prepare(node)
        asked_s = time.monotonic()
        with self._report.step("check", node.name, awaiting="pings and NFS"), self._start(node) as pipe:
            _wait(self._written.wait, session.deadline)
            pipe.shut()
            answer = self._whole_answer(node, pipe, asked_s)
        self._read.release()
        return answer

    def _whole_answer(self, node: Node, pipe: Pipe, asked_s: float) -> Answer:
        """The next answer of a node; its program began after `asked_s`, a time of this machine's time.monotonic()."""
        received = receive(pipe, self._sessions[node.name].deadline, AWAITED)
        clock = Clock.of(received.get("began_s"), received.get("ended_s"), asked_s, time.monotonic())
        identity = identity_of(received.get("identity"))
        if clock is None or identity is None:
            raise unknown_result(f"{node.name}: {AWAITED}")
        return replace(_answer(self._names, node.name, received), clock=clock, identity=identity)

    def _prepare(self, node: Node) -> None:
        if self._mount:
            self._mount(node)
        with self._changed:
            self._mounted.add(node.name)
            self._changed.notify_all()
        if not self._pairs and node.name not in self._proven:
            with suppress(VclusterError):  # another node then tries to log in, for the reason
                self._enter(node)
                self.entered.add(node.name)
            self._deadline_of(node).check(f"the login to {node.name}")

    def _await_mounts(self) -> None:
        def are_complete(timeout: float) -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: len(self._mounted) == len(self._plan.nodes), timeout)

        _wait(are_complete, self._deadline_of(self._plan.head))

    def launch(self) -> Answer:
        """The MPI program, which the head starts."""
        head, names = self._plan.head, mpi_nodes(self._plan, self._proven)
        run_on = partial(mpi_run.run, self._sessions, head.name, names)
        # A node with an address by DHCP has it when it can mount. And if few nodes are new, MPI would hold up the head,
        # which serves their mounts.
        if self._plan.dhcp_range or self._proven:
            self._await_mounts()
        with self._report.step("mpiexec", head.name, awaiting="an MPI program on all nodes"):
            answer = run_on(_mpi(self._plan, names))
            if not answer.get("program"):  # it must be compiled in a shared folder
                self._await_mounts()
                answer = run_on(_mpi(self._plan, names, source=guest_file("mpi-check.c")))
        if answer.get("program") == "hostname":
            self._report.note(f"{head.name} has no MPI compiler: the check ran hostname, which exchanges no data")
        return _answer(self._names, head.name, answer)

    def log_in(self, logins: Iterable[Login], limit: int) -> Answer:
        """Make these logins, each node its own, all nodes at the same time."""
        if self._plan.dhcp_range:
            self._await_mounts()
        targets = defaultdict(list)
        for start, end in logins:
            targets[start].append(end)

        def work(name: str) -> Answer:
            request: dict[str, object] = {"do": "logins", "user": self._plan.user, "logins": targets[name]}
            answer = ask(self._sessions[name], "check", request, awaited="the logins")
            results = _answer(self._names, name, answer)
            if [(one.check, one.to_node) for one in results.checks] != [("ssh", end) for end in targets[name]]:
                raise unknown_result(f"{name}: {AWAITED}")
            return results

        answers = parallel.each([*targets], work, deadline=self._deadline, limit=limit)
        return Answer(self._plan.head.name, tuple(check for answer in answers for check in answer.checks), {})

    @contextmanager
    def _start(self, node: Node) -> Iterator[Pipe]:
        request = _probe(self._plan, node, self._token, self._targets)
        program = self._sessions[node.name].start_program(guest.program("check"), awaited="the check")
        with closing(program) as pipe:
            pipe.write(json.dumps(request).encode() + b"\n", self._deadline_of(node), "the check")
            yield pipe

    def _deadline_of(self, node: Node) -> Deadline:
        """The deadline of the node's connection: a wait on it also ends when the node stops."""
        return self._sessions[node.name].deadline


def _wait(is_ready: Callable[..., bool], deadline: Deadline) -> None:
    while not is_ready(timeout=POLL_S):
        deadline.check("the check on other nodes")


def _answer(names: Set[str], node: str, answer: dict[str, Any]) -> Answer:
    """The results of a node; `names` are all nodes. Raises VclusterError for other values: nodes are not trusted."""
    try:
        found = tuple(
            Check(str(one["check"]), node, str(one["to"]), one["passed"], quoted(one["detail"]))
            for one in answer["results"]
        )
        same = {str(name): str(digest) for name, digest in answer.get("same", {}).items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise unknown_result(f"{node}: {AWAITED}") from error
    if not all(
        check.check in NODE_CHECKS and check.to_node in names and isinstance(check.passed, bool) for check in found
    ):
        raise unknown_result(f"{node}: {AWAITED}")
    return Answer(node, found, same)


# Requests


def _probe(plan: Plan, node: Node, token: str, targets: Sequence[Mapping[str, str]]) -> dict[str, object]:
    return {
        "do": "probe_first" if node.is_head else "probe",
        "user": plan.user,
        "targets": targets,
        "payload": plan.mtu - HEADERS_BYTES,
        "shares": _shares(plan, node, token),
        "token": token,
    }


def _shares(plan: Plan, node: Node, token: str) -> list[dict[str, object]]:
    """The file of this check in every shared folder, and the mount that must hold it."""
    return [
        {
            "node": share.node,
            "file": f"{share.target}/.check-{token[:8]}",
            "mount": None if share.is_in_place and share.node == node.name else share.target,
        }
        for share in paths.shares(plan)
    ]


def mpi_nodes(plan: Plan, proven: Collection[str]) -> list[str]:
    """The nodes that the MPI program runs on: the head and all nodes that are not proven."""
    return [node.name for node in plan.nodes if node.is_head or node.name not in proven]


def _mpi(plan: Plan, names: Sequence[str], *, source: str = "") -> dict[str, object]:
    return {
        "do": "mpi",
        "user": plan.user,
        "home": paths.home(plan),
        "hosts": ["-f", paths.hostfile_path(plan)] if len(names) == len(plan.nodes) else ["-hosts", ",".join(names)],
        # sshd sets the environment for logins, the serial port does not.
        "environment": paths.mpi_environment(plan) | QUICK_START,
        "targets": [{"name": name} for name in names],
        "timeout": MPI_TIMEOUT_S,
        "program": paths.MPI_CHECK,
        "source": source,
        "folder": paths.shared_folder(plan),
    }
