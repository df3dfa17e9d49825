"""The cluster on disk, and ledgers of an earlier version."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from tests.open_context import OpenContext
from vcluster.commands.clusters import scale
from vcluster.config.environment_folders import folder_of
from vcluster.errors import ConflictError, DeadlineError, MissingError, RequestError, VclusterError
from vcluster.fleet import ledger
from vcluster.fleet.ledger import ClusterFiles, Ledger, StageTime
from vcluster.fleet.servers import Fleet
from vcluster.model import codec
from vcluster.model.keys import KeyPair, Keys
from vcluster.model.plan_check import find_defect
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

# State folders as the version at commit 2b157f7 wrote them. Its users have clusters with such ledgers.
OLD = Path(__file__).parent.parent / "golden" / "ledger-2b"


@pytest.fixture
def files(tmp_path: Path) -> ClusterFiles:
    made = ClusterFiles(tmp_path / "state", "lab")
    made.folder.mkdir(parents=True)
    return made


def test_files_read_back_as_written(files: ClusterFiles) -> None:
    written = Ledger(ledger.VERSION, "ready", "2030-01-01T00:00:00+00:00", samples.plan(3))
    files.write_ledger(written)
    assert files.read_ledger() == written
    files.write_keys(samples.keys(3))
    assert files.read_keys() == samples.keys(3)
    times = (StageTime("boot", "node1", 1.0, 2.0),)
    files.write_timing(times)
    assert files.read_timing() == times


@pytest.fixture(params=["local", "remote", "private"])
def old_files(request: pytest.FixtureRequest, tmp_path: Path) -> ClusterFiles:
    """The folder of a cluster that the version at commit 2b157f7 made."""
    made = ClusterFiles(tmp_path, "lab")
    made.folder.mkdir(parents=True)
    for path in (OLD / request.param).iterdir():
        (made.folder / path.name).write_text(path.read_text())
    return made


def is_part(old: object, new: object) -> bool:
    """True if `new` holds each value of `old` at the same place. New fields are allowed in objects, not in lists."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and is_part(value, new[key]) for key, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(is_part, old, new))
    return type(old) is type(new) and old == new


def test_a_ledger_of_2b157f7_is_read(old_files: ClusterFiles) -> None:
    ledger_read = old_files.read_ledger()
    assert ledger_read is not None
    assert not old_files.is_of_another_version()
    written = json.loads(old_files.ledger.read_text())
    assert is_part(written, json.loads(codec.to_json(ledger_read)))
    assert old_files.read_keys() == samples.keys(len(ledger_read.plan.nodes))
    assert old_files.read_timing() == (StageTime("boot", "node1", 0.25, 41.5), StageTime("check", "", 42.0, 3.125))


def test_the_comparison_of_ledgers_finds_changes() -> None:
    old = {"nodes": [{"name": "node1", "vni": None}], "mtu": 1450}
    assert is_part(old, {"nodes": [{"name": "node1", "vni": None, "group": ""}], "mtu": 1450, "more": 1})
    for new in (
        {"nodes": [{"name": "node1", "vni": 40}], "mtu": 1450},
        {"nodes": [{"name": "node1"}], "mtu": 1450},
        {"nodes": [], "mtu": 1450},
        {"nodes": [{"name": "node1", "vni": None}], "mtu": 1450.0},
        {"nodes": [{"name": "node1", "vni": None}]},
    ):
        assert not is_part(old, new)


def test_the_plans_of_2b157f7_keep_their_meaning() -> None:
    plans = {path.name: codec.from_json((path / "ledger.json").read_text(), Ledger) for path in OLD.iterdir()}
    assert {mode: one.state for mode, one in plans.items()} == {
        "local": "ready", "remote": "creating", "private": "ready",
    }  # fmt: skip
    local, remote, private = (plans[mode].plan for mode in ("local", "remote", "private"))
    assert [str(node.address) for node in local.nodes] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert not local.has_tunnels
    assert not local.is_private
    assert (local.cpu_limit_percent, local.servers[0].processors, local.head.processors) == (0, (), ())
    assert [node.vni for node in remote.nodes] == [40, 41]
    assert remote.server("middle").login == samples.MIDDLE.login
    assert not remote.server("middle").carries_nodes
    assert [str(tunnel.remote) for tunnel in remote.server("localhost").tunnels] == ["192.0.2.11", "192.0.2.11"]
    assert private.is_private
    assert not private.is_gateway_open
    assert private.stores == ("node2", "node3")
    assert private.nodes[1].login_address == IPv4Address("10.0.0.2")
    assert str(private.dhcp_range) == "10.0.0.205-10.0.0.254"
    assert private.image_login is not None


def test_only_the_owner_can_read_secrets(files: ClusterFiles) -> None:
    files.write_keys(samples.keys())
    assert files.keys.stat().st_mode & 0o777 == 0o600
    assert files.identity.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", [(), ("plan",), ("plan", "image"), ("plan", "nodes", 0), ("plan", "servers", 0)])
