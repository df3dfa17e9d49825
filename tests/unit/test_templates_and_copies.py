"""By what a kept memory is known, what its template is told, and the definition that a copy wakes with."""

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
from vcluster.render.clone_xml import RAM, clone_xml
from vcluster.render.domain_xml import Machine, domain_xml, template_xml
from vcluster.snapshots import qemu_stream
from vcluster.snapshots.template import (
    MACS,
    Template,
    circumstances,
    is_outdated,
    key_of,
    root_on,
    template_of,
    template_seed,
)

Golden = Callable[[str, str], None]

KEPT = (GOLDEN / "clone" / "kept.xml").read_text()
FILE = Path("/storage/snapshots/111111111111-0123456789abcdef/ram")
VERSIONS = {"libvirt": "9.0.0", "qemu": "7.2.5"}
PROGRAMS = {"apply": b"print(1)", "check": b"print(2)"}
TEMPLATE = Template(samples.DIRECT, "tcg", 512, 1, 8, 1450, has_management=True)
WITHOUT_MANAGEMENT = replace(TEMPLATE, has_management=False)


def known_by(template: Template = TEMPLATE, **changed: Any) -> str:
    """The key of a template's memory."""
    found: dict[str, Any] = {"versions": VERSIONS, "processor": "one", "programs": PROGRAMS}
    return key_of(circumstances(template, **found | changed))


# Keys


def test_what_a_memory_depends_on_is_told_in_words() -> None:
    found = circumstances(TEMPLATE, versions=VERSIONS, processor="one", programs=PROGRAMS)
    assert re.fullmatch("[0-9a-f]{64}", found.pop("programs"))
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
        "format": "1",
    }


def test_a_key_begins_with_its_images_and_is_one_for_servers() -> None:
    assert re.fullmatch("1{12}-[0-9a-f]{16}", known_by())
    assert snapshot_folders.KEY.match(known_by())
    assert root_on(Path("/storage")) == Path("/storage/snapshots")


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
def test_another_kind_of_node_has_another_key(changed: dict[str, Any]) -> None:
    assert known_by(replace(TEMPLATE, **changed)) != known_by()


@pytest.mark.parametrize(
    "changed",
    [
        {"versions": VERSIONS | {"qemu": "7.2.6"}},
        {"versions": VERSIONS | {"libvirt": "9.0.1"}},
        {"programs": PROGRAMS | {"apply": b"print(3)"}},
        {"programs": {"apply": PROGRAMS["apply"]}},
        {"programs": {"apply": b"print(1)check", "": b"print(2)"}},
    ],
)
def test_other_programs_make_another_key(changed: dict[str, Any]) -> None:
    assert known_by(**changed) != known_by()


def test_another_processor_makes_another_key_where_guests_see_it() -> None:
    seen = replace(TEMPLATE, accel="kvm")
    assert known_by(seen, processor="another") != known_by(seen)
    assert known_by(processor="another") == known_by()


def test_one_of_the_same_kind_is_outdated_when_something_else_has_changed() -> None:
    now = circumstances(TEMPLATE, versions=VERSIONS, processor="one", programs=PROGRAMS)
    assert is_outdated(now | {"qemu": "7.2.4"}, now)
    assert is_outdated(now | {"programs": "others"}, now)
    assert not is_outdated(now, now)
    assert not is_outdated(now | {"memory": "1024 MiB", "qemu": "7.2.4"}, now)
    assert not is_outdated({}, now)


def test_the_order_of_things_does_not_matter() -> None:
    backwards = {name: VERSIONS[name] for name in sorted(VERSIONS, reverse=True)}
    assert known_by(versions=backwards, programs=dict(reversed(PROGRAMS.items()))) == known_by()


@pytest.mark.parametrize("wishes", [{}, {"addresses": DHCP}, {"user": "student"}, {"mpi_ports": None}])
def test_nodes_differ_by_nothing_that_a_memory_depends_on(wishes: dict[str, Any]) -> None:
    kinds = {template_of(plan, node) for plan in (samples.plan(4, **wishes),) for node in plan.nodes}
    assert kinds == {template_of(samples.plan(2), samples.plan(2).head)}


