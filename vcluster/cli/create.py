"""vcluster local create, remote create, shared create: options become a Spec, and from there on all is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vcluster.cli import common

if TYPE_CHECKING:
    from vcluster.config import Wishes
    from vcluster.model import ServerSpec, Spec

F = TypeVar("F", bound=Callable[..., Any])

NODES_DEFAULT = 4
# create, boot, login, ssh, nfs, mpi, check
STAGES = 7


class Subnet(click.ParamType):  # type: ignore[type-arg]
    """A subnet a cluster can live in."""

    name = "subnet"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Network:  # noqa: ARG002
        """From text such as 10.0.0.0/24."""
        from vcluster.addressing import parse_subnet

        return value if isinstance(value, IPv4Network) else parse_subnet(value)


NODE_OPTIONS = (
    click.option(
        "-n", "--nodes", "count", type=int, envvar="VCLUSTER_NODES", help=f"How many nodes.  [default: {NODES_DEFAULT}]"
    ),
    click.option("--name", default="lab", show_default=True, envvar="VCLUSTER_NAME", help="Name of the cluster."),
    click.option(
        "--names", "nodeset", envvar="VCLUSTER_NAMES", metavar="NODESET", help="Node names, such as 'red[01-05]'."
    ),
    click.option("--image", default="debian12", show_default=True, envvar="VCLUSTER_IMAGE", help="Guest image."),
    click.option(
        "--vcpus",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        envvar="VCLUSTER_VCPUS",
        help="CPUs a node.",
    ),
    click.option(
        "--memory",
        "memory_mib",
        type=click.IntRange(256, 1048576),
        default=512,
        show_default=True,
        envvar="VCLUSTER_MEMORY",
        metavar="MIB",
        help="Memory a node.",
    ),
    click.option(
        "--disk",
        "disk_gib",
        type=click.IntRange(4, 65536),
        default=8,
        show_default=True,
        envvar="VCLUSTER_DISK",
        metavar="GIB",
        help="Disk a node; it takes room only as it fills.",
    ),
    click.option(
        "--subnet",
        type=Subnet(),
        envvar="VCLUSTER_SUBNET",
        help="Cluster network.  [default: 10.0.0.0/24 or next free]",
    ),
    click.option(
        "--mtu", type=int, default=1450, show_default=True, envvar="VCLUSTER_MTU", help="MTU of the cluster network."
    ),
    click.option(
        "--boot",
        type=click.Choice(["auto", "cold"]),
        default="auto",
        show_default=True,
        envvar="VCLUSTER_BOOT",
        help="How nodes come up.",
    ),
    click.option(
        "--accel",
        type=click.Choice(["auto", "kvm", "tcg"]),
        default="auto",
        show_default=True,
        envvar="VCLUSTER_ACCEL",
        help="Hardware virtualisation, emulation, or what works.",
    ),
    common.timeout_option(900),
)
RUN_OPTIONS = (
    click.option("--plan", "plan_only", is_flag=True, help="Print the plan and change nothing."),
    click.option("--keep", is_flag=True, help="Leave a failed cluster for a look."),
    common.output_option,
)
TUNNEL_OPTIONS = (
    click.option(
        "--vni-base",
        type=click.IntRange(1, 2**24 - 1),
        default=40,
        show_default=True,
        envvar="VCLUSTER_VNI_BASE",
        help="The first VXLAN network identifier to try.",
    ),
    click.option(
        "--vxlan-port",
        type=click.IntRange(1, 65535),
        default=4789,
        show_default=True,
        envvar="VCLUSTER_VXLAN_PORT",
        metavar="PORT",
        help="UDP port of the tunnels.",
    ),
    click.option(
        "--interface",
        envvar="VCLUSTER_INTERFACE",
        default="",
        help="This server's interface for the tunnels.  [default: by route]",
    ),
)


def with_options(*groups: tuple[Callable[[F], F], ...]) -> Callable[[F], F]:
    """A decorator that adds groups of options, in order."""

    def add(function: F) -> F:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return add


@dataclass(frozen=True, slots=True)
class Order:
    """A spec and how it is to be made."""

    spec: Spec
    image: str
    accel: str


def _order(
    mode: str, *, name: str, count: int | None, nodeset: str | None, image: str, accel: str, **wishes: Any
) -> Order:
    from vcluster import addressing, naming
    from vcluster.model import Spec

    wishes.pop("boot", None)  # auto and cold are the same thing until nodes can be cloned
    addressing.check_mtu(wishes["mtu"])
    names = naming.node_names(count, nodeset, count_default=NODES_DEFAULT)
    spec = Spec(name=naming.check_cluster_name(name), mode=mode, node_names=names, **wishes)
    return Order(spec, image, accel)


@click.group()
def local() -> None:
    """Clusters whose nodes are all on this machine, joined by a bridge."""


@local.command("create")
@with_options(NODE_OPTIONS, RUN_OPTIONS)
def create_local(plan_only: bool, keep: bool, output: str, **wishes: Any) -> None:
    """Make a cluster on this machine and prove it ready: SSH, NFS and MPI between all nodes."""
    _make(_order("local", **wishes), plan_only=plan_only, keep=keep, output=output)


@click.group()
def remote() -> None:
    """Clusters whose nodes are on this machine and whose traffic crosses a switch on another."""


@remote.command("create")
@click.option(
    "--switch", "host", required=True, envvar="VCLUSTER_SWITCH", metavar="HOST",
    help="The switch's server, [user@]host[:port]; ~/.ssh/config is honoured.",
)  # fmt: skip
@with_options(NODE_OPTIONS, TUNNEL_OPTIONS)
@click.option(
    "--ask-password", is_flag=True, help="Ask for the switch's password; VCLUSTER_SWITCH_PASSWORD may hold it."
)
@click.option("--no-switch-setup", is_flag=True, help="The switch's half is made by hand: vcluster switch up.")
@with_options(RUN_OPTIONS)
def create_remote(
    host: str, interface: str, ask_password: bool, no_switch_setup: bool, plan_only: bool, keep: bool, output: str,
    **wishes: Any,
) -> None:  # fmt: skip
    """Make a cluster here whose nodes talk through the switch on HOST, also to each other.

    Each node has a bridge and a VXLAN tunnel of its own; on HOST one bridge joins all tunnels.
    """
    from vcluster.model import LOCAL_SERVER, ServerSpec

    order = _order(
        "remote",
        servers=(ServerSpec(LOCAL_SERVER, interface=interface),),
        switch=_switch(host, ask_password=ask_password, is_reached=not no_switch_setup),
        sets_up_switch=not no_switch_setup,
        **wishes,
    )
    _make(order, plan_only=plan_only, keep=keep, output=output)


def _switch(host: str, *, ask_password: bool, is_reached: bool) -> ServerSpec:
    """The server of --switch. One that is not logged in to needs no more than an address."""
    from vcluster.hosts import ssh_config

    server = server_of(host, ask_password=ask_password)
    return server if is_reached else replace(server, address=IPv4Address(ssh_config.address_of(host)))


def server_of(host: str, *, ask_password: bool = False) -> ServerSpec:
    """Another server, by [user@]host[:port]."""
    import os

    from vcluster.errors import RequestError
    from vcluster.hosts import ssh_config
    from vcluster.model import LOCAL_SERVER, Login, ServerSpec

    user, name, port = ssh_config.split_host(host)
    if name == LOCAL_SERVER:
        raise RequestError("the switch is this machine itself", hint="vcluster local create does that")
    password = "env:VCLUSTER_SWITCH_PASSWORD" if "VCLUSTER_SWITCH_PASSWORD" in os.environ else ""
    return ServerSpec(name, Login(name, user, port, password="ask" if ask_password else password))


def servers_of(host: str) -> list[ServerSpec]:
    """The other servers of a configuration file, or the one of that name."""
    from vcluster import config

    if not host.endswith(".ini"):
        return [server_of(host)]
    spec = config.read(Path(host)).spec
    return [one for one in (*spec.servers, spec.switch) if one.login]


@click.group()
def shared() -> None:
    """Clusters whose nodes are spread over several servers, joined by a switch on one."""


# Keys of the file's [cluster] section that options override.
OVERRIDES = {
    "nodes": "How many nodes.",
    "name": "Name of the cluster.",
    "names": "Node names, such as 'red[01-05]'.",
    "image": "Guest image.",
    "vcpus": "CPUs a node.",
    "memory": "Memory a node, such as 512 MiB.",
    "disk": "Disk a node, such as 8 GiB.",
    "subnet": "Cluster network.",
    "mtu": "MTU of the cluster network.",
    "boot": "How nodes come up: auto or cold.",
    "accel": "auto, kvm or tcg.",
    "timeout": "Give up after so many seconds.",
    "policy": "How nodes are laid over servers: spread or pack.",
    "vni_base": "The first VXLAN network identifier to try.",
    "vxlan_port": "UDP port of the tunnels.",
}
OVERRIDE_OPTIONS = tuple(
    click.option(
        *(["-n"] if key == "nodes" else []), f"--{key.replace('_', '-')}", key,
        envvar=f"VCLUSTER_{key.upper()}", metavar=key.upper(), help=text,
    )
    for key, text in OVERRIDES.items()
)  # fmt: skip


@shared.command("create")
@click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG.ini")
@with_options(OVERRIDE_OPTIONS, RUN_OPTIONS)
def create_shared(config: Path, plan_only: bool, keep: bool, output: str, **given: str | None) -> None:
    """Make the cluster that CONFIG.ini describes; config.template shows such a file.

    Options win over the file's [cluster] section.
    """
    from vcluster import config as configuration
    from vcluster.images.store import DEFAULT_IMAGE

    overrides = {key: value for key, value in given.items() if value is not None}
    wishes: Wishes = configuration.read(config, overrides=overrides)
    order = Order(wishes.spec, wishes.image or DEFAULT_IMAGE, wishes.accel)
    _make(order, plan_only=plan_only, keep=keep, output=output)


def _make(order: Order, *, plan_only: bool, keep: bool, output: str) -> None:
    if plan_only:
        _show_plan(order, output)
    else:
        _create(order, output, keep=keep)


def _create(order: Order, output: str, *, keep: bool) -> None:
    from vcluster import cluster
    from vcluster.cli import show

    spec = order.spec
    with common.progress(spec.node_names, stages=STAGES) as (site, timer):
        status = cluster.create(site, spec, image_name=order.image, accel=order.accel, keep=keep)
        site.files(spec.name).write_timing(timer.times)
    common.emit(output, status, lambda: show.created(status, timer.times))


def _show_plan(order: Order, output: str) -> None:
    from vcluster import cluster
    from vcluster.cli import show

    site = common.site()
    image = site.images.find(order.image)
    with site.fleet(cluster.wants_of(order.spec)) as fleet:
        plan, facts = cluster.plan(site, fleet, order.spec, image=image, accel=order.accel)
    common.emit(output, plan, lambda: show.plan(plan, facts))


COMMANDS = (local, remote, shared)
