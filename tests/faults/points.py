"""The points at which a command can be killed: before and after each call that changes something outside its process.

Nothing in the product names a point. `install` wraps the functions through which all of the product reaches the world:
the methods of libvirt's library, the functions of `os` that change files, `open` for writing, the start of programs,
changes by netlink, requests to an agent, and programs in nodes. So new code has its points without being changed.

`run` takes the place of vcluster's entry point. The environment variable VCLUSTER_POINTS holds an order, in JSON:
`{"record": FILE}` adds a line to FILE for each point that the command passes; with `"reads": true` also for the methods
of libvirt that only read. `{"kill": {...}, "record": FILE}` kills the process with SIGKILL at the first point that has
these fields. With `{"kill": {"nth": N}}` that is the N-th point that differs from all before it. FILE gets each point
once, and the last one is where the process was killed.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ORDER = "VCLUSTER_POINTS"
ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = [
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.faults.points import run; run()",
]
PACKAGE = str(ROOT / "vcluster") + os.sep
BEFORE, AFTER = "before", "after"

# Functions that are not points, by the reason. All other public methods of the same classes are points.
LIBVIRT_READS = {
    "they read": (
        "ID", "UUID", "UUIDString", "XMLDesc", "connect", "diskErrors", "domainListGetStats", "getCapabilities",
        "getLibVersion", "getMemoryStats", "getVersion", "isActive", "isAlive", "listAllDomains", "listAllNetworks",
        "listAllStoragePools", "listAllVolumes", "listVolumes", "lookupByName", "lookupByUUID", "metadata", "name",
        "networkLookupByName", "state", "storagePoolLookupByName",
    ),
    "they change this connection, which ends with the process": (
        "abort", "close", "domainEventDeregisterAny", "domainEventRegisterAny", "eventAddCallback",
        "eventRemoveCallback", "newStream", "openChannel", "setKeepAlive",
    ),
    "the bytes of a serial port: `SerialConnection` has the points": ("recv",),
}  # fmt: skip
PRODUCT_READS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "LocalAgent": {
        "its operations run in this process, and what they change has points": ("call", "send"),
        "they do nothing": ("close", "uninstall"),
    },
    "RemoteAgent": {"it changes this connection, which ends with the process": ("close",)},
    "NetlinkSocket": {"they read": ("dump", "request"), "it ends with its process anyway": ("close",)},
    "Session": {"they change this connection, which ends with the process": ("close", "open_tcp")},
    "SerialConnection": {
        "`request` has the point": ("close",),
        "it changes this connection, which ends with the process": ("disconnect",),
    },
}
OS_CHANGES = (
    "execv", "execve", "execvp", "execvpe", "link", "mkdir", "mkfifo", "mknod", "open", "posix_spawn", "remove",
    "rename", "replace", "rmdir", "symlink", "truncate", "unlink",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_RANDOM = re.compile(
    r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{8,}|(?<=node)[0-9]+|(?<=^vc-).{8}$|(?<=^tmp).{8}$|(?<=^.unfinished-).{8}$"
)
_MESSAGES = {"ifinfmsg": "link", "nft_table_msg": "table", "nft_chain_msg": "chain", "nft_rule_msg": "rule"}
_DELETIONS = (("ifinfmsg", 17), ("nft_table_msg", 2))  # RTM_DELLINK, NFT_MSG_DELTABLE


@dataclass(frozen=True, slots=True)
class Point:
    """Before or after a call of a `kind`. `place` is the line of vcluster that leads to it, in `function`."""

    when: str
    place: str
    function: str
    kind: str

    def fits(self, fields: Mapping[str, str]) -> bool:
        """Whether the point has these fields."""
        return all(getattr(self, name) == value for name, value in fields.items())


Notify = Callable[[str, str], None]  # called with before or after, and the kind of call
Patch = Callable[[Any, str, Any], None]  # as setattr
Describe = Callable[..., str]  # the kind of a call with these arguments; empty if it changes nothing


# The functions that are points


@dataclass(frozen=True, slots=True)
class Target:
    """A function that is a point: an attribute of a class or module."""

    owner: Any
    name: str
    describe: Describe


def targets() -> Iterator[Target]:
    """All functions that are points."""
    yield from _libvirt_targets()
    yield from _product_targets()
    for name in OS_CHANGES:
        yield Target(os, name, functools.partial(_file_kind, name))
    for module in (builtins, io):  # the same function, in two places
        yield Target(module, "open", _open_kind)
    yield Target(subprocess.Popen, "__init__", lambda _, argv, *__, **___: _program_kind(argv))


def methods(cls: type) -> list[str]:
    """The public methods that a class defines itself."""
    return [name for name, value in vars(cls).items() if inspect.isfunction(value) and not name.startswith("_")]


def libvirt_classes() -> list[type]:
    """The classes of libvirt's library."""
    import libvirt

    return [cls for name, cls in inspect.getmembers(libvirt, inspect.isclass) if name.startswith("vir")]


