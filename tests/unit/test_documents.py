"""Results of commands: the JSON document, and the text that is rendered from it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.adapters.process import Completed
from vcluster.cli import main
from vcluster.cli.output import run_report
from vcluster.cli.servers import image
from vcluster.commands.clusters import lifecycle, teardown
from vcluster.commands.nodes import power
from vcluster.commands.servers import switch
from vcluster.commands.steps import inventory, snapshot_build
from vcluster.errors import VclusterError
from vcluster.fleet.ledger import ClusterFiles
from vcluster.resources.owned import OwnedItem


@dataclass(frozen=True)
class Manifest:
    """An image in the store."""

    digest: str = "sha256-0"


class Store:
    """An image store whose image has changed, or not."""

    def __init__(self, problems: tuple[str, ...] = ()) -> None:
        self._problems = problems

    def manifest(self, _: str) -> Manifest:
        return Manifest()

    def verify(self, _: Manifest) -> tuple[str, ...]:
        return self._problems


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[object, str, object], None]:
    """Sets the result of a function, or the error that it raises. There is one cluster, lab."""
    files = ClusterFiles(tmp_path, "lab")
    samples.write_files(files, samples.plan(2))
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("SUDO_USER", raising=False)

    def set_result(module: object, function: str, result: object) -> None:
        def work(*_: object, **__: object) -> object:
            if isinstance(result, VclusterError):
                raise result
            return result

        monkeypatch.setattr(module, function, work)

    return set_result


FAILED = VclusterError("server2 does not answer")


@pytest.mark.parametrize(
    ("arguments", "results_of", "document", "text"),
    [
        ("stop", (lifecycle, "stop", ("node1", "node2")),
         {"name": "lab", "state": "stopped", "stopped": ["node1", "node2"]}, "lab: stopped"),
        ("stop lab", (lifecycle, "stop", ()), {"name": "lab", "state": "stopped", "stopped": []},
         "lab: nothing was running"),
        ("start", (lifecycle, "start", True), {"name": "lab", "state": "ready", "started": True}, "lab: ready"),
        ("start", (lifecycle, "start", False), {"name": "lab", "state": "ready", "started": False},
         "lab: was running already"),
        ("repair", (lifecycle, "repair", ("bridge vc-lab",)),
         {"name": "lab", "state": "ready", "repaired": ["bridge vc-lab"]}, "repaired: bridge vc-lab\nlab: ready"),
        ("repair", (lifecycle, "repair", ()), {"name": "lab", "state": "ready", "repaired": []},
         "lab: nothing was missing"),
        ("power on", (power, "turn_on", {"node1": "on", "node2": "already on"}),
         [{"node": "node1", "power": "on", "error": None}, {"node": "node2", "power": "already on", "error": None}],
         "node1: on\nnode2: already on"),
        ("power off lab -y", (power, "turn_off", {"node1": "off", "node2": "off"}),
         [{"node": "node1", "power": "off", "error": None}, {"node": "node2", "power": "off", "error": None}],
         "node[1-2]: off"),
        ("clear lab -y", (teardown, "clear", True), {"clusters": [{"name": "lab", "cleared": True}], "left": None},
         "lab: cleared"),
        ("clear lab -y", (teardown, "clear", False), {"clusters": [{"name": "lab", "cleared": False}], "left": None},
         "lab: nothing to clear"),
        ("switch down", (switch, "down", True), {"name": "lab", "cleared": True}, "lab: cleared"),
        ("switch down other", (switch, "down", False), {"name": "other", "cleared": False}, "other: nothing to clear"),
        ("image verify debian12", (image, "_store", Store()),
         {"name": "debian12", "digest": "sha256-0", "verified": True, "problems": []}, "image debian12: unchanged"),
        ("image rm debian12 --on server2", (teardown, "remove_image", {"server2": True}),
         {"name": "debian12", "digest": "sha256-0", "servers": [{"server": "server2", "removed": True}]},
         "image debian12 on server2: removed"),
        ("image warm --name lab", (snapshot_build, "build_for_cluster", ("localhost",)), {"servers": ["localhost"]},
         "snapshot stored on localhost"),
        ("image warm --name lab", (snapshot_build, "build_for_cluster", ()), {"servers": []},
         "all snapshots are stored already"),
    ],
)  # fmt: skip
def test_a_result(
    results: Callable[[object, str, object], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    results_of: tuple[object, str, object],
    document: Any,
    text: str,
) -> None:
    monkeypatch.setattr(image, "_store", Store)
    results(*results_of)
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments.split(), "-o", "json"])
    assert main._run() == 0
    assert json.loads(capsys.readouterr().out) == document
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments.split()])
    assert main._run() == 0
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize(
    ("arguments", "results_of", "document", "text", "error"),
    [
        ("power cycle -y", (power, "cycle", {"node1": "off and on", "node2": FAILED}),
         [{"node": "node1", "power": "off and on", "error": None},
          {"node": "node2", "power": None, "error": "server2 does not answer"}],
         "node1: off and on\n", "server2 does not answer"),
        ("power cycle -y", (power, "cycle", {"node1": FAILED}),
         [{"node": "node1", "power": None, "error": "server2 does not answer"}], "", "server2 does not answer"),
        ("clear lab -y", (teardown, "clear", FAILED), {"clusters": [], "left": None}, "", "server2 does not answer"),
        ("clear lab -y --verify", (inventory, "leftovers", (OwnedItem("bridge", "vc-lab", "lab"),)),
         {"clusters": [{"name": "lab", "cleared": True}], "left": [{"cluster": "lab", "item": "bridge vc-lab"}]},
         "lab: cleared\nleft: bridge vc-lab of cluster lab\n", "1 item is left on this machine (vcluster clear lab)"),
        ("image verify debian12", (image, "_store", Store(("disk.qcow2 has changed",))),
         {"name": "debian12", "digest": "sha256-0", "verified": False, "problems": ["disk.qcow2 has changed"]}, "",
         "disk.qcow2 has changed"),
    ],
)  # fmt: skip
def test_a_failure_has_its_document_too(
    results: Callable[[object, str, object], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    results_of: tuple[object, str, object],
    document: Any,
    text: str,
    error: str,
) -> None:
    results(teardown, "clear", True)
    results(*results_of)
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments.split(), "-o", "json"])
    assert main._run() == 1
    assert json.loads(capsys.readouterr().out) == document
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments.split()])
    assert main._run() == 1
    printed = capsys.readouterr()
    assert printed.out == text
    assert printed.err.startswith(f"vcluster: {error}")


def test_ssh_config(
    results: Callable[[object, str, object], None],  # noqa: ARG001 - it makes the cluster
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", ["vcluster", "ssh-config", "-o", "json"])
    assert main._run() == 0
    path = ClusterFiles(tmp_path, "lab").ssh_config
    assert json.loads(capsys.readouterr().out) == {"name": "lab", "path": str(path), "config": path.read_text()}


def test_outputs_are_in_the_order_of_the_nodes() -> None:
    results = {"node1": Completed(0, "a\n", ""), "node2": Completed(0, "b\n", ""), "node3": Completed(0, "a\n", "")}
    assert run_report.text(run_report.document(results)) == "node[1,3]:\n  a\nnode2:\n  b"
    swapped = {"node1": Completed(0, "b\n", ""), "node2": Completed(0, "a\n", "")}
    assert run_report.text(run_report.document(swapped)) == "node1:\n  b\nnode2:\n  a"
