"""The configuration file: the values of good files, and the errors in bad files."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, is_dataclass, replace
from dataclasses import fields as dataclass_fields
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vcluster.config import config_file, ini_file, options, readers, request
from vcluster.errors import RequestError
from vcluster.model.facts import Facts
from vcluster.model.spec import (
    DEFAULT_IMAGE,
    AddressRange,
    ImageLogin,
    Link,
    LinkShape,
    Login,
    PortRange,
    ServerSpec,
    Spec,
    StorageNode,
)
from vcluster.planning import addressing

SOURCE = Path("config.ini")
TEMPLATE = Path(__file__).parent.parent.parent / "config.template"

SMALL = """\
[cluster]
nodes = 4
[switch]
host = server2
[server server1]
host = localhost
[server server3]
"""


def parse(text: str, **overrides: str) -> request.CreateRequest:
    return config_file.parse(text, source=SOURCE, overrides=overrides)


def errors_in(text: str, *, is_private: bool = True, **overrides: str) -> list[str]:
    with pytest.raises(RequestError) as raised:
        config_file.parse(text, source=SOURCE, overrides=overrides, is_private=is_private)
    return raised.value.message.splitlines()


def changed(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private key below the home directory."""
    path = tmp_path / ".ssh" / "id_ed25519"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    return path


# Good files


def test_a_small_file() -> None:
    switch = ServerSpec("server2", Login("server2"))
    assert parse(SMALL) == request.CreateRequest(
        Spec(
            name="lab",
            mode="shared",
            node_names=("node1", "node2", "node3", "node4"),
            servers=(ServerSpec("server1"), ServerSpec("server3", Login("server3"))),
            switch=switch,
            timeout_s=900,
        ),
        image=DEFAULT_IMAGE,
        accel="auto",
        boot="auto",
    )


def test_every_key(key: Path) -> None:
    fingerprint = "SHA256:" + "x" * 43
    asked = parse(f"""\
; all there is
[cluster]
name: blue
nodes = 3
names = head,red[01-02]
image = alpine3
vcpus = 2
cpu_limit = 25 %
pin = 0-3, 8
memory = 1G
disk: 16 GiB
subnet = 10.7.0.0/24
mtu = 8950
boot = cold
accel = tcg
timeout = 120.5 s
policy = pack
vni_base = 700
vxlan_port = 8472
layout = private
addresses = dhcp
addresses_from = 10.7.0.[9,21-22]
dhcp_range = 10.7.0.100 - 10.7.0.200
storage = red[01-02]: 1TiB, head:20
user = ada
sudo_commands = /usr/bin/ls, /usr/sbin/tcpdump
mpi_ports = 10000:10100
image_user = root
image_password = env:IMAGE_PASSWORD
provision = setup.sh
payload = /srv/my stuff

[switch]
host = student@10.0.7.2:2222
password = env:LAB_PASSWORD
fingerprint = {fingerprint}
interface = eth1.7
address = 192.168.7.2
timeout = 5

[server red]
host = localhost
address = 192.168.7.3
nodes = 1
[server blue]
host = server3.example.org
user = root
port = 23
key = ~/.ssh/id_ed25519
cpu = 8
ram = 4 GiB
hdd = 1 TiB
path = /srv/vms/
pin = 7,0-4:2
""")
    assert asked == request.CreateRequest(
        Spec(
            name="blue",
            mode="shared",
            node_names=("head", "red01", "red02"),
            servers=(
                ServerSpec("red", nodes=1, address=IPv4Address("192.168.7.3")),
                ServerSpec(
                    "blue",
                    Login("server3.example.org", "root", 23, key),
                    cpus=8,
                    memory_mib=4096,
                    disk_gib=1024,
                    path=Path("/srv/vms"),
                    processors=(7, 0, 2, 4),
                ),
            ),
            switch=ServerSpec(
                "switch",
                Login("10.0.7.2", "student", 2222, None, "env:LAB_PASSWORD", fingerprint),
                interface="eth1.7",
                address=IPv4Address("192.168.7.2"),
                timeout_s=5,
            ),
            vni_base=700,
            vxlan_port=8472,
            policy="pack",
            vcpus=2,
            memory_mib=1024,
            disk_gib=16,
            subnet=IPv4Network("10.7.0.0/24"),
            mtu=8950,
            timeout_s=120.5,
            layout="private",
            addresses="dhcp",
            node_addresses=tuple(map(IPv4Address, ("10.7.0.9", "10.7.0.21", "10.7.0.22"))),
            dhcp_range=AddressRange(IPv4Address("10.7.0.100"), IPv4Address("10.7.0.200")),
            stores=(StorageNode("red01", 1024), StorageNode("red02", 1024), StorageNode("head", 20)),
            user="ada",
            sudo_commands=("/usr/bin/ls", "/usr/sbin/tcpdump"),
            mpi_ports=PortRange(10000, 10100),
            image_login=ImageLogin("root", "env:IMAGE_PASSWORD"),
            cpu_limit_percent=25,
            processors=(0, 1, 2, 3, 8),
        ),
        image="alpine3",
        accel="tcg",
        boot="cold",
        provision=Path.cwd() / "setup.sh",
        payload=Path("/srv/my stuff"),
    )


@pytest.mark.parametrize("text", ["4096", "4096 MiB", "4096M", "4096mib", "4 GiB", "4G", "4g", "4\tGiB"])
def test_sizes(text: str) -> None:
    assert parse(changed("nodes = 4", f"nodes = 4\nmemory = {text}")).spec.memory_mib == 4096


def test_byte_order_marks_and_line_ends_of_editors_are_ignored() -> None:
    assert parse("\ufeff" + SMALL.replace("\n", "\r\n")) == parse(SMALL)
    assert parse("\n  \n\t# x\n" + SMALL.replace(" = ", "\t:  ").replace("[switch]", "[ switch ]  ")) == parse(SMALL)


@pytest.mark.parametrize("user", ["20231234", "LAB\\student", "ada+lab@example.org"])
def test_logins_of_universities_are_taken(user: str) -> None:
    for section in (f"host = {user}@server1", f"host = server1\nuser = {user}"):
        spec = parse(f"[cluster]\nnodes = 2\n[switch]\nhost = server2\n[server one]\n{section}\n").spec
        assert spec.servers[0].login is not None
        assert spec.servers[0].login.user == user


@pytest.mark.parametrize(
    ("switch", "server"),
    [
        ("server = server3", "host = a"),
        ("server = server1", "host = a"),
        ("host = a", "host = a"),
        ("host = A", "host = root@a"),
        ("host = root@a:22", "host = a\nuser = root\nport = 22\nnodes = 2"),
        ("host = a\nuser = root\npassword = x", "host = a\nuser = root\npassword = x"),
        ("host = a\naddress = 10.9.9.9", "host = a\naddress = 10.9.9.9"),
        ("host = server1", "host = a"),
    ],
)
def test_a_switch_on_a_server_that_carries_nodes_uses_its_section(switch: str, server: str) -> None:
    text = f"[cluster]\nnodes = 4\n[server server1]\n[server server3]\n{server}\n[switch]\n{switch}\n"
    spec = parse(text).spec
    assert any(spec.switch is one for one in spec.servers)


