"""Command lines that end with their SSH connection. Without a terminal, sshd leaves the processes running. Pure."""

from __future__ import annotations

from collections.abc import Sequence

# The program gets no input, so the input of the connection is free: it ends when the connection ends. `kill … 0` is for
# the process group, which sshd makes for each session.
_WITHOUT_INPUT = """exec 3<&0 </dev/null
(read -r _ <&3; trap '' TERM; kill -TERM 0; sleep 2; kill -KILL 0) &
"$@"
code=$?
kill $! 2>/dev/null
exit $code"""
# The program reads the input of the connection, so a watcher has to look at the output.
_WITH_INPUT = """python3 -I -S -c "$1" &
shift
"$@"
code=$?
kill $! 2>/dev/null
exit $code"""


def without_input(argv: Sequence[str]) -> tuple[str, ...]:
    """The command, killed when the standard input of the session ends. Keep that open while the command runs."""
    return ("sh", "-c", _WITHOUT_INPUT, "sh", *argv)


def with_input(argv: Sequence[str], watcher: bytes) -> tuple[str, ...]:
    """The command, killed by the guest program `watcher` when the readers of its output are gone."""
    return ("sh", "-c", _WITH_INPUT, "sh", watcher.decode(), *argv)
