"""How to break each promise about a cluster by hand, and to see that `verify` finds it."""

from __future__ import annotations

import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tests import unbooted_cluster
from tests.clusters import ENVIRONMENT, VCLUSTER, Host
from tests.inside import ROOT
from tests.results import validated

FOLDER = "/var/lib/libvirt/images/vcluster/clusters/lab"
STATE = "/var/lib/vcluster/clusters/lab"
SNAPSHOTS = "/var/lib/libvirt/images/vcluster/snapshots"
TABLE = "vcluster-lab-$(cat /var/lib/vcluster/owner)"
LABEL = "vcluster:lab:$(cat /var/lib/vcluster/owner)"
PRINTED = "the command that verify prints"
RESTORE = "what repair does to servers"


@dataclass(frozen=True)
class Break:
    """A shell line that breaks one promise. `thing` begins what verify names; `restore` is a shell line."""

    promise: str
    line: str
    thing: str
    restore: str = PRINTED

    def __str__(self) -> str:
        return f"{self.promise}: {self.thing}"


MONITOR = "virsh -q qemu-monitor-command lab.node1 --hmp"
# On a server with two nodes of a local cluster.
LOCAL = (
    Break("interface-label", "ip link set dev vc-lab alias mine", "vc-lab"),
    Break("bridge-settings", "ip link set dev vc-lab type bridge stp_state 1", "vc-lab", RESTORE),
    Break("bridge-settings", "ip link set dev vc-lab mtu 1400", "vc-lab", RESTORE),
    Break("bridge-settings", "ip link set dev vc-lab down", "vc-lab", RESTORE),
    Break("bridge-ports", "ip link set dev vp-lab-2 nomaster", "vp-lab-2"),
    Break("bridge-ports", "ip link set dev vm-lab-2 nomaster", "vm-lab-2"),
    Break("bridge-ports", "ip link add extra type veth peer name far; ip link set dev extra master vc-lab", "extra"),
    Break("no-ipv6", "sysctl -qw net.ipv6.conf.vc-lab.accept_ra=1", "vc-lab"),
    Break("no-ipv6", "sysctl -qw net.ipv6.conf.vc-lab.disable_ipv6=0", "vc-lab"),
    Break("no-ipv6", "sysctl -qw net.ipv6.conf.vp-lab-1.accept_ra=2", "vp-lab-1"),
    Break("addresses", "ip address add 10.0.0.250/32 dev vc-lab", "10.0.0.250/32 dev vc-lab"),
    Break("routes", "ip route add 203.0.113.0/24 dev vc-lab", "203.0.113.0/24 dev vc-lab"),
    Break("routes", "ip route del 172.28.0.0/24 dev vn-lab", "172.28.0.0/24 dev vn-lab"),
    Break("link-limits", "tc qdisc replace dev vp-lab-1 root handle 7644: htb default 2 && tc class add dev vp-lab-1 "
          "parent 7644: classid 7644:2 htb rate 1mbit", "node1 to", "tc qdisc replace dev vp-lab-1 root noqueue"),
    Break("rules-ip", f"nft delete table inet {TABLE}", "inet vcluster-lab-", RESTORE),
    Break("rules-ip", f"nft insert rule inet {TABLE} input accept", "inet vcluster-lab-", RESTORE),
    Break("rules-ip", f"nft flush chain inet {TABLE} from_nodes", "inet vcluster-lab-", RESTORE),
    Break("rules-ip", f"nft add table inet {TABLE} '{{ flags dormant; }}'", "inet vcluster-lab-", RESTORE),
    Break("rules-arp", f"nft delete table arp {TABLE}", "arp vcluster-lab-", RESTORE),
    Break("rules-bridge", f"nft delete table bridge {TABLE}", "bridge vcluster-lab-", RESTORE),
    Break("rules-bridge", f"nft flush chain bridge {TABLE} claims", "bridge vcluster-lab-", RESTORE),
    Break("fault-rules", f"nft add table bridge {TABLE}-faults", "bridge vcluster-lab-"),
    Break(
        "dns-ports",
        "kill $(cat /run/libvirt/network/vcluster-lab.pid)",
        "tcp 172.28.0.1:53",
        "kill -HUP $(cat /run/libvirtd.pid)",
    ),
    Break("qemu-ports", f"{MONITOR} 'chardev-add socket,id=open,host=127.0.0.1,port=5999,server=on,wait=off'",
          "lab.node1", f"{MONITOR} 'chardev-remove open'"),
    Break("domain-label", "virsh -q metadata lab.node1 urn:vcluster:owner:1 --remove --config", "lab.node1"),
    Break("domain-label", "virsh -q metadata lab.node1 urn:vcluster:owner:1 --remove --live", "lab.node1"),
    Break(
        "domain-devices",
        "virsh -q attach-interface lab.node1 network vcluster-lab --mac 02:00:00:00:00:09 --config",
        "lab.node1",
        "virsh -q detach-interface lab.node1 network --mac 02:00:00:00:00:09 --config",
    ),
    Break("domain-processors", "virsh -q vcpupin lab.node1 0 0 --config", "lab.node1",
          "virsh dumpxml --inactive lab.node1 | sed '/<cputune>/,/<.cputune>/d' >/run/unpinned.xml &&"
          "virsh -q define /run/unpinned.xml"),
    Break("node-runs", "virsh -q suspend lab.node2", "lab.node2", "virsh -q resume lab.node2"),
    Break("network", "virsh -q net-autostart vcluster-lab", "vcluster-lab",
          "virsh -q net-autostart --disable vcluster-lab"),
    Break("pool", "virsh -q pool-destroy vcluster-lab; virsh -q pool-undefine vcluster-lab", "vcluster-lab", RESTORE),
    Break("folder-label", f"echo mine >{FOLDER}/.vcluster-owner", FOLDER, RESTORE),
    Break("folder-mode", f"chmod 755 {FOLDER}", FOLDER),
    Break("disk-files", f"chmod 644 {FOLDER}/node1.qcow2", f"{FOLDER}/node1.qcow2"),
    Break("disk-files", f"mv {FOLDER}/node1.seed.iso /run", f"{FOLDER}/node1.seed.iso",
          f"mv /run/node1.seed.iso {FOLDER}"),
    Break("image-files", "chmod 666 /var/lib/libvirt/images/blank/disk.qcow2", "/var/lib/libvirt/images/blank/disk"),
    Break("snapshot-files", f"mkdir -p -m 711 {SNAPSHOTS} {SNAPSHOTS}/k1; touch {SNAPSHOTS}/k1/state",
          f"{SNAPSHOTS}/k1/state"),
    Break("unplanned", f"ip link add vx-lab-9 type bridge; ip link set dev vx-lab-9 alias {LABEL}",
          "interface vx-lab-9"),
    Break("unplanned", f"touch {FOLDER}/node9.qcow2", f"file {FOLDER}/node9.qcow2"),
    Break("unplanned", "virsh dumpxml --inactive lab.node1 | sed 's/lab.node1/lab.node9/; /<uuid>/d' >/run/extra.xml &&"
          "virsh -q define /run/extra.xml", "domain lab.node9", "virsh -q undefine lab.node9"),
    Break("ledger", f"sed -i '0,/\"ready\"/s//\"creating\"/' {STATE}/ledger.json", f"{STATE}/ledger.json",
          f"sed -i 's/\"creating\"/\"ready\"/' {STATE}/ledger.json"),
    Break("owner-id", "chmod 666 /var/lib/vcluster/owner", "/var/lib/vcluster/owner"),
    Break("owner-id", "cp /var/lib/vcluster/owner /run; echo 00000000deadbeef >/var/lib/vcluster/owner",
          "/var/lib/vcluster/owner"),
    Break("state-files", f"chmod 644 {STATE}/keys.json", f"{STATE}/keys.json"),
    Break("state-files", f"chmod 755 {STATE}", STATE),
    Break("state-files", f"chown 65534 {STATE}/known_hosts", f"{STATE}/known_hosts"),
    Break("keys", f"echo other >{STATE}/id_ed25519", f"{STATE}/id_ed25519", RESTORE),
    Break("ssh-files", f"sed -i 1d {STATE}/known_hosts", f"{STATE}/known_hosts", RESTORE),
    Break("ssh-files", f"sed -i s/StrictHostKeyChecking/#/ {STATE}/ssh_config", f"{STATE}/ssh_config", RESTORE),
)  # fmt: skip

