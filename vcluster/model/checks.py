"""Results of a check: one for each test, from a node to a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One result: the name of the test, the nodes, and the reason of a failure."""

    check: str
    from_node: str
    to_node: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.check} from {self.from_node} to {self.to_node or '?'}: {self.detail or 'ok'}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All results of a check."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The results that did not pass."""
        return tuple(check for check in self.checks if not check.passed)
