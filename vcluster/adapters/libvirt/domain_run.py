"""One run of a domain, from a start of its operating system: whether it has ended, and why."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import libvirt

from vcluster.adapters.libvirt import domain_events
from vcluster.adapters.libvirt.domain_events import DIED, REBOOTED, DomainEvent, DomainEvents
from vcluster.errors import VclusterError

POLL_S = 1.0
REASON_TRIES, REASON_S = 5, 0.1

# virDomainShutoffReason, https://libvirt.org/html/libvirt-libvirt-domain.html
STOP_REASONS = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: domain_events.SHUT_DOWN,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: domain_events.DESTROYED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: domain_events.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: domain_events.SAVED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: domain_events.FAILED,
}


class DomainRun:
    """The run of a domain from now until it reboots or its power ends; each power-on has its own id in libvirt.

    `name` names the node in messages. `error_of` returns our error for an error of libvirt during an action.
    """

    def __init__(
        self,
        domain: libvirt.virDomain,
        name: str,
        events: DomainEvents,
        error_of: Callable[[str, libvirt.libvirtError], VclusterError],
    ) -> None:
        self.name, self._events, self._error_of = name, events, error_of
        self._domain, self._uuid = domain, domain.UUIDString()
        self._earlier_ends = len(events.ends(self._uuid))
        self._id = domain.ID()
        self._has_ended = self._id < 0
        self._next_s = 0.0

    def check(self, awaited: str) -> None:
        """Raise VclusterError, which names `awaited`, when the run has ended. It asks libvirt at most once in POLL_S.

        Waits ask because the end of a stream or of an SSH connection may be reported late, or never.
        """
        self._has_ended = self._has_ended or self._end is not None
        if not self._has_ended and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + POLL_S
            self._has_ended = self._id != self._present_id()
        if self._has_ended:
            raise self.stopped(awaited)

    def stopped(self, awaited: str) -> VclusterError:
        """The error of a run that has ended, with the reason if libvirt knows it."""
        end = self._end or DomainEvent(DIED, self._reason())
        if end.what == REBOOTED:
            return VclusterError(
                f"{self.name} rebooted while vcluster waited for {awaited}", hint="run the command again"
            )
        message = f"{self.name} stopped running while vcluster waited for {awaited}"
        return VclusterError(f"{message}: {end.reason}" if end.reason else message, hint="run the command again")

    @property
    def _end(self) -> DomainEvent | None:
        """The first event that ended this run."""
        return next(iter(self._events.ends(self._uuid)[self._earlier_ends :]), None)

    def _reason(self) -> str:
        """Why the domain is off; empty if that is unknown. Its stream may end before libvirt knows the reason."""
        for _ in range(REASON_TRIES):
            if end := self._end:
                return end.reason
            with suppress(libvirt.libvirtError):  # it was removed
                state, number = self._domain.state()
                if state == libvirt.VIR_DOMAIN_SHUTOFF:
                    return STOP_REASONS.get(number, "")
            time.sleep(REASON_S)
        return ""

    def _present_id(self) -> int:
        """The id of the domain's present run; -1 without one."""
        try:
            # By a new lookup: libvirt's client does not update the id of an object.
            return int(self._domain.connect().lookupByUUID(self._domain.UUID()).ID())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return -1
            raise self._error_of(f"asking for the power of {self.name}", error) from error
