"""Golden files of all texts for libvirt and the guests. UPDATE_GOLDEN=1 writes them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import samples
from vcluster.adapters.tsc import STEP_MHZ, rounded_mhz, tsc_mhz
from vcluster.images.recipes import guest_file
from vcluster.model.keys import Keys
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import DHCP, DIRECT, PRIVATE, Image, ImageLogin, Link, LinkShape, PortRange, StorageNode
from vcluster.render import actions, network_xml, node_actions, seed_files, ssh_files, xml_tree
from vcluster.render.actions import Action
from vcluster.render.common_files import common_files, etc_hosts, known_hosts
from vcluster.render.domain_xml import REBOOT_ON_PANIC, cpu_tuning, domain_xml
from vcluster.snapshots.template import template_of

Golden = Callable[[str, str], None]


@pytest.mark.parametrize(
    ("name", "image", "accel"),
    [
        ("direct-tcg", samples.DIRECT, "tcg"),
        ("direct-kvm", samples.DIRECT, "kvm"),
        ("ordinary-tcg", samples.ORDINARY, "tcg"),
    ],
)
def test_domain(golden: Golden, name: str, image: object, accel: str) -> None:
    plan = samples.plan(2, image=image, accel=accel)  # type: ignore[arg-type]
    golden(f"domain-{name}.xml", domain_xml(plan, plan.head))


def test_a_domain_with_a_limit_and_pins(golden: Golden) -> None:
    plan = samples.plan(2, vcpus=2, cpu_limit_percent=25, processors=(8, 0, 2))
    golden("domain-limited.xml", domain_xml(plan, plan.nodes[1]))


@pytest.mark.parametrize(
    ("percent", "period_us", "quota_us"),
    [(1, 100_000, 1000), (3, 33_333, 1000), (9, 11_111, 1000), (10, 10_000, 1000), (25, 10_000, 2500),
     (100, 10_000, 10_000)],
)  # fmt: skip
def test_the_limit_of_a_processor_is_a_part_of_a_short_period(percent: int, period_us: int, quota_us: int) -> None:
    (tuning,) = cpu_tuning(percent, [], [])
    assert [(part.tag, part.text) for part in tuning] == [("period", str(period_us)), ("quota", str(quota_us))]


@given(percent=st.integers(1, 100))
def test_the_kernel_accepts_each_limit(percent: int) -> None:
    """Both are 1 ms to 1 s (kernel/sched/core.c, libvirt's schema), and the share is right."""
    (tuning,) = cpu_tuning(percent, [], [])
    period_us, quota_us = (int(part.text or "") for part in tuning)
    assert 1000 <= quota_us <= period_us <= 1_000_000
    assert abs(quota_us / period_us * 100 - percent) < 0.001


def test_network_pool_volumes(golden: Golden) -> None:
    plan = samples.plan(2)
    server = plan.servers[0]
    golden("network.xml", network_xml.network_xml(plan.name, plan.owner, server.network))
    golden("pool.xml", network_xml.pool_xml(server.pool))
    golden("overlay.xml", network_xml.overlay_xml("node1.qcow2", size_bytes=8 * 2**30, backing=plan.image.disk))
    golden("seed-volume.xml", network_xml.blank_xml("node1.seed.iso", kind="raw", size_bytes=400_000))


@pytest.mark.parametrize(("name", "image"), [("direct", samples.DIRECT), ("ordinary", samples.ORDINARY)])
def test_seed(golden: Golden, name: str, image: object) -> None:
    plan = samples.plan(2, image=image)  # type: ignore[arg-type]
    files = seed_files.seed_files(plan, plan.workers[0], samples.keys(), guest_file=guest_file)
    for file, text in files.items():
        golden(f"seed-{name}/{file}", text)
    assert files["user-data"].startswith("#cloud-config\n")
    config = json.loads(files["user-data"].split("\n", 1)[1])
    assert config["ssh_pwauth"] is False
    assert "passwd" not in files["user-data"]


def test_guest_files(golden: Golden) -> None:
    plan, keys = samples.plan(3), samples.keys(3)
    share, common = node_actions.shares(plan)[0], common_files(plan, keys)
    golden("guest/hosts", common.hosts)
    golden("guest/known_hosts", known_hosts(common, plan.head, keys))
    golden("guest/hostfile", common.hostfile)
    golden("guest/nfs.conf", node_actions.nfs_server_settings())
    golden("guest/fstab", node_actions.mount_line(plan, plan.workers[0], share))
    golden("guest/sshd.conf", node_actions.sshd_settings(plan))
    golden("guest/groups", common.clustershell_groups)
    golden("guest/genders", common.genders)
    golden("guest/actions-head.json", actions_of(plan, plan.head))
    golden("guest/actions-worker.json", actions_of(plan, plan.workers[0]))


PRIVATE_OPTIONS: dict[str, object] = {
    "layout": PRIVATE,
    "addresses": DHCP,
    "stores": (StorageNode("node4", 1024), StorageNode("node2", 1)),
    "user": "student",
    "sudo_commands": ("/usr/bin/tcpdump", "/usr/sbin/ip"),
    "mpi_ports": PortRange(10000, 10100),
    "image_login": ImageLogin("debian", "env:IMAGE_PASSWORD"),
}


@pytest.mark.parametrize("node", ["node1", "node2", "node3"])
def test_a_private_cluster_with_two_storage_nodes(golden: Golden, node: str) -> None:
    plan, keys = samples.plan(5, **PRIVATE_OPTIONS), samples.keys(5)
    chosen = plan.node(node)
    golden(f"private/domain-{node}.xml", domain_xml(plan, chosen))
    for file, text in seed_files.seed_files(plan, chosen, keys, guest_file=guest_file).items():
        golden(f"private/{file}-{node}", text)
    golden(f"private/actions-{node}.json", actions_of(plan, chosen))


def test_the_ssh_config_of_a_private_cluster(golden: Golden) -> None:
    plan = samples.shared_plan(count=4, layout=PRIVATE)
    jumps = {"red": ssh_files.Jump("192.0.2.10", "student", 22), "blue": ssh_files.Jump("192.0.2.11", "student", 22)}
    config = ssh_files.ssh_config(plan, identity=Path("/id_ed25519"), known_hosts=Path("/known_hosts"), jumps=jumps)
    golden("private/ssh_config", config)
    assert [server.network is not None for server in plan.servers] == [True, False, False]
    assert [server.pool is not None for server in plan.servers] == [True, True, False]


def test_shared_folders_have_the_requested_order() -> None:
    plan = samples.plan(5, **PRIVATE_OPTIONS)
    assert [(share.node, share.target) for share in node_actions.shares(plan)] == [
        ("node4", "/home/student/cloud/0"),
        ("node2", "/home/student/cloud/1"),
    ]


def test_automount_units_have_systemds_escaped_names() -> None:
    assert node_actions.automount_unit("/home/mpi-user/cloud/0") == "home-mpi\\x2duser-cloud-0.automount"


def test_a_unit_has_all_its_sections() -> None:
    text = actions.unit_text(["Description=it"], ["ExecStart=/bin/it", "Restart=always"])
    assert text == (
        "[Unit]\nDescription=it\n\n[Service]\nExecStart=/bin/it\nRestart=always\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


@pytest.mark.parametrize("layout", [DIRECT, PRIVATE])
def test_mounts_wait_for_the_dhcp_lease(layout: str) -> None:
    plan, static = samples.plan(2, layout=layout, addresses=DHCP), samples.plan(2, layout=layout)
    found = node_actions.mount_actions(plan, plan.workers[0], watcher="")
    assert found[0] == {"do": "address", "address": "10.0.0.2"}
    assert "mount" in [action["do"] for action in found[1:]]
    for other_plan, node in ((plan, plan.head), (static, static.workers[0])):
        assert "address" not in [action["do"] for action in node_actions.mount_actions(other_plan, node, watcher="")]


def test_sshd_of_a_foreign_image_is_reloaded_after_a_change_of_its_settings() -> None:
    plan = samples.plan(2, image_login=ImageLogin("debian", "env:IMAGE_PASSWORD"))
    keys = samples.keys()
    found = node_actions.account_actions(plan, plan.head, keys, common_files(plan, keys))
    (settings,) = (action for action in found if action.get("path") == node_actions.SSHD_SETTINGS)
    argv = ["systemctl", "reload-or-restart", "ssh.service"]
    after = found[found.index(settings) + 1 :]
    assert {"do": "run", "argv": argv, "if_changed": [node_actions.SSHD_SETTINGS]} in after


def actions_of(plan: Plan, node: Node) -> str:
    keys = samples.keys(len(plan.nodes))
    return json.dumps([own_actions(plan, node, keys), node_actions.mount_actions(plan, node, watcher="")], indent=1)


def own_actions(plan: Plan, node: Node, keys: Keys) -> list[Action]:
    return node_actions.actions(plan, node, keys, common_files(plan, keys))


def test_users_files(golden: Golden) -> None:
    plan = samples.plan(2)
    config = ssh_files.ssh_config(
        plan, identity=Path("/state/clusters/lab/id_ed25519"), known_hosts=Path("/st ate/known_hosts"), jumps={}
    )
    golden("ssh_config", config)
    golden("known_hosts", ssh_files.known_hosts(plan, samples.keys()))


def test_only_an_image_whose_programs_end_preloads_nothing() -> None:
    """An image of an earlier version lacks the feature, and its programs need the library."""
    ends = replace(samples.DIRECT, features=(*samples.DIRECT.features, node_actions.MPI_ENDS))
    assert "LD_PRELOAD" in node_actions.mpi_environment(samples.plan())
    assert "LD_PRELOAD" not in node_actions.mpi_environment(samples.plan(image=ends))


def test_no_node_name_is_on_the_loopback_interface() -> None:
    plan = samples.plan(4)
    lines = [line.split() for line in etc_hosts(plan).splitlines()]
    for node in plan.nodes:
        assert [line[0] for line in lines if node.name in line[1:]] == [str(node.address)]


def test_the_admin_key_never_enters_a_guest() -> None:
    plan, keys = samples.plan(2), samples.keys()
    texts = [
        *seed_files.seed_files(plan, plan.head, keys, guest_file=guest_file).values(),
        json.dumps(own_actions(plan, plan.head, keys)),
    ]
    assert not any(keys.admin.private.strip() in text for text in texts)


def test_each_seed_holds_only_its_own_host_key() -> None:
    plan, keys = samples.plan(2), samples.keys()
    text = "".join(seed_files.seed_files(plan, plan.head, keys, guest_file=guest_file).values())
    assert "private node1" in text
    assert "private node2" not in text


@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), max_size=50))
def test_any_text_is_escaped_in_xml(text: str) -> None:
    tree = ET.fromstring(xml_tree.text_of(xml_tree.element("a", xml_tree.element("b", text, c=text))))
    assert [child.tag for child in tree.iter()] == ["a", "b"]
    assert (tree[0].text or "") == text
    assert tree[0].attrib == {"c": text}