@pytest.mark.parametrize(
    ("host", "name"),
    [("server2", "server2"), ("localhost", "localhost"), ("10.0.0.2", "switch"), ("sw.example.org", "switch"),
     ("red", "switch"), ("Server2", "switch")],
)  # fmt: skip
def test_the_name_of_the_switch_server(host: str, name: str) -> None:
    text = f"[cluster]\nnodes = 1\n[switch]\nhost = {host}\n[server red]\nhost = elsewhere\n"
    switch = parse(text).spec.switch
    assert switch.name == name
    assert switch.login == (None if host == "localhost" else Login(host))


@pytest.mark.parametrize(
    ("cluster", "red", "blue", "count"),
    [
        ("nodes = 3", "", "", 3),
        ("names = a,b", "", "", 2),
        ("", "nodes = 1", "nodes = 4", 5),
        ("nodes = 5", "nodes = 1", "nodes = 4", 5),
        ("nodes = 5", "nodes = 1", "", 5),
        ("names = n[1-5]", "", "nodes = 4", 5),
        ("", "cpu = 2\nram = 4G\nhdd = 80", "cpu = 8\nram = 1536\nhdd = 80", 5),
        ("vcpus = 2", "cpu = 2\nram = 4G\nhdd = 80", "nodes = 2\ncpu = 4", 3),
        ("disk = 40", "cpu = 9\nram = 9G\nhdd = 80", "nodes = 1", 3),
    ],
)
def test_the_number_of_nodes(cluster: str, red: str, blue: str, count: int) -> None:
    text = f"[cluster]\n{cluster}\n[switch]\nhost = s\n[server red]\n{red}\n[server blue]\n{blue}\n"
    assert len(parse(text).spec.node_names) == count


def test_options_replace_keys_of_the_file() -> None:
    asked = parse(SMALL, nodes="2", memory="1 GiB", image="other", policy="pack", name="mine")
    assert (asked.spec.name, len(asked.spec.node_names), asked.spec.memory_mib) == ("mine", 2, 1024)
    assert (asked.image, asked.spec.policy) == ("other", "pack")
    assert parse(SMALL, names="a,b").spec.node_names == ("a", "b")
    assert parse(SMALL.removeprefix("[cluster]\nnodes = 4\n"), nodes="2").spec.node_names == ("node1", "node2")


# Passwords


@pytest.mark.parametrize(
    ("password", "source"),
    [
        ("hunter2", "file:{}/config.ini#server server3"),
        ("a # b ; c % d = e : [f] 'g' \"h\" $(i)", "file:{}/config.ini#server server3"),
        ("file:/etc/shadow#x", "file:{}/config.ini#server server3"),
        ("env:LAB", "env:LAB"),
        ("ask", "ask"),
    ],
)
def test_a_password_never_leaves_the_file(password: str, source: str) -> None:
    spec = parse(f"{SMALL}password = {password}\n").spec
    login = spec.servers[1].login
    assert login is not None
    assert login.password == source.format(Path.cwd())
    assert "hunter2" not in repr(spec)


def test_a_file_with_a_password_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "config.ini"
    path.write_text(f"{SMALL}password = hunter2\n")
    path.chmod(0o644)
    with pytest.raises(RequestError) as raised:
        config_file.read(path)
    assert raised.value.exit_code == 2
    assert raised.value.message == (
        f"{path}:8: [server server3] password: other users can read this file (chmod 600 {path})"
    )
    path.chmod(0o600)
    login = config_file.read(path).spec.servers[1].login
    assert login
    assert login.password == f"file:{path}#server server3"


@pytest.mark.parametrize("password", ["env:LAB", "ask"])
def test_a_file_without_a_password_may_be_open(password: str) -> None:
    assert config_file.parse(f"{SMALL}password = {password}\n", source=SOURCE, is_private=False)


def test_no_message_and_no_repr_holds_a_password() -> None:
    text = f"""{SMALL}password = hunter2
password = hunter2
passwort = hunter2
 password = hunter2
password hunter2
password my=hunter2
key = /nowhere
[switch]
password = env:hunter2!
"""
    lines = errors_in(text, is_private=False)
    assert len(lines) == 11
    assert "hunter2" not in "\n".join(lines)


