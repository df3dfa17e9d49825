"""Tests, from inside a node, what "ready" means, and reports one result for each test.

The controller sends it to a node, where python3 runs it as root. It reads a JSON request, one line of standard input:
  {"do": "probe", "user", "targets", "payload", "shares", "token"}
      ping all targets, and read the shared files after the end of the input
  {"do": "probe_first", …}
      write the shared files, write {"written": true}, do the same without a wait, and remove the files after the end of
      the input
  {"do": "mpi", "user", "home", "hosts", "environment", "targets", "timeout", "program", "source", "folder"}
      run the MPI program on all targets, with "hosts" as options of mpiexec; if "program" is missing, compile "source"
      in the shared "folder"; without a compiler run hostname; without a source run nothing. The answer also has
      "program": the name of the program that ran, or "". Before it comes a line {"proxies": [argv]}: commands that
      must run on the targets, in their order
  {"do": "proxy", "user", "home", "environment", "argv"}
      run one of these commands
  {"do": "logins", "user", "logins"}
      log in to the nodes in "logins"
Each of "targets" is {"name", "address"}. Each of "shares" is {"node", "file", "mount"}; the mount is null for a folder
of the node itself. The answer is a line {"results": [{"check", "to", "passed", "detail"}]}. The answer to a probe also
has "same": digests, by name, of everything that must be equal on all nodes for their logins; "identity": by name, what
no two nodes may share; and "began_s", "ended_s": the times of the node's clock at the begin and the end of its tests.
And
  {"do": "flow", "address", "count", "payload"}
      send that number of packets and count the answers; the answer is {"answered": N}
"""

from __future__ import annotations

# Each import costs time under emulation. Modules without the underscore load several others, hashlib all of OpenSSL.
import _blake2
import _socket
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Request = dict[str, Any]
    Result = dict[str, Any]

SSH_PROGRAM = "/usr/bin/ssh"
SSH = ["ssh", "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=30"]
LOGINS_AT_ONCE = 8

PING_TRIES, PING_AGAIN_S, PING_S = 3, 1.0, 5.0
BUFFER_BYTES = 4 << 20  # packets that wait for ARP count against the socket's buffer
# asm-generic/socket.h, linux/in.h, linux/icmp.h; Python does not name them.
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2
SOL_RAW, ICMP_FILTER, ALL_BUT_ECHO_REPLIES = 255, 1, 0xFFFFFFFE


def becoming(user: str) -> Callable[[], None]:
    """A function that gives a process all rights of a user, and no others. setpriv(1) takes a tenth of a second."""
    account = pwd.getpwnam(user)

    def drop_rights() -> None:
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)

    return drop_rights


def result(check: str, to: str, passed: bool, detail: str = "") -> Result:
    return {"check": check, "to": to, "passed": passed, "detail": "" if passed else (detail or "it printed nothing")}


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


# Pings


def echo(identifier: int, size: int) -> bytes:
    """An ICMP echo request, RFC 792, with `size` zero bytes of data, so that only the header counts in the checksum."""
    total = 0x0800 + identifier
    checksum = ~((total >> 16) + total) & 0xFFFF
    return b"\x08\x00" + checksum.to_bytes(2, "big") + identifier.to_bytes(2, "big") + bytes(2 + size)


