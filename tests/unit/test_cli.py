"""Wrong requests: one line, exit code 2, and no question. Options and variables become a spec."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from vcluster.cli import common, key_options, main, server_arguments
from vcluster.cli.clusters import create
from vcluster.config import options, request
from vcluster.model.spec import Login, ServerSpec, Spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remote", "create"], "Missing option '--switch'"),
        (
            ["remote", "create", "--switch", "localhost"],
            "--switch: the switch is this machine itself (vcluster local create)\n",
        ),
        (["remote", "create", "--switch", "-oProxyCommand=x"], "is not a host"),
        (["remote", "create", "--switch", "a b"], "is not a host"),
        (["remote", "create", "--switch", "server2:0"], "is not a port"),
        (["remote", "create", "--switch", "server2", "--vni-base", "0"], "--vni-base"),
        (["remote", "create", "--switch", "server2", "--vxlan-port", "65536"], "--vxlan-port"),
        (["remote", "create", "--switch", "server2", "--mtu", "60"], "MTU 60"),
        (["remote", "create", "--switch", "server2", "-n", "0"], "--nodes: 0 is out of range; 1 to 1023"),
        (["shared", "create"], "Missing argument 'CONFIG.ini'"),
        (["shared", "create", "no-such.ini"], "no-such.ini does not exist"),
        (["shared", "create", "{config}", "--nodes", "many"], "--nodes: 'many'"),
        (["shared", "create", "{config}", "--memory", "lots"], "--memory: 'lots'"),
        (["shared", "create", "{config}", "--policy", "wild"], "--policy: 'wild'"),
        (["switch", "up", "-n", "2"], "Missing option '--peer'"),
        (["switch", "up", "-n", "2", "--peer", "server2"], "is not an IPv4 address"),
        (["switch", "up", "-n", "0", "--peer", "192.0.2.1"], "--nodes: 0 is out of range; 1 to 1023"),
        (["switch", "up", "--peer", "192.0.2.1"], "Missing option '-n' / '--nodes'"),
        (["switch", "up", "-n", "2", "--peer", "192.0.2.1", "--mtu", "60"], "--mtu: MTU 60"),
        (["local", "create", "--vni-base", "7"], "No such option"),
        (["remote", "create", "--switch", "server2", "--policy", "pack"], "No such option"),
        (["remote", "create", "--switch", "server2", "--interface", "a/b"], "--interface: 'a/b' is not an interface"),
        (["local", "create", "-n", "3", "--names", "a,b"], "--names: has 2 names, but --nodes is 3"),
        (["local", "create", "--memory", ""], "--memory: is empty; write a value, or remove it"),
        (["local", "create", "--sudo-command", "/bin/ls", "--sudo-command", "sh"], "--sudo-command: 'sh' is not a"),
        (["local", "create", "--sudo-command", ""], "--sudo-command: is empty; write a value, or remove it"),
        (["local", "create", "--image-password", "hunter2"], "--image-password: the password itself is not allowed"),
        (["local", "create", "--provision", "no-such.sh"], "no-such.sh: No such file"),
        (["local", "create", "--payload", "."], "--payload: needs a script: --provision"),
        (["shared", "create", "{config}", "--storage", "b:1", "--names", "a"], "--storage: 'b' is not a node"),
        (["switch", "down", "a b"], "is not a name"),
        (["doctor", "--switch", "server2", "config.ini"], "a file and --switch cannot be used together"),
        (["clear", "lab", "--on", "a b"], "is not a host"),
        (["path", "node1"], "Missing argument"),
        (["check", "--timeout", "nan"], "nan is not possible (1 to 1000000)"),
    ],
)
def test_a_wrong_request_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    file = tmp_path / "config.ini"
    file.write_text("[switch]\nhost = server2\n[server server1]\nhost = localhost\n")
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vcluster", *(word.format(config=file) for word in arguments)])
    assert main._run() == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.startswith("vcluster: ")
    assert "Traceback" not in output.err


def _order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> request.CreateRequest:
    """The request that a command makes."""
    orders: list[request.CreateRequest] = []
    monkeypatch.setattr(create, "_make", lambda order, **_: orders.append(order))
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments])
    monkeypatch.chdir(tmp_path)
    assert main._run() == 0
    return orders[0]


def test_options_and_variables_become_a_spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VCLUSTER_NODES", "3")
    monkeypatch.setenv("VCLUSTER_MEMORY", "1024")
    monkeypatch.setenv("VCLUSTER_SUDO_COMMANDS", "/bin/ls, /bin/cat")
    order = _order(
        monkeypatch, tmp_path, "remote", "create", "--switch", "ada@server2:23", "--interface", "eth0", "--disk", "10",
        "--memory", "2 GiB", "--vni-base", "700", "--cluster-number", "2", "--ask-password", "--provision", "setup.sh",
    )  # fmt: skip
    assert order.provision == tmp_path / "setup.sh"
    assert order.spec == Spec(
        name="lab2",
        mode="remote",
        node_names=("node004", "node005", "node006"),
        servers=(ServerSpec("localhost", interface="eth0"),),
        switch=ServerSpec("server2", Login("server2", "ada", 23, password="ask")),
        memory_mib=2048,
        disk_gib=10,
        vni_base=700,
        timeout_s=900,
        sudo_commands=("/bin/ls", "/bin/cat"),
    )
    again = _order(monkeypatch, tmp_path, "local", "create", "--sudo-command", "/a", "--sudo-command", "/b,/c")
    assert again.spec.sudo_commands == ("/a", "/b", "/c")


@pytest.mark.parametrize(("subnet", "is_public"), [("8.8.8.0/24", True), ("10.7.0.0/24", False)])
def test_a_public_subnet_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, subnet: str, is_public: bool
) -> None:
    monkeypatch.setenv("VCLUSTER_IMAGE_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(common, "require_root", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["vcluster", "local", "create", "--plan", "--subnet", subnet])
    assert main._run() == 2  # a plan needs an image, and the store is empty
    assert (f"warning: {subnet} has public addresses: " in capsys.readouterr().err) is is_public


def test_all_mistakes_of_a_command_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["remote", "create", "--switch", "a b", "--memory", "lots", "--interface", "a/b", "--user", "root"]
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments])
    assert main._run() == 2
    output = capsys.readouterr().err
    assert [line.removeprefix("vcluster: ").split(":")[0] for line in output.splitlines()] == [
        "--memory", "--interface", "--user", "--switch",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["local", "remote", "shared"])
def test_help_shows_every_key(mode: str) -> None:
    command = {"local": create.create_local, "remote": create.create_remote, "shared": create.create_shared}[mode]
    shown = {name for one in command.get_params(click.Context(command)) for name in one.opts}
    missing = {options.option_name(key) for key in options.CLUSTER} - shown
    assert missing == {
        "local": {"--policy", "--vni-base", "--vxlan-port"}, "remote": {"--policy"}, "shared": set(),
    }[mode]  # fmt: skip


def test_the_password_is_for_the_server_of_the_switch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "env:VCLUSTER_SWITCH_PASSWORD"
    monkeypatch.delenv("VCLUSTER_SWITCH", raising=False)
    monkeypatch.setenv("VCLUSTER_SWITCH_PASSWORD", "secret")

    def passwords(*servers: ServerSpec) -> list[str]:
        return [server.login.password for server in servers if server.login]

    assert passwords(server_arguments.switch_of("server2")) == [source]
    assert passwords(*server_arguments.servers_of("server2")) == [""]
    monkeypatch.setenv("VCLUSTER_SWITCH", "server2")
    assert passwords(*server_arguments.servers_of("server2")) == [source]
    assert passwords(*server_arguments.servers_of("server9")) == [""]


@pytest.mark.parametrize("module", [create, key_options, server_arguments], ids=lambda module: module.__name__)
def test_commands_import_slow_modules_when_they_run(module: ModuleType) -> None:
    # This process has imported all modules already, so the test reads the source.
    source = Path(str(module.__file__)).read_text()
    at_the_top = re.findall(r"^(?:from|import) (vcluster\S*)", source, re.MULTILINE)
    assert "vcluster.cli.help_layout" in at_the_top
    assert set(at_the_top) <= {
        "vcluster.cli", "vcluster.cli.help_layout", "vcluster.cli.key_options", "vcluster.cli.server_arguments",
    }  # fmt: skip
