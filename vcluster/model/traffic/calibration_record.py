"""What links without limits give on the servers of a cluster, as it was measured at a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CalibratedPath:
    """The path between two nodes of these servers; the field names are a contract with scripts.

    `round_trip_us` is the median of pings, `low_us` and `high_us` are the ends of its 95 % interval. `rate_bits` is the
    rate of whole frames that left the switch to the node `end` while the node `start` sent as fast as it could.
    """

    servers: tuple[str, ...]
    start: str
    end: str
    round_trip_us: float
    low_us: float
    high_us: float
    rate_bits: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """The paths of a cluster, one for each pair of servers. `at` is the time, as text in UTC."""

    at: str
    paths: tuple[CalibratedPath, ...]

    def path_of(self, servers: set[str]) -> CalibratedPath | None:
        """The path between nodes of these servers."""
        return next((path for path in self.paths if {*path.servers} == servers), None)
