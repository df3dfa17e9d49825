"""Whether a server is the one it says it is: what is known of its host key, held against the one it shows."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass

from vcluster.adapters.ssh import openssh_config
from vcluster.adapters.ssh.openssh_config import KnownKey, Target
from vcluster.errors import ConflictError, MissingError, RequestError
from vcluster.model.keys import fingerprint as fingerprint_of

# The types that a server may have keys of, best first, as they are negotiated.
KEY_TYPES = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "rsa-sha2-256"),
)
_SPOKEN = {"ssh-ed25519": "ED25519", "ssh-rsa": "RSA"}


@dataclass(frozen=True, slots=True)
class Trust:
    """What is known of a server's host key. One of the known ones it must show, or one of that fingerprint."""

    who: str  # the server, as messages name it
    target: Target
    known: tuple[KnownKey, ...] = ()
    revoked: tuple[KnownKey, ...] = ()
    fingerprint: str = ""

    def offers(self) -> tuple[tuple[str, ...], ...]:
        """The key types to negotiate, connection by connection: a fingerprint does not say which type it is of."""
        if self.fingerprint:
            return KEY_TYPES
        types = [name for group in KEY_TYPES for name in group]
        wanted = {negotiated for key in self.known for negotiated in _negotiated(key.public.split()[0])}
        return (tuple(sorted(types, key=lambda name: name not in wanted)),)

    def fits(self, shown: str) -> bool:
        """Whether a public key is the server's; False when nothing is known of it or, by fingerprint, another is meant.

        Raises ConflictError when another key is known, or when this one is revoked.
        """
        for key in self.revoked:
            if key.public == shown:
                raise ConflictError(f"{self.who} shows a host key that is revoked ({key.where}): {described(shown)}")
        if self.fingerprint:
            return hmac.compare_digest(fingerprint_of(shown), self.fingerprint)
        if self.known and not any(key.public == shown for key in self.known):
            raise self._changed(shown, ", ".join(f"{described(key.public)} ({key.where})" for key in self.known))
        return bool(self.known)

    def changed_from_fingerprint(self, shown: list[str]) -> ConflictError:
        """The error for a server none of whose keys has the fingerprint that was given for it."""
        return self._changed(", ".join(map(described, shown)) or "none", f"{self.fingerprint} (as configured)")

    def _changed(self, shown: str, known: str) -> ConflictError:
        told = shown if "SHA256:" in shown or shown == "none" else described(shown)
        return ConflictError(
            f"{self.who} shows another host key than is known: {told}; known is {known}",
            hint="somebody may be in between; if the server was installed anew, "
            + ("correct the fingerprint" if self.fingerprint else f"ssh-keygen -R {self.target.key_name!r}"),
        )


def trust(who: str, target: Target, *, fingerprint: str = "", pinned: str = "") -> Trust:
    """What is known of a server: a pinned public key alone, else a fingerprint alone, else what known_hosts has."""
    if fingerprint and not fingerprint.startswith("SHA256:"):
        raise RequestError(f"{who}: {fingerprint!r} is not a fingerprint", hint="SHA256:… as ssh-keygen -l prints it")
    filed = openssh_config.known_keys(target)
    revoked = tuple(key for key in filed if key.mark == "REVOKED")
    if pinned:
        known: tuple[KnownKey, ...] = (KnownKey(" ".join(pinned.split()[:2]), "as at the cluster's making"),)
        fingerprint = ""
    else:
        known = tuple(key for key in filed if not key.mark)
    return Trust(who, target, known, revoked, fingerprint.rstrip("="))


def unknown(who: str, target: Target, shown: str) -> MissingError:
    """The error for a server whose host key nobody has vouched for."""
    port = [] if target.port == 22 else ["-p", str(target.port)]
    return MissingError(
        f"{who}: its host key is not known: {described(shown)}",
        hint=f"compare it, then log in once with: {' '.join(['ssh', *port, f'{target.user}@{target.asked}'])}"
        f" or configure: fingerprint = {fingerprint_of(shown)}",
    )


def remember(target: Target, shown: str) -> None:
    """Keep a key that the user has accepted where ssh keeps it."""
    name = _hashed(target.key_name) if target.hashes_names else target.key_name
    openssh_config.remember(target, f"{name} {shown}")


def described(public: str) -> str:
    """A public key as people compare it: its type and its fingerprint."""
    kind = public.split(maxsplit=1)[0]
    return f"{_SPOKEN.get(kind, kind.split('-')[0].upper())} {fingerprint_of(public)}"


def _negotiated(kind: str) -> tuple[str, ...]:
    return ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)


def _hashed(name: str) -> str:
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
