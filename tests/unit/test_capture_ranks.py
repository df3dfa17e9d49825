"""The map from connections to ranks, and the answers of the guest program that reads sockets."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from vcluster.adapters.capture.capture_file import replace_begin
from vcluster.commands.nodes import rank_watch
from vcluster.errors import VclusterError
from vcluster.frames.rank_map import Address, RankEnd, RankSocket, rank_map
from vcluster.guest import rank_sockets
from vcluster.util.deadline import Deadline

NODES = {"10.0.0.1": "node1", "10.0.0.2": "node2"}
ONE, OTHER = ("10.0.0.1", 40000), ("10.0.0.2", 35000)
TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100000A:9C40 0200000A:88B8 01 00000000:00000000 00:00000000 00000000  1000        0 77 1 0 20 4 30 10 -1
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0
   2: 0100000A:9C41 0200000A:88B8 01 00000000:00000000 00:00000000 00000000  1000        0 0 1 0 20 4 30 10 -1
"""


def test_both_ends_of_a_connection_are_joined() -> None:
    sockets = [RankSocket("node2", 3, 20, OTHER, ONE), RankSocket("node1", 1, 10, ONE, OTHER)]
    (found,) = rank_map(sockets, NODES)
    assert (found.first, found.second) == (RankEnd("node1", *ONE, 1), RankEnd("node2", *OTHER, 3))


def test_a_connection_that_a_rank_inherits_is_not_one_of_ranks() -> None:
    """mpiexec has the other end, or the program on the node that starts ranks."""
    mpiexec = ("10.0.0.1", 39000)
    assert rank_map([RankSocket("node2", 3, 20, OTHER, mpiexec)], NODES) == ()


def two_connections(*, closed: tuple[int, ...]) -> list[RankSocket]:
    """The reports about two connections of the same two ranks, of which some ends have closed, in this order."""
    ends = [(ONE, OTHER), (("10.0.0.1", 40001), OTHER)]
    opened = [RankSocket("node1", 1, 10, *each) for each in ends] + [
        RankSocket("node2", 3, 20, there, here) for here, there in ends
    ]
    return [*opened, *(RankSocket("node1", 1, 10, *ends[number], is_closed=True) for number in closed)]


@pytest.mark.parametrize(
    ("closed", "are_brief"),
    [
        ((), [False, False]), ((0,), [True, False]), ((1,), [False, True]), ((0, 1), [True, False]),
        ((1, 0), [False, True]),
    ],
)  # fmt: skip
def test_of_two_connections_of_the_same_ranks_the_one_that_closes_first_is_brief(
    closed: tuple[int, ...], are_brief: list[bool]
) -> None:
    """At its end a rank closes all of its connections, however long it runs on. So one that has no other is kept."""
    found = rank_map(two_connections(closed=closed), NODES)
    assert [each.is_brief for each in found] == are_brief


def test_a_connection_of_an_earlier_job_is_not_brief() -> None:
    """Its ranks have the same numbers, but they are other processes."""
    second = ("10.0.0.1", 40001)
    sockets = [
        RankSocket("node1", 1, 10, ONE, OTHER, is_closed=True),
        RankSocket("node2", 3, 20, OTHER, ONE, is_closed=True),
        RankSocket("node1", 1, 11, second, OTHER),
        RankSocket("node2", 3, 21, OTHER, second),
    ]
    assert [each.is_brief for each in rank_map(sockets, NODES)] == [False, False]


def test_a_rank_closes_a_connection(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = [{1: (ONE, OTHER), 2: (OTHER, ONE)}, {2: (OTHER, ONE)}]
    monkeypatch.setattr(rank_sockets, "connections", lambda: seen.pop(0))
    monkeypatch.setattr(rank_sockets, "owners", lambda inodes: {each: (7, 10 * each) for each in inodes})
    watch = rank_sockets.Watch()
    for _ in range(2):
        watch.look()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["process"], line["closed"]) for line in lines] == [(10, False), (20, False), (10, True)]