# Bad files


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        # lines
        ("[switch]", "[switch", "3: this line has no ] after the section name"),
        ("[switch]", "[switch] # it", "3: this line has text after the ]; write comments on separate lines"),
        ("nodes = 4", "nodes = 4\nfour", "3: this line is neither [section] nor key = value"),
        ("nodes = 4", "nodes = 4\n= 4", "3: this line is neither [section] nor key = value"),
        ("nodes = 4", "nodes = 4\n  and more", "3: this line begins with a space; remove it, and write each value on "
         "one line"),
        ("nodes = 4", "  nodes = 4", "2: this line begins with a space; remove it, and write each value on one line"),
        ("nodes = 4", "nodes = 4\rx", "2: this line contains a control character"),
        ("nodes = 4", "nodes = 4\nname = \x1b[1mx", "3: this line contains a control character"),
        ("nodes = 4", "nodes = 4\u2028name = x", "2: this line contains a control character"),
        ("[cluster]", "name = lab\n[cluster]", "1: this line is before the first [section]; write [cluster] above it"),
        ("nodes = 4", "nodes = 4\nnodes = 5", "3: [cluster] nodes: is a duplicate; the first is on line 2"),
        ("[switch]", "[cluster]\n[switch]", "3: [cluster]: is a duplicate; the first is on line 1"),
        ("[server server3]", "[server server3]\n[server  server1]", "8: [server server1]: is a duplicate; the first "
         "is on line 5"),
        # sections and keys
        ("[cluster]", "[Cluster]\n[cluster]", "1: [Cluster]: unknown section; did you mean [cluster]?"),
        ("[cluster]", "[servers]\n[cluster]", "1: [servers]: unknown section; did you mean [server NAME]?"),
        ("[cluster]", "[server]\n[cluster]", "1: [server]: unknown section; did you mean [server NAME]?"),
        ("[cluster]", "[switch s]\n[cluster]", "1: [switch s]: unknown section; did you mean [switch]?"),
        ("[cluster]", "[]\n[cluster]", "1: []: unknown section; known sections are [cluster], [switch], [server "
         "NAME] and [link NODES]"),
        ("[cluster]", "[xyz]\n[cluster]", "1: [xyz]: unknown section; known sections are [cluster], [switch], "
         "[server NAME] and [link NODES]"),
        ("nodes = 4", "nodes = 4\nname = \"mylab\"", "3: [cluster] name: cluster name '\"mylab\"' is not a name; "
         "lower-case letters, digits and hyphens, a letter first, at most 32 characters; remove the quotes"),
        ("nodes = 4", "nodes = '4'", "2: [cluster] nodes: \"'4'\" is not a number; 1 to 1023; remove the quotes"),
        ("nodes = 4", "nodes = 4\nmemmory = 512", "3: [cluster] memmory: unknown key; did you mean memory?"),
        ("nodes = 4", "node = 4", "2: [cluster] node: unknown key; did you mean nodes?"),
        ("nodes = 4", "nodes = 4\nName = x", "3: [cluster] Name: unknown key; did you mean name?"),
        ("nodes = 4", "nodes = 4\nram = 1G", "3: [cluster] ram: unknown key; did you mean memory?"),
        ("host = localhost", "host = localhost\nmemory = 1G", "7: [server server1] memory: unknown key; did you mean "
         "ram?"),
        ("nodes = 4", "nodes = 4\nname =", "3: [cluster] name: is empty; write a value, or remove it"),
        ("host = server2", "", "3: [switch]: needs host = …, or server = NAME for a server that carries nodes"),
        ("host = server2", "hots = server2", "4: [switch] hots: unknown key; did you mean host?"),
        # values of [cluster]
        ("nodes = 4", "nodes = four", "2: [cluster] nodes: 'four' is not a number; 1 to 1023"),
        ("nodes = 4", "nodes = 0", "2: [cluster] nodes: 0 is out of range; 1 to 1023"),
        ("nodes = 4", "nodes = 4095", "2: [cluster] nodes: 4095 is out of range; 1 to 1023"),
        ("nodes = 4", "nodes = -1", "2: [cluster] nodes: -1 is out of range; 1 to 1023"),
        ("nodes = 4", "nodes = ٤", "2: [cluster] nodes: '٤' is not a number; 1 to 1023"),
        ("nodes = 4", "nodes = 4 # four", "2: [cluster] nodes: '4 # four' is not a number; 1 to 1023; write comments "
         "on separate lines"),
        ("nodes = 4", "nodes = 4\nname = My Lab", "3: [cluster] name: cluster name 'My Lab' is not a name; lower-case "
         "letters, digits and hyphens, a letter first, at most 32 characters"),
        ("nodes = 4", "names = red[1", "2: [cluster] names: 'red[1' is not a nodeset: "),
        ("nodes = 4", "nodes = 4\nnames = a,b", "3: [cluster] names: has 2 names, but nodes (line 2) is 4"),
        ("nodes = 4", "nodes = 4\nimage = ../x", "3: [cluster] image: '../x' is not an image; use a name or digest "
         "that `vcluster image list` prints"),
        ("nodes = 4", "nodes = 4\nvcpus = 65", "3: [cluster] vcpus: 65 is out of range; 1 to 64"),
        ("nodes = 4", "nodes = 4\ncpu_limit = 0.5", "3: [cluster] cpu_limit: '0.5' is not a share in whole percent; "
         "for example 50%"),
        ("nodes = 4", "nodes = 4\ncpu_limit = 0%", "3: [cluster] cpu_limit: '0%' is out of range; 1% to 100%"),
        ("nodes = 4", "nodes = 4\ncpu_limit = 101 %", "3: [cluster] cpu_limit: '101 %' is out of range; 1% to 100%"),
        *(
            ("nodes = 4", f"nodes = 4\npin = {text}", f"3: [cluster] pin: '{text}' is not a list of processors; for "
             "example 0-3 or 0,2,4-7, with each processor once")
            for text in ("all", "3-0", "0-", "-1", "0,,1", "0-3,2", "0-4:0", "8192", "99999", "0x1", "٤")
        ),
        ("nodes = 4", "nodes = 4\nmemory = lots", "3: [cluster] memory: 'lots' is not a size; for example 4096 MiB or "
         "4 GiB"),
        ("nodes = 4", "nodes = 4\nmemory = 4 GB", "3: [cluster] memory: '4 GB' is not a size; for example 4096 MiB or "
         "4 GiB"),
        ("nodes = 4", "nodes = 4\nmemory = 64", "3: [cluster] memory: '64' is out of range; 256 to 1048576 MiB"),
        ("nodes = 4", "nodes = 4\ndisk = 512 MiB", "3: [cluster] disk: '512 MiB' is not a whole number of GiB; for "
         "example "
         "20 GiB or 1 TiB"),
        ("nodes = 4", "nodes = 4\nsubnet = 10.0.0.0", "3: [cluster] subnet: subnet 10.0.0.0 has no room for two "
         "nodes; use a prefix from /8 to /30"),
        ("nodes = 4", "nodes = 4\nsubnet = 10.0.0.0/30", "3: [cluster] subnet: 4 nodes do not fit into 10.0.0.0/30, "
         "which has room for 2"),
        ("nodes = 4", "nodes = 4\nmtu = 60", "3: [cluster] mtu: MTU 60 is not possible; use 576 to 9216 bytes; 1450 "
         "leaves room for VXLAN"),
        ("nodes = 4", "nodes = 4\nboot = warm", "3: [cluster] boot: 'warm' is not one of auto, clone, cold"),
        ("nodes = 4", "nodes = 4\naccel = xen", "3: [cluster] accel: 'xen' is not one of auto, kvm, tcg"),
        ("nodes = 4", "nodes = 4\npolicy = fair", "3: [cluster] policy: 'fair' is not one of spread, pack"),
        ("nodes = 4", "nodes = 4\ntimeout = inf", "3: [cluster] timeout: 'inf' is not a time in seconds; 1 to 1000000"),
        ("nodes = 4", "nodes = 4\nvni_base = 16777213", "3: [cluster] vni_base: 16777213 is too high for 4 nodes; the "
         "highest VNI is 16777215"),
        ("nodes = 4", "nodes = 4\nvxlan_port = 0", "3: [cluster] vxlan_port: 0 is out of range; 1 to 65535"),
        # machines
        ("host = server2", "host = -oProxyCommand=x", "4: [switch] host: '-oProxyCommand=x' is not a host; use "
         "[user@]host[:port] with a name, an IPv4 address or an SSH alias"),
        ("host = server2", "host = a b", "4: [switch] host: 'a b' is not a host; use [user@]host[:port] with a name, "
         "an IPv4 address or an SSH alias"),
        ("host = server2", "host = fd00::1", "4: [switch] host: 'fd00::1' is not [user@]host[:port]; use a name or an "
         "IPv4 address"),
        ("host = server2", "host = 127.0.0.1", "4: [switch] host: 127.0.0.1 is this machine; write localhost"),
        ("host = server2", "host = a:b", "4: [switch] host: 'b' is not a number; 1 to 65535"),
        ("host = server2", "host = -l@a", "4: [switch] host: '-l' is not a user name; use letters, digits and _ . @ "
         "+ -, and begin with a letter or a digit"),
        ("host = server2", "host = a@s:1\nuser = b", "5: [switch] user: is b here, but a in host"),
        ("host = server2", "host = a@s:1\nport = 2", "5: [switch] port: is 2 here, but 1 in host"),
        ("host = server2", "host = s\nuser = $(id)", "5: [switch] user: '$(id)' is not a user name; use letters, "
         "digits and _ . @ + -, and begin with a letter or a digit"),
        ("host = server2", "host = s\nfingerprint = MD5:00", "5: [switch] fingerprint: 'MD5:00' is not a fingerprint; "
         "SHA256:… as `ssh-keygen -l` prints it"),
        ("host = server2", "host = s\ninterface = a/b", "5: [switch] interface: 'a/b' is not an interface name; use a "
         "name that `ip link` shows, for example eth0"),
        ("host = server2", "host = s\naddress = 127.0.0.1", "5: [switch] address: 127.0.0.1 is not a server address; "
         "use the address at which the server's tunnels end"),
        ("host = server2", "host = s\naddress = x", "5: [switch] address: 'x' is not an IPv4 address; for example "
         "192.168.1.7"),
        ("host = server2", "host = s\npassword = env:", "5: [switch] password: env: needs the name of a variable; for "
         "example env:LAB_PASSWORD"),
        ("host = server2", "host = s\nkey = id", "5: [switch] key: 'id' does not begin with / or ~/; use the full "
         "path of a private key, for example ~/.ssh/id_ed25519"),
        ("host = server2", "host = s\nkey = /nowhere/id", "5: [switch] key: '/nowhere/id' is not a file; use the "
         "full path of a private key, for example ~/.ssh/id_ed25519"),
        ("host = localhost", "host = localhost\nuser = a", "7: [server server1] user: is not allowed for localhost: "
         "this machine needs no login"),
        ("host = localhost", "host = localhost\npassword = a", "7: [server server1] password: is not allowed for "
         "localhost: this machine needs no login"),
        ("host = localhost", "host = a@localhost", "6: [server server1] host: this machine needs no user and no port; "
         "write localhost"),
        ("host = localhost", "host = localhost:2222", "6: [server server1] host: this machine needs no user and no "
         "port; write localhost"),
        ("host = localhost", "host = server3", "7: [server server3]: server3 is also the host of [server server1]"),
        ("host = localhost", "path = vms", "6: [server server1] path: 'vms' is not a usable folder path; use an "
         "absolute path of letters, digits and . _ + - /"),
        ("host = localhost", "path = /srv/../etc", "6: [server server1] path: '/srv/../etc' is not a usable folder "
         "path; use an absolute path of letters, digits and . _ + - /"),
        ("[server server3]", "[server Server3]", "7: [server Server3]: server name 'Server3' is not a name; lower-case "
         "letters, digits and hyphens, a letter first, at most 63 characters"),
        ("[server server3]", "[server localhost]", "7: [server localhost]: server name 'localhost' is reserved; use "
         "another name and set host = localhost"),
        ("[server server3]", "[server switch]", "7: [server switch]: server name 'switch' is reserved; use "
         "another name and set host = …"),
        ("host = server2", "host = s\naddress = 10.9.9.9\n[server x]\naddress = 10.9.9.9", "5: [switch] address: "
         "10.9.9.9 is also the address of [server x]"),
        # the switch that is a server
        ("host = server2", "server = server4", "4: [switch] server: there is no [server server4]; did you mean "
         "server3?"),
        ("host = server2", "server = server1\nuser = a", "5: [switch] user: belongs in [server server1], because that "
         "server is the switch"),
        ("host = server2", "host = server3\ntimeout = 9", "5: [switch] timeout: differs from [server server3]; both "
         "sections are about one machine, so remove the key here"),
        ("host = server2", "host = bob@server3", "4: [switch] host: its user differs from [server server3]; both "
         "sections are about one machine, so remove the key here"),
        # how many nodes
        ("nodes = 4", "", "5: [server server1]: the number of nodes is unknown; set nodes here or in [cluster], or "
         "set cpu, ram and hdd here (missing: cpu, ram, hdd)"),
        ("[server server3]", "nodes = 1\n[server server3]\nnodes = 2", "2: [cluster] nodes: 4 nodes, but the servers' "
         "nodes add up to 3"),
        ("[server server3]", "[server server3]\nnodes = 4", "2: [cluster] nodes: 4 nodes, but other servers specify "
         "4, and [server server1] carries the head node"),
        ("[server server3]", "cpu = 1\n[server server3]\nram = 1G", "2: [cluster] nodes: 4 nodes, but the servers "
         "have room for only 3"),
        ("host = localhost", "host = localhost\nram = 1G\nnodes = 3", "7: [server server1] ram: 1024 MiB is not "
         "enough for 3 nodes"),
        ("host = localhost", "host = localhost\nhdd = 4", "7: [server server1] hdd: 4 GiB is not enough for one node"),
    ],
)  # fmt: skip
def test_an_error_has_its_line_and_the_allowed_values(old: str, new: str, line: str) -> None:
    found = errors_in(changed(old, new))
    assert any(one.startswith(f"config.ini:{line}") for one in found), found
    # One more error can follow from the first one.
    assert len(found) <= 2, found


