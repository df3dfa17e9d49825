"""A cluster on a machine of one suite, whose switch is on a machine of the other."""

from __future__ import annotations

import pytest

from tests.machines.labs import Lab
from tests.whole_machines import WholeMachine, whole_machines

pytestmark = pytest.mark.machines

OTHER = {"bookworm": "trixie", "trixie": "bookworm"}


def allow_login(lab: Lab, server: WholeMachine) -> None:
    """Let root of one machine log in to the other as student, who may use sudo."""
    lab.root("mkdir -p -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
    lab.root(f"ssh-keyscan {server.name} >>/root/.ssh/known_hosts 2>/dev/null")
    server.run(["sh", "-c", "cat >>.ssh/authorized_keys"], input=lab.root("cat /root/.ssh/id_ed25519.pub"))


def test_the_switch_reboots(suite: str) -> None:
    with (
        whole_machines("red", suite=OTHER[suite], is_on_lan=True) as (red,),
        whole_machines("blue", suite=suite, is_on_lan=True) as (blue,),
    ):
        lab, switch = Lab(red), Lab(blue)
        allow_login(lab, blue)
        lab.warm()
        bare = lab.survey(), switch.survey()
        assert lab.root("uname -r") != switch.root("uname -r")

        lab.wait(f"remote create --switch student@{blue.name} -n 2")
        assert lab.starts() == (2, 0)
        path = lab.json("path node1 node2", 300)
        assert path["crossed"]
        assert {hop["server"] for hop in path["hops"]} == {"localhost", blue.name}

        blue.reboot()
        status = lab.json("status")
        assert status["state"] == "partial"
        assert {node["state"] for node in status["nodes"]} == {"running"}
        assert f"bridge vc-lab on {blue.name}" in status["missing"]
        assert not lab.json("check", 300, exit_code=1)["passed"]
        lab.wait("repair")
        assert lab.state() == "ready"
        assert lab.json("path node1 node2", 300)["crossed"]

        lab.clear()
        assert (lab.survey(), switch.survey()) == bare
