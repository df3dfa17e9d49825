"""The schema of each command's result, by the command's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vcluster.cli.schemas import (
    cluster_schemas,
    fault_schemas,
    graph_schemas,
    machine_schemas,
    node_schemas,
    traffic_schema,
)
from vcluster.cli.schemas.plan_schema import PLAN
from vcluster.cli.schemas.schema_parts import Schema, titled

PLAN_OPTION = "--plan"
CREATE = ("local create", "remote create", "shared create")

SCHEMAS: Mapping[str, Schema] = {
    name: titled(name, schema)
    for name, schema in {
        **cluster_schemas.SCHEMAS,
        **{f"{command} {PLAN_OPTION}": PLAN for command in CREATE},
        **node_schemas.SCHEMAS,
        **fault_schemas.SCHEMAS,
        **machine_schemas.SCHEMAS,
        **traffic_schema.SCHEMAS,
        **graph_schemas.SCHEMAS,
    }.items()
}


def schema_of(arguments: Sequence[str]) -> Schema:
    """The schema for a command line without `vcluster`. Raises KeyError for a command without a result."""
    command = " ".join(arguments[:2])
    if command not in SCHEMAS:
        command = arguments[0]
    if command in CREATE and PLAN_OPTION in arguments:
        return SCHEMAS[f"{command} {PLAN_OPTION}"]
    return SCHEMAS[command]
