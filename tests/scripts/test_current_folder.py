"""Python files of the current folder are never run: others may write there, and vcluster mostly runs as root."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vcluster.agent import bundle
from vcluster.commands.steps import snapshot_build

ROOT = Path(__file__).parent.parent.parent
LOADED = ("json", "importlib", "types", "click", "pyroute2", "vcluster", "venv")


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of traces; the current folder has modules that each leave one when they are loaded."""
    traces, poisoned = tmp_path / "traces", tmp_path / "poisoned"
    traces.mkdir()
    poisoned.mkdir()
    for name in LOADED:
        (poisoned / f"{name}.py").write_text(f"open({str(traces / name)!r}, 'w')\n")
    monkeypatch.chdir(poisoned)
    return traces


def left(traces: Path) -> list[str]:
    return sorted(path.name for path in traces.iterdir())


@pytest.mark.parametrize("entry", ["", "."])
def test_packing_the_agent(traces: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.syspath_prepend(entry)
    files = bundle.files(bundle.MODULES)
    assert left(traces) == []
    assert files["vcluster/errors.py"] == (ROOT / "vcluster" / "errors.py").read_bytes()


def test_building_snapshots_in_the_background(traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", lambda argv, **_: started.append(argv))
        snapshot_build.start_in_background("lab")
    (argv,) = started
    command = argv[: argv.index("image")]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("vcluster, version")
    assert left(traces) == []


def test_making_the_virtual_environment(traces: Path, tmp_path: Path) -> None:
    program = 'root=$1; . "$0"; quietly() { "$@" --help; }; make_environment'
    done = subprocess.run(
        ["bash", "-ec", program, ROOT / "scripts/lib/project.sh", tmp_path / "checkout"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "usage: venv" in done.stdout
    assert left(traces) == []
