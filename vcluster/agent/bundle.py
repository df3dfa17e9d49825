"""The agent as one file: our modules that run on servers and as much of pyroute2 as they load."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcluster.errors import VclusterError

# What runs on servers. What of pyroute2 that needs is seen by importing it.
MODULES: tuple[str, ...] = (
    "vcluster",
    "vcluster.errors",
    "vcluster.agent",
    "vcluster.agent.request_loop",
    "vcluster.agent.operations",
    "vcluster.adapters",
    "vcluster.adapters.process",
    "vcluster.adapters.kvm_probe",
)
_LIBRARY = "pyroute2"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say
_TIMEOUT_S = 60.0
# The library's own __init__ would load all of it, which costs a server half a second at every start: it goes without.
_LOOK = """
import importlib, importlib.util, json, sys, types
sys.path[:], names, library = json.loads(sys.stdin.read())
bare = types.ModuleType(library)
bare.__path__ = list(importlib.util.find_spec(library).submodule_search_locations)
sys.modules[library] = bare
for name in names:
    importlib.import_module(name)
print(json.dumps({name: module.__file__ for name, module in sys.modules.items()
                  if name.split(".")[0] in (library, "vcluster") and getattr(module, "__file__", None)}))
"""


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip file of Python modules, and the SHA-256 of it in hexadecimal."""

    content: bytes
    digest: str


@functools.cache
def build() -> Archive:
    """Pack the agent."""
    return pack(files(MODULES))


def pack(files: Mapping[str, bytes]) -> Archive:
    """Files, by their names in the archive, as one. The same files give the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    content = packed.getvalue()
    return Archive(content, hashlib.sha256(content).hexdigest())


def files(modules: Sequence[str]) -> dict[str, bytes]:
    """The source of modules, and of what they load of our own and of pyroute2, by its name in the archive."""
    done = subprocess.run(
        [sys.executable, "-c", _LOOK],
        input=json.dumps([sys.path, modules, _LIBRARY]).encode(),
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise VclusterError(f"the agent cannot be packed: {' '.join(last)}")
    found: dict[str, str] = json.loads(done.stdout)
    files = {_place(name, Path(path)): Path(path).read_bytes() for name, path in found.items()}
    return {**files, f"{_LIBRARY}/__init__.py": b""}


def _place(name: str, path: Path) -> str:
    folder = name.replace(".", "/")
    return f"{folder}/__init__.py" if path.name == "__init__.py" else f"{folder}.py"
