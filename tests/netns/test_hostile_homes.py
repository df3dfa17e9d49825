"""The guest program that root runs follows no link that a user put into the own home folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.testbed import Server, testbed
from vcluster.guest import program

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

USER = "student"
HOME = f"/run/home/{USER}"
SECRET = "/run/secret"  # a folder of root with one file


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with testbed("home") as (server,):
        yield server


@pytest.fixture
def node(server: Server) -> Iterator[Server]:
    """A server with a file of root, which stays as it is, and with an empty home folder."""
    shell(server, f"rm -rf {HOME} {SECRET}; mkdir {HOME}; chown {USER}:{USER} {HOME}")
    shell(server, f"mkdir {SECRET}; echo secret >{SECRET}/file; chmod 0600 {SECRET}/file")
    before = survey(server)
    yield server
    after = survey(server)
    shell(server, f"umount {HOME}/cloud || true")
    assert after == before


def shell(server: Server, line: str, prefix: Sequence[str] = ()) -> str:
    return server.run([*prefix, "sh", "-ec", line], timeout_s=10).stdout


def survey(server: Server) -> str:
    return shell(server, f"find {SECRET} -printf '%p %u %m\\n'; cat {SECRET}/file")


def as_user(server: Server, line: str) -> None:
    shell(server, f"cd {HOME}; {line}", ("setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"))


def apply(server: Server, *actions: dict[str, Any]) -> dict[str, Any]:
    argv = [sys.executable, "-I", "-S", "-c", program("apply").decode()]
    done = server.run(argv, input=json.dumps({"actions": actions}), timeout_s=20)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def file(path: str, mode: int = 0o644) -> dict[str, Any]:
    return {"do": "file", "path": path, "text": "ours\n", "owner": USER, "mode": mode}


def folder(path: str, mode: int = 0o755) -> dict[str, Any]:
    return {"do": "directory", "path": path, "owner": USER, "mode": mode}


def mount(**fields: str) -> dict[str, Any]:
    return {"do": "mount", "source": "none", "target": f"{HOME}/cloud", "type": "tmpfs", "options": "size=1m"} | fields


def state(server: Server, path: str) -> str:
    return server.run(["stat", "-c", "%F %U %a", path], timeout_s=10).stdout.strip()


@pytest.mark.parametrize("link", ["hostfile", "hostfile.vcluster-new"])
@pytest.mark.parametrize("target", [f"{SECRET}/file", f"{SECRET}/new"])
def test_a_link_in_place_of_a_file_is_replaced(node: Server, link: str, target: str) -> None:
    as_user(node, f"ln -s {target} {link}")
    assert apply(node, file(f"{HOME}/hostfile")) == {"changed": [f"{HOME}/hostfile"]}
    assert state(node, f"{HOME}/hostfile") == f"regular file {USER} 644"
    assert apply(node, file(f"{HOME}/hostfile")) == {"changed": []}


def test_a_pipe_in_place_of_a_file_blocks_nothing(node: Server) -> None:
    as_user(node, "mkfifo hostfile")
    assert apply(node, file(f"{HOME}/hostfile")) == {"changed": [f"{HOME}/hostfile"]}
    assert state(node, f"{HOME}/hostfile") == f"regular file {USER} 644"


def test_a_link_to_a_file_with_our_content_is_replaced(node: Server) -> None:
    as_user(node, "echo ours >real; chmod 0644 real; ln -s real hostfile")
    assert apply(node, file(f"{HOME}/hostfile")) == {"changed": [f"{HOME}/hostfile"]}
    assert state(node, f"{HOME}/hostfile") == f"regular file {USER} 644"


def test_a_link_in_place_of_a_folder_is_an_error(node: Server) -> None:
    as_user(node, f"ln -s {SECRET} .ssh; ln -s {SECRET} cloud")
    for path in (f"{HOME}/.ssh", f"{HOME}/cloud"):
        assert apply(node, folder(path, 0o700)) == {"error": f"{path} is not a folder"}
    assert "error" in apply(node, file(f"{HOME}/.ssh/authorized_keys", 0o600))


def test_the_folder_of_another_user_is_an_error(node: Server) -> None:
    node.run(["mkdir", f"{HOME}/.ssh"], timeout_s=10)
    assert apply(node, folder(f"{HOME}/.ssh", 0o700)) == {"error": f"{HOME}/.ssh belongs to another user"}


def test_files_and_folders_without_links(node: Server) -> None:
    actions = [folder(f"{HOME}/.ssh", 0o700), file(f"{HOME}/.ssh/id", 0o600), folder(f"{HOME}/cloud")]
    assert apply(node, *actions) == {"changed": [f"{HOME}/.ssh", f"{HOME}/.ssh/id", f"{HOME}/cloud"]}
    assert apply(node, *actions) == {"changed": []}
    assert state(node, f"{HOME}/.ssh") == f"directory {USER} 700"
    assert state(node, f"{HOME}/.ssh/id") == f"regular file {USER} 600"


@pytest.mark.parametrize(
    "fields", [{}, {"address": "192.0.2.1"}, {"source": "/srv", "type": "none", "options": "bind"}]
)
def test_a_mount_follows_no_link_of_a_user(node: Server, fields: dict[str, str]) -> None:
    as_user(node, f"ln -s {SECRET} cloud")
    assert apply(node, mount(**fields)) == {"error": f"{HOME}/cloud: cloud is not a folder"}


@pytest.mark.parametrize("fields", [{}, {"source": "/srv", "type": "none", "options": "bind"}])
def test_a_mount_in_a_home_folder(node: Server, fields: dict[str, str]) -> None:
    apply(node, folder(f"{HOME}/cloud"))
    assert apply(node, mount(**fields)) == {"changed": [f"mount {HOME}/cloud"]}
    points = [line.split()[1] for line in node.run(["cat", "/proc/mounts"], timeout_s=10).stdout.splitlines()]
    assert points.count(f"{HOME}/cloud") == 1
    assert "/run/vcluster-mount" not in points
