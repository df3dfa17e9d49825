"""The page of the configuration file, from the tables that read it."""

from __future__ import annotations

from reference_pages.text import NOTE, code, table
from vcluster.config import readers
from vcluster.config.options import CLUSTER, PANELS, option_name


def cluster_rows(panel: str) -> list[tuple[str, str, str, str]]:
    """The keys of [cluster] below a heading: key, value, default, meaning."""
    return [
        (code(name), code(key.metavar), key.default_shown, f"{key.help} Option: `{option_name(name)}`.")
        for name, key in CLUSTER.items()
        if key.panel == panel
    ]


def page() -> str:
    """The page in Markdown."""
    clusters = "\n".join(
        f"### {panel}\n\n{table(('key', 'value', 'default', 'meaning'), cluster_rows(panel))}"
        for panel in PANELS
        if cluster_rows(panel)
    )
    machines = {
        "`[switch]`": readers.SWITCH,
        "`[server NAME]`": readers.SERVER,
    }
    others = "\n".join(
        f"## {title}\n\n{table(('key',), [(code(key),) for key in keys])}" for title, keys in machines.items()
    )
    return f"{NOTE}# Configuration file\n\n{INTRODUCTION}\n## `[cluster]`\n\n{clusters}\n{others}"


INTRODUCTION = """\
`vcluster shared create` reads this file.
`config.template` in the checkout is an example.
The file has one section `[cluster]`, one section `[switch]`, and one section `[server NAME]` for each server.
An option on the command line overrides the key of its name.
"""
