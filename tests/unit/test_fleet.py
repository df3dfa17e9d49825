"""Several servers at once: unreachable servers, proofs by frames and by counters, and transfers of images."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import samples
from tests.samples import BLUE, MIDDLE, RED
from vcluster.agent.client import LocalAgent
from vcluster.agent.operations import OPERATIONS
from vcluster.cli.output import path_report, plan_report
from vcluster.commands.clusters import lifecycle
from vcluster.commands.steps import admission
from vcluster.commands.steps.deployment import Deployment
from vcluster.errors import ConflictError, ConnectionLostError, MissingError, SeveralErrors, VclusterError
from vcluster.fleet import server_clocks, servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import VERSION, Ledger
from vcluster.fleet.server_clocks import ServerClocks
from vcluster.fleet.servers import Fleet, Server, ServerRequest, request_for_spec, requests_for_plan
from vcluster.guest import authorize
from vcluster.images import deliver
from vcluster.images.store import ImageStore, Manifest
from vcluster.model import codec
from vcluster.model.naming import folded
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL, StorageNode
from vcluster.planning.hops import hops
from vcluster.planning.planner import make_plan
from vcluster.render import ssh_files
from vcluster.stages import tunnels
from vcluster.stages.path import Counted
from vcluster.stages.path import Path as FlowPath
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.events import Event, Reporter

# Opening


class Connector:
    """Opens servers by name, except unreachable ones."""

    def __init__(self, *unreachable: str) -> None:
        self.unreachable = unreachable
        self.closed: list[str] = []

    @contextmanager
    def open(self, request: ServerRequest) -> Iterator[Server]:
        if request.name in self.unreachable:
            raise MissingError(f"{request.name} is unreachable")
        try:
            yield Server(request.name, samples.OWNER, request.storage, LocalAgent({}))
        finally:
            self.closed.append(request.name)


REQUESTS = [request_for_spec(spec, carries_nodes=False) for spec in (RED, BLUE, MIDDLE)]


def test_all_servers_are_opened_and_closed() -> None:
    connector = Connector()
    with servers.open_fleet(connector, REQUESTS, Reporter()) as fleet:  # type: ignore[arg-type]
        assert list(fleet.servers) == ["red", "blue", "middle"]
        assert fleet.each(lambda server: server.name.upper(), deadline=Deadline(5)) == {
            "red": "RED",
            "blue": "BLUE",
            "middle": "MIDDLE",
        }
    assert sorted(connector.closed) == ["blue", "middle", "red"]


def test_an_unreachable_server_fails_a_create_and_closes_the_others() -> None:
    connector = Connector("blue")
    with pytest.raises(MissingError, match="blue is unreachable"), servers.open_fleet(connector, REQUESTS, Reporter()):  # type: ignore[arg-type]
        pytest.fail("it was opened")
    assert sorted(connector.closed) == ["middle", "red"]


def test_clear_continues_with_reachable_servers() -> None:
    with servers.open_fleet(Connector("blue", "red"), REQUESTS, Reporter(), allow_unreachable=True) as fleet:  # type: ignore[arg-type]
        assert list(fleet.servers) == ["middle"]
        assert "blue" not in fleet
        with pytest.raises(MissingError, match="red is unreachable"):
            fleet["red"]


def test_a_failure_does_not_cancel_other_work() -> None:
    def work(number: int) -> int:
        if number % 2:
            raise VclusterError(f"{number} is odd")
        return number

    found = parallel.outcomes(range(4), work)
    assert [one if isinstance(one, int) else one.message for one in found] == [0, "1 is odd", 2, "3 is odd"]
    with pytest.raises(SeveralErrors, match="1 is odd\n3 is odd"):
        parallel.raise_all([one for one in found if isinstance(one, VclusterError)])
    parallel.raise_all([])


@pytest.mark.parametrize(
    "work",
    [
        lambda fleet, _: servers.require_rights(fleet),
        lambda fleet, context: admission.refuse_existing(fleet, context.files("other")),
        lambda fleet, _: admission.refuse_foreign(fleet, samples.shared_plan()),
    ],
    ids=["rights", "existing", "foreign"],
)
def test_servers_answer_side_by_side(work: Callable[[Fleet, Context], None], context: Context) -> None:
    meeting = threading.Barrier(len(REQUESTS))
    met: list[object] = []

    def meet(answer: object) -> object:
        meeting.wait(timeout=5)
        met.append(answer)
        return answer

    operations = {
        "identity": lambda: meet({"has_rights": True}),
        "interfaces": lambda: meet([]),
        "profiles": lambda: meet([]),
        "guards": lambda prefix: meet([]),  # noqa: ARG005 - the operation's arguments
        "offload_labels": lambda: meet([]),
        "fault_records": lambda: meet([]),
        "folders": lambda path: meet([]),  # noqa: ARG005
        "labelled_folders": lambda path: meet({}),  # noqa: ARG005
    }
    empty = dict.fromkeys(("domains", "networks", "pools"), lambda: ())
    libvirt: Any = SimpleNamespace(names=lambda _: frozenset(), **empty)
    opened = [Server(one.name, samples.OWNER, one.storage, LocalAgent(operations), libvirt=libvirt) for one in REQUESTS]
    work(Fleet({server.name: server for server in opened}, {}), context)
    assert len(met) >= len(REQUESTS)


def test_the_cluster_key_replaces_only_passwords() -> None:
    plan = samples.shared_plan(RED, replace(BLUE, login=replace(BLUE.login, password="")))  # type: ignore[type-var]
    keys = {request.name: request.key for request in requests_for_plan(plan, "the key")}
    assert keys == {"red": "the key", "blue": None, "middle": "the key"}


# Start and repair


@pytest.fixture
def connector() -> Connector:
    return Connector()


@pytest.fixture
def context(tmp_path: Path, connector: Connector) -> Context:
    """The ledger and the keys of a cluster over two servers and a switch."""
    context = Context(tmp_path, connector, ImageStore(tmp_path / "images"), Reporter())  # type: ignore[arg-type]
    files = context.files("lab")
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, "ready", "", samples.shared_plan(RED, BLUE)))
    files.write_keys(samples.keys(3))
    return context


def record_steps(
    monkeypatch: pytest.MonkeyPatch, state: str, *missing: str, lacking: tuple[str, ...] = ()
) -> list[str]:
    """Record the steps of start and repair for a cluster in that state."""
    steps: list[str] = []
    off = {"ready": (), "partial": ("node1",), "stopped": ("node1", "node2", "node3")}[state]
    nodes = [SimpleNamespace(name=name, state="stopped") for name in off]
    found = SimpleNamespace(state=state, missing=missing, nodes=nodes, faults=())
    monkeypatch.setattr(lifecycle, "observe_status", lambda *_: found)
    monkeypatch.setattr(lifecycle.servers, "require_rights", lambda _: steps.append("rights"))
    monkeypatch.setattr(lifecycle, "report_obstacles", lambda *_: steps.append("obstacles"))

    def memory_errors(*given: Any) -> dict[str, VclusterError]:
        steps.append(f"memory of {folded(node.name for node in given[-1])}")
        return {name: MissingError("no memory") for name in lacking}

    monkeypatch.setattr(lifecycle, "memory_errors", memory_errors)
    monkeypatch.setattr(Deployment, "create_networks", lambda _: steps.append("networks"))
    monkeypatch.setattr(lifecycle.interfaces, "attach", lambda *_: None)
    monkeypatch.setattr(lifecycle, "_restore_nodes", lambda *_: steps.append("nodes"))
    return steps


def test_start_changes_nothing_in_a_ready_cluster(
    monkeypatch: pytest.MonkeyPatch, context: Context, connector: Connector
) -> None:
    recorded = record_steps(monkeypatch, "ready")
    with context.files("lab").locked():
        assert lifecycle.start(context, "lab", timeout_s=5) is False
    assert recorded == []
    assert sorted(connector.closed) == ["blue", "middle", "red"]


@pytest.mark.parametrize(
    ("state", "missing", "steps"),
    [
        ("stopped", (), ["rights", "obstacles", "memory of node[1-3]", "networks", "nodes"]),
        ("partial", ("node node1",), ["rights", "obstacles", "memory of node1", "networks", "nodes"]),
    ],
)
def test_start_opens_every_server_once(
    monkeypatch: pytest.MonkeyPatch,
    context: Context,
    connector: Connector,
    state: str,
    missing: tuple[str, ...],
    steps: list[str],
) -> None:
    recorded = record_steps(monkeypatch, state, *missing)
    assert lifecycle.start(context, "lab", timeout_s=5) is True
    assert recorded == steps
    assert sorted(connector.closed) == ["blue", "middle", "red"]


def test_repair_writes_damaged_files_for_ssh_again(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    record_steps(monkeypatch, "partial", "file ssh_config of the state folder", lacking=("node1",))
    samples.write_files(files := context.files("lab"), samples.shared_plan(RED, BLUE))
    before = {path: path.read_text() for path in (files.identity, files.known_hosts)}
    for path in before:
        path.unlink()
    with pytest.raises(MissingError, match="no memory"):  # the files come before the nodes
        lifecycle.repair(context, "lab", timeout_s=5)
    assert {path: path.read_text() for path in before} == before


def test_repair_checks_a_ready_cluster_too(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    recorded = record_steps(monkeypatch, "ready")
    assert lifecycle.repair(context, "lab", timeout_s=5) == ()
    assert recorded == ["rights", "obstacles", "networks", "nodes"]  # an earlier version may have made them
    record_steps(monkeypatch, "ready", "bridge vc-lab")
    assert lifecycle.repair(context, "lab", timeout_s=5) == ("bridge vc-lab",)
    with context.files("lab").locked(), pytest.raises(ConflictError, match="is changing cluster lab"):
        lifecycle.repair(context, "lab", timeout_s=5)


@pytest.mark.parametrize("work", [lifecycle.start, lifecycle.repair])
def test_networks_are_repaired_also_without_memory_for_the_nodes_that_are_off(
    monkeypatch: pytest.MonkeyPatch, context: Context, work: Callable[..., object]
) -> None:
    notes: list[str] = []
    context = replace(context, report=Reporter((lambda event: notes.append(event.text),)))
    recorded = record_steps(monkeypatch, "partial", lacking=("red",))
    with pytest.raises(MissingError, match=r"^no memory$"):
        work(context, "lab", timeout_s=5)
    assert recorded == ["rights", "obstacles", "memory of node1", "networks"]
    assert notes[-1] == "the networks of cluster lab are in order, but vcluster started no node"
    assert not context.files("lab").is_starting_nodes()


# Clocks


def now() -> float:
    return time.time()


def clocks_of(answers: Mapping[str, Callable[[], float]]) -> ServerClocks:
    """The clocks of servers, of which red has the head. `answers` are their times."""
    agents = {name: LocalAgent({"clock": answer}) for name, answer in answers.items()}
    servers = {name: Server(name, samples.OWNER, Path("/"), agent) for name, agent in agents.items()}
    return ServerClocks(Fleet(servers, {}), "red")


def lost() -> float:
    raise VclusterError("the connection broke")


def test_clocks_of_servers_are_compared_with_that_of_the_heads_server() -> None:
    clocks = clocks_of({"red": lambda: time.time() + 100, "blue": lambda: time.time() + 700})
    assert (clocks.ahead_s("red"), clocks.ahead_s("blue")) == (0, 600)


def test_a_lost_server_disturbs_only_its_own_nodes() -> None:
    clocks = clocks_of({"red": now, "blue": lost, "green": now})
    assert (clocks.ahead_s("red"), clocks.ahead_s("green")) == (0, 0)
    with pytest.raises(VclusterError, match="the connection broke"):
        clocks.ahead_s("blue")


def test_the_quickest_answer_about_a_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer has the time of its start, so a slow one makes the clock look as if it were behind."""
    now, slow = 1000.0, {"red": [20.0, 0.0, 8.0], "blue": [0.0, 30.0, 9.0]}

    def clock(name: str) -> float:
        nonlocal now
        shown, now = now, now + slow[name].pop()
        return shown

    monkeypatch.setattr(server_clocks, "time", SimpleNamespace(time=lambda: now))
    clocks = clocks_of({"red": lambda: clock("red"), "blue": lambda: clock("blue")})
    assert clocks.ahead_s("blue") == 0
    assert slow == {"red": [], "blue": []}


