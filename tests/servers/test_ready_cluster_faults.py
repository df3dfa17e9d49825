"""Faults that come later than the create: a ready cluster meets them, and its commands name what is wrong."""

from __future__ import annotations

import json

import pytest

from tests.clusters import Cluster, Host
from tests.servers.conftest import Bed

pytestmark = pytest.mark.vm

DROP = "table inet foreign { chain input { type filter hook input priority 0; policy accept; udp dport 4789 drop; }; }"


@pytest.mark.rare  # a firewall at the switch, at a create, is in test_rollback_over_servers.py
@pytest.mark.parametrize("where", ["switch", "control"])
def test_a_firewall_that_drops_tunnels_is_located(bed: Bed, red: Cluster, where: str) -> None:
    """`check` names the pairs. It and `path` name the port that the frames did not reach, and the direction."""
    firewalled: Host = getattr(bed, where)
    switch = bed.switch.server.name
    lost = {
        "switch": f"switch port of red1 (vx-red-1 on {switch})",
        "control": "tunnel of red2 (vx-red-2 on localhost)",
    }
    named = f"{lost[where]} counted 0 of"
    firewalled.sh(f"nft '{DROP}'")
    try:
        path = bed.control.vcluster("path", "--name", red.name, "red1", "red2", timeout_s=120, check=False)
        check = bed.control.vcluster("check", "--name", red.name, "-o", "json", timeout_s=300, check=False)
    finally:
        firewalled.sh("nft delete table inet foreign")
    assert path.returncode == 1
    assert named in path.stderr
    assert "from red1 to red2" in path.stderr
    assert check.returncode == 1, check.stderr
    failed = [each for each in json.loads(check.stdout)["checks"] if not each["passed"]]
    assert {(each["from"], each["to"]) for each in failed if each["check"] == "ping"} == {
        ("red1", "red2"),
        ("red2", "red1"),
    }
    details = {(each["from"], each["to"]): each["detail"] for each in failed if each["check"] == "path"}
    assert named in details["red1", "red2"]
    assert bed.control.json("check", "--name", red.name, timeout_s=180)["passed"] is True


def test_a_node_with_the_identity_of_another_fails_the_check(bed: Bed, red: Cluster) -> None:
    """As a clone that did not take its identity. Its sshd has read its own host key before."""
    files = "/etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub"
    copied = {path: red.ssh("red1", f"cat {path}", user="root") for path in files.split()}
    red.ssh("red2", f"cp --parents {files} /run && hostname red1", user="root")
    try:
        for path, text in copied.items():
            red.ssh("red2", f"chmod u+w {path}; echo {text.strip()!r} >{path}", user="root")
        check = bed.control.vcluster("check", "--name", red.name, "-o", "json", timeout_s=180, check=False)
    finally:
        red.ssh("red2", "cp -r /run/etc / && hostname red2", user="root")
    assert check.returncode == 1, check.stderr
    failures = [each for each in json.loads(check.stdout)["checks"] if not each["passed"]]
    (failed,) = (each for each in failures if each["check"] == "identity")
    assert (failed["from"], failed["to"]) == ("red2", "red1")
    double = "its machine id is that of red1 too; its host key is that of red1 too"
    assert failed["detail"] == f"{double}; its host name is red1"
    assert bed.control.json("check", "--name", red.name, timeout_s=180)["passed"] is True
