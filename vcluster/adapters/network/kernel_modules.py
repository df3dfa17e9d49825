"""The command that gives this machine's kernel a module that it lacks."""

from __future__ import annotations

import platform
from pathlib import Path

MODULES = Path("/lib/modules")
OS_RELEASE = Path("/etc/os-release")


def load_command(module: str) -> str:
    """modprobe, or the installation of the module if it is not on the disk. Ubuntu has a package for rare modules."""
    release = platform.release()
    if _is_missing(module, release) and _is_ubuntu():
        return f"apt-get install linux-modules-extra-{release}"
    return f"modprobe {module}"


def _is_missing(module: str, release: str) -> bool:
    """Whether the modules of the running kernel are here, without this one. A container has none of them."""
    try:
        return f"/{module}.ko" not in (MODULES / release / "modules.dep").read_text()
    except OSError:
        return False


def _is_ubuntu() -> bool:
    """Whether this is Ubuntu, or a system made from it."""
    try:
        lines = OS_RELEASE.read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(("ID=", "ID_LIKE=")) and "ubuntu" in line for line in lines)