def test_many_nodes_ask_a_server_for_its_clock_once() -> None:
    asked: list[str] = []

    def clock() -> float:
        asked.append("blue")
        time.sleep(0.1)  # until the other nodes ask, too
        return time.time()

    clocks = clocks_of({"red": now, "blue": clock})
    parallel.each(["blue"] * 4, clocks.ahead_s, deadline=Deadline(60))
    assert asked == ["blue"] * server_clocks.SAMPLES


# Tunnels


def test_expected_frames_between_all_servers() -> None:
    expected = tokens(samples.shared_plan(RED, BLUE, count=3), has_switch=True)
    assert expected["middle"] == {"vx-lab-1": ["vx-lab-1>40"], "vx-lab-2": ["vx-lab-2>41"], "vx-lab-3": ["vx-lab-3>42"]}
    assert expected["red"]["vx-lab-1"] == ["vx-lab-1<40", "vx-lab-3>vx-lab-1"]
    assert expected["blue"]["vx-lab-3"] == ["vx-lab-3<42", "vx-lab-2>vx-lab-3"]


def test_expected_frames_without_a_login_to_the_switch() -> None:
    assert tokens(samples.shared_plan(RED, BLUE, count=2), has_switch=False) == {
        "red": {"vx-lab-1": ["vx-lab-2>vx-lab-1"]},
        "blue": {"vx-lab-2": ["vx-lab-1>vx-lab-2"]},
    }
    assert tokens(samples.shared_plan(RED, count=1), has_switch=False) == {}


