"""An image build that is killed leaves no mount and no process, and the next build removes its folder."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator

import pytest

from tests.clusters import Host
from tests.testbed import testbed
from vcluster.images.store import DEFAULT_ROOT
from vcluster.model.spec import DEFAULT_IMAGE

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

# In place of mmdebstrap: it mounts as mmdebstrap does, and does not end. The last argument but one is its folder.
PROGRAM = """#!/bin/sh
for argument; do folder=$last last=$argument; done
mkdir -p "$folder/dev/shm"
mount -t tmpfs none "$folder/dev"
mkdir "$folder/dev/shm"
mount -t tmpfs none "$folder/dev/shm"
touch /run/has-begun
sleep 4711
"""
MOUNTS = f"grep {DEFAULT_ROOT}/ /proc/self/mounts || true"
PROCESSES = "pgrep --full '[m]mdebstrap|[s]leep 4711' || true"
FOLDERS = f"find {DEFAULT_ROOT} -mindepth 1 -maxdepth 1 -name '.unfinished-*'"


@pytest.fixture
def host() -> Iterator[Host]:
    """A server with an empty folder of images, and with PROGRAM as mmdebstrap."""
    with testbed("builds") as (server,):
        host = Host(server)
        host.sh(f"mkdir -p {DEFAULT_ROOT} && mount -t tmpfs none {DEFAULT_ROOT}")
        server.path("/run/mmdebstrap").write_text(PROGRAM)
        host.sh("chmod 755 /run/mmdebstrap && mount --bind /run/mmdebstrap /usr/bin/mmdebstrap")
        yield host


def fail_to_build(host: Host) -> str:
    """Build with an mmdebstrap that fails at once. Return what vcluster prints."""
    host.server.path("/run/mmdebstrap").write_text("#!/bin/sh\necho no packages here >&2\nexit 3\n")
    done = host.vcluster("image", "build", DEFAULT_IMAGE, check=False)
    assert done.returncode == 1
    return str(done.stderr)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_build_leaves_no_mount_and_no_process(host: Host, number: signal.Signals) -> None:
    process = host.popen("image", "build", DEFAULT_IMAGE)
    host.wait_for("[ -e /run/has-begun ] && echo yes")
    assert host.sh(FOLDERS) and host.sh(PROCESSES)
    process.send_signal(number)
    process.communicate(timeout=60)
    host.wait_for(f'[ -z "$({PROCESSES})" ] && echo yes')
    assert host.sh(MOUNTS) == ""
    assert "no packages here" in fail_to_build(host)
    assert host.sh(FOLDERS) == ""


def test_the_mounts_of_a_killed_build_of_an_older_version_are_removed(host: Host) -> None:
    folder = shlex.quote(f"{DEFAULT_ROOT}/.unfinished-old/scratch/a tree/dev")
    host.sh(
        f"mkdir -p {folder} && mount -t tmpfs none {folder} && mkdir {folder}/shm && mount -t tmpfs none {folder}/shm"
    )
    assert host.sh(MOUNTS)
    assert "no packages here" in fail_to_build(host)
    assert host.sh(FOLDERS) == ""
    assert host.sh(MOUNTS) == ""
