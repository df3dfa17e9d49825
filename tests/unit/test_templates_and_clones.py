"""The keys of snapshots, the seed and XML of templates, and the XML of clones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests import samples
from tests.conftest import GOLDEN
from vcluster.agent import snapshot_folders
from vcluster.errors import VclusterError
from vcluster.model.naming import mac_for
from vcluster.model.plan import Plan
from vcluster.model.spec import DHCP, PRIVATE
from vcluster.render.clone_xml import clone_xml
from vcluster.render.domain_xml import Machine, domain_xml, template_xml
from vcluster.snapshots.memory_access import READ_ONLY, WRITABLE, clone_access
from vcluster.snapshots.template import (
    MACS,
    Template,
    compatibility,
    difference,
    is_outdated,
    key_of,
    snapshots_folder,
    template_of,
    template_seed,
)

Golden = Callable[[str, str], None]

SAVED = (GOLDEN / "clone" / "saved.xml").read_text()
RAM_FILE = Path("/storage/snapshots/111111111111-0123456789abcdef/ram")
VERSIONS = {"libvirt": "9.0.0", "qemu": "7.2.5"}
CONTENT = {"apply": b"print(1)", "check": b"print(2)"}
UUID = "00000000-0000-4000-8000-000000000001"
TEMPLATE = Template(samples.DIRECT, "tcg", 512, 1, 8, 1450, has_management=True)
WITHOUT_MANAGEMENT = replace(TEMPLATE, has_management=False)


def key(template: Template = TEMPLATE, **changed: Any) -> str:
    """The key of a template's snapshot."""
    server: dict[str, Any] = {"versions": VERSIONS, "processor": "one", "content": CONTENT}
    return key_of(compatibility(template, **server | changed))


# Keys


def test_the_conditions_of_a_snapshot_are_named() -> None:
    found = compatibility(TEMPLATE, versions=VERSIONS, processor="one", content=CONTENT)
    assert re.fullmatch("[0-9a-f]{64}", found.pop("content"))
    assert found == {
        "image": samples.DIRECT.digest,
        "accelerator": "tcg",
        "processor": "QEMU's",
        "libvirt": "9.0.0",
        "qemu": "7.2.5",
        "memory": "512 MiB",
        "vcpus": "1",
        "disk": "8 GiB",
        "cards": "mgmt0 lab0",
        "mtu": "1450",
        "format": "4",
    }


def test_a_key_begins_with_the_image_digest_and_is_valid_on_servers() -> None:
    assert re.fullmatch("1{12}-[0-9a-f]{16}", key())
    assert snapshot_folders.KEY.match(key())
    assert snapshots_folder(Path("/storage")) == Path("/storage/snapshots")


@pytest.mark.parametrize(
    "changed",
    [
        {"image": samples.ORDINARY},
        {"accel": "kvm"},
        {"memory_mib": 513},
        {"vcpus": 2},
        {"disk_gib": 9},
        {"mtu": 1449},
        {"has_management": False},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_template_has_another_key(changed: dict[str, Any]) -> None:
    assert key(replace(TEMPLATE, **changed)) != key()


@pytest.mark.parametrize(
    "changed",
    [
        {"versions": VERSIONS | {"qemu": "7.2.6"}},
        {"versions": VERSIONS | {"libvirt": "9.0.1"}},
        {"content": CONTENT | {"apply": b"print(3)"}},
        {"content": {"apply": CONTENT["apply"]}},
        {"content": {"apply": b"print(1)check", "": b"print(2)"}},
    ],
)
def test_other_versions_or_content_have_another_key(changed: dict[str, Any]) -> None:
    assert key(**changed) != key()


def test_another_processor_has_another_key_only_with_kvm() -> None:
    with_kvm = replace(TEMPLATE, accel="kvm")
    assert key(with_kvm, processor="another") != key(with_kvm)
    assert key(processor="another") == key()


def test_a_snapshot_of_the_same_template_is_outdated_after_other_changes() -> None:
    current = compatibility(TEMPLATE, versions=VERSIONS, processor="one", content=CONTENT)
    assert is_outdated(current | {"qemu": "7.2.4"}, TEMPLATE, current)
    assert is_outdated(current | {"content": "others"}, TEMPLATE, current)
    assert not is_outdated(current, TEMPLATE, current)
    assert not is_outdated(current | {"memory": "1024 MiB", "qemu": "7.2.4"}, TEMPLATE, current)
    assert not is_outdated({}, TEMPLATE, current)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"qemu": "7.2.4"}, "qemu 7.2.4, not 7.2.5"),
        ({"content": "others"}, "another version of vcluster"),
        ({"format": "2", "libvirt": "8.0.0"}, "libvirt 8.0.0, not 9.0.0"),
        ({"more": "1"}, "more 1, not unknown"),
    ],
)
def test_what_has_changed_since_a_snapshot_was_made(saved: dict[str, str], expected: str) -> None:
    current = compatibility(TEMPLATE, versions=VERSIONS, processor="one", content=CONTENT)
    assert difference(current | saved, current) == expected


