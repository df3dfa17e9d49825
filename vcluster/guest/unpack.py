"""Puts a tree of files into a folder that all nodes share, whole or not at all.

Sent to a node and run there as root by its own python3; it goes on as the user whom the shared folder belongs to, for
root is nobody on a folder that another node serves. Reads a line {"shared", "name"} from standard input and answers
{"present": true} where the shared folder has `name` already, below .vcluster. Else it answers {"present": false}, reads
a tar archive in pieces, each behind its length in four bytes, up to one of no length, and answers {"present": true}.
Whenever it cannot go on it answers {"error": …}.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

PLACE = ".vcluster"
ENDING = ".part"  # of a tree that is not whole


def answer(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def become_owner(folder: str) -> None:
    owner = os.stat(folder)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    os.umask(0o022)


def make_place(shared: str) -> str:
    """The folder for all trees, without what was cut off on its way there."""
    place = os.path.join(shared, PLACE)
    os.makedirs(place, exist_ok=True)
    for name in os.listdir(place):
        if name.endswith(ENDING):
            shutil.rmtree(os.path.join(place, name))
    return place


def pieces() -> Any:
    """The archive; it is whole only if the piece of no length has come."""
    stream = sys.stdin.buffer
    while True:
        head = stream.read(4)
        size = int.from_bytes(head, "big")
        if len(head) == 4 and size == 0:
            return
        piece = stream.read(size)
        if len(head) < 4 or len(piece) < size:
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
            pass  # tar says why
        except RuntimeError:
            tar.kill()
            raise
        words = tar.communicate()[1].decode(errors="replace").strip()
    if tar.returncode:
        raise RuntimeError(words.splitlines()[0] if words else f"tar ended with exit code {tar.returncode}")


def receive(request: dict[str, str]) -> None:
    become_owner(request["shared"])
    place = make_place(request["shared"])
    whole = os.path.join(place, request["name"])
    if not os.path.isdir(whole):
        answer(present=False)
        part = whole + ENDING
        try:
            unpack(part)
            os.rename(part, whole)
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
