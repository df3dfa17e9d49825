"""vcluster ssh, shell, exec, copy, mpiexec, console, path, ssh-config."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

from vcluster.cli import common
from vcluster.errors import MissingError, RequestError, SeveralErrors, VclusterError
from vcluster.util.deadline import Cancelled

if TYPE_CHECKING:
    from vcluster.adapters.process import Completed
    from vcluster.adapters.tmux import Pane, Screen
    from vcluster.fleet.context import Context
    from vcluster.model.plan import Node, Plan

F = TypeVar("F", bound=Callable[..., object])

FANOUT = 64
ENVIRONMENT = ("VCLUSTER_STATE_DIR", "VCLUSTER_IMAGE_DIR", "LIBVIRT_DEFAULT_URI")

# Everything from the first word that is no option of ours on belongs to the command that is run.
REST = {"ignore_unknown_options": True, "allow_interspersed_args": False}


nodes_option: Callable[[F], F] = click.option(
    "-w", "--nodes", "nodeset", metavar="NODES", help="On these nodes only, such as 'node[2-3]'."
)
fanout_option: Callable[[F], F] = click.option(
    "--fanout", type=click.IntRange(min=1), default=FANOUT, show_default=True, help="On so many nodes at a time."
)
user_option: Callable[[F], F] = click.option(
    "-l", "--user", metavar="USER", help="As this user; root works too.  [default: the cluster's own]"
)
all_option: Callable[[F], F] = click.option(
    "--all", "everything", is_flag=True, help="On all nodes, each in a pane of tmux; with -w on some."
)
detach_option: Callable[[F], F] = click.option(
    "--detach", is_flag=True, help="With --all: make the panes and say how to get there."
)


def cluster(name: str | None) -> tuple[Context, Plan]:
    from vcluster.commands import inventory

    context = common.context()
    return context, inventory.read_ledger(context.files(inventory.only_cluster(context, name))).plan


def _become(program: str, *arguments: str, package: str) -> NoReturn:
    """Be that program from now on."""
    if shutil.which(program) is None:
        raise MissingError(f"{program} is not installed", hint=f"apt-get install {package}")
    sys.stdout.flush()
    os.execvp(program, [program, *arguments])  # noqa: S606 - no shell is wanted


def _ssh_argv(context: Context, plan: Plan, node: str, user: str | None, *arguments: str) -> tuple[str, ...]:
    login = ["-l", user] if user else []
    return ("ssh", "-F", str(context.files(plan.name).ssh_config), *login, "--", node, *arguments)


def _ssh(context: Context, plan: Plan, node: str, user: str | None, *arguments: str) -> NoReturn:
    _become(*_ssh_argv(context, plan, node, user, *arguments), package="openssh-client")


@click.command()
@common.name_option
@user_option
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str | None, user: str | None, node: str, command: tuple[str, ...]) -> None:
    """Log in to a node, or run a command there: vcluster ssh node2 -- ls -l."""
    from vcluster.commands import access

    context, plan = cluster(name)
    access.choose_node(plan, node)
    _ssh(context, plan, node, user, *([shlex.join(command)] if command else []))


@click.command(context_settings=REST)
@common.name_option
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def mpiexec(name: str | None, arguments: tuple[str, ...]) -> None:
    """Run mpiexec on the head, as the cluster's user, over the cluster's hostfile."""
    context, plan = cluster(name)
    _ssh(context, plan, plan.head.name, None, shlex.join(["mpiexec", *arguments]))


@click.command()
@common.name_option
@all_option
@nodes_option
@user_option
@detach_option
@click.argument("node", required=False)
def shell(
    name: str | None, everything: bool, nodeset: str | None, user: str | None, detach: bool, node: str | None
) -> None:
    """Log in to a node, or with --all to all of them at once: what is typed goes to every pane of the screen."""
    from vcluster.adapters.tmux import Pane
    from vcluster.commands import access

    _one_or_all(node, everything, nodeset, detach=detach)
    context, plan = cluster(name)
    if node:
        access.choose_node(plan, node)
        _ssh(context, plan, node, user)
    nodes = access.choose_nodes(plan, nodeset)
    panes = [Pane(one.name, _ssh_argv(context, plan, one.name, user)) for one in nodes]
    broke = "#{==:#{pane_dead_status},255}"  # ssh's own exit code
    _show(_screen(plan, nodes, panes, "", is_synchronized=True, stays=broke), detach=detach)


def _one_or_all(node: str | None, everything: bool, nodeset: str | None, *, detach: bool = False) -> None:
    is_many = everything or nodeset is not None
    if node and is_many:
        raise RequestError("a node and --all exclude each other")
    if not node and not is_many:
        raise RequestError("no node is named", hint="say which, or --all")
    if detach and not is_many:
        raise RequestError("--detach is for --all")


def _screen(
    plan: Plan, nodes: Sequence[Node], panes: Sequence[Pane], kind: str, *, is_synchronized: bool, stays: str
) -> Screen:
    """Each choice of nodes has a session of its own; all sessions of a cluster are on one socket."""
    from vcluster.adapters import tmux
    from vcluster.model import naming

    some = "" if len(nodes) == len(plan.nodes) else "-" + naming.folded(node.name for node in nodes)
    socket = tmux.socket_name(plan.name)
    return tmux.Screen(socket, f"{socket}{kind}{some}", tuple(panes), is_synchronized, stays)


def _show(screen: Screen, *, detach: bool) -> None:
    from vcluster.adapters import tmux

    if not detach and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise MissingError("this is no terminal", hint="--detach makes the panes and says how to get there")
    tmux.require()
    tmux.make(screen)
    if not detach:
        sys.stdout.flush()
        tmux.attach(screen)
    click.echo(shlex.join(screen.attach_argv))


@click.command("exec", context_settings=REST)
@common.name_option
@nodes_option
@user_option
@fanout_option
@click.option("--lines", is_flag=True, help="Print each line as it comes, behind its node's name.")
@common.timeout_option(3600)
@common.output_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(
    name: str | None,
    nodeset: str | None,
    user: str | None,
    fanout: int,
    lines: bool,
    timeout_s: float,
    output: str,
    command: tuple[str, ...],
) -> int:
    """Run a command on all nodes at once; equal outputs are shown once. Exits with the worst exit code."""
    from vcluster.cli.output import text_output
    from vcluster.commands import access

    if lines and output == "json":
        raise RequestError("--lines and -o json exclude each other")
    context, plan = cluster(name)
    nodes = access.choose_nodes(plan, nodeset)
    printer = _Printer([node.name for node in nodes])
    results = access.run_everywhere(
        context, plan, nodes, command, user=user or plan.user, timeout_s=timeout_s, fanout=fanout,
        on_line=printer if lines else None,
    )  # fmt: skip
    printer.check()
    ended = {node: one for node, one in results.items() if not isinstance(one, VclusterError)}
    if lines:
        _tell_exit_codes(ended)
    elif ended or output == "json":
        common.emit(output, text_output.ran(results), lambda: text_output.folded(ended))
    return _worst(ended, [one for one in results.values() if isinstance(one, VclusterError)])


def _worst(ended: Mapping[str, Completed], errors: Sequence[VclusterError]) -> int:
    """The worst exit code of all; the errors are told, if there are any."""
    worst = max((one.exit_code for one in ended.values()), default=0)
    if errors:
        together = SeveralErrors(list(dict.fromkeys(errors)))
        together.exit_code = max(worst, *(one.exit_code for one in errors))
        raise together
    return worst


def _tell_exit_codes(ended: Mapping[str, Completed]) -> None:
    from vcluster.cli.output import text_output

    if words := {name: f"exit code {one.exit_code}" for name, one in ended.items() if one.exit_code}:
        click.echo(text_output.outcomes(words), err=True)


class _Printer:
    """Prints lines of several nodes as they come, each whole."""

    def __init__(self, names: Sequence[str]) -> None:
        from vcluster.cli.output import text_output

        self._prefixes = text_output.prefixes(names)
        self._lock = threading.Lock()
        self._failure: OSError | None = None

    def __call__(self, node: str, stream: str, line: str) -> None:
        with self._lock:
            try:
                click.echo(self._prefixes[node] + line, err=stream == "stderr")
            except OSError as error:  # whoever read it has gone; a connection would be blamed for it
                self._failure = error
                raise Cancelled("nobody reads the output any more") from error

    def check(self) -> None:
        """Raise what kept lines from being printed."""
        if self._failure:
            raise self._failure


@click.command()
@common.name_option
@user_option
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
def copy(name: str | None, user: str | None, source: str, destination: str) -> None:
    """Copy a file or a folder to a node or from one, by scp: vcluster copy data node1:/tmp."""
    from vcluster.commands import access

    context, plan = cluster(name)
    access.choose_copy(plan, source, destination)
    login = ["-o", f"User={user}"] if user else []
    config = str(context.files(plan.name).ssh_config)
    _become("scp", "-F", config, "-r", "-p", *login, "--", source, destination, package="openssh-client")


@click.command()
@common.name_option
@all_option
@nodes_option
@detach_option
@click.option("--log", is_flag=True, help="Print what the console has said since power-on.")
@click.argument("node", required=False)
def console(name: str | None, everything: bool, nodeset: str | None, detach: bool, log: bool, node: str | None) -> int:
    """Attach to a node's serial console, which Ctrl-] leaves; with --all to each in a pane of its own."""
    from vcluster.commands import access

    _one_or_all(node, everything, nodeset, detach=detach)
    context, plan = cluster(name)
    if log and not node:
        raise RequestError("--log is for one node")
    if not log and shutil.which("virsh") is None:
        raise MissingError("virsh is not installed", hint="apt-get install libvirt-clients")
    if not node:
        _all_consoles(plan, access.choose_nodes(plan, nodeset), detach=detach)
        return 0
    chosen = access.choose_node(plan, node)
    if log:
        click.echo(access.read_console(context, plan, chosen), nl=False)
        return 0
    click.echo(f"console of {node}; Ctrl-] leaves it", err=True)
    return access.attach_console(context, plan, chosen)


