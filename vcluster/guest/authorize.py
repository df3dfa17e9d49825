"""Adds a key to the user's ~/.ssh/authorized_keys or removes it; runs on a server as the user of the login.

Reads a JSON request from standard input, {"do": "add", "line"} or {"do": "remove", "mark"}, and writes
{"changed": bool}. The mark of a key is its comment, the last field of its line.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys

Request = dict[str, str]


def open_draft(path: str) -> int:
    """Open the next version of a file and lock it: other commands wait until this one has replaced the file.

    The lock is on a file that is open for writing, because NFS has no other locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # the command that had the lock has renamed the file
        os.close(descriptor)


def change(path: str, request: Request) -> bool:
    """Change the file as requested. Returns whether something changed. If nothing does, it needs no right to write."""
    if is_done(path, request):
        return False
    draft = f"{path}.vcluster"
    descriptor = open_draft(draft)
    try:
        if is_done(path, request):  # another command did it meanwhile
            os.unlink(draft)
            return False
        write(descriptor, changed(read(path), request))
        os.fchmod(descriptor, os.stat(path).st_mode & 0o777 if os.path.exists(path) else 0o600)
        os.rename(draft, path)
        return True
    finally:
        os.close(descriptor)


def is_done(path: str, request: Request) -> bool:
    lines = read(path)
    return changed(lines, request) == lines


def read(path: str) -> list[str]:
    if not os.path.exists(path):
        return []
    # The other lines belong to the user: they keep their bytes, in each encoding, and their ends.
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return file.readlines()


def changed(lines: list[str], request: Request) -> list[str]:
    mark = request["mark"] if request["do"] == "remove" else request["line"].split()[-1]
    others = [line for line in lines if line.split()[-1:] != [mark] or line.startswith("#")]
    if request["do"] == "remove":
        return others
    if others and not others[-1].endswith("\n"):
        others[-1] += "\n"
    return [*others, request["line"].strip() + "\n"]


def write(descriptor: int, lines: list[str]) -> None:
    os.truncate(descriptor, 0)
    with os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    request = json.load(sys.stdin)
    folder = os.path.expanduser("~/.ssh")
    if request["do"] == "add":
        os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.realpath(os.path.join(folder, "authorized_keys"))
    is_changed = os.path.isdir(os.path.dirname(path)) and change(path, request)
    json.dump({"changed": is_changed}, sys.stdout)


if __name__ == "__main__":
    main()
