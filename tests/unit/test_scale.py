"""Add and remove nodes: the order of the steps, the ledger meanwhile, and the rollback."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import samples
from vcluster.agent.client import LocalAgent
from vcluster.cli import main
from vcluster.commands.clusters import lifecycle, scale
from vcluster.commands.steps import admission, setup_script
from vcluster.commands.steps.deployment import Deployment
from vcluster.errors import ConflictError, RequestError, SeveralErrors, VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.fleet.servers import Server, ServerRequest
from vcluster.images.store import ImageStore
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import LOCAL
from vcluster.model.status import PowerState
from vcluster.planning.resize import shrink
from vcluster.resources import interfaces, rules
from vcluster.stages.provision import Job
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

PLAN = samples.plan(3)
READY = Ledger(VERSION, "ready", "then", PLAN)


class Connector:
    """Opens this machine with an agent that has no operations."""

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        yield Server(request.name, samples.OWNER, request.storage, LocalAgent({}))


@dataclass
class World:
    """A cluster that records steps, each with the state and size in the ledger; `failing` maps steps to errors."""

    files: ClusterFiles
    states: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    failing: dict[str, BaseException] = field(default_factory=dict)
    proven: list[set[str]] = field(default_factory=list)

    def take(self, step: str) -> None:
        ledger = self.files.read_ledger()
        assert ledger
        nodes = [node.name for node in ledger.plan.nodes]
        assert set(nodes) <= set(self.files.read_keys().hosts), "a node without keys"
        self.steps.append(f"{step}: {ledger.state} {len(nodes)}")
        if error := self.failing.pop(step, None):
            raise error

    def ends(self, state: str, *names: str) -> None:
        """In the end the ledger, the keys and the files of ssh agree."""
        ledger = self.files.read_ledger()
        assert ledger
        assert (ledger.state, ledger.created) == (state, "then")
        assert [node.name for node in ledger.plan.nodes] == list(names)
        assert sorted(self.files.read_keys().hosts) == sorted(names)
        for text in (self.files.ssh_config.read_text(), self.files.known_hosts.read_text()):
            assert [name for name in ("node1", "node2", "node3", "node4", "node5") if name in text] == list(names)
        assert not self.files.is_locked()


class Lifecycle:
    """Records what is done with each node."""

    def __init__(self, world: World, cluster: Deployment) -> None:
        self._world, self._plan = world, cluster.plan

    def all_nodes(self, work: Callable[[Node], str], stack: ExitStack) -> list[str]:
        assert stack
        done = [work(node) for node in self._plan.nodes]
        self._world.take(", ".join(done))
        return done

    def require_ready(self, nodes: list[str], *, proven: set[str]) -> None:
        assert nodes
        self._world.proven.append(proven)
        self._world.take("require_ready")

    def mount_all(self, nodes: list[str]) -> None:
        assert nodes

    def sessions(self, nodes: list[str], stack: ExitStack) -> dict[str, object]:
        assert stack
        return dict.fromkeys(nodes, object())

    def configure_via_serial(self, node: Node) -> str:
        return f"configure {node.name}"

    def bring_up_during_add(self, node: Node) -> str:
        self._world.take("bring up")
        return f"create {node.name}"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path, Connector(), ImageStore(tmp_path / "images"), Reporter())  # type: ignore[arg-type]


@pytest.fixture
def world(context: Context, monkeypatch: pytest.MonkeyPatch) -> World:
    """A cluster of three nodes that are up; no node and no network is touched."""
    world = World(context.files("lab"))
    world.files.folder.mkdir(parents=True)
    world.files.write_ledger(READY)
    world.files.write_keys(samples.keys(3))

    def observe(_: object, files: ClusterFiles) -> SimpleNamespace:
        ledger = files.read_ledger()
        assert ledger
        names = [node.name for node in ledger.plan.nodes]
        states = [PowerState(world.states.get(name, "running")) for name in names]
        nodes = [SimpleNamespace(name=name, power=state) for name, state in zip(names, states, strict=True)]
        return SimpleNamespace(name="lab", state=ledger.state, nodes=nodes)

    def step(name: str) -> Callable[..., None]:
        return lambda *_, **__: world.take(name)

    def remove_nodes(_: object, __: object, before: Plan, after: Plan) -> None:
        world.take("remove " + ",".join(node.name for node in before.nodes if node not in after.nodes))

    monkeypatch.setattr(scale, "observe_status", observe)
    monkeypatch.setattr(scale.servers, "require_rights", lambda _: None)
    monkeypatch.setattr(scale.observation, "observe", lambda *_, **__: {LOCAL.name: samples.ROOMY})
    monkeypatch.setattr(scale.teardown, "remove_nodes", remove_nodes)
    monkeypatch.setattr(scale, "NodeLifecycle", lambda cluster, _, **__: Lifecycle(world, cluster))
    monkeypatch.setattr(admission, "refuse_foreign", step("refuse_foreign"))
    monkeypatch.setattr(admission, "refuse_damaged_image", step("image"))
    monkeypatch.setattr(admission, "report_obstacles", step("obstacles"))
    for name in ("deliver_image", "create_networks"):
        monkeypatch.setattr(Deployment, name, step(name))
    return world


# Adding


@pytest.mark.parametrize(("state", "proven"), [("ready", {"node1", "node2", "node3"}), ("creating", set())])
def test_only_the_logins_of_a_ready_cluster_count_as_proven(
    context: Context, world: World, state: str, proven: set[str]
) -> None:
    """The logins of nodes that a killed command left were never tried."""
    world.files.write_ledger(replace(READY, state=state))
    scale.add(context, "lab", timeout_s=5)
    world.files.write_ledger(replace(READY, state=state))
    scale.remove(context, "lab", ["node3"], timeout_s=5)
    assert world.proven == [proven, proven]


def test_the_steps_of_add(context: Context, world: World) -> None:
    scale.add(context, "lab", number=2, timeout_s=5)
    assert world.steps == [
        "refuse_foreign: ready 3",
        "image: ready 3",
        "obstacles: ready 3",
        "deliver_image: creating 5",
        "create_networks: creating 5",
        "bring up: creating 5",
        "bring up: creating 5",
        "configure node1, configure node2, configure node3, create node4, create node5: creating 5",
        "require_ready: creating 5",
    ]
    world.ends("ready", "node1", "node2", "node3", "node4", "node5")
    assert world.files.read_keys().hosts["node3"] == samples.keys(3).hosts["node3"]


@pytest.fixture
def job(tmp_path: Path, world: World) -> Job:
    """A script and a payload that were kept by a create, and then deleted."""
    folder, script = tmp_path / "given" / "software", tmp_path / "given" / "set up.sh"
    (folder / "bin").mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    (folder / "bin" / "tool").write_text("tool")
    (folder / "bin" / "tool").chmod(0o700)
    (folder / "link").symlink_to("bin/tool")
    given = Job.read(script, folder)
    setup_script.keep(world.files, given)
    shutil.rmtree(tmp_path / "given")
    return given


def record_setup(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that run, which are also steps with the names of their nodes."""
    jobs: list[Job] = []

    def run(_: object, job: Job, __: object, *, nodes: list[Node], hint: str) -> None:
        assert hint == "to add nodes without the script: vcluster add --no-provision"
        jobs.append(job)
        world.take(f"setup {' '.join(node.name for node in nodes)}")

    monkeypatch.setattr(setup_script, "run", run)
    return jobs


