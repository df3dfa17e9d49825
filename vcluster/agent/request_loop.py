"""The agent's loop: a request in, an answer out, one at a time, until the controller hangs up.

A request is a line of JSON, `{"id", "operation", "arguments", "body"}`, then `body` raw bytes if that is a number. An
answer is a line `{"id", "result"}` or `{"id", "error": {"class", "message", "hint"}}`; a result that is bytes follows
the line raw, and the line says how many under `body`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vcluster import errors
from vcluster.errors import MissingError, VclusterError

LINE_LIMIT = 1 << 26
SILENCE_S = 600.0  # whoever says nothing for so long is gone; sshd may take hours to notice
Operations = Mapping[str, Callable[..., Any]]


class Body:
    """The bytes that come with a request, as a file to read. Raises VclusterError when they are cut short."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        self.size = self.left = size
        self._source = source

    def read(self, limit: int = -1) -> bytes:
        """At most `limit` bytes, none at the end."""
        wanted = self.left if limit < 0 else min(limit, self.left)
        data = self._source.read(wanted) if wanted else b""
        self.left -= len(data)
        if len(data) < wanted:
            raise VclusterError(f"the upload was cut short, {self.left} bytes before its end")
        return data

    def drain(self) -> None:
        """Read what the operation left unread."""
        while self.read(1 << 20):
            pass


def main(source: BinaryIO, sink: BinaryIO, order: Mapping[str, Any], lock: int) -> None:
    """Do what the loader was told to: `serve` requests, or `relay` to a socket of this server."""
    with contextlib.suppress(BrokenPipeError):
        if "relay" in order:
            os.close(lock)  # all it needs is loaded: it keeps nobody from removing the archive
            relay(source, sink, order["relay"])
        else:
            from vcluster.agent.operations import OPERATIONS  # noqa: PLC0415 - it loads what speaks to the kernel

            serve(source, sink, {**OPERATIONS, "uninstall": lambda: uninstall(Path(order["folder"]), lock)})
    # Whatever still waits for input, in a thread or in a buffer at exit, shall not keep us.
    os._exit(0)


def serve(source: BinaryIO, sink: BinaryIO, operations: Operations) -> None:
    """Answer requests until the input ends, or nothing comes for long."""
    while line := _next_line(source):
        request = json.loads(line)
        body = None if request.get("body") is None else Body(source, request["body"])
        answer, content = _answer(request, body, operations)
        sink.write(json.dumps(answer).encode() + b"\n" + content)
        sink.flush()
        if body:
            try:
                body.drain()
            except VclusterError:
                return


def _next_line(source: BinaryIO) -> bytes:
    giving_up = threading.Timer(SILENCE_S, os._exit, [0])
    giving_up.daemon = True
    giving_up.start()
    try:
        return source.readline(LINE_LIMIT)
    finally:
        giving_up.cancel()


def _answer(request: Mapping[str, Any], body: Body | None, operations: Operations) -> tuple[dict[str, Any], bytes]:
    try:
        result = perform(operations, request["operation"], request["arguments"], body)
    except VclusterError as error:
        return {"id": request["id"], "error": error_to_json(error)}, b""
    if isinstance(result, bytes):
        return {"id": request["id"], "body": len(result)}, result
    return {"id": request["id"], "result": result}, b""


def perform(operations: Operations, operation: str, arguments: Mapping[str, Any], body: Body | None) -> Any:
    """Run one operation; what comes with it are its arguments `body` and `size`. Raises nothing but VclusterError."""
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
    """An error as it travels."""
    return {"class": type(error).__name__, "message": error.message, "hint": error.hint}


def error_from_json(words: Mapping[str, Any], where: str) -> VclusterError:
    """The same error again, with the place it comes from."""
    kind = getattr(errors, str(words.get("class")), VclusterError)
    if not (isinstance(kind, type) and issubclass(kind, VclusterError)) or kind is errors.SeveralErrors:
        kind = VclusterError
    return kind(f"{where}: {words['message']}", hint=words.get("hint"))


def uninstall(folder: Path, lock: int) -> None:
    """Remove every archive that no other agent runs from, and the folders that are empty then."""
    os.close(lock)
    for path in folder.glob("*.pyz*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    for empty in (folder, folder.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()


def relay(source: BinaryIO, sink: BinaryIO, path: str) -> None:
    """Join our input and output with a socket of this server, after a line that says whether it can be had."""
    try:
        line = socket.socket(socket.AF_UNIX)
        line.connect(path)
    except OSError as error:
        failure = MissingError(f"{path}: {error.strerror}", hint="is libvirtd running there?")
        sink.write(json.dumps({"error": error_to_json(failure)}).encode() + b"\n")
        sink.flush()
        return
    sink.write(b"{}\n")
    sink.flush()
    threading.Thread(target=_pump, args=(source, line), daemon=True).start()
    while data := line.recv(1 << 18):
        sink.write(data)
        sink.flush()


def _pump(source: BinaryIO, line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.read1(1 << 18):  # type: ignore[attr-defined]  # it is buffered
            line.sendall(data)
        line.shutdown(socket.SHUT_WR)
