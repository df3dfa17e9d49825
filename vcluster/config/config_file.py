"""The configuration file of `vcluster shared create`: from its text to what is asked for.

Everything that is wrong with a file is told at once, a line for each mistake. The only things looked at beside the text
are whether others can read a file that holds a password, and whether the keys it names are files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from ipaddress import IPv4Address
from pathlib import Path

from vcluster.config import ini_file, passwords, readers, request
from vcluster.config.readers import Host
from vcluster.config.request import CreateRequest
from vcluster.config.sections import SectionReader, ValidationErrors
from vcluster.errors import RequestError
from vcluster.model.naming import NODES_MAX
from vcluster.model.spec import LOCAL_SERVER, SERVER_TIMEOUT_S, STORAGE_PATH, Login, ServerSpec
from vcluster.planning import placement

SWITCH = "switch"
_HARDWARE = ("cpu", "ram", "hdd")
_LOGIN_KEYS = ("user", "port", "password", "key", "fingerprint")


def read(path: Path, *, overrides: Mapping[str, str] | None = None) -> CreateRequest:
    """What a configuration file asks for. See `parse`."""
    text, is_private = ini_file.load(path)
    return parse(text, source=path, overrides=overrides, is_private=is_private)


def parse(
    text: str, *, source: Path, overrides: Mapping[str, str] | None = None, is_private: bool = True
) -> CreateRequest:
    """What a configuration file's text asks for.

    `overrides` are keys of [cluster] given as options; they win over the file's. `is_private` says whether only the
    file's owner can read it. Raises RequestError with a line for each mistake.
    """
    sections, mistakes = ini_file.parse(text)
    errors = ValidationErrors(ini_file.path_shown(source))
    asked = _Asked(source, errors, is_private, has_lost_lines=any(not mistake.about for mistake in mistakes))
    for mistake in mistakes:
        errors.add(mistake.line, mistake.about, mistake.text)
    if not sections:
        errors.raise_any()
    _sort(asked, sections, overrides or {})
    _compare(asked)
    count = _count(asked)
    request.check(asked.cluster, count)
    errors.raise_any()
    assert count is not None  # noqa: S101 - what leaves it open was complained of
    servers = tuple(_server_spec(asked, server, server.name) for server in asked.servers)
    switch = _switch_spec(asked, servers)
    return request.make(asked.cluster, count, mode="shared", folder=source.parent, servers=servers, switch=switch)


# Sections


@dataclass(slots=True)
class _Asked:
    """All that was read."""

    source: Path
    errors: ValidationErrors
    is_private: bool
    has_lost_lines: bool
    cluster: SectionReader = field(init=False)
    switch: SectionReader | None = None
    servers: list[SectionReader] = field(default_factory=list)

    @property
    def is_room_unclear(self) -> bool:
        """Whether how many nodes the servers hold rests on something that is not understood."""
        sections = (self.cluster, *self.servers)
        doubts = {"nodes", "vcpus", "memory", "disk", *_HARDWARE}
        return not self.servers or any(doubts & section.invalid for section in sections)

    @property
    def machines(self) -> Iterator[SectionReader]:
        """The sections that describe one."""
        yield from self.servers
        if self.switch and not self.switch.get("server"):
            yield self.switch

    def server(self, name: str) -> SectionReader | None:
        """The section of a server."""
        return next((server for server in self.servers if server.name == name), None)


def _sort(asked: _Asked, sections: Sequence[ini_file.IniSection], overrides: Mapping[str, str]) -> None:
    """Each section to its place, understood."""
    known = {section.title: section for section in reversed(sections)}  # the first of each title
    cluster = known.get("cluster") or ini_file.IniSection("cluster", 0, {})
    asked.cluster = request.read(cluster, asked.errors, given=overrides)
    for section in sections:
        kind, _, name = section.title.partition(" ")
        read = SectionReader(section.title, asked.errors, section.line, section.entries)
        is_first = known[section.title] is section
        if kind == "server" and name:
            _read_server(asked, read, is_first=is_first)
        elif section.title == SWITCH:
            read.read(readers.SWITCH)
            asked.switch = asked.switch or read
        elif section.title != "cluster":
            _refuse_section(asked, section)
        elif not is_first:
            request.read(section, asked.errors, given={})


def _read_server(asked: _Asked, section: SectionReader, *, is_first: bool) -> None:
    try:
        readers.server_name(section.name)
        if section.name == SWITCH:
            raise RequestError(f"{SWITCH} is the name of the switch", hint="take another, with host = …")  # noqa: TRY301
    except RequestError as error:
        is_reserved = section.name == LOCAL_SERVER
        hint = f"take another name, with host = {LOCAL_SERVER}" if is_reserved else error.hint
        asked.errors.add(section.line, ini_file.about(section.title), "; ".join(filter(None, (error.message, hint))))
    section.read(readers.SERVER)
    if is_first:
        asked.servers.append(section)


def _refuse_section(asked: _Asked, section: ini_file.IniSection) -> None:
    word = section.title.partition(" ")[0]
    near = get_close_matches(word.lower(), ("cluster", SWITCH, "server"), n=1, cutoff=0.5)
    meant = {"server": "[server NAME]"}.get(near[0], f"[{near[0]}]") if near else ""
    tail = f"did you mean {meant}?" if meant else "known are [cluster], [switch] and [server NAME]"
    asked.errors.add(section.line, ini_file.about(section.title), f"is no section; {tail}")


# What only shows when values are seen together


def _compare(asked: _Asked) -> None:
    if not asked.servers:
        asked.errors.add(0, "", "no server is described; such as [server server1]")
    if asked.switch is None:
        asked.errors.add(0, "[switch]", "is missing; it has host = …, or server = NAME of one that carries nodes")
    for machine in asked.machines:
        _compare_machine(asked, machine)
    _compare_hosts(asked)
    if asked.switch:
        _compare_switch(asked, asked.switch)


def _compare_machine(asked: _Asked, machine: SectionReader) -> None:
    host = machine.get("host", Host(""))
    for key, other in (("user", host.user), ("port", host.port)):
        if other and machine.get(key, other) != other:
            machine.add_error(key, f"is {machine.get(key)} here and {other} in host")
    if "password" in machine.entries and "key" in machine.entries:
        machine.add_error("password", "excludes key; give one of them")
    if machine.is_local:
        for key in _LOGIN_KEYS:
            if key in machine.entries:
                machine.add_error(key, f"has no meaning for {LOCAL_SERVER}, which is this machine")
        if host.user or host.port:
            machine.add_error("host", f"is this machine; write {LOCAL_SERVER} alone")
    if not asked.is_private and _holds_password(machine):
        command = passwords.mending(asked.source)
        machine.add_error("password", f"stands in a file that others can read; {command}")


def _holds_password(machine: SectionReader) -> bool:
    entry = machine.entries.get("password")
    return bool(entry and entry.value and readers.is_plain(entry.value))


def _compare_hosts(asked: _Asked) -> None:
    """No two servers on one machine, no two machines with one address."""
    hosts: dict[str, SectionReader] = {}
    addresses: dict[IPv4Address, SectionReader] = {}
    for machine in asked.machines:
        if machine is not asked.switch and "host" not in machine.invalid:
            first = hosts.setdefault(machine.host.name.lower(), machine)
            if first is not machine:
                machine.add_error("host", f"{machine.host.name} is the host of {ini_file.about(first.title)} as well")
        if address := machine.get("address"):
            first = addresses.setdefault(address, machine)
            if first is not machine and _carrier(asked, machine) is not first:
                machine.add_error("address", f"{address} is the address of {ini_file.about(first.title)} as well")


def _compare_switch(asked: _Asked, switch: SectionReader) -> None:
    name = switch.get("server")
    if name:
        if not asked.server(name):
            near = get_close_matches(name, [server.name for server in asked.servers], n=1)
            switch.add_error("server", f"there is no [server {name}]" + (f"; did you mean {near[0]}?" if near else ""))
        for key in switch.entries:
            if key in readers.MACHINE:
                switch.add_error(key, f"belongs into [server {name}], which is the switch")
        return
    if "host" not in switch.entries and not {"host", "server"} & switch.invalid:
        switch.add_error("", "needs host = …, or server = NAME of one that carries nodes")
    carrier = _carrier(asked, switch)
    if carrier:
        _compare_with_carrier(switch, carrier)


def _compare_with_carrier(switch: SectionReader, carrier: SectionReader) -> None:
    """What [switch] says of a server must be what the server's own section says."""
    ours = {"user": switch.host.user, "port": switch.host.port} | switch.values
    theirs = carrier.values | {"user": carrier.host.user, "port": carrier.host.port}
    for key, value in ours.items():
        if key != "host" and value and key not in carrier.invalid and value != theirs.get(key):
            place = key if key in switch.entries else "host"
            what = "" if place == key else f"gives a {key} that "
            switch.add_error(
                place, f"{what}is not that of {ini_file.about(carrier.title)}, which is the same machine; leave it out"
            )


