"""Adds a key to the user's own ~/.ssh/authorized_keys or removes it; run on a server as the user we log in as.

Reads a JSON request from standard input, {"do": "add", "line"} or {"do": "remove", "mark"}, and writes
{"changed": bool}. A key's mark is its comment, the last word of its line.
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
    wanted = [*others, request["line"].strip() + "\n"] if request["do"] == "add" else others
    if wanted != lines:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if wanted or os.path.exists(path):
            write(path, wanted)
    json.dump({"changed": wanted != lines}, sys.stdout)


if __name__ == "__main__":
    main()