def test_a_frame_through_the_switch_goes_to_a_port_that_the_switch_has_learned() -> None:
    plan = samples.shared_plan(RED, BLUE, count=3)
    ends = tunnels._ends(plan)
    learned = {probe.token: (probe.server, probe.link) for probe in tunnels.direct(plan, ends, has_switch=False)}
    probes = tunnels.across(ends)
    assert {(probe.to_server, probe.to_link) for probe in probes} == {(server, end.name) for server, end in ends}
    assert all(learned[probe.target] == (probe.to_server, probe.to_link) for probe in probes)


def tokens(plan: Plan, *, has_switch: bool) -> tunnels.Tokens:
    ends = tunnels._ends(plan)
    probes = [*tunnels.direct(plan, ends, has_switch=has_switch), *tunnels.across(ends)]
    return tunnels.expected(probes, {"red", "blue", *["middle"] * has_switch})


# The path of packets


def flow(*counts: tuple[int | None, int | None], packets: int = 100, answered: int = 100) -> FlowPath:
    plan = samples.shared_plan(RED, BLUE, count=2)
    ports = hops(plan, plan.nodes[0], plan.nodes[1])
    counts = counts or ((100, 100),) * len(ports)
    counted = tuple(Counted(hop, 1450, there, back) for hop, (there, back) in zip(ports, counts, strict=True))
    return FlowPath("node1", "node2", packets, answered, counted)