def _carrier(asked: _Asked, switch: SectionReader) -> SectionReader | None:
    """The server that the switch is on, if it carries nodes."""
    if switch is not asked.switch:
        return None
    if "host" not in switch.values:
        return asked.server(switch.get("server", ""))
    host = switch.host.name.lower()
    return next((server for server in asked.servers if server.host.name.lower() == host), None)


# How many nodes


def _count(asked: _Asked) -> int | None:
    """How many nodes are asked for, or None where that cannot be told. What contradicts it is told."""
    told = request.count(asked.cluster)
    if told is None or asked.is_room_unclear:
        return None
    _check_limits(asked)
    if not told:
        return _count_of_servers(asked)
    key, count = next(iter(told.items()))
    if obstacle := _obstacle(asked, count):
        asked.cluster.add_error(key, f"{count} nodes, but {obstacle}")
        return None
    return count


def _obstacle(asked: _Asked, count: int) -> str:
    """What the servers say against so many nodes."""
    told = [server.values["nodes"] for server in asked.servers if "nodes" in server.values]
    if len(told) == len(asked.servers) and sum(told) != count:
        return f"the servers' nodes add up to {sum(told)}"
    if sum(told) + ("nodes" not in asked.servers[0].values) > count:
        return f"servers are told to carry {sum(told)}, and {ini_file.about(asked.servers[0].title)} carries the head"
    limits = [_holds(asked, server) for server in asked.servers]
    room = sum(filter(None, limits))
    return f"the servers declare room for {room}" if None not in limits and room < count else ""


