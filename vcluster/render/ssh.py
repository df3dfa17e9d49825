"""The user's own view of the nodes: an ssh_config and a known_hosts file. Pure."""

from __future__ import annotations

from pathlib import Path

from vcluster.keys import Keys
from vcluster.model import Plan


def ssh_config(plan: Plan, *, identity: Path, known_hosts: Path) -> str:
    """An OpenSSH client configuration with a block for each node; plain `ssh -F FILE node2` works."""
    common = [
        f"User {plan.user}",
        f"IdentityFile {quoted(identity)}",
        "IdentitiesOnly yes",
        f"UserKnownHostsFile {quoted(known_hosts)}",
        "GlobalKnownHostsFile none",
        "StrictHostKeyChecking yes",
        "PasswordAuthentication no",
        "KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org",
        "Ciphers aes128-ctr,aes128-gcm@openssh.com",
        "LogLevel ERROR",
    ]
    blocks = [
        "\n    ".join(
            (f"Host {node.name}", f"HostName {node.management_address}", f"HostKeyAlias {node.name}", *common)
        )
        for node in plan.nodes
    ]
    return "\n\n".join(blocks) + "\n"


def known_hosts(plan: Plan, keys: Keys) -> str:
    """The pinned host key of every node, by its name (ssh_config's HostKeyAlias) and management address."""
    return "".join(
        f"{node.name},{node.management_address} {' '.join(keys.hosts[node.name].public.split()[:2])}\n"
        for node in plan.nodes
    )


def quoted(path: Path) -> str:
    """A path as ssh_config(5) takes it: quoted when it has a space, percent signs doubled."""
    text = str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text