def test_a_flow_that_every_port_counts_crosses_the_switch() -> None:
    found = flow()
    assert found.crossed
    assert "the frames crossed the switch" in path_report.text(path_report.document(found))


@pytest.mark.parametrize("missed", range(6))
@pytest.mark.parametrize("counts", [(0, 100), (100, 0), (99, 100)])
def test_a_flow_that_one_port_does_not_count_does_not_cross_the_switch(missed: int, counts: tuple[int, int]) -> None:
    found = flow(*((100, 100),) * missed, counts, *((100, 100),) * (5 - missed))
    assert not found.crossed
    assert f"counted {min(counts)} of 100" in found.detail
    assert "NOT through the switch" in path_report.text(path_report.document(found))
    assert "MISSED" in path_report.text(path_report.document(found))


def test_a_flow_with_a_lost_packet_proves_nothing() -> None:
    found = flow(answered=99)
    assert not found.crossed
    assert found.detail == "99 of 100 packets came back"


def test_a_flow_names_the_port_that_nothing_reached_and_the_direction() -> None:
    """ARP requests take the place of packets in front of it. A firewall may drop the frames of one direction only."""
    sent, answered = (4, 0), (100, 0)
    there = flow(sent, sent, *((0, 0),) * 4, answered=0)
    back = flow(answered, answered, *((100, 100),) * 4, answered=0)
    came = "0 of 100 packets came back"
    assert there.detail == f"{came}: switch port of node1 (vx-lab-1 on middle) counted 0 of 100 from node1 to node2"
    assert back.detail == f"{came}: tunnel of node1 (vx-lab-1 on red) counted 0 of 100 from node2 to node1"


