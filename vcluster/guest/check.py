"""Tries, from inside one node, what "ready" means, and answers with one result for each try.

Sent to a node and run there as root by its own python3. Reads a JSON request, one line of standard input:
  {"do": "probe", "user", "targets", "payload", "logins", "shares", "token"}
      ping all targets, log in to those named, and read the shared files once the input ends: then they are there
  {"do": "probe_first", …}
      write the shared files, say {"written": true}, do the same without a wait, and remove them once the input ends
  {"do": "mpi", "user", "home", "hosts", "environment", "targets", "timeout"}
      mpiexec hostname on all targets, which "hosts" tells it, as its arguments
where each of "targets" is {"name", "address"} and each of "shares" {"node", "file", "mount"}, the mount null where the
folder is the node's own; and writes a line {"results": [{"check", "to", "passed", "detail"}]}, for a probe with
"same" as well: digests, by path, of what has to be the same on all nodes for their logins. And
  {"do": "flow", "address", "count", "payload"}
      send so many packets there and count the answers
and writes {"answered": N}.
"""

from __future__ import annotations

# Each import costs under emulation. The libraries that have no underscore load several more, hashlib all of OpenSSL.
import _blake2
import _socket
import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Request = dict[str, Any]
    Result = dict[str, Any]

SSH = ["ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]

PING_TRIES, PING_AGAIN_S, PING_S = 3, 1.0, 5.0
ICMP_HEADER_BYTES = 8
BUFFER_BYTES = 4 << 20  # packets that wait for ARP count against the socket
# asm-generic/socket.h, linux/in.h, linux/icmp.h; Python does not name them.
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
SOL_RAW, ICMP_FILTER, ALL_BUT_ECHO_REPLIES = 255, 1, 0xFFFFFFFE


def as_user(user: str, argv: list[str]) -> list[str]:
    account = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups", "--", *argv]


def result(check: str, to: str, passed: bool, detail: str = "") -> Result:
    return {"check": check, "to": to, "passed": passed, "detail": "" if passed else (detail or "it said nothing")}


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def echo(identifier: int, size: int) -> bytes:
    """An ICMP echo request, RFC 792, whose data, `size` bytes, is zeros, so that the header alone makes its sum."""
    total = 0x0800 + identifier
    checksum = ~((total >> 16) + total) & 0xFFFF
    return b"\x08\x00" + checksum.to_bytes(2, "big") + identifier.to_bytes(2, "big") + bytes(2 + size)


def ears() -> _socket.socket:
    """For packets that may not be fragmented, and for answers to some."""
    one = _socket.socket(_socket.AF_INET, _socket.SOCK_RAW, _socket.IPPROTO_ICMP)
    one.setsockopt(_socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    one.setsockopt(_socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    one.setsockopt(_socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    one.setsockopt(SOL_RAW, ICMP_FILTER, ALL_BUT_ECHO_REPLIES.to_bytes(4, sys.byteorder))
    return one


def send(one: _socket.socket, packet: bytes, addresses: Iterable[str]) -> dict[str, str]:
    """Returns why, by address, for those to which nothing can be sent."""
    refused = {}
    for address in addresses:
        try:
            one.sendto(packet, (address, 0))
        except OSError as error:
            refused[address] = error.strerror or str(error)
    return refused


def listen(one: _socket.socket, packet: bytes, awaited: set[str], seconds: float) -> None:
    """Take from the awaited who answers within this time, with all that it was sent."""
    end = time.monotonic() + seconds
    while awaited and (left := end - time.monotonic()) > 0:
        one.settimeout(left)
        try:
            data, (sender, _) = one.recvfrom(65535)
        except _socket.timeout:
            return
        message = data[(data[0] & 15) * 4 :]  # behind the IP header
        if message[:1] == b"\0" and message[4:] == packet[4:]:
            awaited.discard(sender)


def pings(request: Request) -> Iterator[Result]:
    """Full-size packets that may not be fragmented, to all at once; again to those that do not answer soon."""
    packet = echo(os.getpid() & 0xFFFF, request["payload"])
    awaited, refused = {target["address"] for target in request["targets"]}, {}
    one = ears()
    for number in range(PING_TRIES):
        refused.update(send(one, packet, awaited))
        awaited.difference_update(refused)
        is_last = number == PING_TRIES - 1
        listen(one, packet, awaited, PING_S - PING_AGAIN_S * number if is_last else PING_AGAIN_S)
    one.close()
    silent = dict.fromkeys(awaited, f"no answer within {PING_S:.0f} s")
    for target in request["targets"]:
        detail = refused.get(target["address"]) or silent.get(target["address"], "")
        yield result("ping", target["name"], not detail, detail)


def logins(request: Request) -> Iterator[Result]:
    """One after the other: under emulation, logins side by side only slow each other down."""
    for name in request["logins"]:
        done = subprocess.run(
            as_user(request["user"], [*SSH, name, "hostname"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        yield result("ssh", name, done.returncode == 0 and done.stdout.strip() == name, last_line(done.stdout))


def same(request: Request) -> dict[str, str]:
    """Digests of the names, addresses and host keys of all nodes as known here, and of the key that logs in to them."""
    names = {target["name"] for target in request["targets"]}
    key = f"{pwd.getpwnam(request['user']).pw_dir}/.ssh/id_ed25519"
    chosen: dict[str, Callable[[list[str]], bool]] = {
        "/etc/hosts": lambda words: not names.isdisjoint(words[1:]),
        "/etc/ssh/ssh_known_hosts": lambda words: not names.isdisjoint(words[0].split(",")),
        key: bool,
    }
    return {path: digest(path, is_wanted) for path, is_wanted in chosen.items()}


def digest(path: str, is_wanted: Callable[[list[str]], bool]) -> str:
    """Of those lines whose words are wanted, whatever their order."""
    try:
        with open(path) as file:
            lines = sorted(line for line in file if line.strip() and is_wanted(line.split()))
    except (OSError, ValueError) as error:
        return str(error)
    return _blake2.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


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


def read(request: Request) -> list[Result]:
    """Only now: a client of NFS that looks for a file too early believes for a while that there is none."""
    return [shared(share, request["token"]) for share in request["shares"]]


def become(uid: int, gid: int) -> None:
    """Be a user to files; of root's own first, for only root may."""
    os.seteuid(0)
    os.setegid(gid)
    os.seteuid(uid)


def each_as_user(request: Request, work: Callable[[str], None]) -> list[Result]:
    """Do something with every shared file as the user, as root is nobody to the server of a mounted folder."""
    account, failures = pwd.getpwnam(request["user"]), []
    become(account.pw_uid, account.pw_gid)
    for share in request["shares"]:
        try:
            work(share["file"])
        except OSError as error:
            failures.append(result("nfs", share["node"], False, str(error)))
    become(0, 0)
    return failures


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def probe(request: Request) -> None:
    results = [*pings(request), *logins(request)]
    sys.stdin.read()
    say({"results": [*results, *read(request)], "same": same(request)})


def probe_first(request: Request) -> None:
    results = each_as_user(request, lambda path: write(path, request["token"]))
    try:
        say({"written": True})
        results += [*pings(request), *logins(request), *read(request)]
        say({"results": results, "same": same(request)})
        sys.stdin.read()
    finally:
        each_as_user(request, os.unlink)


def mpi(request: Request) -> None:
    names = [target["name"] for target in request["targets"]]
    home = request["home"]
    argv = ["mpiexec", *request["hosts"], "-ppn", "1", "-n", str(len(names)), "hostname"]
    try:
        done = subprocess.run(
            as_user(request["user"], argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=request["timeout"],
            env=dict(os.environ, HOME=home, **request["environment"]),
            check=False,
            cwd=home,
        )
        found, detail = done.stdout.split(), last_line(done.stderr) or last_line(done.stdout)
    except subprocess.TimeoutExpired:
        found, detail = [], f"mpiexec did not end within {request['timeout']} s"
    say({"results": [result("mpi", name, found.count(name) == 1, detail) for name in names]})


def flow(request: Request) -> None:
    """As fast as they are answered, at least a hundred a second."""
    argv = ["ping", "-n", "-q", "-f", "-c", str(request["count"]), "-w", "20", "-s", str(request["payload"])]
    done = subprocess.run([*argv, request["address"]], capture_output=True, text=True, check=False)
    words = done.stdout.split(" received")[0].split()
    say({"answered": int(words[-1]) if words and words[-1].isdigit() else 0})


def say(answer: Request) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    request = json.loads(sys.stdin.readline())
    {"probe": probe, "probe_first": probe_first, "mpi": mpi, "flow": flow}[request["do"]](request)


if __name__ == "__main__":
    main()
