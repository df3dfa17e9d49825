"""After the first create a memory is kept while its user goes on, and the next create is made from it."""

from __future__ import annotations

import pytest

from tests.clusters import SNAPSHOTS, Host, survey

pytestmark = pytest.mark.vm

KIND = ("-n", "1", "--memory", "520", "--timeout", "150")  # a memory of its own, which no other test knows


def test_the_second_create_waits_for_what_the_first_has_begun(host: Host, kept: str) -> None:
    before = survey(host)
    first = host.vcluster("local", "create", *KIND, "--name", "first", timeout_s=180, VCLUSTER_NO_WARM="0")
    assert "in the background" in first.stderr
    assert {"boot", "login"} <= set(host.stages("first", "node1"))
    host.wait_for(f"ls -d {SNAPSHOTS}/.unfinished-*")
    second = host.vcluster("local", "create", *KIND, "--name", "second", timeout_s=180, VCLUSTER_NO_WARM="0")
    assert "waiting for the snapshot that another command makes" in second.stderr
    assert "in the background" not in second.stderr
    assert "clone" in host.stages("second", "node1")
    made = set(host.snapshots()) - {kept}
    assert len(made) == 1
    assert host.sh("pgrep -f 'image warm' || true") == ""
    host.vcluster("clear", "--all", "-y")
    assert survey(host) == before
    host.sh(f"rm -r {SNAPSHOTS}/{made.pop()}")
