"""The stages in the report of a create. Every name that `report.step` reports has an entry in STAGES.

Progress and `timing` show them in this order. A stage that runs a guest program in each node needs one more of the
reserves that a clone has: RESERVES in images/debian/overlay/usr/lib/vcluster/clone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage in the report of a create: of each node, or of the cluster, a server or the head node alone.

    `is_optional`: a node that boots without a script comes up without it.
    """

    name: str
    of_node: bool = False
    is_optional: bool = False


# In the order in which tables show them. A clone has `clone`, `identity` and `sshd` instead of `create`, `boot` and
# `login`, so it has as many stages as a node that boots.
STAGES = (
    Stage("connect"),
    Stage("image"),
    Stage("network"),
    Stage("tunnels"),
    Stage("create", of_node=True),
    Stage("clone", of_node=True, is_optional=True),
    Stage("identity", of_node=True, is_optional=True),
    Stage("start", of_node=True, is_optional=True),
    Stage("boot", of_node=True),
    Stage("login", of_node=True),
    Stage("configure", of_node=True),
    Stage("sshd", of_node=True, is_optional=True),
    Stage("nfs", of_node=True),
    Stage("check", of_node=True),
    Stage("mpiexec"),
    Stage("path"),
    Stage("payload"),
    Stage("provision", of_node=True, is_optional=True),
)
STAGE_ORDER = tuple(stage.name for stage in STAGES)
NODE_STAGES = sum(stage.of_node and not stage.is_optional for stage in STAGES)  # the length of a node's progress bar
