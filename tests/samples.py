"""A small cluster for the tests, with constant keys."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.model.facts import Facts, UnderlayRoute
from vcluster.model.keys import KeyPair, Keys
from vcluster.model.naming import default_node_names
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL, Image, Login, ServerSpec, Spec
from vcluster.planning.planner import make_plan
from vcluster.planning.traffic_plan import LinkReading
from vcluster.render.ssh_files import known_hosts, ssh_config

OWNER = "0badcafe"
ROOMY = Facts(memory_free_mib=10_000_000, disk_free_mib=10_000_000, cpus=64, processors=tuple(range(64)))

DIRECT = Image(
    name="debian12",
    digest="sha256-" + "1" * 64,
    disk=Path("/images/debian12/disk.qcow2"),
    virtual_size_bytes=4 * 2**30,
    kernel=Path("/images/debian12/vmlinuz"),
    initrd=Path("/images/debian12/initrd.img"),
    kernel_cmdline="root=LABEL=x console=ttyS0",
    features=("mpich", "nfs", "ready"),
)
ORDINARY = Image("cloud", "sha256-" + "2" * 64, Path("/images/cloud/disk.qcow2"), 2 * 2**30)


def spec(count: int = 2, **options: object) -> Spec:
    """A request for a cluster named lab."""
    options.setdefault("mode", "local")
    return Spec(name="lab", node_names=default_node_names(count), **options)  # type: ignore[arg-type]


def plan(count: int = 2, *, image: Image = DIRECT, accel: str = "tcg", facts: Facts = ROOMY, **options: object) -> Plan:
    """A plan of a cluster named lab on this machine, in 10.0.0.0/24."""
    options.setdefault("subnet", IPv4Network("10.0.0.0/24"))
    observed = {LOCAL.name: replace(facts, accel=accel)}
    return make_plan(spec(count, **options), observed, image=image, owner=OWNER)


RED, BLUE, MIDDLE = (
    ServerSpec(name, Login(host=name, user="student", password="env:SECRET")) for name in ("red", "blue", "middle")
)


def shared_plan(*servers: ServerSpec, count: int = 3, switch: ServerSpec = MIDDLE, **options: object) -> Plan:
    """A plan of a cluster named lab over several servers, which have addresses in 192.0.2.0/24."""
    carriers = servers or (RED, BLUE)
    asked = spec(count, mode="shared", servers=carriers, switch=switch, subnet=IPv4Network("10.0.0.0/24"), **options)
    return make_plan(asked, shared_facts(asked), image=DIRECT, owner=OWNER)


def shared_facts(asked: Spec, **changes: object) -> dict[str, Facts]:
    """Facts of servers with much room that reach each other by eth0, with these changes."""
    servers = {server.name: server for server in (*asked.servers, asked.switch)}
    addresses = {name: IPv4Address(f"192.0.2.{number}") for number, name in enumerate(servers, start=10)}
    return {
        name: replace(
            ROOMY,
            host_key=f"ssh-ed25519 AAAA{name}" if servers[name].login else "",
            underlay_routes={
                other: UnderlayRoute(addresses[name], addresses[other], "eth0", 1500)
                for other in servers
                if other != name
            },
            **changes,  # type: ignore[arg-type]
        )
        for name in servers
    }


def keys(count: int = 2) -> Keys:
    """Fake keys in the form of real ones."""
    names = default_node_names(count)
    return Keys(pair("admin"), pair("user"), {name: pair(name) for name in names})


def pair(name: str) -> KeyPair:
    """A fake key pair."""
    return KeyPair(f"-- private {name} --\n", f"ssh-ed25519 AAAA{name} {name}@lab")


def write_files(files: ClusterFiles, plan: Plan) -> None:
    """Write the files of a cluster that is ready, without jump hosts."""
    found = keys(len(plan.nodes))
    files.folder.mkdir(parents=True, exist_ok=True)
    files.write_ledger(Ledger(VERSION, "ready", "", plan))
    files.write_keys(found)
    config = ssh_config(plan, identity=files.identity, known_hosts=files.known_hosts, jumps={})
    files.write_ssh(config=config, known_hosts=known_hosts(plan, found))


def reading(node: str, direction: str, peer: str | None = None, **values: int) -> LinkReading:
    """The limits of a direction as the kernel has them: no limit but these values, and counters that are 0."""
    counters = {each.name: 0 for each in fields(LinkReading) if each.type == "int"}
    names = {each.name for each in fields(LinkReading)} - {"node", "direction", "peer", "where"} - counters.keys()
    return LinkReading(node, direction, peer, where="switch", **{**dict.fromkeys(names), **counters, **values})  # type: ignore[arg-type]
