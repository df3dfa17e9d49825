"""Commands and scripts on several nodes: each is this machine, behind an SSH server in this process."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests import samples
from tests.results import validated
from tests.ssh.server import HOST, OTHER, USER, Rules, serving
from vcluster.adapters import pipe, tmux
from vcluster.adapters.ssh import ssh_login
from vcluster.adapters.tmux import Pane, Screen
from vcluster.cli import main
from vcluster.commands.nodes import access
from vcluster.errors import VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.fleet.servers import Connector
from vcluster.guest import program
from vcluster.images.store import ImageStore
from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan
from vcluster.render.ssh_files import known_hosts, ssh_config
from vcluster.stages import provision
from vcluster.stages.provision import Job
from vcluster.util.deadline import Deadline
from vcluster.util.events import Event, Reporter

pytestmark = pytest.mark.ssh

UNUSED = IPv4Address("127.0.0.9")  # nothing listens at it


def at(node: Node, address: str | IPv4Address) -> Node:
    assert node.management
    return replace(node, management=replace(node.management, address=IPv4Address(address)))


def plan_of(count: int, *, lost: tuple[int, ...] = ()) -> Plan:
    plan = samples.plan(count)
    nodes = [at(node, UNUSED if node.index in lost else "127.0.0.1") for node in plan.nodes]
    return replace(plan, user="root", nodes=tuple(nodes))


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rules]:
    with serving(Rules()) as rules:
        monkeypatch.setattr(ssh_login, "PORT", rules.port)
        monkeypatch.setattr(access, "LOGIN_TIMEOUT_S", 2.0)
        yield rules


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def write(state: Path, plan: Plan) -> ClusterFiles:
    files = ClusterFiles(state, plan.name)
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, "ready", "", plan))
    keys = Keys(USER, OTHER, {node.name: HOST for node in plan.nodes})
    files.write_keys(keys)
    config = ssh_config(plan, identity=files.identity, known_hosts=files.known_hosts, jumps={})
    files.write_ssh(config=config, known_hosts=known_hosts(plan, keys))
    return files


def vcluster(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments])
    return main._run()


# exec


@pytest.mark.usefixtures("rules")
def test_output_arrives_while_the_program_runs() -> None:
    pieces: list[tuple[float, str, bytes]] = []
    with ssh_login.connect_node(
        "node1", "127.0.0.1", user="root", private_key=USER.private, host_key=HOST.public, deadline=Deadline(20)
    ) as session:
        done = session.run(
            ["sh", "-c", "echo one; echo two >&2; sleep 1; echo three; exit 4"],
            awaited="it",
            on_output=lambda stream, data: pieces.append((time.monotonic(), stream, data)),
        )
    assert (done.exit_code, done.stdout, done.stderr) == (4, "one\nthree\n", "two\n")
    assert {(stream, data) for _, stream, data in pieces[:2]} == {("stdout", b"one\n"), ("stderr", b"two\n")}
    assert pieces[2][1:] == ("stdout", b"three\n")
    assert pieces[2][0] - pieces[1][0] > 0.6


@pytest.mark.usefixtures("rules")
def test_output_that_is_not_text() -> None:
    with ssh_login.connect_node(
        "node1", "127.0.0.1", user="root", private_key=USER.private, host_key=HOST.public, deadline=Deadline(20)
    ) as session:
        assert session.run(["printf", r"\377"], awaited="it").stdout == r"\xff"


@pytest.mark.parametrize(("cuts", "exit_code", "times"), [(1, 0, 1), (2, 1, 0)])
def test_a_connection_that_breaks_before_the_command_is_opened_once_more(
    rules: Rules,
    state: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    cuts: int,
    exit_code: int,
    times: int,
) -> None:
    write(state, plan_of(1))
    rules.connections_to_cut = cuts
    (tmp_path / "runs").touch()
    assert vcluster(monkeypatch, "exec", "--", "sh", "-c", f"echo once >>{tmp_path}/runs") == exit_code
    assert (tmp_path / "runs").read_text() == "once\n" * times
    assert ("node1: the connection broke before the command started" in capfd.readouterr().err) is (exit_code == 1)


@pytest.mark.usefixtures("rules")
def test_lines_are_printed_as_they_arrive(
    state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(state, plan_of(2))
    code = vcluster(monkeypatch, "exec", "--lines", "--", "sh", "-c", "echo out; echo err >&2; printf end; exit 3")
    printed = capfd.readouterr()
    assert code == 3
    assert sorted(printed.out.splitlines()) == ["node1: end", "node1: out", "node2: end", "node2: out"]
    assert sorted(printed.err.splitlines()) == ["node1: err", "node2: err", "node[1-2]: exit code 3"]


@pytest.mark.usefixtures("rules")
def test_too_much_output_is_an_error_that_names_lines(
    state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(state, plan_of(1))
    monkeypatch.setattr(pipe, "OUTPUT_LIMIT", 1 << 20)
    argv = ("--", "sh", "-c", f"yes {'x' * 999} | head -n 1200")
    assert vcluster(monkeypatch, "exec", *argv) == 1
    printed = capfd.readouterr().err
    assert "node1: the command printed more than 1 MiB" in printed
    assert "vcluster exec --lines" in printed
    assert vcluster(monkeypatch, "exec", "--lines", *argv) == 0
    assert capfd.readouterr().out == f"node1: {'x' * 999}\n" * 1200


@pytest.mark.usefixtures("rules")
def test_a_lost_node_does_not_hide_the_others(
    state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(state, plan_of(3, lost=(2,)))
    assert vcluster(monkeypatch, "exec", "--", "echo", "here") == 1
    printed = capfd.readouterr()
    assert printed.out == "node[1,3]:\n  here\n"
    assert printed.err.startswith("vcluster: timed out after 2 s waiting for the SSH login to node2 (")
    assert printed.err.endswith("(vcluster status lab)\n")
    assert vcluster(monkeypatch, "exec", "-o", "json", "--", "sh", "-c", "exit 9") == 9
    document = validated(["exec"], json.loads(capfd.readouterr().out))
    assert document["node1"] == {"exit_code": 9, "stdout": "", "stderr": "", "error": None}
    assert document["node2"]["exit_code"] is None
    assert "the SSH login" in document["node2"]["error"]


@pytest.mark.usefixtures("rules")
def test_programs_may_take_longer_than_a_login(state: Path) -> None:
    plan = plan_of(1)
    write(state, plan)
    deadline = Deadline(20)
    with access.sessions(context(state), plan, plan.nodes, user="root", deadline=deadline) as opened:
        assert opened["node1"].run(["sleep", "2.5"], awaited="it").exit_code == 0


def test_a_connection_that_breaks_is_an_error_of_its_node(rules: Rules, state: Path, tmp_path: Path) -> None:
    plan = plan_of(1)
    write(state, plan)
    flag = tmp_path / "running"

    def cut() -> None:
        while not flag.exists():
            time.sleep(0.02)
        rules.cut()

    threading.Thread(target=cut, daemon=True).start()
    argv = ["sh", "-c", f"touch {flag}; sleep 3"]
    found = access.run_everywhere(context(state), plan, plan.nodes, argv, user="root", timeout_s=20)
    assert isinstance(found["node1"], VclusterError)
    assert "the connection broke during the command" in found["node1"].message


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(("fanout", "most"), [(1, 1), (2, 2), (64, 4)])
def test_fanout(state: Path, tmp_path: Path, fanout: int, most: int) -> None:
    plan = plan_of(4)
    write(state, plan)
    log = tmp_path / "log"
    argv = ["sh", "-c", f"echo + >>{log}; sleep 1; echo - >>{log}"]
    found = access.run_everywhere(context(state), plan, plan.nodes, argv, user="root", timeout_s=60, fanout=fanout)
    assert [result.exit_code for result in found.values() if not isinstance(result, VclusterError)] == [0] * 4
    now, peak = 0, 0
    for line in log.read_text().split():
        now += 1 if line == "+" else -1
        peak = max(peak, now)
    assert peak == most


@pytest.mark.usefixtures("rules")
def test_nodes_behind_the_head_are_reached_through_it(state: Path) -> None:
    plan = plan_of(3)
    nodes = (plan.head, *(replace(node, management=None, address=IPv4Address("127.0.0.1")) for node in plan.workers))
    plan = replace(plan, nodes=nodes)
    write(state, plan)
    # One at a time: this server forwards one connection at a time.
    found = access.run_everywhere(
        context(state), plan, plan.workers, ["echo", "hi"], user="root", timeout_s=20, fanout=1
    )
    assert {name: result.stdout for name, result in found.items() if not isinstance(result, VclusterError)} == {
        "node2": "hi\n",
        "node3": "hi\n",
    }


def context(state: Path, *listeners: object) -> Context:
    return Context(state, Connector(samples.OWNER), ImageStore(state / "images"), Reporter(tuple(listeners)))  # type: ignore[arg-type]


# provision


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shared folder"
    folder.mkdir()
    monkeypatch.setattr(provision.paths, "shared_folder", lambda _: str(folder))
    monkeypatch.setattr(provision, "NODE_LOGS", str(tmp_path / "node logs"))
    monkeypatch.setattr(provision, "NODE_PAYLOADS", str(tmp_path / "payloads"))
    # All nodes are one machine, but each needs its own log.
    mine = b'(request["log"] + request["environment"]["VCLUSTER_NODE"])'
    monkeypatch.setattr(provision.guest, "program", lambda name: program(name).replace(b'request["log"]', mine))
    return folder


def script(folder: Path, text: str, name: str = "set up.sh") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}")
    return path


def tree(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "secret").write_text("hello\n")
    (folder / "deep" / "secret").chmod(0o600)
    (folder / "run").write_text("#!/bin/sh\necho ran\n")
    (folder / "run").chmod(0o700)
    (folder / "link").symlink_to("deep/secret")
    (folder / "big").write_bytes(os.urandom(3 << 20))
    folder.chmod(0o700)
    return folder


def run(
    state: Path, job: Job, plan: Plan | None = None, *listeners: object, nodes: tuple[Node, ...] | None = None
) -> tuple[dict[str, object], Path]:
    plan = plan or plan_of(2)
    files = ClusterFiles(state, plan.name)
    if not files.folder.exists():
        write(state, plan)
    logs = files.make_logs(job.log_name)
    done = access.provision(context(state, *listeners), plan, nodes or plan.nodes, job, timeout_s=30, logs=logs)
    return dict(done), logs


@pytest.mark.usefixtures("rules")
def test_a_script_and_its_payload(state: Path, shared: Path, tmp_path: Path) -> None:
    text = 'pwd; cat link; ./run; echo "$VCLUSTER_NODE $VCLUSTER_CLUSTER $VCLUSTER_HEAD $VCLUSTER_USER" >&2; cat\n'
    job = Job.read(script(tmp_path, text + '[ "$PWD" = "$VCLUSTER_PAYLOAD" ]\n'), tree(tmp_path / "payload"))
    assert job.payload
    events: list[Event] = []
    done, logs = run(state, job, None, events.append)
    place = tmp_path / "payloads" / job.payload.name
    assert (shared / ".vcluster" / job.payload.name / "run").exists()
    for name in ("node1", "node2"):
        assert done[name].exit_code == 0  # type: ignore[attr-defined]
        assert done[name].stdout == f"{place}\nhello\nran\n{name} lab node1 root\n"  # type: ignore[attr-defined]
        assert (logs / f"{name}.log").read_text() == done[name].stdout  # type: ignore[attr-defined]
    assert stat.S_IMODE((place / "deep").stat().st_mode) == 0o755
    assert stat.S_IMODE((place / "deep" / "secret").stat().st_mode) == 0o644
    assert stat.S_IMODE((place / "run").stat().st_mode) == 0o755
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert [event.fraction for event in events if event.fraction is not None][-1] == 1.0
    assert stat.S_IMODE((tmp_path / "node logs" / "provision-set_up.sh.lognode1").stat().st_mode) == 0o600


@pytest.mark.usefixtures("rules")
def test_an_unchanged_payload_is_not_sent_again(state: Path, shared: Path, tmp_path: Path) -> None:
    job = Job.read(script(tmp_path, "cat big | wc -c\n"), tree(tmp_path / "payload"))
    assert job.payload
    run(state, job)
    place = shared / ".vcluster" / job.payload.name
    before = place.stat().st_ino
    events: list[Event] = []
    done, _ = run(state, job, None, events.append)
    assert done["node2"].stdout == f"{3 << 20}\n"  # type: ignore[attr-defined]
    assert place.stat().st_ino == before
    assert not [event for event in events if event.fraction is not None]
    assert [path.name for path in (shared / ".vcluster").iterdir()] == [job.payload.name]


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(
    "change",
    [
        "echo evil >>run",
        "rm run; ln -s /etc/shadow run",
        "chmod +x deep/secret",
        "touch more",
        "rm link",
        "ln -sfn /tmp link",
        "rm big; mkfifo big",
        "truncate -s 1T big",
        "mv deep x; ln -s x deep",
        "i=0; while [ $i -lt 9000 ]; do : >$i; i=$((i + 1)); done",
    ],
)
def test_a_payload_that_a_user_of_the_nodes_changed_is_not_used(
    state: Path, shared: Path, tmp_path: Path, change: str
) -> None:
    """The script runs as root, and the user owns the payload in the shared folder."""
    job = Job.read(script(tmp_path, "./run; echo used\n"), tree(tmp_path / "payload"))
    assert job.payload
    place = shared / ".vcluster" / job.payload.name
    run(state, job, nodes=plan_of(2).workers)
    subprocess.run(["rm", "-r", tmp_path / "payloads"], check=True)  # as on a new node
    subprocess.run(["sh", "-ec", change], cwd=place, check=True)
    done, _ = run(state, job)
    assert done["node2"].exit_code == 126  # type: ignore[attr-defined]
    message = f"{place} differs from the payload: rename that folder, and run the command again"
    assert done["node2"].stderr == message  # type: ignore[attr-defined]
    assert list((tmp_path / "payloads").iterdir()) == []
    place.rename(place.with_name("renamed"))
    done, _ = run(state, job)
    assert done["node2"].stdout == "ran\nused\n"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("rules")
def test_results_in_a_payload_of_an_earlier_version_stay(state: Path, shared: Path, tmp_path: Path) -> None:
    """Earlier versions ran scripts in the shared folder itself."""
    job = Job.read(script(tmp_path, "./run\n"), tree(tmp_path / "payload"))
    assert job.payload
    former = tree(shared / ".vcluster" / f"payload-{job.payload.digest[:12]}")
    (former / "results").write_text("a year of results")
    done, _ = run(state, job)
    assert done["node2"].stdout == "ran\n"  # type: ignore[attr-defined]
    assert (former / "results").read_text() == "a year of results"


@pytest.mark.usefixtures("rules")
def test_a_single_file_is_found_in_the_working_folder(state: Path, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "a b").write_text("data\n")
    (shared / ".vcluster" / "payload-0123.part").mkdir(parents=True)  # of a killed command
    job = Job.read(script(tmp_path, 'cat "a b"\n'), tmp_path / "a b")
    done, _ = run(state, job, None, nodes=plan_of(2).workers)
    assert {name: result.stdout for name, result in done.items()} == {"node2": "data\n"}  # type: ignore[attr-defined]
    assert job.payload
    assert [path.name for path in (shared / ".vcluster").iterdir()] == [job.payload.name]


@pytest.mark.usefixtures("rules")
def test_a_payload_that_cannot_be_stored(state: Path, shared: Path, tmp_path: Path) -> None:
    (shared / ".vcluster").write_text("in the way")
    job = Job.read(script(tmp_path, "true\n"), tree(tmp_path / "payload"))
    with pytest.raises(VclusterError, match=r"node1: cannot store the payload: .*\.vcluster"):
        run(state, job)


@pytest.mark.usefixtures("rules", "shared")
def test_a_payload_that_changes_while_it_is_sent_is_removed(state: Path, shared: Path, tmp_path: Path) -> None:
    job = Job.read(script(tmp_path, "true\n"), tree(tmp_path / "payload"))
    (tmp_path / "payload" / "run").unlink()
    with pytest.raises(VclusterError, match="run changed while it was sent"):
        run(state, job)
    deadline = Deadline(10)
    while list((shared / ".vcluster").iterdir()):
        deadline.pause(0.05, "the end of what was begun")


@pytest.mark.usefixtures("rules", "shared")
@pytest.mark.parametrize(
    ("keep_going", "expected"),
    [(False, {"node1": 7, "node2": None, "node3": None}), (True, {"node1": 7, "node2": 0, "node3": 0})],
)
def test_after_a_failure(state: Path, tmp_path: Path, keep_going: bool, expected: dict[str, int | None]) -> None:
    text = 'echo "I am $VCLUSTER_NODE"; [ "$VCLUSTER_NODE" != node1 ] || exit 7\n'
    job = Job.read(script(tmp_path, text), keep_going=keep_going, fanout=1)
    done, logs = run(state, job, plan_of(3))
    assert {name: result and result.exit_code for name, result in done.items()} == expected  # type: ignore[attr-defined]
    assert (logs / "node1.log").read_text() == "I am node1\n"
    assert (logs / "node3.log").exists() is keep_going


@pytest.mark.usefixtures("rules", "shared")
def test_running_scripts_continue_after_a_failure(state: Path, tmp_path: Path) -> None:
    text = '[ "$VCLUSTER_NODE" != node1 ] || exit 7; sleep 1; echo done\n'
    done, _ = run(state, Job.read(script(tmp_path, text), fanout=2), plan_of(3))
    assert done["node2"].stdout == "done\n"  # type: ignore[attr-defined]
    assert done["node3"] is None


@pytest.mark.usefixtures("rules", "shared")
@pytest.mark.parametrize(
    ("line", "text", "exit_code", "words"),
    [
        ("#!/no/such/shell", "", 126, "cannot be run by its line #!/no/such/shell: No such file or directory"),
        ("#!/bin/sh", "kill -9 $$", 137, ""),
        ("#!/bin/sh", "exit 255", 255, ""),
        ("#!/usr/bin/env python3", "import sys; sys.exit('no')", 1, "no"),
    ],
)
def test_failures(state: Path, tmp_path: Path, line: str, text: str, exit_code: int, words: str) -> None:
    path = tmp_path / "job"
    path.write_text(f"{line}\n{text}\n")
    done, logs = run(state, Job.read(path), plan_of(1))
    assert done["node1"].exit_code == exit_code  # type: ignore[attr-defined]
    assert words in (logs / "node1.log").read_text()


@pytest.mark.usefixtures("rules", "shared")
def test_background_processes_of_a_script_are_not_awaited(state: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    done, _ = run(state, Job.read(script(tmp_path, "sleep 20 & echo started\n")), plan_of(1))
    assert done["node1"].stdout == "started\n"  # type: ignore[attr-defined]
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("shared")
def test_a_script_ends_with_its_connection(rules: Rules, state: Path, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    job = Job.read(script(tmp_path, f"echo $$ >'{mark}.new'; mv '{mark}.new' '{mark}'; exec sleep 60\n"))

    def cut() -> None:
        while not mark.exists():
            time.sleep(0.02)
        rules.cut()

    threading.Thread(target=cut, daemon=True).start()
    done, logs = run(state, job, plan_of(1))
    assert done["node1"].exit_code == provision.BROKEN  # type: ignore[attr-defined]
    assert "the connection broke during set up.sh" in (logs / "node1.log").read_text()


def test_a_script_ends_when_its_output_closes(tmp_path: Path) -> None:
    """The guest program alone: its output is a pipe whose reader closes."""
    mark = tmp_path / "pid"
    request = {
        "script": "IyEvYmluL3NoCmVjaG8gJCQgPiRNQVJLOyBleGVjIHNsZWVwIDYwCg==",  # echo $$ >$MARK; exec sleep 60
        "name": "job", "folder": None, "payload": None, "environment": {"MARK": str(mark)},
        "log": str(tmp_path / "log"),
    }  # fmt: skip
    loader = [sys.executable, "-I", "-S", "-c", program("provision").decode()]
    pipe = subprocess.PIPE
    with subprocess.Popen(loader, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        deadline = Deadline(10)
        while not mark.exists() or not mark.read_text():
            deadline.pause(0.05, "its start")
        process.stdout.close()
        assert "the reader of the output ended" in json.loads(process.stderr.read())["error"]
        assert process.wait(10) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.usefixtures("rules", "shared")
def test_the_command(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(state, plan_of(2))
    path = script(tmp_path, "echo same; [ $VCLUSTER_NODE = node1 ]\n", "check.sh")
    assert vcluster(monkeypatch, "provision", str(path), "--keep-going") == 1
    printed = capfd.readouterr()
    assert printed.out == "node[1-2]:\n  same\nnode2: exit code 1\n"
    folder = state / "clusters" / "lab" / "logs" / "provision-check.sh"
    assert printed.err.splitlines()[-1] == f"vcluster: check.sh failed on node2 (the logs are in {folder})"
    assert vcluster(monkeypatch, "provision", str(path), "-w", "node1", "-o", "json") == 0
    document = validated(["provision"], json.loads(capfd.readouterr().out))
    assert document == {"node1": {"exit_code": 0, "stdout": "same\n", "stderr": ""}}


# tmux


@pytest.fixture
def socket() -> Iterator[str]:
    tmux.require()
    name = f"vcluster-test-{os.getpid()}"
    yield name
    tmux.end(name)
    with contextlib.suppress(FileNotFoundError):
        Path(f"/tmp/tmux-{os.getuid()}/{name}").unlink()


def panes(screen: Screen) -> list[list[str]]:
    argv = ["tmux", "-L", screen.socket, "list-panes", "-t", f"={screen.session}:"]
    shown = "#{@node} #{pane_dead} #{pane_synchronized}"
    done = subprocess.run([*argv, "-F", shown], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def screen_of(socket: str, count: int, *command: str) -> Screen:
    made = tuple(Pane(f"node{number}", ("sh", "-c", *command)) for number in range(1, count + 1))
    return Screen(socket, f"{socket}-node[1-{count}]", made, True, "#{==:#{pane_dead_status},255}")


@pytest.mark.parametrize("count", [1, 4, 64])
def test_each_node_has_a_pane_and_a_second_call_finds_them(
    socket: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMUX", "/tmp/none,1,0")
    screen = screen_of(socket, count, "sleep 30")
    tmux.ensure_session(screen)
    assert panes(screen) == [[f"node{number}", "0", "1"] for number in range(1, count + 1)]
    tmux.ensure_session(screen)
    assert len(panes(screen)) == count


def test_a_pane_that_failed_stays_and_starts_again(socket: str, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    screen = screen_of(socket, 2, f"[ -e {flag} ] || exit 255; sleep 30")
    tmux.ensure_session(screen)
    deadline = Deadline(10)
    while panes(screen) != [["node1", "1", "1"], ["node2", "1", "1"]]:
        deadline.pause(0.05, "the end of both")
    flag.touch()
    tmux.ensure_session(screen)
    assert [dead for _, dead, _ in panes(screen)] == ["0", "0"]


def test_the_shell_command_creates_and_ends_panes(
    socket: str, state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(state, plan_of(3))
    monkeypatch.setattr(tmux, "socket_name", lambda _: socket)
    assert vcluster(monkeypatch, "shell", "--all", "-w", "node[2-3]", "--detach") == 0
    assert capfd.readouterr().out == f"tmux -L {socket} attach-session -t '={socket}-node[2-3]'\n"
    assert vcluster(monkeypatch, "console", "--all", "--detach") == 0
    assert capfd.readouterr().out == f"tmux -L {socket} attach-session -t ={socket}-console\n"


# The guest program `unpack`


def unpack(folder: Path, data: bytes, user: str = "root") -> list[dict[str, object]]:
    request = json.dumps({"shared": str(folder), "name": "payload-1", "user": user}).encode() + b"\n"
    argv = [sys.executable, "-I", "-S", "-c", program("unpack").decode()]
    done = subprocess.run(argv, input=request + data, capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def archive(folder: Path) -> bytes:
    (folder / "in").mkdir()
    (folder / "in" / "file").write_text("x")
    return subprocess.run(["tar", "-c", "-C", folder / "in", "."], capture_output=True, check=True).stdout


def piece(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def test_only_a_whole_archive_becomes_a_payload(tmp_path: Path) -> None:
    data = archive(tmp_path)
    absent, end = {"present": False}, bytes(4)
    cut = {"error": "the archive was cut off"}
    for sent, answer in [
        (piece(data), cut), (piece(data)[:-1], cut), (piece(data) + end[:2], cut), (b"", cut),
        (piece(b"no archive" * 100) + end, {"error": "tar: This does not look like a tar archive"}),
    ]:  # fmt: skip
        assert unpack(tmp_path, sent) == [absent, answer]
        assert not list((tmp_path / ".vcluster").iterdir())
    assert unpack(tmp_path, piece(data[:512]) + piece(data[512:]) + end) == [absent, {"present": True}]
    assert (tmp_path / ".vcluster" / "payload-1" / "file").read_text() == "x"
    assert unpack(tmp_path, b"") == [{"present": True}]


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_a_payload_belongs_to_the_clusters_user(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name)
        os.chown(shared, 65534, 65534)
        assert unpack(shared, piece(archive(tmp_path)) + bytes(4), "nobody")[-1] == {"present": True}
        found = shared / ".vcluster" / "payload-1" / "file"
        assert (found.stat().st_uid, stat.S_IMODE(found.stat().st_mode)) == (65534, 0o644)
