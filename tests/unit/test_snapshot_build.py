"""Snapshots on servers: found, waited for, discarded, and built once, also with several commands and after errors."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.agent.client import LocalAgent
from vcluster.cli import main
from vcluster.cli.output.progress import ProgressLines
from vcluster.commands.steps import snapshot_build
from vcluster.commands.steps.snapshot_build import domain_of
from vcluster.errors import DeadlineError, MissingError, VclusterError
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Plan
from vcluster.model.spec import PRIVATE
from vcluster.snapshots.memory_access import READ_ONLY, WRITABLE
from vcluster.snapshots.template import FEATURE, REFUSED, Template, snapshots_folder, template_of
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

IMAGE = replace(samples.DIRECT, features=(*samples.DIRECT.features, FEATURE))
PLAN = samples.plan(3, image=IMAGE)
THERE = {"is_there": True, "is_busy": False, "refused": "", "wrong": "", "xml": "<domain/>", "ram": "/kept/ram",
         "state": "/kept/state"}  # fmt: skip
NOTHING = {**THERE, "is_there": False}
BUSY = {**NOTHING, "is_busy": True}
WRONG = {**THERE, "wrong": "/kept/ram has changed"}
MINE, DONE, FOREIGN = (
    {"folder": folder, "is_there": is_there, "is_busy": is_busy}
    for folder, is_there, is_busy in (("/kept/.unfinished", False, False), ("", True, False), ("", False, True))
)


class Libvirt:
    """Records calls; saving a domain can fail."""

    def __init__(self, asked: list[str]) -> None:
        self.asked = asked
        self.failure: Exception | None = None

        self.qemu = "7.2.5"

    def versions(self) -> dict[str, str]:
        return {"libvirt": "9.0.0", "qemu": self.qemu}

    def qemu_user(self) -> tuple[int, int]:
        return 64055, 64055

    def xml_of(self, _: str) -> str:
        return "<domain/>"

    def taps_of(self, _: str) -> tuple[str, ...]:
        return ("vnet0",)

    def stop_domain(self, _: str) -> None:
        self.asked.append("stop")

    def start_transient_domain(self, _: str) -> None:
        self.asked.append("run")

    def open_channel(self, *_: str) -> Any:
        self.asked.append("listen")
        return io.StringIO()  # it can be closed

    def save_devices(self, _: str, lend: Callable[[dict[str, Any]], None], __: Deadline) -> None:
        lend({})
        if self.failure:
            raise self.failure
        self.asked.append("save")


class World:
    """A server whose agent gives prepared answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.snapshots: list[dict[str, Any]] = []
        self.obstacle = ""
        self.profiles: list[dict[str, str]] = []
        self.removed: list[str] = []
        self.answers: dict[str, list[Any]] = {}
        self.libvirt = Libvirt(self.asked)
        self.printed = io.StringIO()
        self.report = Reporter((ProgressLines(self.printed),))
        self.deadline = Deadline(60)
        names = ("check_snapshot", "drop_snapshot", "begin_snapshot", "finish_snapshot", "prepare_template",
                 "lend_file", "dig_holes", "write_profile", "prepare_domain", "lower_priority", "permit_snapshot",
                 "sweep_snapshots", "remove_traces")  # fmt: skip
        here = LocalAgent(
            {name: self._operation(name) for name in names}
            | {
                "processor": lambda: "one",
                "list_snapshots": lambda **_: self.snapshots,
                "clone_obstacle": lambda root: self.obstacle if root == "/storage/snapshots" else root,
                "profiles": lambda: self.profiles,
                "remove_profiles": self._remove_profiles,
            }
        )
        self.server = Server("localhost", samples.OWNER, Path("/storage"), here, libvirt=self.libvirt)  # type: ignore[arg-type]
        self.fleet = Fleet({"localhost": self.server}, {})
        monkeypatch.setattr(snapshot_build, "BUSY_POLL_S", 0.001)
        monkeypatch.setattr(snapshot_build, "_wait_until_idle", lambda *_: None)

    def _remove_profiles(self, uuids: list[str]) -> None:
        self.removed += uuids

    def _operation(self, name: str) -> Callable[..., Any]:
        def work(**_: Any) -> Any:
            self.asked.append(name)
            answers = self.answers.get(name, [None])
            return answers.pop(0) if len(answers) > 1 else answers[0]

        return work

    def find(self, plan: Plan = PLAN) -> Any:
        return snapshot_build.find(self.fleet, plan, deadline=self.deadline, report=self.report)

    def make(self, plan: Plan = PLAN, **how: bool) -> tuple[str, ...]:
        return snapshot_build.make(self.fleet, plan, deadline=self.deadline, report=self.report, **how)

    @property
    def lines(self) -> list[str]:
        """The printed lines without the seconds."""
        return [line.split(" s  ", 1)[1] for line in self.printed.getvalue().splitlines()]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def templates(plan: Plan) -> list[Template]:
    return list(dict.fromkeys(template_of(plan, node) for node in plan.nodes))