def test_a_ledger_with_unknown_fields_is_of_another_version(files: ClusterFiles, place: tuple[str | int, ...]) -> None:
    """This version would drop the fields of a newer one when it writes the ledger again."""
    files.write_ledger(Ledger(ledger.VERSION, "ready", "", samples.plan(2)))
    assert not files.is_of_another_version()
    document = inner = json.loads(files.ledger.read_text())
    for key in place:
        inner = inner[key]
    inner["shape"] = {"new": 1}
    files.ledger.write_text(json.dumps(document))
    assert files.read_ledger() is None
    assert files.is_of_another_version()
    assert files.find_owner() == samples.OWNER


@pytest.mark.parametrize(
    "text", ["", "{", '{"version": 1}', '{"version": 99}', "\0", "[" * 100_000, "\xff", "[null]", "5", "null"]
)
def test_a_broken_ledger_reads_as_none(files: ClusterFiles, text: str) -> None:
    files.ledger.write_bytes(text.encode("latin-1"))
    assert files.read_ledger() is None
    assert files.find_owner() == ""
    assert files.is_of_another_version() is text.startswith('{"version"')


@pytest.mark.parametrize(
    ("change", "defect"),
    [
        (lambda plan: plan.update(name="../lab"), "cluster name '../lab' is not a name"),
        (lambda plan: plan.update(name="other"), "name: it is 'other'"),
        (lambda plan: plan.update(owner="me"), "owner: 'me' is not an owner id"),
        (lambda plan: plan.update(timeout_s=float("nan")), "timeout_s: nan is not a time limit"),
        (lambda plan: plan.update(nodes=[]), "nodes: there are 0"),
        (lambda plan: plan["switch"].update(server="red"), "switch: server 'red' is missing"),
        (lambda plan: plan["nodes"][1].update(name="node1"), "a name is there twice"),
        (lambda plan: plan["nodes"][1].update(name="-oProxyCommand=x"), "'-oProxyCommand=x' is not a name"),
        (lambda plan: plan["nodes"][1].update(server="red"), "nodes: node2: server 'red' carries no nodes"),
        (lambda plan: plan["nodes"][1].update(domain="lab./x"), "nodes: node2: domain: the part '/x' is not a name"),
        (lambda plan: plan["nodes"][1].update(port="../../x"), "nodes: node2: an interface has a bad name"),
        (lambda plan: plan["servers"][0].update(storage="x"), "servers: localhost: 'x' is not an absolute path"),
        (lambda plan: plan["servers"][0]["pool"].update(path="/a/../etc"), "'/a/../etc' is not an absolute path"),
        (lambda plan: plan["servers"][0]["network"].update(subnet="192.0.2.1/32"), "192.0.2.1/32 is too small"),
        (lambda plan: plan["servers"][0].update(network=None), "nodes: node1: server localhost has no management"),
        (lambda plan: plan.update(stores=["node9"]), "a storage node is not there"),
        (lambda plan: plan.update(cpu_limit_percent=101), "cpu_limit_percent: 101 is not a share"),
        (lambda plan: plan.update(cpu_limit_percent=-1), "cpu_limit_percent: -1 is not a share"),
        (lambda plan: plan["nodes"][1].update(processors=[0, 1]), "nodes: node2: processors: there are 2, but"),
        (lambda plan: plan["nodes"][1].update(processors=[-1]), "processors: a number is negative"),
        (lambda plan: plan["servers"][0].update(processors=[-1]), "processors: a number is negative"),
    ],
)
def test_a_ledger_with_an_unusable_value_is_broken(
    files: ClusterFiles, change: Callable[[dict[str, Any]], None], defect: str
) -> None:
    document = codec.to_plain(Ledger(ledger.VERSION, "ready", "", samples.plan(2)))
    files.ledger.write_text(json.dumps(document))
    assert files.read_ledger() is not None
    change(document["plan"])
    files.ledger.write_text(json.dumps(document))
    assert files.read_ledger() is None
    assert defect in find_defect(codec.from_json(json.dumps(document), Ledger).plan, "lab")


def test_a_key_without_fields_names_no_owner(files: ClusterFiles) -> None:
    files.write_keys(Keys(KeyPair("", ""), KeyPair("", ""), {}))
    assert files.find_owner() == ""


def test_an_owner_id_that_is_not_text_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "owner").write_bytes(b"\xff\xfe")
    with pytest.raises(VclusterError, match="owner does not contain an owner id"):
        ledger.read_owner(tmp_path)


@pytest.mark.parametrize("text", ["{", json.dumps(codec.to_plain(Keys(KeyPair("\ud800", ""), KeyPair("", ""), {})))])
def test_broken_keys_are_a_clear_error(files: ClusterFiles, text: str) -> None:
    files.keys.write_text(text)
    with pytest.raises(VclusterError, match=r"keys\.json is damaged .* of cluster lab any more$"):
        files.read_keys()


