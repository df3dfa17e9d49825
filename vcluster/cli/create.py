"""vcluster local create, remote create, shared create: options become a Spec, and from there on all is the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vcluster.cli import common

if TYPE_CHECKING:
    from vcluster.config.request import CreateRequest
    from vcluster.model.spec import ServerSpec
    from vcluster.stages.provision import Job

F = TypeVar("F", bound=Callable[..., Any])

# create, boot, login, configure, nfs, check; of copies: clone, identity, configure, sshd, nfs, check
STAGES = 6
# Keys that mean nothing to nodes which are all on this machine, and to a switch on this machine as well.
PLACING = frozenset({"policy"})
TUNNELLING = frozenset({"vni_base", "vxlan_port"})

interface_option = click.option(
    "--interface", envvar="VCLUSTER_INTERFACE", metavar="NAME",
    help="This server's interface for the tunnels.  [default: by route]",
)  # fmt: skip


def run_options(function: F) -> F:
    """--plan, --keep, --no-warm and -o."""
    for option in (
        common.output_option,
        click.option(
            "--no-warm",
            is_flag=True,
            envvar="VCLUSTER_NO_WARM",
            help="Do not keep the memory of a node, in the background, for the next create.",
        ),
        click.option("--keep", is_flag=True, help="Leave a failed cluster for a look."),
        click.option("--plan", "plan_only", is_flag=True, help="Print the plan and change nothing."),
    ):
        function = option(function)
    return function


class Items(click.types.StringParamType):
    """Texts of an option that may be given again and again; a variable holds them as a file does."""

    envvar_list_splitter = ","


class KeysCommand(click.Command):
    """A command with keys of [cluster] as options: all `but` some, or `only` some; the `required` must be given.

    The table of keys is slow to import, so it is looked at when the command runs.
    """

    def __init__(
        self,
        *args: Any,
        but: Collection[str] = (),
        only: Collection[str] = (),
        required: Collection[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._but, self._only, self._required = but, only, required

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The keys' options, then the command's own."""
        return [*self._options, *super().get_params(ctx)]

    @cached_property
    def _options(self) -> list[click.Option]:
        from vcluster.config.options import CLUSTER

        keys = [key for key in CLUSTER if key not in self._but and (not self._only or key in self._only)]
        return [_option(key, is_required=key in self._required) for key in keys]


def _option(key: str, *, is_required: bool) -> click.Option:
    """The option for a key. Its text is read together with all others, so that every mistake is told."""
    from vcluster.config.options import CLUSTER, option_name

    one = CLUSTER[key]
    return click.Option(
        [*filter(None, [one.short]), option_name(key), key],
        type=Items() if one.repeats else str,
        multiple=one.repeats,
        required=is_required,
        envvar=f"VCLUSTER_{key.upper()}",
        metavar=one.metavar,
        help=one.help + (f"  [default: {one.default_shown}]" if one.default_shown else ""),
    )


def texts(given: Mapping[str, str | tuple[str, ...] | None]) -> dict[str, str]:
    """What was given of these options, as a file would say it."""
    return {
        key: value if isinstance(value, str) else ", ".join(value)
        for key, value in given.items()
        if value is not None and value != ()
    }


@click.group()
def local() -> None:
    """Clusters whose nodes are all on this machine, joined by a bridge."""


@local.command("create", cls=KeysCommand, but=PLACING | TUNNELLING)
@run_options
def create_local(plan_only: bool, keep: bool, no_warm: bool, output: str, **given: Any) -> None:
    """Make a cluster on this machine and prove it ready: SSH, NFS and MPI between all nodes."""
    from vcluster.config import request

    order = request.of_options(request.read_options(texts(given)), mode="local")
    _make(order, plan_only=plan_only, keep=keep, warm=not no_warm, output=output)


@click.group()
def remote() -> None:
    """Clusters whose nodes are on this machine and whose traffic crosses a switch on another."""


