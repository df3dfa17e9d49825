"""The suites of Debian whose machines are tested."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)