def test_the_setup_script_of_the_create_runs_on_new_nodes(
    context: Context, world: World, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = record_setup(world, monkeypatch)
    scale.add(context, "lab", number=2, timeout_s=5)
    assert world.steps[-2:] == ["require_ready: creating 5", "setup node4 node5: creating 5"]
    assert job.payload and jobs[0].payload
    assert (jobs[0].name, jobs[0].text, jobs[0].payload.digest) == (job.name, job.text, job.payload.digest)
    world.ends("ready", "node1", "node2", "node3", "node4", "node5")


@pytest.mark.usefixtures("job")
def test_a_failed_setup_removes_the_new_nodes(context: Context, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record_setup(world, monkeypatch)
    world.failing["setup node4"] = VclusterError("set up.sh failed on node4")
    with pytest.raises(VclusterError, match="failed on node4"):
        scale.add(context, "lab", timeout_s=5)
    world.ends("ready", "node1", "node2", "node3")
    world.steps.clear()
    scale.add(context, "lab", runs_setup=False, timeout_s=5)
    scale.remove(context, "lab", ["node4"], timeout_s=5)
    assert not any(step.startswith("setup") for step in world.steps)


@pytest.mark.parametrize("place", [".", "..", "link", "software/.."])
def test_a_payload_is_kept_from_each_path(tmp_path: Path, world: World, place: str) -> None:
    here = tmp_path / "given" / "here"
    (here / "software").mkdir(parents=True)
    (here / "link").symlink_to("software")
    for folder in (here.parent, here, here / "software"):
        (folder / "tool").write_text(folder.name)
    (tmp_path / "setup").write_text("#!/bin/sh\n")
    given = Job.read(tmp_path / "setup", here / place)
    setup_script.keep(world.files, given)
    kept = setup_script.kept(world.files)
    assert kept and kept.payload and given.payload
    assert kept.payload.digest == given.payload.digest


def test_a_payload_of_one_file_is_kept(tmp_path: Path, world: World) -> None:
    script, payload = tmp_path / "setup", tmp_path / "letter"
    script.write_text("#!/bin/sh\n")
    payload.write_text("hello")
    given = Job.read(script, payload)
    setup_script.keep(world.files, given)
    kept = setup_script.kept(world.files)
    assert kept and kept.payload and given.payload
    assert kept.payload.digest == given.payload.digest


@pytest.mark.parametrize(
    "error", [VclusterError("it failed"), ConflictError("in the way"), KeyboardInterrupt(), RuntimeError("a mistake")]
)
@pytest.mark.parametrize("where", ["deliver_image", "create_networks", "bring up", "require_ready"])
def test_a_failed_add_is_rolled_back(context: Context, world: World, where: str, error: BaseException) -> None:
    world.failing[where] = error
    with pytest.raises(type(error)) as raised:
        scale.add(context, "lab", number=1, timeout_s=5)
    assert raised.value is error
    assert world.steps[-2:] == [
        "remove node4: creating 4",
        "configure node1, configure node2, configure node3: creating 3",
    ]
    world.ends("ready", "node1", "node2", "node3")


def test_a_failed_rollback_is_reported_and_in_the_ledger(context: Context, world: World) -> None:
    world.failing |= {"require_ready": VclusterError("it failed"), "remove node4": VclusterError("red is down")}
    with pytest.raises(SeveralErrors) as raised:
        scale.add(context, "lab", timeout_s=5)
    assert [(one.message, one.hint) for one in raised.value.errors] == [
        ("it failed", None),
        ("cluster lab is not restored: red is down", "vcluster repair lab"),
    ]
    ledger = world.files.read_ledger()
    assert ledger
    assert (ledger.state, len(ledger.plan.nodes)) == ("creating", 4)
    scale.remove(context, "lab", ["node4"], timeout_s=5)
    world.ends("ready", "node1", "node2", "node3")


def test_nodes_that_the_rollback_did_not_restore_are_for_repair(context: Context, world: World) -> None:
    world.failing["configure node1, configure node2, configure node3"] = VclusterError("node2 is silent")
    world.failing["create_networks"] = KeyboardInterrupt()
    with pytest.raises(VclusterError, match="cluster lab is not restored: node2 is silent"):
        scale.add(context, "lab", timeout_s=5)
    world.ends("creating", "node1", "node2", "node3")


@pytest.mark.parametrize(
    ("states", "message", "hint"),
    [
        ({"node2": "stopped", "node3": "stopped"}, r"not running: node\[2-3\]", "vcluster start lab"),
        (
            {"node2": "stopped", "node3": "missing"},
            "nodes of cluster lab are missing: node3",
            "vcluster repair lab",
        ),
    ],
)
def test_add_needs_all_nodes_up(
    context: Context, world: World, states: dict[str, str], message: str, hint: str
) -> None:
    world.states = states
    with pytest.raises(ConflictError, match=message) as raised:
        scale.add(context, "lab", timeout_s=5)
    assert str(raised.value.hint).startswith(hint)
    assert world.steps == []
    assert world.files.read_ledger() == READY


def test_the_lock_of_another_command_is_respected(context: Context, world: World) -> None:
    with world.files.locked():
        for work in (
            lambda: scale.add(context, "lab", timeout_s=5),
            lambda: scale.remove(context, "lab", ["node2"], timeout_s=5),
        ):
            with pytest.raises(ConflictError, match="is changing cluster lab"):
                work()
    assert world.steps == []


# Removing


def test_the_steps_of_remove(context: Context, world: World) -> None:
    world.states = {"node3": "missing"}  # the state of a removed node does not matter
    scale.remove(context, "lab", ["node3"], timeout_s=5)
    assert world.steps == [
        "remove node3: ready 3",
        "configure node1, configure node2: creating 2",
        "require_ready: creating 2",
    ]
    world.ends("ready", "node1", "node2")


def test_a_failed_remove_can_be_repeated(context: Context, world: World) -> None:
    world.failing["remove node2"] = VclusterError("left")
    with pytest.raises(VclusterError, match="left"):
        scale.remove(context, "lab", ["node2"], timeout_s=5)
    assert world.files.read_ledger() == READY
    scale.remove(context, "lab", ["node2"], timeout_s=5)
    world.ends("ready", "node1", "node3")


def test_remove_needs_the_other_nodes_up(context: Context, world: World) -> None:
    world.states = {"node2": "stopped"}
    with pytest.raises(ConflictError, match="not running: node2"):
        scale.remove(context, "lab", ["node3"], timeout_s=5)
    world.states = {"node2": "missing", "node3": "missing"}
    with pytest.raises(ConflictError, match="nodes of cluster lab are missing: node2") as raised:
        scale.remove(context, "lab", ["node3"], timeout_s=5)
    assert raised.value.hint == "vcluster repair lab"
    with pytest.raises(RequestError, match="is the head"):
        scale.remove(context, "lab", ["node1"], timeout_s=5)
    assert world.steps == []


def test_interfaces_and_rules_of_the_nodes_that_stay() -> None:
    before = samples.shared_plan(samples.RED, samples.BLUE, count=3)
    asked: dict[str, list[tuple[str, object]]] = {}
    for names in (["node3"], ["node2"], ["node2", "node3"]):
        after = shrink(before, names)
        for planned in before.servers:
            calls = asked.setdefault(f"{planned.name} {' '.join(names)}", [])
            server = Server(planned.name, samples.OWNER, planned.storage, LocalAgent(_operations(calls)))
            interfaces.reduce(server, before, after)
            rules.reduce(server, before, after)
    assert asked == {
        "red node3": [("guard", [40, 41])],  # its nodes may reach blue, which has no tunnel any more
        "blue node3": [("destroy_interfaces", ["vb-lab-3", "vx-lab-3"]), ("guard", [])],
        "middle node3": [("destroy_interfaces", ["vx-lab-3"]), ("guard", [40, 41])],
        "red node2": [("destroy_interfaces", ["vb-lab-2", "vx-lab-2"]), ("guard", [40])],
        "blue node2": [("guard", [42])],  # the address of node2 is free
        "middle node2": [("destroy_interfaces", ["vx-lab-2"]), ("guard", [40, 42])],
        "red node2 node3": [("destroy_interfaces", ["vb-lab-2", "vx-lab-2"]), ("guard", [40])],
        "blue node2 node3": [("destroy_interfaces", ["vb-lab-3", "vx-lab-3"]), ("guard", [])],
        "middle node2 node3": [("destroy_interfaces", ["vx-lab-2", "vx-lab-3"]), ("guard", [40])],
    }


def _operations(calls: list[tuple[str, object]]) -> dict[str, Callable[..., object]]:
    """Operations of an agent that record their calls."""

    def destroy_interfaces(alias: str, names: list[str]) -> None:
        assert alias == f"vcluster:lab:{samples.OWNER}"
        calls.append(("destroy_interfaces", names))

    def guard(table: str, tunnels: list[tuple[int]], **_: object) -> list[object]:
        assert table == f"vcluster-lab-{samples.OWNER}"
        calls.append(("guard", [vni for vni, *_ in tunnels]))
        return []

    return {
        "destroy_interfaces": destroy_interfaces,
        "guard": guard,
    }


# Repair after a killed command


@pytest.mark.parametrize(
    ("state", "absent", "hint"),
    [
        ("ready", ("node3",), "vcluster remove node3 --name lab, then vcluster add --names node3 --name lab"),
        ("creating", ("node1", "node3"), "vcluster clear lab, and create it again"),
        (
            "creating",
            ("node2", "node3"),
            "vcluster remove node[2-3] --name lab, then vcluster add --names node[2-3] --name lab",
        ),
    ],
)
def test_deleted_nodes_are_not_replaced(state: str, absent: tuple[str, ...], hint: str) -> None:
    ledger = Ledger(VERSION, state, "", PLAN, unfinished=("node1", "node3") if state == "creating" else ())
    cluster = Deployment(None, None, PLAN, samples.keys(3), Deadline(5))  # type: ignore[arg-type]
    with pytest.raises(VclusterError, match=f"^missing: {', '.join(absent)}$") as raised:
        lifecycle._discard_unfinished(cluster, ledger, [PLAN.node(name) for name in absent])
    assert raised.value.hint == hint


def test_unfinished_nodes_are_created_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    fleet = SimpleNamespace(each=lambda work, **_: work("server"))
    for kind in ("domains", "profiles", "volumes"):
        reduce = lambda *plans, kind=kind: calls.append((kind, *(len(plan.nodes) for plan in plans[1:])))  # noqa: E731
        monkeypatch.setattr(getattr(lifecycle, kind), "reduce", reduce)
    monkeypatch.setattr(Deployment, "deliver_image", lambda _: calls.append("image"))
    context: Any = SimpleNamespace(files=lambda name: ClusterFiles(tmp_path, name))
    context.files("lab").folder.mkdir(parents=True)
    cluster = Deployment(context, fleet, PLAN, samples.keys(3), Deadline(5))  # type: ignore[arg-type]
    ledger = Ledger(VERSION, "creating", "", PLAN, unfinished=("node2", "node3"))
    lifecycle._discard_unfinished(cluster, ledger, PLAN.nodes[1:])
    assert context.files("lab").read_ledger() == ledger
    assert calls == [("domains", 3, 1), ("profiles", 3, 1), ("volumes", 3, 1), "image"]


# Requests that are wrong as written


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["add", "0"], 2, "0 is not possible (1 or more)"),
        (["add", "many"], 2, "'many' is not a number"),
        (["add", "5000"], 2, "5000 more nodes are too many"),
        (["add", "2", "--names", "a"], 2, "--names has 1 names, but N is 2"),
        (["add", "--names", ""], 2, "gives no name"),
        (["add", "--names", "a["], 2, "is not a nodeset"),
        (["add", "--names", "a,a"], 2, "'a' is given twice"),
        (["add", "--names", "node[3-4]"], 2, "cluster lab has node3 already"),
        (["add", "--names", "A"], 2, "is not a name"),
        (["add", "--timeout", "0"], 2, "--timeout"),
        (["add", "--name", "none"], 2, "cluster none does not exist"),
        (["remove"], 2, "Missing argument"),
        (["remove", "node1"], 2, "node1 is the head"),
        (["remove", "node[2-3]", "node1", "-y"], 2, "node1 is the head"),
        (["remove", "node9"], 2, "cluster lab has no node 'node9'"),
        (["remove", "node2", "node2"], 2, "'node2' is given twice"),
        (["remove", "node["], 2, "is not a nodeset"),
        (["remove", "node2", "--name", "none"], 2, "cluster none does not exist"),
        (["remove", "node[2-3]"], 4, "cannot ask whether to delete the disks of node[2-3]: no terminal (-y"),
    ],
)
def test_a_wrong_request_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    exit_code: int,
    message: str,
) -> None:
    ClusterFiles(tmp_path, "lab").folder.mkdir(parents=True)
    ClusterFiles(tmp_path, "lab").write_ledger(READY)
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments])
    assert main._run() == exit_code
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert len(output.err.strip().splitlines()) == 1
    assert ClusterFiles(tmp_path, "lab").read_ledger() == READY


def test_the_output_of_add_and_remove(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], context: Context, world: World
) -> None:
    from vcluster.cli import common
    from vcluster.cli.output import status_report

    monkeypatch.setattr(common, "context", lambda *_: context)
    monkeypatch.setattr(status_report, "document", lambda found: {"name": found.name, "size": len(found.nodes)})
    monkeypatch.setattr(status_report, "text", lambda found, _: f"{found['size']} nodes")
    for arguments, expected in (
        (["add", "2"], "lab: added node[4-5]\n5 nodes\n"),
        (["remove", "node[2,4]", "-y"], "lab: removed node[2,4]\n3 nodes\n"),
        (["add", "--names", "gpu"], "lab: added gpu\n4 nodes\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["vcluster", *arguments])
        assert main._run() == 0
        assert capsys.readouterr().out == expected
    assert world.files.read_ledger() is not None
