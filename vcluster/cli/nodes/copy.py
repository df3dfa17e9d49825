"""vcluster copy."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples
from vcluster.cli.nodes.access import run_attached, ssh_argv
from vcluster.errors import VclusterError

if TYPE_CHECKING:
    from vcluster.fleet.context import Context
    from vcluster.model.plan import Plan


@click.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster copy data.csv node1:/tmp",
        "sudo vcluster copy results1 results2 node1:       several sources, files or folders",
        "sudo vcluster copy node1:/var/log/syslog .",
    ),
)
@arguments.name_option
@arguments.user_option
@click.option("-r", "is_recursive", is_flag=True, hidden=True, help="Accepted as scp does; folders are always copied.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, shell_complete=arguments.complete_node_paths)
@click.argument("destination", metavar="DESTINATION", shell_complete=arguments.complete_node_paths)
def copy(
    name: str | None,
    user: str | None,
    is_recursive: bool,  # noqa: ARG001 - copy is always recursive
    sources: tuple[str, ...],
    destination: str,
) -> int:
    """Copy files and folders to a node or from a node.

    A path on a node is NODE:PATH. Copy from this machine to one node, or from one node to this machine. Modes and times
    are kept.
    """
    from vcluster.commands.nodes import access
    from vcluster.fleet import login_files

    context, plan = common.open_cluster(name)
    node = access.choose_copy(plan, sources, destination)
    access.require_running(context, plan, [node])
    login_files.require(context.files(plan.name), plan)
    login = ["-o", f"User={user}"] if user else []
    config = str(context.files(plan.name).ssh_config)
    code = run_attached(
        "scp", "-F", config, "-r", "-p", *login, "--", *sources, destination, package="openssh-client"
    )  # fmt: skip
    path = destination.removeprefix(f"{node.name}:")
    if code and path != destination and path.endswith("/") and _lacks_folder(context, plan, node.name, user, path):
        option = ["-l", user] if user else []
        command = ("vcluster", "ssh", *option, node.name, "--", "mkdir", "-p", path)
        error = VclusterError(f"{node.name} has no folder {path}", hint=shlex.join(command))
        error.exit_code = code
        raise error
    return code


def _lacks_folder(context: Context, plan: Plan, node: str, user: str | None, path: str) -> bool:
    """Whether a node answers that it has no such folder: scp only prints that it failed."""
    test = ssh_argv(context, plan, node, user, shlex.join(("test", "-d", path)))
    return subprocess.run(test, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 1


COMMANDS = (copy,)
