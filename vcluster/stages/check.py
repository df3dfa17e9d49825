"""Is the cluster ready? Tried from inside the nodes, every pair of them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vcluster import parallel
from vcluster.events import Deadline, Reporter
from vcluster.hosts.ssh import Session
from vcluster.model import Node, Plan
from vcluster.render import guest as paths
from vcluster.stages.configure import ask

HEADERS_BYTES = 28  # IPv4 (20) and ICMP (8) before the payload of a ping
MPI_TIMEOUT_S = 120


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
class Verdict:
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


def run(plan: Plan, sessions: Mapping[str, Session], *, deadline: Deadline, report: Reporter) -> Verdict:
    """Ping, log in, share files and run MPI between all nodes."""
    token = secrets.token_hex(16)
    common = _common(plan, token)
    head = sessions[plan.head.name]
    with report.step("check", plan.head.name, awaiting="a file on the shared folder"):
        written = _results(plan.head, ask(head, "check", {"do": "write", **common}, awaited="check"))

    def probe(node: Node) -> tuple[Check, ...]:
        request = _probe(plan, node, common, token)
        with report.step("check", node.name, awaiting="ping, ssh and NFS"):
            return _results(node, ask(sessions[node.name], "check", request, awaited="check"))

    probed = parallel.each(plan.nodes, probe, deadline=deadline)
    with report.step("mpiexec", plan.head.name, awaiting="mpiexec hostname"):
        launched = _results(plan.head, ask(head, "check", _mpi(plan, common), awaited="mpiexec"))
    return Verdict((*written, *(check for checks in probed for check in checks), *launched))


def _common(plan: Plan, token: str) -> dict[str, object]:
    return {"user": plan.user, "token": token, "shares": _shares(plan, plan.head, token)}


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


def _probe(plan: Plan, node: Node, common: dict[str, object], token: str) -> dict[str, object]:
    # Each node begins with itself, so that they do not all log in to the same one at the same time.
    start = node.index - 1
    order = plan.nodes[start:] + plan.nodes[:start]
    return {
        **common,
        "do": "probe",
        "targets": [{"name": target.name, "address": str(target.address)} for target in order],
        "payload": plan.mtu - HEADERS_BYTES,
        "shares": _shares(plan, node, token),
    }


def _mpi(plan: Plan, common: dict[str, object]) -> dict[str, object]:
    return {
        "do": "mpi",
        **common,
        "hostfile": paths.hostfile_path(plan),
        "targets": [{"name": node.name} for node in plan.nodes],
        "timeout": MPI_TIMEOUT_S,
    }


def _results(node: Node, answer: dict[str, Any]) -> tuple[Check, ...]:
    return tuple(
        Check(entry["check"], node.name, entry["to"], entry["passed"], entry["detail"]) for entry in answer["results"]
    )
