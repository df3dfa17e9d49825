"""The releases of Debian that a tree can have."""

from __future__ import annotations

from pathlib import Path

from .programs import NamespaceError

SUITES = ("bookworm", "bookworm-backports", "trixie", "testing")  # the first is the default
BACKPORTS = "-backports"  # newer packages, made for an older release
# Settings of apt that a tree has from this machine: whether a mirror's lists may be older than they say themselves.
AGE_CHECKS = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")


def base_of(suite: str) -> str:
    """The release that a tree of this suite is made of at first."""
    return suite.removesuffix(BACKPORTS)


def backports_source(sources: str, suite: str) -> str:
    """A line of sources for backports, by the line of their release. Raises NamespaceError if there is none."""
    base = base_of(suite)
    for line in sources.splitlines():
        if line.startswith("deb ") and f" {base} " in line:
            return line.replace(f" {base} ", f" {suite} ", 1) + "\n"
    raise NamespaceError(f"the sources of packages have no line for {base}, so {suite} cannot be added")


def age_options(dump: str) -> list[str]:
    """The options of mmdebstrap that give a tree this machine's settings of AGE_CHECKS, by `apt-config dump`."""
    return [f"--aptopt={line.rstrip(';')}" for line in dump.splitlines() if line.split(" ")[0] in AGE_CHECKS]


def prefer_backports(tree: Path, suite: str) -> None:
    """Let apt take each package from backports if it is there. Otherwise apt installs them on request only."""
    apt = tree / "etc/apt"
    (apt / "sources.list.d/backports.list").write_text(backports_source((apt / "sources.list").read_text(), suite))
    (apt / "preferences.d/backports").write_text(f"Package: *\nPin: release n={suite}\nPin-Priority: 500\n")
