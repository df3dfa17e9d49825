"""Collect what a bug report needs. It works when things are broken: each part is collected alone, with a time limit."""

from __future__ import annotations

import importlib.metadata
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from vcluster import __version__
from vcluster.agent.support import server_report
from vcluster.commands.servers import doctor
from vcluster.commands.steps import inventory
from vcluster.commands.steps.support_archive import SupportReport
from vcluster.config import passwords
from vcluster.errors import VclusterError
from vcluster.fleet import command_log
from vcluster.fleet import servers as fleets
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import Ledger
from vcluster.model import codec, json_text, naming, spec
from vcluster.model import plan as plans
from vcluster.model.plan import Plan
from vcluster.render.domain_xml import console_path
from vcluster.util.redaction import Redactor, allowed, secrets_of

PART_TIMEOUT_S = 90.0  # longer than a login to a server and a request to its agent
SERVER_BYTES_MAX, TEXT_BYTES_MAX = 8 << 20, 64 << 10  # of the files of a server, and of each file
LIBRARIES = (
    "ClusterShell", "cattrs", "click", "cryptography", "libvirt-python", "paramiko", "pycdlib", "pyroute2",
    "termcolor", "tqdm",
)  # fmt: skip
VARIABLES = ("VCLUSTER_", "LIBVIRT_", "XDG_STATE_HOME", "LANG", "LC_ALL", "TERM", "PATH", "SUDO_USER")
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_PLAN_CLASSES = (
    Ledger, Plan, plans.ManagementInterface, plans.Node, plans.Bridge, plans.Tunnel, plans.Network, plans.Pool,
    plans.ServerPlan, plans.Switch, spec.Image, spec.ImageLogin, spec.Login, spec.AddressRange, spec.PortRange,
)  # fmt: skip
# Only these fields of a ledger are in a report, also of a ledger that another version wrote.
PLAN_FIELDS = frozenset(each.name for cls in _PLAN_CLASSES for each in fields(cls)) - {"password"}
ABOUT_FILES = {
    "versions": "versions of the system and of programs",
    "interfaces": "interfaces of our clusters",
    "libvirt-journal": "lines of libvirt's daemons about our clusters",
    "apparmor-denials": "accesses of our nodes that AppArmor denied",
    "packet-filter": "packet filter tables of a cluster",
    "libvirt": "log of libvirt and QEMU of a node",
    "consoles": "last lines of the console of a node",
}