def test_a_flow_with_more_answers_than_asked_for_passes() -> None:
    found = flow(*((103, 102),) * 6, answered=102)
    assert found.crossed
    assert found.detail == ""


def test_a_port_without_access_is_reported_as_unknown() -> None:
    known = (100, 100)
    found = flow(known, known, (None, None), (None, None), known, known)
    assert found.crossed
    assert path_report.text(path_report.document(found)).count("cannot be read from here") == 2
    assert [hop["passed"] for hop in path_report.document(found)["hops"]] == [True, True, None, None, True, True]


# Plans and configurations for users


def test_a_plan_shows_the_request_to_each_server() -> None:
    stores = (StorageNode("node2", 500),)
    asked = samples.spec(3, mode="shared", servers=(RED, BLUE), switch=MIDDLE, stores=stores)
    facts = samples.shared_facts(asked, memory_free_mib=4096, disk_free_mib=51200, cpus=2)
    plan = make_plan(asked, facts, image=samples.DIRECT, owner=samples.OWNER)
    text = plan_report.text(plan_report.document(plan, facts))
    rows = [line.split() for line in text.splitlines()]
    assert ["red", "node[1-2]", "tcg", "2", "of", "2", "1408", "of", "4096", "516", "of", "50", "2", "40-41"] in [
        row[:14] for row in rows
    ]
    assert ["middle", "switch", "-", "-", "-", "-", "3", "40-42", "-", "-"] in rows


def test_ssh_reaches_a_remote_node_through_its_server(tmp_path: Path) -> None:
    plan = samples.shared_plan(LOCAL, RED, count=2)
    jumps = {"red": ssh_files.Jump("red.example", "student", 2222, (tmp_path / "key",), True, ("ProxyJump gate",))}
    text = ssh_files.ssh_config(plan, identity=Path("/id"), known_hosts=Path("/known"), jumps=jumps)
    blocks = {block.split("\n")[0]: block for block in text.split("\n\n")}
    assert "ProxyJump" not in blocks["Host node1"]
    assert "ProxyJump red.server" in blocks["Host node2"]
    server = blocks["Host red.server"]
    for line in ("HostName red.example", "User student", "Port 2222", "IdentitiesOnly yes", "ProxyJump gate"):
        assert line in server
    assert "red.server ssh-ed25519 AAAAred\n" in ssh_files.known_hosts(plan, samples.keys())


# Transfers of images


def store_with_an_image(root: Path, content: bytes) -> tuple[ImageStore, Manifest]:
    digest = hashlib.sha256(content).hexdigest()
    kernel = b"kernel" * 1000
    files = {"disk.qcow2": digest, "vmlinuz": hashlib.sha256(kernel).hexdigest()}
    manifest = Manifest("debian12", f"sha256-{digest}", "built", "today", 1 << 30, "", (), "", files)
    folder = root / manifest.digest
    folder.mkdir(parents=True)
    (folder / "disk.qcow2").write_bytes(content)
    (folder / "vmlinuz").write_bytes(kernel)
    (folder / "manifest.json").write_text(codec.to_json(manifest))
    return ImageStore(root), manifest


CONTENT = bytes(range(256)) * 40_000


def deliver_image(store: ImageStore, manifest: Manifest, there: Path, *events: list[Event]) -> None:
    report = Reporter(tuple(each.append for each in events))
    image = replace(samples.DIRECT, digest=manifest.digest)
    deliver.deliver(store, image, LocalAgent(OPERATIONS), there, name="red", deadline=Deadline(30), report=report)