def test_each_node_still_asks_for_one_other() -> None:
    plan, keys = samples.plan(4), samples.keys(4)
    addresses = [str(node.address) for node in plan.nodes]
    for place, node in enumerate(plan.nodes):
        (arp,) = [one for one in own_actions(plan, node, keys) if one["do"] == "arp"]
        assert arp["unknown"] == [addresses[(place + 1) % 4]]
        assert set(arp["macs"]) == set(addresses) - {addresses[place], *arp["unknown"]}


@pytest.mark.parametrize(("image", "names"), [(samples.DIRECT, []), (samples.ORDINARY, ["mpicc", "exportfs"])])
def test_the_programs_of_an_ordinary_image_are_required_first(image: Image, names: list[str]) -> None:
    plan, keys = samples.plan(2, image=image), samples.keys()
    first, *others = node_actions.actions(plan, plan.workers[0], keys, common_files(plan, keys))
    assert (first["do"] == "programs") is bool(names)
    assert {*names} <= {*first.get("names", ())}
    if names:  # a later start does not require them: then the file exists
        assert first["unless"] in [action["path"] for action in others if action["do"] == "file"]
        assert (
            first["unless"]
            not in seed_files.seed_files(plan, plan.workers[0], keys, guest_file=guest_file)["user-data"]
        )


