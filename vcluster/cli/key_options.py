"""Keys of [cluster] as options of commands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import click

from vcluster.cli import arguments
from vcluster.cli.help_layout import Command, PanelOption


class Items(click.types.StringParamType):
    """The texts of an option that is repeatable. An environment variable separates them by commas, as a file does."""

    envvar_list_splitter = ","


class KeysCommand(Command):
    """A command with keys of [cluster] as options: all `but` some, or `only` some; the `required` must be given.

    `in_image_warm` chooses the keys of that name. `helps` replaces the help of some keys. `has_file` decides which
    defaults the help shows. The table of keys is slow to import, so the command reads it when it runs.
    """

    def __init__(
        self,
        *args: Any,
        but: Collection[str] = (),
        only: Collection[str] = (),
        in_image_warm: bool = False,
        required: Collection[str] = (),
        helps: Mapping[str, str] | None = None,
        has_file: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._but, self._only, self._in_image_warm, self._required = but, only, in_image_warm, required
        self._helps, self._has_file = helps or {}, has_file

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The keys' options, then the command's own."""
        return [*self._options, *super().get_params(ctx)]

    @cached_property
    def _options(self) -> list[click.Option]:
        from vcluster.config.options import CLUSTER, PANELS

        only = self._only or {key for key in CLUSTER if CLUSTER[key].in_image_warm or not self._in_image_warm}
        keys = [key for key in CLUSTER if key in only and key not in self._but]
        keys.sort(key=lambda key: PANELS.index(CLUSTER[key].panel))
        return [self._option(key) for key in keys]

    def _option(self, key: str) -> click.Option:
        """The option for a key. All texts are read together later, so that every mistake is reported at once."""
        from vcluster.config.options import CLUSTER, option_name

        one, is_required = CLUSTER[key], key in self._required
        default = one.default_in_file if self._has_file else one.default_shown
        return PanelOption(
            [*filter(None, [one.short]), option_name(key), key],
            type=Items() if one.repeats else str,
            multiple=one.repeats,
            required=is_required,
            envvar=f"VCLUSTER_{key.upper()}",
            metavar=one.metavar,
            help=self._helps.get(key, one.help) + (f"  [default: {default}]" if default and not is_required else ""),
            panel=one.panel,
            shell_complete=arguments.complete_images if key == "image" else None,
        )


def texts(given: Mapping[str, str | tuple[str, ...] | None]) -> dict[str, str]:
    """The given options, written as a file would write them."""
    return {
        key: value if isinstance(value, str) else ", ".join(value)
        for key, value in given.items()
        if value is not None and value != ()
    }