# Keys of [cluster], which are also options: each case is tested as lines of a file and as options

GOOD = [
    ("layout = private", {"layout": "private"}),
    ("layout = direct", {}),
    ("addresses = static", {}),
    ("addresses = dhcp", {"addresses": "dhcp"}),
    ("addresses = dhcp\ndhcp_range = 10.0.0.200-10.0.0.200", {
        "addresses": "dhcp", "dhcp_range": AddressRange(IPv4Address("10.0.0.200"), IPv4Address("10.0.0.200")),
    }),
    ("addresses = dhcp\nsubnet = 10.7.0.0/28\ndhcp_range = 10.7.0.5-10.7.0.14", {
        "addresses": "dhcp", "subnet": IPv4Network("10.7.0.0/28"),
        "dhcp_range": AddressRange(IPv4Address("10.7.0.5"), IPv4Address("10.7.0.14")),
    }),
    ("addresses_from = 10.0.0.[101-104]", {
        "node_addresses": tuple(IPv4Address(f"10.0.0.{last}") for last in (101, 102, 103, 104)),
        "subnet": IPv4Network("10.0.0.0/24"),
    }),
    ("addresses_from = 10.3.[2,0-1].7,10.3.9.9\nsubnet = 10.3.0.0/16", {
        "node_addresses": tuple(map(IPv4Address, ("10.3.2.7", "10.3.0.7", "10.3.1.7", "10.3.9.9"))),
        "subnet": IPv4Network("10.3.0.0/16"),
    }),
    ("cluster_number = 11", {
        "name": "lab11", "node_names": ("node041", "node042", "node043", "node044"),
    }),
    ("cluster_number = 11\nname = red", {
        "name": "red", "node_names": ("node041", "node042", "node043", "node044"),
    }),
    ("storage = node[2,4]:1TiB", {"stores": (StorageNode("node2", 1024), StorageNode("node4", 1024))}),
    ("storage = node4:7 , node1: 2 TiB", {"stores": (StorageNode("node4", 7), StorageNode("node1", 2048))}),
    ("cluster_number = 2\nstorage = node007:1", {
        "name": "lab2", "node_names": ("node005", "node006", "node007", "node008"),
        "stores": (StorageNode("node007", 1),),
    }),
    ("user = a", {"user": "a"}),
    ("user = mpi_user-2", {"user": "mpi_user-2"}),
    ("sudo_commands = /usr/bin/ls", {"sudo_commands": ("/usr/bin/ls",)}),
    ("sudo_commands = /usr/bin/g++,  /opt/a.b/c_d-e", {"sudo_commands": ("/usr/bin/g++", "/opt/a.b/c_d-e")}),
    ("mpi_ports = 1024:1039", {"mpi_ports": PortRange(1024, 1039)}),
    ("mpi_ports = 1024:65535", {"mpi_ports": PortRange(1024, 65535)}),
    ("image_user = debian\nimage_password = ask", {"image_login": ImageLogin("debian", "ask")}),
    ("image_user = root\nimage_password = env:X_1", {"image_login": ImageLogin("root", "env:X_1")}),
]  # fmt: skip
BAD = [
    ("layout = open", "layout", "'open' is not one of direct, private"),
    ("addresses = auto", "addresses", "'auto' is not one of static, dhcp"),
    ("addresses = dhcp\ndhcp_range = 10.0.0.200", "dhcp_range", "'10.0.0.200' is not a range of addresses; for example "
     "10.0.0.200-10.0.0.250"),
    ("addresses = dhcp\ndhcp_range = 10.0.0.200-250", "dhcp_range", "'250' is not an IPv4 address; for example "
     "10.0.0.101"),
    ("addresses = dhcp\ndhcp_range = 10.0.0.9-10.0.0.8", "dhcp_range", "10.0.0.9-10.0.0.8 ends before it begins; did "
     "you mean 10.0.0.8-10.0.0.9?"),
    ("addresses = dhcp\nsubnet = 10.7.0.0/24\ndhcp_range = 10.0.0.8-10.0.0.9", "dhcp_range", "10.0.0.8-10.0.0.9 is not "
     "within 10.7.0.0/24"),
    ("addresses = dhcp\nsubnet = 10.7.0.0/24\ndhcp_range = 10.7.0.8-10.7.0.255", "dhcp_range", "10.7.0.8-10.7.0.255 is "
     "not within 10.7.0.0/24"),
    ("addresses = dhcp\nsubnet = 10.7.0.0/24\ndhcp_range = 10.7.0.4-10.7.0.9", "dhcp_range", "10.7.0.4-10.7.0.9 "
     "contains 10.7.0.4, the address of a node"),
    ("addresses = dhcp\naddresses_from = 10.0.0.[21-24]\ndhcp_range = 10.0.0.10-10.0.0.22", "dhcp_range",
     "10.0.0.10-10.0.0.22 contains 10.0.0.21, the address of a node"),
    ("addresses = dhcp\nsubnet = 10.7.0.0/30\nnodes = 2", "subnet", "10.7.0.0/30 has no address left for unknown "
     "hosts"),
    ("addresses = dhcp\naddresses_from = 10.0.0.[251-254]", "addresses_from", "10.0.0.0/24 has no address left for "
     "unknown hosts"),
    ("addresses_from = 10.0.0.[101-103]", "addresses_from", "has 3 addresses, but {nodes} is 4"),
    ("addresses_from = 10.0.0.[101-103,102]", "addresses_from", "'10.0.0.102' is given twice"),
    ("addresses_from = 10.0.0.[253-256]", "addresses_from", "'10.0.0.256' is not an IPv4 address; for example "
     "10.0.0.101"),
    ("addresses_from = fd00::[1-4]", "addresses_from", "'fd00::1' is not an IPv4 address; for example 10.0.0.101"),
    ("addresses_from = 10.0.0.[1-", "addresses_from", "'10.0.0.[1-' is not a nodeset: unbalanced brackets; "
     "for example '10.0.0.[101-105]'"),
    ("addresses_from = 10.0.0.[1-99999]", "addresses_from", "'10.0.0.[1-99999]' gives 99999 names; 1 to 1023 are "
     "possible"),
    ("addresses_from = 127.0.0.[1-4]", "addresses_from", "127.0.0.1 is not an address for ordinary hosts; use a "
     "private address, for example "
     "10.0.0.101"),
    ("addresses_from = 0.0.0.[1-4]", "addresses_from", "0.0.0.1 is not an address for ordinary hosts; use a private "
     "address, for example "
     "10.0.0.101"),
    ("addresses_from = 10.0.0.[0-3]", "addresses_from", "10.0.0.0 is not a host address in 10.0.0.0/24; set a subnet "
     "that contains all addresses"),
    ("addresses_from = 10.0.[0-1].[1-2]", "addresses_from", "10.0.1.1 is not a host address in 10.0.0.0/24; set a "
     "subnet that contains all addresses"),
    ("addresses_from = 10.0.0.[1-4]\nsubnet = 10.9.0.0/16", "addresses_from", "10.0.0.1 is not a host address in "
     "10.9.0.0/16"),
    ("addresses_from = 10.9.0.[252-255]\nsubnet = 10.9.0.0/24", "addresses_from", "10.9.0.255 is not a host address "
     "in 10.9.0.0/24"),
    ("cluster_number = 0", "cluster_number", "0 is out of range; 1 to 9999"),
    ("cluster_number = 10000", "cluster_number", "10000 is out of range; 1 to 9999"),
    ("cluster_number = eleven", "cluster_number", "'eleven' is not a number; 1 to 9999"),
    ("storage = node2", "storage", "'node2' is not NODES:SIZE; for example 'node[7,15]:1 TiB'"),
    ("storage = node2:big", "storage", "'big' is not a size; for example 20 GiB or 1 TiB"),
    ("storage = node2:0", "storage", "'0' is out of range; 1 to 65536 GiB"),
    ("storage = node2:1500 MiB", "storage", "'1500 MiB' is not a whole number of GiB; for example 20 GiB or 1 TiB"),
    ("storage = node[2-3]:1,node3:2", "storage", "node 'node3' is given twice"),
    ("storage = node[4-5]:1", "storage", "'node5' is not a node of the cluster; its first node is node1, its last "
     "node is node4"),
    ("storage = ,node1:1", "storage", "'' is not NODES:SIZE; for example 'node[7,15]:1 TiB'"),
    ("storage = :1", "storage", "'' gives no name; for example 'red[01-05]'"),
    ("user = Ada", "user", "'Ada' is not a user name; use at most 32 lower-case letters, digits, _ and -, and begin "
     "with a letter"),
    ("user = -a", "user", "'-a' is not a user name; use at most 32 lower-case letters, digits, _ and -, and begin "
     "with a letter"),
    (f"user = {'a' * 33}", "user", f"'{'a' * 33}' is not a user name; use at most 32 lower-case letters, digits, _ "
     "and -, and begin with a letter"),
    *((f"user = {name}", "user", f"{name} is a system account; use another name, for example mpiuser") for name in
      ("root", "daemon", "nobody", "www-data", "sshd", "systemd-resolve", "dnsmasq", "libvirt-qemu", "sudo", "wheel")),
    *((f"sudo_commands = {path}", "sudo_commands", f"'{path}' is not a program path; use an absolute path of letters, "
     "digits and "
       ". _ + - /") for path in
      ("ls", "ALL", "sudoedit", "/", "/usr/bin/", "/usr/../bin/sh", "/bin//sh", "/bin/./sh", "/bin/ls *", "!/bin/sh",
       "/bin/a:b", "/bin/s\u00e9", "/bin/$SHELL", "/bin/x=y", "~/x")),
    ("sudo_commands = /bin/ls,", "sudo_commands", "'' is not a program path; use an absolute path of letters, digits "
     "and . _ + - /"),
    ("sudo_commands = /bin/ls, /bin/ls", "sudo_commands", "'/bin/ls' is given twice"),
    ("mpi_ports = 10000", "mpi_ports", "'10000' is not a range of ports; for example 10000:10100"),
    ("mpi_ports = 10000-10100", "mpi_ports", "'10000-10100' is not a range of ports; for example 10000:10100"),
    ("mpi_ports = 10000:10014", "mpi_ports", "10000:10014 has too few ports for MPI; use at least 16 ports, for "
     "example 10000:10100"),
    ("mpi_ports = 10100:10000", "mpi_ports", "10100:10000 ends before it begins; use at least 16 ports, for example "
     "10000:10100"),
    ("mpi_ports = 1023:2000", "mpi_ports", "1023 is out of range; 1024 to 65535"),
    ("mpi_ports = 65000:65536", "mpi_ports", "65536 is out of range; 1024 to 65535"),
    ("mpi_ports = 10000:", "mpi_ports", "'' is not a number; 1024 to 65535"),
    ("image_user = debian", "image_user", "needs a password: {image_password}"),
    ("image_password = ask", "image_password", "needs a user: {image_user}"),
    ("image_user = a b\nimage_password = ask", "image_user", "'a b' is not a user name; use letters, digits and _ . @ "
     "+ -, and begin with a letter or a digit"),
    ("image_user = a\nimage_password = hunter2", "image_password", "the password itself is not allowed here; use ask "
     "or env:NAME"),
    ("image_user = a\nimage_password = env:hunter2!", "image_password", "env: needs the name of a variable; for "
     "example env:LAB_PASSWORD"),
    ("payload = here", "payload", "needs a script: {provision}"),
    ("provision = a\tb", "provision", "'a\\tb' is not a usable path"),
]  # fmt: skip


