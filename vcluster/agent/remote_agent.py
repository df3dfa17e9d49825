"""The agent on a server: a process that an SSH session starts there as root and that serves our requests."""

from __future__ import annotations

import json
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from vcluster.adapters.pipe import LINE_LIMIT, Listener, Pipe
from vcluster.agent import bundle, libvirt_daemons, request_loop
from vcluster.agent.client import RESULTS, Agent, Progress
from vcluster.agent.sudo import Sudo, translate_failure
from vcluster.errors import DeadlineError, MissingError, VclusterError
from vcluster.model import json_text, json_types
from vcluster.util.deadline import Cancelled, Deadline

FOLDER = Path("/var/lib/vcluster/agent")
OLDEST_PYTHON = (3, 10)
CHUNK = 1 << 18
PING_S = request_loop.SILENCE_S / 5  # the agent ends after SILENCE_S without a request, and loses its locks
PING_TIMEOUT_S = 30.0
_POLL_S = 0.5
_LOGIN_LINES_MAX = 1000  # lines that login scripts may print before our program starts
_LOGIN_LINES_SHOWN = 3
# Ends the line of a login script, prints a marker and the Python version, then reads and runs the bootstrap's source.
_PROGRAM = (
    "import os,sys;s=os.fdopen(os.dup(0),'rb');print();print({marker!r},*sys.version_info[:2],flush=True);"
    "g={{'__name__':'loader'}};exec(compile(s.read({size}),'loader','exec'),g);g['main'](s)"
)


class ProgramStarter(Protocol):
    """Starts programs on a server. An SSH session implements it."""

    @property
    def name(self) -> str:
        """The server's name in messages."""

    @property
    def user(self) -> str:
        """The user of the login."""

    def start(
        self,
        argv: list[str],
        *,
        on_error_output: Listener | None = None,
        deadline: Deadline | None = None,
        awaited: str = "",
    ) -> Pipe:
        """Start a program and return its streams."""