def test_the_order_of_versions_and_content_does_not_matter() -> None:
    reversed_versions = {name: VERSIONS[name] for name in sorted(VERSIONS, reverse=True)}
    assert key(versions=reversed_versions, content=dict(reversed(CONTENT.items()))) == key()


@pytest.mark.parametrize("options", [{}, {"addresses": DHCP}, {"user": "student"}, {"mpi_ports": None}])
def test_all_nodes_of_a_cluster_have_one_template(options: dict[str, Any]) -> None:
    plan = samples.plan(4, **options)
    templates = {template_of(plan, node) for node in plan.nodes}
    assert templates == {template_of(samples.plan(2), samples.plan(2).head)}


def test_in_the_private_layout_the_head_has_its_own_template() -> None:
    plan = samples.plan(4, layout=PRIVATE)
    templates = [template_of(plan, node) for node in plan.nodes]
    assert [template.has_management for template in templates] == [True, False, False, False]
    assert len(set(templates)) == 2


def test_no_node_has_a_templates_mac() -> None:
    assert list(TEMPLATE.macs) == ["mgmt0", "lab0"]
    assert list(WITHOUT_MANAGEMENT.macs) == ["lab0"]
    assert {mac[:2] for mac in MACS.values()}.isdisjoint({mac_for("lab", "node1", name)[:2] for name in MACS})


# Templates


@pytest.mark.parametrize(("name", "template"), [("both-interfaces", TEMPLATE), ("one-interface", WITHOUT_MANAGEMENT)])
def test_the_seed_of_a_template(golden: Golden, name: str, template: Template) -> None:
    for file, text in template_seed(template, samples.pair("template")).items():
        golden(f"clone/template-{name}/{file}", text)


@pytest.mark.parametrize("template", [TEMPLATE, WITHOUT_MANAGEMENT])
def test_the_images_seed_program_accepts_the_seed(seed_program: ModuleType, template: Template) -> None:
    metadata, config, ethernets = seed_program.parse(template_seed(template, samples.pair("template")))
    assert metadata["local-hostname"] == "template"
    assert "users" not in config
    assert {name: ethernet["match"]["macaddress"] for name, ethernet in ethernets.items()} == template.macs
    assert not any("addresses" in ethernet or ethernet.get("dhcp4") for ethernet in ethernets.values())


@pytest.fixture(scope="module")
def seed_program() -> ModuleType:
    """The image's program `seed`."""
    path = Path(__file__).resolve().parents[2] / "images/debian/overlay/usr/lib/vcluster/seed"
    spec = spec_from_loader("seed", SourceFileLoader("seed", str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "template", "image"),
    [
        ("both-interfaces", TEMPLATE, samples.DIRECT),
        ("one-interface", WITHOUT_MANAGEMENT, samples.DIRECT),
        ("kvm", replace(TEMPLATE, accel="kvm"), samples.DIRECT),
    ],
)
def test_the_domain_of_a_template(golden: Golden, name: str, template: Template, image: Any) -> None:
    files = [Path("/snapshots/.unfinished-key") / file for file in ("disk.qcow2", "seed.iso", "console.log")]
    machine = Machine(image, template.accel, template.memory_mib, template.vcpus, *files)
    ram = Path("/snapshots/.unfinished-key/ram")
    xml = template_xml(
        machine, "vcluster-template-key", UUID, by=samples.OWNER, macs=template.macs, mtu=template.mtu, ram=ram
    )
    golden(f"clone/template-{name}.xml", xml)