@dataclass(slots=True)
class Collected:
    """What a part has found: contents by file name, and what is absent or failed, with the reason."""

    files: dict[str, object] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a report: its name, what its files are, and the function that collects them."""

    name: str
    about: str
    collect: Callable[[], Collected]


@dataclass(frozen=True, slots=True)
class PartResult:
    """The files of a part in the archive, and its error, empty if it has none."""

    part: str
    files: tuple[str, ...]
    error: str
    is_late: bool = False


def collect(context: Context, names: Sequence[str]) -> tuple[SupportReport, tuple[PartResult, ...]]:
    """Collect all parts for clusters of these names, which need not exist. It changes nothing, and asks nothing."""
    context = replace(context, connector=replace(context.connector, ask=None, confirm=None))
    found = {name: _read(partial(inventory.read_ledger, context.files(name))) for name in names}
    known = {name: ledger.plan for name, ledger in found.items() if isinstance(ledger, Ledger)}
    title = f"Bug report of vcluster {__version__}\nclusters: {', '.join(names) or 'none'}"
    report = SupportReport(title, Redactor(_secrets(context, known, names)))
    results = _run_all(context, _parts(context, names, known), report)
    return report, results


def _read(work: Callable[[], Any]) -> Any:
    """The result of a function, or its error."""
    try:
        return work()
    except (VclusterError, OSError) as error:
        return error


def _secrets(context: Context, known: Mapping[str, Plan], names: Sequence[str]) -> list[str]:
    """The secrets that vcluster knows: keys of clusters, and passwords of servers and images."""
    environment = context.connector.environment
    found = secrets_of(environment)
    for name in names:
        keys = context.files(name).find_keys()
        found += [pair.private for pair in (keys.admin, keys.user, *keys.hosts.values())] if keys else []
    for plan in known.values():
        sources = [server.login.password for server in plan.servers if server.login]
        for source in (*sources, plan.image_login.password if plan.image_login else ""):
            secret = _read(partial(passwords.find, source, environment=environment, ask=None, secret=""))
            found += [secret] if isinstance(secret, str) else []
    return found


# Parts


def _parts(context: Context, names: Sequence[str], known: Mapping[str, Plan]) -> list[Part]:
    here = [
        Part("versions", "versions of vcluster and its libraries", lambda: _one("versions.json", _versions())),
        Part("environment", "variables that vcluster reads", lambda: _one("environment.json", _environment(context))),
        Part("doctor", "what doctor found on this machine", lambda: _one("doctor.json", _doctor(context))),
        Part("events", "events of the last commands", lambda: _events(context)),
    ]
    for name in names:
        here += [
            Part(f"plan of {name}", "plan of the cluster", partial(_plan, context, name)),
            Part(f"status of {name}", "state of the cluster", partial(_status, context, name)),
        ]
    requests = {request.name: request for request in _requests(context, known)}
    servers = [
        Part(f"server {name}", "", partial(_server, context, request, known)) for name, request in requests.items()
    ]
    return [*here, *servers]


def _one(name: str, content: object) -> Collected:
    return Collected({name: content})


def _versions() -> dict[str, object]:
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a module of the distribution has no such record
            libraries[name] = "unknown"
    return {"vcluster": __version__, "Python": platform.python_version(), "libraries": libraries}


def _environment(context: Context) -> dict[str, str]:
    environment = context.connector.environment
    names = [name for name in environment if name.startswith(VARIABLES) or name.lower() in PROXIES]
    return {name: environment[name] for name in sorted(names)}


def _doctor(context: Context) -> list[object]:
    return [codec.to_plain(finding) for finding in doctor.check_this_machine(context)]


def _events(context: Context) -> Collected:
    text = command_log.read(context.state_root)
    return _one("events.jsonl", text) if text else Collected(absent={"events.jsonl": "no command was logged yet"})


def _plan(context: Context, name: str) -> Collected:
    """The plan without passwords, and the times of the stages. The file is read as JSON: its version may be another."""
    files = context.files(name)
    if not files.ledger.exists():
        inventory.read_ledger(files)  # its error has the reason
    try:
        document = json_text.parse(files.ledger.read_text())
    except ValueError as error:
        raise VclusterError(f"{files.ledger} is not JSON: {error}") from error
    found = _one(f"clusters/{name}/plan.json", allowed(document, PLAN_FIELDS))
    if times := files.read_timing():
        found.files[f"clusters/{name}/timing.json"] = codec.to_plain(times)
    return found


def _status(context: Context, name: str) -> Collected:
    return _one(f"clusters/{name}/status.json", codec.to_plain(inventory.status(context, name)))


# Servers


def _requests(context: Context, known: Mapping[str, Plan]) -> list[fleets.ServerRequest]:
    """This machine, and the servers of all clusters. libvirt is not opened: a daemon that hangs must not matter."""
    here = fleets.request_for_spec(spec.LOCAL, carries_nodes=False)
    planned = [
        request
        for name, plan in known.items()
        for request in fleets.requests_for_plan(plan, context.files(name).server_key())
    ]
    return [here, *(replace(request, carries_nodes=False) for request in planned if request.login)]


def _server(context: Context, request: fleets.ServerRequest, known: Mapping[str, Plan]) -> Collected:
    """The part of one server, in one request to its agent."""
    wanted = _wanted(known, request)
    names = server_report.file_names(wanted)
    size = max(1024, min(TEXT_BYTES_MAX, SERVER_BYTES_MAX // len(names)))
    with context.connector.open(request) as server:
        answer = server.call("server_report", wanted=wanted, size=size)
    return _checked(answer, request.name, names, size)


def _wanted(known: Mapping[str, Plan], request: fleets.ServerRequest) -> dict[str, object]:
    """What is ours on a server, by kind, as `server_report` of the agent expects it."""
    places = [(plan, server) for plan in known.values() for server in plan.servers if _is_at(server, request)]
    nodes = [(plan, node) for plan, server in places for node in plan.nodes_on(server.name)]
    interfaces = [name for _, server in places for name in server.interface_names]
    taps = [node.port for _, node in nodes] + [node.management.port for _, node in nodes if node.management]
    networks = [server.network for _, server in places if server.network]
    return {
        "consoles": {node.domain: str(console_path(plan, node)) for plan, node in nodes},
        "domains": [node.domain for _, node in nodes],
        "uuids": [node.uuid for _, node in nodes],
        "names": [naming.libvirt_name(plan.name) for plan, _ in places] + interfaces + taps,
        "labels": [naming.alias(plan.name, plan.owner) for plan, _ in places],
        "interfaces": [*interfaces, *taps, *(network.bridge for network in networks)],
        "tables": [naming.table_name(plan.name, plan.owner) for plan, _ in places],
    }


def _is_at(server: plans.ServerPlan, request: fleets.ServerRequest) -> bool:
    return server.name == request.name and (server.login is None) == (request.login is None)


def _checked(answer: Mapping[str, Mapping[str, str]], server: str, names: Sequence[str], size: int) -> Collected:
    """The answer of a server, which is not trusted: only the files that were asked for, and not too long."""
    files, absent, failed = (
        {f"servers/{server}/{name}": answer[kind][name] for name in names if name in answer[kind]}
        for kind in ("files", "absent", "failed")
    )
    return Collected({name: _content(name, text[-size:]) for name, text in files.items()}, absent, failed)


def _content(name: str, text: str) -> object:
    if not name.endswith(".json"):
        return text
    try:
        return json_text.parse(text)
    except ValueError:
        return text


# Running


def _run_all(context: Context, parts: Sequence[Part], report: SupportReport) -> tuple[PartResult, ...]:
    """Collect all parts side by side. A part that takes too long is left out, and its thread goes on in vain."""
    outcomes: dict[str, Collected | str] = {}

    def run(part: Part) -> None:
        try:
            with context.report.step(part.name):
                outcomes[part.name] = part.collect()
        except VclusterError as error:
            outcomes[part.name] = error.message
        except Exception as error:  # noqa: BLE001 - a fault in one part must not hide the others
            outcomes[part.name] = f"{type(error).__name__}: {error}"

    threads = {part.name: threading.Thread(target=run, args=(part,), daemon=True) for part in parts}
    for thread in threads.values():
        thread.start()
    ends_s = time.monotonic() + PART_TIMEOUT_S
    for thread in threads.values():
        thread.join(max(0.0, ends_s - time.monotonic()))
    late = f"timed out after {PART_TIMEOUT_S:.0f} s"
    return tuple(_added(report, part, outcomes.get(part.name, late), part.name not in outcomes) for part in parts)


def _added(report: SupportReport, part: Part, outcome: Collected | str, is_late: bool) -> PartResult:
    """Add the outcome of a part to the report."""
    if isinstance(outcome, str):
        return PartResult(part.name, (), report.omit(part.name, outcome), is_late)
    names = [
        report.add(name, content, part.about or _about(name.split("/")[2])) for name, content in outcome.files.items()
    ]
    for name, reason in outcome.absent.items():
        report.omit(name, reason)
    errors = [f"{name}: {report.omit(name, reason)}" for name, reason in outcome.failed.items()]
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return PartResult(part.name, tuple(names), errors[0] + more if errors else "")


def _about(name: str) -> str:
    return ABOUT_FILES[name.partition(".")[0]]
