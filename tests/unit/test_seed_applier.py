"""The image's own seed applier: a link that gets its address by DHCP."""

import json
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SEED = Path(__file__).resolve().parents[2] / "images/debian12/overlay/usr/lib/vcluster/seed"
LINK = {"match": {"macaddress": "52:54:00:00:00:01"}, "set-name": "lab0", "dhcp4": True, "optional": True, "mtu": 1450}
OTHER = {"match": {"macaddress": "52:54:00:00:00:02"}, "set-name": "mgmt0", "addresses": ["172.28.0.3/24"]}


@pytest.fixture(scope="module")
def seed() -> ModuleType:
    spec = spec_from_loader("seed", SourceFileLoader("seed", str(SEED)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(**links: dict[str, Any]) -> dict[str, str]:
    return {
        "meta-data": json.dumps({"instance-id": "i", "local-hostname": "node1"}),
        "user-data": "#cloud-config\n{}",
        "network-config": json.dumps({"version": 2, "ethernets": links}),
    }


def test_one_link_may_get_its_address_by_dhcp(seed: ModuleType) -> None:
    links = {"mgmt0": OTHER | {"dhcp4": False}, "lab0": LINK}
    assert seed.parse(files(**links))[2] == links


@pytest.mark.parametrize(
    "links",
    [
        {"lab0": LINK, "mgmt0": OTHER | {"dhcp4": True}},
        {"lab0": LINK | {"dhcp6": True}},
        {"lab0": LINK | {"dhcp4-overrides": {"use-dns": False}}},
        {"lab0": LINK | {"match": {"name": "en*"}}},
    ],
)
def test_more_of_it_is_left_to_cloud_init(seed: ModuleType, links: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(seed.UnknownSeed):
        seed.parse(files(**links))