# Find


def test_an_existing_snapshot_is_found(world: World) -> None:
    world.answers["check_snapshot"] = [THERE]
    found = world.find()
    ((place, snapshot),) = found.items()
    assert place == ("localhost", *templates(PLAN))
    assert (snapshot.root, snapshot.xml) == ("/storage/snapshots", "<domain/>")
    assert (snapshot.ram, snapshot.state, snapshot.access) == (Path("/kept/ram"), Path("/kept/state"), WRITABLE)
    assert not snapshot_build.is_missing(PLAN, found)
    assert world.lines == []


def test_with_a_newer_qemu_clones_may_only_read_it(world: World) -> None:
    world.answers["check_snapshot"] = [THERE]
    world.libvirt.qemu = "10.0.13"
    (snapshot,) = world.find().values()
    assert snapshot.access == READ_ONLY


def test_with_an_obstacle_nodes_boot_and_no_template_is_booted(world: World) -> None:
    world.obstacle = "clones were never tried under SELinux"
    assert list(world.find().values()) == [REFUSED]
    assert world.lines == ["nodes boot: clones were never tried under SELinux"]
    with pytest.raises(MissingError, match="no snapshot can be made: clones were never tried"):
        world.make()
    assert world.asked == []


def test_an_obstacle_is_reported_once_for_all_templates_of_a_server(world: World) -> None:
    world.obstacle = "missing programs: virsh"
    found = world.find(samples.plan(3, image=IMAGE, layout=PRIVATE))
    assert list(found.values()) == [REFUSED, REFUSED]
    assert world.lines == ["nodes boot: missing programs: virsh"]


def test_a_qemu_that_is_too_old_is_found_before_a_template_boots(world: World) -> None:
    world.libvirt.qemu = "6.2.0"
    assert list(world.find().values()) == [REFUSED]
    assert world.lines == ["nodes boot: clones need qemu 7.2 or newer, not 6.2.0"]
    with pytest.raises(MissingError, match="no snapshot can be made: clones need qemu"):
        world.make()
    assert world.asked == []


def test_a_snapshot_of_another_qemu_is_reported_and_nodes_boot(world: World) -> None:
    world.answers["check_snapshot"] = [NOTHING]
    template = template_of(PLAN, PLAN.head)
    _, key, conditions = snapshot_build._identify(world.server, template)
    other = {"key": "other", "circumstances": conditions | {"memory": "1 MiB"}}
    world.snapshots = [other, {"key": key, "circumstances": conditions | {"qemu": "7.2.4"}}]
    assert world.find() == {}
    assert world.lines == [f"nodes boot, because snapshot {key} was made with qemu 7.2.4, not 7.2.5"]


def test_a_missing_snapshot(world: World) -> None:
    world.answers["check_snapshot"] = [NOTHING]
    assert world.find() == {}
    assert snapshot_build.is_missing(PLAN, {})
    assert world.lines == []