def test_an_image_is_sent_once_with_progress(tmp_path: Path) -> None:
    store, manifest = store_with_an_image(tmp_path / "here", CONTENT)
    events: list[Event] = []
    deliver_image(store, manifest, tmp_path / "there", events)
    assert (tmp_path / "there" / manifest.digest / "disk.qcow2").read_bytes() == CONTENT
    assert ImageStore(tmp_path / "there").images() == (manifest,)
    assert ImageStore(tmp_path / "there").verify(manifest) == ()
    shares = [event.fraction for event in events if event.fraction is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    again: list[Event] = []
    deliver_image(store, manifest, tmp_path / "there", again)
    assert again == []


def test_an_interrupted_transfer_of_an_image_resumes(tmp_path: Path) -> None:
    store, manifest = store_with_an_image(tmp_path / "here", CONTENT)
    unfinished = tmp_path / "there" / f".unfinished-{manifest.digest}"
    unfinished.mkdir(parents=True)
    (unfinished / "disk.qcow2").write_bytes(CONTENT[:5_000_000])
    events: list[Event] = []
    deliver_image(store, manifest, tmp_path / "there", events)
    assert min(event.fraction for event in events if event.fraction) > 0.45
    assert (tmp_path / "there" / manifest.digest / "disk.qcow2").read_bytes() == CONTENT
    assert not unfinished.exists()


def test_an_image_with_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    store, manifest = store_with_an_image(tmp_path / "here", CONTENT)
    unfinished = tmp_path / "there" / f".unfinished-{manifest.digest}"
    unfinished.mkdir(parents=True)
    (unfinished / "disk.qcow2").write_bytes(b"x" * 5_000_000)
    with pytest.raises(VclusterError, match=r"disk\.qcow2 arrived damaged"):
        deliver_image(store, manifest, tmp_path / "there")
    assert not unfinished.exists()
    deliver_image(store, manifest, tmp_path / "there")
    assert ImageStore(tmp_path / "there").verify(manifest) == ()


# authorized_keys


def run_authorize(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **request: str) -> bool:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    authorize.main()
    return bool(json.loads(capsys.readouterr().out)["changed"])


@pytest.mark.parametrize("before", [None, "", "ssh-rsa AAAA mine\n", "# a comment\nssh-rsa AAAA mine"])
def test_authorize_adds_and_removes_only_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ssh/authorized_keys"
    if before is not None:
        path.parent.mkdir(mode=0o700)
        path.write_text(before)
        path.chmod(0o640)
    key = "ssh-ed25519 AAAAC3 vcluster:lab:0badcafe"
    assert run_authorize(monkeypatch, capsys, do="add", line=key)
    assert not run_authorize(monkeypatch, capsys, do="add", line=key)
    assert path.read_text().splitlines() == [*(before or "").splitlines(), key]
    assert path.stat().st_mode & 0o777 == (0o600 if before is None else 0o640)
    assert run_authorize(monkeypatch, capsys, do="remove", mark="vcluster:lab:0badcafe")
    assert not run_authorize(monkeypatch, capsys, do="remove", mark="vcluster:lab:0badcafe")
    assert path.read_text().splitlines() == (before or "").splitlines()
    assert list(path.parent.iterdir()) == [path]


def test_other_lines_of_authorized_keys_keep_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ssh/authorized_keys"
    path.parent.mkdir(mode=0o700)
    before = b"# d\xe9j\xe0\r\nssh-rsa AAAA J\xfcrgen\x00\x0c\rx\nssh-rsa AAAA mine\n"
    path.write_bytes(before)
    assert run_authorize(monkeypatch, capsys, do="add", line="ssh-ed25519 AAAAC3 vcluster:lab:0badcafe")
    assert path.read_bytes() == before + b"ssh-ed25519 AAAAC3 vcluster:lab:0badcafe\n"
    assert run_authorize(monkeypatch, capsys, do="remove", mark="vcluster:lab:0badcafe")
    assert path.read_bytes() == before


def test_a_lost_server_is_one_error_for_all_waits() -> None:
    """Otherwise a command whose nodes wait at the same moment would report it once for each of them."""
    fleet = servers.Fleet({"one": SimpleNamespace(name="one", is_alive=False)}, {})  # type: ignore[dict-item]

    def wait(node: str) -> None:
        fleet.check(f"{node} to boot")

    with pytest.raises(
        ConnectionLostError, match=r"^one: the connection broke while vcluster waited for node1 to boot$"
    ):
        parallel.each(("node1", "node2"), wait, deadline=Deadline(30))
