"""Commands import modules when they run. All are imported here, before sockets are forbidden: ssl builds on them."""

from __future__ import annotations

import importlib
import pkgutil
import signal
from collections.abc import Iterator

import pytest

import vcluster
from vcluster.util.interrupts import SIGNALS

for found in pkgutil.walk_packages(vcluster.__path__, "vcluster."):
    if "recipes." not in found.name and not found.name.endswith("__main__"):
        importlib.import_module(found.name)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """After an interrupt, a command keeps its handlers of signals until it ends; here pytest goes on."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
