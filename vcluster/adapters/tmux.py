"""tmux: a session with one pane for each of several nodes, on a separate tmux server, not the user's."""

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
# The size of a pane until a client attaches, which sets the real size.
PANE_COLUMNS, PANE_LINES = 40, 10


@dataclass(frozen=True, slots=True)
class Pane:
    """A program in a pane, and the title above it."""

    title: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Screen:
    """A session: its server's socket, its name, its panes, and whether input goes to all of them.

    A pane closes when its program ends, unless the tmux format `stays` is true for its exit code.
    """

    socket: str
    session: str
    panes: tuple[Pane, ...]
    is_synchronized: bool
    stays: str

    @property
    def attach_argv(self) -> tuple[str, ...]:
        """The command that attaches to the session."""
        return ("tmux", "-L", self.socket, "attach-session", "-t", f"={self.session}")


def socket_name(cluster: str) -> str:
    """The socket of all sessions of a cluster."""
    return f"vcluster-{cluster}"


def layout(screen: Screen) -> list[list[str]]:
    """The tmux commands that create a session. Pure."""
    target = f"={screen.session}:"  # the newest pane
    side = math.ceil(math.sqrt(len(screen.panes)))
    size = ["-x", str(side * PANE_COLUMNS), "-y", str(side * PANE_LINES)]
    first, *others = screen.panes
    # The options that keep the pane of a failed program need a window. So the first pane starts with a sleep.
    commands = [
        ["new-session", "-d", "-s", screen.session, *size, "sleep", "60"],
        ["set-option", "-t", target, "status-right", _STATUS],
        ["set-option", "-t", target, "status-right-length", "80"],
        ["set-option", "-w", "-t", target, "remain-on-exit", "on"],
        ["set-option", "-w", "-t", target, "pane-border-status", "top"],
        ["set-option", "-w", "-t", target, "pane-border-format", " #{@node} #{?pane_dead,(ended),} "],
        ["set-hook", "-w", "-t", target, "pane-died", f"if-shell -F '{screen.stays}' '' 'kill-pane'"],
        ["respawn-pane", "-k", "-t", target, *first.argv],
        ["set-option", "-p", "-t", target, "@node", first.title],
    ]
    for pane in others:
        commands += [
            ["split-window", "-t", target, *pane.argv],
            ["set-option", "-p", "-t", target, "@node", pane.title],
            ["select-layout", "-t", target, "tiled"],
        ]
    return [
        *commands,
        ["set-option", "-w", "-t", target, "synchronize-panes", "on" if screen.is_synchronized else "off"],
        ["bind-key", "S", "set-option", "-w", "synchronize-panes"],
        ["select-pane", "-t", f"{target}.{{top-left}}"],
    ]


# The job does nothing, but when it ends, tmux checks for ended panes. Otherwise tmux with libutempter misses most of
# several panes that end at once: that library ignores SIGCHLD while it handles the first.
_SWITCH = "#{?pane_synchronized,input goes to all panes,input goes to one pane}: #{prefix} S switches"
_STATUS = f"#(true) {_SWITCH}, #{{prefix}} d detaches "


def ensure_session(screen: Screen) -> None:
    """Create a session, or restart the ended programs of an existing one."""
    if _run(screen.socket, ["has-session", "-t", f"={screen.session}"]).exit_code == 0:
        _restart_ended_panes(screen)
        return
    for command in layout(screen):
        done = _run(screen.socket, command)
        if done.exit_code:
            _run(screen.socket, ["kill-session", "-t", f"={screen.session}"])
            raise VclusterError(f"tmux {command[0]} failed: {process.last_lines(done)}")


def _restart_ended_panes(screen: Screen) -> None:
    panes = _run(screen.socket, ["list-panes", "-t", f"={screen.session}:", "-F", "#{pane_dead} #{pane_id}"]).stdout
    for dead, pane in (line.split() for line in panes.splitlines()):
        if dead == "1":
            _run(screen.socket, ["respawn-pane", "-t", pane])


def attach(screen: Screen) -> NoReturn:
    """Replace this process by a tmux client that is attached to the session. It also works inside another tmux."""
    os.execvpe("tmux", screen.attach_argv, _environment())  # noqa: S606, S607 - without a shell


def end(socket: str) -> None:
    """End all sessions on a socket. It is a success if there is none, or no tmux."""
    if shutil.which("tmux"):
        _run(socket, ["kill-server"])


def require() -> None:
    """Raise MissingError if tmux is not installed."""
    if shutil.which("tmux") is None:
        raise MissingError("tmux is not installed", hint="apt-get install tmux")


def _run(socket: str, command: Sequence[str]) -> process.Completed:
    return process.run(["tmux", "-L", socket, *command], timeout_s=TIMEOUT_S, env=_environment(), may_fail=True)


def _environment() -> Mapping[str, str]:
    """The environment without TMUX: with it, tmux refuses to attach inside another session."""
    return {name: value for name, value in os.environ.items() if name not in ("TMUX", "TMUX_PANE")}