def test_the_wait_for_another_command_is_reported_once(world: World) -> None:
    world.answers["check_snapshot"] = [BUSY, BUSY, BUSY, THERE]
    assert len(world.find()) == 1
    assert world.lines == ["waiting for the snapshot that another command builds"]


def test_another_command_fails_to_build_it(world: World) -> None:
    world.answers["check_snapshot"] = [BUSY, NOTHING]
    assert world.find() == {}


def test_the_wait_ends_at_the_deadline(world: World) -> None:
    world.answers["check_snapshot"] = [BUSY]
    world.deadline = Deadline(0.5)
    with pytest.raises(DeadlineError, match=r"the snapshot that another command builds|the operation check_snapshot"):
        world.find()


def test_a_wrong_snapshot_is_discarded_and_reported(world: World) -> None:
    world.answers["check_snapshot"] = [WRONG]
    assert world.find() == {}
    assert world.asked == ["check_snapshot", "drop_snapshot"]
    (line,) = world.lines
    assert line.startswith("snapshot 111111111111-")
    assert line.endswith(" is deleted: /kept/ram has changed")


def test_a_refused_snapshot_is_reported_and_not_built_again(world: World) -> None:
    world.answers["check_snapshot"] = [{**NOTHING, "refused": "may not open the file"}]
    found = world.find()
    assert list(found.values()) == [REFUSED]
    assert not snapshot_build.is_missing(PLAN, found)
    assert world.asked == ["check_snapshot"]
    again = "(to try again: vcluster image warm)"
    assert world.lines == [f"nodes boot, because QEMU refused clones before: may not open the file {again}"]


def test_head_and_workers_of_a_private_cluster_have_different_templates(world: World) -> None:
    plan = samples.plan(3, image=IMAGE, layout=PRIVATE)
    world.answers["check_snapshot"] = [THERE, NOTHING]
    found = world.find(plan)
    assert len(templates(plan)) == 2
    assert len(found) == 1
    assert snapshot_build.is_missing(plan, found)


@pytest.mark.parametrize("image", [samples.DIRECT, samples.ORDINARY])
def test_no_snapshot_is_searched_for_an_image_without_clones(world: World, image: Any) -> None:
    plan = samples.plan(2, image=image)
    assert world.find(plan) == {}
    assert not snapshot_build.is_missing(plan, {})
    assert world.asked == []


# Keys


def key(world: World) -> str:
    """The key of the snapshot that a clone of the plan's head needs."""
    return snapshot_build._identify(world.server, template_of(PLAN, PLAN.head))[1]


