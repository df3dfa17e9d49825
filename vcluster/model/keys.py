"""The keys of a cluster, made for it alone before anything else is: Ed25519 pairs in OpenSSH's format."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key as OpenSSH PEM text and its public half as an authorized_keys line."""

    private: str
    public: str


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys of a cluster.

    `admin` opens every node to this machine and never enters a guest; `user` lets the cluster's user log in from node
    to node; `hosts` are the nodes' own, by node name.
    """

    admin: KeyPair
    user: KeyPair
    hosts: dict[str, KeyPair]


def make_keys(cluster: str, node_names: Sequence[str], *, mark: str) -> Keys:
    """New keys for a cluster. The admin's bears the cluster's mark, by which it is found again on servers."""
    return Keys(
        admin=make_pair(mark),
        user=make_pair(f"mpiuser@{cluster}"),
        hosts={name: make_pair(f"root@{name}") for name in node_names},
    )


def add_keys(keys: Keys, node_names: Iterable[str]) -> Keys:
    """The keys, with new ones for these nodes."""
    return replace(keys, hosts=keys.hosts | {name: make_pair(f"root@{name}") for name in node_names})


def drop_keys(keys: Keys, node_names: Container[str]) -> Keys:
    """The keys of these nodes, and the cluster's own."""
    return replace(keys, hosts={name: pair for name, pair in keys.hosts.items() if name in node_names})


def make_pair(comment: str) -> KeyPair:
    """A new Ed25519 pair."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return KeyPair(private, f"{public} {comment}")


def fingerprint(public: str) -> str:
    """The SHA256 fingerprint of a public key, as ssh-keygen -l prints it."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
