"""vcluster ssh, exec, mpiexec, console, path, ssh-config."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from vcluster.cli import common
from vcluster.errors import MissingError, VclusterError

if TYPE_CHECKING:
    from vcluster.model import Plan
    from vcluster.site import Site

# Everything from the first word that is no option of ours on belongs to the command that is run.
REST = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _cluster(name: str | None) -> tuple[Site, Plan]:
    from vcluster import inventory

    site = common.site()
    return site, inventory.read_ledger(site.files(inventory.the_one(site, name))).plan


def _become(program: str, *arguments: str, package: str) -> NoReturn:
    """Be that program from now on."""
    if shutil.which(program) is None:
        raise MissingError(f"{program} is not installed", hint=f"apt-get install {package}")
    sys.stdout.flush()
    os.execvp(program, [program, *arguments])  # noqa: S606 - no shell is wanted


def _ssh(site: Site, plan: Plan, node: str, user: str | None, *arguments: str) -> NoReturn:
    config = str(site.files(plan.name).ssh_config)
    login = ["-l", user] if user else []
    _become("ssh", "-F", config, *login, "--", node, *arguments, package="openssh-client")


@click.command()
@common.name_option
@click.option("-l", "--user", metavar="USER", help="Log in as this user; root works too.  [default: mpiuser]")
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str | None, user: str | None, node: str, command: tuple[str, ...]) -> None:
    """Log in to a node, or run a command there: vcluster ssh node2 -- ls -l."""
    from vcluster import access

    site, plan = _cluster(name)
    access.choose_node(plan, node)
    _ssh(site, plan, node, user, *([shlex.join(command)] if command else []))


@click.command(context_settings=REST)
@common.name_option
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def mpiexec(name: str | None, arguments: tuple[str, ...]) -> None:
    """Run mpiexec on the head, as mpiuser, over the cluster's hostfile."""
    site, plan = _cluster(name)
    _ssh(site, plan, plan.head.name, None, shlex.join(["mpiexec", *arguments]))


@click.command("exec", context_settings=REST)
@common.name_option
@click.option("-w", "--nodes", "nodeset", metavar="NODES", help="On these nodes only, such as 'node[2-3]'.")
@click.option("-l", "--user", default="mpiuser", show_default=True, help="As this user; root works too.")
@common.timeout_option(3600)
@common.output_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(
    name: str | None, nodeset: str | None, user: str, timeout_s: float, output: str, command: tuple[str, ...]
) -> int:
    """Run a command on all nodes at once; equal outputs are shown once. Exits with the worst exit code."""
    from vcluster import access
    from vcluster.cli import show

    site, plan = _cluster(name)
    nodes = access.choose_nodes(plan, nodeset)
    results = access.run_everywhere(site, plan, nodes, command, user=user, timeout_s=timeout_s)
    common.emit(output, results, lambda: show.folded(results))
    return max(result.exit_code for result in results.values())


@click.command()
@common.name_option
@click.option("--log", is_flag=True, help="Print what the console has said since power-on.")
@click.argument("node")
def console(name: str | None, log: bool, node: str) -> int:
    """Attach to a node's serial console; Ctrl-] leaves it."""
    from vcluster import access

    site, plan = _cluster(name)
    chosen = access.choose_node(plan, node)
    if log:
        click.echo(access.read_console(site, plan, chosen), nl=False)
        return 0
    if shutil.which("virsh") is None:
        raise MissingError("virsh is not installed", hint="apt-get install libvirt-clients")
    return access.attach_console(site, plan, chosen)


@click.command()
@common.name_option
@click.option("--packets", type=click.IntRange(1, 100000), default=200, show_default=True, help="How many to send.")
@common.timeout_option(60)
@common.output_option
@click.argument("start", metavar="NODE")
@click.argument("end", metavar="NODE")
def path(name: str | None, packets: int, timeout_s: float, output: str, start: str, end: str) -> None:
    """Prove by counters which way frames go from one node to another: exit 1 unless through the switch."""
    from vcluster import access
    from vcluster.cli import show

    site, plan = _cluster(name)
    ends = access.choose_node(plan, start), access.choose_node(plan, end)
    found = access.trace(site, plan, *ends, packets=packets, timeout_s=timeout_s)
    common.emit(output, show.path_document(found), lambda: show.path(found))
    if not found.crossed:
        raise VclusterError(f"the frames from {start} to {end} did not cross the switch: {found.detail}")


@click.command("ssh-config")
@common.name_option
@click.option("--path", is_flag=True, help="Print where the file is instead.")
def ssh_config(name: str | None, path: bool) -> None:
    """Print an ssh configuration of the nodes: ssh -F FILE node2."""
    site, plan = _cluster(name)
    file = site.files(plan.name).ssh_config
    click.echo(str(file) if path else file.read_text(), nl=path)


COMMANDS = (ssh, execute, mpiexec, console, path, ssh_config)
