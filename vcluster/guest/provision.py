"""Runs a script by its own #! line, and writes its output to a log.

The controller sends it to a node, where python3 runs it as root. It reads from standard input
  {"script" (base64), "name", "folder", "environment", "log"}
It writes the script's output to standard output as it arrives, both streams together. When the script ends, the last
line on standard error is {"exit_code": N}, or {"error": …} if the script could not be run. The script works in
`folder`, or if that is null in a temporary folder. If the reader of the output ends, the script is killed.
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

POLL_S = 0.2
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


def has_reader() -> bool:
    """Whether the reader of our output still runs."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not poll.poll(0)


def pass_on(log: BinaryIO) -> None:
    """Write to standard output what was added to the log since the last call."""
    while True:
        data = log.read(CHUNK)
        if not data:
            break
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def follow(process: subprocess.Popen[bytes], log: BinaryIO) -> int:
    """Wait for the script and return its exit code; 128 + N if signal N ended it, as in a shell."""
    while True:
        try:
            code = process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            if not has_reader():
                raise BrokenPipeError("the reader of the output ended") from None
            pass_on(log)
        else:
            pass_on(log)
            return code if code >= 0 else 128 - code


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the script and its process group."""
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
    except OSError as error:  # the system's message names the script, not the missing interpreter
        with open(script, "rb") as file:
            line = file.readline(100).decode(errors="replace").strip()
        raise OSError(f"{request['name']} cannot be run by its line {line}: {error.strerror}") from error


def run(request: Request, folder: str) -> int:
    """Run the script. It writes to the log directly, so background processes that it starts can continue to."""
    script, working_folder = write_script(folder, request), request["folder"] or folder
    if not os.path.isdir(working_folder):
        raise OSError(f"{working_folder} does not exist: is the shared folder mounted?")
    with open_log(request["log"]) as output, open(request["log"], "rb", buffering=0) as log:
        process = start(script, request, working_folder, output)
        try:
            return follow(process, log)
        finally:
            kill(process)


def main() -> None:
    answer: Request
    folder = tempfile.mkdtemp(prefix="vcluster-")  # only its owner may read it
    try:
        answer = {"exit_code": run(json.load(sys.stdin), folder)}
    except OSError as error:
        answer = {"error": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    json.dump(answer, sys.stderr)


if __name__ == "__main__":
    main()
