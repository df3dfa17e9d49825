"""Commands whose help has sections: commands by purpose, options in panels, and examples at the end.

Plain click: importing rich-click's renderer takes twice as long as the whole of `vcluster --help`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import click

OTHER_OPTIONS = "Options"
SUMMARY_LENGTH_MAX = 200  # click would cut a summary at 45 characters; short ones are our own task


class PanelOption(click.Option):
    """An option that help shows in a panel."""

    def __init__(self, *args: Any, panel: str = OTHER_OPTIONS, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.panel = panel


def examples(*lines: str) -> str:
    """An epilog that shows commands as they must be typed."""
    return "\b\n" + "\n".join(("Examples:", *(f"  {line}" for line in lines)))


class Command(click.Command):
    """A command with -v, and with panels of options in its help."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, -v and --help."""
        *own, last = super().get_params(ctx)
        return [*own, verbose_option(), last]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options panel by panel, all in columns of the same width."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                panels.setdefault(getattr(parameter, "panel", OTHER_OPTIONS), []).append(record)
        width = max((len(names) for rows in panels.values() for names, _ in rows if len(names) < 30), default=0)
        for title in sorted(panels, key=lambda title: title == OTHER_OPTIONS):
            with formatter.section(title):
                formatter.write_dl([(names.ljust(width), text) for names, text in panels[title]])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the examples, without sudo where it is not installed."""
        _format_epilog(self, formatter)


def _format_epilog(command: click.Command, formatter: click.HelpFormatter) -> None:
    if command.epilog:
        text = command.epilog if shutil.which("sudo") else command.epilog.replace("sudo ", "")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(text)


class Group(click.Group):
    """A group whose commands stand in sections; a command without a section comes last.

    `aliases` are other spellings of commands, which help does not show. `guidance` maps the name of a command that
    other tools have to the commands that do it here.
    """

    command_class = Command

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Sequence[str]] | None = None,
        aliases: Mapping[str, str] | None = None,
        guidance: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sections, self._aliases, self._guidance = sections or {}, aliases or {}, guidance or {}

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The group's own options, -v and --help."""
        *own, last = super().get_params(ctx)
        return [*own, verbose_option(), last]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name or alias."""
        return super().get_command(ctx, self._aliases.get(cmd_name, cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. A name that other tools use is answered with the command that does it here."""
        is_unknown = bool(args) and args[0] not in self.commands and not ctx.resilient_parsing
        if is_unknown and (commands := self._guidance.get(args[0])):
            from vcluster.errors import RequestError

            raise RequestError(
                f"'{ctx.command_path} {args[0]}' is not a command",
                hint=" or ".join(f"vcluster {command}" for command in commands),
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the commands section by section."""
        names = [name for name, command in self.commands.items() if not command.hidden]
        sections = {title: [name for name in section if name in names] for title, section in self._sections.items()}
        placed = {name for section in sections.values() for name in section}
        sections["Other commands" if sections else "Commands"] = [name for name in names if name not in placed]
        width = max(map(len, names), default=0)
        for title, section in sections.items():
            if section:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), self._summary(name)) for name in section])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the examples, without sudo where it is not installed."""
        _format_epilog(self, formatter)

    def _summary(self, name: str) -> str:
        return self.commands[name].get_short_help_str(SUMMARY_LENGTH_MAX)


def verbose_option() -> click.Option:
    """-v."""
    return click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        callback=_set_verbose,
        help="Print each operation on a server, with its duration.",
    )


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:  # a shell that completes arguments prints nothing else
        from vcluster.cli.output import verbose

        verbose.start()
