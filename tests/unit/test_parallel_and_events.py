"""Fan out, join, report; deadlines."""

from __future__ import annotations

import threading

import pytest

from vcluster.cli.output.progress import Timer
from vcluster.errors import ConflictError, ConnectionLostError, DeadlineError, MissingError, SeveralErrors
from vcluster.util import parallel
from vcluster.util.deadline import Cancelled, Deadline
from vcluster.util.events import Event, Reporter


def test_results_have_the_order_of_the_items() -> None:
    assert parallel.each([3, 1, 2], lambda number: number * 2, deadline=Deadline(5)) == [6, 2, 4]
    assert parallel.each([], lambda number: number, deadline=Deadline(5)) == []


def test_a_failure_cancels_the_other_workers_and_all_are_joined() -> None:
    deadline, ended = Deadline(30), threading.Event()

    def work(number: int) -> None:
        if number == 0:
            raise MissingError("zero")
        try:
            while True:
                deadline.pause(0.01, "nothing")
        finally:
            ended.set()

    with pytest.raises(MissingError, match="zero"):
        parallel.each([0, 1], work, deadline=deadline)
    assert ended.is_set()


def test_several_failures_are_reported_together() -> None:
    together = threading.Barrier(2)

    def work(number: int) -> None:
        together.wait(5)
        raise (ConflictError if number else MissingError)(f"number {number}")

    with pytest.raises(SeveralErrors) as raised:
        parallel.each([0, 1], work, deadline=Deadline(30))
    assert {error.message for error in raised.value.errors} == {"number 0", "number 1"}
    assert raised.value.exit_code == 3


def test_the_same_error_of_several_nodes_is_reported_once() -> None:
    lost = MissingError("server2 is lost")
    with pytest.raises(MissingError, match="server2 is lost"):
        parallel.raise_all([lost, lost])
    with pytest.raises(SeveralErrors) as raised:
        parallel.raise_all([lost, ConflictError("other"), lost])
    assert [error.message for error in raised.value.errors] == ["server2 is lost", "other"]


def test_a_lost_connection_is_reported_once() -> None:
    """A wait, SSH and libvirt notice it at the same time, each in its own words."""
    wait = ConnectionLostError("server2: the connection broke while vcluster waited for node2", peer="server2")
    by_libvirt = ConnectionLostError("server2: the connection to libvirt broke", peer="server2")
    other = ConnectionLostError("server3: the connection broke during the check", peer="server3")
    with pytest.raises(SeveralErrors) as raised:
        parallel.raise_all([wait, SeveralErrors([by_libvirt, other]), by_libvirt])
    assert [error.message for error in raised.value.errors] == [wait.message, other.message]


def test_an_unexpected_exception_is_raised_first() -> None:
    together = threading.Barrier(2)

    def work(number: int) -> None:
        together.wait(5)
        raise ZeroDivisionError if number else MissingError("zero")

    with pytest.raises(ZeroDivisionError):
        parallel.each([0, 1], work, deadline=Deadline(30))


def test_a_timeout_names_the_awaited_thing() -> None:
    with pytest.raises(DeadlineError, match="timed out after 0 s waiting for the moon"):
        Deadline(0).check("the moon")


def test_a_deadline_can_be_cancelled() -> None:
    deadline = Deadline(60)
    deadline.cancel()
    with pytest.raises(Cancelled):
        deadline.pause(60, "the moon")


def test_steps_are_reported_and_timed() -> None:
    events: list[Event] = []
    timer = Timer()
    report = Reporter((events.append, timer))
    with report.step("boot", "node1", awaiting="ready"):
        pass
    with pytest.raises(MissingError), report.step("ssh", "node1"):
        raise MissingError("no key")
    assert [(event.what, event.stage) for event in events] == [
        ("start", "boot"),
        ("end", "boot"),
        ("start", "ssh"),
        ("fail", "ssh"),
    ]
    assert events[-1].text == "no key"
    assert [time.stage for time in timer.times] == ["boot", "ssh"]