def keys_of(lines: str) -> dict[str, str]:
    """The lines as options."""
    return dict(line.split(" = ", 1) for line in lines.split("\n"))


def in_file(lines: str) -> str:
    """A file with these lines; they replace its own line for the number of nodes."""
    return changed("nodes = 4", lines if "nodes = " in lines else f"nodes = 4\n{lines}")


@pytest.mark.parametrize(("lines", "fields_of_spec"), GOOD)
def test_keys_of_the_cluster(lines: str, fields_of_spec: dict[str, object]) -> None:
    plain_one = request.of_options(request.read_options({}), mode="local").spec
    of_file = parse(in_file(lines)).spec
    assert of_file == replace(parse(SMALL).spec, **fields_of_spec)
    assert request.of_options(request.read_options(keys_of(lines)), mode="local").spec == replace(
        plain_one, **fields_of_spec
    )
    assert parse(SMALL, **keys_of(lines)).spec == of_file


@pytest.mark.parametrize(("lines", "key", "text"), BAD)
def test_errors_in_keys_of_the_cluster(lines: str, key: str, text: str) -> None:
    file = in_file(lines)
    line = next(number for number, one in enumerate(file.split("\n"), start=1) if one.startswith(f"{key} = "))
    others = {"nodes": "nodes (line 2)"} | {name: f"{name} = …" for name in options.CLUSTER if name != "nodes"}
    assert errors_in(file) == [f"config.ini:{line}: [cluster] {key}: {text.format(**others)}"]
    others = {name: f"{options.option_name(name)} …" for name in options.CLUSTER} | {"nodes": "--nodes"}
    with pytest.raises(RequestError) as raised:
        request.of_options(request.read_options({"nodes": "4"} | keys_of(lines)), mode="local")
    assert raised.value.message == f"{options.option_name(key)}: {text.format(**others)}"
    assert "hunter2" not in raised.value.message


