"""Events that libvirt sends about domains: reboots, ends and pauses. Each arrives at once; nothing is polled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import libvirt

REBOOTED, DIED, PAUSED = "rebooted", "died", "was paused"

SHUT_DOWN, DESTROYED = "its operating system powered off", "another command cut its power"
CRASHED, PANICKED = "QEMU crashed or was killed", "its kernel panicked"
SAVED, FAILED = "its memory was saved to a file", "QEMU failed"

# virDomainEventStoppedDetailType, https://libvirt.org/html/libvirt-libvirt-domain.html
_STOP_REASONS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: SHUT_DOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: DESTROYED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: CRASHED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: SAVED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: CRASHED,  # QEMU's monitor closed unexpectedly
}


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """`what` happened to a domain, and why; `is_error` is true for a pause that QEMU made because a disk failed."""

    what: str
    reason: str = ""
    is_error: bool = False


Listener = Callable[[DomainEvent], None]


class DomainEvents:
    """The events of all domains of a connection. They arrive in the thread of libvirt's event loop."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self._connection = connection
        self._ends: dict[str, list[DomainEvent]] = {}
        self._listeners: dict[str, Listener] = {}
        register = connection.domainEventRegisterAny
        self._callbacks = [
            register(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None),
            register(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot, None),
        ]

    def close(self) -> None:
        """Receive no more events; otherwise the connection would stay open."""
        with suppress(libvirt.libvirtError):  # the connection is lost
            for callback in self._callbacks:
                self._connection.domainEventDeregisterAny(callback)

    def ends(self, uuid: str) -> tuple[DomainEvent, ...]:
        """The reboots and ends of a domain since the first event, in their order."""
        return tuple(self._ends.get(uuid, ()))

    def listen(self, uuid: str, listener: Listener) -> None:
        """Pass each later event of a domain to the listener, which must return at once."""
        self._listeners[uuid] = listener

    def ignore(self, uuid: str) -> None:
        """Pass on no more events of a domain."""
        self._listeners.pop(uuid, None)

    def _on_lifecycle(self, _: Any, domain: libvirt.virDomain, event: int, detail: int, __: Any) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_CRASHED:
            self._pass_on(domain, DomainEvent(DIED, PANICKED))
        elif event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._pass_on(domain, DomainEvent(DIED, _STOP_REASONS.get(detail, "")))
        elif event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
            is_error = detail == libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR
            self._pass_on(domain, DomainEvent(PAUSED, is_error=is_error))

    def _on_reboot(self, _: Any, domain: libvirt.virDomain, __: Any) -> None:
        self._pass_on(domain, DomainEvent(REBOOTED))

    def _pass_on(self, domain: libvirt.virDomain, event: DomainEvent) -> None:
        uuid = domain.UUIDString()
        if event.what != PAUSED:
            self._ends.setdefault(uuid, []).append(event)
        if listener := self._listeners.get(uuid):
            listener(event)