@pytest.mark.parametrize("part", ["template_xml", "template_actions", "template_seed"])
def test_a_change_of_what_a_template_is_made_from_gives_another_key(
    world: World, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def changed(*arguments: Any, **how: Any) -> Any:
        found = original(*arguments, **how)
        return {**found, "more": "text"} if isinstance(found, dict) else found + found[:1]

    before, original = key(world), getattr(snapshot_build, part)
    monkeypatch.setattr(snapshot_build, part, changed)
    assert key(world) != before


def test_a_key_does_not_depend_on_names_keys_and_folders(world: World) -> None:
    before = key(world)
    world.server = replace(world.server, owner="another", storage=Path("/srv"))
    assert key(world) == before


# Build


def test_one_snapshot_is_built_for_all_nodes(world: World) -> None:
    world.answers["begin_snapshot"] = [MINE]
    assert world.make() == ("localhost",)
    known = [
        "begin_snapshot",
        "prepare_template",
        "stop",
        "write_profile",
        "run",
        "listen",
        "lend_file",
        "save",
        "stop",
        "dig_holes",
        "finish_snapshot",
    ]
    assert [asked for asked in world.asked if asked in known] == known


def test_an_existing_snapshot_is_not_built_again(world: World) -> None:
    world.answers["begin_snapshot"] = [FOREIGN, FOREIGN, DONE]
    assert world.make() == ()
    assert set(world.asked) == {"permit_snapshot", "begin_snapshot"}
    assert world.lines == ["waiting for the snapshot that another command builds"]


@pytest.mark.parametrize("low_priority", [False, True])
def test_the_priority_of_a_build(world: World, low_priority: bool) -> None:
    world.answers["begin_snapshot"] = [MINE]
    world.make(low_priority=low_priority)
    assert ("lower_priority" in world.asked) == low_priority


@pytest.mark.parametrize("failure", [VclusterError("saving: no space"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing(world: World, failure: Exception) -> None:
    world.answers["begin_snapshot"] = [MINE]
    world.libvirt.failure = failure
    with pytest.raises(type(failure)):
        world.make()
    end = [asked for asked in world.asked if asked in ("stop", "drop_snapshot", "finish_snapshot")]
    assert end == ["stop", "stop", "drop_snapshot"]


@pytest.mark.parametrize("removed", [["b"], []], ids=["with its snapshot", "of a command killed later"])
def test_the_profile_of_a_template_that_nobody_makes_is_removed(world: World, removed: list[str]) -> None:
    root = str(snapshots_folder(world.server.storage))
    domains = {
        "made now": domain_of(root, "a"),
        "left": domain_of(root, "b"),
        "in another folder": domain_of("/elsewhere", "b"),
        "of a node": "lab.node1",
    }
    world.profiles = [
        {"uuid": uuid, "domain": domain, "by": samples.OWNER, "cluster": "lab" if domain == "lab.node1" else ""}
        for uuid, domain in domains.items()
    ]
    world.answers["sweep_snapshots"] = [{"removed": removed, "in_use": ["a"]}]
    snapshot_build.remove_unfinished(world.server)
    assert world.removed == ["left"]


def test_the_background_build_gets_no_settings_of_nodes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`image warm` refuses settings of nodes together with --name; it needs passwords and folders."""
    for name in ("VCLUSTER_MEMORY", "VCLUSTER_NAME", "VCLUSTER_TIMEOUT", "VCLUSTER_STATE_DIR", "SECRET"):
        monkeypatch.setenv(name, "1")
    begun: list[tuple[list[str], dict[str, Any]]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda argv, **how: begun.append((argv, how)))
    snapshot_build.start_in_background("lab")
    ((argv, how),) = begun
    assert argv[-5:] == ["image", "warm", "--name", "lab", "--gently"]
    assert {"VCLUSTER_STATE_DIR", "SECRET", "PATH"} <= set(how["env"])
    assert {"VCLUSTER_MEMORY", "VCLUSTER_NAME", "VCLUSTER_TIMEOUT"}.isdisjoint(how["env"])


def test_an_image_without_clones_is_refused(world: World) -> None:
    with pytest.raises(MissingError, match="image debian12 does not support clones"):
        world.make(samples.plan(2, image=samples.DIRECT))
    assert world.asked == []


@pytest.mark.parametrize(
    ("environment", "arguments", "asked"),
    [
        ({}, ["--memory", "1024"], "1024"),
        ({}, ["--name", "lab"], "lab"),
        ({"VCLUSTER_MEMORY": "1024", "VCLUSTER_TIMEOUT": "9"}, ["--name", "lab"], "lab"),
        ({"VCLUSTER_NAME": "lab"}, ["--memory", "1024"], "1024"),
        ({"VCLUSTER_NAME": "lab", "VCLUSTER_MEMORY": "1024"}, [], "lab"),
        ({}, ["--name", "lab", "--memory", "1024"], "--name cannot be used together with options that describe nodes"),
    ],
)
def test_arguments_override_the_environment(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    arguments: list[str],
    asked: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(snapshot_build, "build_for_cluster", lambda _, name, **__: [name])
    monkeypatch.setattr(snapshot_build, "build_for_spec", lambda _, spec, **__: [str(spec.memory_mib)])
    monkeypatch.setattr(sys, "argv", ["vcluster", "image", "warm", *arguments])
    exit_code = main._run()
    output = capsys.readouterr()
    if asked.startswith("--"):
        assert exit_code == 2
        assert asked in output.err
    else:
        assert (exit_code, output.out) == (0, f"snapshot stored on {asked}\n")
