"""Results of a check: one for each test, from a node to a node."""

from __future__ import annotations

from dataclasses import dataclass

from vcluster.model.status import Fault


@dataclass(frozen=True, slots=True)
class CheckKind:
    """A kind of test. `title` is the heading of its results; it may contain `{mtu}`.

    `listed` is the end, `from` or `to`, whose nodes a summary lists. Without it the results are a table of both ends.
    `of_nodes` is False if no guest program answers with it; a summary then has it only if there are results of it.
    """

    name: str
    title: str
    listed: str = ""
    of_nodes: bool = True


CHECK_KINDS = (
    CheckKind("ping", "ping of {mtu} bytes, not fragmented"),
    CheckKind("ssh", "ssh without password or prompt"),
    CheckKind("nfs", "nfs: a file written on each shared folder is read", listed="from"),
    CheckKind("mpi", "mpi: an exchange between all ranks", listed="to"),
    CheckKind("clock", "clock: within 5 s of the head node's", listed="from", of_nodes=False),
    CheckKind("identity", "identity: host name, machine id and host key are its own", listed="from", of_nodes=False),
    CheckKind("path", "path: every port up to the switch and back counted it", listed="from", of_nodes=False),
)
NODE_CHECKS = frozenset(kind.name for kind in CHECK_KINDS if kind.of_nodes)


@dataclass(frozen=True, slots=True)
class Check:
    """One result: the name of the test, the nodes, and the reason of a failure."""

    check: str
    from_node: str
    to_node: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        outcome = "ok" if self.passed else self.detail or "failed without a reason"
        return f"{self.check} from {self.from_node} to {self.to_node or '?'}: {outcome}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All results of a check, and the faults that were active at its begin."""

    checks: tuple[Check, ...]
    faults: tuple[Fault, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The results that did not pass."""
        return tuple(check for check in self.checks if not check.passed)
