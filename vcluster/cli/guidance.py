"""Commands that other tools have, and the commands that do the same here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vcluster.cli.clusters.create import CREATE_NAMES

_CREATE = ("local create -n 4", "remote create --switch HOST", "shared create CONFIG.ini")
_CLEAR = ("clear",)

COMMANDS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("create", *CREATE_NAMES), _CREATE),
    **dict.fromkeys(("down", "rm", "kill", "teardown", "purge", "undeploy"), _CLEAR),
    **dict.fromkeys(("ls", "ps"), ("list",)),
    **dict.fromkeys(("show", "info", "inspect", "describe", "nodes"), ("status",)),
    **dict.fromkeys(("login", "connect", "enter"), ("ssh node1", "shell --all")),
    **dict.fromkeys(("scp", "cp", "rsync"), ("copy FILE node1:/tmp",)),
    **dict.fromkeys(("mpirun", "srun"), ("mpiexec -n 4 PROGRAM",)),
    **dict.fromkeys(("logs", "log"), ("console --log node1",)),
    **dict.fromkeys(("bug", "bugreport", "report", "sosreport"), ("support",)),
    **dict.fromkeys(("reboot", "restart", "reset"), ("power cycle",)),
    **dict.fromkeys(("halt", "poweroff", "shutdown", "suspend"), ("stop",)),
    **dict.fromkeys(("resume", "boot"), ("start",)),
    **dict.fromkeys(("scale", "resize"), ("add 2", "remove node4")),
    "test": ("check", "verify"),
    "audit": ("verify",),
    **dict.fromkeys(("trace", "traceroute"), ("path node1 node2",)),
    **dict.fromkeys(("images", "snapshots"), ("image list",)),
    "snapshot": ("image warm", "image list"),
    "build": ("image build",),
    **dict.fromkeys(("pull", "import"), ("image import PATH",)),
    "run": ("mpiexec -n 4 PROGRAM", "exec -- COMMAND"),
    "help": ("--help",),
    "version": ("--version",),
}