@pytest.mark.parametrize(
    ("accel", "mhz", "argument"), [("tcg", 2450, " tsc_early_khz=2450000"), ("kvm", 2450, ""), ("tcg", 0, "")]
)
def test_an_emulated_node_gets_the_frequency_of_the_counter_that_its_clock_counts(
    accel: str, mhz: int, argument: str
) -> None:
    plan = samples.plan(accel=accel, facts=replace(samples.ROOMY, tsc_mhz=mhz))
    cmdline = ET.fromstring(domain_xml(plan, plan.head)).findtext("os/cmdline")
    assert cmdline == f"{samples.DIRECT.kernel_cmdline} {REBOOT_ON_PANIC}{argument}"
    assert template_of(plan, plan.head).tsc_mhz == plan.server(plan.head.server).tsc_mhz


@pytest.mark.parametrize(("ticks", "mhz"), [(24_454_310, 2450), (24_449_000, 2440), (9_999_990, 1000)])
def test_the_frequency_of_the_counter_is_rounded(ticks: int, mhz: int) -> None:
    assert rounded_mhz(ticks, 10_000_000) == mhz


def test_the_frequency_of_the_counter_is_measured() -> None:
    assert 0 < tsc_mhz() < 10_000
    assert abs(tsc_mhz() - tsc_mhz()) <= STEP_MHZ