# Clones


PLAN = samples.plan(3)


def clone(saved: str = SAVED, *, plan: Plan = PLAN, macs: Any = MACS, ram: Path = RAM_FILE) -> str:
    return clone_xml(saved, plan, plan.workers[0], ram=ram, access=WRITABLE, macs=macs)


def test_the_xml_of_a_clone(golden: Golden) -> None:
    golden("clone/clone.xml", clone())


def test_a_clone_has_the_identity_of_a_booted_node() -> None:
    """The XML of the clone and the XML for a boot agree in all common elements."""
    resumed, booted = ET.fromstring(clone()), ET.fromstring(domain_xml(PLAN, PLAN.workers[0]))
    for path in ("name", "uuid", "title", "metadata/*", "devices/disk/source", "devices/serial/log"):
        assert [(one.tag, one.text, one.attrib) for one in resumed.findall(path)] == [
            (one.tag, one.text, one.attrib) for one in booted.findall(path)
        ]
    for number in range(2):
        first, second = (domain.findall("devices/interface")[number] for domain in (resumed, booted))
        for part in ("mac", "source", "target", "model"):
            assert first.find(part).attrib == second.find(part).attrib  # type: ignore[union-attr]


def test_a_clone_has_the_limit_and_the_pins_of_its_own_node() -> None:
    plan = samples.plan(3, cpu_limit_percent=25, processors=(3, 1))
    assert template_of(plan, plan.head) == template_of(PLAN, PLAN.head)
    resumed, booted = ET.fromstring(clone(plan=plan)), ET.fromstring(domain_xml(plan, plan.workers[0]))
    (tuning,) = resumed.findall("cputune")
    assert ET.tostring(tuning).split() == ET.tostring(booted.findall("cputune")[0]).split()
    pin = tuning.find("vcpupin")
    assert pin is not None
    assert pin.attrib == {"vcpu": "0", "cpuset": "1"}


def test_the_machine_around_the_memory_does_not_change() -> None:
    resumed, saved = ET.fromstring(clone()), ET.fromstring(SAVED)
    for path in ("memory", "currentMemory", "vcpu", "os/*", "features/*", "cpu", "clock", "devices/controller"):
        assert [(one.tag, one.text, one.attrib) for one in resumed.findall(path)] == [
            (one.tag, one.text, one.attrib) for one in saved.findall(path)
        ]
    assert [one.tag for one in resumed.find("devices") or ()] == [one.tag for one in saved.find("devices") or ()]
    addresses = "devices/*/address"
    assert [one.attrib for one in resumed.findall(addresses)] == [one.attrib for one in saved.findall(addresses)]


def test_no_identity_of_the_template_is_left() -> None:
    text = clone()
    for trace in ("template", ".unfinished", "06:00:00", "/dev/pts", "domain-1-", "f3cdcab7", "<seclabel", "vnet"):
        assert trace not in text


def test_the_memory_is_a_private_mapping_of_the_file() -> None:
    resumed = ET.fromstring(clone())
    (commandline,) = (one for one in resumed if one.tag.endswith("}commandline"))
    arguments = [one.attrib["value"] for one in commandline]
    assert arguments[0::2] == ["-object", "-machine", "-incoming"]
    settings = dict(part.split("=") for part in arguments[1].split(",")[1:])
    assert settings["mem-path"] == str(RAM_FILE)
    assert settings["share"] == "off"
    assert settings["size"] == str(512 * 2**20)
    assert arguments[3] == f"memory-backend={settings['id']}"
    assert arguments[5] == "defer"


