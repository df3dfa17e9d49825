"""The page of all commands, from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click

from reference_pages.text import NOTE, code, paragraph, table
from vcluster.cli.main import main


@dataclass(frozen=True, slots=True)
class Described:
    """A command as its help shows it."""

    name: str
    usage: str
    help: str
    epilog: str
    options: tuple[tuple[str, str], ...]


def commands() -> tuple[Described, ...]:
    """All commands that do something, in alphabetical order."""
    return tuple(_below(main, click.Context(main, info_name="vcluster", **main.context_settings)))


def _below(command: click.Command, context: click.Context) -> Iterator[Described]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from _below(child, click.Context(child, info_name=name, parent=context))
        return
    yield Described(
        name=context.command_path,
        usage=" ".join([context.command_path, *command.collect_usage_pieces(context)]),
        help=command.help or "",
        epilog=command.epilog or "",
        options=tuple(
            record
            for one in command.get_params(context)
            if isinstance(one, click.Option) and (record := one.get_help_record(context))
        ),
    )


def page() -> str:
    """The page in Markdown."""
    return f"{NOTE}# Commands\n\n{INTRODUCTION}\n" + "\n".join(map(_section, commands()))


INTRODUCTION = """\
Clusters usually belong to root, so type `sudo` in front of the commands.
Results go to standard output, and progress goes to standard error.
Most options also have an [environment variable](environment.md).
"""


def _section(one: Described) -> str:
    rows = [(code(names), " ".join(text.split())) for names, text in one.options]
    parts = [f"## {one.name}\n", f"```\n{one.usage}\n```\n", paragraph(one.help)]
    if one.epilog:
        parts.append(f"```\n{_plain(one.epilog)}\n```\n")
    return "\n".join([*parts, table(("option", "meaning"), rows)])


def _plain(epilog: str) -> str:
    return "\n".join(line.strip() for line in epilog.replace("\b", "").strip().splitlines())
