"""One run of a domain: whether it has ended, and why."""

from __future__ import annotations

import time
from collections.abc import Callable

import libvirt

from vcluster.errors import VclusterError

POLL_S = 1.0
REASON_TRIES, REASON_S = 5, 0.1

# virDomainShutoffReason, https://libvirt.org/html/libvirt-libvirt-domain.html
STOP_REASONS = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "its operating system powered off",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "another command cut its power",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "QEMU crashed or was killed",
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: "its memory was saved to a file",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "QEMU failed",
}


class DomainRun:
    """The run of a domain from one power-on to the next power-off; each has its own id in libvirt.

    `name` names the node in messages. `error_of` returns our error for an error of libvirt during an action.
    """

    def __init__(
        self, domain: libvirt.virDomain, name: str, error_of: Callable[[str, libvirt.libvirtError], VclusterError]
    ) -> None:
        self.name, self._error_of = name, error_of
        self._domain, self._id = domain, domain.ID()
        self._has_ended = self._id < 0
        self._next_s = 0.0

    def check(self, awaited: str) -> None:
        """Raise VclusterError, which names `awaited`, when the run has ended. It asks libvirt at most once in POLL_S.

        Waits ask because the end of a stream or of an SSH connection may be reported late, or never.
        """
        if not self._has_ended and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + POLL_S
            self._has_ended = self._id != self._present_id()
        if self._has_ended:
            raise self.stopped(awaited)

    def stopped(self, awaited: str) -> VclusterError:
        """The error of a run that has ended, with the reason if libvirt knows it."""
        reason = self._reason()
        message = f"{self.name} stopped running while vcluster waited for {awaited}"
        return VclusterError(f"{message}: {reason}" if reason else message, hint="run the command again")

    def _reason(self) -> str | None:
        """Why the domain is off; None if it is not, or was removed. Its stream may end before libvirt knows it."""
        for _ in range(REASON_TRIES):
            try:
                state, number = self._domain.state()
            except libvirt.libvirtError:
                return None
            if state == libvirt.VIR_DOMAIN_SHUTOFF:
                return STOP_REASONS.get(number)
            time.sleep(REASON_S)
        return None

    def _present_id(self) -> int:
        """The id of the domain's present run; -1 without one."""
        try:
            # By a new lookup: libvirt's client does not update the id of an object.
            return int(self._domain.connect().lookupByUUID(self._domain.UUID()).ID())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return -1
            raise self._error_of(f"asking for the power of {self.name}", error) from error
