"""The connection to the libvirt of one server: opened within a time limit, and opened again when libvirt is back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from typing import TypeVar

import libvirt

from vcluster.adapters.libvirt.domain_events import DomainEvents
from vcluster.adapters.libvirt.event_loop import start_event_loop
from vcluster.adapters.libvirt.libvirt_errors import translated_errors
from vcluster.errors import ConnectionLostError, MissingError, VclusterError
from vcluster.util.deadline import Deadline

T = TypeVar("T")

OPEN_S = 30.0  # a daemon that does not answer accepts the connection all the same
RETRIES_S = (0.2, 0.5, 1.0, 2.0, 4.0)  # pauses before attempts to open the connection again; the last one repeats

_GONE = {
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_NETWORK,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
    libvirt.VIR_ERR_OPERATION_INVALID,  # "… is not running", "… is not active"
}


class LibvirtConnection:
    """A connection to the libvirt of one server. `name` names the server in messages; empty means this machine."""

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri
        self.name = name
        self._registering = threading.Lock()
        self._events: DomainEvents | None = None
        start_event_loop()
        self._connection = self._open(Deadline(OPEN_S))

    def _open(self, deadline: Deadline) -> libvirt.virConnect:
        action = f"connecting to {f'the libvirt of {self.name}' if self.name else self.uri}"
        with translated_errors(action):
            try:
                connection = within(lambda: libvirt.open(self.uri), deadline.remaining_s())
            except TimeoutError:
                text = f"{action}: libvirt does not answer: timed out after {deadline.timeout_s:.0f} s"
                raise MissingError(text, hint="vcluster doctor") from None
            # Detect a dead server by its silence.
            if not self.uri.startswith("test:"):
                connection.setKeepAlive(5, 6)
        return connection

    def reconnect(self, deadline: Deadline) -> None:
        """Replace a broken connection when libvirt answers again. Raises the last error at the deadline."""
        for pause_s in chain(RETRIES_S, repeat(RETRIES_S[-1])):
            try:
                opened = self._open(deadline)
            except VclusterError:
                if deadline.remaining_s() <= pause_s:
                    raise
                deadline.pause(pause_s, "libvirt")
            else:
                self._replace(opened)
                return

    def _replace(self, opened: libvirt.virConnect) -> None:
        """Use another connection in place of a broken one, whose events end with it."""
        with suppress(libvirt.libvirtError):
            self._connection.close()
        with self._registering:
            self._connection, self._events = opened, None

    def close(self) -> None:
        """Close the connection."""
        with translated_errors(f"closing the connection to {self.uri}"):
            if self._events:
                self._events.close()
            self._connection.close()

    @property
    def is_alive(self) -> bool:
        """Whether the connection is open."""
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    @property
    def events(self) -> DomainEvents:
        """The events of this connection's domains, from the first use on."""
        with self._registering, self._errors("registering for events"):
            self._events = self._events or DomainEvents(self._connection)
            return self._events

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            with translated_errors(self._prefix + action):
                yield
        except VclusterError as error:
            if self.is_alive:
                raise
            raise self._error_of(action, error) from error

    def _error_of(self, action: str, error: Exception) -> VclusterError:
        if self.is_alive:
            return VclusterError(f"{self._prefix}{action}: {error}")
        where = self.name or "localhost"
        message = f"{where}: the connection to libvirt broke while {action}"
        return ConnectionLostError(message, peer=where, hint="run the command again")

    @property
    def _prefix(self) -> str:
        return f"{self.name}: " if self.name else ""

    @contextmanager
    def _unless_missing(self, action: str) -> Iterator[None]:
        with self._errors(action):
            try:
                yield
            except libvirt.libvirtError as error:
                if error.get_error_code() not in _GONE:
                    raise


def within(call: Callable[[], T], timeout_s: float) -> T:
    """The result of a call of libvirt that may never return. Raises TimeoutError, and leaves its thread behind."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except libvirt.libvirtError as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="libvirt-call", daemon=True).start()
    return outcome.result(timeout_s)
