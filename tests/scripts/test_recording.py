"""The recording of the README: its text is the text of the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parent.parent.parent
SVG = "{http://www.w3.org/2000/svg}"
PROGRAM = r"""
for i in 1 2 3; do printf '\rstep %s of 3' $i; sleep 0.6; done
printf '\nready < 4 s & done\n'
"""


def record(picture: Path, *command: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "scripts" / "recording.py"), str(picture), "--", *command]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def lines_of(group: ET.Element) -> list[str]:
    return [text.text or "" for text in group.findall(f"{SVG}text")]


def test_the_last_screen_is_the_text_of_the_run(tmp_path: Path) -> None:
    assert record(tmp_path / "run.svg", "sh", "-c", PROGRAM).returncode == 0
    root = ET.parse(tmp_path / "run.svg").getroot()
    groups = root.findall(f"{SVG}g")
    assert len(groups) > 2
    assert lines_of(groups[0]) == ["step 1 of 3"]
    assert lines_of(groups[-1]) == ["step 3 of 3", "ready < 4 s & done"]
    assert (tmp_path / "run.txt").read_text().endswith("\nstep 3 of 3\nready < 4 s & done\n")


def test_a_command_that_fails_makes_no_picture(tmp_path: Path) -> None:
    assert record(tmp_path / "run.svg", "sh", "-c", "echo bad; exit 3").returncode != 0
    assert not (tmp_path / "run.svg").exists()


def test_the_picture_of_the_readme_shows_its_text() -> None:
    root = ET.parse(ROOT / "docs/img/create.svg").getroot()
    typed, _, text = (ROOT / "docs/img/create.txt").read_text().partition("\n")
    assert [typed] == lines_of(root)
    assert lines_of(root.findall(f"{SVG}g")[-1]) == [line for line in text.splitlines() if line]
