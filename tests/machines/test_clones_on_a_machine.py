"""The shortest test of clones on a whole machine: create, check, clear."""

from __future__ import annotations

import pytest

from tests.machines.labs import Lab
from tests.whole_machines import PanicError, whole_machines

pytestmark = pytest.mark.machines


def test_two_clones_pass_the_check_and_are_cleared() -> None:
    try:
        try_clones()
    except PanicError as panic:
        print(f"one more attempt: {panic}")
        try_clones()


def try_clones() -> None:
    with whole_machines("green") as (machine,):
        lab = Lab(machine)
        lab.warm()
        bare = lab.survey()
        lab.wait("local create -n 2")
        assert lab.starts() == (2, 0)
        assert lab.json("check", 300)["passed"]
        lab.clear()
        assert lab.denied() == ""
        assert lab.survey() == bare