def test_addresses_for_unknown_hosts_require_dhcp() -> None:
    assert errors_in(changed("nodes = 4", "nodes = 4\ndhcp_range = 10.0.0.8-10.0.0.9")) == [
        "config.ini:3: [cluster] dhcp_range: requires addresses = dhcp"
    ]
    assert errors_in(SMALL, dhcp_range="10.0.0.8-10.0.0.9") == ["--dhcp-range: requires --addresses dhcp"]


def test_a_cluster_number_excludes_names() -> None:
    assert errors_in(changed("nodes = 4", "names = a,b\ncluster_number = 3\nstorage = c:1")) == [
        "config.ini:3: [cluster] cluster_number: cannot be combined with names (line 2)"
    ]
    # An option replaces the key of the file.
    by_number = parse(changed("nodes = 4", "names = a,b"), cluster_number="3", nodes="2").spec
    assert (by_number.name, by_number.node_names) == ("lab3", ("node005", "node006"))
    by_names = parse(changed("nodes = 4", "nodes = 4\ncluster_number = 3"), names="a,b").spec
    assert (by_names.name, by_names.node_names) == ("lab", ("a", "b"))


@pytest.mark.parametrize(
    ("given", "name", "names", "addresses"),
    [
        ({"nodes": "5"}, "lab", "node1 node2 node3 node4 node5", "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5"),
        ({"nodes": "5", "cluster_number": "1"}, "lab1", "node001 node002 node003 node004 node005",
         "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5"),
        ({"nodes": "5", "cluster_number": "11", "addresses_from": "10.0.0.[101-105]"}, "lab11",
         "node051 node052 node053 node054 node055", "10.0.0.101 10.0.0.102 10.0.0.103 10.0.0.104 10.0.0.105"),
        ({"cluster_number": "200", "addresses_from": "10.2.0.[9,1-4]", "name": "last"}, "last",
         "node0996 node0997 node0998 node0999 node1000", "10.2.0.9 10.2.0.1 10.2.0.2 10.2.0.3 10.2.0.4"),
        ({"nodes": "5", "cluster_number": "400"}, "lab400", "node1996 node1997 node1998 node1999 node2000",
         "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5"),
        ({"names": "head,red[02-05]", "subnet": "172.20.0.0/16"}, "lab", "head red02 red03 red04 red05",
         "172.20.0.1 172.20.0.2 172.20.0.3 172.20.0.4 172.20.0.5"),
        ({"names": "z[5,1-3],a", "addresses_from": "10.1.[1-5].7", "subnet": "10.1.0.0/16"}, "lab",
         "z5 z1 z2 z3 a", "10.1.1.7 10.1.2.7 10.1.3.7 10.1.4.7 10.1.5.7"),
    ],
)  # fmt: skip
def test_names_and_addresses_of_five_nodes(given: dict[str, str], name: str, names: str, addresses: str) -> None:
    for spec in (
        request.of_options(request.read_options(given), mode="remote").spec,
        parse(changed("nodes = 4\n", ""), **given).spec,
    ):
        chosen = spec.node_addresses or addressing.node_addresses(
            addressing.choose_subnet(spec.subnet, 5, [Facts()]), 5
        )
        assert (spec.name, " ".join(spec.node_names), " ".join(map(str, chosen))) == (name, names, addresses)


def test_paths_are_relative_to_the_file_or_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = changed("nodes = 4", "nodes = 4\nprovision = setup.sh\npayload = ~/stuff")
    of_file = config_file.parse(text, source=Path("../lab/config.ini"))
    assert (of_file.provision, of_file.payload) == (
        tmp_path / "here" / "../lab/setup.sh",
        tmp_path / "home" / "stuff",
    )
    mixed = config_file.parse(text, source=tmp_path / "lab.ini", overrides={"payload": "other"})
    assert (mixed.provision, mixed.payload) == (tmp_path / "setup.sh", tmp_path / "here" / "other")
    of_options = request.of_options(request.read_options({"provision": "setup.sh"}), mode="local")
    assert (of_options.provision, of_options.payload) == (tmp_path / "here" / "setup.sh", None)


def test_the_defaults_of_options_equal_those_of_the_spec() -> None:
    asked = request.of_options(request.read_options({}), mode="local")
    assert asked.spec == Spec("lab", "local", ("node1", "node2", "node3", "node4"), timeout_s=900)
    assert (asked.image, asked.accel, asked.boot) == (DEFAULT_IMAGE, "auto", "auto")
    explicit = request.read_options({name: key.default for name, key in options.CLUSTER.items() if key.default})
    assert request.of_options(explicit, mode="local") == asked


