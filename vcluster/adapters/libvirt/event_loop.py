"""libvirt's event loop, one for a process. It delivers events, streams and keep-alives."""

from __future__ import annotations

import threading

import libvirt

_loop_lock = threading.Lock()
_loop_started = False


def start_event_loop() -> None:
    """Start the loop, once and before the first connection."""
    global _loop_started  # noqa: PLW0603 - libvirt has one event loop a process
    with _loop_lock:
        if _loop_started:
            return
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()
        _loop_started = True


def _run_event_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
