"""The layout: each package is a layer, imports go down only, and each name is used once."""

from __future__ import annotations

import ast
import functools
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "vcluster"

# From top to bottom. A module may import from its own layer and from those below it.
LAYERS = [
    "cli", "commands", "stages", "resources", "guest", "fleet", "images", "config", "planning", "agent", "adapters",
    "render", "snapshots", "frames", "util", "model", "errors",
]  # fmt: skip
RANK = {name: rank for rank, name in enumerate(LAYERS)}

# Each library that reaches outside Python is imported in one module or sub-package.
ADAPTERS = {
    "libvirt": ["adapters/libvirt"],
    "paramiko": ["adapters/ssh"],
    "pyroute2": ["adapters/network"],
    "pycdlib": ["resources/seeds.py"],
    "tqdm": ["cli/output/progress.py"],
    "cryptography": ["model/keys.py"],
    "cattrs": ["model/codec.py"],
}

TOP_LEVEL_MODULES = {"__init__", "__main__", "errors"}
FOLDER_MODULES_MAX = 15
FILE_LINES_MAX = 400
SAME_NAME_LAYERS = {"cli", "commands", "stages", "guest"}  # a feature may have one module of its name in each

MODULES = sorted(PACKAGE.rglob("*.py"))
NAMED = [path for path in MODULES if path.stem != "__init__"]
SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*") if path.is_file() and path.suffix != ".pyc")


def shown(path: Path) -> str:
    return str(path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT))


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_in(path: Path, places: list[str]) -> bool:
    return any(shown(path) == place or shown(path).startswith(f"{place}/") for place in places)


@pytest.mark.parametrize("path", [path for path in MODULES if len(path.relative_to(PACKAGE).parts) > 1], ids=shown)
def test_imports_go_down_only(path: Path) -> None:
    used = {name.split(".")[1] for name in imported(path) if name.startswith("vcluster.")} & set(RANK)
    above = {name for name in used if RANK[name] < RANK[layer(path)]}
    assert not above, f"{shown(path)} imports {above} from above"


def test_shared_steps_do_not_use_commands() -> None:
    steps = [path for path in MODULES if is_in(path, ["commands/steps"])]
    packages = {path.parent.name for path in (PACKAGE / "commands").glob("*/__init__.py")}
    others = tuple(f"vcluster.commands.{name}" for name in packages - {"steps"})
    assert steps
    assert {shown(path): name for path in steps for name in imported(path) if name.startswith(others)} == {}


@pytest.mark.parametrize("path", [path for path in NAMED if layer(path) == "guest"], ids=shown)
def test_a_guest_program_needs_only_the_standard_library(path: Path) -> None:
    assert {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - {"__future__"} == set()


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_no_module_uses_a_private_name_of_another(path: Path) -> None:
    tree = parsed(path)
    modules = {path.stem for path in MODULES}
    imports = [
        one for one in ast.walk(tree) if isinstance(one, ast.ImportFrom) and (one.module or "").startswith("vclu")
    ]
    private = [alias.name for one in imports for alias in one.names if alias.name.startswith("_")]
    private += [
        f"{one.value.id}.{one.attr}"
        for one in ast.walk(tree)
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.attr.startswith("_")
        if one.value.id in modules and one.value.id in {alias.name for each in imports for alias in each.names}
    ]
    assert [name for name in private if name != "__version__"] == []


@pytest.mark.parametrize(("library", "places"), ADAPTERS.items())
def test_each_library_has_one_adapter(library: str, places: list[str]) -> None:
    users = [path for path in MODULES if {name for name in imported(path) if f"{name}.".startswith(f"{library}.")}]
    assert users
    assert [shown(path) for path in users if not is_in(path, places)] == []


def test_the_top_level_shows_the_layers() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules == TOP_LEVEL_MODULES
    assert packages == set(LAYERS) - {"errors"}


def test_folders_are_small() -> None:
    folders: dict[Path, int] = defaultdict(int)
    for path in NAMED:
        folders[path.parent] += 1
    assert {shown(folder): count for folder, count in folders.items() if count > FOLDER_MODULES_MAX} == {}


def test_no_two_modules_share_a_name() -> None:
    layers: dict[str, list[str]] = defaultdict(list)
    for path in NAMED:
        layers[path.stem].append(layer(path))
    twice = {
        name: found
        for name, found in layers.items()
        if len(found) > len(set(found)) or (len(found) > 1 and not set(found) <= SAME_NAME_LAYERS)
    }
    assert twice == {}


def test_no_two_public_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(shown(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_file_is_long() -> None:
    programs = [path for path in MODULES if layer(path) == "guest"]  # each of them is one file in the node
    counts = {shown(path): len(path.read_text().splitlines()) for path in (*MODULES, *SCRIPTS) if path not in programs}
    assert {name: count for name, count in counts.items() if count > FILE_LINES_MAX} == {}
