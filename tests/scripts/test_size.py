"""No script is too long to read."""

from __future__ import annotations

from pathlib import Path

from tests.scripts.conftest import CHECKOUT

LINES = 400


def length(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_script_is_long() -> None:
    folders = [CHECKOUT / "scripts", *(CHECKOUT / "scripts").glob("[a-z]*/")]
    scripts = [path for folder in folders for path in folder.iterdir() if path.is_file()]
    assert len(scripts) > 10
    assert {path.name: length(path) for path in scripts if length(path) > LINES} == {}
