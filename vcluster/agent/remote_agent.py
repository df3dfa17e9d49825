"""The agent on a server."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from vcluster.adapters.pipe import Listener, Pipe
from vcluster.agent import bundle, request_loop
from vcluster.agent.client import Agent, Progress
from vcluster.agent.sudo import Sudo, diagnosis
from vcluster.errors import DeadlineError, MissingError, VclusterError
from vcluster.util.deadline import Cancelled, Deadline

FOLDER = Path("/var/lib/vcluster/agent")
LIBVIRT_SOCKET = Path("/run/libvirt/libvirt-sock")
OLDEST_PYTHON = (3, 10)
CHUNK = 1 << 18
_GREETINGS = 1000  # so many lines a login script may print before our program runs
# Says that it runs and on which Python, then runs the loader, whose source comes next.
_BOOT = (
    "import os,sys;s=os.fdopen(os.dup(0),'rb');print({mark!r},*sys.version_info[:2],flush=True);"
    "g={{'__name__':'loader'}};exec(compile(s.read({size}),'loader','exec'),g);g['main'](s)"
)


class Starter(Protocol):
    """What can start programs on a server: a session."""

    @property
    def name(self) -> str:
        """The server, as messages name it."""

    @property
    def user(self) -> str:
        """Who is logged in there."""

    def start(
        self,
        argv: list[str],
        *,
        on_error_output: Listener | None = None,
        deadline: Deadline | None = None,
        awaited: str = "",
    ) -> Pipe:
        """Start a program."""


class RemoteAgent(Agent):
    """A server: a process of ours on it, as root, that a session starts and that ends with the session.

    `password` is asked for when sudo asks, and given once. An answer that did not come in time is awaited by the next
    call before it is made: nothing runs on the server beside it.
    """

    def __init__(
        self,
        session: Starter,
        *,
        password: Callable[[], str | None] | None = None,
        deadline: Deadline | None = None,
        folder: Path = FOLDER,
        archive: bundle.Archive | None = None,
    ) -> None:
        self.name = session.name
        self._session = session
        self._password = password
        self._folder = folder
        self._archive = archive
        self._lock = threading.Lock()
        self._number = 0
        self._pipe: Pipe | None = None
        if deadline:
            self._pipe = self._start({}, deadline)

    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        with self._lock:
            awaited = awaited or operation
            pipe = self._ask(operation, arguments, None, deadline, awaited)
            return self._answer(pipe, deadline, awaited)

    def send(
        self,
        operation: str,
        source: BinaryIO,
        size: int,
        /,
        *,
        progress: Progress | None = None,
        deadline: Deadline,
        awaited: str = "",
        **arguments: Any,
    ) -> Any:
        with self._lock:
            awaited = awaited or operation
            pipe = self._ask(operation, arguments, size, deadline, awaited)
            try:
                is_whole = self._pour(pipe, source, size, progress, deadline, awaited)
            except BaseException:
                self._disconnect()
                raise
            try:
                return self._answer(pipe, deadline, awaited)
            finally:
                if not is_whole:
                    self._disconnect()

    def start_relay(self, deadline: Deadline, path: Path = LIBVIRT_SOCKET) -> Pipe:
        """A stream to a socket of the server that only root may open."""
        pipe = self._start({"relay": str(path)}, deadline)
        try:
            words = json.loads(pipe.read_line(deadline, str(path)))
        except BaseException:
            pipe.close()
            raise
        if "error" in words:
            pipe.close()
            raise request_loop.error_from_json(words["error"], self.name)
        return pipe

    def uninstall(self, deadline: Deadline) -> None:
        self.call("uninstall", deadline=deadline)
        self.close()

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe:
            pipe.close()

    # Requests and answers

    def _ask(
        self, operation: str, arguments: dict[str, Any], body: int | None, deadline: Deadline, awaited: str
    ) -> Pipe:
        pipe = self._pipe
        if pipe is None or not pipe.is_alive:
            self._disconnect()
            pipe = self._pipe = self._start({}, deadline, awaited)
        self._number += 1
        request = {"id": self._number, "operation": operation, "arguments": arguments, "body": body}
        try:
            pipe.write(json.dumps(request).encode() + b"\n", deadline, awaited)
        except BaseException:
            self._disconnect()
            raise
        return pipe

    def _answer(self, pipe: Pipe, deadline: Deadline, awaited: str) -> Any:
        """The answer to the last request; those to earlier ones, which nobody waited for to the end, are dropped."""
        try:
            while True:
                answer = json.loads(pipe.read_line(deadline, awaited))
                content = pipe.read(answer["body"], deadline, awaited) if "body" in answer else None
                if answer["id"] == self._number:
                    break
        except (DeadlineError, Cancelled):
            raise  # the answer is still owed: see above
        except BaseException:
            self._disconnect()
            raise
        if "error" in answer:
            raise request_loop.error_from_json(answer["error"], self.name)
        return answer["result"] if content is None else content

    def _pour(
        self, pipe: Pipe, source: BinaryIO, size: int, progress: Progress | None, deadline: Deadline, awaited: str
    ) -> bool:
        """Send the body; False when the answer came first, which is then a refusal."""
        sent = 0
        while sent < size:
            if pipe.has_more():
                return False
            chunk = source.read(min(CHUNK, size - sent))
            if not chunk:
                raise VclusterError(f"{self.name}: {awaited}: what is to be sent ends {size - sent} bytes early")
            pipe.write(chunk, deadline, awaited)
            sent += len(chunk)
            if progress:
                progress(sent)
        return True

    # The start

    def _start(self, order: dict[str, Any], deadline: Deadline, awaited: str = "the start of its agent") -> Pipe:
        """Start our program on the server as root; it gets its archive if it has not got it."""
        archive = self._archive or bundle.build()
        loader = Path(__file__).with_name("bootstrap.py").read_bytes()
        pipe = self._become_root(_BOOT, len(loader), deadline, awaited)
        order = {**order, "folder": str(self._folder), "digest": archive.digest, "size": len(archive.content)}
        try:
            pipe.write(loader + json.dumps(order).encode() + b"\n", deadline, awaited)
            if not self._has(pipe, deadline, awaited):
                pipe.write(archive.content, deadline, awaited)
                self._has(pipe, deadline, awaited)
        except BaseException:
            pipe.close()
            raise
        return pipe

    def _has(self, pipe: Pipe, deadline: Deadline, awaited: str) -> bool:
        words = json.loads(pipe.read_line(deadline, awaited))
        if "refused" in words:
            raise MissingError(f"{self.name}: the agent's program cannot be kept there: {words['refused']}")
        return bool(words["have"])

    def _become_root(self, boot: str, size: int, deadline: Deadline, awaited: str) -> Pipe:
        """Run Python there, by sudo unless we are root already, and wait for its first line."""
        mark = f"vcluster-{secrets.token_hex(8)}"
        argv = ["python3", "-I", "-S", "-c", boot.format(mark=mark, size=size)]
        sudo = None
        if self._session.user != "root":
            sudo = Sudo(self.name, self._session.user, self._password)
            argv = [*sudo.prefix, *argv]
        pipe = self._session.start(argv, on_error_output=sudo, deadline=deadline, awaited=awaited)
        try:
            version = self._greeting(pipe, mark, deadline, awaited)
        except BaseException as error:
            code = pipe.wait(1.0) if not isinstance(error, (DeadlineError, Cancelled)) else None
            pipe.close()
            if sudo and sudo.failure:
                raise sudo.failure from error
            if isinstance(error, VclusterError) and code is not None:
                raise diagnosis(self.name, self._session.user, code, pipe.error_output) from error
            raise
        if version < OLDEST_PYTHON:
            pipe.close()
            found, needed = (".".join(map(str, each)) for each in (version, OLDEST_PYTHON))
            raise MissingError(f"{self.name} has Python {found}; {needed} or newer is needed there")
        return pipe

    def _greeting(self, pipe: Pipe, mark: str, deadline: Deadline, awaited: str) -> tuple[int, int]:
        for _ in range(_GREETINGS):
            word, *version = pipe.read_line(deadline, awaited).decode(errors="replace").split(" ") or [""]
            if word == mark:
                return int(version[0]), int(version[1])
        raise VclusterError(f"{self.name}: its login scripts print without end")
