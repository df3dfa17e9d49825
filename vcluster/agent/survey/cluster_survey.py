"""The operation that reads everything that this server has of a cluster. It changes nothing."""

from __future__ import annotations

import pwd
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vcluster.adapters.network import guard_table
from vcluster.adapters.network.readings import interface_state, table_state
from vcluster.agent import confinement
from vcluster.agent.faults import fault_operations
from vcluster.agent.links import link_limits
from vcluster.agent.survey import file_states, libvirt_records, listeners
from vcluster.agent.survey.listeners import Listener

QEMU_USERS = ("libvirt-qemu", "qemu")  # of Debian and of Fedora
QUERY_PORT_MIN = 1024  # with a higher port, a DNS server waits for the answer to its own query
_RULE = re.compile(r'  "(.*)" (\S+),')  # as agent/confinement.py writes it

Answer = dict[str, Any]


def survey_cluster(
    cluster: str,
    alias: str,
    interfaces: Sequence[str],
    guard: Mapping[str, Any],
    network: str,
    gateway: str,
    pool: str,
    trees: Sequence[str],
    user: str,
    links: Mapping[str, Any] | None = None,
    faults: Mapping[str, Any] | None = None,
) -> Answer:
    """Everything that this server has of a cluster.

    `interfaces` are the planned ones, taps included. `guard` has the arguments of the operation guard. `network`,
    `gateway` and `pool` are empty on a server without nodes. `trees` are folders whose files are listed. `user` is the
    one who logged in, empty on the controller. `links` has the arguments of the operation read_link_limits, on the
    server of the switch. `faults` has those of read_faults.
    """
    domains, listening = libvirt_records.domains(cluster), listeners.listeners()
    for domain in domains.values():
        domain["listeners"] = [str(one) for one in listeners.of_process(domain["pid"], listening)]
    owners = {listeners.owner_of(domain["pid"]) for domain in domains.values()} - {None}
    tunnels = guard_table.arrivals(guard["tunnels"])
    return {
        "interfaces": interface_state.interface_states(interfaces, alias),
        "tables": table_state.table_states(guard["table"], guard_table.planned(**{**guard, "tunnels": tunnels})),
        "domains": domains,
        "network": libvirt_records.network(network) if network else None,
        "dns": _dns_listeners(network, gateway, listening) if network else [],
        "pool": libvirt_records.pool(pool) if pool else None,
        "trees": {path: file_states.tree_states(Path(path)) for path in trees},
        "labels": {path: file_states.label_of(Path(path)) for path in trees},
        "qemu_uids": sorted({0, *file_states.uids_of(*QEMU_USERS), *owners}),
        "confinement": confinement.confinement(),
        "profiles": [_profile(found) for found in confinement.profiles() if found["cluster"] == cluster],
        "authorized": _authorized(user, alias) if user else None,
        "links": link_limits.read_link_limits(**links) if links else None,
        "faults": fault_operations.read_faults(**faults) if faults else None,
    }


def _dns_listeners(network: str, gateway: str, listening: Sequence[Listener]) -> list[str]:
    """What listens at the gateway's address, and all that the network's DNS server has open but its own queries."""
    pid = file_states.text_of_file(libvirt_records.RUNNING / "network" / f"{network}.pid").strip()
    own = listeners.of_process(int(pid), listening) if pid.isdecimal() else ()
    services = {one for one in own if one.protocol != "udp" or one.port < QUERY_PORT_MIN}
    return sorted({str(one) for one in (*services, *(each for each in listening if each.address == gateway))})


def _profile(found: Mapping[str, str]) -> Answer:
    """A profile of AppArmor with its label, its mode and owner, and its own rules."""
    path = confinement.FOLDER / f"libvirt-{found['uuid']}"
    rules = [match.groups() for match in map(_RULE.fullmatch, file_states.text_of_file(path).splitlines()) if match]
    return {**found, "path": str(path), "state": file_states.file_state(path), "rules": [list(rule) for rule in rules]}


def _authorized(user: str, mark: str) -> Answer:
    """The lines of a user's authorized_keys whose comment is the owner label, and who else may change the file."""
    try:
        path = Path(pwd.getpwnam(user).pw_dir, ".ssh/authorized_keys")
    except KeyError:
        return {"path": "", "lines": [], "state": None}
    lines = [line.strip() for line in file_states.text_of_file(path).splitlines() if line.split()[-1:] == [mark]]
    return {"path": str(path), "lines": lines, "state": file_states.file_state(path.resolve())}


OPERATIONS: tuple[Callable[..., Any], ...] = (survey_cluster,)
