"""Check a server's identity: compare the host key that it presents with the known one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shlex
from dataclasses import dataclass

from vcluster.adapters.ssh import openssh_config
from vcluster.adapters.ssh.openssh_config import KnownKey, Target
from vcluster.errors import ConflictError, MissingError, RequestError
from vcluster.model.keys import fingerprint as fingerprint_of

# The host key types to negotiate, best first.
KEY_TYPES = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "rsa-sha2-256"),
)
_DISPLAY_NAMES = {"ssh-ed25519": "ED25519", "ssh-rsa": "RSA"}


@dataclass(frozen=True, slots=True)
class HostKeyPolicy:
    """The host keys to accept from a server: the known ones, or the one with this fingerprint."""

    server: str  # its name in messages
    target: Target
    known: tuple[KnownKey, ...] = ()
    revoked: tuple[KnownKey, ...] = ()
    fingerprint: str = ""

    def type_groups(self) -> tuple[tuple[str, ...], ...]:
        """The key types to negotiate, one group for each connection: a fingerprint does not contain its key type."""
        if self.fingerprint:
            return KEY_TYPES
        types = [name for group in KEY_TYPES for name in group]
        preferred = {negotiated for key in self.known for negotiated in _negotiated(key.public.split()[0])}
        return (tuple(sorted(types, key=lambda name: name not in preferred)),)

    def accepts(self, presented: str) -> bool:
        """Whether a public key is the server's. False when no key is known, or when the fingerprint differs.

        Raises ConflictError when only other keys are known, or when this key is revoked.
        """
        for key in self.revoked:
            if key.public == presented:
                raise ConflictError(f"{self.server} presents a revoked host key ({key.place}): {described(presented)}")
        if self.fingerprint:
            return hmac.compare_digest(fingerprint_of(presented), self.fingerprint)
        if self.known and not any(key.public == presented for key in self.known):
            raise self._changed(presented, ", ".join(f"{described(key.public)} ({key.place})" for key in self.known))
        return bool(self.known)

    def changed_from_fingerprint(self, presented: list[str]) -> ConflictError:
        """The error for a server without a key that has the configured fingerprint."""
        return self._changed(", ".join(map(described, presented)) or "none", f"{self.fingerprint} (as configured)")

    def _changed(self, presented: str, known_keys: str) -> ConflictError:
        key = presented if "SHA256:" in presented or presented == "none" else described(presented)
        return ConflictError(
            f"{self.server} presents a host key that differs from the known one: {key}; known: {known_keys}",
            hint="the connection may be intercepted; if the server was reinstalled, "
            + ("correct the fingerprint" if self.fingerprint else f"ssh-keygen -R {self.target.key_name!r}"),
        )


def policy_for(server: str, target: Target, *, fingerprint: str = "", pinned: str = "") -> HostKeyPolicy:
    """The policy for a server: only a pinned public key, else only a fingerprint, else the keys in known_hosts."""
    if fingerprint and not fingerprint.startswith("SHA256:"):
        raise RequestError(
            f"{server}: {fingerprint!r} is not a fingerprint", hint="SHA256:… as ssh-keygen -l prints it"
        )
    found = openssh_config.known_keys(target)
    revoked = tuple(key for key in found if key.mark == "REVOKED")
    if pinned:
        known: tuple[KnownKey, ...] = (KnownKey(" ".join(pinned.split()[:2]), "since the cluster was created"),)
        fingerprint = ""
    else:
        known = tuple(key for key in found if not key.mark)
    return HostKeyPolicy(server, target, known, revoked, fingerprint.rstrip("="))


def unknown(server: str, target: Target, presented: str) -> MissingError:
    """The error for a server whose host key is not known.

    vcluster does not read signed host keys. ssh accepts them without a line in known_hosts, so a login does not help.
    """
    if any(key.mark == "CA" for key in openssh_config.known_keys(target)):
        line = f"{target.key_name} {presented}"
        return MissingError(
            f"{server}: its host key is known by its certificate only, which vcluster does not read: "
            f"{described(presented)}",
            hint=f"check the key, then: echo {shlex.quote(line)} >>{shlex.quote(str(target.known_hosts[0]))}",
        )
    port = [] if target.port == openssh_config.PORT else ["-p", str(target.port)]
    return MissingError(
        f"{server}: its host key is not known: {described(presented)}",
        hint=f"check the key, then log in once with: {shlex.join(['ssh', *port, f'{target.user}@{target.asked}'])}"
        f", or configure: fingerprint = {fingerprint_of(presented)}",
    )


def remember(target: Target, presented: str) -> None:
    """Add a key that the user accepted to the user's known_hosts file."""
    name = _hashed(target.key_name) if target.hashes_names else target.key_name
    openssh_config.remember(target, f"{name} {presented}")


def described(public: str) -> str:
    """A public key as text for people: its type and its fingerprint."""
    kind = public.split(maxsplit=1)[0]
    return f"{_DISPLAY_NAMES.get(kind, kind.split('-')[0].upper())} {fingerprint_of(public)}"


def _negotiated(kind: str) -> tuple[str, ...]:
    return ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)


def _hashed(name: str) -> str:
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