def _libvirt_targets() -> Iterator[Target]:
    import libvirt_qemu

    reads = {name for names in LIBVIRT_READS.values() for name in names}
    for cls in libvirt_classes():
        for name in methods(cls):
            if name not in reads:
                yield Target(cls, name, lambda *_, kind=f"{cls.__name__}.{name}", **__: kind)
    yield Target(libvirt_qemu, "qemuMonitorCommand", lambda _, request, *__: _monitor_kind(request))


def _libvirt_reads() -> Iterator[Target]:
    import libvirt

    for cls in libvirt_classes():
        for name in {name for names in LIBVIRT_READS.values() for name in names} & {*methods(cls)}:
            yield Target(cls, name, lambda *_, kind=f"read {cls.__name__}.{name}", **__: kind)
    yield Target(libvirt, "open", lambda *_: "read open")


def product_classes() -> list[type]:
    """The product's classes that reach agents, nodes, and the kernel's network."""
    from vcluster.adapters.network.netlink_socket import NetlinkSocket
    from vcluster.adapters.serial_connection import SerialConnection
    from vcluster.adapters.ssh.ssh_session import Session
    from vcluster.agent.client import LocalAgent
    from vcluster.agent.remote_agent import RemoteAgent

    return [LocalAgent, RemoteAgent, NetlinkSocket, Session, SerialConnection]


def _product_targets() -> Iterator[Target]:
    describes: dict[str, Describe] = {
        "call": lambda _, operation, **__: f"request {operation}",
        "send": lambda _, operation, *__, **___: f"request {operation}",
        "change": lambda _, messages, **__: f"netlink {kind_of_messages(messages)}",
    }
    for cls in product_classes():
        reads = {name for names in PRODUCT_READS[cls.__name__].values() for name in names}
        for name in methods(cls):
            if name not in reads:
                plain = lambda *_, kind=f"{cls.__name__}.{name}", **__: kind  # noqa: E731
                yield Target(cls, name, describes.get(name, plain))


# The kinds of calls


def _file_kind(name: str, path: Any, *arguments: Any, **_: Any) -> str:
    if name == "open" and not arguments[0] & _WRITING:
        return ""
    return _kind_of_file(name, arguments[0] if name in ("rename", "replace", "symlink", "link") else path)


def _open_kind(path: Any, mode: str = "r", *_: Any, **__: Any) -> str:
    return "" if isinstance(path, int) or not set(mode) & set("wax+") else _kind_of_file("open", path)


def _kind_of_file(name: str, path: Any) -> str:
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    return "" if text.startswith("/dev/") else f"{name} {_RANDOM.sub('#', Path(text).name)}"


def _program_kind(argv: Any) -> str:
    first = argv if isinstance(argv, (str, bytes, os.PathLike)) else argv[0]
    return f"start {Path(os.fsdecode(first)).name}"


