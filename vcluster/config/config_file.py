"""The configuration file of `vcluster shared create`: from its text to a request.

An error lists all mistakes of a file, one line for each. The checks read nothing outside the text, with two exceptions:
the permissions of a file that holds a password, and the presence of private key files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from vcluster.config import ini_file, passwords, readers, request
from vcluster.config.readers import Host
from vcluster.config.request import CreateRequest
from vcluster.config.sections import SectionReader, ValidationErrors
from vcluster.errors import RequestError
from vcluster.model.naming import NODES_MAX
from vcluster.model.spec import LOCAL_SERVER, Link, Login, ServerSpec
from vcluster.planning import link_spec, placement

SWITCH = "switch"
_HARDWARE = ("cpu", "ram", "hdd")
_LOGIN_KEYS = ("user", "port", "password", "key", "fingerprint")


def read(path: Path, *, overrides: Mapping[str, str] | None = None) -> CreateRequest:
    """Read a configuration file. See `parse`."""
    text, is_private = ini_file.load(path)
    return parse(text, source=path, overrides=overrides, is_private=is_private)


def parse(
    text: str, *, source: Path, overrides: Mapping[str, str] | None = None, is_private: bool = True
) -> CreateRequest:
    """Make a request from the text of a configuration file.

    `overrides` are options, which replace the file's keys of [cluster]. `is_private` is True if only the owner can
    read the file. Raises RequestError with one line for each mistake.
    """
    sections, mistakes = ini_file.parse(text)
    errors = ValidationErrors(ini_file.path_shown(source))
    config = _Config(source, errors, is_private, has_lost_lines=any(not mistake.about for mistake in mistakes))
    for mistake in mistakes:
        errors.add(mistake.line, mistake.about, mistake.text)
    if not sections:
        errors.raise_any()
    _read_sections(config, sections, overrides or {})
    _check_sections(config)
    count = _node_count(config)
    request.check(config.cluster, count)
    errors.raise_any()
    assert count is not None  # noqa: S101 - an unknown count is one of the errors
    servers = tuple(_server_spec(config, server, server.name) for server in config.servers)
    switch = _switch_spec(config, servers)
    made = request.make(config.cluster, count, mode="shared", folder=source.parent, servers=servers, switch=switch)
    return replace(made, spec=replace(made.spec, links=(*made.spec.links, *config.links)))


# Sections


@dataclass(slots=True)
class _Config:
    """The sections of a file, and the errors found so far. `has_lost_lines`: some lines could not be parsed.

    `misspelled` holds the sections that unknown titles seem to mean. It is not an error again that these are missing.
    """

    source: Path
    errors: ValidationErrors
    is_private: bool
    has_lost_lines: bool
    cluster: SectionReader = field(init=False)
    switch: SectionReader | None = None
    servers: list[SectionReader] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    misspelled: set[str] = field(default_factory=set)

    @property
    def is_capacity_unknown(self) -> bool:
        """True if the number of nodes that fit on the servers depends on an invalid value."""
        sections = (self.cluster, *self.servers)
        relevant = {"nodes", "vcpus", "memory", "disk", *_HARDWARE}
        return not self.servers or any(relevant & section.invalid for section in sections)

    @property
    def machines(self) -> Iterator[SectionReader]:
        """The sections that describe a machine."""
        yield from self.servers
        if self.switch and not self.switch.get("server"):
            yield self.switch

    def server(self, name: str) -> SectionReader | None:
        """The section of a server."""
        return next((server for server in self.servers if server.name == name), None)


def _read_sections(config: _Config, sections: Sequence[ini_file.IniSection], overrides: Mapping[str, str]) -> None:
    """Read all sections. Of several sections with one title, the first one counts."""
    firsts = {section.title: section for section in reversed(sections)}
    cluster = firsts.get("cluster") or ini_file.IniSection("cluster", 0, {})
    config.cluster = request.read(cluster, config.errors, given=overrides)
    for section in sections:
        kind, _, name = section.title.partition(" ")
        reader = SectionReader(section.title, config.errors, section.line, section.entries)
        is_first = firsts[section.title] is section
        if kind == "server" and name:
            _read_server(config, reader, is_first=is_first)
        elif kind == "link" and name:
            _read_link(config, reader)
        elif section.title == SWITCH:
            reader.read(readers.SWITCH)
            config.switch = config.switch or reader
        elif section.title != "cluster":
            _refuse_section(config, section)
        elif not is_first:
            request.read(section, config.errors, given={})


def _read_server(config: _Config, section: SectionReader, *, is_first: bool) -> None:
    try:
        readers.server_name(section.name)
        if section.name == SWITCH:
            raise RequestError(f"server name {SWITCH!r} is reserved", hint="use another name and set host = …")  # noqa: TRY301
    except RequestError as error:
        is_reserved = section.name == LOCAL_SERVER
        hint = f"use another name and set host = {LOCAL_SERVER}" if is_reserved else error.hint
        config.errors.add(section.line, ini_file.about(section.title), "; ".join(filter(None, (error.message, hint))))
    section.read(readers.SERVER)
    if is_first:
        config.servers.append(section)


def _read_link(config: _Config, section: SectionReader) -> None:
    section.read(readers.LINK)
    given = {key: text for key, text in section.values.items() if key != "peer"}
    try:
        if not section.entries.keys() & {"from", "to", "both"}:
            raise RequestError("needs from, to or both", hint=link_spec.EXAMPLE)  # noqa: TRY301
        new = link_spec.links_of(section.name, link_spec.parse_directions(given), peer=section.get("peer", ""))
        config.links = [*link_spec.distinct((*config.links, *new))]
    except RequestError as error:
        text = "; ".join(filter(None, (error.message, error.hint)))
        config.errors.add(section.line, ini_file.about(section.title), text)


def _check_links(config: _Config) -> None:
    """Links in sections are not those of the key, because neither replaces the other."""
    try:
        link_spec.distinct((*config.cluster.get("links", ()), *config.links))
    except RequestError as error:
        config.errors.add(0, "[link]", error.message)


def _refuse_section(config: _Config, section: ini_file.IniSection) -> None:
    kind = section.title.partition(" ")[0]
    near = get_close_matches(kind.lower(), ("cluster", SWITCH, "server", "link"), n=1, cutoff=0.5)
    meant = {"server": "[server NAME]", "link": "[link NODES]"}.get(near[0], f"[{near[0]}]") if near else ""
    config.misspelled.add(meant)
    tail = (
        f"did you mean {meant}?" if meant else "known sections are [cluster], [switch], [server NAME] and [link NODES]"
    )
    config.errors.add(section.line, ini_file.about(section.title), f"unknown section; {tail}")


# Checks of several values together


def _check_sections(config: _Config) -> None:
    if not config.servers and "[server NAME]" not in config.misspelled:
        text = "is missing; add one section for each server, for example [server server1]"
        config.errors.add(0, "[server NAME]", text)
    if config.switch is None and "[switch]" not in config.misspelled:
        text = "is missing; add it with host = …, or with server = NAME for a server that carries nodes"
        config.errors.add(0, "[switch]", text)
    for machine in config.machines:
        _check_machine(config, machine)
    _check_hosts(config)
    _check_links(config)
    if config.switch:
        _check_switch(config, config.switch)


def _check_machine(config: _Config, machine: SectionReader) -> None:
    host = machine.get("host", Host(""))
    for key, value_in_host in (("user", host.user), ("port", host.port)):
        if value_in_host and machine.get(key, value_in_host) != value_in_host:
            machine.add_error(key, f"is {machine.get(key)} here, but {value_in_host} in host")
    if "password" in machine.entries and "key" in machine.entries:
        machine.add_error("password", "cannot be combined with key = …; remove one of them")
    if machine.is_local:
        for key in _LOGIN_KEYS:
            if key in machine.entries:
                machine.add_error(key, f"is not allowed for {LOCAL_SERVER}: this machine needs no login")
        if host.user or host.port:
            machine.add_error("host", f"this machine needs no user and no port; write {LOCAL_SERVER}")
    if not config.is_private and _holds_password(machine):
        command = passwords.chmod_command(config.source)
        machine.add_error("password", f"other users can read this file ({command})")


def _holds_password(machine: SectionReader) -> bool:
    entry = machine.entries.get("password")
    return bool(entry and entry.value and readers.is_plain(entry.value))


def _check_hosts(config: _Config) -> None:
    """Each server is another machine, and each machine has another address."""
    hosts: dict[str, SectionReader] = {}
    addresses: dict[IPv4Address, SectionReader] = {}
    for machine in config.machines:
        if machine is not config.switch and "host" not in machine.invalid:
            first = hosts.setdefault(machine.host.name.lower(), machine)
            if first is not machine:
                machine.add_error("host", f"{machine.host.name} is also the host of {ini_file.about(first.title)}")
        if address := machine.get("address"):
            first = addresses.setdefault(address, machine)
            if first is not machine and _carrier(config, machine) is not first:
                machine.add_error("address", f"{address} is also the address of {ini_file.about(first.title)}")


def _check_switch(config: _Config, switch: SectionReader) -> None:
    name = switch.get("server")
    if name:
        if not config.server(name):
            near = get_close_matches(name, [server.name for server in config.servers], n=1)
            switch.add_error("server", f"there is no [server {name}]" + (f"; did you mean {near[0]}?" if near else ""))
        for key in switch.entries:
            if key in readers.MACHINE_KEYS:
                switch.add_error(key, f"belongs in [server {name}], because that server is the switch")
        return
    if "host" not in switch.entries and not {"host", "server"} & switch.invalid:
        switch.add_error("", "needs host = …, or server = NAME for a server that carries nodes")
    carrier = _carrier(config, switch)
    if carrier:
        _check_same_machine(switch, carrier)


def _check_same_machine(switch: SectionReader, carrier: SectionReader) -> None:
    """If the switch is on a server that carries nodes, the values in [switch] must equal those of the server."""
    switch_values = {"user": switch.host.user, "port": switch.host.port} | switch.values
    carrier_values = carrier.values | {"user": carrier.host.user, "port": carrier.host.port}
    for key, value in switch_values.items():
        if key != "host" and value and key not in carrier.invalid and value != carrier_values.get(key):
            place = key if key in switch.entries else "host"
            subject = "" if place == key else f"its {key} "
            title = ini_file.about(carrier.title)
            text = f"differs from {title}; both sections are about one machine, so remove the key here"
            switch.add_error(place, subject + text)


def _carrier(config: _Config, switch: SectionReader) -> SectionReader | None:
    """The section of the server that the switch is on, if that server carries nodes."""
    if switch is not config.switch:
        return None
    if "host" not in switch.values:
        return config.server(switch.get("server", ""))
    host = switch.host.name.lower()
    return next((server for server in config.servers if server.host.name.lower() == host), None)


# The number of nodes


def _node_count(config: _Config) -> int | None:
    """The number of nodes, or None if it is unknown. Adds errors for values that contradict it."""
    counts = request.node_counts(config.cluster)
    if counts is None or config.is_capacity_unknown:
        return None
    _check_limits(config)
    if not counts:
        return _sum_of_servers(config)
    key, count = next(iter(counts.items()))
    if conflict := _conflict(config, count):
        config.cluster.add_error(key, f"{count} nodes, but {conflict}")
        return None
    return count


def _conflict(config: _Config, count: int) -> str:
    """The reason why the sections of the servers do not allow so many nodes, or an empty text."""
    head_server = config.servers[0]
    specified = [server.values["nodes"] for server in config.servers if "nodes" in server.values]
    if len(specified) == len(config.servers) and sum(specified) != count:
        return f"the servers' nodes add up to {sum(specified)}"
    if "nodes" not in head_server.values and sum(specified) >= count:
        title = ini_file.about(head_server.title)
        return f"other servers specify {sum(specified)}, and {title} carries the head node"
    if sum(specified) > count:
        return f"the servers specify {sum(specified)}"
    limits = [_capacity(config, server) for server in config.servers]
    capacity = sum(filter(None, limits))
    return f"the servers have room for only {capacity}" if None not in limits and capacity < count else ""


def _sum_of_servers(config: _Config) -> int | None:
    """The sum of the servers' nodes: the number in a server's section, or the number that fits on it."""
    is_unknown = False
    for server in config.servers:
        missing = [key for key in _HARDWARE if key not in server.values]
        if missing and "nodes" not in server.values:
            is_unknown = True
            if config.has_lost_lines:
                continue  # a line that could not be parsed may hold the key
            server.add_error(
                "",
                "the number of nodes is unknown; set nodes here or in [cluster], or set cpu, ram and hdd here "
                f"(missing: {', '.join(missing)})",
            )
    count = sum(_capacity(config, server) or 0 for server in config.servers)
    if count > NODES_MAX:
        text = f"the servers have room for {count} nodes; set nodes in [cluster] to at most {NODES_MAX}"
        config.errors.add(0, "", text)
    return None if is_unknown or count > NODES_MAX else count


def _check_limits(config: _Config) -> None:
    """The declared hardware of a server must be enough for its nodes, and for at least one."""
    for server in config.servers:
        count = server.get("nodes", 1)
        for limit in _limits(config, server):
            if limit.nodes < count:
                nodes = f"{count} nodes" if count > 1 else "one node"
                amount = limit.reason.removesuffix(" declared")
                server.add_error(limit.key, f"{amount} is not enough for {nodes}")


def _capacity(config: _Config, server: SectionReader) -> int | None:
    """The number of nodes for a server, or None if its section specifies no limit."""
    specified: int | None = server.get("nodes")
    return specified or min((limit.nodes for limit in _limits(config, server)), default=None)


def _limits(config: _Config, server: SectionReader) -> tuple[placement.Limit, ...]:
    cluster = config.cluster
    return placement.declared_limits(
        ServerSpec(server.name, **_spec_fields(server)),
        vcpus=cluster.get("vcpus"),
        memory_mib=cluster.get("memory"),
        disk_gib=cluster.get("disk"),
    )


# From sections to the request


def _server_spec(config: _Config, section: SectionReader, name: str) -> ServerSpec:
    login = None if section.is_local else _login(config, section)
    return ServerSpec(name, login, **_spec_fields(section))


def _spec_fields(section: SectionReader) -> dict[str, Any]:
    """The fields of ServerSpec that the section specifies."""
    keys = {**readers.SWITCH_KEYS, **readers.SERVER_KEYS}
    return {keys[name].spec_field: value for name, value in section.values.items() if keys[name].spec_field}


def _login(config: _Config, section: SectionReader) -> Login:
    host, source = section.host, ""
    if "password" in section.values:
        source = readers.password_source(section.values["password"], file=config.source, section=section.title)
    return Login(host.name, host.user, host.port, section.get("key"), source, section.get("fingerprint", ""))


def _switch_spec(config: _Config, servers: Sequence[ServerSpec]) -> ServerSpec:
    """The server of the switch: one of the servers that carry nodes, or another one."""
    section = config.switch
    assert section is not None  # noqa: S101 - a missing [switch] is one of the errors
    carrier = _carrier(config, section)
    if carrier:
        return next(server for server in servers if server.name == carrier.name)
    return _server_spec(config, section, switch_name(section.host, {server.name for server in servers}))


def switch_name(host: Host, taken: set[str]) -> str:
    """The name of a switch server without nodes: its host name, if that is a valid and free name."""
    if host.name.lower() == LOCAL_SERVER:
        return LOCAL_SERVER
    try:
        return SWITCH if host.name in taken else readers.server_name(host.name)
    except RequestError:
        return SWITCH
