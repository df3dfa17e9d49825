"""A fresh Debian tree with a clone of this checkout, and a command that runs in it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import namespaces
from .mounts import bind, mount_kernel_filesystems
from .namespaces import Process, children, entering, fork_first_process, start
from .programs import SYSTEM_PATH, UPLINK_PROGRAMS, NamespaceError, last_lines, require, require_tun, run, wait_until
from .suites import age_options, base_of, prefer_backports
from .uplink import UPLINK_DNS, start_uplink

STATE = Path("/var/lib/vcluster-fresh")
CHECKOUT = Path(__file__).resolve().parent.parent.parent
FRESH = CHECKOUT / "scripts" / "fresh"
CLONE = "/root/vcluster"
READY = "/run/fresh-is-ready"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PASSED = ("PIP_", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
Provide = Callable[[Path, str, Sequence[str]], None]  # folder, suite, mirrors
ENDING = (signal.SIGTERM, signal.SIGHUP)
PROGRAMS = ("mmdebstrap", "git", "unshare", "nsenter", "setpriv", "mount", "pivot_root")


def report(text: str) -> None:
    print(f"fresh: {text}", file=sys.stderr, flush=True)


def check_requirements(mirrors: Sequence[str]) -> None:
    """Check what a run needs, before anything is made."""
    # the keys of the usual mirror; a mirror that the user names may have others
    require([*PROGRAMS, *UPLINK_PROGRAMS], files={} if mirrors else {KEYRING: "debian-archive-keyring"})
    require_tun()
    if run(["git", "-C", str(CHECKOUT), "status", "--porcelain"]):
        report("the checkout has changes that are not committed; they are not in the clone")


# --- the tree --------------------------------------------------------------------------------------------------------


def make_tree(directory: Path, suite: str, mirrors: Sequence[str]) -> None:
    """A minimal Debian of this suite with a clone of HEAD in it."""
    tree, log = directory / "tree", directory / "log"
    report(f"making a fresh Debian tree of {suite} (about half a minute)")
    options = ["--variant=minbase", "--include=ca-certificates"]
    options += [f"--keyring={KEYRING}"] if KEYRING.exists() else []
    options += age_options(run(["apt-config", "dump"])) if shutil.which("apt-config") else []
    run_enclosed(["mmdebstrap", *options, base_of(suite), str(tree), *mirrors], log)
    if suite != base_of(suite):
        prefer_backports(tree, suite)
    run(["git", "clone", "--quiet", "--no-hardlinks", str(CHECKOUT), f"{tree}{CLONE}"])
    (tree / "etc/hostname").write_text("fresh\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 fresh\n")
    (tree / "etc/resolv.conf").write_text(f"nameserver {UPLINK_DNS}\n")


def run_enclosed(argv: Sequence[str], log: Path) -> None:
    """Run a program in mount and PID namespaces. Its mounts and processes end with it, and with this process."""
    enclosure = ["setpriv", "--pdeathsig", "KILL"]
    enclosure += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with log.open("a") as out:
        process = subprocess.Popen([*enclosure, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        code = process.wait()
    except BaseException:
        for child in children(process.pid):
            Process.of(child).kill()
        process.kill()
        process.wait()
        raise
    if code != 0:
        raise NamespaceError(f"{argv[0]} failed: {last_lines(log)}")


def remove_tree(directory: Path) -> None:
    """Remove a tree, unless something is mounted in it."""
    if f"{directory}/" in Path("/proc/self/mountinfo").read_text():
        raise NamespaceError(f"something is mounted in {directory}; list it with: findmnt | grep {directory}")
    shutil.rmtree(directory)
    with contextlib.suppress(OSError):  # another run uses it
        STATE.rmdir()


def remove_leftovers() -> None:
    """Remove the trees of killed runs. Their processes ended with them."""
    for directory in STATE.glob("*"):
        if not owner_is_alive(directory):
            report(f"removing {directory} of a run that was killed")
            end_first_process(directory)
            remove_tree(directory)


def owner_is_alive(directory: Path) -> bool:
    try:
        return Process(**json.loads((directory / "owner.json").read_text())).is_alive()
    except (FileNotFoundError, ValueError):  # it has just started, or it was killed near its end
        return Path("/proc", directory.name).exists()


# --- inside ----------------------------------------------------------------------------------------------------------


def paths_to_show(extra: Sequence[Path]) -> list[Path]:
    """The paths of this machine that the tree shows: the requested ones, and those in the settings of pip and TLS."""
    named = [value for name, value in os.environ.items() if name.startswith(PASSED)]
    if shutil.which("pip"):
        named += [run(["pip", "config", "list"])]
    matches = itertools.chain.from_iterable(re.findall(r"/[^\s'\"]+", text) for text in named)
    files = [Path("/etc/pip.conf"), Path("/root/.config/pip/pip.conf"), Path("/root/.pip/pip.conf")]
    # "file:///srv/x" gives "///srv/x"; an https address gives "//host/x", which is not a path here
    found = [Path(re.sub("^/+", "/", match)) for match in matches if not re.match(r"//[^/]", match)]
    # an index in a directory `simple` links to files next to that directory
    found = [path.parent if path.name == "simple" else path for path in found]
    return list(dict.fromkeys(path for path in [*extra, *found, *files] if path.exists()))


def enter_tree(tree: Path, shown: Sequence[Path]) -> None:
    """Work of the first process: make the tree the root of this mount namespace, and hide the machine's files."""
    run(["mount", "--bind", str(tree), str(tree)])
    for path in shown:
        target = tree / path.relative_to("/")
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        bind(path, target, is_read_only=True)
    mount_kernel_filesystems(tree)
    os.chdir(tree)
    run(["pivot_root", ".", "mnt"])
    os.chdir("/")
    run(["umount", "--lazy", "/mnt"])
    socket.sethostname("fresh")
    Path(READY).touch()