KEYS = ".ssh/authorized_keys"
# On a server with a node of a shared cluster, whose switch is on the controller. A password opened this server.
DISTANT = (
    Break("tunnel-settings", "ip link set dev vx-lab-1 down", "vx-lab-1", RESTORE),
    Break("tunnel-settings", "ip link set dev vx-lab-1 type vxlan learning", "vx-lab-1"),
    Break("rules-ip", "nft delete table $(nft list tables | grep -o 'inet vcluster-lab-.*')", "inet ", RESTORE),
    Break("routes", "ip route add 203.0.113.0/24 dev vb-lab-1", "203.0.113.0/24 dev vb-lab-1"),
    Break("agent-files", "chmod 666 /var/lib/vcluster/agent/*.pyz", "/var/lib/vcluster/agent/"),
    Break("authorized-keys", f"sed -i /vcluster:lab/d /run/home/student/{KEYS}", f"/run/home/student/{KEYS}"),
    Break("authorized-keys", f"cat /run/home/student/{KEYS} >/run/keys; cat /run/keys >>/run/home/student/{KEYS}",
          f"/run/home/student/{KEYS}", f"cp /run/keys /run/home/student/{KEYS}"),
)  # fmt: skip
# Nothing else is found on a server that does not answer.
SILENT = Break("server-answers", "iptables -I INPUT -p tcp --dport 22 -j REJECT", "one", "iptables -F INPUT")