@remote.command("create", cls=KeysCommand, but=PLACING)
@click.option(
    "--switch", required=True, envvar="VCLUSTER_SWITCH", metavar="HOST",
    help="The switch's server, [user@]host[:port]; ~/.ssh/config is honoured.",
)  # fmt: skip
@interface_option
@click.option(
    "--ask-password", is_flag=True, help="Ask for the switch's password; VCLUSTER_SWITCH_PASSWORD may hold it."
)
@click.option("--no-switch-setup", is_flag=True, help="The switch's half is made by hand: vcluster switch up.")
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
    """Make a cluster here whose nodes talk through the switch on HOST, also to each other.

    Each node has a bridge and a VXLAN tunnel of its own; on HOST one bridge joins all tunnels.
    """
    from vcluster.config import readers, request
    from vcluster.model.spec import LOCAL_SERVER, ServerSpec

    others = {"switch": server_of, "interface": readers.interface}
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
    """The server of --switch. One that is not logged in to needs no more than an address."""
    from vcluster.adapters.ssh import openssh_config
    from vcluster.config.readers import ASK

    if not is_reached:
        return replace(server, address=IPv4Address(openssh_config.address_of(host)))
    return replace(server, login=replace(server.login, password=ASK)) if ask_password and server.login else server


def server_of(host: str) -> ServerSpec:
    """Another server, by [user@]host[:port]."""
    import os

    from vcluster.adapters.ssh import openssh_config
    from vcluster.errors import RequestError
    from vcluster.model.spec import LOCAL_SERVER, Login, ServerSpec

    user, name, port = openssh_config.split_host(host)
    if name == LOCAL_SERVER:
        raise RequestError("the switch is this machine itself", hint="vcluster local create does that")
    password = "env:VCLUSTER_SWITCH_PASSWORD" if "VCLUSTER_SWITCH_PASSWORD" in os.environ else ""
    return ServerSpec(name, Login(name, user, port, password=password))


def servers_of(host: str) -> list[ServerSpec]:
    """The other servers of a configuration file, or the one of that name."""
    from vcluster.config import config_file

    if not host.endswith(".ini"):
        return [server_of(host)]
    spec = config_file.read(Path(host)).spec
    return [one for one in (*spec.servers, spec.switch) if one.login]


@click.group()
def shared() -> None:
    """Clusters whose nodes are spread over several servers, joined by a switch on one."""


@shared.command("create", cls=KeysCommand)
@click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG.ini")
@run_options
def create_shared(config: Path, plan_only: bool, keep: bool, no_warm: bool, output: str, **given: Any) -> None:
    """Make the cluster that CONFIG.ini describes; config.template shows such a file.

    Options win over the file's [cluster] section.
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
    """What is to be done on every node, read in whole before anything is made."""
    from vcluster.stages.provision import Job

    return Job.read(order.provision, order.payload) if order.provision else None


def _create(order: CreateRequest, job: Job | None, output: str, *, keep: bool, warm: bool) -> None:
    from vcluster.cli.output import text_output
    from vcluster.commands import create, snapshot_build

    spec = order.spec
    with common.progress(spec.node_names, stages=STAGES) as (context, timer):
        status, is_cold = create.create(
            context, spec, image_name=order.image, accel=order.accel, keep=keep, boot=order.boot, job=job
        )
        context.files(spec.name).write_timing(timer.times)
        if is_cold and warm:
            context.report.note("the next ones will be copies of a node that is kept in the background from now on")
            snapshot_build.start_in_background(spec.name)
    common.emit(output, status, lambda: text_output.created(status, timer.times))


def _show_plan(order: CreateRequest, output: str) -> None:
    from vcluster.cli.output import text_output
    from vcluster.commands import admission

    context = common.context()
    image = context.images.find(order.image)
    with context.fleet(admission.server_requests(order.spec)) as fleet:
        plan, facts = admission.plan_cluster(context, fleet, order.spec, image=image, accel=order.accel)
    common.emit(output, plan, lambda: text_output.plan(plan, facts))


COMMANDS = (local, remote, shared)
