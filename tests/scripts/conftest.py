"""A server of the testbed with its own /dev and /usr/local, and copies of this checkout whose scripts run there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.testbed import Server, testbed

CHECKOUT = Path(__file__).resolve().parent.parent.parent
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
LINK = "/usr/local/bin/vcluster"
RECORDS = "/var/lib/vcluster/install"
HOSTILE = {
    "PYTHONWARNINGS": "error",
    "PYTHONPATH": "/nonexistent",
    "PYTHONHOME": "/nonexistent",
    "PIP_TARGET": "/nonexistent",
    "PIP_NO_DEPS": "1",
    "PIP_USER": "1",
    "VIRTUAL_ENV": "/nonexistent",
    "CDPATH": "/",
    "SHELLOPTS": "posix",
}


@dataclass(frozen=True)
class Checkout:
    """A checkout, and the server that its scripts run on."""

    server: Server
    path: Path

    def run(
        self, script: str, *arguments: str, check: bool = True, env: dict[str, str] | None = None, user: str = "root"
    ) -> subprocess.CompletedProcess[str]:
        """Run a script as a user who starts it with sudo, or as root."""
        argv = [str(self.path / "scripts" / script), *arguments]
        return self.run_argv(argv if user == "root" else by_sudo(user, argv), check=check, env=env)

    def run_argv(
        self, argv: list[str], *, check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        cache = {"PIP_CACHE_DIR": str(self.path.parent / "pip")}  # the second pip downloads nothing
        environment = {"PATH": PATH, **package_sources(), **cache, **(env or {})}
        return self.server.run(argv, env=environment, timeout_s=400, check=check)

    def call(self, line: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell line with the functions of lib.sh."""
        return self.run_argv(["bash", "-c", '. "$0"; eval "$1"', str(self.path / "scripts/lib.sh"), line], check=check)

    def sh(self, line: str, *, user: str = "root", check: bool = True) -> str:
        """Type a line at a shell of the server."""
        argv = ["env", f"PATH={PATH}", "sh", "-c", line]
        if user != "root":
            argv = ["runuser", "-u", user, "--", *argv]
        return self.server.run(argv, timeout_s=300, check=check).stdout

    def kvm(self) -> str:
        """The owner, group and mode of /dev/kvm on the server."""
        return self.sh("stat -c '%U:%G %a' /dev/kvm").strip()

    def close_kvm(self) -> None:
        """Give /dev/kvm the owner and mode that the kernel gives it."""
        self.sh("test -e /dev/kvm || mknod /dev/kvm c 10 232; chown root:root /dev/kvm; chmod 600 /dev/kvm")


def by_sudo(user: str, argv: list[str]) -> list[str]:
    return ["runuser", "-u", user, "--", "sudo", "-n", *argv]


def package_sources() -> dict[str, str]:
    """The settings of this process that pip needs to find packages."""
    begins = ("PIP_", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    return {name: value for name, value in os.environ.items() if name.startswith(begins)}


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    """A server with a route to the outside, for pip."""
    if os.geteuid() != 0:
        pytest.skip("making namespaces needs root")
    with testbed("scripts", has_uplink=True) as (server,):
        for folder in ("bin", "share"):
            line = f"mkdir /run/{folder} && mount --bind /run/{folder} /usr/local/{folder}"
            server.run(["sh", "-c", line], timeout_s=120)
        settings = Path("/root/.config/pip/pip.conf")  # a server has its own /root/.config
        if settings.exists():
            server.path(str(settings.parent)).mkdir(parents=True)
            server.path(str(settings)).write_text(settings.read_text())
        yield server


@pytest.fixture(scope="package")
def folder() -> Iterator[Path]:
    """A folder that all users can read; those of pytest are for one user."""
    folder = Path(tempfile.mkdtemp(prefix="vcluster-scripts-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def copy_of_checkout(server: Server, path: Path) -> Checkout:
    shutil.copytree(CHECKOUT, path, ignore=NOT_COPIED)
    return Checkout(server, path)


@pytest.fixture(scope="package")
def plain(server: Server, folder: Path) -> Checkout:
    """A checkout in which nothing was installed."""
    return copy_of_checkout(server, folder / "plain")


@dataclass(frozen=True)
class Installed:
    """A checkout after two runs of scripts/install. The first one was interrupted."""

    checkout: Checkout
    unfinished: str  # what the first run left in pyvenv.cfg
    printed: str  # what the second run printed


@pytest.fixture(scope="package")
def installed(server: Server, folder: Path) -> Installed:
    """Run the real installation: in a path with spaces, after an interruption, in a hostile environment, with sh."""
    checkout = copy_of_checkout(server, folder / "a path with spaces")
    checkout.close_kvm()
    settings = checkout.path / ".venv/pyvenv.cfg"
    interrupt_when_exists(checkout, settings)
    unfinished = settings.read_text()
    done = checkout.run_argv(["sh", str(checkout.path / "scripts/install")], env=HOSTILE)
    return Installed(checkout, unfinished, done.stderr)


def interrupt_when_exists(checkout: Checkout, path: Path) -> None:
    """Start scripts/install, and press Ctrl-C as soon as a file has text."""
    process = checkout.server.popen([str(checkout.path / "scripts/install")], env={"PATH": PATH})
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} was not made"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode != 0