def test_in_the_private_layout_the_head_is_of_a_kind_of_its_own() -> None:
    plan = samples.plan(4, layout=PRIVATE)
    kinds = [template_of(plan, node) for node in plan.nodes]
    assert [kind.has_management for kind in kinds] == [True, False, False, False]
    assert len(set(kinds)) == 2


def test_no_node_has_a_templates_mac() -> None:
    assert list(TEMPLATE.macs) == ["mgmt0", "lab0"]
    assert list(WITHOUT_MANAGEMENT.macs) == ["lab0"]
    assert {mac[:2] for mac in MACS.values()}.isdisjoint({mac_for("lab", "node1", card)[:2] for card in MACS})


# Templates


@pytest.mark.parametrize(("name", "template"), [("both-cards", TEMPLATE), ("one-card", WITHOUT_MANAGEMENT)])
def test_the_seed_of_a_template(golden: Golden, name: str, template: Template) -> None:
    for file, text in template_seed(template, samples.pair("template")).items():
        golden(f"clone/template-{name}/{file}", text)


@pytest.mark.parametrize("template", [TEMPLATE, WITHOUT_MANAGEMENT])
def test_an_images_applier_understands_the_seed(applier: ModuleType, template: Template) -> None:
    metadata, config, cards = applier.parse(template_seed(template, samples.pair("template")))
    assert metadata["local-hostname"] == "template"
    assert "users" not in config
    assert {name: card["match"]["macaddress"] for name, card in cards.items()} == template.macs
    assert not any("addresses" in card or card.get("dhcp4") for card in cards.values())


@pytest.fixture(scope="module")
def applier() -> ModuleType:
    """The image's own seed applier."""
    path = Path(__file__).resolve().parents[2] / "images/debian12/overlay/usr/lib/vcluster/seed"
    spec = spec_from_loader("seed", SourceFileLoader("seed", str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "template", "image"),
    [
        ("both-cards", TEMPLATE, samples.DIRECT),
        ("one-card", WITHOUT_MANAGEMENT, samples.DIRECT),
        ("kvm", replace(TEMPLATE, accel="kvm"), samples.DIRECT),
    ],
)
def test_the_domain_of_a_template(golden: Golden, name: str, template: Template, image: Any) -> None:
    files = [Path("/snapshots/.unfinished-key") / file for file in ("disk.qcow2", "seed.iso", "console.log")]
    machine = Machine(image, template.accel, template.memory_mib, template.vcpus, *files)
    xml = template_xml(machine, "vcluster-template-key", by=samples.OWNER, macs=template.macs, mtu=template.mtu)
    golden(f"clone/template-{name}.xml", xml)


# Copies


PLAN = samples.plan(3)


def copy(kept: str = KEPT, *, plan: Plan = PLAN, macs: Any = MACS, ram: Path = FILE) -> str:
    return clone_xml(kept, plan, plan.workers[0], ram=ram, macs=macs)


def test_a_copy(golden: Golden) -> None:
    golden("clone/copy.xml", copy())


def test_a_copy_is_the_node_that_it_is_said_to_be_when_it_boots() -> None:
    """Wherever the two definitions speak of the same thing, they say the same."""
    woken, booted = ET.fromstring(copy()), ET.fromstring(domain_xml(PLAN, PLAN.workers[0]))
    for path in ("name", "uuid", "title", "metadata/*", "devices/disk/source", "devices/serial/log"):
        assert [(one.tag, one.text, one.attrib) for one in woken.findall(path)] == [
            (one.tag, one.text, one.attrib) for one in booted.findall(path)
        ]
    for card in range(2):
        mine, theirs = (domain.findall("devices/interface")[card] for domain in (woken, booted))
        for part in ("mac", "source", "target", "model"):
            assert mine.find(part).attrib == theirs.find(part).attrib  # type: ignore[union-attr]


def test_the_machine_around_the_memory_stays_as_it_was() -> None:
    woken, kept = ET.fromstring(copy()), ET.fromstring(KEPT)
    for path in ("memory", "currentMemory", "vcpu", "os/*", "features/*", "cpu", "clock", "devices/controller"):
        assert [(one.tag, one.text, one.attrib) for one in woken.findall(path)] == [
            (one.tag, one.text, one.attrib) for one in kept.findall(path)
        ]
    assert [one.tag for one in woken.find("devices") or ()] == [one.tag for one in kept.find("devices") or ()]
    places = "devices/*/address"
    assert [one.attrib for one in woken.findall(places)] == [one.attrib for one in kept.findall(places)]


