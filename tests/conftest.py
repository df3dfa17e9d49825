"""What all tiers share. Unit tests are pure by force: a socket or a process in one of them is an error."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that boots nodes beside this is slow at times, which is no mistake of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _pure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "unit" not in Path(request.node.fspath).parts:
        return

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a unit test reached for the outside")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare a text with the file kept of it; UPDATE_GOLDEN=1 writes the file instead, to be read and committed."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs"

    return compare