def test_a_missing_timing_file_gives_no_times(files: ClusterFiles) -> None:
    assert files.read_timing() == ()


def test_one_command_at_a_time(files: ClusterFiles) -> None:
    assert not files.is_locked()
    with files.locked():
        assert files.is_locked()
        with pytest.raises(ConflictError, match="another command is changing cluster lab"), files.locked():
            pass
    assert not files.is_locked()


def test_destroy_leaves_nothing(tmp_path: Path) -> None:
    files = ClusterFiles(tmp_path / "state", "lab")
    with files.locked():
        files.write_keys(samples.keys())
        assert ledger.cluster_names(tmp_path / "state") == ("lab",)
        files.destroy()
        files.destroy()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({"VCLUSTER_STATE_DIR": "/x/y"}, "/x/y"),
        (
            {"VCLUSTER_STATE_DIR": "", "XDG_STATE_HOME": "/xdg"},
            "/var/lib/vcluster" if os.geteuid() == 0 else "/xdg/vcluster",
        ),
    ],
)
def test_the_state_folder_follows_the_environment(environment: dict[str, str], root: str) -> None:
    assert ledger.state_root(environment) == Path(root)


@pytest.mark.parametrize("variable", ["VCLUSTER_STATE_DIR", "VCLUSTER_IMAGE_DIR"])
@pytest.mark.parametrize("text", ["/x\n/y", "/x\udcff", "/${HOME}/x", "/x\x1b[2J", "/" + "x" * 256, "/x" * 2000])
def test_a_variable_with_a_folder_that_cannot_be_used(variable: str, text: str) -> None:
    with pytest.raises(RequestError, match=f"^{variable}: the path '/") as caught:
        folder_of({variable: text}, variable)
    assert len(caught.value.message) < 160
    assert caught.value.message.isprintable()


def test_an_empty_folder_is_not_a_cluster(files: ClusterFiles) -> None:
    assert ledger.cluster_names(files.root) == ()
    files.write_keys(samples.keys(1))
    assert ledger.cluster_names(files.root) == ("lab",)


def test_a_command_reports_that_it_waits_for_another_plan(tmp_path: Path) -> None:
    notes: list[str] = []
    report = Reporter((lambda event: notes.append(event.text),))
    with (
        ledger.planning(tmp_path / "state", Deadline(5), report),
        pytest.raises(DeadlineError, match="waiting for another command to plan its cluster"),
        ledger.planning(tmp_path / "state", Deadline(0.3), report),
    ):
        pytest.fail("two commands plan at the same time")
    assert notes == ["waiting for another command that plans a cluster"]
    assert not (tmp_path / "state").exists()


def test_a_command_plans_when_the_other_has_planned(tmp_path: Path) -> None:
    has_lock, may_end = threading.Event(), threading.Event()

    def plan() -> None:
        with ledger.planning(tmp_path / "state", Deadline(10), Reporter()):
            has_lock.set()
            may_end.wait(10)

    other = threading.Thread(target=plan)
    other.start()
    assert has_lock.wait(10)
    threading.Timer(0.3, may_end.set).start()
    with ledger.planning(tmp_path / "state", Deadline(10), Reporter()):
        assert may_end.is_set()
    other.join(10)
    assert not (tmp_path / "state").exists()


def test_a_write_that_fails_leaves_no_draft(files: ClusterFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(VclusterError, match="No space left on device"):
        files.write_ledger(Ledger(ledger.VERSION, "ready", "", samples.plan(1)))
    assert list(files.folder.iterdir()) == []


def test_remove_writes_the_ledger_before_it_removes_a_node(
    files: ClusterFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk it removes none."""
    files.write_ledger(Ledger(ledger.VERSION, "ready", "", samples.plan(3)))
    files.write_keys(samples.keys(3))
    (files.folder / ".ledger.json.new").mkdir()  # so the next write fails
    removed: list[object] = []
    monkeypatch.setattr(scale, "_require_up", lambda *_: None)
    monkeypatch.setattr(scale.teardown, "remove_nodes", lambda *found: removed.append(found))
    context: Any = OpenContext(Fleet({}, {}), files.root)
    with pytest.raises(MissingError, match="cannot write"):
        scale.remove(context, "lab", ["node3"], timeout_s=20)
    assert removed == []


def test_a_switch_that_was_made_by_hand_is_on_a_server_that_the_plan_does_not_have(files: ClusterFiles) -> None:
    plan = samples.shared_plan()
    servers = tuple(server for server in plan.servers if server.name != plan.switch.server)
    assert servers != plan.servers
    files.write_ledger(Ledger(ledger.VERSION, "ready", "", replace(plan, servers=servers)))
    assert files.read_ledger() is not None