def test_nothing_of_the_template_is_left() -> None:
    text = copy()
    for word in ("template", ".unfinished", "06:00:00", "/dev/pts", "domain-1-", "f3cdcab7", "<seclabel", "vnet"):
        assert word not in text


def test_its_memory_is_a_file_that_it_does_not_write_to() -> None:
    woken = ET.fromstring(copy())
    (commandline,) = (one for one in woken if one.tag.endswith("}commandline"))
    words = [one.attrib["value"] for one in commandline]
    assert words[0::2] == ["-object", "-machine"]
    settings = dict(part.split("=") for part in words[1].split(",")[1:])
    assert settings["mem-path"] == str(FILE)
    assert settings["share"] == "off"
    assert settings["size"] == str(512 * 2**20)
    assert settings["id"] == RAM == qemu_stream.BLOCK.decode()
    assert words[3] == f"memory-backend={RAM}"


def test_a_node_that_has_one_card_is_made_from_a_template_that_has_one() -> None:
    plan = samples.plan(3, layout=PRIVATE)
    one_card = without("devices/interface[1]")(KEPT)
    woken = ET.fromstring(copy(one_card, plan=plan, macs=WITHOUT_MANAGEMENT.macs))
    assert [one.attrib["address"] for one in woken.findall("devices/interface/mac")] == [plan.workers[0].mac]
    with pytest.raises(VclusterError, match="has the cards mgmt0, lab0, not lab0"):
        copy(plan=plan)
    with pytest.raises(VclusterError, match="has the cards lab0, not mgmt0, lab0"):
        copy(one_card, macs=WITHOUT_MANAGEMENT.macs)


def without(path: str) -> Callable[[str], str]:
    """The kept domain without one of its parts."""

    def change(text: str) -> str:
        root = ET.fromstring(text)
        parent, _, name = path.rpartition("/")
        holder = root.find(parent) if parent else root
        assert holder is not None
        gone = holder.find(name)
        assert gone is not None
        holder.remove(gone)
        return ET.tostring(root, "unicode")

    return change


def other(old: str, new: str) -> Callable[[str], str]:
    """The kept domain with other words."""

    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda _: "", "cannot be read"),
        (lambda _: "no XML", "cannot be read"),
        (lambda text: text[:-20], "cannot be read"),
        (lambda _: "<network><devices/></network>", "is no domain but a network"),
        (without("devices"), "has no devices"),
        (without("memory"), "has no memory"),
        (without("devices/disk[1]"), "has no disk/target\\[@dev='vda'\\]"),
        (without("devices/disk[2]"), "has no disk/target\\[@dev='vdb'\\]"),
        (without("devices/disk[1]/source"), "has no source"),
        (without("devices/interface[1]"), "has no interface/mac\\[@address='06:00:00:00:00:01'\\]"),
        (without("devices/interface[2]/mac"), "has no interface/mac\\[@address='06:00:00:00:00:02'\\]"),
        (without("devices/interface[2]/address"), "has no address"),
        (other("06:00:00:00:00:02", "06:00:00:00:00:03"), "has no interface/mac"),
        (other("<memory unit='KiB'>524288", "<memory unit='KiB'>"), "has a memory of '' KiB"),
        (other("<memory unit='KiB'>524288", "<memory unit='KiB'>lots"), "has a memory of 'lots' KiB"),
        (other("<memory unit='KiB'>524288", "<memory unit='KiB'>0"), "has a memory of '0' KiB"),
        (other("<memory unit='KiB'>524288", "<memory unit='MiB'>512"), "has a memory of '512' MiB"),
    ],
)
def test_what_is_no_kept_domain_is_refused(spoil: Callable[[str], str], words: str) -> None:
    with pytest.raises(VclusterError, match=f"^the kept domain {words}"):
        copy(spoil(KEPT))


def test_a_path_that_qemu_would_cut_off() -> None:
    with pytest.raises(VclusterError, match="has a comma in it"):
        copy(ram=Path("/storage,big/ram"))
