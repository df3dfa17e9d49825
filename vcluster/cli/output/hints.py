"""Commands that are printed for the user: with `sudo` and the cluster's name when they are needed. Pure."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

# These need root, for whichever cluster. The others need it for root's clusters alone.
ROOT_COMMANDS = frozenset({"local", "remote", "list", "image", "switch", "doctor"})
# Without a name these act on the only cluster. Those with `True` take the name as their first argument.
CLUSTER_COMMANDS: Mapping[str, bool] = {
    **dict.fromkeys(("clear", "status", "check", "timing", "repair", "stop", "start", "discover", "ssh-config"), True),
    **dict.fromkeys(("add", "remove", "ssh", "exec", "mpiexec", "shell", "copy", "provision", "console"), False),
    **dict.fromkeys(("gateway", "path"), False),
}
_COMMANDS = "|".join(
    sorted({*ROOT_COMMANDS, *CLUSTER_COMMANDS, "shared", "power", "completion"}, key=len, reverse=True)
)
# A printed command: up to its name, and (looked ahead) the rest of its clause.
_PRINTED = re.compile(rf"(?<![\w/.-])(sudo )?vcluster ({_COMMANDS})(?![\w-])(?=([^,;()`'\n]*))")


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
        return f"{'sudo ' if self._needs_sudo(arguments.split()[0]) else ''}vcluster {arguments}"

    def complete(self, text: str) -> str:
        """A text in which every vcluster command is written as this user must type it."""
        return _PRINTED.sub(self._completed, text)

    def _completed(self, found: re.Match[str]) -> str:
        command, rest = found[2], found[3].strip()
        if found[1]:
            return f"{'sudo ' if self.has_sudo else ''}vcluster {command}"
        is_bare = not rest or rest.startswith("-") or not CLUSTER_COMMANDS.get(command, True)
        if is_bare and self._lacks_name(f"{command} {rest}", self.cluster):
            command = _named(command, self.cluster)
        return self.command(command)

    def _lacks_name(self, arguments: str, cluster: str) -> bool:
        """Whether a command would not find its cluster: the user has several, and it names none."""
        command, *rest = arguments.split()
        known = {*self.clusters, cluster} - {""}
        if command not in CLUSTER_COMMANDS or len(known) < 2 or "--name" in rest or "--all" in rest:
            return False
        return not (CLUSTER_COMMANDS[command] and known & set(rest))

    def _needs_sudo(self, command: str) -> bool:
        if not self.has_sudo:
            return False
        if self.is_root:
            return self.uses_sudo
        return command in ROOT_COMMANDS or not self.clusters


def _named(arguments: str, cluster: str) -> str:
    command, _, rest = arguments.partition(" ")
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
