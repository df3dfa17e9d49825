"""Real links, in a server of the testbed: made as planned, observed, removed; what is not ours is left alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from tests.testbed import Server, testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with testbed("links") as (one,):
        yield one


def python(server: Server, code: str) -> object:
    """What the code assigns to `answer`, run in the server."""
    program = f"import json\nfrom vcluster.hosts import netlink\nfrom vcluster import errors\n{code}\n"
    program += "print(json.dumps(answer))\n"
    return json.loads(server.run([sys.executable, "-c", program], timeout_s=30).stdout)


def links(server: Server) -> dict[str, dict[str, object]]:
    """The links as `ip` tells them."""
    shown = json.loads(server.run(["ip", "-d", "-j", "link"], timeout_s=10).stdout)
    return {link["ifname"]: link for link in shown}


def clear(server: Server, cluster: str) -> None:
    code = f"from vcluster.resources import links\nlinks.destroy(None, {cluster!r})\nanswer = None"
    python(server, code)


@pytest.mark.parametrize("count", [1, 2, 64])
def test_bridges_are_made_as_asked_and_removed(server: Server, count: int) -> None:
    before = set(links(server))
    python(
        server,
        f"for n in range({count}):\n"
        " netlink.create_bridge(f'vc-x{n}', mtu=1450, alias='vcluster:many')\nanswer = None",
    )
    made = {name: link for name, link in links(server).items() if name not in before}
    assert set(made) == {f"vc-x{n}" for n in range(count)}
    for link in made.values():
        assert link["mtu"] == 1450
        assert link["ifalias"] == "vcluster:many"
        assert "UP" in link["flags"]  # type: ignore[operator]
        assert link["linkinfo"]["info_kind"] == "bridge"  # type: ignore[index]
        assert link["linkinfo"]["info_data"]["stp_state"] == 0  # type: ignore[index]
    clear(server, "many")
    assert set(links(server)) == before


def test_making_a_bridge_twice_and_mending_it(server: Server) -> None:
    make = "netlink.create_bridge('vc-lab', mtu=1450, alias='vcluster:lab')\nanswer = None"
    python(server, make)
    server.run(["ip", "link", "set", "vc-lab", "down", "mtu", "1300"], timeout_s=10)
    python(server, make)
    assert links(server)["vc-lab"]["mtu"] == 1450
    assert "UP" in links(server)["vc-lab"]["flags"]  # type: ignore[operator]
    clear(server, "lab")
    clear(server, "lab")
    assert "vc-lab" not in links(server)


@pytest.mark.parametrize("alias", ["", "vcluster:other", "somebody's"])
def test_a_bridge_that_is_not_ours_is_refused_and_unharmed(server: Server, alias: str) -> None:
    server.run(["ip", "link", "add", "vc-lab", "mtu", "1234", "type", "bridge"], timeout_s=10)
    if alias:
        server.run(["ip", "link", "set", "vc-lab", "alias", alias], timeout_s=10)
    try:
        code = """
try:
    netlink.create_bridge('vc-lab', mtu=1450, alias='vcluster:lab')
    answer = None
except errors.ConflictError as error:
    answer = [error.exit_code, error.message]
"""
        exit_code, message = python(server, code)  # type: ignore[misc]
        assert exit_code == 4
        assert "link vc-lab exists" in message
        clear(server, "lab")
        left = links(server)["vc-lab"]
        assert left["mtu"] == 1234
        assert "UP" not in left["flags"]  # type: ignore[operator]
    finally:
        server.run(["ip", "link", "del", "vc-lab"], timeout_s=10)


def test_only_the_clusters_own_links_go(server: Server) -> None:
    code = "for name in ('a', 'ab'):\n"
    code += " netlink.create_bridge(f'vc-{name}', mtu=1450, alias=f'vcluster:{name}')\nanswer = None"
    python(server, code)
    clear(server, "a")
    assert "vc-a" not in links(server)
    assert "vc-ab" in links(server)
    clear(server, "ab")


def test_routes_are_told_with_their_interfaces(server: Server) -> None:
    routes = python(server, "answer = [[str(network), interface] for network, interface in netlink.routes()]")
    shown = json.loads(server.run(["ip", "-j", "-4", "route"], timeout_s=10).stdout)
    assert {(route["dst"], route["dev"]) for route in shown if "/" in route["dst"]} <= {tuple(one) for one in routes}  # type: ignore[attr-defined]
    assert shown
