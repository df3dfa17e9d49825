"""Runs a script as it is, by its own #! line, and keeps a log of what it prints.

Sent to a node and run there as root by its own python3. Reads from standard input
  {"script" (base64), "name", "folder", "environment", "log"}
and writes what the script prints to standard output as it comes, both of its streams together; when the script has
ended, {"exit_code": N}, or {"error": …} if it could not be run, is the last line on standard error. The script works in
`folder`, or in one of its own, removed afterwards, if that is null. When nobody reads any more it is killed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Any, BinaryIO, Dict

LOOK_S = 0.2
CHUNK = 1 << 16

Request = Dict[str, Any]


def write_script(folder: str, request: Request) -> str:
    path = os.path.join(folder, request["name"])
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "wb") as file:
        file.write(base64.b64decode(request["script"]))
    return path


def open_log(path: str) -> BinaryIO:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), "wb", buffering=0)


def is_heard() -> bool:
    """Whether somebody still reads what we write."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not poll.poll(0)


def pass_on(log: BinaryIO) -> None:
    """What has come to the log since the last time."""
    while True:
        data = log.read(CHUNK)
        if not data:
            break
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def follow(process: subprocess.Popen[bytes], log: BinaryIO) -> int:
    """The script's exit code, once it has ended; as a shell tells it when a signal has ended it."""
    while True:
        try:
            code = process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            if not is_heard():
                raise BrokenPipeError("nobody listens any more") from None
            pass_on(log)
        else:
            pass_on(log)
            return code if code >= 0 else 128 - code


def kill(process: subprocess.Popen[bytes]) -> None:
    """The script and what it has started, unless that has gone its own way."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(script: str, request: Request, folder: str, output: BinaryIO) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [script],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=dict(os.environ, **request["environment"]),
            start_new_session=True,
        )
    except OSError as error:  # it would name the script, which is there
        with open(script, "rb") as file:
            line = file.readline(100).decode(errors="replace").strip()
        raise OSError(f"{request['name']} cannot be run by its line {line}: {error.strerror}") from error


def run(request: Request, folder: str) -> int:
    """The script writes to the log itself: what it leaves running can go on doing so."""
    script, place = write_script(folder, request), request["folder"] or folder
    if not os.path.isdir(place):
        raise OSError(f"{place} is not there: is the shared folder mounted?")
    with open_log(request["log"]) as output, open(request["log"], "rb", buffering=0) as log:
        process = start(script, request, place, output)
        try:
            return follow(process, log)
        finally:
            kill(process)


def main() -> None:
    answer: Request
    folder = tempfile.mkdtemp(prefix="vcluster-")  # it is the owner's alone
    try:
        answer = {"exit_code": run(json.load(sys.stdin), folder)}
    except OSError as error:
        answer = {"error": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    json.dump(answer, sys.stderr)


if __name__ == "__main__":
    main()