def test_the_memory_of_a_template_is_a_shared_mapping_and_a_clone_has_one_of_its_own() -> None:
    """The saved XML has the template's arguments."""
    machine = Machine(samples.DIRECT, "tcg", 512, 1, *(Path("/x") / file for file in ("disk.qcow2", "seed.iso", "log")))
    template = ET.fromstring(
        template_xml(machine, "t", UUID, by=samples.OWNER, macs=MACS, mtu=1450, ram=Path("/x/ram"))
    )
    (commandline,) = (one for one in template if one.tag.endswith("}commandline"))
    assert "mem-path=/x/ram,share=on" in commandline[1].attrib["value"]
    saved = ET.fromstring(SAVED)
    saved.append(commandline)
    text = clone(ET.tostring(saved, "unicode"))
    assert "/x/ram" not in text
    assert text.count("commandline>") == 2


def test_since_qemu_8_2_a_clone_cannot_write_to_the_file() -> None:
    assert clone_access("7.2.22") == clone_access("8.1.9") == WRITABLE
    assert clone_access("8.2.0") == clone_access("10.0.13") == READ_ONLY
    assert (WRITABLE.mode, READ_ONLY.mode) == ("rw", "r")


def test_a_clone_with_one_interface_needs_a_template_with_one() -> None:
    plan = samples.plan(3, layout=PRIVATE)
    one_interface = without("devices/interface[1]")(SAVED)
    resumed = ET.fromstring(clone(one_interface, plan=plan, macs=WITHOUT_MANAGEMENT.macs))
    assert [one.attrib["address"] for one in resumed.findall("devices/interface/mac")] == [plan.workers[0].mac]
    with pytest.raises(VclusterError, match="has the interfaces mgmt0, lab0, but node2 needs lab0"):
        clone(plan=plan)
    with pytest.raises(VclusterError, match="has the interfaces lab0, but node2 needs mgmt0, lab0"):
        clone(one_interface, macs=WITHOUT_MANAGEMENT.macs)


def without(path: str) -> Callable[[str], str]:
    """Remove an element from the saved XML."""

    def change(text: str) -> str:
        root = ET.fromstring(text)
        parent, _, name = path.rpartition("/")
        container = root.find(parent) if parent else root
        assert container is not None
        element = container.find(name)
        assert element is not None
        container.remove(element)
        return ET.tostring(root, "unicode")

    return change


def replaced(old: str, new: str) -> Callable[[str], str]:
    """Replace text in the saved XML."""

    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda _: "", "cannot be read"),
        (lambda _: "no XML", "cannot be read"),
        (lambda text: text[:-20], "cannot be read"),
        (lambda _: "<network><devices/></network>", "is not a domain but a network"),
        (without("devices"), "has no devices"),
        (without("memory"), "has no memory"),
        (without("devices/disk[1]"), "has no disk/target\\[@dev='vda'\\]"),
        (without("devices/disk[2]"), "has no disk/target\\[@dev='vdb'\\]"),
        (without("devices/disk[1]/source"), "has no source"),
        (without("devices/interface[1]"), "has no interface/mac\\[@address='06:00:00:00:00:01'\\]"),
        (without("devices/interface[2]/mac"), "has no interface/mac\\[@address='06:00:00:00:00:02'\\]"),
        (without("devices/interface[2]/address"), "has no address"),
        (replaced("06:00:00:00:00:02", "06:00:00:00:00:03"), "has no interface/mac"),
        (replaced("<memory unit='KiB'>524288", "<memory unit='KiB'>"), "has a memory of '' KiB"),
        (replaced("<memory unit='KiB'>524288", "<memory unit='KiB'>lots"), "has a memory of 'lots' KiB"),
        (replaced("<memory unit='KiB'>524288", "<memory unit='KiB'>0"), "has a memory of '0' KiB"),
        (replaced("<memory unit='KiB'>524288", "<memory unit='MiB'>512"), "has a memory of '512' MiB"),
    ],
)
def test_bad_saved_xml_is_refused(spoil: Callable[[str], str], message: str) -> None:
    with pytest.raises(VclusterError, match=f"^the saved domain XML {message}"):
        clone(spoil(SAVED))


def test_a_path_with_a_comma_is_refused() -> None:
    with pytest.raises(VclusterError, match="contains a comma"):
        clone(ram=Path("/storage,big/ram"))
