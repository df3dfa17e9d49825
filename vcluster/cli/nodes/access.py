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
from vcluster.errors import MissingError, RequestError, VclusterError

if TYPE_CHECKING:
    from vcluster.fleet.context import Context
    from vcluster.model.plan import Plan


NOT_FOUND = 127  # a shell's exit code


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
    return run_attached(*ssh_argv(context, plan, node, user, shlex.join(attached)), package="openssh-client")


def run_attached(*argv: str, package: str) -> int:
    """Run a program with our standard streams. Returns its exit code; an interrupt ends it."""
    require_program(argv[0], package=package)
    sys.stdout.flush()
    with subprocess.Popen(argv) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()
            raise
    return code if code >= 0 else 128 - code


class SshCommand(Command):
    """A command whose options may stand around NODE. An unknown one after NODE belongs to the command on the node."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; an option of the command on the node is answered with the same line and `--`."""
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except (click.NoSuchOption, click.BadOptionUsage) as error:
            start = self._start_of_command(typed)
            if start is None:
                raise
            separated = shlex.join(("vcluster", "ssh", *typed[:start], "--", *typed[start:]))
            raise RequestError(error.format_message().rstrip("."), hint=separated) from error

    def _start_of_command(self, args: Sequence[str]) -> int | None:
        """The place of the first argument after NODE."""
        options = [option for option in self.params if isinstance(option, click.Option) and not option.is_flag]
        taking = {name for option in options for name in option.opts}
        places = [
            place
            for place, argument in enumerate(args)
            if not argument.startswith("-") and (place == 0 or args[place - 1] not in taking)
        ]
        return places[1] if len(places) > 1 else None


@click.command(
    cls=SshCommand,
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

    If COMMAND is one argument, the user's shell on the node runs it as a shell line. If there are several arguments,
    the node gets each one unchanged: no shell there splits or expands it.
    """
    from vcluster.commands.nodes import access
    from vcluster.fleet import login_files

    context, plan = common.open_cluster(name)
    access.require_running(context, plan, [access.choose_node(plan, node)])
    login_files.require(context.files(plan.name), plan)
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
        "sudo vcluster mpiexec --name lab -n 2 ./cloud/a.out <input     rank 0 reads standard input",
    ),
)
@arguments.name_option
@click.argument("argv", metavar="[MPIEXEC-OPTION]... [--] PROGRAM [ARGUMENT]...", nargs=-1, type=click.UNPROCESSED)
def mpiexec(name: str | None, argv: tuple[str, ...]) -> int:
    """Run an MPI program from the head node, on all nodes.

    The options are those of MPICH's mpiexec. -n is the number of processes; without it, each CPU of each node runs one.
    The program starts in the user's home folder; nodes share only the folder cloud in it. Rank 0 reads standard input;
    the other ranks read an empty input.
    """
    from vcluster.commands.nodes import access
    from vcluster.fleet import login_files

    chosen, passed = mpi_arguments.parse(argv)
    context, plan = common.open_cluster(chosen or name)
    access.require_running(context, plan, plan.nodes)
    login_files.require(context.files(plan.name), plan)
    code = run_by_ssh(context, plan, plan.head.name, None, ["mpiexec", *passed])
    if code == NOT_FOUND:
        raise _not_found(argv, passed)
    return code


def _not_found(argv: Sequence[str], passed: Sequence[str]) -> VclusterError:
    """The error when a node does not find the program, with the command for the program in the shared folder."""
    elsewhere = mpi_arguments.with_program(argv, passed, _in_shared_folder)
    error = VclusterError(
        "exit code 127: a node did not find the program or a library. Programs start in the home folder, and nodes "
        "share only the folder cloud in it",
        hint=shlex.join(("vcluster", "mpiexec", *elsewhere)) if elsewhere != tuple(argv) else None,
    )
    error.exit_code = NOT_FOUND
    return error


def _in_shared_folder(program: str) -> str:
    is_elsewhere = program.startswith("/") or program.removeprefix("./").startswith("cloud/")
    return program if is_elsewhere else f"./cloud/{program.removeprefix('./')}"


@click.command("ssh-config", cls=Command)
@arguments.cluster_argument
@click.option("--path", is_flag=True, help="Print the path of the file instead.")
@arguments.output_option
def ssh_config(name: str | None, path: bool, output: str) -> None:
    """Print an OpenSSH configuration for the nodes.

    With --path it prints the path of the stored file. Use it as in: ssh -F PATH node2
    """
    from vcluster.fleet import login_files

    context, plan = common.open_cluster(name)
    login_files.require(context.files(plan.name), plan)
    file = context.files(plan.name).ssh_config
    try:
        config = file.read_text(errors="replace")
    except OSError as error:
        text = f"cannot read the OpenSSH configuration of cluster {plan.name}: {error.strerror}"
        raise VclusterError(text, hint=f"vcluster repair {plan.name}") from error
    document = {"name": plan.name, "path": str(file), "config": config}
    common.emit(output, document, lambda found: found["path"] if path else found["config"].rstrip("\n"))


COMMANDS = (ssh, mpiexec, ssh_config)