def _monitor_kind(request: str) -> str:
    command = str(json.loads(request)["execute"])
    return "" if command.startswith("query-") else f"QEMU {command}"


def kind_of_messages(messages: Any) -> str:
    """What messages to the kernel are about; for new interfaces their kind."""
    return " ".join(filter(None, dict.fromkeys(map(_message, messages))))


def _message(message: Any) -> str:
    name, number = type(message).__name__, int(message["header"]["type"]) & 0xFF
    attributes = dict(each[:2] for each in message.get("attrs") or ())
    link = dict(each[:2] for each in attributes.get("IFLA_LINKINFO", {}).get("attrs", ()))
    deletes = "delete " if (name, number) in _DELETIONS else ""
    return deletes + str(link.get("IFLA_INFO_KIND") or _MESSAGES.get(name, ""))


# The place in the code


def place_of(frame: FrameType | None) -> tuple[str, str]:
    """The line and the function of vcluster that lead to a call: the innermost of a command or stage, if there is one.

    The line of a resource is added, because one function there can make several things. Without a command, for example
    in a thread of a connection, it is the innermost line that is not of an adapter, the agent or `util`.
    """
    found: dict[str, tuple[str, str]] = {}
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            file = code.co_filename.removeprefix(PACKAGE)
            name = code.co_qualname.replace(".<locals>", "")
            rank = "shared" if name == "Server.call" else _rank(file.partition(os.sep)[0])
            found.setdefault(rank, (f"{file}:{frame.f_lineno}", f"{file}:{name}"))
        frame = frame.f_back
    place, function = found[min(found)] if found else ("", "")
    resource = found.get("resources", (place,))[0]
    return place if resource == place else f"{place} {resource}", function


def _rank(layer: str) -> str:
    """The class of a layer; the first one in the alphabet has precedence."""
    known = {"commands": "command", "stages": "command", "resources": "resources", "adapters": "shared"}
    return known.get(layer, "shared" if layer in ("agent", "util") else "other")


# What happens at a point


def install(notify: Notify, patch: Patch = setattr, *, reads: bool = False) -> None:
    """Wrap all functions that are points, so that each call notifies before it and after it.

    With `reads`, so does each call of libvirt that only reads.
    """
    for target in (*targets(), *(_libvirt_reads() if reads else ())):
        patch(target.owner, target.name, _wrapped(getattr(target.owner, target.name), target.describe, notify))


def _wrapped(original: Callable[..., Any], describe: Describe, notify: Notify) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        kind = describe(*arguments, **named)
        if not kind:
            return original(*arguments, **named)
        notify(BEFORE, kind)
        try:
            return original(*arguments, **named)
        finally:  # a call that fails may have changed something too
            notify(AFTER, kind)

    return call


def recorder(path: str) -> Callable[[Point], None]:
    """Add a line to a file for each point. A process that is killed loses none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    return lambda point: _write(descriptor, point)


def killer(fields: Mapping[str, Any], path: str) -> Callable[[Point], None]:
    """Kill this process at the first point with these fields, or at the N-th point that differs from all before it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    passed: set[Point] = set()

    def consider(point: Point) -> None:
        if point in passed:
            return
        passed.add(point)
        _write(descriptor, point)
        if len(passed) == fields["nth"] if "nth" in fields else point.fits(fields):
            os.kill(os.getpid(), signal.SIGKILL)

    return consider


def _write(descriptor: int, point: Point) -> None:
    os.write(descriptor, json.dumps(asdict(point)).encode() + b"\n")


def run() -> None:
    """Run vcluster with the order in the environment."""
    order = json.loads(os.environ.pop(ORDER))
    act = killer(order["kill"], order["record"]) if "kill" in order else recorder(order["record"])
    lock = threading.RLock()

    def notify(when: str, kind: str) -> None:
        place, function = place_of(sys._getframe(2))
        with lock:
            act(Point(when, place, function, kind))

    from vcluster.cli import main

    install(notify, reads=order.get("reads", False))
    main.run()
