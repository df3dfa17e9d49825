"""Imports go down only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "vcluster"

# From the bottom up. A module may import from its own layer and those below.
LAYERS = [
    ["errors", "model"],
    ["codec", "naming", "recipes", "events", "savefile", "ramstream"],
    ["addressing", "topology", "placement", "hops", "keys", "parallel", "status", "discover", "guest"],
    ["plan", "render"],
    ["resize", "snapshots"],
    ["ledger"],
    ["hosts", "progress"],
    ["ini", "fields", "options", "sections", "wishes"],
    ["config", "passwords"],
    ["agent"],
    ["images"],
    ["servers"],
    ["facts", "resources"],
    ["site", "stages", "warming"],
    ["inventory", "nodes"],
    ["removal"],
    ["cluster"],
    ["access", "doctor", "members", "power", "switch"],
    ["gateway"],
    ["cli"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# Each library that reaches the outside is imported in one place.
DOORS = {
    "libvirt": ["hosts/hypervisor.py"],
    "paramiko": ["hosts/ssh.py"],
    "pyroute2": ["hosts/firewall.py", "hosts/netlink.py"],
    "pycdlib": ["resources/seeds.py"],
    "tqdm": ["progress.py"],
    "cryptography": ["keys.py"],
    "cattrs": ["codec.py"],
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "recipes" not in path.relative_to(PACKAGE).parts)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    if top(path) == "__init__":
        return
    assert top(path) in RANK, f"{path.name} has no layer"
    used = {name.split(".")[1] for name in imported(path) if name.startswith("vcluster.")} & set(RANK)
    above = {name for name in used if RANK[name] > RANK[top(path)]}
    assert not above, f"{path.name} imports {above} from above"


@pytest.mark.parametrize(("library", "allowed"), DOORS.items())
def test_each_library_has_one_door(library: str, allowed: list[str]) -> None:
    users = [
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name == library or name.startswith(f"{library}.") for name in imported(path))
    ]
    assert users == allowed
