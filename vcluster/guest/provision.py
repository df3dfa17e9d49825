"""Runs a script by its own #! line, and writes its output to a log.

The controller sends it to a node, where python3 runs it as root. It reads from standard input
  {"script" (base64), "name", "folder", "payload", "environment", "log"}
It writes the script's output to standard output as it arrives, both streams together. When the script ends, the last
line on standard error is {"exit_code": N}, or {"error": …} if the script could not be run. The script works in
`folder`, or if that is null in a temporary folder. If the reader of the output ends, the script is killed.

A `payload` is {"source", "digest", "size"}: a tree of files that is copied to `folder` first, unless it is there. The
source is in the shared folder, where the cluster's user may change it. So the script runs with the copy, which only
root may change and whose digest is compared.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from typing import Any, BinaryIO, Dict

POLL_S = 0.2
CHUNK = 1 << 16

ENTRY_BYTES = 512  # an entry counts for so many bytes more than its content, as in a tar archive

Request = Dict[str, Any]


class ChangedError(OSError):
    """A payload in the shared folder is not what the controller sent."""


class Copy:
    """The digest of a tree while it is copied, and how many bytes it may still have."""

    def __init__(self, size: int) -> None:
        self.digest = hashlib.sha256()
        self._left = size

    def count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ChangedError

    def add(self, name: str, mode: int, *, target: str = "", content: str = hashlib.sha256().hexdigest()) -> None:
        """Add an entry to the digest, with the digest of its content. The controller's payload.py does the same."""
        fields = (os.fsencode(name).hex(), mode, os.fsencode(target).hex(), content)
        self.digest.update(json.dumps(fields).encode())


def store(payload: Request, folder: str) -> None:
    """Copy a payload to a folder that only root may change, unless it is there, and compare its digest."""
    place, umask = os.path.dirname(folder), os.umask(0o022)
    os.makedirs(place, exist_ok=True)
    lock = os.open(place, os.O_RDONLY)  # two commands may run at once
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(folder):
            copy_completely(payload, folder)
    finally:
        os.close(lock)
        os.umask(umask)


def copy_completely(payload: Request, folder: str) -> None:
    part = f"{folder}.part"
    shutil.rmtree(part, ignore_errors=True)  # of a node that lost its power
    try:
        copy_payload(payload, part)
        os.rename(part, folder)
    except ChangedError as error:
        source = payload["source"]
        raise OSError(f"{source} differs from the payload: rename that folder, and run the command again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def copy_payload(payload: Request, target: str) -> None:
    try:
        source = os.open(payload["source"], os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise OSError(f"{payload['source']} does not exist: is the shared folder mounted?") from error
    copy = Copy(payload["size"])
    try:
        os.mkdir(target, 0o755)
        copy_tree(source, target, "", copy)
    finally:
        os.close(source)
    if copy.digest.hexdigest() != payload["digest"]:
        raise ChangedError


def copy_tree(source: int, target: str, name: str, copy: Copy) -> None:
    """Copy what is in an open folder. The user may replace any of it by a link meanwhile, so no link is followed."""
    for item in sorted(os.listdir(source)):
        inner, place = f"{name}{item}", os.path.join(target, item)
        copy.count(ENTRY_BYTES)
        mode = os.stat(item, dir_fd=source, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            link = os.readlink(item, dir_fd=source)
            os.symlink(link, place)
            copy.add(inner, 0o777, target=link)
            continue
        kind = os.O_DIRECTORY if stat.S_ISDIR(mode) else os.O_NONBLOCK  # a pipe must not block
        opened = os.open(item, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=source)
        try:
            if stat.S_ISDIR(mode):
                os.mkdir(place, 0o755)
                copy.add(f"{inner}/", 0o755)
                copy_tree(opened, place, f"{inner}/", copy)
            else:
                copy_file(opened, place, inner, copy)
        finally:
            os.close(opened)


def copy_file(source: int, place: str, name: str, copy: Copy) -> None:
    state, content = os.fstat(source), hashlib.sha256()
    if not stat.S_ISREG(state.st_mode):
        raise ChangedError
    mode = 0o755 if state.st_mode & 0o111 else 0o644
    with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        while True:
            data = os.read(source, CHUNK)
            if not data:
                break
            copy.count(len(data))
            content.update(data)
            file.write(data)
    copy.add(name, mode, content=content.hexdigest())


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
    if request["payload"]:
        store(request["payload"], working_folder)
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
