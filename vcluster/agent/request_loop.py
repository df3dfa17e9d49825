"""The agent's request loop: one request, one answer, until the controller closes the connection.

A request is a line of JSON, `{"id", "operation", "arguments", "body"}`; if `body` is a number, so many raw bytes
follow. An answer is a line `{"id", "result"}` or `{"id", "error": {"class", "message", "hint"}}`. For a result of
bytes, the line is `{"id", "body"}` with their number, and the raw bytes follow.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vcluster import errors
from vcluster.agent import libvirt_daemons
from vcluster.errors import MissingError, VclusterError
from vcluster.model import json_text, json_types

LINE_LIMIT = 1 << 26
ERROR_MAX = 1000  # characters of an error of another server
SILENCE_S = 600.0  # without input for this time, the controller is gone; sshd may notice that hours later
_REQUEST = {"id": int, "operation": str, "arguments": dict[str, Any], "body": int | None}
Operations = Mapping[str, Callable[..., Any]]


class Body:
    """The bytes that follow a request, as a readable file. Raises VclusterError when they end early."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self.size = self.left = size
        self._source = source

    def read(self, limit: int = -1) -> bytes:
        """At most `limit` bytes, none at the end."""
        count = self.left if limit < 0 else min(limit, self.left)
        with _limited_silence():
            data = self._source.read(count) if count else b""
        self.left -= len(data)
        if len(data) < count:
            raise VclusterError(f"the upload ended {self.left} bytes early")
        return data

    def drain(self) -> None:
        """Read what the operation left unread."""
        while self.read(1 << 20):
            pass


def main(source: BinaryIO, sink: BinaryIO, order: Mapping[str, Any], lock: int) -> None:
    """Execute the bootstrap's order: serve requests, capture frames, or relay to a socket of this server."""
    if "capture" in order:
        from vcluster.agent.capture import frame_capture  # noqa: PLC0415 - it loads pyroute2

        os.close(lock)  # all modules are loaded, so the archive may be removed
        frame_capture.serve(source, sink, order["capture"])
    elif "relay" in order:
        os.close(lock)
        with contextlib.suppress(BrokenPipeError):
            relay(source, sink, order["relay"])
    else:
        _serve_all(source, sink, Path(order["folder"]), lock)
    # Exit at once: a thread or a buffer may still wait for input.
    os._exit(0)


def _serve_all(source: BinaryIO, sink: BinaryIO, folder: Path, lock: int) -> None:
    """Serve requests. Then remove the archive if no cluster is here: a controller that was killed did not do it."""
    from vcluster.agent.operations import OPERATIONS  # noqa: PLC0415 - it loads pyroute2

    own = {"uninstall": lambda: uninstall(folder, lock), "ping": lambda: None}
    with contextlib.suppress(BrokenPipeError):
        serve(source, sink, {**OPERATIONS, **own})
    with contextlib.suppress(VclusterError, OSError):
        if not OPERATIONS["has_clusters"]():
            uninstall(folder, lock)


def serve(source: BinaryIO, sink: BinaryIO, operations: Operations) -> None:
    """Answer requests until the input ends.

    The process exits if a request, or a piece of a body, does not arrive within SILENCE_S seconds. So an upload that
    was cut off does not keep its lock.
    """
    while line := _next_line(source):
        try:
            request = _parsed(line)
        except VclusterError as error:  # the next request cannot be found after it
            sink.write(json.dumps({"id": None, "error": error_to_json(error)}).encode() + b"\n")
            sink.flush()
            return
        body = None if request["body"] is None else Body(source, request["body"])
        answer, content = _answer(request, body, operations)
        sink.write(json.dumps(answer).encode() + b"\n" + content)
        sink.flush()
        if body:
            try:
                body.drain()
            except VclusterError:
                return


def _parsed(line: bytes) -> dict[str, Any]:
    """The request in a line. Raises VclusterError if it is not one."""
    try:
        request = json_text.parse(line)
    except ValueError as error:
        raise VclusterError("the agent got a request that is not JSON") from error
    wrong = json_types.misfit(request, _REQUEST, "the request")
    if not wrong and (request["body"] or 0) < 0:
        wrong = "the request.body is negative"
    if wrong:
        raise VclusterError(f"the agent got a request that it does not know: {wrong}")
    return request  # type: ignore[no-any-return]


