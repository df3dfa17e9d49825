"""The controller's side of the agent: `Here` does what is asked in this process, `There` on a server over SSH."""

from __future__ import annotations

import json
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from vcluster.adapters.pipe import Listener, Pipe, one_line
from vcluster.agent import bundle, request_loop
from vcluster.agent.request_loop import Body, Operations
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

Progress = Callable[[int], None]


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


class Agent(ABC):
    """What does our work on a server. Calls of several threads are made one after the other."""

    name: str

    @abstractmethod
    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        """Have an operation done and return its result. Raises what the operation raises."""

    @abstractmethod
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
        """The same, with `size` bytes of `source` as its argument `body`; `progress` hears how many have gone."""

    @abstractmethod
    def uninstall(self, deadline: Deadline) -> None:
        """Leave nothing of ours on the server that others do not still use. The agent ends with that."""

    @abstractmethod
    def close(self) -> None:
        """End it. A second time does nothing."""


class LocalAgent(Agent):
    """This machine: the operations are called in this process."""

    name = "this machine"

    def __init__(self, operations: Operations | None = None) -> None:
        self._given = operations
        self._lock = threading.Lock()

    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        with self._lock:
            deadline.check(awaited or operation)
            return request_loop.perform(self._operations(), operation, arguments, None)

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
            body = _Watched(source, size, progress, lambda: deadline.check(awaited or operation))
            return request_loop.perform(self._operations(), operation, arguments, body)

    def uninstall(self, deadline: Deadline) -> None:
        """Nothing was installed."""

    def close(self) -> None:
        """Nothing is open."""

    def _operations(self) -> Operations:
        if self._given is not None:
            return self._given
        from vcluster.agent.operations import OPERATIONS  # noqa: PLC0415 - it loads what speaks to the kernel

        return OPERATIONS


class _Watched(Body):
    """A body of this process: its reader is called off by the deadline and heard by the progress."""

    def __init__(self, source: BinaryIO, size: int, progress: Progress | None, check: Callable[[], None]) -> None:
        super().__init__(source, size)
        self._progress, self._check = progress, check

    def read(self, limit: int = -1) -> bytes:
        self._check()
        data = super().read(limit)
        if self._progress and data:
            self._progress(self.size - self.left)
        return data


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
            sudo = _Sudo(self.name, self._session.user, self._password)
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
                raise _diagnosis(self.name, self._session.user, code, pipe.error_output) from error
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


class _Sudo:
    """Listens to sudo and gives the password when it is asked for, once: a second time would be another attempt."""

    def __init__(self, name: str, user: str, password: Callable[[], str | None] | None) -> None:
        self._name, self._user, self._password = name, user, password
        self._prompt = f"vcluster-{secrets.token_hex(8)}:"
        self._heard = b""
        self._has_answered = False
        self.failure: VclusterError | None = None

    @property
    def prefix(self) -> list[str]:
        """The command line ahead of that of the program. In the C locale its complaints are in words we know."""
        return ["env", "LC_ALL=C", "sudo", "-S", "-p", self._prompt, "--"]

    def __call__(self, pipe: Pipe, data: bytes) -> None:
        self._heard += data
        if self._prompt.encode() not in self._heard:
            return
        self._heard = self._heard.partition(self._prompt.encode())[2]
        try:
            pipe.write(self._secret(), Deadline(10.0), "sudo to take the password")
        except VclusterError as error:
            self.failure = self.failure or error
            pipe.shut()  # sudo gives up when there is nothing to read

    def _secret(self) -> bytes:
        if self._has_answered:
            raise MissingError(f"{self._name}: sudo refuses the password of user {self._user}")
        password = self._password() if self._password else None
        if password is None:
            raise MissingError(
                f"{self._name}: sudo asks for the password of user {self._user}, and none was given",
                hint=f"configure one, or log in as root, or let {self._user} use sudo without a password",
            )
        if "\n" in password:
            raise MissingError(f"{self._name}: a password of more than one line cannot be given to sudo")
        self._has_answered = True
        return password.encode() + b"\n"


_COMPLAINTS = (
    (
        ("terminal is required", "must have a tty"),
        "sudo wants a terminal",
        "add to its sudoers (visudo): Defaults:{user} !requiretty",
    ),
    (
        ("not in the sudoers", "may not run sudo", "not allowed to execute", "not allowed to run"),
        "user {user} may not become root by sudo",
        "as root there: adduser {user} sudo",
    ),
    (("incorrect password", "Sorry, try again"), "sudo refuses the password of user {user}", None),
    (("python3: command not found", "python3: not found", "python3'"), "it has no python3", "apt-get install python3"),
    (("sudo: not found", "'sudo'", "sudo: command not found"), "it has no sudo", "log in as root, or install sudo"),
)


def _diagnosis(name: str, user: str, code: int, said: str) -> VclusterError:
    """Why our program did not run, from what sudo or the shell said."""
    for signs, message, hint in _COMPLAINTS:
        if any(sign in said for sign in signs):
            return MissingError(f"{name}: {message.format(user=user)}", hint=hint and hint.format(user=user))
    words = one_line(said) or "it said nothing"
    return MissingError(f"{name}: python3 does not start there (exit code {code}): {words}")
