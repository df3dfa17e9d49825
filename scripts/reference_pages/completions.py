"""The completion scripts for shells."""

from __future__ import annotations

from click.shell_completion import get_completion_class

from vcluster.cli.main import main

# By shell, the name that the shell looks for.
FILES = {"bash": "vcluster", "zsh": "_vcluster", "fish": "vcluster.fish"}


def files() -> dict[str, str]:
    """The text of each script, by its path in the folder of completions."""
    return {f"{shell}/{name}": _script(shell) for shell, name in FILES.items()}


def _script(shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(main, {}, "vcluster", "_VCLUSTER_COMPLETE").source().lstrip("\n").rstrip() + "\n"
