"""scripts/fresh checks what it needs before it makes a tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.conftest import Checkout

pytestmark = pytest.mark.netns

TREES = Path("/var/lib/vcluster-fresh")


def fresh_after(checkout: Checkout, change: str, *arguments: str) -> str:
    """Run scripts/fresh in a mount namespace that a shell line has changed. Returns its message."""
    line = f'{change}; exec "$@"'
    argv = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        line,
        "sh",
        str(checkout.path / "scripts/fresh"),
        *arguments,
        "--",
        "true",
    ]
    done = checkout.run_argv(argv, check=False)
    assert done.returncode == 3, done.stderr
    assert not TREES.exists()
    return done.stderr


def hide(*paths: str) -> str:
    return "; ".join(f"mount --bind /dev/null {path}" for path in paths)


def test_all_missing_programs_are_named_at_once(plain: Checkout) -> None:
    message = fresh_after(plain, hide("/usr/bin/git", "/usr/bin/nsenter", "/usr/bin/setpriv"))
    named, _, command = message.strip().removeprefix("fresh: not installed: ").partition("; fix: apt-get install ")
    assert {"git", "nsenter", "setpriv"} <= set(named.split(", "))
    assert {"git", "util-linux"} <= set(command.split())


def test_the_keys_of_the_mirror_are_needed(plain: Checkout) -> None:
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    message = fresh_after(plain, "mount -t tmpfs tmpfs /usr/share/keyrings")
    assert keyring in message
    assert "debian-archive-keyring" in message.rpartition("apt-get install ")[2].split()


def test_the_device_of_slirp4netns_is_needed(plain: Checkout) -> None:
    programs = "/usr/bin/mmdebstrap /usr/bin/slirp4netns /usr/bin/git"
    stubs = f"for path in {programs}; do [ -e $path ] || exit 9; done"  # the packages for tests bring them
    message = fresh_after(plain, f"{stubs}; mount -t tmpfs tmpfs /dev/net")
    assert message == "fresh: /dev/net/tun does not exist, and slirp4netns needs it; fix: modprobe tun\n"
