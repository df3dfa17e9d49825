"""The cluster on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import samples
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet import ledger
from vcluster.fleet.ledger import ClusterFiles, Ledger, StageTime


@pytest.fixture
def files(tmp_path: Path) -> ClusterFiles:
    made = ClusterFiles(tmp_path / "state", "lab")
    made.folder.mkdir(parents=True)
    return made


def test_what_is_written_is_read(files: ClusterFiles) -> None:
    kept = Ledger(ledger.VERSION, "ready", "2030-01-01T00:00:00+00:00", samples.plan(3))
    files.write_ledger(kept)
    assert files.read_ledger() == kept
    files.write_keys(samples.keys(3))
    assert files.read_keys() == samples.keys(3)
    times = (StageTime("boot", "node1", 1.0, 2.0),)
    files.write_timing(times)
    assert files.read_timing() == times


def test_secrets_are_for_the_owner_only(files: ClusterFiles) -> None:
    files.write_keys(samples.keys())
    assert files.keys.stat().st_mode & 0o777 == 0o600
    assert files.identity.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "{", '{"version": 1}', '{"version": 99}', "\0"])
def test_a_broken_ledger_counts_as_none(files: ClusterFiles, text: str) -> None:
    files.ledger.write_text(text)
    assert files.read_ledger() is None


def test_broken_keys_are_a_clear_error(files: ClusterFiles) -> None:
    files.keys.write_text("{")
    with pytest.raises(VclusterError, match="keys of cluster lab cannot be read"):
        files.read_keys()


def test_no_times_are_known(files: ClusterFiles) -> None:
    assert files.read_timing() == ()


def test_one_command_at_a_time(files: ClusterFiles) -> None:
    assert not files.is_locked()
    with files.locked():
        assert files.is_locked()
        with pytest.raises(ConflictError, match="another command"), files.locked():
            pass
    assert not files.is_locked()


def test_nothing_is_left(tmp_path: Path) -> None:
    files = ClusterFiles(tmp_path / "state", "lab")
    with files.locked():
        files.write_keys(samples.keys())
        assert ledger.cluster_names(tmp_path / "state") == ("lab",)
        files.destroy()
        files.destroy()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({"VCLUSTER_STATE_DIR": "/x/y"}, "/x/y"),
        (
            {"VCLUSTER_STATE_DIR": "", "XDG_STATE_HOME": "/xdg"},
            "/var/lib/vcluster" if os.geteuid() == 0 else "/xdg/vcluster",
        ),
    ],
)
def test_where_state_lives(environment: dict[str, str], root: str) -> None:
    assert ledger.state_root(environment) == Path(root)
