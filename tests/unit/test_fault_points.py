"""The points at which commands are killed: no function that changes something can be forgotten."""

from __future__ import annotations

import ast
import builtins
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import plan, strace
from tests.faults.commands import COMMANDS
from tests.faults.points import (
    LIBVIRT_READS,
    OS_CHANGES,
    PRODUCT_READS,
    Point,
    install,
    kind_of_messages,
    libvirt_classes,
    methods,
    product_classes,
    targets,
)
from tests.unit.test_layers import ADAPTERS, PACKAGE
from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.adapters.network.netlink_messages import creation_messages

# Functions of `os` that the code uses and that are not points, by the reason.
OS_READS = {
    "they read": (
        "access", "cpu_count", "fsencode", "fstat", "getegid", "geteuid", "getpid", "getuid", "lseek", "pread", "read",
        "readlink", "scandir", "sched_param", "strerror", "urandom",
    ),
    "they change this process only": (
        "_exit", "close", "dup", "dup2", "eventfd", "eventfd_write", "pidfd_open", "set_blocking", "set_inheritable",
        "umask",
    ),
    "the file is open already: `open` has the point": (
        "fchmod", "fchown", "fdopen", "fsync", "ftruncate", "sync", "write",
    ),
    "the owner of a file that the call before has made": ("chown",),
    "the priority of a process": ("sched_setscheduler", "setpriority"),
}  # fmt: skip
# Libraries that reach outside Python, each with its adapter in test_layers.py, and where their points are.
LIBRARIES = {
    "libvirt": "methods of its classes",
    "paramiko": "`Session`",
    "pyroute2": "`NetlinkSocket` sends its messages",
    "pycdlib": "none: it writes to memory",
    "tqdm": "none: it prints",
    "cryptography": "none: it computes",
    "cattrs": "none: it computes",
}


def names_in(source: str) -> set[tuple[str, str]]:
    """The attributes in a program, each with the name that it belongs to, if that is a name."""
    attributes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return {(node.value.id if isinstance(node.value, ast.Name) else "", node.attr) for node in attributes}


def used(folder: Path) -> set[tuple[str, str]]:
    """The attributes in all modules of a folder, except for programs that run in nodes."""
    modules = (path for path in folder.rglob("*.py") if "guest" not in path.relative_to(PACKAGE).parts)
    return {each for path in modules for each in names_in(path.read_text())}


def test_each_method_of_libvirt_is_a_point_or_reads() -> None:
    reads = [name for names in LIBVIRT_READS.values() for name in names]
    called = {name for _, name in used(PACKAGE / "adapters" / "libvirt")}
    known = {name for cls in libvirt_classes() for name in methods(cls)}
    points = {target.name for target in targets() if target.owner in libvirt_classes()}
    assert len(reads) == len(set(reads))
    assert set(reads) <= called & known, "the list of methods that read is as short as it can be"
    assert points == known - set(reads)


@pytest.mark.parametrize("cls", product_classes(), ids=lambda cls: cls.__name__)
def test_each_method_of_our_connections_is_a_point_or_has_a_reason(cls: type) -> None:
    reads = {name for names in PRODUCT_READS[cls.__name__].values() for name in names}
    points = {target.name for target in targets() if target.owner is cls}
    assert reads <= set(methods(cls))
    assert points == set(methods(cls)) - reads


def test_each_agent_is_among_our_connections() -> None:
    classes = {
        (node.name, base.id)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }
    agents = {name for name, base in classes if base == "Agent"}
    assert agents
    assert agents <= {cls.__name__ for cls in product_classes()}


def test_each_function_of_os_is_a_point_or_has_a_reason() -> None:
    found = {name for module, name in used(PACKAGE) if module == "os" and callable(getattr(os, name, None))}
    reads = {name for names in OS_READS.values() for name in names}
    assert not reads & set(OS_CHANGES)
    assert found - set(OS_CHANGES) - {"environ"} == reads


def test_each_library_has_points_or_a_reason() -> None:
    assert LIBRARIES.keys() == ADAPTERS.keys()


