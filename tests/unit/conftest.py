"""Commands import modules when they run. All are imported here, before sockets are forbidden: ssl builds on them."""

from __future__ import annotations

import importlib
import pkgutil

import vcluster

for found in pkgutil.walk_packages(vcluster.__path__, "vcluster."):
    if "recipes." not in found.name and not found.name.endswith("__main__"):
        importlib.import_module(found.name)
