"""The page of environment variables: those of options, and those that the code reads by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import click

from reference_pages.text import NOTE, code, table
from vcluster.cli.main import main

SHOWN_MAX = 5  # commands
# Variables that no option stands for. tests/scripts compares the names with the code.
OTHERS = {
    "VCLUSTER_IMAGE_DIR": "The folder of the image store.",
    "VCLUSTER_STATE_DIR": "The folder of ledgers and keys.",
    "VCLUSTER_SWITCH_PASSWORD": "The password for the server of `--switch`. It is the password itself, not its source. "
    "`clear --on HOST` uses it only if `VCLUSTER_SWITCH` is the same HOST.",
    "XDG_STATE_HOME": "The folder that contains the ledgers and keys of a user who is not root.",
    "LIBVIRT_DEFAULT_URI": "The address (URI) of libvirt on this machine.",
    "NO_COLOR": "Any value turns colors off.",
}
IN_SCRIPTS = {
    "VCLUSTER_CLUSTER": "The name of the cluster.",
    "VCLUSTER_HEAD": "The name of the head node.",
    "VCLUSTER_NODE": "The name of the node that the script runs on.",
    "VCLUSTER_PAYLOAD": "The folder of the payload, if there is one. The script starts there.",
    "VCLUSTER_USER": "The user of the cluster.",
}


def variables() -> dict[str, list[tuple[str, str]]]:
    """Each variable with the commands and the option that it stands for."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def visit(command: click.Command, context: click.Context) -> None:
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None and not child.hidden:
                    visit(child, click.Context(child, info_name=name, parent=context))
            return
        for one in command.get_params(context):
            if isinstance(one, click.Option) and one.envvar and not one.hidden:
                names = [one.envvar] if isinstance(one.envvar, str) else one.envvar
                for name in names:
                    found[name].append((context.command_path, max(one.opts, key=len)))

    visit(main, click.Context(main, info_name="vcluster", **main.context_settings))
    return found


def _commands(names: Sequence[str]) -> str:
    return "all that have the option" if len(names) > SHOWN_MAX else ", ".join(map(code, names))


def page() -> str:
    """The page in Markdown."""
    options = [
        (code(name), code(uses[0][1]), _commands([command for command, _ in uses]))
        for name, uses in sorted(variables().items())
    ]
    others = [(code(name), meaning) for name, meaning in sorted(OTHERS.items())]
    scripts = [(code(name), meaning) for name, meaning in sorted(IN_SCRIPTS.items())]
    return (
        f"{NOTE}# Environment variables\n\nAn option on the command line overrides its variable.\n"
        "`sudo` removes variables; `sudo --preserve-env=NAME` keeps one.\n\n"
        f"## Variables of options\n\n{table(('variable', 'option', 'commands'), options)}\n"
        "A variable takes the same values as its option.\n"
        "So `VCLUSTER_IMAGE_PASSWORD` is `ask` or `env:NAME`; it never holds the password itself.\n\n"
        f"## Other variables\n\n{table(('variable', 'meaning'), others)}\n"
        f"## Variables of a setup script\n\n{table(('variable', 'meaning'), scripts)}"
    )
