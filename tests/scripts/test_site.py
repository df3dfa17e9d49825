"""scripts/site builds the documentation, and refuses a broken link and a page outside the navigation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.scripts.conftest import CHECKOUT, NOT_COPIED

ENVIRONMENT = CHECKOUT / "build/docs-venv"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that uses the virtual environment of this one."""
    if not (ENVIRONMENT / "installed").exists():
        pytest.skip("scripts/site was not run, which installs mkdocs")
    copy = tmp_path_factory.mktemp("site") / "checkout"
    shutil.copytree(CHECKOUT, copy, ignore=NOT_COPIED)
    (copy / "build").mkdir()
    (copy / "build/docs-venv").symlink_to(ENVIRONMENT)
    return copy


def build(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([checkout / "scripts/site"], capture_output=True, text=True, timeout=120, check=False)


def test_the_site_contains_pages_schemas_and_examples(checkout: Path) -> None:
    done = build(checkout)
    assert done.returncode == 0, done.stderr
    site = checkout / "build/site"
    for name in ("index.html", "reference/json/index.html", "reference/schemas/status.json", "examples/hello.c"):
        assert (site / name).is_file(), name
    assert 'href="../../examples/"' in (site / "tutorials/first-cluster/index.html").read_text()
    assert 'href="../../config.template"' in (site / "reference/configuration/index.html").read_text()


@pytest.mark.parametrize(
    ("page", "line", "message"),
    [
        ("install.md", "[no page](nothing.md)", "nothing.md"),
        ("install.md", "[no heading](index.md#nothing)", "#nothing"),
        ("install.md", "[no example](../examples/nothing.c)", "examples/nothing.c"),
        ("unlisted.md", "# Unlisted", "unlisted.md"),
    ],
)
def test_a_broken_link_and_an_unlisted_page_are_errors(checkout: Path, page: str, line: str, message: str) -> None:
    path = checkout / "docs" / page
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}\n{line}\n")
    try:
        done = build(checkout)
    finally:
        path.write_text(before) if before else path.unlink()
    assert done.returncode != 0
    assert message in done.stderr
