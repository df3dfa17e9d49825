"""Interrupts: the first one ends the work, later ones do not disturb the rollback."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], object]


def on_interrupt(handler: Handler) -> dict[signal.Signals, Handler | int | None]:
    """Have interrupts call this handler. Returns the handlers before, by signal.

    Signals that the command was started to ignore stay ignored: by nohup, or by a script with `&`.
    """
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


@contextmanager
def interruptible_once(report: Callable[[str], None], *, first: str, later: str) -> Iterator[Callable[[], None]]:
    """Report the text `first` and raise KeyboardInterrupt at the first interrupt; at later ones, report `later`.

    The block gets a function that ends the work: each interrupt after its call is a later one.
    Later ones are reported also after the work: they must not disturb the rest of a command that ends.
    Only the main thread gets signals; in any other thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    is_ending = False

    def end() -> None:
        nonlocal is_ending
        is_ending = True

    def interrupt(_: int, __: FrameType | None) -> None:
        nonlocal is_ending
        # Another signal can interrupt this function in every call, so the state changes before the first one.
        is_first, is_ending = not is_ending, True
        # The interrupted code may hold the lock of `report`, so another thread takes it.
        threading.Thread(target=report, args=(first if is_first else later,)).start()
        if is_first:
            raise KeyboardInterrupt

    before = on_interrupt(interrupt)
    try:
        yield end
    finally:
        if not is_ending:
            for number, handler in before.items():
                signal.signal(number, handler)
