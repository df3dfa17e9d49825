"""The guest program of the check logs in to nodes: the output counts, warnings do not.

A script takes the place of ssh.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lan import Lan, lan
from vcluster import guest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

PROGRAMS = "/run/programs"
WARNING = "** WARNING: connection is not using a post-quantum key exchange algorithm."


@pytest.fixture(scope="module")
def net() -> Iterator[Lan]:
    with lan("head") as net:
        net.server.run(["install", "-d", "-m", "755", PROGRAMS], timeout_s=10)
        yield net


def login(net: Lan, script: str) -> dict[str, Any]:
    ssh = net.server.path(f"{PROGRAMS}/ssh")
    ssh.write_text(f"#!/bin/sh\necho '{WARNING}' >&2\n{script}\n")
    ssh.chmod(0o755)
    request = {"do": "logins", "user": "student", "logins": ["worker"]}
    program = ["/usr/bin/python3", "-IS", "-c", guest.program("check").decode()]
    done = net.run("head", ["env", f"PATH={PROGRAMS}:/usr/bin:/bin", *program], input=json.dumps(request) + "\n")
    (result,) = json.loads(done.stdout)["results"]
    return {key: result[key] for key in ("to", "passed", "detail")}


@pytest.mark.parametrize(
    ("script", "passed", "detail"),
    [
        ("echo worker", True, ""),
        ("echo other", False, "other"),
        ("echo Permission denied >&2; exit 255", False, "Permission denied"),
        ("", False, "it printed nothing"),
    ],
    ids=["passed", "another node", "refused", "silent"],
)
def test_a_warning_is_not_a_failure(net: Lan, script: str, passed: bool, detail: str) -> None:
    assert login(net, script) == {"to": "worker", "passed": passed, "detail": detail}