def make(host: Host, mode: str, *arguments: str, **env: str) -> None:
    """A cluster of nodes without an operating system."""
    _run(host, mode, *arguments, **env)


def make_profiles(host: Host) -> None:
    """The AppArmor profiles that its nodes get if AppArmor confines QEMU."""
    _run(host, "profiles", "lab")


def restore(host: Host, **env: str) -> None:
    """Restore the cluster `lab`, without its nodes."""
    _run(host, "restore", "lab", **env)


def _run(host: Host, *arguments: str, **env: str) -> None:
    argv = [sys.executable, "-m", "tests.unbooted_cluster", *arguments]
    host.server.run(argv, timeout_s=120, env=ENVIRONMENT | env, cwd=ROOT)


def broken(host: Host, line: str = "", **env: str) -> list[dict[str, Any]]:
    """What `verify` finds broken in the cluster `lab`, after a shell line on the controller."""
    arguments = ("verify", "lab", "-o", "json")
    script = f"{line or ':'} && exec {shlex.join((*VCLUSTER, *arguments))}"
    done = host.server.run(["sh", "-c", script], timeout_s=60, check=False, env=ENVIRONMENT | env)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    validated(arguments, found)
    assert done.returncode == (0 if found["kept"] else 1), done.stderr
    assert "Traceback" not in done.stderr
    return list(found["broken"])


def groups(breaks: Iterable[Break]) -> list[tuple[Break, ...]]:
    """Groups of breaks that one `verify` finds: in each group, each of them breaks another promise."""
    by_promise: dict[str, list[Break]] = defaultdict(list)
    for one in breaks:
        by_promise[one.promise].append(one)
    return [tuple(filter(None, row)) for row in zip_longest(*by_promise.values())]


def check(host: Host, group: Sequence[Break], place: Host | None = None, **env: str) -> list[dict[str, Any]]:
    """Break promises on a server and see that verify finds these, and no other. Then restore them; returns findings.

    The next test sees that they are restored.
    """
    (place or host).sh("set -e\n" + "\n".join(one.line for one in group))
    found = broken(host, **env)
    of = {one.promise: [each for each in found if each["id"] == one.promise] for one in group}
    try:
        assert {each["id"] for each in found} == {*of}, found
        for one in group:
            assert of[one.promise][0]["thing"].startswith(one.thing), found
            assert one.restore != RESTORE or "vcluster repair lab" in of[one.promise][0]["fix"]
        assert all(each["fix"] for each in found)
    finally:
        for one in reversed(group):
            printed = "; ".join(each["fix"] for each in of[one.promise])
            if one.restore != RESTORE:
                (place or host).sh(printed if one.restore == PRINTED else one.restore)
        if any(one.restore == RESTORE for one in group):
            restore(host, **env)
    return found


def blank_image(storage: str) -> str:
    """A shell line that makes the image of such nodes on another server, where vcluster would send it."""
    folder = f"{storage}/images/{unbooted_cluster.DIGEST}"
    return f"mkdir -p {folder}; qemu-img create -q -f qcow2 {folder}/disk.qcow2 {unbooted_cluster.DISK_MIB}M"
