"""Tries, from inside one node, everything that "ready" means, and answers with one result for each try.

Sent to a node and run there as root by its own python3. Reads a JSON request from standard input:
  {"do": "write", "user", "shares", "token"}                     write a file to every shared folder as the user
  {"do": "probe", "user", "targets", "payload", "shares", "token"}
                                                                 ping and log in to every target, read the files
  {"do": "mpi", "user", "hostfile", "targets", "timeout", "shares"} mpiexec hostname on all, then remove the files
where each of "shares" is {"node", "file", "mount"}, the mount null where the folder is the node's own; and writes
{"results": [{"check", "to", "passed", "detail"}]}; and
  {"do": "flow", "address", "count", "payload"}                  send so many packets there and count the answers
and writes {"answered": N}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Dict

Request = Dict[str, Any]
Result = Dict[str, Any]

SSH = ["ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]


def as_user(user: str, argv: list[str]) -> list[str]:
    return ["runuser", "-u", user, "--", *argv]


def start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def result(check: str, to: str, passed: bool, detail: str = "") -> Result:
    return {"check": check, "to": to, "passed": passed, "detail": "" if passed else (detail or "it said nothing")}


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def pings(request: Request) -> Iterator[Result]:
    """Full-size packets that may not be fragmented, to all at once."""
    argv = ["ping", "-n", "-q", "-c", "1", "-W", "5", "-M", "do", "-s", str(request["payload"])]
    tries = [(target["name"], start([*argv, target["address"]])) for target in request["targets"]]
    for name, process in tries:
        output = process.communicate()[0]
        loss = next((line for line in output.splitlines() if "packet loss" in line or "too long" in line), output)
        yield result("ping", name, process.returncode == 0, loss.strip())


def logins(request: Request) -> Iterator[Result]:
    """One after the other: under emulation, logins side by side only slow each other down."""
    for target in request["targets"]:
        process = start(as_user(request["user"], [*SSH, target["name"], "hostname"]))
        output = process.communicate()[0]
        passed = process.returncode == 0 and output.strip() == target["name"]
        yield result("ssh", target["name"], passed, last_line(output))


def mounted(folder: str) -> bool:
    with open("/proc/self/mounts") as file:
        return any(line.split()[1] == folder for line in file)


def shared(share: Request, token: str) -> Result:
    if share["mount"] and not mounted(share["mount"]):
        return result("nfs", share["node"], False, f"{share['mount']} is not mounted")
    try:
        with open(share["file"]) as file:
            found = file.read()
    except OSError as error:
        return result("nfs", share["node"], False, str(error))
    return result("nfs", share["node"], found == token, f"{share['file']} holds something else")


def probe(request: Request) -> list[Result]:
    return [*pings(request), *logins(request), *(shared(share, request["token"]) for share in request["shares"])]


def write(request: Request) -> list[Result]:
    return [failure for share in request["shares"] for failure in put(request, share)]


def put(request: Request, share: Request) -> Iterator[Result]:
    done = subprocess.run(
        as_user(request["user"], ["tee", share["file"]]),
        input=request["token"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        yield result("nfs", share["node"], False, last_line(done.stderr))


def mpi(request: Request) -> list[Result]:
    names = [target["name"] for target in request["targets"]]
    home = os.path.dirname(request["hostfile"])
    env = dict(os.environ, HOME=home, HYDRA_IFACE="lab0")
    argv = ["mpiexec", "-f", request["hostfile"], "-ppn", "1", "-n", str(len(names)), "hostname"]
    try:
        done = subprocess.run(
            as_user(request["user"], argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=request["timeout"],
            env=env,
            check=False,
            cwd=home,
        )
        found, detail = done.stdout.split(), last_line(done.stderr) or last_line(done.stdout)
    except subprocess.TimeoutExpired:
        found, detail = [], f"mpiexec did not end within {request['timeout']} s"
    finally:
        for share in request["shares"]:
            # Root is nobody to the server of a mounted folder.
            subprocess.run(as_user(request["user"], ["rm", "-f", share["file"]]), check=False)
    return [result("mpi", name, found.count(name) == 1, detail) for name in names]


def flow(request: Request) -> int:
    """As fast as they are answered, at least a hundred a second."""
    argv = ["ping", "-n", "-q", "-f", "-c", str(request["count"]), "-w", "20", "-s", str(request["payload"])]
    done = subprocess.run([*argv, request["address"]], capture_output=True, text=True, check=False)
    words = done.stdout.split(" received")[0].split()
    return int(words[-1]) if words and words[-1].isdigit() else 0


def main() -> None:
    request = json.load(sys.stdin)
    if request["do"] == "flow":
        json.dump({"answered": flow(request)}, sys.stdout)
        return
    work = {"write": write, "probe": probe, "mpi": mpi}[request["do"]]
    json.dump({"results": work(request)}, sys.stdout)


if __name__ == "__main__":
    main()