def end_first_process(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        Process(**json.loads((directory / "process.json").read_text())).kill()


def run_inside(directory: Path, argv: Sequence[str], shown: Sequence[Path]) -> int:
    log = directory / "log"
    start([sys.executable, str(FRESH), "--first-process", str(directory), *map(str, shown)], log)
    first = Process(**json.loads((directory / "process.json").read_text()))
    ready = Path(f"/proc/{first.pid}/root{READY}")
    wait_until(lambda: ready.exists() or not first.is_alive(), "the tree was not entered", timeout_s=20)
    if not first.is_alive():
        raise NamespaceError(f"entering the tree failed: {last_lines(log)}")
    start_uplink(first.pid, log)
    report(f"running {' '.join(argv)}")
    environment = namespaces.clean_environment(PASSED)
    environment.pop("VIRTUAL_ENV", None)
    environment["PATH"] = SYSTEM_PATH
    return namespaces.execute([*entering(first.pid), "env", f"--chdir={CLONE}", *argv], environment)


def write_owner(directory: Path) -> None:
    """Let a tree's processes end with this process."""
    (directory / "owner.json").write_text(json.dumps(Process.of(os.getpid()).as_dict()))


def run_fresh(
    argv: Sequence[str], provide: Provide, *, suite: str, binds: Sequence[Path], mirrors: Sequence[str]
) -> int:
    """Run the command in a tree, and remove the tree, also after a failure or an interruption.

    `provide` makes the tree, in a folder that it gets.
    """
    for number in ENDING:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    check_requirements(mirrors)
    remove_leftovers()
    directory = STATE / str(os.getpid())
    directory.mkdir(parents=True, mode=0o755)
    try:
        write_owner(directory)
        provide(directory, suite, mirrors)
        code = run_inside(directory, argv, paths_to_show(binds))
        report(f"exit code {code}")
    finally:
        for number in ENDING:  # they would interrupt the removal
            signal.signal(number, signal.SIG_IGN)
        end_first_process(directory)
        remove_tree(directory)
    report("the tree and everything in it was removed")
    return code


def be_first_process(directory: Path, shown: Sequence[Path]) -> int:
    def record(process: Process) -> None:
        (directory / "process.json").write_text(json.dumps(process.as_dict()))

    owner = Process(**json.loads((directory / "owner.json").read_text()))
    fork_first_process(record, lambda: enter_tree(directory / "tree", shown), owner)
    return 0