def _count_of_servers(asked: _Asked) -> int | None:
    """What the servers carry: as many as they are told to, or as what they declare holds."""
    unclear = False
    for server in asked.servers:
        missing = [key for key in _HARDWARE if key not in server.values]
        if missing and "nodes" not in server.values:
            unclear = True
            if asked.has_lost_lines:
                continue  # it may have stood there
            server.add_error(
                "",
                "does not say how many nodes; give nodes here or in [cluster], or all of cpu, ram and hdd here "
                f"({' and '.join(missing)} missing)",
            )
    count = sum(_holds(asked, server) or 0 for server in asked.servers)
    if count > NODES_MAX:
        asked.errors.add(0, "", f"the servers hold {count} nodes; give nodes in [cluster], {NODES_MAX} at most")
    return None if unclear or count > NODES_MAX else count


def _check_limits(asked: _Asked) -> None:
    """What a server declares must hold the nodes it is told to carry, and one at least."""
    for server in asked.servers:
        wanted = server.get("nodes", 1)
        for limit in _limits(asked, server):
            if limit.nodes < wanted:
                nodes = f"the {wanted} nodes it is told to carry" if "nodes" in server.values else "one node"
                server.add_error(limit.key, f"{limit.reason.removesuffix(' declared')} is too little for {nodes}")


def _holds(asked: _Asked, server: SectionReader) -> int | None:
    """How many nodes a server takes, or None where it does not say."""
    told: int | None = server.get("nodes")
    return told or min((limit.nodes for limit in _limits(asked, server)), default=None)


def _limits(asked: _Asked, server: SectionReader) -> tuple[placement.Limit, ...]:
    cluster = asked.cluster
    return placement.declared_limits(
        ServerSpec(server.name, cpus=server.get("cpu"), memory_mib=server.get("ram"), disk_gib=server.get("hdd")),
        vcpus=cluster.get("vcpus"),
        memory_mib=cluster.get("memory"),
        disk_gib=cluster.get("disk"),
    )


# From what was read to what is asked for


def _server_spec(asked: _Asked, section: SectionReader, name: str) -> ServerSpec:
    return ServerSpec(
        name=name,
        login=None if section.is_local else _login(asked, section),
        nodes=section.get("nodes"),
        cpus=section.get("cpu"),
        memory_mib=section.get("ram"),
        disk_gib=section.get("hdd"),
        interface=section.get("interface", ""),
        address=section.get("address"),
        path=section.get("path", STORAGE_PATH),
        timeout_s=section.get("timeout", SERVER_TIMEOUT_S),
    )


def _login(asked: _Asked, section: SectionReader) -> Login:
    host, source = section.host, ""
    if "password" in section.values:
        source = readers.password_source(section.values["password"], file=asked.source, section=section.title)
    return Login(host.name, host.user, host.port, section.get("key"), source, section.get("fingerprint", ""))


def _switch_spec(asked: _Asked, servers: Sequence[ServerSpec]) -> ServerSpec:
    """The switch: one of the servers, or one more."""
    section = asked.switch
    assert section is not None  # noqa: S101 - a file without one was refused
    carrier = _carrier(asked, section)
    if carrier:
        return next(server for server in servers if server.name == carrier.name)
    return _server_spec(asked, section, switch_name(section.host, {server.name for server in servers}))


def switch_name(host: Host, taken: set[str]) -> str:
    """What a switch on a host of its own is called: as the host is, where that is a name and free."""
    if host.name.lower() == LOCAL_SERVER:
        return LOCAL_SERVER
    try:
        return SWITCH if host.name in taken else readers.server_name(host.name)
    except RequestError:
        return SWITCH
