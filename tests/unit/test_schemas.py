"""The schemas of results: one for each command with a result, and the documents of the code fit them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator

from tests import samples
from tests.results import is_json_requested, validated
from vcluster.adapters.process import Completed
from vcluster.cli.main import main
from vcluster.cli.output import check_report, network_report, path_report, plan_report, run_report, status_report
from vcluster.cli.output import timing_report as timings
from vcluster.cli.schemas.result_schemas import CREATE, PLAN_OPTION, SCHEMAS, schema_of
from vcluster.commands.servers.switch import Port, SwitchSide
from vcluster.errors import VclusterError
from vcluster.fleet.ledger import StageTime
from vcluster.images.store import Manifest
from vcluster.model import codec
from vcluster.model.checks import Check, CheckReport
from vcluster.model.plan import Plan
from vcluster.model.spec import StorageNode
from vcluster.model.status import PAUSED, RUNNING, Observed, PowerState, Status, status_of
from vcluster.planning.hops import hops
from vcluster.planning.neighbours import Neighbour
from vcluster.stages.path import Counted, Path

LOCAL, SHARED = samples.plan(2), samples.shared_plan()
STORAGE = samples.plan(2, stores=(StorageNode("node2", 8),))
PRIVATE = samples.plan(3, layout="private", addresses="dhcp")
TIMES = (StageTime("network", "", 0.0, 0.5), StageTime("boot", "node1", 1.0, 20.0))
FULL = PowerState(PAUSED, "I/O error: no space left")
DIGEST = "sha256-" + "a" * 64


def commands_with_json() -> Iterator[str]:
    def visit(command: click.Command, context: click.Context) -> Iterator[str]:
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None and not child.hidden:
                    yield from visit(child, click.Context(child, info_name=name, parent=context))
        elif any("--output" in one.opts for one in command.get_params(context)):
            yield context.command_path.removeprefix("vcluster ")

    return visit(main, click.Context(main, info_name="vcluster", **main.context_settings))


def test_every_command_with_json_has_a_schema() -> None:
    plans = {f"{command} {PLAN_OPTION}" for command in CREATE}
    assert {*commands_with_json(), *plans} == set(SCHEMAS)


def parts(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """A schema and all schemas in it, by path."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from parts(field, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if schema.get(inner):
            yield from parts(schema[inner], f"{path}[]")


@pytest.mark.parametrize("command", SCHEMAS)
def test_a_schema_is_complete(command: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[command])
    for path, schema in parts(SCHEMAS[command]):
        assert schema["description"], path
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path
            assert schema["required"] == list(schema["properties"]), path


UNITS = {
    "_mib": ", in MiB", "_gib": ", in GiB", "bytes": ", in bytes", "_s": ", in seconds", "mtu": ", in bytes",
    "seconds": ", in seconds", "_ns": ", in nanoseconds",
}  # fmt: skip


@pytest.mark.parametrize("command", SCHEMAS)
def test_a_number_names_its_unit(command: str) -> None:
    for path, schema in parts(SCHEMAS[command]):
        kinds = {*schema["type"]} if isinstance(schema["type"], list) else {schema["type"]}
        for suffix, unit in UNITS.items():
            if path.endswith(suffix) and kinds & {"integer", "number"}:
                assert unit in schema["description"], path


def status(domains: dict[str, PowerState] | None = None, plan: Plan = LOCAL) -> Status:
    running = {node.domain: PowerState(RUNNING) for node in plan.nodes}
    seen = Observed(domains or running, {}, set(), set(), ())
    return status_of(plan, ledger_state="ready", is_being_changed=False, seen={"localhost": seen}, lost={})


def manifest() -> Manifest:
    return Manifest(
        name="debian12", digest=DIGEST, origin="built from debian12", created="2024-01-02T03:04:05+00:00",
        virtual_size_bytes=2**32, kernel_cmdline="root=LABEL=x", features=("mpich",), recipe="ab", files={"disk": "cd"},
    )  # fmt: skip


def path(there: int | None) -> Path:
    counted = tuple(
        Counted(hop, None if there is None else 1450, there, there) for hop in hops(SHARED, *SHARED.workers)
    )
    return Path("node2", "node3", 200, 200, counted)


