"""vcluster ssh, mpiexec, ssh-config: OpenSSH's own programs, with the cluster's configuration."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples
from vcluster.cli.nodes import mpi_arguments
from vcluster.cli.nodes.execute import remote_argv
from vcluster.errors import MissingError

if TYPE_CHECKING:
    from vcluster.fleet.context import Context
    from vcluster.model.plan import Plan


def require_program(program: str, *, package: str) -> None:
    """Raise MissingError if a program is not installed."""
    if shutil.which(program) is None:
        raise MissingError(f"{program} is not installed", hint=f"apt-get install {package}")


def become(program: str, *argv: str, package: str) -> NoReturn:
    """Replace this process by a program."""
    require_program(program, package=package)
    sys.stdout.flush()
    os.execvp(program, [program, *argv])  # noqa: S606 - no shell is wanted


def ssh_argv(context: Context, plan: Plan, node: str, user: str | None, *command: str) -> tuple[str, ...]:
    """The command line of ssh to a node."""
    login = ["-l", user] if user else []
    return ("ssh", "-F", str(context.files(plan.name).ssh_config), *login, "--", node, *command)


def become_ssh(context: Context, plan: Plan, node: str, user: str | None, *command: str) -> NoReturn:
    """Replace this process by ssh to a node."""
    become(*ssh_argv(context, plan, node, user, *command), package="openssh-client")


def run_by_ssh(context: Context, plan: Plan, node: str, user: str | None, argv: Sequence[str]) -> int:
    """Run a command on a node by ssh, with our standard streams. Returns its exit code, 255 if ssh itself fails.

    An interrupt ends ssh, and by that the command: it is attached to the connection.
    """
    from vcluster import guest
    from vcluster.adapters.ssh import attached_command

    attached = attached_command.with_input(argv, guest.program("hangup_watch"))
    ssh_command = ssh_argv(context, plan, node, user, shlex.join(attached))
    require_program(ssh_command[0], package="openssh-client")
    sys.stdout.flush()
    with subprocess.Popen(ssh_command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            raise
    return code if code >= 0 else 128 - code


@click.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster ssh node1",
        "sudo vcluster ssh node1 -- ls -l '/my folder'            arguments, passed on as they are",
        "sudo vcluster ssh node1 -- 'cat /etc/hostname | wc -l'   one argument: a shell line",
    ),
)
@arguments.name_option
@arguments.user_option
@click.argument("node", shell_complete=arguments.complete_nodes)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str | None, user: str | None, node: str, command: tuple[str, ...]) -> int:
    """Log in to a node, or run a command there.

    One argument after NODE is a line for the user's shell on the node. Several arguments are a command and its
    arguments, passed on as they are.
    """
    from vcluster.commands import access

    context, plan = common.open_cluster(name)
    access.require_running(context, plan, [access.choose_node(plan, node)])
    if not command:
        become_ssh(context, plan, node, user)
    return run_by_ssh(context, plan, node, user, remote_argv(command))


class MpiexecCommand(Command):
    """A command whose arguments click must not parse: it would read -hosts as -h."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave all but a leading --help or --verbose to `mpi_arguments`."""
        own = 1 if args and args[0] in ("-h", "--help", "--verbose") else 0
        return super().parse_args(ctx, [*args[:own], "--", *args[own:]])


@click.command(
    cls=MpiexecCommand,
    epilog=examples(
        "sudo vcluster mpiexec -n 4 hostname",
        "sudo vcluster mpiexec -n 8 -ppn 2 -- ./cloud/ring",
        "sudo vcluster mpiexec --name lab -n 2 ./a.out <input     rank 0 reads standard input",
    ),
)
@arguments.name_option
@click.argument("argv", metavar="[MPIEXEC-OPTION]... [--] PROGRAM [ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def mpiexec(name: str | None, argv: tuple[str, ...]) -> int:
    """Run an MPI program from the head node, on all nodes.

    The options are those of MPICH's mpiexec. -n is the number of processes; without it, each CPU of each node runs one.
    The program starts in the user's home folder, in which only cloud is shared. Rank 0 reads standard input; the other
    ranks read an empty input.
    """
    from vcluster.commands import access

    chosen, passed = mpi_arguments.parse(argv)
    context, plan = common.open_cluster(chosen or name)
    access.require_running(context, plan, plan.nodes)
    return run_by_ssh(context, plan, plan.head.name, None, ["mpiexec", *passed])


@click.command("ssh-config", cls=Command)
@arguments.cluster_argument
@click.option("--path", is_flag=True, help="Print the path of the file instead.")
@arguments.output_option
def ssh_config(name: str | None, path: bool, output: str) -> None:
    """Print an OpenSSH configuration for the nodes.

    With --path, use it as in: ssh -F FILE node2
    """
    context, plan = common.open_cluster(name)
    file = context.files(plan.name).ssh_config
    document = {"name": plan.name, "path": str(file), "config": file.read_text()}
    common.emit(output, document, lambda found: found["path"] if path else found["config"].rstrip("\n"))


COMMANDS = (ssh, mpiexec, ssh_config)
