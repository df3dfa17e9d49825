"""vcluster shell, console: one node in this terminal, or several in panes of tmux."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command
from vcluster.cli.nodes import access as ssh_access
from vcluster.cli.output import terminal
from vcluster.errors import MissingError, RequestError

if TYPE_CHECKING:
    from vcluster.adapters.tmux import Pane, Screen
    from vcluster.model.plan import Node, Plan

F = TypeVar("F", bound=Callable[..., object])

ENVIRONMENT = ("VCLUSTER_STATE_DIR", "VCLUSTER_IMAGE_DIR", "LIBVIRT_DEFAULT_URI")

all_option: Callable[[F], F] = click.option(
    "--all", "everything", is_flag=True, help="Open all nodes, each in its own pane of tmux. -w opens some of them."
)
detach_option: Callable[[F], F] = click.option(
    "--detach", is_flag=True, help="Only make the panes of --all or -w, and print the command that shows them."
)


@click.command(cls=Command)
@arguments.name_option
@all_option
@arguments.nodes_option
@arguments.user_option
@detach_option
@click.argument("node", required=False, shell_complete=arguments.complete_nodes)
def shell(
    name: str | None, everything: bool, nodeset: str | None, user: str | None, detach: bool, node: str | None
) -> None:
    """Open a shell on a node, or on many nodes in tmux.

    With --all or -w each node has its own pane, and every pane receives what you type.
    """
    from vcluster.adapters.tmux import Pane
    from vcluster.commands.nodes import access
    from vcluster.fleet import login_files

    _require_one_or_all(node, everything, nodeset, detach=detach)
    context, plan = common.open_cluster(name)
    nodes = [access.choose_node(plan, node)] if node else access.choose_nodes(plan, nodeset)
    access.require_running(context, plan, nodes)
    login_files.require(context.files(plan.name), plan)
    if node:
        ssh_access.become_ssh(context, plan, node, user)
    panes = [Pane(one.name, ssh_access.ssh_argv(context, plan, one.name, user)) for one in nodes]
    ssh_failed = "#{==:#{pane_dead_status},255}"  # ssh's own exit code
    _show(_screen(plan, nodes, panes, "", is_synchronized=True, stays=ssh_failed), detach=detach)


def _require_one_or_all(node: str | None, everything: bool, nodeset: str | None, *, detach: bool = False) -> None:
    is_many = everything or nodeset is not None
    if node and is_many:
        raise RequestError("a node and --all cannot be used together")
    if not node and not is_many:
        raise RequestError("NODE is missing", hint="name a node, or use --all")
    if detach and not is_many:
        raise RequestError("--detach works only with --all or -w")


def _screen(
    plan: Plan, nodes: Sequence[Node], panes: Sequence[Pane], kind: str, *, is_synchronized: bool, stays: str
) -> Screen:
    """Each choice of nodes has its own session; all sessions of a cluster are on one socket."""
    from vcluster.adapters import tmux
    from vcluster.model import naming

    some = "" if len(nodes) == len(plan.nodes) else "-" + naming.folded(node.name for node in nodes)
    socket = tmux.socket_name(plan.name)
    return tmux.Screen(socket, f"{socket}{kind}{some}", tuple(panes), is_synchronized, stays)


def _show(screen: Screen, *, detach: bool) -> None:
    from vcluster.adapters import tmux

    if not detach and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise MissingError("panes need a terminal", hint="--detach makes the panes and prints how to show them")
    tmux.require()
    tmux.ensure_session(screen)
    if not detach:
        sys.stdout.flush()
        tmux.attach(screen)
    terminal.print_text(shlex.join(screen.attach_argv))


@click.command(cls=Command)
@arguments.name_option
@all_option
@arguments.nodes_option
@detach_option
@click.option("--log", is_flag=True, help="Print the output of the console since power-on.")
@click.argument("node", required=False, shell_complete=arguments.complete_nodes)
def console(name: str | None, everything: bool, nodeset: str | None, detach: bool, log: bool, node: str | None) -> int:
    """Attach to the serial console of a node; Ctrl-] leaves it.

    With --all or -w each node has its own pane of tmux.
    """
    from vcluster.commands.nodes import access

    _require_one_or_all(node, everything, nodeset, detach=detach)
    context, plan = common.open_cluster(name)
    if log and not node:
        raise RequestError("--log works only with one node")
    if not log and shutil.which("virsh") is None:
        raise MissingError("virsh is not installed", hint="apt-get install libvirt-clients")
    if not node:
        _show_consoles(plan, access.choose_nodes(plan, nodeset), detach=detach)
        return 0
    chosen = access.choose_node(plan, node)
    if log:
        printed = access.read_console(context, plan, chosen)
        terminal.print_text(printed, nl=False)
        if not printed:
            terminal.print_text(f"{node} has printed nothing since power-on; a clone does not boot", err=True)
        return 0
    terminal.print_text(f"console of {node}; Ctrl-] leaves it", err=True)
    return access.attach_console(
        context, plan, chosen, on_error=lambda text: terminal.print_text(text, err=True, nl=False)
    )


def _show_consoles(plan: Plan, nodes: Sequence[Node], *, detach: bool) -> None:
    from vcluster.adapters.tmux import Pane

    # A tmux server that runs already has its own environment.
    variables = [f"{key}={value}" for key in ENVIRONMENT if (value := os.environ.get(key))]
    vcluster = ("env", *variables, sys.executable, str(Path(sys.argv[0]).absolute()), "console", "--name", plan.name)
    panes = [Pane(node.name, (*vcluster, node.name)) for node in nodes]
    console_failed = "#{!=:#{pane_dead_status},0}"
    _show(_screen(plan, nodes, panes, "-console", is_synchronized=False, stays=console_failed), detach=detach)


COMMANDS = (shell, console)
