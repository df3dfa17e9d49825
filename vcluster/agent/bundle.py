"""Pack the agent into one archive: our modules that run on servers, and the parts of pyroute2 that they load."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcluster.adapters.process import python
from vcluster.errors import VclusterError

# The modules that run on servers. A trial import finds everything else that they load.
MODULES: tuple[str, ...] = (
    "vcluster",
    "vcluster.errors",
    "vcluster.agent",
    "vcluster.agent.request_loop",
    "vcluster.agent.operations",
    "vcluster.agent.capture.frame_capture",
    "vcluster.agent.faults.fault_holder",
    "vcluster.adapters",
    "vcluster.adapters.process",
    "vcluster.adapters.kvm_probe",
    "vcluster.adapters.tsc",
)
_LIBRARY = "pyroute2"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date in a zip file
_TIMEOUT_S = 60.0
# pyroute2's own __init__ would load the whole library, half a second at every start. An empty one replaces it.
_FIND_FILES = """
import importlib, importlib.util, json, sys, types
names, library = json.loads(sys.stdin.read())
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
    """A zip file of Python modules, and its SHA-256 in hexadecimal."""

    content: bytes
    digest: str


@functools.cache
def build() -> Archive:
    """The agent's archive."""
    return pack(files(MODULES))


def pack(files: Mapping[str, bytes]) -> Archive:
    """Pack files, given by their names in the archive. The same files give the same bytes."""
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
    """The source of modules and of everything that they load from vcluster and pyroute2, by name in the archive."""
    done = subprocess.run(
        python(_FIND_FILES),
        input=json.dumps([modules, _LIBRARY]).encode(),
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise VclusterError(f"cannot pack the agent: {' '.join(reason)}")
    found: dict[str, str] = json.loads(done.stdout)
    files = {_place(name, Path(path)): Path(path).read_bytes() for name, path in found.items()}
    return {**files, f"{_LIBRARY}/__init__.py": b""}


def _place(name: str, path: Path) -> str:
    folder = name.replace(".", "/")
    return f"{folder}/__init__.py" if path.name == "__init__.py" else f"{folder}.py"
