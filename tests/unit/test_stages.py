"""The table of stages: a create reports no other, and bars have as many steps as a node has stages."""

from __future__ import annotations

import re
from pathlib import Path

import vcluster
from vcluster.stages.stage_table import NODE_STAGES, STAGE_ORDER

PACKAGE = Path(vcluster.__file__).parent
REPORTERS = ("fleet", "images", "stages", "commands/steps")
# report.step("boot", …), report.emit("start", "provision", …), configure.apply(session, "nfs", …), STAGE = "image"
REPORTED = re.compile(r"""(?:\.step\(|\.emit\("start", |configure\.apply\(\w+, |^STAGE = )\s*"(\w+)\"""", re.MULTILINE)
OF_TEMPLATES = {"warm"}


def test_every_reported_stage_is_in_the_table() -> None:
    sources = [path.read_text() for folder in REPORTERS for path in (PACKAGE / folder).rglob("*.py")]
    assert {stage for source in sources for stage in REPORTED.findall(source)} - OF_TEMPLATES == {*STAGE_ORDER}


def test_bars_are_full_when_a_node_is_checked() -> None:
    booted = ("create", "boot", "login", "configure", "nfs", "check")
    cloned = ("clone", "identity", "configure", "sshd", "nfs", "check")
    assert len(booted) == len(cloned) == NODE_STAGES
