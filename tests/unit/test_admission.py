"""The checks before the first effect: `create` and `create --plan` make the same ones."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import samples
from vcluster.agent.client import LocalAgent
from vcluster.cli import common, main
from vcluster.cli.output import plan_report
from vcluster.cli.output.progress import ProgressLines
from vcluster.commands.clusters import teardown
from vcluster.commands.clusters.create import create
from vcluster.commands.steps import admission, setup_script
from vcluster.commands.steps.deployment import Deployment
from vcluster.errors import ConflictError, DeadlineError, MissingError, VclusterError
from vcluster.fleet import ledger
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import VERSION, Ledger
from vcluster.fleet.servers import Fleet, Server, ServerRequest
from vcluster.model.spec import LOCAL, StorageNode
from vcluster.planning.placement import overcommitments
from vcluster.resources import domains, server_keys
from vcluster.resources.owned import OwnedItem
from vcluster.stages.provision import Job
from vcluster.util.events import Reporter

GIB = 1024


class TrialServer:
    """A server whose libvirt starts domains, or fails to."""

    def __init__(self, name: str, session: object, failure: VclusterError | None = None) -> None:
        self.name, self.session, self.failure = name, session, failure
        self.hypervisor = self
        self.calls: list[str] = []

    def start_transient_domain(self, xml: str) -> None:
        self.calls.append(xml)
        if self.failure:
            raise self.failure

    def stop_domain(self, _: str) -> None:
        self.calls.append("stop")

    def call(self, operation: str, **_: object) -> None:
        self.calls.append(operation)


def test_a_trial_of_limits_and_pins_leaves_nothing() -> None:
    plan = samples.shared_plan(samples.RED, samples.BLUE, count=3, processors=(5, 3), cpu_limit_percent=50)
    red, middle = TrialServer("red", object()), TrialServer("middle", object())
    domains.try_cpu_tuning(red, plan)  # type: ignore[arg-type]
    assert red.calls[1:] == ["stop", "remove_traces", "remove_profiles"]
    for part in ("<vcpu>2</vcpu>", '<vcpupin vcpu="1" cpuset="5" />', "<quota>5000</quota>"):
        assert part in red.calls[0]
    domains.try_cpu_tuning(middle, plan)  # type: ignore[arg-type]
    domains.try_cpu_tuning(red, samples.shared_plan(samples.RED, samples.BLUE))  # type: ignore[arg-type]
    assert (middle.calls, len(red.calls)) == ([], 4)


@pytest.mark.parametrize(("session", "place"), [(None, "here"), (object(), "on localhost")])
def test_a_server_that_cannot_limit_processors_is_refused(session: object, place: str) -> None:
    server = TrialServer("localhost", session, VclusterError("starting a domain: cgroup cpu is required"))
    with pytest.raises(MissingError) as refused:
        domains.try_cpu_tuning(server, samples.plan(1, cpu_limit_percent=1))  # type: ignore[arg-type]
    reason = "starting a domain: cgroup cpu is required"
    assert refused.value.message == f"libvirt cannot limit or pin the processors of nodes {place}: {reason}"
    assert server.calls[1:] == ["remove_traces", "remove_profiles"]


def test_a_trial_that_gets_no_answer_is_not_a_lack() -> None:
    server = TrialServer("localhost", None, DeadlineError("libvirt does not answer"))
    with pytest.raises(DeadlineError, match="does not answer"):
        domains.try_cpu_tuning(server, samples.plan(1, cpu_limit_percent=1))  # type: ignore[arg-type]


def test_the_text_of_a_plan_has_limits_and_pins() -> None:
    plan = samples.plan(2, vcpus=2, cpu_limit_percent=25, processors=(0, 1, 7))
    lines = plan_report.text(plan_report.document(plan, {LOCAL.name: samples.ROOMY})).splitlines()
    assert lines[2:5] == [
        "each CPU of a node may use 25 % of a processor",
        "node1 is pinned to processors 0, 1 of localhost",
        "node2 is pinned to processors 7, 0 of localhost",
    ]


@pytest.mark.parametrize(
    ("options", "cpus", "disk_free_gib", "texts"),
    [
        ({}, 1, 16, ()),
        ({"vcpus": 2}, 2, 16, ()),
        ({"vcpus": 64}, 2, 16, ("a node has 64 CPUs, but this machine has 2: the node is slow",)),
        ({}, 2, 15, ("the disks can grow to 16 GiB, but this machine has 15 GiB free",)),
        ({"stores": (StorageNode("node2", 500),)}, 2, 400, ("the disks can grow to 516 GiB",)),
    ],
)
def test_overcommitments(options: dict[str, object], cpus: int, disk_free_gib: int, texts: tuple[str, ...]) -> None:
    facts = replace(samples.ROOMY, cpus=cpus, disk_free_mib=disk_free_gib * GIB)
    found = overcommitments(samples.plan(2, facts=facts, **options), {"localhost": facts})
    assert len(found) == len(texts)
    assert all(line.startswith(text) for line, text in zip(found, texts, strict=True))


class World:
    """This machine with a plain network, on which nothing is created."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_rights, self.is_root, self.present, self.interfaces = True, True, (), []
        self.facts = replace(samples.ROOMY, cpus=2)
        self.printed = io.StringIO()
        self.damage = ""
        self.obstacles: list[dict[str, str]] | VclusterError = []
        images = SimpleNamespace(
            find=lambda _: samples.DIRECT,
            any_kernel=lambda: None,
            in_use=lambda _: nullcontext(),
            problem=lambda _: self.damage,
        )
        self.context = Context(folder / "state", self, images, Reporter((ProgressLines(self.printed),)))  # type: ignore[arg-type]
        self.has_libvirt, self.uri, self.owner = True, "test:///", samples.OWNER
        monkeypatch.setattr(ledger, "make_owner", lambda _: samples.OWNER)
        monkeypatch.setattr(admission, "survey", lambda *_: self.present)
        monkeypatch.setattr(admission.observation, "observe", lambda *_, **__: {"localhost": self.facts})

    def read_obstacles(self) -> list[dict[str, str]]:
        if isinstance(self.obstacles, VclusterError):
            raise self.obstacles
        return self.obstacles

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        agent = LocalAgent(
            {
                "identity": lambda: {"has_rights": self.has_rights, "is_root": self.is_root},
                "interfaces": lambda: [{"name": name} for name in self.interfaces],
                "folders": lambda path: [],  # noqa: ARG005 - the agent passes it by name
                "obstacles": lambda port: self.read_obstacles(),  # noqa: ARG005 - the agent passes it by name
            }
        )
        libvirt = SimpleNamespace(names=lambda _: frozenset())
        yield Server(request.name, samples.OWNER, request.storage, agent, libvirt=libvirt)  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def forbid(world: World, reason: str) -> None:
    match reason:
        case "user":
            world.has_rights = world.is_root = False
        case "capability":
            world.has_rights = False
        case "folder":
            world.context.files("lab").folder.mkdir(parents=True)
        case "cluster" | "creating" | "former version":
            files, state = world.context.files("lab"), "creating" if reason == "creating" else "ready"
            files.folder.mkdir(parents=True)
            version = VERSION - 1 if reason == "former version" else VERSION
            files.write_ledger(Ledger(version, state, "", samples.plan(2)))
        case "parts":
            world.present = (OwnedItem("domain", "lab.node1", "lab"),)  # type: ignore[assignment]
        case "interface":
            world.interfaces.append("vc-lab")
        case "image":
            world.damage = "/images/debian12/disk.qcow2 is missing"
        case "memory":
            world.facts = replace(world.facts, memory_free_mib=2 * 704 + 511)


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        ("user", MissingError, r"needs root \(CAP_NET_ADMIN\)"),
        ("capability", MissingError, "root lacks CAP_NET_ADMIN, so it cannot create network interfaces"),
        ("folder", ConflictError, "parts of cluster lab are left"),
        ("parts", ConflictError, "parts of cluster lab are left"),
        ("creating", ConflictError, "parts of cluster lab are left"),
        ("cluster", ConflictError, "cluster lab exists already"),
        ("former version", ConflictError, "cluster lab exists already"),
        ("interface", ConflictError, "interface vc-lab exists and does not belong to this cluster"),
        ("image", VclusterError, "image debian12 cannot be used: /images/debian12/disk.qcow2 is missing"),
        (
            "memory",
            MissingError,
            r"need 1920 MiB of memory, 2 times 704 \(512 for a node, 192 for its QEMU\) and a reserve of 512, but 1919",
        ),
    ],
)
def test_create_and_plan_refuse_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    reason: str, error: type[VclusterError], message: str,
) -> None:  # fmt: skip
    forbid(world, reason)
    with pytest.raises(error, match=message):
        create(world.context, samples.spec(2), image_name="debian12", accel="tcg", keep=False)
    monkeypatch.setattr(common, "context", lambda *_: world.context)
    monkeypatch.setattr(sys, "argv", ["vcluster", "local", "create", "-n", "2", "--plan"])
    assert main._run() == error.exit_code
    output = capsys.readouterr()
    assert output.out == ""
    assert re.search(message, output.err)


