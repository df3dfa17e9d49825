"""OpenSSH reads the ssh_config that vcluster writes as it is meant, for each path."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import samples
from vcluster.render import ssh_files

pytestmark = pytest.mark.ssh

PATHS = [
    "/plain/a-b_c.d",
    "/a b",
    '/a"b',
    "/a'b",
    r"/a\b",
    r"/a\"b",
    "/#a",
    "/a\tb",
    "/é",
    "/100%h",
    "/a=b,c",
    r"/a\ b\\",
]


@pytest.mark.parametrize("folder", PATHS)
def test_a_path_is_read_as_it_is_written(tmp_path: Path, folder: str) -> None:
    config, place = tmp_path / "config", Path(folder)
    text = ssh_files.ssh_config(
        samples.plan(2), identity=place / "id_ed25519", known_hosts=place / "known_hosts", jumps={}
    )
    config.write_text(text)
    done = subprocess.run(["ssh", "-F", config, "-G", "node2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert found["hostname"] == str(samples.plan(2).nodes[1].login_address)
    assert found["userknownhostsfile"] == f"{folder}/known_hosts"
    assert found["identityfile"].replace("%%", "%") == f"{folder}/id_ed25519"  # ssh replaces %% when it opens the file
