"""The entry points of `tests/odd` are those of the code: a new one fails here until the list has it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click

import vcluster
from tests.odd.catalogue import ENTRY_POINTS, FOUND
from tests.odd.command_lines import all_parameters, commands
from tests.odd.protocols import MESSAGES, SERIAL_FIELDS
from vcluster.agent.client import RESULTS
from vcluster.agent.operations import OPERATIONS
from vcluster.config.options import CLUSTER
from vcluster.config.readers import LINK_KEYS, SERVER_KEYS, SWITCH_KEYS

PACKAGE = Path(vcluster.__file__).parent
READS = {"parse", "parse_document", "from_json", "loads", "load"}  # functions that read JSON
# Each function that reads JSON, and the entry points that reach it.
READERS = {
    "model/json_text.py parse": ("ledger",),
    "model/codec.py from_json": ("ledger", "keys of a cluster", "times of a create"),
    "fleet/ledger.py read_ledger": ("ledger",),
    "fleet/ledger.py find_owner": ("ledger",),
    "fleet/ledger.py is_of_another_version": ("ledger",),
    "fleet/ledger.py read_keys": ("keys of a cluster",),
    "fleet/ledger.py read_timing": ("times of a create",),
    "fleet/calibrations.py read": ("calibration of a cluster",),
    "fleet/observation.py _read": ("verdicts about KVM",),
    "commands/servers/support.py _plan": ("ledger in a support report",),
    "commands/servers/support.py _content": ("file of a server in a support report",),
    "adapters/image_stamps.py problem": ("manifest of an image in use",),
    "adapters/image_stamps.py _stamps": ("stamps of an image",),
    "images/store.py _read_manifest": ("manifest of an image",),
    "agent/snapshot_manifest.py read_manifest": ("manifest of a snapshot",),
    "agent/confinement.py _label": ("label of a profile",),
    "agent/request_loop.py _parsed": ("request of the agent",),
    "agent/remote_agent.py _read_message": ("answer of the agent", "error of the agent"),
    "commands/servers/capture.py read_message": ("message of a capture",),
    "frames/analysis/captured_plan.py read_plan": ("captured file",),
    "adapters/serial_connection.py _parsed": ("serial messages",),
    "stages/guest_answer.py find": (
        "answer of check",
        "answer of apply",
        "answer of discover",
        "answer of provision",
        "answer of rank_sockets",
        "answer of tcp_retransmits",
        "answer of iperf3",
        "answer of tcp_samples",
    ),
    "render/gateway_actions.py is_open": ("rules of the gateway",),
}
# Functions that read what vcluster, QEMU or a program of this machine wrote in this moment.
TRUSTED = {
    "agent/request_loop.py perform": "the result that it has just written",
    "agent/bootstrap.py main": "the order of the controller, before the agent has started",
    "agent/bundle.py files": "the output of its own program",
    "cli/common.py emit": "the document that it has just written",
    "commands/steps/capture_process.py _json": "what a capture of vcluster has written into the cluster's folder",
    "images/disk_files.py qcow2_bytes": "the output of qemu-img",
    "images/disk_files.py _info": "the output of qemu-img",
    "adapters/libvirt/qemu_monitor.py _execute": "the monitor of QEMU, by libvirt",
    "agent/capture/frame_capture.py main": "the request of the command that started it",
    "agent/faults/fault_holder.py main": "the argument of the agent that started it",
    "agent/faults/node_faults.py _read_record": "records below /run that only root can write",
    "agent/faults/node_faults.py start_holder": "the answer of a process that the agent started",
    "guest/check.py main": "the request of the controller",
    "guest/apply.py main": "the request of the controller",
    "guest/unpack.py main": "the request of the controller",
    "guest/provision.py main": "the request of the controller",
    "guest/discover.py main": "the request of the controller",
    "guest/node_delays.py main": "the request of the controller",
    "guest/node_delays.py qdiscs": "the output of tc in the node itself",
    "guest/authorize.py main": "the request of the controller",
    "guest/link_probe.py main": "the request of the controller",
    "guest/tcp_retransmits.py main": "the request of the controller",
    "guest/tcp_samples.py main": "the request of the controller",
}


def json_readers() -> set[str]:
    """The file and the name of each function that calls `json.loads`, `json_text.parse` or `codec.from_json`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if "recipes" in path.parts:
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and any(map(_reads_json, ast.walk(function))):
                found.add(f"{path.relative_to(PACKAGE)} {function.name}")
    return found


def _reads_json(node: ast.AST) -> bool:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS
    return is_call and isinstance(node.func.value, ast.Name) and node.func.value.id in {"json", "json_text", "codec"}  # type: ignore[attr-defined]


def test_each_name_is_there_once() -> None:
    assert len(ENTRY_POINTS) == len(FOUND)


def test_each_option_and_argument_of_each_command_is_an_entry_point() -> None:
    for path, command in commands():
        for parameter in all_parameters(command):
            is_flag = getattr(parameter, "is_flag", False)
            kind = "option" if isinstance(parameter, click.Option) else "argument"
            name = parameter.opts[-1] if kind == "option" else parameter.name
            assert is_flag or f"{kind} {name}" in ENTRY_POINTS, f"{path} {name}"


def test_each_key_of_a_configuration_file_is_an_entry_point() -> None:
    for section, keys in (("cluster", CLUSTER), ("switch", SWITCH_KEYS), ("server", SERVER_KEYS), ("link", LINK_KEYS)):
        assert {f"[{section}] {key}" for key in keys} <= ENTRY_POINTS.keys()


def test_each_operation_of_the_agent_is_an_entry_point() -> None:
    assert {f"arguments of {name}" for name in OPERATIONS} <= ENTRY_POINTS.keys()
    assert {f"result of {name}" for name in RESULTS} <= ENTRY_POINTS.keys()


def test_each_field_of_serial_messages_is_in_a_message() -> None:
    text = "".join((PACKAGE / f"adapters/{name}.py").read_text() for name in ("serial_connection", "serial_pipe"))
    used = set(re.findall(r'"(\w+)" in message', text)) | set(re.findall(r'message(?:\.get\(|\[)"(\w+)"', text))
    assert used <= set(SERIAL_FIELDS)
    assert set(SERIAL_FIELDS) == {field for message in MESSAGES for field in message} - {"ready"}


def test_each_reader_of_json_is_reached_or_has_a_reason() -> None:
    assert json_readers() == READERS.keys() | TRUSTED.keys()
    assert {name for names in READERS.values() for name in names} <= ENTRY_POINTS.keys()


def test_a_reader_of_json_is_found() -> None:
    (call,) = [node for node in ast.walk(ast.parse("json.loads(x)")) if isinstance(node, ast.Call)]
    assert _reads_json(call)
