"""The ssh_config and known_hosts files for the user of a cluster. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan

_PLAIN = re.compile(r"[\w./%@:,+=-]+")
_ALIVE_S = 60  # the server accepts packets of a node only while it knows the connection, so none is idle for long


@dataclass(frozen=True, slots=True)
class Jump:
    """The login to a server that carries nodes. With `is_strict` ssh uses only these identities.

    `options` are lines of ssh_config(5), for example ProxyJump.
    """

    hostname: str
    user: str
    port: int
    identities: tuple[Path, ...] = ()
    is_strict: bool = False
    options: tuple[str, ...] = ()


def jump_name(server: str) -> str:
    """A server's name in the ssh_config. It has a dot, which no node's name has."""
    return f"{server}.server"


def ssh_config(plan: Plan, *, identity: Path, known_hosts: Path, jumps: Mapping[str, Jump]) -> str:
    """An OpenSSH client configuration with a block for each node, for `ssh -F FILE node2`.

    ssh reaches a node on another server through that server: `jumps` are the logins, by server. It reaches a node
    without `mgmt0` through the head.
    """
    common = [
        f"UserKnownHostsFile {quoted(known_hosts)}",
        "GlobalKnownHostsFile none",
        "StrictHostKeyChecking yes",
        "LogLevel ERROR",
        f"ServerAliveInterval {_ALIVE_S}",
    ]
    blocks = [_node(plan, node, identity, common, is_remote=node.server in jumps) for node in plan.nodes]
    blocks += [_server(name, jump, common) for name, jump in jumps.items()]
    return "\n\n".join("\n    ".join(block) for block in blocks) + "\n"


def _node(plan: Plan, node: Node, identity: Path, common: Sequence[str], *, is_remote: bool) -> list[str]:
    jump = plan.head.name if not node.management else jump_name(node.server) if is_remote else ""
    return [
        f"Host {node.name}",
        f"HostName {node.login_address}",
        f"HostKeyAlias {node.name}",
        f"User {plan.user}",
        f"IdentityFile {quoted(identity)}",
        "IdentitiesOnly yes",
        "PasswordAuthentication no",
        "KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org",
        "Ciphers aes128-ctr,aes128-gcm@openssh.com",
        *([f"ProxyJump {jump}"] if jump else []),
        *common,
    ]


def _server(name: str, jump: Jump, common: Sequence[str]) -> list[str]:
    return [
        f"Host {jump_name(name)}",
        f"HostName {jump.hostname}",
        f"HostKeyAlias {jump_name(name)}",
        f"User {jump.user}",
        f"Port {jump.port}",
        *(f"IdentityFile {quoted(path)}" for path in jump.identities),
        *(["IdentitiesOnly yes"] if jump.is_strict else []),
        *jump.options,
        *common,
    ]


def known_hosts(plan: Plan, keys: Keys) -> str:
    """The pinned host key of every node and server, by its name in the ssh_config (HostKeyAlias) and by address."""
    nodes = "".join(
        f"{node.name},{node.login_address} {' '.join(keys.hosts[node.name].public.split()[:2])}\n"
        for node in plan.nodes
    )
    servers = "".join(
        f"{jump_name(server.name)} {' '.join(server.host_key.split()[:2])}\n"
        for server in plan.servers
        if server.host_key
    )
    return nodes + servers


def has_keys(known: str, plan: Plan, keys: Keys | None) -> bool:
    """Whether the text of a known_hosts file has the host key of every node. Without `keys`, any key counts."""
    lines = [line.split() for line in known.splitlines() if line]
    found = {host: fields[1:3] for fields in lines for host in fields[0].split(",")}
    if keys is None:
        return all(found.get(node.name) for node in plan.nodes)
    return all(found.get(node.name) == keys.hosts[node.name].public.split()[:2] for node in plan.nodes)


def has_blocks(config: str, plan: Plan) -> bool:
    """Whether the text of an ssh_config has a whole block for every node, and for every server in front of nodes."""
    blocks = [text.split() for text in config.split("\n\n")]
    whole = {words[1] for words in blocks if {"HostName", "UserKnownHostsFile"} <= {*words}}
    servers = {jump_name(server.name) for server in plan.servers if server.login and plan.nodes_on(server.name)}
    return config.endswith("\n") and {*servers, *(node.name for node in plan.nodes)} <= whole


def quoted(path: Path) -> str:
    """A path in the syntax of ssh_config(5): quoted unless it is plain, with doubled percent signs."""
    text = str(path).replace("%", "%%")
    return text if _PLAIN.fullmatch(text) else '"{}"'.format(text.replace("\\", r"\\").replace('"', r"\""))
