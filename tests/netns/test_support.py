"""`vcluster support` on servers with libvirt: no secret that is planted in a source reaches the archive."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests import samples
from tests.clusters import ENVIRONMENT as HERE
from tests.clusters import VCLUSTER, Host
from tests.results import validated
from tests.testbed import Server, testbed
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.model.keys import Keys, make_keys, make_pair
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL, Login, ServerSpec

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

CLUSTERS = "/var/lib/libvirt/images/vcluster/clusters"
STATE = "/var/lib/vcluster"
GONE = "172.31.255.254"  # no server of the testbed has this address
OFF = (
    "import vcluster.util.redaction as r; r.Redactor.text = lambda self, text: text;"
    " r.Redactor.document = lambda self, value, name='': value; "
)
# Passwords and tokens, by the source that they are planted in.
PLANTED = {
    "environment": "Env1ronmentSecret",
    "proxy": "ProxySecret2",
    "argv": "ArgvSecret3",
    "configuration file": "ConfigSecret4",
    "QEMU log": "QemuLogSecret5",
    "libvirt journal": "JournalSecret6",
    "kernel log": "KernelSecret7",
    "console": "ConsoleSecret8",
    "far console": "FarConsoleSecret9",
    "ledger": "LedgerSecret10",
}
TOKEN = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
FOREIGN_KEY = make_pair("someone@example.org").private
ENVIRONMENT = HERE | {
    "VCLUSTER_SWITCH_PASSWORD": PLANTED["environment"],
    "https_proxy": f"http://student:{PLANTED['proxy']}@proxy.example:3128",
    "PATH": "/run/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
JOURNALCTL = f"""#!/bin/sh
case "$*" in
*-k*)
    echo 'kernel: audit: apparmor="DENIED" profile="libvirt-UUID" name="/x" comm="token={PLANTED["kernel log"]}"'
    echo 'kernel: audit: apparmor="DENIED" profile="other-program" name="/y"';;
*)
    echo 'libvirtd[7]: lab.node1: login with password={PLANTED["libvirt journal"]} refused'
    echo 'libvirtd[7]: my-lab.node1: a line about the domain of another program';;
