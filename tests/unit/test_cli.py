"""Requests about other servers that are wrong as written: one line, exit code 2, and nobody was asked anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# What commands import when they run is imported here, before sockets are forbidden: ssl builds on them.
from vcluster import access, cluster, config, doctor, removal, switch  # noqa: F401
from vcluster.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["remote", "create"], "Missing option '--switch'"),
        (["remote", "create", "--switch", "localhost"], "the switch is this machine itself"),
        (["remote", "create", "--switch", "-oProxyCommand=x"], "is not a host"),
        (["remote", "create", "--switch", "a b"], "is not a host"),
        (["remote", "create", "--switch", "server2:0"], "is not a port"),
        (["remote", "create", "--switch", "server2", "--vni-base", "0"], "--vni-base"),
        (["remote", "create", "--switch", "server2", "--vxlan-port", "65536"], "--vxlan-port"),
        (["remote", "create", "--switch", "server2", "--mtu", "60"], "MTU 60"),
        (["remote", "create", "--switch", "server2", "-n", "0"], "0 nodes make no cluster"),
        (["shared", "create"], "Missing argument 'CONFIG.ini'"),
        (["shared", "create", "no-such.ini"], "no-such.ini does not exist"),
        (["shared", "create", "{config}", "--nodes", "many"], "--nodes: 'many'"),
        (["shared", "create", "{config}", "--memory", "lots"], "--memory: 'lots'"),
        (["shared", "create", "{config}", "--policy", "wild"], "--policy: 'wild'"),
        (["switch", "up", "-n", "2"], "Missing option '--peer'"),
        (["switch", "up", "-n", "2", "--peer", "server2"], "is not an IPv4 address"),
        (["switch", "up", "-n", "0", "--peer", "192.0.2.1"], "0 tunnels make no switch"),
        (["switch", "down", "a b"], "is not a name"),
        (["doctor", "--switch", "server2", "config.ini"], "exclude each other"),
        (["clear", "lab", "--on", "a b"], "is not a host"),
        (["path", "node1"], "Missing argument"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    words: str,
) -> None:
    file = tmp_path / "config.ini"
    file.write_text("[switch]\nhost = server2\n[server server1]\nhost = localhost\n")
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vcluster", *(word.format(config=file) for word in arguments)])
    assert main._run() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.startswith("vcluster: ")
    assert "Traceback" not in said.err
