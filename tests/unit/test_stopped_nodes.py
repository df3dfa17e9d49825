"""Waits for a node end when the node stops, also if libvirt never reports the end of its channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from tests import samples
from vcluster.adapters.libvirt import domain_run
from vcluster.adapters.libvirt.domain_events import DomainEvents
from vcluster.adapters.libvirt.domain_run import DomainRun
from vcluster.adapters.libvirt.serial_channel import SerialChannel
from vcluster.adapters.serial_connection import SerialConnection
from vcluster.errors import VclusterError
from vcluster.stages import boot
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

NODE = samples.plan(1).head


def error_of(action: str, error: Exception) -> VclusterError:
    return VclusterError(f"{action}: {error}")


STOPPED = r"^node1 stopped running while vcluster waited for .*: QEMU crashed or was killed$"


class Libvirt:
    """A connection to libvirt that sends only the events that a test lets it send."""

    def __init__(self) -> None:
        self.callbacks: dict[int, Callable[..., None]] = {}

    def domainEventRegisterAny(  # noqa: N802 - libvirt's name
        self, _: None, number: int, callback: Callable[..., None], __: None
    ) -> int:
        self.callbacks[number] = callback
        return number

    def domainEventDeregisterAny(self, number: int) -> None:  # noqa: N802
        del self.callbacks[number]


class Domain:
    """A domain of libvirt, which counts the questions about its run."""

    def __init__(self) -> None:
        self.id, self.questions, self.answers_before_off = 7, 0, 0

    def ID(self) -> int:  # noqa: N802 - libvirt's name
        return self.id

    def UUID(self) -> bytes:  # noqa: N802
        return b"uuid"

    def UUIDString(self) -> str:  # noqa: N802
        return NODE.uuid

    def connect(self) -> Domain:
        return self

    def lookupByUUID(self, _: bytes) -> Domain:  # noqa: N802
        self.questions += 1
        return self

    def state(self) -> list[int]:
        if self.answers_before_off:
            self.answers_before_off -= 1
            return [libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED]
        return [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED]


class Stream:
    """A stream of libvirt that takes no data and reports only what a test lets it report."""

    def __init__(self) -> None:
        self.report: Callable[..., None]

    def eventAddCallback(self, _: int, report: Callable[..., None], __: object) -> None:  # noqa: N802
        self.report = report

    def eventRemoveCallback(self) -> None:  # noqa: N802
        pass

    def abort(self) -> None:
        pass

    def send(self, _: bytes) -> int:
        return -2


class Boot:
    """A node that boots, and the channel that vcluster listens on."""

    def __init__(self) -> None:
        self.domain, self.stream, self.libvirt = Domain(), Stream(), Libvirt()
        events = DomainEvents(self.libvirt)  # type: ignore[arg-type]
        self.run = DomainRun(self.domain, "node1", events, error_of)  # type: ignore[arg-type]
        self.channel = SerialChannel(self.run, self.stream)  # type: ignore[arg-type]

    def wait_ready(self) -> None:
        boot.wait_ready(self.channel, NODE, deadline=Deadline(20), report=Reporter(()))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Boot:
    monkeypatch.setattr(domain_run, "POLL_S", 0.01)
    monkeypatch.setattr(domain_run, "REASON_S", 0.001)
    return Boot()


def end_of_channel(node: Boot) -> None:
    node.stream.report(node.stream, libvirt.VIR_STREAM_EVENT_HANGUP, None)


def end_of_run(node: Boot) -> None:
    node.domain.id = -1


def another_run(node: Boot) -> None:
    node.domain.id += 1


def event_of_an_end(node: Boot) -> None:
    detail = libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED
    node.libvirt.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE](
        None, node.domain, libvirt.VIR_DOMAIN_EVENT_STOPPED, detail, None
    )


def reboot(node: Boot) -> None:
    node.libvirt.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_REBOOT](None, node.domain, None)


ENDS = pytest.mark.parametrize("end", [end_of_channel, end_of_run, another_run, event_of_an_end])


@ENDS
def test_the_wait_for_a_boot_ends(node: Boot, end: Callable[[Boot], None]) -> None:
    end(node)
    with pytest.raises(VclusterError, match=STOPPED) as raised:
        node.wait_ready()
    assert raised.value.hint == "run the command again"


@ENDS
def test_a_send_that_waits_for_room_ends(node: Boot, end: Callable[[Boot], None]) -> None:
    end(node)
    with pytest.raises(VclusterError, match=STOPPED):
        node.channel.send("a line", Deadline(20), "a line")


@ENDS
def test_the_requests_to_a_node_end(node: Boot, end: Callable[[Boot], None]) -> None:
    connection = SerialConnection("node1", node.channel, Deadline(20))
    end(node)
    with pytest.raises(VclusterError, match=r"during its identity: node1 stopped .*: QEMU crashed") as raised:
        connection.request({"do": "become"}, Deadline(20), "its identity")
    assert raised.value.hint == "run the command again"
    connection.disconnect()


def test_a_reboot_ends_a_run(node: Boot) -> None:
    """QEMU keeps the channel open, and the domain keeps its id."""
    reboot(node)
    with pytest.raises(VclusterError, match=r"^node1 rebooted while vcluster waited for node1 to boot$"):
        node.wait_ready()
    DomainRun(node.domain, "node1", node.run._events, error_of).check("a login")  # type: ignore[arg-type]


def test_a_panic_that_the_kernel_reports_is_the_reason(node: Boot) -> None:
    report = node.libvirt.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE]
    report(None, node.domain, libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED, None)
    event_of_an_end(node)
    with pytest.raises(VclusterError, match=r"stopped running while .*: its kernel panicked$"):
        node.wait_ready()


def test_the_reason_may_come_after_the_end_of_the_channel(node: Boot) -> None:
    node.domain.answers_before_off = 2
    end_of_channel(node)
    with pytest.raises(VclusterError, match=STOPPED):
        node.wait_ready()


def test_a_program_on_a_stopped_node_ends_with_the_hint(node: Boot) -> None:
    connection = SerialConnection("node1", node.channel, Deadline(20))
    pipe = connection.start_program(b"", awaited="a program")
    end_of_run(node)
    with pytest.raises(VclusterError, match=r"the connection broke during a line: node1 stopped") as raised:
        pipe.read_line(Deadline(20), "a line")
    assert raised.value.hint == "run the command again"
    connection.disconnect()


def test_lines_that_arrived_before_the_end_are_read(node: Boot) -> None:
    node.channel._lines.put(b"ready 5.6")
    end_of_channel(node)
    node.wait_ready()


def test_libvirt_is_asked_at_most_once_in_a_period(node: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain_run, "POLL_S", 3600.0)
    for _ in range(9):
        node.run.check("a login")
    assert node.domain.questions == 1


def test_a_libvirt_that_does_not_answer_ends_the_wait(node: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise libvirt.libvirtError("the connection broke")

    monkeypatch.setattr(node.domain, "lookupByUUID", fail)
    with pytest.raises(VclusterError, match=r"^asking for the power of node1: the connection broke$"):
        node.wait_ready()
