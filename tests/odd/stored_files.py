"""Files: ledgers, keys, manifests, files of users and of nodes. What vcluster writes is read back to the same value."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from ipaddress import IPv4Network
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import yaml

from tests import samples
from tests.captured_frames import MS, Recording, mac, tcp, udp
from tests.odd import values
from tests.odd.entry_points import EntryPoint
from vcluster.adapters import image_stamps
from vcluster.adapters.ssh import openssh_config, ssh_identities
from vcluster.agent import confinement, image_store, operations, snapshot_manifest, snapshot_store
from vcluster.cli.output.traffic import traffic_report
from vcluster.commands.servers import capture_report, support
from vcluster.commands.steps import inventory
from vcluster.config.environment_folders import folder_of
from vcluster.fleet import calibrations, ledger, observation
from vcluster.fleet.ledger import ClusterFiles, Ledger, StageTime
from vcluster.frames import pcapng
from vcluster.guest import apply, authorize, discover
from vcluster.images import disk_files
from vcluster.images.store import ImageStore, Manifest
from vcluster.model import codec, naming
from vcluster.model.facts import Facts
from vcluster.model.plan import Plan
from vcluster.model.spec import Spec
from vcluster.model.traffic.calibration_record import CalibratedPath, Calibration
from vcluster.planning.planner import make_plan
from vcluster.render import seed_files, ssh_files
from vcluster.stages import payload, provision

STATE = Path("../state")  # the current folder is next to it
PLAN = samples.plan(3)
CALIBRATION = Calibration("now", (CalibratedPath(("red",), "node1", "node2", 900.5, 800.0, 1000.0, 10**8),))
RESERVED = ("localhost", "mgmt0", "lab0", "all")
DIGEST = "sha256-" + "1" * 64


def entry_points() -> list[EntryPoint]:
    """Files that are read, and values that are written and read back."""
    return [*_of_clusters(), *_of_images(), *_of_users(), *_of_servers(), *_written()]


# Clusters


def _files() -> ClusterFiles:
    files = ClusterFiles(STATE, "odd")
    files.folder.mkdir(exist_ok=True, parents=True)
    return files


def _of_clusters() -> list[EntryPoint]:
    good = codec.to_plain(Ledger(ledger.VERSION, "ready", "", replace(PLAN, name="odd")))
    times = codec.to_plain((StageTime("boot", "node1", 0.5, 1.5),))
    return [
        EntryPoint("ledger", values.json_bytes(good), _ledger),
        EntryPoint("ledger in a support report", values.json_bytes(good), _support, ("ledger.json",)),
        EntryPoint("file of a server in a support report", values.json_bytes(good), _support_content),
        EntryPoint("keys of a cluster", values.json_bytes(codec.to_plain(samples.keys(3))), _keys, ("cluster odd",)),
        EntryPoint("times of a create", values.json_bytes(times), _times),
        EntryPoint("calibration of a cluster", values.json_bytes(codec.to_plain(CALIBRATION)), _calibration),
        EntryPoint("owner id of a state folder", values.damaged(b"0badcafe0badcafe\n"), _owner, ("owner",)),
        EntryPoint("verdicts about KVM", values.json_bytes({"x": {"kvm_works": True, "reason": ""}}), _verdicts),
        EntryPoint(
            "names of nodes", values.near("node[1-3]", "red[01-05],head", "10.0.0.[101-105]"), _nodes, ("node",)
        ),
        EntryPoint("owner label", values.near("vcluster:lab:0badcafe", "vcluster-lab-0badcafe"), _labels),
    ]


def _ledger(content: bytes) -> None:
    files = _files()
    files.ledger.write_bytes(content)
    found, _, _ = files.read_ledger(), files.find_owner(), files.is_of_another_version()
    if found is not None:
        _use_plan(found.plan)
        files.write_ledger(found)
        assert files.read_ledger() == found


def _support(content: bytes) -> None:
    files = _files()
    files.ledger.write_bytes(content)
    support._plan(SimpleNamespace(files=lambda _: files), "odd")  # type: ignore[arg-type]


def _support_content(content: bytes) -> None:
    support._content("x.json", content.decode(errors="replace"))


def _use_plan(plan: Plan) -> None:
    """Use a plan that was accepted, as commands do."""
    names = [node.name for node in plan.nodes]
    assert plan.head.name == names[0]
    assert inventory.describe_down({}) == ""
    config = ssh_files.ssh_config(plan, identity=Path("/x"), known_hosts=Path("/y"), jumps={})
    assert config.count("\nHost ") == len(names) - 1
    naming.folded(names)


def _keys(content: bytes) -> None:
    files = _files()
    files.keys.write_bytes(content)
    keys = files.read_keys()
    files.write_keys(keys)
    assert files.read_keys() == keys


def _times(content: bytes) -> None:
    files = _files()
    files.timing.write_bytes(content)
    found = files.read_timing()
    files.write_timing(found)
    assert files.read_timing() == found


def _calibration(content: bytes) -> None:
    files = _files()
    (files.folder / calibrations.NAME).write_bytes(content)
    if found := calibrations.read(files):
        calibrations.write(files, found)
        assert calibrations.read(files) == found


def _owner(content: bytes) -> None:
    folder = STATE / "clusters"
    folder.mkdir(exist_ok=True)
    (folder / "owner").write_bytes(content)
    assert naming.is_owner(ledger.read_owner(folder))


def _verdicts(content: bytes) -> None:
    path = STATE / "clusters/kvm.json"
    path.write_bytes(content)
    observation._write(path, "y", {"kvm_works": False, "reason": ""})
    assert observation._read(path)["y"] == {"kvm_works": False, "reason": ""}


def _nodes(text: str) -> None:
    names = naming.expand(text)
    assert 1 <= len(names) <= naming.NODES_MAX


def _labels(text: str) -> None:
    for found in (naming.parse_alias(text), naming.parse_table_name(text)):
        assert found is None or naming.is_owner(found[1])


# Images and snapshots


def _of_images() -> list[EntryPoint]:
    image = Manifest("odd", DIGEST, "test", "now", 1, "", (), "", {"disk.qcow2": "0"})
    files = {name: snapshot_manifest.ManifestFile(1, "0") for name in snapshot_manifest.FILES}
    snapshot = snapshot_manifest.SnapshotManifest("odd", "now", DIGEST, {"qemu": "7.2"}, "<x/>", [0, 0], files)
    document = {"format": snapshot_manifest.FORMAT, **asdict(snapshot)}
    delivery = {"digest": DIGEST, "name": "disk.qcow2", "sizes": {"disk.qcow2": 4}}
    return [
        EntryPoint("manifest of an image", values.json_bytes(codec.to_plain(image)), _image_manifest),
        EntryPoint("stamps of an image", values.json_bytes({"disk.qcow2": [4, 1]}), _stamps),
        EntryPoint("manifest of an image in use", values.json_bytes(codec.to_plain(image)), _image_problem),
        EntryPoint("manifest of a snapshot", values.json_bytes(document), _snapshot_manifest, ("manifest",)),
        EntryPoint("delivery of an image", values.changed(delivery), _deliver),
        EntryPoint("key of a snapshot", values.near("odd-1", ".unfinished-odd"), _snapshot_key),
        EntryPoint(
            "head of a disk", values.damaged(bytes(446) + bytes(64) + b"\x55\xaa" + b"EFI PART" + bytes(60)), _disk
        ),
    ]


def _image_manifest(content: bytes) -> None:
    store = ImageStore(Path("../images"))
    folder = store.root / DIGEST
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(content)
    for found in store.images():
        assert found.digest == DIGEST
        assert all((folder / name).resolve().parent == folder.resolve() for name in found.files)
        store.verify(found)
        store.size_bytes(found)
        store.find(DIGEST)


def _stamped() -> Path:
    folder = STATE / "clusters/stamped"
    folder.mkdir(exist_ok=True)
    (folder / "disk.qcow2").write_bytes(b"QFI\xfb" + bytes(4))
    return folder


def _stamps(content: bytes) -> None:
    (_stamped() / image_stamps.STAMPS).write_bytes(content)
    (_stamped() / "manifest.json").write_text('{"files": {"disk.qcow2": "0"}}')
    assert image_stamps.problem(_stamped() / "manifest.json")


def _image_problem(content: bytes) -> None:
    (_stamped() / "manifest.json").write_bytes(content)
    assert image_stamps.problem(_stamped() / "manifest.json")


def _snapshot_manifest(content: bytes) -> None:
    folder = STATE / "clusters/snapshots/odd"
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "manifest.json").write_bytes(content)
    root = str(folder.parent)
    for one in snapshot_store.list_snapshots(root):
        json.dumps(one)
    found = snapshot_store.check_snapshot(root, "odd", {"qemu": "7.2"})
    assert found["wrong"] or found["is_there"]
    manifest = snapshot_manifest.read_manifest(folder)
    assert json.loads(json.dumps({"format": snapshot_manifest.FORMAT, **asdict(manifest)})) is not None


def _deliver(given: Any) -> None:
    """Receive an image as the agent does, after it has checked the types of arguments."""
    root = str(Path("../images").absolute())
    if not isinstance(given, dict) or not isinstance(given.get("digest"), str):
        return
    name, sizes = given.get("name"), given.get("sizes")
    try:
        if isinstance(sizes, dict) and all(isinstance(size, int) for size in sizes.values()):
            image_store.begin_image(root, given["digest"], sizes)
        if isinstance(name, str):
            image_store.receive_image_file(root, given["digest"], name, 0, _Body(), 4)
    finally:
        for folder, descriptor in list(image_store._received.items()):
            os.close(descriptor)
            del image_store._received[folder]


class _Body:
    def read(self, limit: int = -1) -> bytes:
        return b"dead"[:limit]


def _snapshot_key(key: str) -> None:
    root = str((STATE / "clusters/snapshots").absolute())
    snapshot_store.remove_snapshots(root, key)
    snapshot_store.permit_snapshot(root, key)
    snapshot_store.check_snapshot(root, key, {})
    snapshot_store.drop_snapshot(root, key)


def _disk(head: bytes) -> None:
    disk_files.partitions_end(head)


# Users


def _of_users() -> list[EntryPoint]:
    lines = b"# d\xe9j\xe0\nssh-rsa AAAA mine\nssh-ed25519 AAAA vcluster:lab:0badcafe\n"
    resolved = "hostname server2\nuser me\nport 22\nidentityfile ~/.ssh/id\nuserknownhostsfile ~/.ssh/known_hosts\n"
    return [
        EntryPoint("authorized_keys", values.damaged(lines), _authorized_keys),
        EntryPoint(
            "private key", values.damaged(b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"), _private_key, ("key",)
        ),
        EntryPoint("public key", values.damaged(b"ssh-rsa AAAA mine\n"), _public_key),
        EntryPoint("output of ssh -G", values.near(resolved, inside=values.texts), _ssh_output, ("ssh",)),
        EntryPoint("host for ssh", values.near("me@server2:22", "[::1]:22"), _host, ("is not a host", "is not a port")),
        EntryPoint("script", values.damaged(b"#!/bin/sh\n"), _script, ("script ",)),
        EntryPoint("captured file", _captures(), _captured, ("captured: ",)),
        EntryPoint("path of a payload", values.near("setup.sh", "."), _payload),
    ]


def _authorized_keys(content: bytes) -> None:
    path, key = str(STATE / "clusters/authorized_keys"), "ssh-ed25519 AAAA vcluster:odd:0badcafe"
    Path(path).write_bytes(content)
    authorize.change(path, {"do": "add", "line": key})
    assert Path(path).read_bytes().endswith(key.encode() + b"\n")
    authorize.change(path, {"do": "remove", "mark": "vcluster:odd:0badcafe"})
    kept = content if content.endswith(b"\n") or not content else content + b"\n"
    if b"vcluster:odd" not in content:
        assert Path(path).read_bytes() == kept


def _private_key(content: bytes) -> None:
    path = STATE / "clusters/id"
    path.write_bytes(content)
    path.chmod(0o600)
    ssh_identities.load_key(path)


def _public_key(content: bytes) -> None:
    (STATE / "clusters/id.pub").write_bytes(content)
    ssh_identities.public_part(STATE / "clusters/id")


def _ssh_output(text: str) -> None:
    openssh_config._target("server2", text)


def _host(text: str) -> None:
    openssh_config.split_host(text)


def _captures() -> values.Make:
    """A captured file that is damaged: anywhere, in its plan, or in a frame, whose bytes are those of a node."""
    made = Recording(2, [(1, 2)])
    good = [tcp(1, 2, 0, 10), udp(1, 2), mac(2) + mac(1) + b"\x08\x06" + bytes(46)]
    for frame in good:
        made.cross(0, MS, frame)
    plan = values.json_bytes({"node": "node1", "mac": "02:00:00:00:00:01"})
    connection = values.json_bytes({"connection": [{"node": "node1", "address": "10.0.0.1", "port": 1, "rank": 0}] * 2})

    def with_comment(random: Random) -> bytes:
        comment = random.choice((plan, connection))(random).decode(errors="replace")
        return pcapng.section_header("x", ['{"cluster": "lab"}', comment]) + made.file()[len(made.head()) :]

    def with_frame(random: Random) -> bytes:
        frames = [values.damaged(random.choice(good))(random) for _ in range(3)]
        blocks = [pcapng.packet(random.randrange(2), at, each, len(each), 1 + at % 2) for at, each in enumerate(frames)]
        return made.file() + b"".join(blocks)

    return values.one_of(values.damaged(made.file()), with_comment, with_frame)


def _captured(content: bytes) -> None:
    path = STATE / "captured"
    path.write_bytes(content)
    document = codec.to_json(traffic_report.document(path, capture_report.analyse(path)))
    report = json.loads(document)
    assert all(line.isprintable() for line in traffic_report.text(report).splitlines())
    assert traffic_report.csv_text(report).count("\n") == 1 + len(report["pairs"]) + len(report["rank_pairs"])


def _script(content: bytes) -> None:
    path = STATE / "clusters/script"
    path.write_bytes(content)
    provision.Job.read(path, None)


def _payload(text: str) -> None:
    if text and "\0" not in text and ".." not in text and not text.startswith("/"):
        payload.read(Path(text))


# Servers and nodes


def _of_servers() -> list[EntryPoint]:
    label = b'# vcluster: {"cluster": "lab", "domain": "lab.node1", "by": "0badcafe"}\n'
    leases = b"0 02:00:00:00:00:99 10.0.0.200 laptop *\n1999999999 02:00:00:00:00:98 10.0.0.201 * 01\n"
    return [
        EntryPoint("label of a profile", values.damaged(label), _profile),
        EntryPoint("label of a folder", values.damaged(b"vcluster:lab:0badcafe\n"), _folder_label),
        EntryPoint("leases of dnsmasq", values.damaged(leases), _leases),
        EntryPoint("table in a node", values.damaged(b"server:/x /mnt/x nfs rw 0 0\n# x\n"), _table),
    ]


def _profile(content: bytes) -> None:
    path = STATE / "clusters/profile"
    path.write_bytes(content)
    found = confinement._label(path)
    assert found is None or all(isinstance(value, str) for value in found.values())


def _folder_label(content: bytes) -> None:
    (STATE / "clusters" / operations.LABEL).write_bytes(content)
    assert isinstance(operations.labelled_folders(str(STATE))["clusters"], str)


def _leases(content: bytes) -> None:
    path = STATE / "clusters/leases"
    path.write_bytes(content)
    discover.leases(str(path))


def _table(content: bytes) -> None:
    path = STATE / "clusters/table"
    path.write_bytes(content)
    apply.do_line({"path": str(path), "key": "/data", "text": "disk /data ext4\n"}, [])
    assert b"disk /data ext4\n" in path.read_bytes()


# What is written is read back


def _written() -> list[EntryPoint]:
    folders = values.one_of(lambda random: values.characters(random) or "x", values.arguments)
    return [
        EntryPoint("seed and ledger of a plan", _specs, _write_plan),
        EntryPoint("ssh_config in a folder", folders, _write_ssh_config, ("VCLUSTER_STATE_DIR",)),
    ]


def _specs(random: Random) -> tuple[tuple[str, ...], int, str, int]:
    """Names of nodes, an MTU, a user and an amount of memory."""
    names = {_name(random) for _ in range(random.randint(1, 4))}
    return tuple(sorted(names)), random.randint(576, 9000), _name(random), random.randint(256, 4096)


def _name(random: Random) -> str:
    inner = "".join(random.choice("abcxyz019-") for _ in range(random.randint(0, 20)))
    name = random.choice("abcnyt") + (inner + random.choice("az09") if inner else "")
    return name if name not in RESERVED else "x"


def _write_plan(drawn: tuple[tuple[str, ...], int, str, int]) -> None:
    names, mtu, user, memory_mib = drawn
    spec = Spec(
        name="odd",
        mode="local",
        node_names=names,
        mtu=mtu,
        user=user,
        memory_mib=memory_mib,
        subnet=IPv4Network("10.0.0.0/24"),
    )
    facts = {"localhost": Facts(memory_free_mib=10**7, disk_free_mib=10**7, cpus=64)}
    plan = make_plan(spec, facts, image=samples.DIRECT, owner=samples.OWNER)
    assert codec.from_json(codec.to_json(plan), Plan) == plan
    pair = samples.pair("x")
    keys = replace(samples.keys(1), hosts=dict.fromkeys(names, pair))
    for node in plan.nodes:
        written = seed_files.seed_files(plan, node, keys, guest_file=lambda name: name)
        assert yaml.safe_load(written["meta-data"])["local-hostname"] == node.name
        assert yaml.safe_load(written["network-config"]) == json.loads(written["network-config"])
        assert yaml.safe_load(written["user-data"])["ssh_keys"]["ed25519_private"] == pair.private
    lines = ssh_files.known_hosts(plan, keys).splitlines()
    assert [line.split()[0].split(",")[0] for line in lines] == list(names)


def _write_ssh_config(folder: str) -> None:
    place = folder_of({"VCLUSTER_STATE_DIR": f"/{folder}"}, "VCLUSTER_STATE_DIR")
    assert place is not None
    quoted = ssh_files.quoted(place)
    assert "\n" not in quoted
    assert _unquoted(quoted) == str(place)


def _unquoted(text: str) -> str:
    """A path as OpenSSH reads it; `tests/ssh/test_written_ssh_config.py` compares this with `ssh -G`."""
    inner = text
    if text.startswith('"'):
        assert text.endswith('"')
        inner, rest = "", text[1:-1]
        while rest:
            step = 2 if rest[0] == "\\" else 1
            inner, rest = inner + rest[step - 1 : step], rest[step:]
    else:
        assert not set(text) & set(" \t\"'#\\"), text
    return inner.replace("%%", "%")
