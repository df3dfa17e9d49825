"""Options and arguments that several commands share, and what a shell may complete in their place."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

FANOUT = 64

# The command to run begins at the first argument that is not an option of vcluster.
REST = {"ignore_unknown_options": True, "allow_interspersed_args": False}


UNITS_S = {"s": 1, "m": 60}


class Number(click.ParamType):  # type: ignore[type-arg]
    """A number within limits. Without `high` the upper limit is checked elsewhere."""

    name = "number"

    def __init__(self, kind: type[int] | type[float], low: float, high: float | None = None) -> None:
        self._kind, self._low, self._high = kind, low, high
        self._range = f"{low} or more" if high is None else f"{low} to {high}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """Read a text, or take a default as it is."""
        from vcluster.model.quoting import shown

        try:
            number = self._number(value)
        except ValueError:
            self.fail(f"{shown(str(value))} is not a number ({self._range})", param, ctx)
        if not number >= self._low or (self._high is not None and number > self._high):  # nan is neither
            self.fail(f"{value!s:.40} is not possible ({self._range})", param, ctx)
        return number

    def _number(self, value: Any) -> int | float:
        """The number of a text. Raises ValueError if it is not one."""
        return self._kind(value)


class Duration(Number):
    """A number of seconds, or with the unit m of minutes; the unit s may be written too. The limits are in seconds."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__(float, low, high)

    def _number(self, value: Any) -> float:
        factor = UNITS_S.get(str(value)[-1:])
        return float(value) if factor is None else float(str(value)[:-1]) * factor


class Percent(click.ParamType):  # type: ignore[type-arg]
    """A percentage above 0 and up to 100, with or without its sign. It becomes a part of 1."""

    name = "percentage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a text."""
        from vcluster.model.quoting import shown

        try:
            number = float(str(value).removesuffix("%"))
        except ValueError:
            number = 0.0
        if not 0 < number <= 100:  # nan is neither
            self.fail(f"{shown(str(value))} is not a percentage above 0 and up to 100%", param, ctx)
        return number / 100


# Completion. A file that cannot be read gives no suggestion: a shell has no place for an error.


def complete_clusters(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Names of clusters."""
    return _beginning_with(text, cluster_names())


def complete_nodes(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Names of nodes of the chosen cluster, or of the only one."""
    chosen = ctx.params.get("name") or ctx.params.get("name_option") or os.environ.get("VCLUSTER_NAME")
    names = [chosen] if chosen else cluster_names()
    return _beginning_with(text, node_names(names[0]) if len(names) == 1 else [])


def complete_node_paths(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem]:
    """NODE: for copy, then files of this machine."""
    from click.shell_completion import CompletionItem

    nodes = [CompletionItem(f"{item.value}:") for item in complete_nodes(ctx, param, text)]
    return [*nodes, CompletionItem(text, type="file")]


def complete_images(ctx: click.Context, param: click.Parameter, text: str) -> list[CompletionItem]:  # noqa: ARG001 - click's signature
    """Names of images."""
    from vcluster.cli.common import images_root
    from vcluster.errors import VclusterError
    from vcluster.images.store import ImageStore

    try:
        return _beginning_with(text, list(ImageStore(images_root()).names()))
    except (OSError, VclusterError):
        return []


def _beginning_with(text: str, names: list[str]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in names if name.startswith(text)]


def cluster_names() -> list[str]:
    """The clusters in the user's state folder; none if it cannot be read."""
    from vcluster.errors import VclusterError
    from vcluster.fleet import ledger

    try:
        return list(ledger.cluster_names(ledger.state_root(dict(os.environ))))
    except (OSError, VclusterError):
        return []


def node_names(cluster: str) -> list[str]:
    """The nodes of a cluster; none if its ledger cannot be read."""
    from vcluster.errors import VclusterError
    from vcluster.fleet import ledger

    try:
        found = ledger.ClusterFiles(ledger.state_root(dict(os.environ)), cluster).read_ledger()
    except (OSError, VclusterError):
        return []
    return [node.name for node in found.plan.nodes] if found else []


# Options


def name_option(function: F) -> F:
    """--name, which is needed only when there are several clusters."""
    return click.option(
        "--name", envvar="VCLUSTER_NAME", metavar="NAME", shell_complete=complete_clusters,
        help="The cluster. Needed only if you have several.",
    )(function)  # fmt: skip


_second_name_option: Callable[[F], F] = click.option(
    "--name", "name_option", envvar="VCLUSTER_NAME", metavar="NAME", shell_complete=complete_clusters,
    help="The same as the argument NAME.",
)  # fmt: skip


def cluster_argument(function: F) -> F:
    """NAME as the first argument or as --name. The command receives one `name`."""

    @functools.wraps(function)
    def with_one_name(*args: Any, name: str | None, name_option: str | None, **kwargs: Any) -> Any:
        return function(*args, name=_one_name(name, name_option), **kwargs)

    argument = click.argument("name", required=False, metavar="[NAME]", shell_complete=complete_clusters)
    return argument(_second_name_option(with_one_name))  # type: ignore[return-value]


def clusters_argument(function: F) -> F:
    """NAMEs as arguments, or one as --name. The command receives `names`."""

    @functools.wraps(function)
    def with_names(*args: Any, names: tuple[str, ...], name_option: str | None, **kwargs: Any) -> Any:
        one = _one_name(names[0] if names else None, name_option)
        return function(*args, names=names or tuple(filter(None, [one])), **kwargs)

    argument = click.argument("names", nargs=-1, metavar="[NAME]…", shell_complete=complete_clusters)
    return argument(_second_name_option(with_names))  # type: ignore[return-value]


def _one_name(argument: str | None, option: str | None) -> str | None:
    from vcluster.errors import RequestError

    is_typed = click.get_current_context().get_parameter_source("name_option") is click.core.ParameterSource.COMMANDLINE
    if argument and option and argument != option and is_typed:
        raise RequestError(f"two clusters are named: {argument:.40} and --name {option:.40}", hint="name one of them")
    return argument or option


def nodes_argument(*, required: bool) -> Callable[[F], F]:
    """NODES as arguments."""
    return click.argument("nodes", nargs=-1, required=required, shell_complete=complete_nodes)


nodes_option: Callable[[F], F] = click.option(
    "-w", "--nodes", "nodeset", metavar="NODES", shell_complete=complete_nodes,
    help="Only on these nodes, for example 'node[2-3]'.",
)  # fmt: skip
fanout_option: Callable[[F], F] = click.option(
    "--fanout", type=Number(int, 1, 4096), metavar="N", default=FANOUT, show_default=True,
    help="Run on at most N nodes at a time.",
)  # fmt: skip
user_option: Callable[[F], F] = click.option(
    "-l", "--user", metavar="USER", help="Log in as this user, for example root.  [default: the cluster's user]"
)
output_option: Callable[[F], F] = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", envvar="VCLUSTER_OUTPUT",
    help="Format of the result.",
)  # fmt: skip
yes_option: Callable[[F], F] = click.option(
    "-y", "--yes", is_flag=True, envvar="VCLUSTER_YES", help="Do not ask for confirmation."
)


def timeout_option(default_s: int) -> Callable[[F], F]:
    """--timeout in seconds."""
    return click.option(
        "--timeout", "timeout_s", type=Number(float, 1, 10**6), default=default_s, show_default=True,
        envvar="VCLUSTER_TIMEOUT", metavar="SECONDS", help="Give up after this time.",
    )  # fmt: skip
