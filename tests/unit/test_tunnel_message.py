"""What vcluster reports about tunnels that lose frames."""

from __future__ import annotations

from typing import Any

import pytest

from tests import samples
from tests.samples import BLUE, RED
from vcluster.agent.client import LocalAgent
from vcluster.errors import MissingError
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Plan
from vcluster.stages import tunnels


def lossy_fleet(plan: Plan, other_interfaces: dict[str, str]) -> Fleet:
    """A fleet without obstacles that loses all frames; some addresses are on another interface than the route's."""

    def agent(name: str) -> LocalAgent:
        ends = plan.server(name).tunnels
        operations: dict[str, Any] = {
            "listen": lambda interfaces: None,  # noqa: ARG005 - the agent passes these by name
            "stop_listening": lambda: None,
            "send_frames": lambda frames, size: None,  # noqa: ARG005
            "received_probes": lambda expected, timeout_s: {},  # noqa: ARG005
            "obstacles": lambda port: [],  # noqa: ARG005
            "addresses": lambda: [[other_interfaces.get(name, end.interface), str(end.local)] for end in ends],
        }
        return LocalAgent(operations)

    return Fleet({each.name: Server(each.name, samples.OWNER, "", agent(each.name)) for each in plan.servers}, {})


def test_an_asymmetric_route_is_named_once_for_each_peer() -> None:
    plan = samples.shared_plan(RED, BLUE, count=4)
    end = plan.server("red").tunnels[0]
    with pytest.raises(MissingError) as raised:
        tunnels.prove(lossy_fleet(plan, {"red": "eth7"}), plan)
    lines = [line for line in str(raised.value).splitlines() if "asymmetric" in line]
    assert lines == [
        f"  red: asymmetric route: packets to {end.remote} leave by {end.interface}, "
        f"but the server's address {end.local} is on eth7; packets from {end.remote} may arrive on these two "
        "interfaces only; fix: sysctl -w net.ipv4.conf.eth7.rp_filter=2"
    ]


def test_a_symmetric_route_is_not_reported() -> None:
    plan = samples.shared_plan(RED, BLUE, count=2)
    with pytest.raises(MissingError) as raised:
        tunnels.prove(lossy_fleet(plan, {}), plan)
    assert "asymmetric" not in str(raised.value)
