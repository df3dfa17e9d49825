"""Fixtures that modules of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.link_lab import Lab, SharedLabs, labs


@pytest.fixture(scope="session")
def shared_labs() -> Iterator[SharedLabs]:
    """A function that returns the lab of a mode. It makes the lab when the first module needs it, in half a minute.

    Each test ends the limits, the faults and the counters that it has made.
    """
    with ExitStack() as stack:
        made: dict[str, Lab] = {}

        def lab(mode: str) -> Lab:
            if mode not in made:
                made[mode] = stack.enter_context(labs(mode))
            return made[mode]

        yield lab


@pytest.fixture(scope="module", params=["local", "remote"])
def cluster(request: pytest.FixtureRequest, shared_labs: SharedLabs) -> Lab:
    """The shared lab in each mode, whose bridges know the nodes."""
    lab = shared_labs(request.param)
    lab.teach_bridges()
    return lab