def _next_line(source: BinaryIO) -> bytes:
    with _limited_silence():
        return source.readline(LINE_LIMIT)


def await_end(source: BinaryIO) -> None:
    """Wait for the end of the input. Exit if nothing arrives for SILENCE_S seconds."""
    while True:
        with _limited_silence():
            if not source.read1(1 << 10):  # type: ignore[attr-defined]  # it is buffered
                return


@contextlib.contextmanager
def _limited_silence() -> Iterator[None]:
    """Exit if a read of the input takes longer than SILENCE_S seconds."""
    timer = threading.Timer(SILENCE_S, os._exit, [0])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _answer(request: Mapping[str, Any], body: Body | None, operations: Operations) -> tuple[dict[str, Any], bytes]:
    try:
        result = perform(operations, request["operation"], request["arguments"], body)
    except VclusterError as error:
        return {"id": request["id"], "error": error_to_json(error)}, b""
    if isinstance(result, bytes):
        return {"id": request["id"], "body": len(result)}, result
    return {"id": request["id"], "result": result}, b""


def perform(operations: Operations, operation: str, arguments: Mapping[str, Any], body: Body | None) -> Any:
    """Run one operation; a body becomes its arguments `body` and `size`. Raises only VclusterError."""
    if operation not in operations:
        raise VclusterError(f"the agent has no operation {operation!r:.60}")
    if wrong := json_types.misfit_in_arguments(operations[operation], arguments, has_body=body is not None):
        raise VclusterError(f"{operation}: {wrong}")
    try:
        result = operations[operation](**arguments, **({} if body is None else {"body": body, "size": body.size}))
        return result if isinstance(result, bytes) else json.loads(json.dumps(result))
    except VclusterError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise VclusterError(f"{operation}: {where}{error.strerror or error or type(error).__name__}") from error
    except Exception as error:
        raise VclusterError(f"{operation}: {type(error).__name__}: {error}") from error


def error_to_json(error: VclusterError) -> dict[str, Any]:
    """An error as JSON. Its class is the next one in the error tree that `error_from_json` knows."""
    known = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
    return {"class": known, "message": error.message, "hint": error.hint}


def error_from_json(fields: Mapping[str, Any], server: str) -> VclusterError:
    """The error from JSON, of the same class; its message starts with the server's name."""
    kind = getattr(errors, str(fields.get("class")), VclusterError)
    if not (isinstance(kind, type) and issubclass(kind, VclusterError)) or kind is errors.SeveralErrors:
        kind = VclusterError
    hint = fields.get("hint")
    return kind(f"{server}: {str(fields['message'])[:ERROR_MAX]}", hint=hint if isinstance(hint, str) else None)


def uninstall(folder: Path, lock: int) -> None:
    """Remove every archive that no other agent uses, and the folders if they are empty."""
    fcntl.flock(lock, fcntl.LOCK_UN)
    for path in folder.glob("*.pyz*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    for empty in (folder, folder.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()


def relay(source: BinaryIO, sink: BinaryIO, paths: Sequence[str]) -> None:
    """Relay between our streams and the first of these sockets of libvirt that answers.

    First write a line: `{}`, or the error.
    """
    try:
        connection = _connect(paths)
    except OSError as error:
        failure = MissingError(
            f"{paths[0]}: {error.strerror}", hint=f"on that server: {libvirt_daemons.start_command()}"
        )
        sink.write(json.dumps({"error": error_to_json(failure)}).encode() + b"\n")
        sink.flush()
        return
    sink.write(b"{}\n")
    sink.flush()
    threading.Thread(target=_copy_input, args=(source, connection), daemon=True).start()
    while data := connection.recv(1 << 18):
        sink.write(data)
        sink.flush()


def _connect(paths: Sequence[str]) -> socket.socket:
    """A connection to the first socket that answers. If none does, raises the error of the first."""
    failures = []
    for path in paths:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            failures.append(error)
        else:
            return connection
    raise failures[0]


def _copy_input(source: BinaryIO, connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.read1(1 << 18):  # type: ignore[attr-defined]  # it is buffered
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
