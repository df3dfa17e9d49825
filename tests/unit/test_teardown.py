"""What `clear` leaves in the state folder when it fails."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import samples
from vcluster.agent.client import LocalAgent
from vcluster.commands.clusters import teardown
from vcluster.commands.steps import snapshot_build
from vcluster.errors import MissingError, VclusterError
from vcluster.fleet import ledger
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import VERSION, Ledger
from vcluster.fleet.servers import Server, ServerRequest
from vcluster.images.store import ImageStore
from vcluster.resources.owned import OwnedItem
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter


class Connector:
    """Opens this machine, or fails to."""

    has_libvirt = True

    def __init__(self, *, is_reachable: bool) -> None:
        self.is_reachable = is_reachable

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        if not self.is_reachable:
            raise MissingError("no access to libvirt", hint="use sudo")
        yield Server(request.name, samples.OWNER, request.storage, LocalAgent({}))


@pytest.fixture(autouse=True)
def _nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "survey", lambda *_: ())
    monkeypatch.setattr(teardown.servers, "require_rights", lambda _: None)
    monkeypatch.setattr(teardown, "_report_unvisited", lambda *_: None)
    monkeypatch.setattr(teardown.lost_clusters, "report", lambda *_: None)
    monkeypatch.setattr(snapshot_build, "remove_unfinished", lambda _: None)


def clear(context: Context, name: str) -> bool:
    return teardown.clear(context, name, consent=lambda _: None)


def context_of(folder: Path, *, is_reachable: bool) -> Context:
    connector = Connector(is_reachable=is_reachable)
    return Context(folder / "state", connector, ImageStore(folder / "images"), Reporter())  # type: ignore[arg-type]


def test_an_unknown_cluster_is_nothing_to_clear(tmp_path: Path) -> None:
    assert clear(context_of(tmp_path, is_reachable=True), "nosuch") is False
    assert not (tmp_path / "state").exists()


def test_the_empty_folder_of_a_killed_command_is_removed(tmp_path: Path) -> None:
    (tmp_path / "state/clusters").mkdir(parents=True)
    assert clear(context_of(tmp_path, is_reachable=True), "doomed") is False
    assert not (tmp_path / "state").exists()


def test_the_empty_folder_of_a_command_that_plans_stays(tmp_path: Path) -> None:
    """Otherwise the next command would not wait for the lock on it."""
    state = tmp_path / "state"
    with ledger.planning(state, Deadline(5), Reporter()):
        assert clear(context_of(tmp_path, is_reachable=True), "doomed") is False
        assert (state / "clusters").is_dir()
    assert not state.exists()


def test_a_failed_clear_of_an_unknown_cluster_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(VclusterError) as raised:
        clear(context_of(tmp_path, is_reachable=False), "nosuch")
    assert raised.value.message == "localhost was not reached, so nothing was removed there: no access to libvirt"
    assert raised.value.hint == "use sudo"
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("error", [VclusterError("busy"), KeyboardInterrupt()])
def test_a_failed_clear_without_a_ledger_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(teardown, "survey", lambda *_: (OwnedItem("domain", "lab.node1", "lab"),))
    monkeypatch.setattr(teardown, "remove", fail)
    with pytest.raises(type(error)):
        clear(context_of(tmp_path, is_reachable=True), "lab")
    assert not (tmp_path / "state").exists()


def test_a_failed_clear_keeps_the_ledger(tmp_path: Path) -> None:
    context = context_of(tmp_path, is_reachable=False)
    files = context.files("lab")
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, "ready", "", samples.plan(2)))
    with pytest.raises(VclusterError, match="localhost was not reached"):
        clear(context, "lab")
    assert files.read_ledger() is not None


def test_an_interrupted_clear_prints_the_command_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the interrupt was ignored")

    notes: list[str] = []
    context = context_of(tmp_path, is_reachable=True)
    context.report.listeners = (lambda event: notes.append(event.text),)
    context.files("lab").folder.mkdir(parents=True)
    monkeypatch.setattr(teardown, "remove", interrupt)
    with pytest.raises(KeyboardInterrupt):
        clear(context, "lab")
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(5)
    assert notes == ["interrupted: the rest of cluster lab is for: vcluster clear lab"]
    assert context.files("lab").folder.exists()