def test_every_key_of_the_cluster_has_a_field_or_another_use() -> None:
    names = {one.name for one in dataclass_fields(Spec)}
    assert {key.spec_field for key in options.CLUSTER.values() if key.spec_field} <= names
    others = {name for name, key in options.CLUSTER.items() if not key.spec_field}
    assert others == {
        "nodes", "names", "cluster_number", "image", "image_user", "image_password", "provision", "payload", "boot",
        "accel",
    }  # fmt: skip


def test_every_key_of_a_server_has_a_field_or_another_use() -> None:
    keys = {**readers.SWITCH_KEYS, **readers.SERVER_KEYS}
    fields = {one.name for one in dataclass_fields(ServerSpec)}
    assert {key.spec_field for key in keys.values() if key.spec_field} == fields - {"name", "login"}
    others = {name for name, key in keys.items() if not key.spec_field}
    assert others == {"server", "host", "user", "port", "password", "key", "fingerprint"}


def test_all_errors_are_reported_at_once() -> None:
    assert errors_in("""\
[cluster]
nodes = x
memmory = 1

[switch]
prot = 22
[server red]
ram = lots
host = a
[server blue]
host = a
password = p
key = /nowhere/id
[serve x]
junk
""") == [
        "config.ini:2: [cluster] nodes: 'x' is not a number; 1 to 1023",
        "config.ini:3: [cluster] memmory: unknown key; did you mean memory?",
        "config.ini:5: [switch]: needs host = …, or server = NAME for a server that carries nodes",
        "config.ini:6: [switch] prot: unknown key; did you mean port?",
        "config.ini:8: [server red] ram: 'lots' is not a size; for example 4096 MiB or 4 GiB",
        "config.ini:11: [server blue] host: a is also the host of [server red]",
        "config.ini:12: [server blue] password: cannot be combined with key = …; remove one of them",
        "config.ini:13: [server blue] key: '/nowhere/id' is not a file; use the full path of a private key, for "
        "example ~/.ssh/id_ed25519",
        "config.ini:14: [serve x]: unknown section; did you mean [server NAME]?",
        "config.ini:15: this line is neither [section] nor key = value",
    ]  # fmt: skip


WRONG = """\
nodes = 4
name = My Lab
cluster_number = 0
image = ../x
image_user = -a
image_password = hunter2
vcpus = 65
memory = lots
disk = 1
storage = node2
layout = open
subnet = 10.0.0.0
addresses = auto
addresses_from = 10.0.0.1-4
dhcp_range = 10.0.0.7
mtu = 60
user = root
sudo_commands = ls
mpi_ports = 1:9
provision = a\tb
boot = warm
accel = xen
timeout = inf
vni_base = 0
vxlan_port = 65536"""


def test_all_errors_in_keys_of_the_cluster_are_reported_at_once() -> None:
    found = errors_in(changed("nodes = 4", WRONG))
    given = keys_of(WRONG)
    assert [line.split(": ")[1] for line in found] == [f"[cluster] {key}" for key in given if key != "nodes"]
    with pytest.raises(RequestError) as raised:
        request.of_options(request.read_options(given), mode="local")
    lines = raised.value.message.splitlines()
    assert [line.split(": ")[0] for line in lines] == [options.option_name(key) for key in given if key != "nodes"]
    # The errors are the same for a file and for options.
    assert [line.split(": ", 2)[2] for line in found] == [line.split(": ", 1)[1] for line in lines]
    assert "hunter2" not in raised.value.message


def test_an_empty_file() -> None:
    assert errors_in("") == [
        "config.ini: [server NAME]: is missing; add one section for each server, for example [server server1]",
        "config.ini: [switch]: is missing; add it with host = …, or with server = NAME for a server that carries nodes",
    ]


def test_errors_that_follow_from_a_bad_line_are_not_reported() -> None:
    assert errors_in(changed("nodes = 4", "nodes 4")) == [
        "config.ini:2: this line is neither [section] nor key = value"
    ]


def test_errors_that_follow_from_a_bad_value_are_not_reported() -> None:
    (line,) = errors_in(changed("host = server2", "host = server3\nuser = root") + "user = $\n")
    assert line.startswith("config.ini:9: [server server3] user: '$' is not a user")


def test_errors_in_options_name_the_option() -> None:
    assert errors_in(SMALL, memory="lots", vni_base="x") == [
        "--memory: 'lots' is not a size; for example 4096 MiB or 4 GiB",
        "--vni-base: 'x' is not a number; 1 to 16777215",
    ]
    assert errors_in(f"{SMALL}nodes = 2\n", nodes="2") == [
        "--nodes: 2 nodes, but other servers specify 2, and [server server1] carries the head node"
    ]
    assert errors_in(changed("nodes = 4", "names = a,b,c"), nodes="2") == [
        "config.ini:2: [cluster] names: has 3 names, but --nodes is 2"
    ]


def test_a_public_key_is_not_a_private_one(key: Path) -> None:
    key.with_suffix(".pub").touch()
    (line,) = errors_in(f"{SMALL}key = ~/.ssh/id_ed25519.pub\n")
    assert "'~/.ssh/id_ed25519.pub' is a public key; use the full path of a private key" in line


def test_a_nul_and_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    assert errors_in(f"{SMALL}\0") == [
        "config.ini:8: this line contains a NUL character; save the file as plain text in UTF-8"
    ]
    path = tmp_path / "config.ini"
    path.write_bytes(SMALL.encode() + b"name = \xff\n")
    with pytest.raises(RequestError, match=r"config\.ini:8: this line is not UTF-8"):
        config_file.read(path)


def test_misspelled_sections_are_not_missing_too() -> None:
    (line,) = errors_in(SMALL.replace("[switch]", "[switchh]"))
    assert line.endswith("[switchh]: unknown section; did you mean [switch]?")
    lines = errors_in(SMALL.replace("[server ", "[servr "))
    assert all(line.endswith("]: unknown section; did you mean [server NAME]?") for line in lines), lines


def test_an_installed_template_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ini_file, "__file__", str(tmp_path / "site/vcluster/config/ini_file.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert ini_file.template() == "config.template"
    installed = tmp_path / "share/vcluster/config.template"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert ini_file.template() == str(installed)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"config\.ini does not exist") as raised:
        config_file.read(tmp_path / "config.ini")
    assert raised.value.hint == f"copy {TEMPLATE} and edit the copy"
    with pytest.raises(RequestError, match="is not a regular file"):
        config_file.read(tmp_path)
    with pytest.raises(RequestError, match="is not a regular file"):
        config_file.read(Path("/dev/zero"))
    with pytest.raises(RequestError, match="cannot read"):
        config_file.read(tmp_path / ("x" * 300))
    with pytest.raises(RequestError, match=r"'a\\nb' does not exist"):
        config_file.read(Path("a\nb"))
    for path in ("a\0b", "\udcff\ud800"):
        with pytest.raises(RequestError):
            config_file.read(Path(path))
    large = tmp_path / "large"
    large.write_bytes(b"#" * 65537)
    with pytest.raises(RequestError, match="larger than 64 KiB"):
        config_file.read(large)


# The template


def test_the_template_is_a_good_file() -> None:
    spec = parse(TEMPLATE.read_text()).spec
    assert [server.name for server in spec.servers] == ["server1", "server3"]
    assert spec.switch.name == "server2"
    assert len(spec.node_names) == 4


