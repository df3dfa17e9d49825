"""Servers that let each other in, and the commands to try on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from .files import HOMES, write
from .programs import run
from .servers import Server, typed

CONFIG = "/etc/vcluster/config.ini"


def befriend(friends: Sequence[Server]) -> None:
    """Let root of each log in to the others by key, as root and as operator."""
    for server in friends:
        key = server.own("/root/.ssh/id_ed25519")
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{server.name}", "-f", str(key)])
    for host, client in itertools.permutations(friends, 2):
        public_key = client.own("/root/.ssh/id_ed25519.pub").read_text()
        for home in ("/root", f"{HOMES}/operator"):
            append_once(host.own(f"{home}/.ssh/authorized_keys"), public_key)
        host_key = host.own("/etc/ssh/ssh_host_ed25519_key.pub").read_text()
        append_once(client.own("/root/.ssh/known_hosts"), f"{host.name},{host.address} {host_key}")


def append_once(path: Path, line: str) -> None:
    if not path.exists() or line not in path.read_text():
        with path.open("a") as file:
            file.write(line)


def config(names: Sequence[str]) -> str:
    """The configuration of a shared cluster: nodes on the first and third server, the switch on the second."""
    first, second, third = names[:3]
    return f"""\
# Three nodes on two servers; their traffic crosses a switch on a third.
[switch]
host = {second}
user = root
key = /root/.ssh/id_ed25519

[server {first}]
host = localhost
nodes = 2

[server {third}]
host = {third}
user = student
password = env:{password_variable(third)}
nodes = 1
"""


def password_variable(name: str) -> str:
    return f"{name.upper().replace('-', '_')}_PASSWORD"


def write_config(asked: Sequence[Server]) -> None:
    if len(asked) > 2:
        path = asked[0].own(CONFIG)
        path.parent.mkdir(exist_ok=True)
        write(path, config([server.name for server in asked]))


def commands(names: Sequence[str], password: str = "PASSWORD") -> list[str]:
    """Commands to try on two or three servers. `password` is the one of student on the third."""
    if len(names) < 2:
        return []
    tried = [f"remote create --switch {names[1]} -n 2", "path node1 node2", "clear lab"]
    lines = [f"vcluster {arguments}" for arguments in tried]
    if len(names) > 2:
        variable = f"{password_variable(names[2])}={password}"
        tried = [f"shared create {CONFIG}", "path node1 node3", "clear lab"]
        lines += [f"cat {CONFIG}", *(f"env {variable} vcluster {arguments}" for arguments in tried)]
    return [*(typed(f"exec {names[0]} -- {line}") for line in lines), typed(f"down {' '.join(names)}")]
