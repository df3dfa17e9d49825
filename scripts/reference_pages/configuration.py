"""The page of the configuration file, from the tables that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reference_pages.text import NOTE, code, table
from vcluster.config import readers
from vcluster.config.options import CLUSTER, PANELS, Key, option_name

HEADER = ("key", "value", "default", "meaning")
MACHINES = {"[switch]": readers.SWITCH_KEYS, "[server NAME]": readers.SERVER_KEYS, "[link NODES]": readers.LINK_KEYS}


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value, its default and its meaning, as plain texts."""

    key: str
    value: str
    default: str
    meaning: str


def cluster_entries(panel: str) -> list[Entry]:
    """The keys of [cluster] below a heading."""
    return [
        Entry(name, key.metavar, key.default_in_file, f"{key.help}{_list(key)} Option: `{option_name(name)}`.")
        for name, key in CLUSTER.items()
        if key.panel == panel
    ]


def _list(key: Key) -> str:
    return " In the file, commas separate the items." if key.repeats else ""


def machine_entries(keys: Mapping[str, readers.MachineKey]) -> list[Entry]:
    """The keys of a section that describes a machine."""
    return [Entry(name, key.metavar, key.default, key.help) for name, key in keys.items()]


def page() -> str:
    """The page in Markdown."""
    clusters = "\n".join(
        f"### {panel}\n\n{_table(cluster_entries(panel))}" for panel in PANELS if cluster_entries(panel)
    )
    machines = "\n".join(f"## `{title}`\n\n{_table(machine_entries(keys))}" for title, keys in MACHINES.items())
    return f"{NOTE}# Configuration file\n\n{INTRODUCTION}\n## `[cluster]`\n\n{clusters}\n{machines}"


def _table(entries: Sequence[Entry]) -> str:
    return table(HEADER, [(code(one.key), code(one.value), one.default, one.meaning) for one in entries])


INTRODUCTION = """\
`vcluster shared create` reads this file.
The file [config.template](../../config.template) is an example.
The file has one section `[cluster]` and one section `[switch]`.
Each server that carries nodes has a section `[server NAME]`.
A section `[link NODES]` limits the [links](../how-to/limit-links.md) of these nodes, for example `[link node[2-3]]`.
An option on the command line overrides the key of the same name.
"""
