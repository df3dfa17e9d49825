"""The context that commands work in, the choice of the cluster, and printing of results."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vcluster.cli.output import terminal
from vcluster.errors import MissingError, RequestError, VclusterError

if TYPE_CHECKING:
    from vcluster.cli.output.hints import Reader
    from vcluster.cli.output.progress import Timer
    from vcluster.fleet.command_log import CommandLog
    from vcluster.fleet.context import Context
    from vcluster.fleet.servers import Connector
    from vcluster.model.plan import Plan
    from vcluster.util.events import Event, Listener

BAR_NODES_MAX = 24  # more bars than lines on a screen only flicker
ROOT_STATE = Path("/var/lib/vcluster")


class Invocation:
    """What the command line has found out while it runs.

    `cluster` is the chosen cluster, for hints. `log` keeps the events and the error of the command for bug reports.
    `has_late_threads` is True if threads hang, which the end of the process must not await.
    """

    def __init__(self) -> None:
        self.cluster = ""
        self.log: CommandLog | None = None
        self.has_late_threads = False


def images_root() -> Path:
    """The image store's folder."""
    from vcluster.config.environment_folders import folder_of
    from vcluster.images.store import DEFAULT_ROOT

    return folder_of(os.environ, "VCLUSTER_IMAGE_DIR") or DEFAULT_ROOT


def context(*listeners: Listener) -> Context:
    """The context of this command, from the environment. Without listeners, only notes are printed."""
    from vcluster.fleet import ledger
    from vcluster.fleet.context import Context
    from vcluster.images.store import ImageStore
    from vcluster.util.events import Reporter

    environment = dict(os.environ)
    state_root = ledger.state_root(environment)
    return Context(
        state_root=state_root,
        connector=_connector(environment, ledger.read_owner(state_root)),
        images=ImageStore(images_root()),
        report=Reporter((*(listeners or (_print_note,)), _log(state_root, environment))),
    )


def _print_note(event: Event) -> None:
    if event.what == "note":
        terminal.print_text(reader().complete(event.text), err=True)  # not the invocation: this may be any thread


def _log(state_root: Path, environment: dict[str, str]) -> CommandLog:
    """The log of this command. It has the names of options without their values, which may be secrets."""
    from vcluster.fleet.command_log import CommandLog
    from vcluster.util.redaction import secrets_of

    here = click.get_current_context(silent=True)
    command = here.command_path.removeprefix("vcluster ") if here else ""
    given = [name for name in here.params if _is_given(here, name)] if here else []
    log = CommandLog(state_root, command, given, secrets_of(environment))
    if here:
        invocation().log = log
    return log


def _is_given(context: click.Context, parameter: str) -> bool:
    return context.get_parameter_source(parameter) not in (None, click.core.ParameterSource.DEFAULT)


def _connector(environment: dict[str, str], owner: str) -> Connector:
    """On a terminal, the user is asked about unknown host keys and for passwords."""
    from vcluster.adapters.libvirt.hypervisor import SYSTEM_URI
    from vcluster.fleet.servers import Connector

    return Connector(
        owner,
        uri=environment.get("LIBVIRT_DEFAULT_URI") or SYSTEM_URI,
        environment=environment,
        confirm=_confirm if can_ask() else None,
        ask=_ask if can_ask() else None,
    )


# Questions


def can_ask() -> bool:
    """Whether there is a terminal for a question and its answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def require_consent(question: str, *, declined: str) -> None:
    """Ask on a terminal. Raises VclusterError with the text `declined` unless the answer is yes.

    Without a terminal there is no question: a script means what it runs.
    """
    if can_ask() and not _confirm(question):
        raise VclusterError(declined)


# Several threads may ask; one question at a time.
_terminal = threading.Lock()


def _confirm(question: str) -> bool:
    with _terminal:
        return terminal.confirm(question)


def _ask(question: str) -> str:
    with _terminal:
        return terminal.ask_secret(question)


@contextmanager
def progress(node_names: Sequence[str] = (), *, stages: int = 1) -> Iterator[tuple[Context, Timer]]:
    """The context of a command that takes seconds, with progress on standard error."""
    from vcluster.cli.output import verbose
    from vcluster.cli.output.progress import ProgressBars, ProgressLines, Timer

    timer, complete = Timer(), reader(invocation().cluster).complete
    use_bars = sys.stderr.isatty() and 0 < len(node_names) <= BAR_NODES_MAX and not verbose.is_on()
    display = ProgressBars(node_names, stages, complete=complete) if use_bars else ProgressLines(complete=complete)
    try:
        yield context(timer, display), timer
    finally:
        display.close()


def emit(
    output: str, document: object, text: Callable[[Any], str], *, to_errors: bool = False, paint: terminal.Paint = str
) -> None:
    """Print a result: the document as JSON, or the text that is rendered from this JSON.

    It goes to standard output, or with `to_errors` to standard error. On a terminal, `paint` adds colors to the text.
    """
    import json

    from vcluster.model import codec

    written = codec.to_json(document)
    if output == "json":
        terminal.print_text(written, err=to_errors, nl=False)
    else:
        terminal.print_text(f"{text(json.loads(written))}\n", err=to_errors, nl=False, paint=paint)


# The choice of the cluster


def choose_cluster(context: Context, name: str | None, *, absent_hint: str = "vcluster list") -> str:
    """The cluster that a command is about: the named one, or the only one there is.

    `absent_hint` is the hint when no cluster has this name.
    """
    from vcluster.fleet import ledger
    from vcluster.model import naming

    names = ledger.cluster_names(context.state_root)
    if name is None and len(names) > 1:
        raise RequestError(f"there are {len(names)} clusters: {', '.join(names)}", hint="name one of them: --name NAME")
    if name is not None:
        naming.check_cluster_name(name)
    if name and name not in names and (mistake := node_as_cluster(name)):
        raise mistake
    if name not in (None, *names) or not names:
        raise _no_cluster(context, name, absent_hint=absent_hint)
    chosen = name or names[0]
    invocation().cluster = chosen
    return chosen


def open_cluster(name: str | None) -> tuple[Context, Plan]:
    """The context, and the plan of the chosen cluster."""
    from vcluster.commands.steps import inventory

    here = context()
    return here, inventory.read_ledger(here.files(choose_cluster(here, name))).plan


def own_clusters(context: Context) -> tuple[str, ...]:
    """The clusters of this user's state folder. Raises RequestError when there are none, but root has some."""
    from vcluster.fleet import ledger

    names = ledger.cluster_names(context.state_root)
    if not names and clusters_of_root(context):
        raise _no_cluster(context, None)
    return names


