"""The life of a cluster of clones on a whole machine, with a reboot of the machine."""

from __future__ import annotations

import pytest

from tests.machines.labs import Lab
from tests.whole_machines import whole_machines

pytestmark = pytest.mark.machines


def test_a_cluster_lives_through_every_command_and_a_reboot(suite: str) -> None:
    with whole_machines("green", suite=suite) as (machine,):
        lab = Lab(machine)
        lab.warm()
        bare = lab.survey()

        lab.wait("local create -n 2")
        assert lab.starts() == (2, 0)

        lab.wait("add")
        assert [node["name"] for node in lab.json("status")["nodes"]] == ["node1", "node2", "node3"]
        lab.wait("remove node3 -y")

        lab.wait("stop")
        assert lab.state() == "stopped"
        lab.wait("start")
        assert lab.state() == "ready"
        assert lab.denied() == ""

        machine.reboot()
        status = lab.json("status")
        assert status["state"] == "stopped"
        assert "bridge vc-lab" in status["missing"]
        lab.wait("repair")
        assert lab.state() == "ready"
        assert lab.json("check", 300)["passed"]
        assert lab.denied() == ""

        lab.clear()
        assert lab.survey() == bare