def _all_consoles(plan: Plan, nodes: Sequence[Node], *, detach: bool) -> None:
    from vcluster.adapters.tmux import Pane

    # A server of tmux that runs already has an environment of its own.
    kept = [f"{key}={value}" for key in ENVIRONMENT if (value := os.environ.get(key))]
    us = ("env", *kept, sys.executable, str(Path(sys.argv[0]).absolute()), "console", "--name", plan.name)
    panes = [Pane(node.name, (*us, node.name)) for node in nodes]
    failed = "#{!=:#{pane_dead_status},0}"
    _show(_screen(plan, nodes, panes, "-console", is_synchronized=False, stays=failed), detach=detach)


@click.command()
@common.name_option
@click.option("--packets", type=click.IntRange(1, 100000), default=200, show_default=True, help="How many to send.")
@common.timeout_option(60)
@common.output_option
@click.argument("start", metavar="NODE")
@click.argument("end", metavar="NODE")
def path(name: str | None, packets: int, timeout_s: float, output: str, start: str, end: str) -> None:
    """Prove by counters which way frames go from one node to another: exit 1 unless through the switch."""
    from vcluster.cli.output import text_output
    from vcluster.commands import access

    context, plan = cluster(name)
    ends = access.choose_node(plan, start), access.choose_node(plan, end)
    found = access.trace(context, plan, *ends, packets=packets, timeout_s=timeout_s)
    common.emit(output, text_output.path_document(found), lambda: text_output.path(found))
    if not found.crossed:
        raise VclusterError(f"the frames from {start} to {end} did not cross the switch: {found.detail}")


@click.command("ssh-config")
@common.name_option
@click.option("--path", is_flag=True, help="Print where the file is instead.")
def ssh_config(name: str | None, path: bool) -> None:
    """Print an ssh configuration of the nodes: ssh -F FILE node2."""
    context, plan = cluster(name)
    file = context.files(plan.name).ssh_config
    click.echo(str(file) if path else file.read_text(), nl=path)


COMMANDS = (ssh, shell, execute, copy, mpiexec, console, path, ssh_config)
