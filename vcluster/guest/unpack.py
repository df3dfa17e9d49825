"""Unpacks a tree of files into the shared folder, completely or not at all.

The controller sends it to a node, where python3 starts it as root. It continues as `user`, the owner of the shared
folder: links of the user must not lead root to another place. It reads a line {"shared", "name", "user"} from standard
input. It answers {"present": true} if the shared folder has `name` already, below .vcluster. Else it answers
{"present": false} and reads a tar archive in pieces, each after its length in four bytes. A piece of length 0 ends it;
the answer is {"present": true}. On a failure the answer is {"error": …}.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from typing import Any

FOLDER = ".vcluster"
PARTIAL_SUFFIX = ".part"


def answer(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def become(user: str) -> None:
    account = pwd.getpwnam(user)
    if os.geteuid() == 0 and account.pw_uid != 0:
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    os.umask(0o022)


def make_folder(shared: str) -> str:
    """Make the folder for all trees, and remove incomplete trees from it."""
    folder = os.path.join(shared, FOLDER)
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        if name.endswith(PARTIAL_SUFFIX):
            shutil.rmtree(os.path.join(folder, name))
    return folder


def pieces() -> Any:
    """The pieces of the archive. Raises RuntimeError if the input ends before the piece of length 0."""
    stream = sys.stdin.buffer
    while True:
        length = stream.read(4)
        size = int.from_bytes(length, "big")
        if len(length) == 4 and size == 0:
            return
        piece = stream.read(size)
        if len(length) < 4 or len(piece) < size:
            raise RuntimeError("the archive was cut off")
        yield piece


def unpack(folder: str) -> None:
    os.mkdir(folder)
    argv = ["tar", "-x", "-p", "--no-same-owner", "-f", "-", "-C", folder]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as tar:
        try:
            for piece in pieces():
                tar.stdin.write(piece)  # type: ignore[union-attr]
        except BrokenPipeError:
            pass  # tar reports the reason
        except RuntimeError:
            tar.kill()
            raise
        output = tar.communicate()[1].decode(errors="replace").strip()
    if tar.returncode:
        raise RuntimeError(output.splitlines()[0] if output else f"tar ended with exit code {tar.returncode}")


def receive(request: dict[str, str]) -> None:
    become(request["user"])
    folder = make_folder(request["shared"])
    tree = os.path.join(folder, request["name"])
    if not os.path.isdir(tree):
        answer(present=False)
        part = tree + PARTIAL_SUFFIX
        try:
            unpack(part)
            os.rename(part, tree)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    answer(present=True)


def main() -> None:
    try:
        receive(json.loads(sys.stdin.buffer.readline()))
    except (OSError, RuntimeError) as error:
        answer(error=str(error))


if __name__ == "__main__":
    main()
