"""The reference, the manual pages and the completions: as the code makes them, complete, and readable by man."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.scripts.conftest import CHECKOUT
from vcluster import errors
from vcluster.cli.schemas.result_schemas import SCHEMAS
from vcluster.config.options import CLUSTER
from vcluster.config.readers import LINK_KEYS, SERVER_KEYS, SWITCH_KEYS

SCRIPT = CHECKOUT / "scripts/reference.py"
REFERENCE = CHECKOUT / "docs/reference"
MANUALS = sorted((CHECKOUT / "docs/man").iterdir())


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_pages_are_as_the_code_says() -> None:
    done = make("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_that_differs_is_found_and_made_again(tmp_path: Path) -> None:
    assert make("--to", str(tmp_path)).returncode == 0
    assert make("--check", "--to", str(tmp_path)).returncode == 0
    page = tmp_path / "docs/reference/messages.md"
    text = page.read_text()
    page.write_text(text + "one more line\n")
    (tmp_path / "docs/man/vcluster.1").unlink()
    (tmp_path / "docs/reference/schemas/former.json").write_text("{}")
    done = make("--check", "--to", str(tmp_path))
    assert done.returncode == 1
    for name in ("docs/reference/messages.md", "docs/man/vcluster.1", "docs/reference/schemas/former.json"):
        assert name in done.stderr
    assert make("--to", str(tmp_path)).returncode == 0
    assert page.read_text() == text
    assert make("--check", "--to", str(tmp_path)).returncode == 0


def first_cells(page: str) -> list[str]:
    """The first cell of each row of each table of a page."""
    lines = (REFERENCE / page).read_text().splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1].strip() for line in lines if line.startswith("| `")]
    return [cell.strip("`").strip() for cell in cells]


def test_every_variable_of_the_code_is_listed() -> None:
    sources = [path for path in (CHECKOUT / "vcluster").rglob("*.py") if "schemas" not in path.parts]
    used = {name for path in sources for name in re.findall(r"(?<!_)VCLUSTER_[A-Z_]+[A-Z]", path.read_text())}
    used |= {f"VCLUSTER_{key.upper()}" for key in CLUSTER}
    assert len(used) > 30
    assert used == {name for name in first_cells("environment.md") if name.startswith("VCLUSTER_")}


def test_help_has_a_short_form_in_the_reference_and_one_line_in_the_manual() -> None:
    rows = [cell for cell in first_cells("commands.md") if "--help" in cell]
    assert len(rows) > 30
    assert set(rows) == {"-h, --help"}
    assert (CHECKOUT / "docs/man/vcluster.1").read_text().count("\\-\\-help") == 1


def test_every_key_of_a_configuration_file_is_described() -> None:
    counts = Counter(first_cells("configuration.md"))
    assert counts == Counter([*CLUSTER, *SWITCH_KEYS, *SERVER_KEYS, *LINK_KEYS])
    for line in (REFERENCE / "configuration.md").read_text().splitlines():
        if line.startswith("| `"):
            _, key, value, _, meaning, _ = re.split(r"(?<!\\)\|", line)
            assert value.strip(), key
            assert meaning.strip(), key


def literals() -> set[str]:
    """The messages of the code that are plain strings, and the longest plain part of the others."""
    kinds = {name for name in vars(errors) if name.endswith("Error") and name != "SeveralErrors"}
    trees = [ast.parse(path.read_text()) for path in (CHECKOUT / "vcluster").rglob("*.py")]
    raised = [node.exc for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    calls = [call for call in raised if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args]
    found = {longest_literal(call.args[0]) for call in calls if getattr(call.func, "id", "") in kinds}
    return {text for text in found if len(text) > 8}


def longest_literal(node: ast.expr) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return max((str(part.value) for part in parts if isinstance(part, ast.Constant)), key=len, default="")


def test_every_message_is_listed() -> None:
    page = (REFERENCE / "messages.md").read_text().replace("\\|", "|")
    expected = literals()
    assert len(expected) > 100
    assert {text for text in expected if text.replace("\n", " ").strip() not in page} == set()


def test_no_message_is_listed_twice() -> None:
    section, rows = "", Counter[tuple[str, str]]()
    for line in (REFERENCE / "messages.md").read_text().splitlines():
        if line.startswith("## "):
            section = line
        elif line.startswith("| `"):
            rows[section, re.split(r"(?<!\\)\|", line)[1]] += 1
    assert len(rows) > 200
    assert {row: count for row, count in rows.items() if count > 1} == {}


def test_every_result_has_a_section_and_a_schema() -> None:
    page = (REFERENCE / "json.md").read_text()
    headings = [name for line in page.splitlines() if line.startswith("## ") for name in line[3:].split(", ")]
    assert sorted(headings) == sorted(SCHEMAS)
    links = re.findall(r"\]\((schemas/[^)]*)\)", page)
    assert sorted(links) == sorted(str(path.relative_to(REFERENCE)) for path in (REFERENCE / "schemas").iterdir())
    assert len(links) == len(SCHEMAS)


@pytest.mark.parametrize("page", MANUALS, ids=lambda path: path.name)
def test_man_renders_a_page_without_warnings(page: Path) -> None:
    if not shutil.which("groff"):
        pytest.skip("groff is not installed")
    argv = ["groff", "-man", "-Tutf8", "-Kutf8", "-ww", "-rCHECKSTYLE=1", str(page)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    assert not re.findall(r"\.(?:SH|SS|TP|BR?)\b", done.stdout)


def test_the_manual_pages_name_all_commands_and_keys() -> None:
    commands = (REFERENCE / "commands.md").read_text()
    names = [line[3:] for line in commands.splitlines() if line.startswith("## ")]
    assert len(names) > 35
    manual = (CHECKOUT / "docs/man/vcluster.1").read_text().replace("\\-", "-")
    assert [name for name in names if f".SS {name}" not in manual] == []
    configuration = (CHECKOUT / "docs/man/vcluster-config.5").read_text()
    assert [key for key in (*CLUSTER, *SWITCH_KEYS, *SERVER_KEYS) if f".B {key} =" not in configuration] == []


DEVELOPMENT = CHECKOUT / "docs/development"


def defined(path: Path) -> set[str]:
    """The functions, classes, methods and module variables of a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_the_walk_names_functions_that_exist() -> None:
    rows = re.findall(r"^\| `(vcluster/[^`]*)` \| `([^`]*)` \|", (DEVELOPMENT / "walk.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    assert [(file, name) for file, name in rows if name not in defined(CHECKOUT / file)] == []


# Commands, a tier, a folder and a key of mkdocs.yml.
NO_PYTHON = {"add", "status", "full", "docs", "nav", "features"}


def test_the_page_of_changes_names_functions_that_exist() -> None:
    """Each name of a row is in one of the files, or below one of the folders, that the same row names."""
    _, _, text = (DEVELOPMENT / "layers.md").read_text().partition("## Where a change goes")
    rows = [re.findall(r"`([^`]*)`", line) for line in text.splitlines() if line.startswith("| ")]
    unknown = set()
    for row in rows:
        places = [CHECKOUT / name for name in row if "/" in name]
        files = {file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])}
        known = {name for file in files if file.suffix == ".py" for name in defined(file)}
        unknown |= {name for name in row if re.fullmatch(r"\w+", name)} - known
    assert len(rows) > 30
    assert unknown == NO_PYTHON


@pytest.mark.parametrize("page", ["walk.md", "layers.md", "architecture.md"])
def test_the_pages_for_developers_name_files_that_exist(page: str) -> None:
    named = set(
        re.findall(r"`((?:vcluster|tests|scripts|images|docs)/[a-z_/0-9.-]+)`", (DEVELOPMENT / page).read_text())
    )
    assert named
    assert {name for name in named if not (CHECKOUT / name).exists()} == set()


@pytest.mark.parametrize("page", ["security.md", "reliability.md"])
def test_the_pages_about_faults_name_tests_that_exist(page: str) -> None:
    named = re.findall(r"`(?:tests/)?([a-z]+/test_\w+\.py)`", (CHECKOUT / "docs/explanation" / page).read_text())
    assert len(named) > 20
    assert {name for name in named if not (CHECKOUT / "tests" / name).exists()} == set()
