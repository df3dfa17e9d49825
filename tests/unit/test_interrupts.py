"""The first interrupt ends the work; later ones are reported and do not disturb the rollback."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from vcluster.cli import main
from vcluster.util.interrupts import SIGNALS, interruptible_once


def interrupt(number: signal.Signals = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _no_signal_is_ignored() -> Iterator[None]:
    """Under nohup, SIGHUP is."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_only_the_first_interrupt_is_raised(number: signal.Signals) -> None:
    reported: list[str] = []
    lock, undone = threading.Lock(), []

    def report(text: str) -> None:
        with lock:
            reported.append(text)

    def undo(*_: object) -> None:
        interrupt(number)
        with lock:  # as if the interrupted code were printing
            interrupt(signal.SIGINT)
        undone.append("all")

    with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        stack.enter_context(interruptible_once(report, first="ending", later="still ending"))
        stack.push(undo)
        interrupt(number)
        pytest.fail("the first interrupt did not end the work")
    assert undone == ["all"]
    interrupt(number)  # of the rest of a command that ends
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(5)
    assert sorted(reported) == ["ending", "still ending", "still ending", "still ending"]


def test_an_interrupt_while_the_first_is_handled_is_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    pending = [signal.SIGTERM]

    class InterruptedThread:
        """A thread whose start another signal interrupts, once."""

        def __init__(self, target: Callable[[str], None], args: tuple[str]) -> None:
            self.target, self.text = target, args[0]

        def start(self) -> None:
            if pending:
                interrupt(pending.pop())
            self.target(self.text)

    monkeypatch.setattr(threading, "Thread", InterruptedThread)
    with (
        pytest.raises(KeyboardInterrupt),
        interruptible_once(reported.append, first="ending", later="still ending"),
    ):
        interrupt(signal.SIGINT)
        pytest.fail("the first interrupt did not end the work")
    assert sorted(reported) == ["ending", "still ending"]


@pytest.mark.parametrize("number", SIGNALS)
def test_without_an_interrupt_the_handlers_are_as_before(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible_once(print, first="", later=""):
        assert signal.getsignal(number) != before
    assert signal.getsignal(number) == before


def test_an_ignored_signal_stays_ignored() -> None:
    """As with nohup, or in the background of a script."""
    reported: list[str] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible_once(reported.append, first="ending", later="still ending"):
            interrupt(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    except KeyboardInterrupt:
        pytest.fail("an ignored signal ended the work")
    assert reported == []


def test_a_command_ends_by_signals_that_it_was_not_started_to_ignore(monkeypatch: pytest.MonkeyPatch) -> None:
    heeded: dict[int, object] = {}

    def record() -> int:
        heeded.update({number: signal.getsignal(number) for number in SIGNALS})
        return 0

    monkeypatch.setattr(main, "_run", record)
    monkeypatch.setattr(main, "load_less_of_pyroute2", lambda: None)
    monkeypatch.setattr(main, "load_less_of_paramiko", lambda: None)
    monkeypatch.setattr(main.atexit, "register", lambda *_: None)  # or pytest would end with exit code 0
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(SystemExit):
        main.run()
    assert heeded == {
        signal.SIGHUP: signal.SIG_IGN, signal.SIGTERM: main._interrupt, signal.SIGINT: main._interrupt
    }  # fmt: skip
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_other_threads_leave_signals_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[list[object]] = []

    def work() -> None:
        with interruptible_once(print, first="", later=""):
            seen.append([signal.getsignal(number) for number in SIGNALS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert seen == [before]


def test_no_interrupt_is_raised_after_the_end_of_the_work() -> None:
    reported = threading.Event()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with interruptible_once(
            lambda text: reported.set() if text == "still ending" else None, first="", later="still ending"
        ) as end:
            end()
            try:
                interrupt()
            except KeyboardInterrupt:
                pytest.fail("the interrupt was raised")
        assert reported.wait(5)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