# Wrapped functions


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The points that the test passes."""
    found: list[tuple[str, str]] = []
    with monkeypatch.context() as patch:
        install(lambda when, kind: found.append((when, kind)), patch.setattr)
        yield found


@pytest.mark.parametrize(
    ("work", "kinds"),
    [
        (lambda path: path.write_text("x"), ["open file"]),
        (lambda path: path.touch(), ["open file"]),
        (lambda path: path.mkdir(), ["mkdir file"]),
        (lambda path: path.symlink_to("file"), ["symlink file"]),
        (lambda path: (path.parent / "old").rename(path), ["rename file"]),
        (lambda path: (path.parent / "old").replace(path), ["replace file"]),
        (lambda path: (path.parent / "old").unlink(), ["unlink old"]),
        (lambda path: (path.parent / "folder").rmdir(), ["rmdir folder"]),
        (lambda path: (path.parent / "old").read_text(), []),
        (lambda path: path.exists(), []),
        (lambda path: builtins.open(path, "ab").close(), ["open file"]),  # noqa: PTH123
        (lambda path: io.open(path, "r+" if path.exists() else "x").close(), ["open file"]),  # noqa: UP020
        (lambda path: shutil.copyfile(path.parent / "old", path), ["open file"]),
        (lambda path: shutil.rmtree(path.parent / "folder"), ["rmdir folder"]),
        (lambda path: tempfile.mkdtemp(prefix="vc-", dir=path.parent), ["mkdir vc-#"]),
        (lambda _: os.close(os.open(os.devnull, os.O_RDWR)), []),
    ],
)
def test_points_of_files(
    tmp_path: Path, passed: list[tuple[str, str]], work: Callable[[Path], object], kinds: list[str]
) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "folder").mkdir()
    passed.clear()
    work(tmp_path / "file")
    assert passed == [(when, kind) for kind in kinds for when in ("before", "after")]


def test_messages_to_the_kernel_are_named_by_what_they_make() -> None:
    bridge = InterfaceSpec("vc-lab", "bridge", 1450, "alias")
    assert kind_of_messages(creation_messages(bridge, exists=False)).split()[0] == "bridge"


# System calls


def test_system_calls_outside_of_all_points_are_found() -> None:
    def line(process: int, call: str, text: str) -> str:
        return f'{process} {call}("' + "".join(rf"\x{byte:02x}" for byte in text.encode()) + '", 0) = 0'

    before, after = (f'{{"when": "{when}", "place": "a:1"}}' for when in ("before", "after"))
    lines = [
        line(1, "execve", "python"),
        line(1, "write", before),
        line(1, "unlink", "between"),
        line(2, "unlink", "other thread"),
        line(3, "execve", "virsh"),
        line(3, "unlink", "of virsh"),
        line(1, "write", after),
        line(1, "unlink", "late"),
        line(4, "execve", "forgotten"),
        "1 sendto(5, [{nlmsg_len=20, nlmsg_type=RTM_NEWLINK, nlmsg_flags=NLM_F_REQUEST}], 20) = 20",
        "1 sendto(5, [{nlmsg_len=20, nlmsg_type=RTM_GETLINK, nlmsg_flags=NLM_F_REQUEST}], 20) = 20",
    ]
    trace = strace.Trace()
    assert [found.partition(",")[0] for found in trace.outside(lines)] == [
        "unlink('\"other thread\"", "unlink('\"late\"", "execve('\"forgotten\"", "sendto('5",
    ]  # fmt: skip
    assert trace.checked == {"execve": 3, "unlink": 3, "netlink": 1}


# Trials


def point(when: str, place: str, kind: str = "x") -> Point:
    return Point(when, place, "", kind)


def test_one_kill_for_each_place_and_kind() -> None:
    passed = [point(when, place) for place in ("a:1", "a:2", "a:1", "a:3") for when in ("before", "after")]
    assert plan.distinct(passed) == [point("before", "a:1"), point("after", "a:2"), point("before", "a:3")]
    programs = [point("before", "a:1", "x"), point("before", "a:1", "execvp")]
    assert plan.distinct(programs) == programs  # no point is after a program that replaces this one


def test_variants_of_create_do_not_repeat_a_place() -> None:
    first, second = point("before", "a:1"), point("after", "a:2")
    found = {"create-clone": [first], "create-boot": [first, second], "add": [first]}
    assert [(trial.command, trial.point) for trial in plan.trials(found)] == [
        ("create-clone", first),
        ("create-boot", second),
        ("add", first),
    ]


def test_a_third_of_the_trials_loses_the_ledger() -> None:
    trials = [plan.Trial("create", point("after", f"a:{line}")) for line in range(300)]
    assert 80 <= sum(trial.is_ledger_lost for trial in trials) <= 120


@pytest.mark.parametrize("fault", plan.known_faults(), ids=str)
def test_a_point_that_failed_once_is_in_the_code(fault: plan.KnownFault) -> None:
    file, _, function = fault.function.partition(":")
    assert fault.command in COMMANDS
    assert f"def {function.removesuffix('.<lambda>').rpartition('.')[2]}(" in (PACKAGE / file).read_text()


def test_draws_repeat_with_the_seed() -> None:
    assert [plan.drawn(40, "seed") for _ in range(3)] == [plan.drawn(40, "seed")] * 3
    assert {plan.drawn(3, str(seed)) for seed in range(100)} == {1, 2, 3}
