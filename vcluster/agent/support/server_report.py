"""The part of one server in a bug report: what is about our clusters, and nothing of others.

`server_report` is an operation of the agent, as in operations.py: its arguments and its result are JSON.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from vcluster.adapters import system_logs
from vcluster.adapters.network import netlink_interfaces
from vcluster.errors import MissingError, VclusterError

LIBVIRT_LOGS = Path("/var/log/libvirt/qemu")

Collect = Callable[[], str]


def server_report(wanted: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The files of this server's part: each has at most its last `size` bytes.

    `wanted` has the consoles by domain, and the domains, UUIDs, names, labels, interfaces and tables of our clusters.
    In the result, `files` has the texts by name, `absent` the reason for each that does not exist, and `failed` the
    error for each that cannot be read.
    """
    files: dict[str, str] = {}
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, collect in _collectors(wanted, size):
        try:
            text = collect()
        except FileNotFoundError:
            absent[name] = "there is no such file"
        except MissingError as error:
            absent[name] = error.message
        except VclusterError as error:
            failed[name] = error.message
        except OSError as error:
            failed[name] = f"{error.filename}: {error.strerror}"
        else:
            files[name] = text.encode(errors="replace")[-size:].decode(errors="replace")
    return {"files": files, "absent": absent, "failed": failed}


def file_names(wanted: Mapping[str, Any]) -> list[str]:
    """The names of the files that a server may send."""
    return [name for name, _ in _collectors(wanted, 0)]


def _collectors(wanted: Mapping[str, Any], size: int) -> Iterator[tuple[str, Collect]]:
    """The name of each file, with the function that collects its text."""
    yield "versions.json", _versions
    yield "interfaces.json", lambda: _interfaces(wanted["labels"], wanted["interfaces"])
    yield "libvirt-journal.txt", lambda: system_logs.libvirt_lines([*wanted["domains"], *wanted["names"]])
    yield "apparmor-denials.txt", lambda: system_logs.denials([*wanted["domains"], *wanted["uuids"]])
    for table in wanted["tables"]:
        yield f"packet-filter/{table}.txt", partial(system_logs.packet_filter, table)
    for domain in wanted["domains"]:
        yield f"libvirt/{domain}.txt", partial(system_logs.tail, LIBVIRT_LOGS / f"{domain}.log", size)
    for domain, path in wanted["consoles"].items():
        yield f"consoles/{domain}.txt", partial(system_logs.tail, Path(path), size)


def _versions() -> str:
    system = {"kernel": platform.release(), "machine": platform.machine(), "Python": platform.python_version()}
    try:
        system["distribution"] = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system["distribution"] = "unknown"
    return json.dumps({**system, **system_logs.program_versions()})


def _interfaces(labels: Sequence[str], names: Sequence[str]) -> str:
    """The interfaces with one of our labels, and the taps of our nodes, which have no label."""
    found = netlink_interfaces.interfaces()
    return json.dumps([asdict(each) for each in found if each.alias in labels or each.name in names])


OPERATIONS: tuple[Callable[..., Any], ...] = (server_report,)
