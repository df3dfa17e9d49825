"""vcluster local create."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import click

from vcluster.cli import common

if TYPE_CHECKING:
    from vcluster.model import Spec

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


@click.group()
def local() -> None:
    """Clusters whose nodes are all on this machine, joined by a bridge."""


@local.command()
@click.option(
    "-n", "--nodes", "count", type=int, envvar="VCLUSTER_NODES", help=f"How many nodes.  [default: {NODES_DEFAULT}]"
)
@click.option("--name", default="lab", show_default=True, envvar="VCLUSTER_NAME", help="Name of the cluster.")
@click.option(
    "--names", "nodeset", envvar="VCLUSTER_NAMES", metavar="NODESET", help="Node names, such as 'red[01-05]'."
)
@click.option("--image", default="debian12", show_default=True, envvar="VCLUSTER_IMAGE", help="Guest image.")
@click.option(
    "--vcpus", type=click.IntRange(1, 64), default=1, show_default=True, envvar="VCLUSTER_VCPUS", help="CPUs a node."
)
@click.option(
    "--memory", "memory_mib", type=click.IntRange(256, 1048576), default=512, show_default=True,
    envvar="VCLUSTER_MEMORY", metavar="MIB", help="Memory a node.",
)  # fmt: skip
@click.option(
    "--disk", "disk_gib", type=click.IntRange(4, 65536), default=8, show_default=True, envvar="VCLUSTER_DISK",
    metavar="GIB", help="Disk a node; it takes room only as it fills.",
)  # fmt: skip
@click.option(
    "--subnet", type=Subnet(), envvar="VCLUSTER_SUBNET", help="Cluster network.  [default: 10.0.0.0/24 or next free]"
)
@click.option(
    "--mtu", type=int, default=1450, show_default=True, envvar="VCLUSTER_MTU", help="MTU of the cluster network."
)
@click.option(
    "--boot", type=click.Choice(["auto", "cold"]), default="auto", show_default=True, envvar="VCLUSTER_BOOT",
    help="How nodes come up.",
)  # fmt: skip
@click.option(
    "--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True, envvar="VCLUSTER_ACCEL",
    help="Hardware virtualisation, emulation, or what works.",
)  # fmt: skip
@common.timeout_option(900)
@click.option("--plan", "plan_only", is_flag=True, help="Print the plan and change nothing.")
@click.option("--keep", is_flag=True, help="Leave a failed cluster for a look.")
@common.output_option
def create(
    name: str, count: int | None, nodeset: str | None, image: str, accel: str, plan_only: bool, keep: bool, output: str,
    boot: str, **wishes: Any,
) -> None:  # fmt: skip
    """Make a cluster on this machine and prove it ready: SSH, NFS and MPI between all nodes."""
    from vcluster import addressing, naming
    from vcluster.model import Spec

    del boot  # auto and cold are the same thing until nodes can be cloned
    addressing.check_mtu(wishes["mtu"])
    names = naming.node_names(count, nodeset, count_default=NODES_DEFAULT)
    spec = Spec(name=naming.check_cluster_name(name), mode="local", node_names=names, **wishes)
    if plan_only:
        _show_plan(spec, image, accel, output)
    else:
        _create(spec, image, accel, output, keep=keep)


def _create(spec: Spec, image: str, accel: str, output: str, *, keep: bool) -> None:
    from vcluster import cluster
    from vcluster.cli import show

    with common.progress(spec.node_names, stages=STAGES) as (site, timer):
        status = cluster.create(site, spec, image_name=image, accel=accel, keep=keep)
        site.files(spec.name).write_timing(timer.times)
    common.emit(output, status, lambda: show.created(status, timer.times))


def _show_plan(spec: Spec, image: str, accel: str, output: str) -> None:
    from vcluster import cluster
    from vcluster.cli import show

    site = common.site()
    found = site.images.find(image)
    with site.server() as server:
        plan = cluster.plan(site, server, spec, image=found, accel=cluster.choose_accel(site, accel, found)[0])
    common.emit(output, plan, lambda: show.plan(plan))


COMMANDS = (local,)
