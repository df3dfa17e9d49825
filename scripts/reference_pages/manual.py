"""The manual pages vcluster(1) and vcluster-config(5)."""

from __future__ import annotations

import re

from reference_pages import commands, configuration, environment
from reference_pages.configuration import Entry
from reference_pages.text import roff
from vcluster import __version__
from vcluster.config.options import PANELS

EXIT_CODES = {
    0: "Done.",
    1: "It failed, a check failed, or the answer to a question was not yes.",
    2: "The request is wrong as written.",
    3: "This machine or a server lacks something.",
    4: "The present state does not allow it: a name is in use, or a node is off, for example.",
    130: "Interrupted.",
}
ABOUT = (
    "vcluster creates MPI clusters of virtual machines. All traffic between the nodes crosses one software switch, on "
    "this machine or on another server. Each command prints its help with -h or --help."
)


def _head(name: str, section: int, title: str) -> str:
    return f'.TH {name.upper()} {section} "" "vcluster {__version__}"\n.SH NAME\n{name} \\- {title}\n'


def _entry(term: str, text: str) -> str:
    return f".TP\n.B {roff(term)}\n{roff(' '.join(text.split())) or '.'}\n"


def _key(one: Entry) -> str:
    default = f" Default: {one.default}." if one.default else ""
    return _entry(f"{one.key} = {one.value}", one.meaning + default)


def command_page() -> str:
    """vcluster(1)."""
    parts = [
        _head("vcluster", 1, "create MPI clusters of virtual machines behind one switch"),
        ".SH SYNOPSIS\n.B vcluster\n.I COMMAND\n[\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]\n",
        f".SH DESCRIPTION\n{roff(ABOUT)}\n",
        ".SH COMMANDS\n",
    ]
    for one in commands.commands():
        parts.append(f".SS {roff(one.usage)}\n{roff(' '.join(one.help.split()))}\n")
        parts += [_entry(names, text) for names, text in one.options if names != "-h, --help"]
    parts.append(".SH ENVIRONMENT\n")
    parts += [_entry(name, f"Option {uses[0][1]}.") for name, uses in sorted(environment.variables().items())]
    parts += [_entry(name, text) for name, text in sorted(environment.OTHERS.items())]
    parts.append(".SH EXIT STATUS\n")
    parts += [_entry(str(code), text) for code, text in EXIT_CODES.items()]
    parts.append(".SH SEE ALSO\n.BR vcluster\\-config (5)\n")
    return "".join(parts)


def configuration_page() -> str:
    """vcluster-config(5)."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", configuration.INTRODUCTION).replace("`", "")
    parts = [
        _head("vcluster-config", 5, "configuration file of vcluster shared create"),
        f".SH DESCRIPTION\n{roff(plain)}\n",
        ".SH [cluster]\n",
    ]
    for panel in PANELS:
        entries = configuration.cluster_entries(panel)
        parts += [f".SS {roff(panel)}\n"] if entries else []
        parts += map(_key, entries)
    for title, keys in configuration.MACHINES.items():
        parts += [f".SH {title}\n", *map(_key, configuration.machine_entries(keys))]
    parts.append(".SH SEE ALSO\n.BR vcluster (1)\n")
    return "".join(parts)