CHECKS = CheckReport((Check("ping", "node1", "node2", True, ""), Check("mpi", "node1", "", False, "no answer")))
RUNS = {"node1": Completed(3, "out", "err"), "node2": VclusterError("node2: the connection broke")}
SWITCH = SwitchSide("lab", True, "vc-lab", 1450, (Port("vx-lab-1", 40, "192.0.2.1", 1450, True, 7, 9),))
HOSTS = (
    Neighbour("node1", IPv4Address("10.0.0.1"), "02:00:00:00:00:01", ("ping", "arp")),
    Neighbour("", IPv4Address("10.0.0.9"), "02:00:00:00:00:09", ("lease",), is_unknown=True),
)

DOCUMENTS: list[tuple[str, Any]] = [
    ("status", status_report.document(status())),
    ("status", status_report.document(status({"lab.node1": FULL}))),
    ("status", status_report.document(status(plan=STORAGE))),
    ("local create", status_report.created_document(status(), TIMES)),
    ("add", status_report.resized_document(status(), change="added", names=["node2"])),
    ("remove", status_report.resized_document(status(), change="removed", names=["node3"])),
    ("local create --plan", plan_report.document(LOCAL, {"localhost": samples.ROOMY})),
    ("local create --plan", plan_report.document(PRIVATE, {})),
    ("shared create --plan", plan_report.document(SHARED, {"red": samples.ROOMY})),
    ("timing", timings.document(TIMES)),
    ("check", check_report.document(LOCAL, CHECKS)),
    ("path node1 node2", path_report.document(path(200))),
    ("path node1 node2", path_report.document(path(None))),
    ("exec", run_report.document(RUNS)),
    ("provision setup.sh", {"node1": Completed(0, "out", ""), "node2": None}),
    ("discover", network_report.neighbours_document(HOSTS)),
    ("switch up", SWITCH),
    ("switch show", (SWITCH,)),
    ("image build", manifest()),
]


@pytest.mark.parametrize(("command", "document"), DOCUMENTS, ids=[command for command, _ in DOCUMENTS])
def test_documents_fit_their_schemas(command: str, document: Any) -> None:
    validated(command.split(), json.loads(codec.to_json(document)))


@pytest.mark.parametrize(("command", "document"), DOCUMENTS, ids=[command for command, _ in DOCUMENTS])
def test_a_missing_and_an_unknown_field_are_found(command: str, document: Any) -> None:
    whole = json.loads(codec.to_json(document))
    records = list(objects(schema_of(command.split()), whole))
    assert records
    for place, name in records:
        for change in ("remove", "add"):
            changed = copy.deepcopy(whole)
            target = changed
            for step in place:
                target = target[step]
            if change == "remove":
                del target[name]
            else:
                target["unknown"] = 1
            with pytest.raises(AssertionError):
                validated(command.split(), changed)


def objects(schema: dict[str, Any], found: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """The places of all objects with fields, each with the name of one field."""
    if isinstance(found, dict) and "properties" in schema:
        yield place, next(iter(schema["properties"]))
        for name, field in schema["properties"].items():
            yield from objects(field, found[name], (*place, name))
    elif isinstance(found, dict):
        for name, value in found.items():
            yield from objects(schema["additionalProperties"], value, (*place, name))
    elif isinstance(found, list) and "items" in schema:
        for number, value in enumerate(found):
            yield from objects(schema["items"], value, (*place, number))


def test_the_schema_of_a_command_line() -> None:
    assert schema_of(["power", "on", "lab"])["title"] == "Result of vcluster power on -o json"
    assert schema_of(["status"])["title"] == "Result of vcluster status -o json"
    assert schema_of(["local", "create", "-n", "2"])["title"] == "Result of vcluster local create -o json"
    assert schema_of(["local", "create", "--plan"])["title"] == "Result of vcluster local create --plan -o json"
    with pytest.raises(KeyError):
        schema_of(["shell"])


@pytest.mark.parametrize(
    ("line", "is_json"),
    [("status -o json", True), ("exec -o json -- uname", True), ("exec -- kubectl -o json", False), ("status", False)],
)
def test_command_lines_that_ask_for_json(line: str, is_json: bool) -> None:
    assert is_json_requested(line.split()) is is_json
