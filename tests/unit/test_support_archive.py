"""The archive of a bug report, and the answers of servers, which are not trusted."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from vcluster.commands.servers import support
from vcluster.commands.steps import support_archive
from vcluster.commands.steps.support_archive import SupportReport, refuse_existing, safe_path, write_new
from vcluster.errors import ConflictError, MissingError
from vcluster.util.redaction import Redactor


def new_report() -> SupportReport:
    return SupportReport("A report", Redactor(["s3cret value"]))


def test_each_content_and_each_reason_is_cleaned() -> None:
    report = new_report()
    report.add("text.txt", "a s3cret value\x1b[2J", "a text")
    report.add("document.json", {"password": "x", "name": "a s3cret value"}, "a document")
    assert report.omit("other", "no s3cret value\nhere") == "no [removed: known secret] here"
    assert report.files == {
        "text.txt": "a [removed: known secret]",
        "document.json": '{\n  "password": "[removed: password]",\n  "name": "a [removed: known secret]"\n}\n',
    }
    assert report.index().splitlines() == [
        "A report", "", "Files:", "  document.json  a document", "  text.txt       a text", "",
        "Left out:", "  other: no [removed: known secret] here", "",
        "Removed:", "  known secret: 3", "  password: 1", "",
        "The report still contains names of hosts, users and nodes, addresses, and paths.",
        "Read it before you send it to others.",
    ]  # fmt: skip


def test_sizes_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_archive, "FILE_BYTES_MAX", 10)
    monkeypatch.setattr(support_archive, "REPORT_BYTES_MAX", 15)
    report = new_report()
    report.add("one", "0123456789abcdef", "")
    report.add("two", "0123456789", "")
    assert report.files == {"one": "6789abcdef"}
    assert report.left_out["one"] == "only its last 10 of 16 bytes are here"
    assert report.left_out["two"].startswith("the report would have more than")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("servers/red/log.txt", "servers/red/log.txt"), ("/etc/passwd", "etc/passwd"), ("../../x", "x"),
        ("a/./b", "a/b"), ("a\n\x1bb", "a__b"), ("..", "unnamed"), ("", "unnamed"), ("x" * 300, "x" * 100),
    ],
)  # fmt: skip
def test_names_of_files_stay_in_the_folder(name: str, safe: str) -> None:
    assert safe_path(name) == safe


def test_no_name_is_used_twice() -> None:
    report = new_report()
    assert [report.add(name, "x", "") for name in ("a b", "a_b", "README.txt")] == ["a_b", "a_b.2", "README.txt.2"]


def test_the_file_is_new_and_private(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    report = new_report()
    report.add("one", "text", "")
    write_new(path, report.packed("folder", 0), (os.getuid(), os.getgid()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["folder/README.txt", "folder/one"]
    with pytest.raises(ConflictError, match="exists"):
        write_new(path, b"other")
    assert path.read_bytes() != b"other"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path, target = tmp_path / "report", tmp_path / "target"
    path.symlink_to(target)
    with pytest.raises(ConflictError, match="exists"):
        refuse_existing(path)
    with pytest.raises(ConflictError, match="exists"):
        write_new(path, b"data")
    assert not target.exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(MissingError, match="No space left on device"):
        write_new(tmp_path / "report", b"data")
    assert list(tmp_path.iterdir()) == []


def test_of_an_answer_only_what_was_asked_for_is_used() -> None:
    answer = {"files": {"a.txt": "0123456789abc", "../b": "x"}, "absent": {"c.txt": "no file"}, "failed": {"d": "no"}}
    found = support._checked(answer, "red", ["a.txt", "c.txt"], 10)
    assert found.files == {"servers/red/a.txt": "3456789abc"}
    assert (found.absent, found.failed) == ({"servers/red/c.txt": "no file"}, {})


def test_the_allowed_fields_of_a_plan_contain_no_password() -> None:
    assert "password" not in support.PLAN_FIELDS
    assert {"plan", "nodes", "servers", "login", "host", "mac"} <= support.PLAN_FIELDS