esac
"""


def shared(server: Server, owner: str) -> Plan:
    """A plan over this machine, a server that answers, and one that does not."""
    far = ServerSpec(server.name, Login(host=server.address, user="root"))
    gone = ServerSpec("gone", Login(host=GONE, user="root", password="file:/run/far.ini#far"), timeout_s=2.0)
    plan = samples.shared_plan(LOCAL, far, switch=gone, count=2)
    key = " ".join(server.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])
    servers = tuple(replace(each, host_key=key) if each.name == server.name else each for each in plan.servers)
    return replace(plan, owner=owner, servers=servers)


def write(host: Host, plan: Plan) -> Keys:
    """Write the ledger and the keys of a cluster that has no nodes."""
    files = ClusterFiles(host.server.path(STATE), plan.name)
    files.folder.mkdir(parents=True)
    keys = make_keys(plan.name, [node.name for node in plan.nodes], label="vcluster:lab:x")
    files.write_keys(keys)
    files.write_ledger(Ledger(VERSION, "ready", "", plan))
    return keys


def put(server: Server, path: str, text: str) -> None:
    """Write a file of a server."""
    place = server.path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with testbed("support", "far", are_friends=True) as (here, far):
        yield here, far


@pytest.fixture(scope="module")
def keys(servers: tuple[Server, Server]) -> dict[str, Keys]:
    """Two clusters whose sources have secrets, and real interfaces of a third."""
    here, far = servers
    host = Host(here)
    host.vcluster("switch", "up", "-n", "2", "--name", "hand", "--peer", GONE)
    owner = host.sh(f"cat {STATE}/owner").strip()
    local = replace(samples.plan(2), owner=owner)
    wide = replace(shared(far, owner), name="wide")
    found = {plan.name: write(host, plan) for plan in (local, wide)}
    document = json.loads(here.path(f"{STATE}/clusters/lab/ledger.json").read_text())
    here.path(f"{STATE}/clusters/newer").mkdir(mode=0o700)
    put(
        here, f"{STATE}/clusters/newer/ledger.json",
        json.dumps(document | {"note_of_a_later_version": PLANTED["ledger"]}),
    )  # fmt: skip
    here.path("/run/bin").mkdir()
    put(here, "/run/bin/journalctl", JOURNALCTL.replace("UUID", local.nodes[0].uuid))
    here.path("/run/bin/journalctl").chmod(0o755)
    put(here, "/run/far.ini", f"[far]\npassword = {PLANTED['configuration file']}\n")
    here.path("/run/far.ini").chmod(0o600)
    put(
        here, "/var/log/libvirt/qemu/lab.node1.log",
        f"2026-01-01: starting up\n-object secret,id=s,data={PLANTED['QEMU log']}\n"
        f"connected with {PLANTED['configuration file']}\n{FOREIGN_KEY}shutting down\n",
    )  # fmt: skip
    put(here, "/var/log/libvirt/qemu/my-lab.node1.log", "of another program\n")
    put(
        here, f"{CLUSTERS}/lab/node1.console.log",
        f"\x1b[2J\x1b]0;title\x07Linux boots\r\nroot password: {PLANTED['console']}\r\n"
        + found["lab"].user.private.replace("\n", "\r\n") + f"{TOKEN}\r\nnode1 login:",
    )  # fmt: skip
    put(far, f"{CLUSTERS}/lab/node2.console.log", f"far boots\nsecret: {PLANTED['far console']}\n")
    return found


def report(host: Host, path: str, *arguments: str, before: str = "") -> tuple[int, str, dict[str, bytes]]:
    """The exit code, standard error, and the files in the archive. `before` is Python that runs first."""
    argv = [sys.executable, "-c", before + VCLUSTER[2], "support", "--file", path, *arguments]
    done = host.server.run(argv, timeout_s=120, check=False, env=ENVIRONMENT)
    return done.returncode, done.stderr, members(host.server.path(path))


def members(path: Path) -> dict[str, bytes]:
    """The files in an archive by name, without its folder. Each may be read by its owner only."""
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
        entries = archive.getmembers()
        assert len({entry.name.split("/")[0] for entry in entries}) == 1
        assert all(entry.isfile() and entry.mode == 0o600 for entry in entries)
        return {entry.name.partition("/")[2]: archive.extractfile(entry).read() for entry in entries}  # type: ignore[union-attr]


def log_a_failure(host: Host, before: str = "") -> None:
    """A failed command whose error quotes its argument is in the log of commands."""
    argv = [sys.executable, "-c", before + VCLUSTER[2], "status", f"student:{PLANTED['argv']}@server2"]
    done = host.server.run(
        argv, timeout_s=60, check=False, env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    )
    assert done.returncode == 2


def planted_in(files: Mapping[str, bytes], keys: Mapping[str, Keys]) -> set[str]:
    """The sources of the secrets that are anywhere in an archive."""
    everything = b"\n".join(name.encode() + b"\n" + data for name, data in files.items())
    found = {source for source, secret in PLANTED.items() if secret.encode() in everything}
    found |= {"token"} if TOKEN.encode() in everything else set()
    for source, private in (("cluster's key", keys["lab"].user.private), ("foreign key", FOREIGN_KEY)):
        lines = private.splitlines()[1:-1]
        found |= {source} if any(line.encode() in everything for line in lines) else set()
    return found


def test_no_planted_secret_is_in_the_archive(servers: tuple[Server, Server], keys: dict[str, Keys]) -> None:
    host = Host(servers[0])
    log_a_failure(host)
    _, errors, files = report(host, "/run/report.tar.gz")
    assert planted_in(files, keys) == set()
    assert not any(secret in errors for secret in PLANTED.values())
    # What is next to the secrets is there, so each source was read.
    texts = {name: data.decode() for name, data in files.items()}
    assert "student:" not in texts["events.jsonl"]
    assert "is not a name" in texts["events.jsonl"]
    assert "starting up" in texts["servers/localhost/libvirt/lab.node1.txt"]
    assert "shutting down" in texts["servers/localhost/libvirt/lab.node1.txt"]
    assert "Linux boots\nroot password: [removed: " in texts["servers/localhost/consoles/lab.node1.txt"]
    assert texts["servers/localhost/consoles/lab.node1.txt"].endswith("node1 login:")
    assert "far boots\nsecret: [removed: " in texts[f"servers/{servers[1].name}/consoles/lab.node2.txt"]
    assert "proxy.example:3128" in texts["environment.json"]
    assert "lab.node1: login with password=[removed" in texts["servers/localhost/libvirt-journal.txt"]
    assert 'profile="libvirt-' in texts["servers/localhost/apparmor-denials.txt"]
    assert not any("\x1b" in text or "of another program" in text for text in texts.values())
    for name in ("lab", "newer"):
        assert json.loads(texts[f"clusters/{name}/plan.json"])["plan"]["nodes"][0]["name"] == "node1"
    assert "Removed:\n" in texts["README.txt"]


def test_without_redaction_each_planted_secret_is_found(servers: tuple[Server, Server], keys: dict[str, Keys]) -> None:
    """So the test above fails when a source bypasses the redaction. The ledger has a list of allowed fields instead."""
    host = Host(servers[0])
    log_a_failure(host, OFF)
    _, errors, files = report(host, "/run/open.tar.gz", before=OFF)
    host.sh(f"rm {STATE}/commands.jsonl /run/open.tar.gz")
    assert planted_in(files, keys) == {*PLANTED, "token", "cluster's key", "foreign key"} - {"ledger"}, errors


def test_servers_that_do_not_answer_are_named(servers: tuple[Server, Server], keys: dict[str, Keys]) -> None:  # noqa: ARG001
    code, errors, files = report(Host(servers[0]), "/run/gone.tar.gz", "wide")
    assert code == 1
    reason = "(timed out after 2 s|.*No route to host)"  # the kernel may be earlier
    assert re.search(f"left out: server gone: {reason}", errors)
    assert "parts are missing or not complete (the other parts are in the file)" in errors
    assert re.search(f"server_gone: {reason}", files["README.txt"].decode())
    assert not any(name.startswith("servers/gone/") for name in files)
    assert not any("/lab/" in name for name in files)


def test_a_cluster_that_does_not_exist(servers: tuple[Server, Server], keys: dict[str, Keys]) -> None:  # noqa: ARG001
    code, errors, files = report(Host(servers[0]), "/run/none.tar.gz", "none")
    assert code == 1
    assert "left out: plan of none: cluster none does not exist" in errors
    assert {"README.txt", "versions.json", "doctor.json", "servers/localhost/versions.json"} <= {*files}


def test_a_switch_without_nodes_and_real_tables(servers: tuple[Server, Server], keys: dict[str, Keys]) -> None:  # noqa: ARG001
    """The interfaces and the tables of a cluster are real ones."""
    host = Host(servers[0])
    owner = host.sh(f"cat {STATE}/owner").strip()
    host.sh(f"ip link add vc-lab type bridge && ip link set vc-lab alias vcluster:lab:{owner}")
    host.sh(f"nft add table inet vcluster-lab-{owner}; nft add chain inet vcluster-lab-{owner} input")
    _, _, files = report(host, "/run/real.tar.gz", "lab")
    names = [each["name"] for each in json.loads(files["servers/localhost/interfaces.json"])]
    assert names == ["vc-lab"]
    assert "chain input" in files[f"servers/localhost/packet-filter/vcluster-lab-{owner}.txt"].decode()
    host.sh(f"ip link del vc-lab; nft delete table inet vcluster-lab-{owner}")


@pytest.mark.slow
def test_a_libvirt_that_hangs_costs_its_parts_only(servers: tuple[Server, Server], keys: dict[str, Keys]) -> None:  # noqa: ARG001
    host = Host(servers[0])
    pid = int(host.sh("cat /run/libvirtd.pid || cat /run/libvirt/libvirtd.pid 2>/dev/null"))
    short = "import vcluster.commands.servers.support as s; s.PART_TIMEOUT_S = 20; "
    host.sh(f"kill -{signal.SIGSTOP} {pid}")
    try:
        code, errors, files = report(host, "/run/hung.tar.gz", "lab", before=short)
    finally:
        host.sh(f"kill -{signal.SIGCONT} {pid}")
    assert code == 1
    assert "left out: doctor: timed out after 20 s" in errors
    assert "servers/localhost/consoles/lab.node1.txt" in files
    assert "doctor: timed out after 20 s" in files["README.txt"].decode()


def test_nothing_is_overwritten(servers: tuple[Server, Server]) -> None:
    host = Host(servers[0])
    host.sh("echo mine >/run/mine; ln -s /run/nowhere /run/link; mkdir /run/empty")
    for path in ("/run/mine", "/run/link"):
        refused = host.vcluster("support", "--file", path, check=False)
        assert refused.returncode == 4
        assert refused.stderr == f"vcluster: {path} exists (choose another path: --file FILE)\n"
    refused = host.vcluster("support", "--file", "/run/missing/report", check=False)
    assert refused.returncode == 3
    assert "cannot write /run/missing/report: No such file or directory" in refused.stderr
    assert host.sh("cat /run/mine; ls -A /run/empty; test -e /run/nowhere || echo none") == "mine\nnone\n"


def test_the_result_is_json_and_the_name_has_a_date(servers: tuple[Server, Server], keys: dict[str, Keys]) -> None:  # noqa: ARG001
    host = Host(servers[0])
    line = f"mkdir /run/out; cd /run/out; {shlex.join([*VCLUSTER, 'support', 'lab', '-o', 'json'])}"
    done = host.server.run(["sh", "-c", line], timeout_s=120, check=False, env=ENVIRONMENT)
    result = validated(["support"], json.loads(done.stdout))
    path = result["path"]
    assert {part["part"] for part in result["parts"]} >= {"versions", "doctor", "events", "plan of lab"}
    assert Path(path).parent == Path("/run/out")
    assert host.sh("ls -A /run/out").split() == [Path(path).name]
    assert Path(path).name.startswith("vcluster-support-lab-2")
