"""`python -m vcluster` runs the command `vcluster`."""

from __future__ import annotations

from vcluster.cli.main import run

run()
