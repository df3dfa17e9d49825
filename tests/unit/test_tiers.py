"""Each test belongs to one tier. Its folder and its markers decide which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import FOLDERS, TESTS, folder_of, may_select, queue_of, run_order, tier_of


@pytest.mark.parametrize(
    ("folder", "markers", "tier"),
    [
        ("unit", ["parametrize"], "quick"),
        ("ssh", ["ssh"], "standard"),
        ("ssh", ["netns"], "standard"),
        ("netns", ["netns"], "standard"),
        ("netns", ["netns", "slow"], "full"),
        ("scripts", [], "standard"),
        ("scripts", ["vm"], "full"),
        ("vm", ["vm", "usefixtures"], "full"),
        ("vm", ["vm", "core"], "standard"),
        ("vm", ["vm", "rare"], "faults"),
        ("vm", ["vm", "core", "rare"], "faults"),
        ("machines", ["machines"], "machines"),
        ("machines", ["machines", "smoke"], "full"),
        ("faults", ["faults"], "faults"),
        ("faults", ["faults", "smoke"], "full"),
        ("scale", ["scale"], "scale"),
        ("scale", ["smoke"], "full"),
    ],
)
def test_tiers(folder: str, markers: list[str], tier: str) -> None:
    assert tier_of(folder, markers) == tier


@pytest.mark.parametrize(
    ("folder", "markers", "reason"),
    [
        ("unit", ["vm"], "needs vm; allowed: nothing"),
        ("vm", [], "needs nothing; allowed: vm"),
        ("vm", ["vm", "netns"], "needs netns, vm; allowed: vm"),
        ("unit", ["core"], "only booted tests are part of the core"),
        ("vm", ["vm", "smoke"], "not of a long tier"),
        ("unit", ["slow"], "not in the tier standard"),
        ("netns", ["netns", "rare"], "only booted tests"),
        ("vm", ["vm", "core", "slow"], "not in the tier standard"),
        ("elsewhere", [], "tests/elsewhere has no entry in FOLDERS"),
    ],
)
def test_markers_that_a_folder_does_not_allow(folder: str, markers: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tier_of(folder, markers)


@pytest.mark.parametrize("path", sorted(TESTS.glob("*/**/test_*.py")), ids=lambda path: path.stem)
def test_each_module_has_markers_that_its_folder_allows(path: Path) -> None:
    folder = folder_of(path)
    if folder != "unit":
        tier_of(folder, re.findall(r"\bpytest\.mark\.(\w+)", path.read_text()))


@pytest.mark.parametrize(
    ("queue", "folders"),
    [
        ("parallel", {"unit", "language", "images", "libvirt", "ssh", "netns"}),
        ("first_queue", {"faults", "vm"}),
        (
            "second_queue",
            {"scripts", "private", "servers", "machines", "matrix", "clones", "odd", "scale"},
        ),
    ],
)
def test_each_folder_is_in_one_queue(queue: str, folders: set[str]) -> None:
    assert {folder for folder in FOLDERS if queue_of(folder) == queue} == folders


@pytest.mark.parametrize(
    ("expression", "folder", "may"),
    [
        ("(quick or standard) and first_queue", "vm", True),
        ("(quick or standard) and first_queue", "unit", False),
        ("quick and parallel", "unit", True),
        ("faults", "vm", True),
        ("", "unit", True),
        ("full and not first_queue", "unit", True),
    ],
)
def test_folders_of_other_queues_are_not_collected(expression: str, folder: str, may: bool) -> None:
    assert may_select(expression, folder) is may


def test_folders_with_long_modules_run_first() -> None:
    assert run_order(["language", "netns", "ssh", "unit", "netns"]) == ["netns", "ssh", "language", "unit"]


def test_no_two_modules_share_a_name() -> None:
    names = [path.stem for path in TESTS.rglob("test_*.py")]
    assert len(names) == len(set(names))
