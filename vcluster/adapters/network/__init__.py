"""The kernel's network: interfaces, packet filters and raw frames, by netlink and sockets."""

from __future__ import annotations

import sys
from types import ModuleType


def load_less_of_pyroute2() -> None:
    """Let pyroute2 load only the modules that are imported by name; its own `__init__` loads them all, in 40 ms.

    For a process in which nothing but this package uses pyroute2.
    """
    import importlib.util  # noqa: PLC0415 - the agent imports this package, and does not need it

    specification = importlib.util.find_spec("pyroute2")
    if "pyroute2" in sys.modules or not specification or not specification.submodule_search_locations:
        return
    bare = ModuleType("pyroute2")
    bare.__spec__, bare.__path__ = specification, list(specification.submodule_search_locations)
    sys.modules["pyroute2"] = bare