def test_a_script_that_cannot_be_kept_fails_before_the_first_effect(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def affect(*_: object, **__: object) -> None:
        pytest.fail("the create had an effect on a server")

    def fail(*_: object) -> None:
        raise MissingError("cannot keep setup")

    (tmp_path / "setup").write_text("#!/bin/sh\n")
    job = Job.read(tmp_path / "setup")
    monkeypatch.setattr(Deployment, "deliver_image", affect)
    monkeypatch.setattr(server_keys, "create", affect)
    monkeypatch.setattr(setup_script, "keep", fail)
    monkeypatch.setattr(teardown, "_remove_from", lambda *_: None)
    monkeypatch.setattr(teardown.tmux, "end", lambda _: None)
    with pytest.raises(MissingError, match="cannot keep setup"):
        create(world.context, samples.spec(2), image_name="debian12", accel="tcg", keep=False, job=job)
    assert not world.context.state_root.exists()


@pytest.mark.parametrize(
    ("has_password", "source"), [(False, ""), (True, " with VCLUSTER_SWITCH_PASSWORD and VCLUSTER_SWITCH=me@server2")]
)
def test_parts_on_another_server_are_removed_by_a_command_that_can_log_in(
    world: World, has_password: bool, source: str
) -> None:
    world.present = (OwnedItem("interface", "vc-lab", "lab"),)  # type: ignore[assignment]
    session, target = SimpleNamespace(user="me"), SimpleNamespace(asked="server2")
    server = Server(
        "server2", samples.OWNER, Path(LOCAL.path), LocalAgent({}), session, target, has_password=has_password,  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(ConflictError, match="parts of cluster lab are left on server2") as raised:
        admission.refuse_existing(Fleet({"server2": server}, {}), world.context.files("lab"))
    assert raised.value.hint == f"vcluster clear lab --on me@server2{source}, or use another --name"


def test_a_cluster_that_is_changed_now_is_not_to_be_cleared(world: World) -> None:
    files = world.context.files("lab")
    with files.locked(), pytest.raises(ConflictError, match="cluster lab exists already") as raised:
        create(world.context, samples.spec(2), image_name="debian12", accel="tcg", keep=False)
    assert raised.value.hint == "vcluster status lab, or use another --name"


def test_a_plan_is_printed_with_its_overcommitments(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "context", lambda *_: world.context)
    monkeypatch.setattr(sys, "argv", ["vcluster", "local", "create", "-n", "2", "--vcpus", "64", "--plan"])
    assert main._run() == 0
    assert "128 of 2" in capsys.readouterr().out
    assert "a node has 64 CPUs, but this machine has 2" in world.printed.getvalue()
    assert not world.context.state_root.exists()


@pytest.mark.parametrize(
    ("obstacles", "text"),
    [
        (
            [{"what": "bridge filter", "detail": "chain a drops frames", "fix": "nft b"}],
            "nodes may not reach each other: bridge filter: chain a drops frames; fix: nft b",
        ),
        (
            DeadlineError("iptables-legacy-save timed out after 10 s"),
            "cannot check whether packet filter rules stop the nodes: iptables-legacy-save timed out after 10 s",
        ),
    ],
)
def test_obstacles_are_warnings(
    world: World, monkeypatch: pytest.MonkeyPatch, obstacles: list[dict[str, str]] | VclusterError, text: str
) -> None:
    world.obstacles = obstacles
    monkeypatch.setattr(common, "context", lambda *_: world.context)
    monkeypatch.setattr(sys, "argv", ["vcluster", "local", "create", "-n", "2", "--plan"])
    assert main._run() == 0
    assert text in " ".join(world.printed.getvalue().split())