class RemoteAgent(Agent):
    """The agent on a server. Its process starts with the first call, runs as root and ends with the session.

    `password` is called when sudo asks for the password, at most once. After a call that timed out, the next call first
    waits for the late answer: the server runs one operation at a time. Until the end, pings show the process that its
    controller is there, for example while a node boots.
    """

    def __init__(
        self,
        session: ProgramStarter,
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
        self._has_late_answer = False
        self._pipe: Pipe | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._ping, name=f"ping of {self.name}", daemon=True).start()
        if deadline:
            self._pipe = self._start({}, deadline)

    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        awaited = awaited or f"the operation {operation}"
        with self._turn(deadline, awaited):
            return self._call(operation, arguments, deadline, awaited)

    def _call(self, operation: str, arguments: dict[str, Any], deadline: Deadline, awaited: str) -> Any:
        pipe = self._send_request(operation, arguments, None, deadline, awaited)
        return self._checked(self._read_answer(pipe, deadline, awaited), operation, awaited)

    def _checked(self, result: Any, operation: str, awaited: str) -> Any:
        """The result. Raises VclusterError if it is not of the operation's type: each server has its own users."""
        if wrong := json_types.misfit(result, RESULTS.get(operation, Any), "the result"):
            raise VclusterError(f"{self._unknown_answer(awaited).message}: {wrong}")
        return result

    @contextmanager
    def _turn(self, deadline: Deadline, awaited: str) -> Iterator[None]:
        """Wait until no other thread uses the agent: another call, or a ping to a server that hangs."""
        while not self._lock.acquire(timeout=deadline.remaining_s(_POLL_S)):
            deadline.check(f"{awaited} on {self.name}")
        try:
            yield
        finally:
            self._lock.release()

    def _ping(self) -> None:
        """Send a request from time to time. An error, also one of a malformed answer, is left to the next call."""
        while not self._closed.wait(PING_S):
            deadline = Deadline(PING_TIMEOUT_S).with_check(self._require_open)
            with suppress(VclusterError), self._turn(deadline, "a sign of life"):
                if self._pipe and self._pipe.is_alive:
                    self._call("ping", {}, deadline, "a sign of life")

    def _require_open(self, awaited: str) -> None:
        if self._closed.is_set():
            raise Cancelled(f"stopped while waiting for {awaited}")

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
        awaited = awaited or f"the operation {operation}"
        with self._turn(deadline, awaited):
            if self._has_late_answer:
                self._call("ping", {}, deadline, awaited)  # it drops the late answer, which is not that of the upload
            pipe = self._send_request(operation, arguments, size, deadline, awaited)
            try:
                is_whole = self._send_body(pipe, source, size, progress, deadline, awaited)
            except BaseException:
                self._disconnect()
                raise
            try:
                return self._checked(self._read_answer(pipe, deadline, awaited), operation, awaited)
            finally:
                if not is_whole:
                    self._disconnect()

    def start_relay(self, deadline: Deadline) -> Pipe:
        """A stream to the socket of the server's libvirt, which only root can open."""
        pipe = self._start({"relay": [str(path) for path in libvirt_daemons.SOCKETS.values()]}, deadline)
        try:
            self._require_success(self._read_message(pipe, deadline, "libvirt"), "libvirt")
        except BaseException:
            pipe.close()
            raise
        return pipe

    def start_capture(self, request: Mapping[str, Any], deadline: Deadline) -> Pipe:
        return self._start({"capture": dict(request)}, deadline)

    def uninstall(self, deadline: Deadline) -> None:
        self.call("uninstall", deadline=deadline)
        self.close()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        pipe, self._pipe, self._has_late_answer = self._pipe, None, False
        if pipe:
            pipe.close()

    # Requests and answers

    def _send_request(
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

    def _read_answer(self, pipe: Pipe, deadline: Deadline, awaited: str) -> Any:
        """The answer to the last request. Late answers to earlier requests are dropped."""
        try:
            while True:
                answer = self._read_message(pipe, deadline, awaited)
                content = self._read_content(pipe, answer, deadline, awaited)
                if answer.get("id") == self._number:
                    break
        except (DeadlineError, Cancelled):
            self._has_late_answer = True  # the next call drops it
            raise
        except BaseException:
            self._disconnect()
            raise
        self._has_late_answer = False
        self._require_success(answer, awaited)
        return answer.get("result") if content is None else content

    def _read_message(self, pipe: Pipe, deadline: Deadline, awaited: str) -> dict[str, Any]:
        """The next message, a JSON object in a line."""
        try:
            message = json_text.parse(pipe.read_line(deadline, awaited))
        except ValueError as error:
            raise self._unknown_answer(awaited) from error
        if not isinstance(message, dict):
            raise self._unknown_answer(awaited)
        return message

    def _read_content(self, pipe: Pipe, answer: dict[str, Any], deadline: Deadline, awaited: str) -> bytes | None:
        """The bytes that follow an answer, if it has a body."""
        if "body" not in answer:
            return None
        size = answer["body"]
        if not isinstance(size, int) or not 0 <= size <= LINE_LIMIT:
            raise self._unknown_answer(awaited)
        return pipe.read(size, deadline, awaited)

    def _require_success(self, answer: dict[str, Any], awaited: str) -> None:
        """Raise the error in an answer, if there is one."""
        if "error" not in answer:
            return
        fields = answer["error"]
        if not isinstance(fields, dict) or "message" not in fields:
            raise self._unknown_answer(awaited)
        raise request_loop.error_from_json(fields, self.name)

    def _unknown_answer(self, awaited: str) -> VclusterError:
        return VclusterError(f"{self.name}: {awaited}: the agent sent an answer that vcluster does not know")

    def _send_body(
        self, pipe: Pipe, source: BinaryIO, size: int, progress: Progress | None, deadline: Deadline, awaited: str
    ) -> bool:
        """Send the body. Return False if an answer arrived first: the operation failed early."""
        sent = 0
        while sent < size:
            if pipe.has_more():
                return False
            chunk = source.read(min(CHUNK, size - sent))
            if not chunk:
                raise VclusterError(f"{self.name}: {awaited}: the file to send is {size - sent} bytes too short")
            pipe.write(chunk, deadline, awaited)
            sent += len(chunk)
            if progress:
                progress(sent)
        return True

    # The start

    def _start(self, order: dict[str, Any], deadline: Deadline, awaited: str = "the start of the agent") -> Pipe:
        """Start the agent on the server as root; send its archive if the server does not have it."""
        archive = self._archive or bundle.build()
        bootstrap = Path(__file__).with_name("bootstrap.py").read_bytes()
        pipe = self._start_python(_PROGRAM, len(bootstrap), deadline, awaited)
        order = {**order, "folder": str(self._folder), "digest": archive.digest, "size": len(archive.content)}
        try:
            pipe.write(bootstrap + json.dumps(order).encode() + b"\n", deadline, awaited)
            if not self._has_archive(pipe, deadline, awaited):
                pipe.write(archive.content, deadline, awaited)
                self._has_archive(pipe, deadline, awaited)
        except BaseException:
            pipe.close()
            raise
        return pipe

    def _has_archive(self, pipe: Pipe, deadline: Deadline, awaited: str) -> bool:
        answer = self._read_message(pipe, deadline, awaited)
        if "refused" in answer:
            raise MissingError(f"{self.name}: cannot store the agent's program: {answer['refused']}")
        return bool(answer.get("have"))

    def _start_python(self, boot: str, size: int, deadline: Deadline, awaited: str) -> Pipe:
        """Start Python on the server, with sudo unless the user is root, and wait for its first line."""
        marker = f"vcluster-{secrets.token_hex(8)}"
        argv = ["python3", "-I", "-S", "-c", boot.format(marker=marker, size=size)]
        sudo = None
        if self._session.user != "root":
            sudo = Sudo(self.name, self._session.user, self._password)
            argv = [*sudo.prefix, *argv]
        pipe = self._session.start(argv, on_error_output=sudo, deadline=deadline, awaited=awaited)
        login: deque[bytes] = deque(maxlen=_LOGIN_LINES_SHOWN)
        try:
            version = self._await_python(pipe, marker, login, deadline, awaited)
        except BaseException as error:
            code = pipe.wait(1.0) if not isinstance(error, (DeadlineError, Cancelled)) else None
            pipe.close()
            if sudo and sudo.failure:
                raise sudo.failure from error
            if isinstance(error, VclusterError) and code is not None:
                printed = b"\n".join((*login, pipe.unread)).decode(errors="replace").strip()
                raise translate_failure(self.name, self._session.user, code, pipe.error_output or printed) from error
            raise
        if version < OLDEST_PYTHON:
            pipe.close()
            found, needed = (".".join(map(str, each)) for each in (version, OLDEST_PYTHON))
            raise MissingError(f"{self.name} has Python {found}; the agent needs {needed} or newer")
        return pipe

    def _await_python(
        self, pipe: Pipe, marker: str, login: deque[bytes], deadline: Deadline, awaited: str
    ) -> tuple[int, int]:
        """The version of Python, which follows the marker; `login` gets the last lines before that."""
        for _ in range(_LOGIN_LINES_MAX):
            line = pipe.read_line(deadline, awaited)
            token, *version = line.decode(errors="replace").split(" ") or [""]
            if token == marker:
                return int(version[0]), int(version[1])
            login.append(line)
        raise VclusterError(f"{self.name}: its login scripts print more than {_LOGIN_LINES_MAX} lines")
