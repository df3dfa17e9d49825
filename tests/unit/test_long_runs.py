"""`--shard` and `--resume`: which tests run, and which results count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import long_runs
from tests.long_runs import Result, Shard, parse_results, passed_tests

MODULES = {
    "test_one.py": """
import pytest

@pytest.fixture(scope="module", params=["old", "new"])
def machine(request):
    print(f"made {request.param}")
    return request.param

@pytest.mark.parametrize("path", ["a", "b"])
def test_path(machine, path): pass

def test_other(machine): pass
""",
    "test_two.py": """
import os
import pytest

def test_fails_once(): assert "FAILS" not in os.environ

def test_skipped(): pytest.skip("a reason")

@pytest.mark.quick
def test_quick(): pass
""",
}


class Tree:
    """A checkout as git prints it."""

    def __init__(self) -> None:
        self.commit, self.changes = "c1", ""

    def git(self, command: str, *_: str) -> str:
        return f"{self.commit}\n" if command == "rev-parse" else self.changes


@pytest.fixture
def tree(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Tree:
    tree = Tree()
    monkeypatch.setattr(long_runs, "git", tree.git)
    for name, text in MODULES.items():
        (pytester.path / name).write_text(text)
    pytester.makeini("[pytest]\nmarkers = quick\n")
    return tree


def run(pytester: pytest.Pytester, *options: str) -> tuple[list[str], int]:
    """Run the modules. Returns the tests that ran, and the exit code."""
    done = pytester.inline_run("-p", "tests.long_runs", *options)
    reports = [report.nodeid for report in done.getreports("pytest_runtest_logreport") if report.when == "call"]
    return reports, int(done.ret)


# Shards


@pytest.mark.parametrize(
    ("shard", "chosen"),
    [
        (Shard(1, 1), "aabcab"),
        (Shard(1, 2), "aaca"),
        (Shard(2, 2), "bb"),
        (Shard(3, 3), "c"),
        (Shard(4, 4), ""),
    ],
)
def test_groups_are_dealt_in_turn(shard: Shard, chosen: str) -> None:
    groups = "aabcab"
    picked = [group for group, is_chosen in zip(groups, shard.select(groups), strict=True) if is_chosen]
    assert "".join(picked) == chosen


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "-1/2", "1/0", "a/b", "1/2/3"])
def test_what_is_not_a_shard(text: str) -> None:
    with pytest.raises(pytest.UsageError, match="is not a shard; use I/N"):
        Shard.parse(text)


@pytest.mark.usefixtures("tree")
def test_each_test_is_in_one_shard_and_each_machine_too(pytester: pytest.Pytester) -> None:
    everything, _ = run(pytester)
    parts = [run(pytester, "--shard", f"{index}/3")[0] for index in (1, 2, 3)]
    assert sorted(test for part in parts for test in part) == sorted(everything)
    machines = [{name for name in ("old", "new") for test in part if name in test} for part in parts]
    assert machines == [{"old"}, {"new"}, set()]
    assert all(len(part) == 3 for part in parts)


@pytest.mark.usefixtures("tree")
def test_a_shard_is_a_part_of_what_was_selected(pytester: pytest.Pytester) -> None:
    assert run(pytester, "--shard", "1/2", "-m", "quick") == (["test_two.py::test_quick"], 0)
    assert run(pytester, "--shard", "2/2", "-m", "quick") == ([], 0)
    assert run(pytester, "--shard", "2/2", "-k", "absent")[1] == pytest.ExitCode.NO_TESTS_COLLECTED


# Results


def test_the_last_result_of_the_commit_counts() -> None:
    results = [
        Result("old", "a", "passed", 1),
        Result("new", "b", "passed", 1),
        Result("new", "c", "failed", 1),
        Result("new", "c", "passed", 1),
        Result("new", "d", "passed", 1),
        Result("new", "d", "failed", 1),
        Result("new", "e", "skipped", 1),
    ]
    assert passed_tests(results, "new") == {"b", "c"}


@pytest.mark.parametrize("line", ["x", "[]", "1", "{}", '{"commit": "c"}'])
def test_a_line_that_is_not_a_result(line: str) -> None:
    good = '{"commit": "c", "test": "t", "outcome": "passed", "seconds": 1.5}'
    assert parse_results(good) == [Result("c", "t", "passed", 1.5)]
    with pytest.raises(ValueError, match="line 2 is not a result"):
        parse_results(f"{good}\n{line}\n")


def test_only_what_has_not_passed_is_repeated(
    pytester: pytest.Pytester, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results"
    options = ("--resume", str(file), "test_two.py")
    monkeypatch.setenv("FAILS", "")
    assert len(run(pytester, *options)[0]) == 3
    monkeypatch.delenv("FAILS")
    again = ["test_two.py::test_fails_once", "test_two.py::test_skipped"]
    assert run(pytester, *options) == (again, 0)
    assert run(pytester, *options, "--deselect", "test_two.py::test_skipped") == ([], 0)
    outcomes = [(result.test.partition("::")[2], result.outcome) for result in parse_results(file.read_text())]
    assert outcomes == [
        ("test_fails_once", "failed"),
        ("test_skipped", "skipped"),
        ("test_quick", "passed"),
        ("test_fails_once", "passed"),
        ("test_skipped", "skipped"),
    ]
    tree.commit = "c2"
    assert len(run(pytester, *options)[0]) == 3


def test_a_fixture_that_fails_at_its_end_fails_the_test(pytester: pytest.Pytester, tree: Tree, tmp_path: Path) -> None:
    assert tree.commit == "c1"
    (pytester.path / "test_three.py").write_text(
        "import pytest\n\n@pytest.fixture\ndef machine():\n    yield\n    assert False\n\ndef test_it(machine): pass\n"
    )
    file = tmp_path / "results"
    run(pytester, "--resume", str(file), "test_three.py")
    (result,) = parse_results(file.read_text())
    assert (result.commit, result.test, result.outcome) == ("c1", "test_three.py::test_it", "failed")


def test_a_tree_with_changes_is_refused(pytester: pytest.Pytester, tree: Tree, tmp_path: Path) -> None:
    tree.changes = " M vcluster/errors.py\n"
    done = pytester.runpytest_inprocess("-p", "tests.long_runs", "--resume", str(tmp_path / "results"))
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "commit or remove changes first:  M vcluster/errors.py" in str(done.stderr)


@pytest.mark.parametrize(("commit", "changes"), [("c2", ""), ("c1", "?? file\n")])
def test_results_of_a_tree_that_changes_meanwhile_are_not_kept(
    pytester: pytest.Pytester, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str, changes: str
) -> None:
    answers = iter([("c1", ""), ("c1", "")])  # at the start, and after the first test

    def git(command: str, *_: str) -> str:
        if command == "rev-parse":
            tree.commit, tree.changes = next(answers, (commit, changes))
        return tree.git(command)

    monkeypatch.setattr(long_runs, "git", git)
    file = tmp_path / "results"
    done = pytester.runpytest_inprocess("-p", "tests.long_runs", "--resume", str(file), "test_one.py")
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    assert len(parse_results(file.read_text())) == 1
    assert "results are not kept since test_one.py::" in str(done.stdout)


@pytest.mark.usefixtures("tree")
def test_files_that_cannot_be_used(pytester: pytest.Pytester, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text(json.dumps("x"))
    for path, reason in ((bad, f"{bad}: line 1 is not a result"), (tmp_path / "a/b", "No such file or directory")):
        done = pytester.runpytest_inprocess("-p", "tests.long_runs", "--resume", str(path))
        assert done.ret == pytest.ExitCode.USAGE_ERROR
        assert reason in str(done.stderr)
