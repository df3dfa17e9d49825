"""Adds a key to the user's ~/.ssh/authorized_keys or removes it; runs on a server as the user of the login.

Reads a JSON request from standard input, {"do": "add", "line"} or {"do": "remove", "mark"}, and writes
{"changed": bool}. The mark of a key is its comment, the last field of its line.
"""

from __future__ import annotations

import json
import os
import sys


def write(path: str, lines: list[str]) -> None:
    draft = f"{path}.vcluster"
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, path)


def main() -> None:
    request = json.load(sys.stdin)
    folder = os.path.expanduser("~/.ssh")
    path = os.path.realpath(os.path.join(folder, "authorized_keys"))
    lines = []
    if os.path.exists(path):
        with open(path) as file:
            lines = file.readlines()
    mark = request["mark"] if request["do"] == "remove" else request["line"].split()[-1]
    others = [line for line in lines if line.split()[-1:] != [mark] or line.startswith("#")]
    if others and not others[-1].endswith("\n"):
        others[-1] += "\n"
    new = [*others, request["line"].strip() + "\n"] if request["do"] == "add" else others
    if new != lines:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if new or os.path.exists(path):
            write(path, new)
    json.dump({"changed": new != lines}, sys.stdout)


if __name__ == "__main__":
    main()