def refuse_cluster_of_root(context: Context, name: str) -> None:
    """Raise RequestError when root has the cluster of this name, and this user does not."""
    from vcluster.fleet import ledger

    if name in clusters_of_root(context) and name not in ledger.cluster_names(context.state_root):
        raise _no_cluster(context, name)


def clusters_of_root(context: Context) -> tuple[str, ...]:
    """The names of root's clusters, which everyone may read; none for root and when the state is elsewhere."""
    from vcluster.fleet import ledger

    return ledger.cluster_names(ROOT_STATE) if os.geteuid() and context.state_root != ROOT_STATE else ()


def node_as_cluster(name: str) -> RequestError | None:
    """The error when a node of the user has this name: the command takes the name of a cluster."""
    from vcluster.cli import arguments
    from vcluster.cli.output.hints import CLUSTER_COMMANDS, NODE_COMMANDS

    owner = next((cluster for cluster in arguments.cluster_names() if name in arguments.node_names(cluster)), None)
    if owner is None:
        return None
    invocation().cluster = owner
    command = click.get_current_context().command_path.partition(" ")[2]
    if command in NODE_COMMANDS:
        hint = f"vcluster {NODE_COMMANDS[command]} {name}"
    else:
        hint = f"vcluster {command} {owner}" if CLUSTER_COMMANDS.get(command) else f"--name {owner}"
    return RequestError(f"{name} is a node of {owner}; {command} takes the name of a cluster", hint=hint)


def _no_cluster(context: Context, name: str | None, *, absent_hint: str = "vcluster list") -> RequestError:
    """The user may look for a cluster that root has created."""
    from vcluster.cli.output.hints import RUN_WITH_SUDO

    roots = clusters_of_root(context)
    if roots and name in (None, *roots):
        missing = f"cluster {name}" if name else "clusters"
        own = f"user {reader().user} has no {missing} on this machine"
        hint = RUN_WITH_SUDO if name or len(roots) == 1 else "sudo vcluster list"
        return RequestError(f"{own}; root has: {', '.join(roots)}", hint=hint)
    if name is None:
        return RequestError("no cluster exists", hint="vcluster local create -n 4")
    return RequestError(f"cluster {name} does not exist", hint=absent_hint)


def invocation() -> Invocation:
    """The state of this command line."""
    found = click.get_current_context().find_object(Invocation)
    return found or Invocation()


def reader(cluster: str = "") -> Reader:
    """The user who reads this command's output."""
    from vcluster.cli.output import hints
    from vcluster.fleet import ledger

    environment = dict(os.environ)
    try:
        names = ledger.cluster_names(ledger.state_root(environment))
    except (OSError, VclusterError):
        names = ()
    return hints.reader(environment, names, cluster)


# Rights


def require_root(context: Context) -> None:
    """Raise MissingError unless this user may use this machine's libvirt. The hint is the same command with sudo."""
    from vcluster.cli.output.hints import RUN_WITH_SUDO

    if not may_use_libvirt(context):
        raise MissingError("this needs root", hint=RUN_WITH_SUDO)


def may_use_libvirt(context: Context) -> bool:
    """Whether this user may use this machine's libvirt: root may, and users whom libvirt lets in."""
    from vcluster.adapters.libvirt.hypervisor import SYSTEM_URI

    if os.geteuid() == 0 or context.connector.uri != SYSTEM_URI:
        return True
    try:
        with context.local_server() as server:
            return server.libvirt is not None
    except VclusterError:  # libvirt's own message names a symptom, for example the lack of a polkit agent
        return False


def user_of_sudo() -> tuple[int, int] | None:
    """The user and the group that get a file that is written for the user who typed sudo; None without one."""
    user, group = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    return (int(user), int(group)) if os.geteuid() == 0 and user.isdecimal() and group.isdecimal() else None
