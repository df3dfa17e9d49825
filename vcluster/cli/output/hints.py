"""Commands that are printed for the user: with `sudo` and the cluster's name when they are needed.

Everything but `reader` is pure.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# These need root, for whichever cluster. The others need it for root's clusters alone.
ROOT_COMMANDS = frozenset({"local", "remote", "list", "image", "switch", "doctor"})
# Without a name these act on the only cluster. Those with `True` take the name as their first argument.
CLUSTER_COMMANDS: Mapping[str, bool] = {
    **dict.fromkeys(("clear", "status", "check", "verify", "timing", "repair", "stop", "start"), True),
    **dict.fromkeys(("discover", "ssh-config", "support", "graph", "watch"), True),
    **dict.fromkeys(("power on", "power off", "power cycle", "power status"), True),
    **dict.fromkeys(("add", "remove", "ssh", "exec", "mpiexec", "shell", "copy", "provision", "console"), False),
    **dict.fromkeys(("gateway", "path", "link set", "link show", "link calibrate", "link trace", "link reset"), False),
    **dict.fromkeys(("fault cut", "fault partition", "fault flap", "fault unplug", "fault pause"), False),
    **dict.fromkeys(("fault show", "fault heal"), False),
    **dict.fromkeys(("measure latency", "measure bandwidth", "measure pingpong", "measure collectives"), False),
    "measure tcp": False,
    **dict.fromkeys(("capture run", "capture start", "capture stop", "capture status"), False),
}
# What does to a node what these do to a cluster.
NODE_COMMANDS: Mapping[str, str] = {
    **{f"power {what}": f"power {what} -w" for what in ("on", "off", "cycle", "status")},
    "start": "power on -w",
    "stop": "power off -w",
    "status": "power status -w",
    "clear": "remove",
}
_COMMANDS = "|".join(sorted({*ROOT_COMMANDS, *CLUSTER_COMMANDS, "shared", "completion"}, key=len, reverse=True))
# A printed command: up to its name, and (looked ahead) the rest of its clause.
_PRINTED = re.compile(rf"(?<![\w/.`-])(sudo )?vcluster ({_COMMANDS})(?![\w-])(?=((?: (?!or\b|and\b)[^\s,;()`]+)*))")
RUN_WITH_SUDO = "run it with sudo"  # the hint of lower layers for a lack of rights
# A hint that is a shell line for root. Prose may follow after a comma.
_ROOT_LINE = re.compile(
    r"(?:apt-get|apt|modprobe|systemctl|chown|mkdir|sysctl|nft|iptables|echo) .+?(?=, [a-z]|$)", re.DOTALL
)
_SHELL = re.compile(r"[;&|<>]")


@dataclass(frozen=True)
class Reader:
    """The user who reads a command. `clusters` are the names in the user's own state folder.

    `cluster` is the cluster of the command that runs now, empty when there is none.
    """

    user: str
    is_root: bool
    uses_sudo: bool
    has_sudo: bool
    clusters: tuple[str, ...] = ()
    cluster: str = ""

    def command(self, arguments: str, *, cluster: str = "") -> str:
        """A command as this user must type it. `cluster` is named when the user has others too."""
        if self._lacks_name(arguments, cluster):
            arguments = _named(arguments, cluster)
        return f"{self._prefix(arguments.split()[0])}vcluster {arguments}"

    def complete(self, text: str) -> str:
        """A text in which every vcluster command is written as this user must type it."""
        return _PRINTED.sub(self._completed, text)

    def complete_hint(self, hint: str, arguments: Sequence[str] = ()) -> str | None:
        """A hint, which may also be another command that needs root, for example `apt-get install tmux`.

        `arguments` are those of the command that failed: a lack of rights is answered by this command with sudo. None
        when the hint is of no use to this user.
        """
        if hint == RUN_WITH_SUDO:
            command = f"vcluster {shlex.join(arguments)}"
            return None if self.is_root else f"sudo {command}" if self.has_sudo else f"as root: {command}"
        found = _ROOT_LINE.match(hint)
        if not found or not self.has_sudo or (self.is_root and not self.uses_sudo):
            return self.complete(hint)
        line = found[0]
        return f"sudo {f'sh -c {shlex.quote(line)}' if _SHELL.search(line) else line}{hint[len(line) :]}"

    def _completed(self, found: re.Match[str]) -> str:
        sudo, command, rest = found[1], found[2], found[3].strip()
        if rest.endswith("--help") and "--" not in rest.split():  # help needs neither rights nor a cluster
            return f"vcluster {command}"
        is_bare = not rest or rest.startswith("-") or not CLUSTER_COMMANDS.get(command, True)
        if is_bare and self._lacks_name(f"{command} {rest}", self.cluster):
            command = _named(command, self.cluster)
        return f"{self._prefix(found[2], is_of_root=bool(sudo))}vcluster {command}"

    def _lacks_name(self, arguments: str, cluster: str) -> bool:
        """Whether a command does not find its cluster: the user has several, and it names none."""
        command, rest = _split(arguments)
        clusters = {*self.clusters, cluster} - {""}
        parts = set(rest.split())
        names_all = command == "clear" and "--all" in parts
        if command not in CLUSTER_COMMANDS or len(clusters) < 2 or "--name" in parts or names_all:
            return False
        return not (CLUSTER_COMMANDS[command] and {*clusters, "NAME"} & parts)

    def _prefix(self, command: str, *, is_of_root: bool = False) -> str:
        """`sudo ` if the command needs it; `is_of_root` is for a cluster of root's."""
        if self.is_root:
            return "sudo " if self.uses_sudo and self.has_sudo else ""
        needs_root = is_of_root or command in ROOT_COMMANDS or not self.clusters
        return "sudo " if needs_root and self.has_sudo else ""


def _split(arguments: str) -> tuple[str, str]:
    """The command, with its group if it has one, and the rest."""
    parts = arguments.split(" ")
    length = 2 if " ".join(parts[:2]) in CLUSTER_COMMANDS else 1
    return " ".join(parts[:length]), " ".join(parts[length:])


def _named(arguments: str, cluster: str) -> str:
    command, rest = _split(arguments)
    option = (cluster or "NAME") if CLUSTER_COMMANDS[command] else f"--name {cluster or 'NAME'}"
    return " ".join(filter(None, (command, option, rest)))


def reader(environment: Mapping[str, str], clusters: tuple[str, ...] = (), cluster: str = "") -> Reader:
    """The user of this process."""
    return Reader(
        user=_user_name(),
        is_root=os.geteuid() == 0,
        uses_sudo=bool(environment.get("SUDO_USER")),
        has_sudo=shutil.which("sudo") is not None,
        clusters=clusters,
        cluster=cluster,
    )


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
