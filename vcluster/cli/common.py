"""What several commands share: options, the site they work on, and how results are printed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from vcluster.cli.output.progress import Timer
    from vcluster.fleet.context import Context
    from vcluster.fleet.servers import Connector
    from vcluster.util.events import Listener

F = TypeVar("F", bound=Callable[..., Any])

BAR_NODES_MAX = 24  # more bars than lines on a screen only flicker


def name_option(function: F) -> F:
    """--name, to be left out where there is only one cluster."""
    return click.option(
        "--name", envvar="VCLUSTER_NAME", metavar="NAME", help="The cluster; needed only among several."
    )(function)


def cluster_argument(function: F) -> F:
    """NAME as an argument, or as --name; `chosen` tells which of all clusters that is."""
    option = click.option(
        "--name", "name_option", envvar="VCLUSTER_NAME", metavar="NAME", help="The same as the argument."
    )
    return click.argument("name", required=False)(option(function))


def chosen(context: Context, name: str | None, name_option: str | None) -> str:
    """The cluster a command is about."""
    from vcluster.commands import inventory

    return inventory.only_cluster(context, name or name_option)


def output_option(function: F) -> F:
    """-o text|json."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json"]),
        default="text",
        envvar="VCLUSTER_OUTPUT",
        help="Result format.",
    )(function)


def yes_option(function: F) -> F:
    """-y: no questions."""
    return click.option("-y", "--yes", is_flag=True, envvar="VCLUSTER_YES", help="Do not ask.")(function)


def timeout_option(default_s: float) -> Callable[[F], F]:
    """--timeout in seconds."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=1),
        default=default_s,
        show_default=True,
        envvar="VCLUSTER_TIMEOUT",
        metavar="SECONDS",
        help="Give up after this long.",
    )


def images_root() -> Path:
    """The image store's folder."""
    from vcluster.images.store import DEFAULT_ROOT

    return Path(os.environ.get("VCLUSTER_IMAGE_DIR") or DEFAULT_ROOT).absolute()


def context(*listeners: Listener) -> Context:
    """The site of this command, as the environment tells it."""
    from vcluster.fleet import ledger
    from vcluster.fleet.context import Context
    from vcluster.images.store import ImageStore
    from vcluster.util.events import Reporter

    environment = dict(os.environ)
    return Context(
        state_root=ledger.state_root(environment),
        connector=_connector(environment),
        images=ImageStore(images_root()),
        report=Reporter(listeners),
    )


def _connector(environment: dict[str, str]) -> Connector:
    """On a terminal, people are asked about unknown host keys and for passwords."""
    from vcluster.adapters.libvirt.hypervisor import SYSTEM_URI
    from vcluster.fleet.servers import Connector

    is_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    return Connector(
        uri=environment.get("LIBVIRT_DEFAULT_URI") or SYSTEM_URI,
        environment=environment,
        confirm=_confirm if is_terminal else None,
        ask=_ask if is_terminal else None,
    )


# One question at a time, from whichever thread it comes.
_terminal = threading.Lock()


def _confirm(question: str) -> bool:
    with _terminal:
        return click.confirm(question, err=True)


def _ask(question: str) -> str:
    with _terminal:
        return str(click.prompt(question, hide_input=True, err=True))


@contextmanager
def progress(node_names: Sequence[str] = (), *, stages: int = 1) -> Iterator[tuple[Context, Timer]]:
    """The site of a command that takes its time, with progress on standard error."""
    from vcluster.cli.output.progress import ProgressBars, ProgressLines, Timer

    timer = Timer()
    use_bars = sys.stderr.isatty() and 0 < len(node_names) <= BAR_NODES_MAX
    display = ProgressBars(node_names, stages) if use_bars else ProgressLines()
    try:
        yield context(timer, display), timer
    finally:
        display.close()


def emit(output: str, value: object, text: Callable[[], str]) -> None:
    """Print a result on standard output, as JSON or as text."""
    if output == "json":
        from vcluster.model import codec

        click.echo(codec.to_json(value), nl=False)
    else:
        click.echo(text())