def test_the_owner_of_a_new_socket_is_searched_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process may get a socket just after it was searched. Sockets of other programs are not searched for ever."""
    searched = []

    def owners(inodes: set[int]) -> dict[int, rank_sockets.Owner]:
        searched.append(sorted(inodes))
        return {1: (7, 10)} if len(searched) == 2 else {}

    monkeypatch.setattr(rank_sockets, "connections", lambda: {1: (ONE, OTHER), 2: (OTHER, ONE)})
    monkeypatch.setattr(rank_sockets, "owners", owners)
    watch = rank_sockets.Watch()
    for _ in range(rank_sockets.SEARCHES + 2):
        watch.look()
    assert [json.loads(line)["rank"] for line in capsys.readouterr().out.splitlines()] == [7]
    assert searched == [[1, 2], [1, 2], *[[2]] * (rank_sockets.SEARCHES - 2)]


def test_a_file_that_is_closed_meanwhile_hides_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def readlink(path: str) -> str:
        if path.endswith("/3"):
            raise FileNotFoundError(path)
        return "socket:[5]"

    monkeypatch.setattr("os.listdir", lambda _: ["3", "4"])
    monkeypatch.setattr("os.readlink", readlink)
    assert rank_sockets.sockets_of("9") == {5}


def test_the_later_job_counts() -> None:
    sockets = [
        RankSocket("node2", 9, 20, OTHER, ONE),
        RankSocket("node1", 1, 10, ONE, OTHER),
        RankSocket("node1", 7, 10, ONE, OTHER),
    ]
    assert [each.first.rank for each in rank_map(sockets, NODES)] == [7]


ADDRESSES = some.tuples(some.sampled_from(sorted(NODES)), some.integers(0, 65535))


@given(some.dictionaries(some.tuples(ADDRESSES, ADDRESSES), some.integers(0, 9)))
def test_no_pair_is_lost_and_none_is_made_up(ranks: dict[tuple[Address, Address], int]) -> None:
    sockets = [RankSocket(NODES[here[0]], rank, 10, here, there) for (here, there), rank in ranks.items()]
    found = {}
    for each in rank_map(sockets, NODES):
        for one, other in ((each.first, each.second), (each.second, each.first)):
            found[(one.address, one.port), (other.address, other.port)] = one.rank
    assert found == {ends: rank for ends, rank in ranks.items() if (ends[1], ends[0]) in ranks}


def test_the_table_of_sockets_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", lambda *_: io.StringIO(TABLE))
    assert rank_sockets.connections() == {77: (ONE, OTHER)}


class Pipe:
    """A program in a node that prints these lines, and ends with its input."""

    name = "node1"

    def __init__(self, *lines: bytes) -> None:
        self._lines, self._is_shut = [*lines], threading.Event()

    def read_line(self, *_: object) -> bytes:
        if not self._lines:
            self._is_shut.wait(20)
            raise VclusterError("node1: the connection broke")
        return self._lines.pop(0)

    def shut(self) -> None:
        self._is_shut.set()

    def wait(self, _: float) -> int:
        return 0

    def close(self) -> None:
        """Nothing is open."""


class Session:
    """A node that runs a program."""

    def __init__(self, pipe: Pipe) -> None:
        self.deadline = Deadline(20)
        self._pipe = pipe

    def start_program(self, *_: object, **__: object) -> Pipe:
        return self._pipe


def watch(*lines: bytes) -> list[RankSocket]:
    with rank_watch.watched({"node1": Session(Pipe(b"{}", *lines))}, Deadline(20)) as watched:  # type: ignore[dict-item]
        found = watched.stop()
    if watched.failure:
        raise watched.failure
    return found


GOOD: dict[str, Any] = {"rank": 1, "process": 10, "local": list(ONE), "remote": list(OTHER), "closed": False}


def test_sockets_of_ranks_are_collected() -> None:
    assert watch(json.dumps(GOOD).encode()) == [RankSocket("node1", 1, 10, ONE, OTHER)]


@pytest.mark.parametrize(
    "wrong",
    [
        {**GOOD, "rank": "1"}, {**GOOD, "rank": -1}, {**GOOD, "rank": True}, {**GOOD, "process": -1},
        {**GOOD, "local": None}, {**GOOD, "local": ["\x1b[2J", 1]},
        {**GOOD, "remote": ["10.0.0.1", 65536]}, {**GOOD, "remote": ["10.0.0.1"]},
        {**GOOD, "remote": ["10.0.0.1", 1.5]}, {**GOOD, "closed": 0}, [],
    ],
)  # fmt: skip
def test_other_answers_of_a_node_are_refused(wrong: object) -> None:
    with pytest.raises(VclusterError, match="node1: the connections of ranks printed"):
        watch(json.dumps(wrong).encode())


def test_a_node_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "SOCKETS_MAX", 3)
    with pytest.raises(VclusterError, match="there are more than 3"):
        watch(*[json.dumps(GOOD).encode()] * 4)


def test_the_begin_of_a_file_is_replaced(tmp_path: Any) -> None:
    path = tmp_path / "run.pcapng"
    path.write_bytes(b"begin" + b"frames")
    path.chmod(0o640)
    replace_begin(path, 5, b"another begin ")
    assert path.read_bytes() == b"another begin frames"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["run.pcapng"]


def test_the_begin_of_a_file_is_replaced_behind_a_link(tmp_path: Any) -> None:
    path, link = tmp_path / "run.pcapng", tmp_path / "latest.pcapng"
    path.write_bytes(b"begin" + b"frames")
    link.symlink_to("run.pcapng")
    replace_begin(link, 5, b"another begin ")
    assert link.is_symlink()
    assert path.read_bytes() == b"another begin frames"


@pytest.mark.parametrize(("value", "rank"), [(b"12", 12), (b"9" * 5000, None), (b"-1", None), (b"", None)])
def test_only_a_number_of_nine_digits_is_a_rank(
    value: bytes, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any user of a node can set the variable."""
    monkeypatch.setattr("builtins.open", lambda *_: io.BytesIO(b"HOME=/root\0PMI_RANK=" + value + b"\0"))
    assert rank_sockets.rank_of("1") == rank
