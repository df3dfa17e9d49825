"""Each test belongs to one tier. Its folder and its markers decide which."""

from __future__ import annotations

import pytest

from tests.conftest import FOLDERS, TESTS, tier_of


@pytest.mark.parametrize(
    ("folder", "markers", "tier"),
    [
        ("unit", ["parametrize"], "quick"),
        ("ssh", ["ssh"], "standard"),
        ("ssh", ["netns"], "standard"),
        ("scripts", [], "standard"),
        ("scripts", ["vm"], "full"),
        ("vm", ["vm", "usefixtures"], "full"),
        ("vm", ["vm", "core"], "standard"),
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
        ("elsewhere", [], "tests/elsewhere has no entry in FOLDERS"),
    ],
)
def test_markers_that_a_folder_does_not_allow(folder: str, markers: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tier_of(folder, markers)


def test_each_folder_with_tests_has_an_entry() -> None:
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/test_*.py")}
    assert folders <= set(FOLDERS)


def test_no_two_modules_share_a_name() -> None:
    names = [path.stem for path in TESTS.rglob("test_*.py")]
    assert len(names) == len(set(names))
