"""The image's seed program configures interfaces; checked by the state of the kernel."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testbed import Server, testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

SEED = Path(__file__).resolve().parents[2] / "images/debian/overlay/usr/lib/vcluster/seed"
PROGRAM = f"""
import json, sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
spec = spec_from_loader("seed", SourceFileLoader("seed", {str(SEED)!r}))
seed = module_from_spec(spec)
spec.loader.exec_module(seed)
print(json.dumps(seed.apply_network(*json.loads(sys.argv[1]))))
"""
MACS = {"eth7": "52:54:00:00:00:07", "eth8": "52:54:00:00:00:08"}
LAB = {"match": {"macaddress": MACS["eth7"]}, "set-name": "lab0", "addresses": ["10.77.0.3/24"], "mtu": 1450}
MANAGEMENT = {
    "match": {"macaddress": MACS["eth8"].upper()},
    "set-name": "mgmt0",
    "addresses": ["172.31.77.3/20", "2001:db8:77::3/64"],
    "gateway4": "172.31.64.1",
    "routes": [{"to": "10.78.0.0/16", "via": "172.31.64.2"}, {"to": "default", "via": "2001:db8:77::1"}],
    "nameservers": {"addresses": ["172.31.64.1"]},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with testbed("seed-links") as (server,):
        yield server


@pytest.fixture
def bare_server(server: Server) -> Iterator[Server]:
    """A server with two interfaces that are not renamed yet, and without a default route."""
    server.run(["ip", "link", "set", "lo", "down"], timeout_s=10)
    default_route = server.run(["ip", "-4", "route", "show", "default"], timeout_s=10).stdout.split()
    if default_route:
        server.run(["ip", "route", "del", "default"], timeout_s=10)
    first, second = ([name, "address", mac] for name, mac in MACS.items())
    server.run(["ip", "link", "add", *first, "type", "veth", "peer", "name", *second], timeout_s=10)
    yield server
    for name in ("eth7", "lab0"):
        server.run(["ip", "link", "del", name], timeout_s=10, check=False)
    if default_route:
        server.run(["ip", "route", "add", *default_route], timeout_s=10)


def apply(server: Server, *arguments: Any) -> tuple[list[str], str]:
    """Return the name servers and the standard error."""
    done = server.run(["/usr/bin/python3", "-ISB", "-c", PROGRAM, json.dumps(arguments)], timeout_s=20)
    return json.loads(done.stdout), done.stderr


def show(server: Server, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(server.run(["ip", "-j", *arguments], timeout_s=10).stdout)
    return found


def addresses(interface: dict[str, Any]) -> set[tuple[str, int, str | None]]:
    """All addresses but the link-local one, which the kernel makes."""
    return {
        (address["local"], address["prefixlen"], address.get("broadcast"))
        for address in interface["addr_info"]
        if not address["local"].startswith("fe80")
    }


def test_interfaces_get_name_addresses_and_routes(bare_server: Server) -> None:
    assert apply(bare_server, {"lab0": LAB, "mgmt0": MANAGEMENT}) == (["172.31.64.1"], "")
    found = {interface["ifname"]: interface for interface in show(bare_server, "address")}
    assert "eth7" not in found and "eth8" not in found
    assert all("UP" in found[name]["flags"] for name in ("lo", "lab0", "mgmt0"))
    assert (found["lab0"]["mtu"], found["mgmt0"]["mtu"]) == (1450, 1500)
    assert addresses(found["lab0"]) == {("10.77.0.3", 24, "10.77.0.255")}
    assert addresses(found["mgmt0"]) == {("172.31.77.3", 20, "172.31.79.255"), ("2001:db8:77::3", 64, None)}
    routes = [(one["dst"], one["gateway"], one["dev"]) for one in show(bare_server, "route") if "gateway" in one]
    assert sorted(routes) == [("10.78.0.0/16", "172.31.64.2", "mgmt0"), ("default", "172.31.64.1", "mgmt0")]
    (default,) = (one for one in show(bare_server, "-6", "route") if one["dst"] == "default")
    assert (default["gateway"], default["dev"]) == ("2001:db8:77::1", "mgmt0")


def test_without_up_interfaces_get_only_name_and_mtu(bare_server: Server) -> None:
    assert apply(bare_server, {"lab0": LAB}, False) == ([], "")
    (lab,) = (one for one in show(bare_server, "address") if one["ifname"] == "lab0")
    assert "UP" not in lab["flags"]
    assert (lab["mtu"], lab["addr_info"]) == (1450, [])


def test_refused_requests_are_printed_and_the_rest_is_done(bare_server: Server) -> None:
    faulty = LAB | {"mtu": 10, "routes": [{"to": "10.79.0.0/16", "via": "192.0.2.1"}]}
    absent = {"match": {"macaddress": "52:54:00:00:00:99"}, "set-name": "gone0"}
    _, errors = apply(bare_server, {"gone0": absent, "lab0": faulty})
    assert errors.splitlines() == [
        "vcluster-seed: no interface has the MAC address 52:54:00:00:00:99 of gone0",
        "vcluster-seed: lab0 mtu 10: Invalid argument",
        "vcluster-seed: lab0 to 10.79.0.0/16 via 192.0.2.1: Network is unreachable",
    ]
    (lab,) = (one for one in show(bare_server, "address") if one["ifname"] == "lab0")
    assert ("10.77.0.3", 24, "10.77.0.255") in addresses(lab)
