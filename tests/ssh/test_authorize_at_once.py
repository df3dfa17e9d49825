"""Many commands change one authorized_keys at the same time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vcluster.guest import authorize

pytestmark = pytest.mark.ssh


def test_authorize_at_the_same_time_loses_no_key(tmp_path: Path) -> None:
    path = tmp_path / ".ssh/authorized_keys"
    path.parent.mkdir(mode=0o700)
    path.write_text("ssh-rsa AAAA mine\n" + "".join(f"ssh-rsa AAAA old{number}\n" for number in range(20)))
    requests = [{"do": "add", "line": f"ssh-rsa AAAA new{number}"} for number in range(20)]
    requests += [{"do": "remove", "mark": f"old{number}"} for number in range(20)]
    running = [
        subprocess.Popen(
            [sys.executable, "-I", authorize.__file__],
            env={"HOME": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for _ in requests
    ]
    time.sleep(1)  # they wait for their input
    with ThreadPoolExecutor(len(running)) as pool:
        list(pool.map(lambda one, request: one.communicate(json.dumps(request).encode(), 30), running, requests))
    assert [one.returncode for one in running] == [0] * len(running)
    assert sorted(path.read_text().splitlines()) == sorted(
        ["ssh-rsa AAAA mine", *(f"ssh-rsa AAAA new{number}" for number in range(20))]
    )
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("request_", [{"do": "remove", "mark": "absent"}, {"do": "add", "line": "ssh-rsa AAAA mine\n"}])
@pytest.mark.parametrize("content", [None, "ssh-rsa AAAA mine\n", "ssh-rsa AAAA mine"])
def test_a_home_that_is_read_only_suffices_if_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: dict[str, str], content: str | None
) -> None:
    path = tmp_path / "authorized_keys"
    if content:
        path.write_text(content)

    def refuse(place: str) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), place)

    monkeypatch.setattr(authorize, "open_draft", refuse)
    if request_["do"] == "remove" or content == "ssh-rsa AAAA mine\n":
        assert authorize.change(str(path), request_) is False
    else:
        with pytest.raises(OSError, match="Read-only"):
            authorize.change(str(path), request_)
    assert (path.read_text() if content else None) == content
