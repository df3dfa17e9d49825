"""tmux: a session with a pane for each of several nodes, on a server of its own that leaves the user's alone."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from vcluster.adapters import process
from vcluster.errors import MissingError, VclusterError

TIMEOUT_S = 20.0
# What panes are given while nobody looks; whoever attaches brings the real size along.
PANE_COLUMNS, PANE_LINES = 40, 10


@dataclass(frozen=True, slots=True)
class Pane:
    """A program in a pane, and the title above it."""

    title: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Screen:
    """A session: its server's socket, its name, its panes, and whether what is typed goes to all of them.

    A pane closes when its program ends, but for the exit codes that the format `stays` is true of.
    """

    socket: str
    session: str
    panes: tuple[Pane, ...]
    is_synchronized: bool
    stays: str

    @property
    def attach_argv(self) -> tuple[str, ...]:
        """The command that shows it."""
        return ("tmux", "-L", self.socket, "attach-session", "-t", f"={self.session}")


def socket_name(cluster: str) -> str:
    """The socket of all sessions of a cluster."""
    return f"vcluster-{cluster}"


def layout(screen: Screen) -> list[list[str]]:
    """The commands to tmux that make a session. Pure."""
    here = f"={screen.session}:"  # the pane made last
    side = math.ceil(math.sqrt(len(screen.panes)))
    size = ["-x", str(side * PANE_COLUMNS), "-y", str(side * PANE_LINES)]
    first, *others = screen.panes
    # The window is made before the options that keep a pane whose program has failed at once: the first one waits.
    commands = [
        ["new-session", "-d", "-s", screen.session, *size, "sleep", "60"],
        ["set-option", "-t", here, "status-right", _STATUS],
        ["set-option", "-t", here, "status-right-length", "80"],
        ["set-option", "-w", "-t", here, "remain-on-exit", "on"],
        ["set-option", "-w", "-t", here, "pane-border-status", "top"],
        ["set-option", "-w", "-t", here, "pane-border-format", " #{@node} #{?pane_dead,(ended),} "],
        ["set-hook", "-w", "-t", here, "pane-died", f"if-shell -F '{screen.stays}' '' 'kill-pane'"],
        ["respawn-pane", "-k", "-t", here, *first.argv],
        ["set-option", "-p", "-t", here, "@node", first.title],
    ]
    for pane in others:
        commands += [
            ["split-window", "-t", here, *pane.argv],
            ["set-option", "-p", "-t", here, "@node", pane.title],
            ["select-layout", "-t", here, "tiled"],
        ]
    return [
        *commands,
        ["set-option", "-w", "-t", here, "synchronize-panes", "on" if screen.is_synchronized else "off"],
        ["bind-key", "S", "set-option", "-w", "synchronize-panes"],
        ["select-pane", "-t", f"{here}.{{top-left}}"],
    ]


# The job does nothing, but at its end tmux looks for ended panes: with libutempter it misses most of several that end
# at once, for that library has the signal SIGCHLD ignored while it is at work on the first.
_STATUS = (
    "#(true) #{?pane_synchronized,all panes hear you,one pane hears you}: #{prefix} S changes that, #{prefix} d leaves "
)


def make(screen: Screen) -> None:
    """Make a session unless it is there; panes of one that is there whose programs have ended start again."""
    if _run(screen.socket, ["has-session", "-t", f"={screen.session}"]).exit_code == 0:
        _restore_nodes(screen)
        return
    for command in layout(screen):
        done = _run(screen.socket, command)
        if done.exit_code:
            _run(screen.socket, ["kill-session", "-t", f"={screen.session}"])
            raise VclusterError(f"tmux {command[0]}: {process.last_words(done)}")


def _restore_nodes(screen: Screen) -> None:
    panes = _run(screen.socket, ["list-panes", "-t", f"={screen.session}:", "-F", "#{pane_dead} #{pane_id}"]).stdout
    for dead, pane in (line.split() for line in panes.splitlines()):
        if dead == "1":
            _run(screen.socket, ["respawn-pane", "-t", pane])


def attach(screen: Screen) -> NoReturn:
    """Be the tmux that shows a session, from now on; within another tmux too."""
    os.execvpe("tmux", screen.attach_argv, _environment())  # noqa: S606, S607 - no shell is wanted


def end(socket: str) -> None:
    """End all sessions on a socket. Where there is none, or no tmux, that is a success."""
    if shutil.which("tmux"):
        _run(socket, ["kill-server"])


def require() -> None:
    """Raise MissingError where there is no tmux."""
    if shutil.which("tmux") is None:
        raise MissingError("tmux is not installed", hint="apt-get install tmux")


def _run(socket: str, command: Sequence[str]) -> process.Completed:
    return process.run(["tmux", "-L", socket, *command], timeout_s=TIMEOUT_S, env=_environment(), may_fail=True)


def _environment() -> Mapping[str, str]:
    """Without TMUX: it would be refused for being within another session."""
    return {name: value for name, value in os.environ.items() if name not in ("TMUX", "TMUX_PANE")}
