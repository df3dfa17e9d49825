"""The log of the last commands in the state folder, for bug reports: their stages, notes and errors.

A command is logged from its first event or error on, so one that only reads leaves no line. The log never fails a
command: without the right, the room or the folder for it, the command goes on without.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vcluster.fleet import ledger
from vcluster.util.events import Event
from vcluster.util.redaction import Redactor

LOG, FORMER_LOG = "commands.jsonl", "commands.former.jsonl"
LOG_BYTES_MAX = 256 << 10  # then the log becomes the former one
COMMAND_BYTES_MAX = 64 << 10  # of one command; its error and its end are always written
TEXT_MAX = 4000
WAITING_MAX = 200  # lines
NO_FILE = -1


class CommandLog:
    """The log of one command. `options` are the names of its options: their values may be secrets."""

    def __init__(self, root: Path, command: str, options: Sequence[str], known_secrets: Sequence[str] = ()) -> None:
        self._root = root
        self._first: dict[str, object] = {"what": "command", "command": command, "options": list(options)}
        self._known_secrets = known_secrets
        self._redactor: Redactor | None = None
        self._descriptor: int | None = None
        self._waiting: list[bytes] = []
        self._written_bytes = 0

    def __call__(self, event: Event) -> None:
        """Log an event, unless it is one of many of a stage."""
        if event.what != "progress" and self._written_bytes < COMMAND_BYTES_MAX:
            fields = {"what": event.what, "stage": event.stage, "node": event.node, "text": event.text}
            self._write({"at_s": round(event.at_s, 3), **fields})

    def fail(self, message: str, details: str = "") -> None:
        """Log the error of the command; `details` is the trace of an internal error."""
        self._write({"what": "error", "text": message, "details": details})

    def end(self, exit_code: int) -> None:
        """Log the end of the command, if anything of it was logged."""
        if self._redactor is not None:
            self._write({"what": "exit", "code": exit_code})

    def _write(self, fields: dict[str, object]) -> None:
        """Add a line. Without a state folder it waits in memory: a command that fails early makes no folder."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(self._line(fields))
        with suppress(OSError):
            if self._descriptor is None and (self._root / ledger.OWNER).exists():
                self._descriptor = NO_FILE  # a second attempt would fail too
                self._descriptor = self._open()
            if self._descriptor not in (None, NO_FILE):
                waiting, self._waiting = b"".join(self._waiting), []
                self._written_bytes += os.write(self._descriptor, waiting)  # at once: lines of commands do not mix

    def _line(self, fields: dict[str, object]) -> bytes:
        if self._redactor is None:
            self._redactor = Redactor(self._known_secrets)
            self._waiting.append(self._line(self._first))
        short = {name: value[:TEXT_MAX] if isinstance(value, str) else value for name, value in fields.items()}
        present = {name: value for name, value in short.items() if value not in ("", [])}
        line = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "pid": os.getpid(), **present}
        return json.dumps(self._redactor.document(line)).encode() + b"\n"

    def _open(self) -> int:
        path = self._root / LOG
        with ledger.locked_file(path) as is_ours:
            if is_ours and path.stat().st_size > LOG_BYTES_MAX:
                path.replace(self._root / FORMER_LOG)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)


def read(root: Path) -> str:
    """The lines of the last commands, oldest first. Raises OSError without the right to read them."""
    paths = (root / FORMER_LOG, root / LOG)
    return "".join(path.read_text(errors="replace") for path in paths if path.exists())
