"""The keys of a cluster: Ed25519 pairs in OpenSSH's format, made before anything else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key as OpenSSH PEM text, and the public key as an authorized_keys line."""

    private: str
    public: str


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys of a cluster.

    `admin` lets this machine log in to every node; its private key never enters a guest. `user` lets the cluster's user
    log in from node to node. `hosts` are the host keys, by node name.
    """

    admin: KeyPair
    user: KeyPair
    hosts: dict[str, KeyPair]


def make_keys(cluster: str, node_names: Sequence[str], *, label: str) -> Keys:
    """New keys for a cluster. The comment of the admin key is the owner label: teardown finds it by that."""
    return Keys(
        admin=make_pair(label),
        user=make_pair(f"mpiuser@{cluster}"),
        hosts={name: make_pair(f"root@{name}") for name in node_names},
    )


def add_keys(keys: Keys, node_names: Iterable[str]) -> Keys:
    """The keys, with new host keys for these nodes."""
    return replace(keys, hosts=keys.hosts | {name: make_pair(f"root@{name}") for name in node_names})


def drop_keys(keys: Keys, node_names: Container[str]) -> Keys:
    """The keys, with the host keys of these nodes only."""
    return replace(keys, hosts={name: pair for name, pair in keys.hosts.items() if name in node_names})


def make_pair(comment: str) -> KeyPair:
    """A new Ed25519 key pair."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return KeyPair(private, f"{public} {comment}")


def fingerprint(public: str) -> str:
    """The SHA256 fingerprint of a public key, in the format of ssh-keygen -l."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
