"""The image's program `seed`: an interface that gets its address by DHCP."""

import json
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SEED = Path(__file__).resolve().parents[2] / "images/debian/overlay/usr/lib/vcluster/seed"
CLUSTER = {
    "match": {"macaddress": "52:54:00:00:00:01"},
    "set-name": "lab0",
    "dhcp4": True,
    "optional": True,
    "mtu": 1450,
}
MANAGEMENT = {"match": {"macaddress": "52:54:00:00:00:02"}, "set-name": "mgmt0", "addresses": ["172.28.0.3/24"]}


@pytest.fixture(scope="module")
def seed() -> ModuleType:
    spec = spec_from_loader("seed", SourceFileLoader("seed", str(SEED)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(**ethernets: dict[str, Any]) -> dict[str, str]:
    return {
        "meta-data": json.dumps({"instance-id": "i", "local-hostname": "node1"}),
        "user-data": "#cloud-config\n{}",
        "network-config": json.dumps({"version": 2, "ethernets": ethernets}),
    }


def test_one_interface_may_use_dhcp(seed: ModuleType) -> None:
    ethernets = {"mgmt0": MANAGEMENT | {"dhcp4": False}, "lab0": CLUSTER}
    assert seed.parse(files(**ethernets))[2] == ethernets


@pytest.mark.parametrize(
    "ethernets",
    [
        {"lab0": CLUSTER, "mgmt0": MANAGEMENT | {"dhcp4": True}},
        {"lab0": CLUSTER | {"dhcp6": True}},
        {"lab0": CLUSTER | {"dhcp4-overrides": {"use-dns": False}}},
        {"lab0": CLUSTER | {"match": {"name": "en*"}}},
    ],
)
def test_other_dhcp_settings_are_left_to_cloud_init(seed: ModuleType, ethernets: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(seed.UnknownSeed):
        seed.parse(files(**ethernets))
