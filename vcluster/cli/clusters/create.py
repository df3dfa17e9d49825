"""vcluster local create, remote create, shared create: options become a Spec, and after that all modes are one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vcluster.cli import common
from vcluster.cli.help_layout import Group, PanelOption, examples
from vcluster.cli.key_options import KeysCommand, texts
from vcluster.cli.server_arguments import interface_option, switch_of

if TYPE_CHECKING:
    from vcluster.config.request import CreateRequest
    from vcluster.fleet.context import Context
    from vcluster.model.spec import ServerSpec
    from vcluster.stages.provision import Job

F = TypeVar("F", bound=Callable[..., Any])

# Keys without a meaning when all nodes are on this machine, or when the switch is.
PLACING = frozenset({"policy"})
TUNNELLING = frozenset({"vni_base", "vxlan_port"})

# Panels of help. The keys name theirs in vcluster.config.options, which is slow to import.
NETWORK, START, RUN_CONTROL = "Network and switch", "How nodes start", "Run control"


def run_options(function: F) -> F:
    """--plan, --keep, --no-warm and -o."""
    for option in (
        click.option(
            "-o", "--output", cls=PanelOption, panel=RUN_CONTROL, type=click.Choice(["text", "json"]), default="text",
            envvar="VCLUSTER_OUTPUT", help="Format of the result.",
        ),
        click.option(
            "--no-warm", cls=PanelOption, panel=START, is_flag=True, envvar="VCLUSTER_NO_WARM",
            help="Do not make a snapshot in the background for the next create.",
        ),
        click.option(
            "--keep", cls=PanelOption, panel=RUN_CONTROL, is_flag=True, help="Keep a failed cluster for inspection."
        ),
        click.option(
            "--plan", "plan_only", cls=PanelOption, panel=RUN_CONTROL, is_flag=True,
            help="Print the plan and change nothing.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


# Names that other tools give to `create`.
CREATE_NAMES = ("up", "new", "start", "make", "init", "launch", "deploy", "run", "apply")


@click.group(cls=Group, guidance=dict.fromkeys(CREATE_NAMES, ("local create -n 4",)))
def local() -> None:
    """Create a cluster on this machine.

    A bridge on this machine joins the nodes.
    """


@local.command(
    "create",
    cls=KeysCommand,
    but=PLACING | TUNNELLING,
    epilog=examples(
        "sudo vcluster local create -n 4",
        "sudo vcluster local create -n 8 --name big --memory 1GiB --vcpus 2",
        "sudo vcluster local create -n 4 --plan     print the plan, create nothing",
    ),
)
@run_options
def create_local(plan_only: bool, keep: bool, no_warm: bool, output: str, **given: Any) -> None:
    """Create a cluster on this machine, and check SSH, NFS and MPI between its nodes."""
    from vcluster.config import request

    order = request.of_options(request.read_options(texts(given)), mode="local")
    _make(order, plan_only=plan_only, keep=keep, warm=not no_warm, output=output)


@click.group(cls=Group, guidance=dict.fromkeys(CREATE_NAMES, ("remote create --switch HOST",)))
def remote() -> None:
    """Create a cluster here, with its switch on another server."""


@remote.command(
    "create",
    cls=KeysCommand,
    but=PLACING,
    epilog=examples(
        "sudo vcluster remote create --switch server2 -n 4",
        "sudo vcluster remote create --switch admin@192.0.2.7:2222 -n 4 --plan",
        "sudo vcluster doctor --switch server2     check this machine and the switch's server first",
    ),
)
@click.option(
    "--switch", cls=PanelOption, panel=NETWORK, required=True, envvar="VCLUSTER_SWITCH", metavar="HOST",
    help="The switch's server: [user@]host[:port], or a Host of ~/.ssh/config.",
)  # fmt: skip
@interface_option
@click.option(
    "--ask-password",
    cls=PanelOption,
    panel=NETWORK,
    is_flag=True,
    help="Ask for the password of the login to HOST. The variable VCLUSTER_SWITCH_PASSWORD can hold it instead.",
)
@click.option(
    "--no-switch-setup", cls=PanelOption, panel=NETWORK, is_flag=True,
    help="Do not log in to HOST; its administrator runs `vcluster switch up` there.",
)  # fmt: skip
@run_options
def create_remote(
    switch: str,
    ask_password: bool,
    no_switch_setup: bool,
    plan_only: bool,
    keep: bool,
    no_warm: bool,
    output: str,
    **given: Any,
) -> None:
    """Create a cluster on this machine whose traffic crosses the switch on HOST.

    Each node has its own bridge and its own VXLAN tunnel. On HOST one bridge joins all tunnels, so two nodes of this
    machine exchange their traffic through HOST too.
    """
    from vcluster.config import readers, request
    from vcluster.model.spec import LOCAL_SERVER, ServerSpec

    others = {"switch": switch_of, "interface": readers.interface}
    asked = request.read_options(texts(given) | {"switch": switch}, others)
    order = request.of_options(asked, mode="remote")
    spec = replace(
        order.spec,
        servers=(ServerSpec(LOCAL_SERVER, interface=asked.get("interface", "")),),
        switch=_switch(asked.get("switch"), switch, ask_password=ask_password, is_reached=not no_switch_setup),
        sets_up_switch=not no_switch_setup,
    )
    _make(replace(order, spec=spec), plan_only=plan_only, keep=keep, warm=not no_warm, output=output)


def _switch(server: ServerSpec, host: str, *, ask_password: bool, is_reached: bool) -> ServerSpec:
    """The server of --switch. Without a login only its address is needed."""
    from vcluster.adapters.ssh import openssh_config
    from vcluster.config.readers import ASK

    if not is_reached:
        return replace(server, address=IPv4Address(openssh_config.address_of(host)))
    return replace(server, login=replace(server.login, password=ASK)) if ask_password and server.login else server


@click.group(cls=Group, guidance=dict.fromkeys(CREATE_NAMES, ("shared create CONFIG.ini",)))
def shared() -> None:
    """Create a cluster over several servers."""


@shared.command(
    "create",
    cls=KeysCommand,
    has_file=True,
    epilog=examples(
        "sudo vcluster shared create config.ini",
        "sudo vcluster shared create config.ini --name test -n 8",
        "sudo vcluster doctor config.ini     check the servers of the file first",
    ),
)
@click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG.ini")
@run_options
def create_shared(config: Path, plan_only: bool, keep: bool, no_warm: bool, output: str, **given: Any) -> None:
    """Create the cluster that CONFIG.ini describes.

    config.template shows such a file. Options override its [cluster] section.
    """
    from vcluster.config import config_file as configuration

    order = configuration.read(config, overrides=texts(given))
    _make(order, plan_only=plan_only, keep=keep, warm=not no_warm, output=output)


def _make(order: CreateRequest, *, plan_only: bool, keep: bool, warm: bool, output: str) -> None:
    job = _job(order)
    if plan_only:
        _show_plan(order, output)
    else:
        _create(order, job, output, keep=keep, warm=warm)


def _job(order: CreateRequest) -> Job | None:
    """The provisioning script and its payload, read completely before anything is created."""
    from vcluster.stages.provision import Job

    return Job.read(order.provision, order.payload) if order.provision else None


def _create(order: CreateRequest, job: Job | None, output: str, *, keep: bool, warm: bool) -> None:
    from vcluster.cli.output import status_report
    from vcluster.commands.clusters import create
    from vcluster.commands.steps import snapshot_build
    from vcluster.stages.stage_table import NODE_STAGES

    spec = order.spec
    with common.progress(spec.node_names, stages=NODE_STAGES) as (context, timer):
        if order.spec.mode != "shared":
            common.require_root(context)
        common.invocation().cluster = spec.name
        _warn_of_public_subnet(order, context)
        status, is_cold = create.create(
            context, spec, image_name=order.image, accel=order.accel, keep=keep, boot=order.boot, job=job
        )
        context.files(spec.name).write_timing(timer.times)
        if is_cold and warm:
            context.report.note("a snapshot of a node is made in the background; the next create clones it")
            snapshot_build.start_in_background(spec.name)
    reader = common.reader(spec.name)
    document = status_report.created_document(status, timer.times)
    common.emit(output, document, lambda written: status_report.created_text(written, reader))


def _show_plan(order: CreateRequest, output: str) -> None:
    from vcluster.cli.output import plan_report
    from vcluster.cli.output.progress import ProgressLines
    from vcluster.commands.steps import admission

    context = common.context(ProgressLines(complete=common.reader().complete))
    if order.spec.mode != "shared":
        common.require_root(context)
    _warn_of_public_subnet(order, context)
    image = context.images.find(order.image)
    with context.fleet(admission.server_requests(order.spec)) as fleet:
        plan, facts = admission.admit(context, fleet, order.spec, image=image, accel=order.accel)
    common.emit(output, plan_report.document(plan, facts), plan_report.text)


def _warn_of_public_subnet(order: CreateRequest, context: Context) -> None:
    subnet = order.spec.subnet
    if subnet and not subnet.is_private:
        context.report.note(
            f"warning: {subnet} has public addresses: the nodes and this machine cannot reach the real hosts there"
        )


COMMANDS = (local, remote, shared)