def open_socket() -> _socket.socket:
    """A socket for packets that must not be fragmented, and for their answers."""
    ping = _socket.socket(_socket.AF_INET, _socket.SOCK_RAW, _socket.IPPROTO_ICMP)
    ping.setsockopt(_socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    ping.setsockopt(_socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    ping.setsockopt(_socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    ping.setsockopt(SOL_RAW, ICMP_FILTER, ALL_BUT_ECHO_REPLIES.to_bytes(4, sys.byteorder))
    return ping


def send(ping: _socket.socket, packet: bytes, addresses: Iterable[str]) -> dict[str, str]:
    """Send a packet to each address. Returns, by address, the reason why it could not be sent."""
    refused = {}
    for address in addresses:
        try:
            ping.sendto(packet, (address, 0))
        except OSError as error:
            refused[address] = error.strerror or str(error)
    return refused


def receive(ping: _socket.socket, packet: bytes, awaited: set[str], seconds: float) -> None:
    """Remove from `awaited` each address that returns the whole packet within this time."""
    end = time.monotonic() + seconds
    while awaited and (left := end - time.monotonic()) > 0:
        ping.settimeout(left)
        try:
            data, (sender, _) = ping.recvfrom(65535)
        except _socket.timeout:
            return
        message = data[(data[0] & 15) * 4 :]  # after the IP header
        if message[:1] == b"\0" and message[4:] == packet[4:]:
            awaited.discard(sender)


def pings(request: Request) -> Iterator[Result]:
    """Ping all targets at once with full-size packets that must not be fragmented. Repeat for silent targets."""
    packet = echo(os.getpid() & 0xFFFF, request["payload"])
    awaited, refused = {target["address"] for target in request["targets"]}, {}
    ping = open_socket()
    for number in range(PING_TRIES):
        refused.update(send(ping, packet, awaited))
        awaited.difference_update(refused)
        is_last = number == PING_TRIES - 1
        receive(ping, packet, awaited, PING_S - PING_AGAIN_S * number if is_last else PING_AGAIN_S)
    ping.close()
    silent = dict.fromkeys(awaited, f"no answer within {PING_S:.0f} s")
    for target in request["targets"]:
        detail = refused.get(target["address"]) or silent.get(target["address"], "")
        yield result("ping", target["name"], not detail, detail)


# Logins


def logins(request: Request) -> Iterator[Result]:
    """Log in to each of these nodes, several at a time: a node that does not answer costs a timeout."""
    names = request["logins"]
    for start in range(0, len(names), LOGINS_AT_ONCE):
        begun = [(name, start_login(request["user"], name)) for name in names[start : start + LOGINS_AT_ONCE]]
        for name, process in begun:
            output, errors = process.communicate()  # a login that passes may print warnings too
            passed = process.returncode == 0 and output.strip() == name
            yield result("ssh", name, passed, last_line((errors or output) if process.returncode else output))


def start_login(user: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SSH, name, f"echo {name}"],  # a command of the shell itself; the host key proves the name
        preexec_fn=becoming(user),  # noqa: PLW1509 - this program has one thread
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def same(request: Request) -> dict[str, str]:
    """Digests of everything on this node that its logins depend on: names, keys, and the settings of both sides."""
    names = {target["name"] for target in request["targets"]}
    folder = f"{pwd.getpwnam(request['user']).pw_dir}/.ssh"
    key, public = f"{folder}/id_ed25519", public_key(f"{folder}/id_ed25519.pub")
    found = {
        "/etc/passwd": digest(["/etc/passwd"], lambda fields: fields[0].startswith(f"{request['user']}:")),
        "/etc/nologin": digest(["/etc/nologin"]),
        "/etc/hosts": digest(["/etc/hosts"], lambda words: not names.isdisjoint(words[1:])),
        "/etc/ssh/ssh_known_hosts": digest(
            ["/etc/ssh/ssh_known_hosts"], lambda words: not names.isdisjoint(words[0].split(","))
        ),
        key: digest([key]),
        f"{folder}/authorized_keys": digest([f"{folder}/authorized_keys"], lambda words: public in words),
        SSH_PROGRAM: size(SSH_PROGRAM),
    }
    for settings in ("/etc/ssh/ssh_config", "/etc/ssh/sshd_config"):
        found[settings] = digest([settings, *files_in(f"{settings}.d")])
    if os.path.exists(f"{folder}/config"):
        found["/etc/ssh/ssh_config"] += digest([f"{folder}/config"])
    return found


def identity() -> dict[str, str]:
    """What only this node may have."""
    return {
        "host name": os.uname().nodename,
        "machine id": first_line("/etc/machine-id"),
        "host key": public_key("/etc/ssh/ssh_host_ed25519_key.pub"),
    }


def first_line(path: str) -> str:
    try:
        with open(path) as file:
            return file.readline().strip()
    except (OSError, ValueError):
        return ""


def public_key(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().split()[1]
    except (OSError, IndexError):
        return ""


def size(path: str) -> str:
    try:
        return str(os.stat(path).st_size)
    except OSError as error:
        return str(error)


def files_in(folder: str) -> list[str]:
    try:
        return sorted(f"{folder}/{name}" for name in os.listdir(folder))
    except OSError:
        return []


def digest(paths: list[str], is_relevant: Callable[[list[str]], object] = bool) -> str:
    """A digest of the relevant lines of some files, in any order. The predicate gets the fields of a line."""
    try:
        lines = []
        for path in paths:
            with open(path) as file:
                lines += [line for line in file if line.strip() and is_relevant(line.split())]
    except (OSError, ValueError) as error:
        return str(error)
    return _blake2.blake2b("".join(sorted(lines)).encode(), digest_size=16).hexdigest()


# Shared folders


def is_mounted(folder: str) -> bool:
    with open("/proc/self/mounts") as file:
        return any(line.split()[1] == folder for line in file)


def read_shared(share: Request, token: str) -> Result:
    if share["mount"] and not is_mounted(share["mount"]):
        return result("nfs", share["node"], False, f"{share['mount']} is not mounted")
    try:
        with open(share["file"]) as file:
            found = file.read()
    except OSError as error:
        return result("nfs", share["node"], False, str(error))
    return result("nfs", share["node"], found == token, f"{share['file']} has another content")


def read_all(request: Request, results: list[Result]) -> list[Result]:
    """Read the shared files, after they were written: an NFS client remembers for a while that a file is missing.

    A read of a node that answers nothing would never end, so it is not tried.
    """
    silent = {found["to"] for found in results if found["check"] == "ping" and not found["passed"]}
    return [
        result("nfs", share["node"], False, f"not tried, as {share['node']} did not answer the ping")
        if share["mount"] and share["node"] in silent
        else read_shared(share, request["token"])
        for share in request["shares"]
    ]


def become(uid: int, gid: int) -> None:
    """Access files as a user. Return to root first, because only root may change the user."""
    os.seteuid(0)
    os.setegid(gid)
    os.seteuid(uid)


def each_as_user(request: Request, work: Callable[[str], None]) -> list[Result]:
    """Call `work` with each shared file as the user, so that no link of the user leads root to another place."""
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


# Requests


def probe(request: Request) -> None:
    began_s, results = time.time(), [*pings(request)]
    sys.stdin.read()
    answer_probe(request, [*results, *read_all(request, results)], began_s)


def probe_first(request: Request) -> None:
    began_s = time.time()
    results = each_as_user(request, lambda path: write(path, request["token"]))
    try:
        answer({"written": True})
        results += pings(request)
        answer_probe(request, [*results, *read_all(request, results)], began_s)
        sys.stdin.read()
    finally:
        each_as_user(request, os.unlink)


def answer_probe(request: Request, results: list[Result], began_s: float) -> None:
    found = {"results": results, "same": same(request), "identity": identity()}
    answer({**found, "began_s": began_s, "ended_s": time.time()})


def log_in(request: Request) -> None:
    answer({"results": list(logins(request))})


def mpi(request: Request) -> None:
    program = mpi_program(request)
    if not program:
        answer({"results": [], "program": ""})
        return
    try:
        answer({"results": mpi_results(request, program), "program": os.path.basename(program)})
    finally:
        if program not in (request["program"], "hostname"):
            os.unlink(program)


def mpi_program(request: Request) -> str:
    """The program of the image; else one that is compiled now; else hostname, if this node has no compiler."""
    if os.access(request["program"], os.X_OK):
        return str(request["program"])
    if not request["source"]:
        return ""
    path = f"{request['folder']}/.mpi-check-{os.getpid()}"
    argv = ["mpicc", "-O1", "-x", "c", "-o", path, "-", "-ldl"]
    environment = dict(os.environ, **request["environment"])
    try:
        done = subprocess.run(
            argv,
            input=request["source"],
            env=environment,
            text=True,
            capture_output=True,
            check=False,
            preexec_fn=becoming(request["user"]),
        )
    except OSError:
        return "hostname"
    return path if done.returncode == 0 else "hostname"


def mpi_results(request: Request, program: str) -> list[Result]:
    """Run the program once on each target."""
    names = [target["name"] for target in request["targets"]]
    lines, detail = mpiexec(request, ["-n", str(len(names)), program])
    reports: dict[str, list[str]] = {name: [] for name in names}
    for first, _, rest in lines:
        if first in reports:
            reports[first].append(rest)
    good = [""] if program == "hostname" else ["ok"]
    return [result("mpi", name, reports[name] == good, " ".join(reports[name]) or detail) for name in names]


def mpiexec(request: Request, argv: list[str]) -> tuple[list[tuple[str, str, str]], str]:
    """Run mpiexec with one rank a node. Returns its lines, each divided after the first word, and why it failed.

    It starts nothing on the nodes: it prints the commands of its proxies, one for each node, and waits for them.
    """
    process = subprocess.Popen(
        ["mpiexec", "-launcher", "manual", *request["hosts"], "-ppn", "1", *argv],
        preexec_fn=becoming(request["user"]),  # noqa: PLW1509 - this program has one thread
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ, HOME=request["home"], **request["environment"]),
        cwd=request["home"],
    )
    reasons: list[str] = []

    def give_up(*_: object) -> None:
        reasons.append(f"mpiexec did not end within {request['timeout']} s")
        process.kill()

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(request["timeout"])
    proxies: list[list[str]] = []
    lines: list[tuple[str, str, str]] = []
    try:
        for line in process.stdout or ():
            first, space, rest = line.strip().partition(" ")
            if first == "HYDRA_LAUNCH:":
                proxies.append(rest.split())
            elif first == "HYDRA_LAUNCH_END":
                answer({"proxies": proxies})
            else:
                lines.append((first, space, rest))
    finally:  # without a reader of the answer, nothing starts the proxies that mpiexec waits for
        process.kill()
        process.wait()
    return lines, "".join(reasons or (lines[-1] if lines else ()))


def proxy(request: Request) -> None:
    """Become a process of mpiexec that runs the ranks of this node."""
    os.chdir(request["home"])
    becoming(request["user"])()
    environment = dict(os.environ, HOME=request["home"], **request["environment"])
    os.execve(request["argv"][0], request["argv"], environment)  # noqa: S606 - the request names the program


def flow(request: Request) -> None:
    """Send packets as fast as they are answered, at least a hundred in a second."""
    argv = ["ping", "-n", "-q", "-f", "-c", str(request["count"]), "-w", "20", "-s", str(request["payload"])]
    done = subprocess.run([*argv, request["address"]], capture_output=True, text=True, check=False)
    words = done.stdout.split(" received")[0].split()
    answer({"answered": int(words[-1]) if words and words[-1].isdigit() else 0})


def answer(message: Request) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    request = json.loads(sys.stdin.readline())
    work = {"probe": probe, "probe_first": probe_first, "logins": log_in, "mpi": mpi, "proxy": proxy, "flow": flow}
    work[request["do"]](request)


if __name__ == "__main__":
    main()