# Other keys that an example of the template requires.
COMPANY = {
    "image_user": {";image_password": "image_password"},
    "image_password": {";image_user": "image_user"},
    "payload": {";provision": "provision"},
    "dhcp_range": {";addresses = static": "addresses = dhcp"},
    "[link node[2-3]]": {";to": "to"},
    **{key: {";[link": "[link"} for key in ("from", "to", "both")},
    "peer": {";[link": "[link", ";to": "to"},
}
EXAMPLES = [number for number, line in enumerate(TEMPLATE.read_text().splitlines()) if line.startswith(";")]


@pytest.mark.parametrize("number", EXAMPLES)
def test_each_example_of_the_template_is_good(number: int, key: Path) -> None:
    del key
    lines = TEMPLATE.read_text().splitlines()
    lines[number] = lines[number].removeprefix(";")
    text = "\n".join(lines)
    for old, new in COMPANY.get(lines[number].partition(" = ")[0], {}).items():
        text = text.replace(f"\n{old}", f"\n{new}")
    parse(text)


LINKS = """
[link node[2-3]]
from = rate=10mbit,queue=64KiB
both = loss=1%
[link node2]
to = rate=1mbit
peer = node4
"""


def test_links_have_limits() -> None:
    """By sections, by the key, and by the option, which replaces the key."""
    spec = parse(changed("nodes = 4", "nodes = 4\nlinks = node1:to:loss=3%") + LINKS).spec
    limited = LinkShape(10**7, 65536, 10_000)
    assert spec.links == (
        Link("node1", "to", LinkShape(loss_ppm=30_000)),
        Link("node2", "from", limited),
        Link("node2", "to", LinkShape(loss_ppm=10_000)),
        Link("node3", "from", limited),
        Link("node3", "to", LinkShape(loss_ppm=10_000)),
        Link("node2", "to", LinkShape(10**6), "node4"),
    )
    assert parse(SMALL, links="node4:to:loss=1%").spec.links == (Link("node4", "to", LinkShape(loss_ppm=10_000)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[link node1]\n", "[link node1]: needs from, to or both; for example rate=100mbit,queue=64KiB,loss=0.1%"),
        ("[link node1]\nfrom = 5\n", "[link node1] from: limits: '5' is not one of rate=, queue=, loss="),
        ("[link Node]\nto = loss=1%\n", "[link Node]: node name 'Node' is not a name"),
        ("[link a]\nto = loss=1%\nboth = loss=2%\n", "[link a]: both: to gives a limit of this kind too"),
        ("[link a,a]\nto = loss=1%\n", "[link a,a]: node name 'a' is given twice"),
        ("[link node[1-2]]\nto = loss=1%\n[link node2]\nto = loss=2%\n", "limits of frames to node2 are given twice"),
    ],
)
def test_a_wrong_link_is_refused(text: str, message: str) -> None:
    assert any(message in line for line in errors_in(SMALL + text))


def test_the_template_shows_every_key() -> None:
    shown = {match[1] for match in re.finditer(r"^;?([a-z_]+) = ", TEMPLATE.read_text(), re.MULTILINE)}
    assert shown | {"server"} == {*options.CLUSTER, *readers.SWITCH, *readers.SERVER, *readers.LINK}


def test_the_template_shows_the_defaults() -> None:
    text, count = re.subn(r"\(default\)\n;", "(default)\n", TEMPLATE.read_text())
    keys_with_default = [name for name, key in options.CLUSTER.items() if key.default and name != "name"]
    assert count == len(keys_with_default) + len(["timeout", "path"])
    for name in keys_with_default:
        assert f"(default)\n{name} = {options.CLUSTER[name].default}\n" in text
    asked, default = parse(text), parse(TEMPLATE.read_text())
    assert asked.image == DEFAULT_IMAGE
    assert (asked.spec, asked.accel, asked.boot) == (default.spec, default.accel, default.boot)


# Random texts

KEYS = st.sampled_from(sorted({*options.CLUSTER, *readers.SWITCH, *readers.SERVER, *readers.LINK, "nonsense"}))
VALUES = (
    st.sampled_from(["4", "2 GiB", "100", "red[1-3]", "localhost", "a", "b@c:5", "env:X", "ask", "10.9.0.0/24", "pack"])
    | st.sampled_from(
        [
            "private",
            "dhcp",
            "10.9.0.[1-4]",
            "10.9.0.7-10.9.0.9",
            "node[1-2]:4",
            "/bin/ls,/a",
            "9000:9099",
            "loss=1%",
            "a:to:loss=1%",
        ]
    )
    | st.integers(-1, 70000).map(str)
    | st.text(max_size=12)
)
TITLES = st.sampled_from(["cluster", "switch", "server red", "server blue", "server", "link node[1-2]", "x"]) | st.text(
    max_size=9
)
LINES = st.one_of(
    st.builds("{} = {}".format, KEYS, VALUES),
    st.builds("{}:{}".format, KEYS, VALUES),
    st.builds("[{}]".format, TITLES),
    st.text(max_size=20),
)
DANGEROUS = re.compile(r"[\x00-\x1f\x7f'\"\\$`;&|<>(){}\[\]*?!# \u0080-\U0010ffff]")


def plain(value: object) -> object:
    """A value without our classes."""
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def strings(value: object) -> list[str]:
    """Every string within a value."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in strings(one)]
    if isinstance(value, list | tuple):
        return [text for one in value for text in strings(one)]
    return [str(value)]


@settings(max_examples=400, deadline=None)
@given(st.lists(LINES, max_size=14), st.booleans())
@example(["[server red]", "[server red]", "[switch]", "server = blue"], True)
@example(["[switch]", "host:\t \ud800"], True)
@example(["[\u2028]"], True)
def test_any_text_is_a_configuration_or_clear_lines(lines: list[str], is_private: bool) -> None:
    for text in ("\n".join(lines), SMALL + "\n".join(lines)):
        try:
            asked = config_file.parse(text, source=SOURCE, is_private=is_private)
        except RequestError as error:
            assert error.message.splitlines() == error.message.split("\n")
            assert all(line.startswith("config.ini:") and line.isprintable() for line in error.message.split("\n"))
            continue
        values = asdict(asked)
        assert values.pop("provision") or not values["payload"]
        values.pop("payload")
        for server in (*values["spec"]["servers"], values["spec"]["switch"]):
            (server["login"] or {}).pop("password", None)
        assert not [text for text in strings(values) if DANGEROUS.search(text)]


@settings(max_examples=400, deadline=None)
@given(KEYS, st.text(max_size=30))
@example("host", "-oX")
@example("path", "/a/../b")
@example("user", "a\n")
def test_any_value_is_good_or_refused(key: str, text: str) -> None:
    for table in (options.READERS, readers.SWITCH, readers.SERVER):
        if key not in table or key == "password":
            continue
        try:
            value = table[key](text)
        except RequestError as error:
            assert len(error.message.splitlines()) <= 1
            continue
        if key not in ("key", "provision", "payload"):  # names of files on this machine can contain any character
            shown = strings(plain(value))
            assert not [text for text in shown if DANGEROUS.search(text) or text.startswith("-")]


@pytest.mark.parametrize("lines", [["[s]"] * 16000, ["[cluster]", *[f"k{n}=" for n in range(8000)]], ["x"] * 30000])
def test_a_large_file_of_errors_is_read_to_its_end(lines: list[str]) -> None:
    assert len(errors_in("\n".join(lines))) >= len(lines) - 1
