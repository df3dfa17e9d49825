"""The promises about a cluster that is up, each with an id, and what was found of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REPAIR = "vcluster repair NAME"
# The commands of promises that nothing less restores.
REMAKE = "vcluster clear NAME, then create it again"

_VALUES = re.compile(r"\b(NAME|THING|PLANNED)\b")
PRESENT = "present"  # of a thing that has no properties but its name


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise. Its id is a contract with scripts.

    `fix` is the command if a thing differs from its plan, `absent` if it is not there, and `unplanned` if the plan does
    not name it. They may contain NAME, the cluster, THING, and PLANNED.
    """

    id: str
    sentence: str
    fix: str = REPAIR
    absent: str = REPAIR
    unplanned: str = ""


PROMISES = (
    # Interfaces
    Promise(
        "interface-label",
        "Each planned bridge and tunnel exists and has the owner label of the cluster.",
        fix="ip link set dev THING alias PLANNED",
    ),
    Promise(
        "bridge-settings",
        "Each bridge of the cluster network is up, has the planned MTU, and works as a plain switch.",
    ),
    Promise(
        "tunnel-settings",
        "Each tunnel is up and has its planned ends, VNI, UDP port, interface and MTU.",
    ),
    Promise(
        "bridge-ports",
        "Each bridge has its planned ports and no other.",
        fix="ip link set dev THING master PLANNED",
        unplanned="ip link set dev THING nomaster",
    ),
    Promise(
        "no-ipv6",
        "IPv6 is off on each bridge, tunnel and tap.",
        fix="sysctl -w net.ipv6.conf.THING.disable_ipv6=1 net.ipv6.conf.THING.accept_ra=0",
        absent="",
    ),
    Promise(
        "addresses",
        "The gateway of the management network is the only address of the server on these interfaces.",
        fix="",
        absent="ip address add THING",
        unplanned="ip address del THING",
    ),
    Promise(
        "routes",
        "The route to the management network is the only route of the server that leads to these interfaces.",
        fix="",
        absent="ip route add THING",
        unplanned="ip route del THING",
    ),
    Promise("link-limits", "The links have their planned limits at the switch, and no other."),
    # Packet filter
    Promise("rules-ip", "The packet filter table for IP has exactly the planned rules."),
    Promise("rules-arp", "The packet filter table for ARP has exactly the planned rules."),
    Promise("rules-bridge", "The packet filter table for bridges has exactly the planned rules."),
    Promise(
        "fault-rules",
        "The rules of faults, if there are any, are those that `vcluster fault` makes, for ports of nodes.",
        fix="vcluster fault heal --name NAME",
        absent="",
        unplanned="vcluster fault heal --name NAME",
    ),
    # Ports
    Promise(
        "dns-ports",
        "On the management network the server listens for DNS at the gateway, and on no other port.",
        fix="",
        absent="systemctl reload libvirtd",
        unplanned="ss -lnp names the program; end it",
    ),
    Promise(
        "qemu-ports",
        "QEMU of a node listens on no port.",
        fix="vcluster power cycle NAME",
        absent="",
    ),
    # libvirt
    Promise(
        "domain-label",
        "Each node is a domain with its planned UUID and the owner label, in its definition and in the running domain.",
        fix="virsh metadata THING urn:vcluster:owner:1 --key vcluster --set '<owner PLANNED/>' --config --live",
    ),
    Promise(
        "domain-devices",
        "Each domain has its planned interfaces and disks, and no other device that reaches the outside.",
        fix="virsh edit THING, or if only the running domain differs: vcluster power cycle NAME",
        absent="",
    ),
    Promise(
        "domain-processors",
        "Each domain has the planned limit of its processors, and is pinned to the planned ones.",
        fix="virsh edit THING, or if only the running domain differs: vcluster power cycle NAME",
        absent="",
    ),
    Promise("node-runs", "Each node runs."),
    Promise(
        "network",
        "The management network is active, and is defined as planned, with its owner label.",
        fix="virsh net-autostart --disable THING; vcluster repair NAME",
    ),
    Promise("pool", "The storage pool is defined as planned."),
    # Files of servers
    Promise("folder-label", "The folder of the disks contains the owner label."),
    Promise(
        "folder-mode", "Other users can open, but not list, the folder of the disks.", fix="chmod 711 THING", absent=""
    ),
    Promise(
        "disk-files",
        "Each node has its disks and its console log, which only root and QEMU can read.",
        fix="chmod 600 THING",
        absent=REMAKE,
    ),
    Promise(
        "image-files",
        "No other user can change the image of the nodes.",
        fix="chmod go-w THING",
        absent=REMAKE,
    ),
    Promise(
        "snapshot-files",
        "No other user can list or read the files of snapshots.",
        fix="chmod go-rw THING",
        absent="",
    ),
    Promise(
        "agent-files",
        "No other user can change the program of the agent.",
        fix="chmod go-w THING",
        absent="",
    ),
    Promise(
        "apparmor-profile",
        "Under AppArmor, the profile of each node has the owner label; that of a clone allows one snapshot.",
        fix="vcluster power cycle NAME",
        absent="vcluster power cycle NAME",
    ),
    Promise(
        "authorized-keys",
        "The cluster's key is once in authorized_keys of each server that it entered by password, and of no other.",
        fix="remove all but one of these lines from THING",
        absent="echo 'PLANNED' >>THING",
        unplanned="remove the line from THING",
    ),
    Promise(
        "unplanned",
        "No other interface, domain, profile or file has the owner label, or lies in the folder of the disks.",
        fix="",
        absent="",
    ),
    # The controller
    Promise("ledger", "The ledger records that the cluster is ready.", absent=""),
    Promise(
        "owner-id",
        "The state folder has the owner id of the cluster, which only its user can change.",
        fix="echo PLANNED >THING && chmod 644 THING",
        absent="echo PLANNED >THING",
    ),
    Promise(
        "state-files",
        "Only the user can read the ledger, the keys and the other files of the cluster.",
        fix="chmod go-rwx THING",
    ),
    Promise("keys", "The key files belong to the nodes of the plan, and ssh uses the key of the cluster."),
    Promise("ssh-files", "The files for plain ssh name each node, with its host key."),
    Promise("server-answers", "Each server of the cluster answers.", fix="vcluster doctor", absent=""),
)
BY_ID: Mapping[str, Promise] = {promise.id: promise for promise in PROMISES}


@dataclass(frozen=True, slots=True)
class Fact:
    """A thing that a promise is about, with its planned and its found state. `promise` is an id.

    `planned` is empty if the plan does not name the thing, `found` is empty if it is not there. `remedy` is a command
    in place of that of the promise.
    """

    promise: str
    thing: str
    planned: str
    found: str
    remedy: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the thing is as planned."""
        return self.planned == self.found

    def fix(self, cluster: str) -> str:
        """The command that fixes it, where the thing is."""
        promise = BY_ID[self.promise]
        if self.remedy:
            return self.remedy
        text = promise.unplanned if not self.planned else promise.fix if self.found else promise.absent
        values = {"NAME": cluster, "THING": self.thing, "PLANNED": self.planned}
        return _VALUES.sub(lambda found: values[found[0]], text)


@dataclass(frozen=True, slots=True)
class PromiseReport:
    """The facts that were inspected, by server."""

    cluster: str
    facts: Mapping[str, Sequence[Fact]]

    @property
    def broken(self) -> tuple[tuple[str, Fact], ...]:
        """The facts that are not as planned, each after its server."""
        return tuple((server, fact) for server, found in self.facts.items() for fact in found if not fact.is_kept)
