"""Several nodes at once: exec, terminals, parallel shells, scripts with their payload, and copies of files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from tests.clusters import Cluster
from tests.testbed import kill
from tests.vm.conftest import NODES, SUDO_COMMAND
from tests.vm.terminal import terminal

pytestmark = pytest.mark.vm


def on_each_node(cluster: Cluster, line: str, *options: str, user: str = "mpiuser") -> dict[str, str]:
    """The output of a shell line on each node, by exec."""
    argv = ["exec", "-o", "json", "-l", user, *options, "--", "sh", "-c", line]
    results = json.loads(cluster.host.vcluster(*argv).stdout)
    assert all(one["exit_code"] == 0 for one in results.values()), results
    return {node: one["stdout"] for node, one in results.items()}


# exec


def test_each_line_is_printed_at_once_after_the_name_of_its_node(cluster: Cluster) -> None:
    waiting = "echo begin; until [ -e go ]; do sleep 0.2; done; echo end >&2; [ $(hostname) != red2 ] || exit 7"
    process = cluster.host.popen("exec", "--lines", "--timeout", "60", "--", "sh", "-c", waiting)
    try:
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in NODES) == [f"{node}: begin\n" for node in NODES]
        assert process.poll() is None
        on_each_node(cluster, "touch go")
        stdout, stderr = process.communicate(timeout=300)
    finally:
        kill(process)
        on_each_node(cluster, "rm -f go")
    assert stdout == ""
    *lines, last = stderr.splitlines()
    assert sorted(lines) == [f"{node}: end" for node in NODES]
    assert last == "red2: exit code 7"
    assert process.returncode == 7


def test_fanout_1_runs_one_node_after_the_other(cluster: Cluster) -> None:
    line = "echo $(hostname) in >>cloud/turns; sleep 0.5; echo $(hostname) out >>cloud/turns"
    on_each_node(cluster, line, "--fanout", "1")
    turns = cluster.ssh("red1", "cat cloud/turns; rm cloud/turns").splitlines()
    assert turns == [f"{node} {word}" for node in NODES for word in ("in", "out")]


@pytest.mark.parametrize(
    ("options", "exit_code", "stdout"),
    [
        ([], 3, "red[1-3]: no output\nred1: exit code 1\nred2: exit code 2\nred3: exit code 3\n"),
        (["-w", "red[1-2]"], 2, "red[1-2]: no output\nred1: exit code 1\nred2: exit code 2\n"),
        (["-w", "red1", "--lines"], 1, ""),
    ],
)
def test_the_largest_exit_code_of_the_chosen_nodes(
    cluster: Cluster, options: list[str], exit_code: int, stdout: str
) -> None:
    line = "name=$(hostname); exit ${name#red}"
    ended = cluster.host.vcluster("exec", *options, "--", "sh", "-c", line, check=False)
    assert (ended.returncode, ended.stdout) == (exit_code, stdout)


# Terminals


class Panes:
    """Panes on the tmux socket of the cluster. Its folder is below /run: servers of the testbed share /tmp."""

    env: ClassVar = {"TMUX_TMPDIR": "/run/vcluster-test-tmux", "TERM": "xterm"}

    def __init__(self, cluster: Cluster) -> None:
        self.server = cluster.host.server

    def run(self, *argv: str, check: bool = True) -> str:
        """The output of a program that uses this tmux. vcluster is the one on the PATH: panes run it too."""
        return self.server.run(argv, timeout_s=300, env=self.env, check=check).stdout

    def tmux(self, *arguments: str, check: bool = True) -> str:
        """The output of tmux."""
        return self.run("tmux", "-L", "vcluster-lab", *arguments, check=check)

    def by_node(self, session: str) -> dict[str, str]:
        """The panes of a session: the id of each, by the node in its title."""
        shown = self.tmux("list-panes", "-t", f"={session}:", "-F", "#{@node} #{pane_id}")
        return dict(line.split() for line in shown.splitlines())

    def wait_for(self, pane: str, text: str, timeout_s: float = 300) -> None:
        """Wait until a pane shows this text."""
        deadline = time.monotonic() + timeout_s
        while text not in (shown := self.tmux("capture-pane", "-p", "-t", pane)):
            assert time.monotonic() < deadline, shown
            time.sleep(0.2)

    @contextlib.contextmanager
    def watched(self, command: str) -> Iterator[None]:
        """Show a session on a terminal, by this command, until its last pane has closed."""
        variables = [f"{name}={value}" for name, value in self.env.items()]
        with terminal(self.server, ["env", *variables, *shlex.split(command)]) as screen:
            deadline = time.monotonic() + 300
            while not self.tmux("list-clients"):
                assert time.monotonic() < deadline, "no terminal shows the session"
                time.sleep(0.2)
            yield
            screen.read_until("[exited]")


@pytest.fixture
def panes(cluster: Cluster) -> Iterator[Panes]:
    panes = Panes(cluster)
    panes.run("mkdir", "-m", "700", panes.env["TMUX_TMPDIR"])
    yield panes
    panes.tmux("kill-server", check=False)
    panes.run("rm", "-r", panes.env["TMUX_TMPDIR"])


def test_keys_go_to_all_shells(cluster: Cluster, panes: Panes) -> None:
    printed = panes.run("vcluster", "shell", "--all", "--detach")
    assert printed == "tmux -L vcluster-lab attach-session -t =vcluster-lab\n"
    made = panes.by_node("vcluster-lab")
    assert sorted(made) == list(NODES)
    for node, pane in made.items():
        panes.wait_for(pane, f"mpiuser@{node}:~$")
    with panes.watched(printed):
        panes.tmux("send-keys", "-t", made["red2"], "hostname >/tmp/typed; exit", "Enter")
    assert on_each_node(cluster, "cat /tmp/typed; rm /tmp/typed") == {node: f"{node}\n" for node in NODES}


def test_each_console_has_its_own_pane(cluster: Cluster, panes: Panes) -> None:
    printed = panes.run("vcluster", "console", "--all", "-w", "red[2-3]", "--detach")
    assert printed == "tmux -L vcluster-lab attach-session -t '=vcluster-lab-console-red[2-3]'\n"
    made = panes.by_node("vcluster-lab-console-red[2-3]")
    assert sorted(made) == ["red2", "red3"]
    for node, pane in made.items():
        panes.wait_for(pane, f"console of {node}; Ctrl-] leaves it")
        panes.wait_for(pane, "Escape character")
    panes.tmux("send-keys", "-t", made["red3"], "Enter", "hostname >/tmp/seen; echo $((40 + 2))", "Enter")
    panes.wait_for(made["red3"], "\n42\n")
    found = on_each_node(cluster, "cat /tmp/seen 2>/dev/null; rm -f /tmp/seen", user="root")
    assert found == {"red1": "", "red2": "", "red3": "red3\n"}
    with panes.watched(printed):
        for pane in made.values():
            panes.tmux("send-keys", "-t", pane, "C-]")


# Parallel shells and logins inside


@pytest.mark.parametrize(
    ("node", "command", "nodes"),
    [
        ("red1", "clush -a", NODES),
        ("red1", "pdsh -g workers", NODES[1:]),
        ("red3", "clush -g workers", NODES[1:]),
        ("red3", "pdsh -a", NODES),
    ],
)
def test_parallel_shells_know_the_nodes(cluster: Cluster, node: str, command: str, nodes: Sequence[str]) -> None:
    output = cluster.ssh(node, f"{command} hostname 2>&1")
    assert sorted(output.splitlines()) == [f"{one}: {one}" for one in nodes]


@pytest.mark.parametrize(("node", "other"), [("red1", "red1"), ("red1", "red2"), ("red3", "red1")])
def test_each_name_and_address_of_a_node_accepts_logins(cluster: Cluster, node: str, other: str) -> None:
    """But no frame passes between nodes on the management network."""
    one = next(one for one in cluster.host.json("status")["nodes"] if one["name"] == other)
    names = [one["name"], one["address"], *[one["management_address"], "localhost"] * (node == other)]
    login = "ssh -n -o BatchMode=yes -o StrictHostKeyChecking=yes"
    output = cluster.ssh(node, f"for name in {' '.join(names)}; do {login} $name hostname 2>&1; done")
    assert output.splitlines() == [other] * len(names)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"{SUDO_COMMAND} -u", "0"),
        ("id -un", "root"),
        ("true", "sudo: a password is required"),
        ("sh -c id", "sudo: a password is required"),
        (f"-u nobody {SUDO_COMMAND} -un", "sudo: a password is required"),
    ],
)
def test_the_user_may_be_root_for_one_program(cluster: Cluster, command: str, expected: str) -> None:
    assert cluster.ssh("red2", f"sudo -n {command} 2>&1", check=False) == f"{expected}\n"


# provision

SCRIPT = """\
#!/bin/sh
echo "$VCLUSTER_CLUSTER $VCLUSTER_HEAD $VCLUSTER_USER $(id -un)"
[ "$VCLUSTER_NODE" = "$(hostname)" ] && [ "$VCLUSTER_PAYLOAD" = "$PWD" ] && echo right >&2
cat data
./tool
"""


def test_a_script_and_its_payload(cluster: Cluster, tmp_path: Path) -> None:
    host = cluster.host
    script, payload = tmp_path / "set up.sh", tmp_path / "payload"
    payload.mkdir()
    script.write_text(SCRIPT)
    (payload / "data").write_text("data of the payload\n")
    (payload / "tool").write_text("#!/bin/sh\necho tool runs\n")
    (payload / "tool").chmod(0o755)
    printed = "lab red1 mpiuser root\nright\ndata of the payload\ntool runs\n"
    folders = []
    for _ in range(2):
        done = host.vcluster("provision", str(script), "--payload", str(payload))
        assert done.stdout == "red[1-3]:\n" + "".join(f"  {line}\n" for line in printed.splitlines())
        folders.append(cluster.ssh("red1", "stat -c '%n %i %W %U' cloud/.vcluster/*"))
        assert re.fullmatch(r"cloud/\.vcluster/payload-[0-9a-f]{16} \d+ \d+ mpiuser\n", folders[-1])
        assert on_each_node(cluster, "cat /var/log/vcluster/provision-set_up.sh.log", user="root") == dict.fromkeys(
            NODES, printed
        )
    assert folders[0] == folders[1], "the payload was sent again"
    logs = "/var/lib/vcluster/clusters/lab/logs/provision-set_up.sh"
    assert host.sh(f"cd {logs}; head -n 99 *") == "\n".join(f"==> {node}.log <==\n{printed}" for node in NODES)
    cluster.ssh("red1", "chmod u+w cloud/.vcluster/*/tool; echo 'echo I am $(id -un)' >>$(echo cloud/.vcluster/*/tool)")
    cluster.ssh("red2", "rm -r /var/lib/vcluster/payloads", user="root")
    done = host.vcluster("provision", "-w", "red2", str(script), "--payload", str(payload), check=False)
    assert done.returncode == 1
    assert "I am root" not in done.stdout
    assert "differs from the payload" in host.sh(f"cat {logs}/red2.log")
    cluster.ssh("red1", "rm -r cloud/.vcluster")


@pytest.mark.parametrize(
    ("options", "ran", "reason"),
    [
        (["--fanout", "1"], ["red1", "red2"], "bad.sh failed on red2 and was not run on red3"),
        (["--fanout", "1", "--keep-going"], list(NODES), "bad.sh failed on red2"),
        (["-w", "red[2-3]"], ["red2", "red3"], "bad.sh failed on red2"),
    ],
)
def test_a_script_that_fails_on_a_node(
    cluster: Cluster, tmp_path: Path, options: list[str], ran: list[str], reason: str
) -> None:
    script = tmp_path / "bad.sh"
    script.write_text(
        "#!/bin/sh\nhostname >>/tmp/ran\n[ $VCLUSTER_NODE != red2 ] || { sleep 2; echo no disk >&2; exit 9; }\n"
    )
    script.chmod(0o644)
    done = cluster.host.vcluster("provision", str(script), *options, "-o", "json", check=False)
    results = {node: one for node, one in json.loads(done.stdout).items() if one}
    assert {node: one["exit_code"] for node, one in results.items()} == {node: 9 * (node == "red2") for node in ran}
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"vcluster: {reason} (the logs are in /var/lib/vcluster/")
    assert on_each_node(cluster, "cat /tmp/ran 2>/dev/null; rm -f /tmp/ran", user="root") == {
        node: f"{node}\n" * (node in ran) for node in NODES
    }


# copy


def test_files_and_folders_go_to_a_node_and_come_back(cluster: Cluster, tmp_path: Path) -> None:
    folder, back = tmp_path / "a folder", tmp_path / "back"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "tool").write_text("#!/bin/sh\necho runs\n")
    (folder / "deep" / "tool").chmod(0o755)
    (folder / "note").write_text("a note\n")
    back.mkdir()
    cluster.host.vcluster("copy", str(folder), "red2:/tmp")
    assert cluster.ssh("red2", "cd '/tmp/a folder'; cat note; deep/tool; stat -c %U note") == "a note\nruns\nmpiuser\n"
    cluster.host.vcluster("copy", "-r", str(folder / "note"), str(folder / "deep"), "red2:/tmp/a folder/deep")
    assert cluster.ssh("red2", "cd '/tmp/a folder/deep'; cat note; deep/tool") == "a note\nruns\n"
    cluster.host.vcluster("copy", "red2:/tmp/a folder", str(back))
    assert (back / "a folder" / "note").read_text() == "a note\n"
    assert os.access(back / "a folder" / "deep" / "tool", os.X_OK)
    cluster.host.vcluster("copy", "-l", "root", str(folder / "note"), "red2:/root/note")
    assert cluster.ssh("red2", "cat /root/note; rm -r /root/note '/tmp/a folder'", user="root") == "a note\n"


@pytest.mark.parametrize(
    ("source", "destination", "reason"),
    [
        ("/etc/hosts", "/tmp/hosts", "no path names a node: '/etc/hosts', '/tmp/hosts'"),
        ("red1:/etc/hosts", "red2:/tmp/hosts", "both ends of the copy are on nodes"),
        ("red9:/etc/hosts", "/tmp", "cluster lab has no node 'red9'"),
        ("root@red1:/etc/hosts", "/tmp", "'root@red1' is not the name of a node (leave USER@ out; -l USER sets"),
        ("/no/such", "red1:/tmp", "'/no/such' does not exist on this machine"),
    ],
)
def test_impossible_copies_are_refused(cluster: Cluster, source: str, destination: str, reason: str) -> None:
    refused = cluster.host.vcluster("copy", source, destination, check=False)
    assert refused.returncode == 2
    assert reason in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