def test_delays_of_nodes_are_made_by_a_service() -> None:
    """It makes them at each boot. Its end removes them, unless it restarts."""
    (removal,) = node_actions.delay_actions({}, program="text")
    program, unit, service = node_actions.delay_actions({"to": (5000, 1000, 2000)}, program="text")
    assert "\nBefore=vcluster-ready.service\n" in unit["text"]  # a node that is ready has its delays
    assert (removal["do"], removal["paths"]) == ("no_service", [unit["path"], program["path"]])
    run = "/usr/bin/python3 -ISB /usr/lib/vcluster/delays.py"
    assert f"\nExecStart={run} set lab0 vcluster-delays.service - 5000,1000,2000\n" in unit["text"]
    assert f"\nExecStop={run} end lab0 vcluster-delays.service\n" in unit["text"]
    assert service["restart_if"] == [program["path"], unit["path"]]


def test_offloads_of_nodes_are_off_while_links_have_limits() -> None:
    """A service turns them off at each boot, and on when it ends."""
    plan = samples.plan(2)
    (removal,) = node_actions.offload_actions(plan, program="text")
    limited = replace(plan, links=(Link("node2", "to", LinkShape(loss_ppm=1)),))
    program, unit, service = node_actions.offload_actions(limited, program="text")
    assert "\nBefore=vcluster-ready.service\n" in unit["text"]
    assert (removal["do"], removal["paths"]) == ("no_service", [unit["path"], program["path"]])
    assert program["text"] == "text"
    assert "\nExecStart=/usr/bin/python3 -ISB /usr/lib/vcluster/offloads.py off lab0\n" in unit["text"]
    assert "\nExecStop=/usr/bin/python3 -ISB /usr/lib/vcluster/offloads.py restore lab0\n" in unit["text"]
    assert service["restart_if"] == [program["path"], unit["path"]]
