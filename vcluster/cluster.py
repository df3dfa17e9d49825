"""The spine: create, clear, status. Each reads like its description."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from vcluster import ledger, naming, parallel, servers
from vcluster.errors import ConflictError, DeadlineError, MissingError, RequestError, SeveralErrors, VclusterError
from vcluster.events import Deadline, Reporter
from vcluster.hosts import accel as acceleration
from vcluster.hosts import ssh
from vcluster.hosts.hypervisor import Hypervisor
from vcluster.images.store import Store
from vcluster.keys import Keys, make_keys
from vcluster.ledger import ClusterFiles, Ledger
from vcluster.model import LOCAL_SERVER, Image, Node, Plan, Spec
from vcluster.plan import make_plan
from vcluster.recipes import guest_file
from vcluster.render import guest
from vcluster.render.seed import seed_files
from vcluster.render.ssh import known_hosts, ssh_config
from vcluster.resources import domains, links, networks, seeds, volumes
from vcluster.resources.found import Found
from vcluster.servers import Server
from vcluster.stages import boot, check, configure
from vcluster.status import Status, status_of

# In the order of removal; creation goes the other way.
KINDS = {"domains": domains, "volumes": volumes, "networks": networks, "links": links}


@dataclass(frozen=True, slots=True)
class Site:
    """Where a command works: the state on disk, the libvirt it talks to, the images, and who listens."""

    state_root: Path
    uri: str
    images: Store
    report: Reporter

    def files(self, name: str) -> ClusterFiles:
        """The folder of a cluster."""
        return ClusterFiles(self.state_root, name)

    @contextmanager
    def server(self) -> Iterator[Server]:
        """This machine, connected."""
        with Hypervisor(self.uri) as hypervisor:
            yield Server(LOCAL_SERVER, hypervisor)


# Create


def plan(site: Site, server: Server, spec: Spec, *, image: Image, accel: str) -> Plan:
    """Decide everything a cluster will be, and touch nothing."""
    facts = servers.observe(server, site.state_root)
    return make_plan(spec, facts, image=image, accel=accel, uri=site.uri)


def choose_accel(site: Site, asked: str, image: Image) -> tuple[str, str]:
    """kvm where it works, else tcg, and a line for the user where there is something to say.

    Raises MissingError when kvm is asked for and does not work.
    """
    if asked == "tcg":
        return "tcg", ""
    kernel = image.kernel or site.images.any_kernel()
    verdict = acceleration.probe(kernel, site.state_root / "accel.json")
    if verdict.kvm_works:
        return "kvm", ""
    if asked == "kvm":
        raise MissingError(
            f"KVM does not work here: {verdict.reason}", hint="--accel auto emulates instead, more slowly"
        )
    return "tcg", f"KVM does not work here ({verdict.reason}): nodes are emulated (TCG), several times slower"


def create(site: Site, spec: Spec, *, image_name: str, accel: str, keep: bool) -> Status:
    """Make a cluster and prove it ready. Whatever goes wrong, what was made is removed again, unless `keep`."""
    servers.require_rights()
    files = site.files(spec.name)
    deadline = Deadline(spec.timeout_s)
    image = site.images.find(image_name)
    chosen, remark = choose_accel(site, accel, image)
    with site.server() as server, ExitStack() as stack:
        with ledger.planning(site.state_root):
            _refuse_existing(server, files)
            decided = plan(site, server, spec, image=image, accel=chosen)
            _refuse_foreign(server, decided)
            stack.enter_context(files.locked())
            stack.push(_way_down(site, server, files, keep=keep))
            keys = make_keys(spec.name, spec.node_names)
            _write_down(files, decided, keys)
        if remark:
            site.report.note(remark)
        _bring_up(site, server, files, decided, keys, deadline)
        files.write_ledger(_ledger("ready", decided))
        return observe_status(server, files)


def _way_down(site: Site, server: Server, files: ClusterFiles, *, keep: bool) -> Callable[..., None]:
    """What happens when a create ends by anything but success; an exit callback, so no failure can slip past it."""

    def end(kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return
        if keep:
            site.report.note(f"kept as it is: vcluster clear {files.name} removes it")
        else:
            remove(site, server, files)

    return end


def _refuse_existing(server: Server, files: ClusterFiles) -> None:
    if files.folder.exists() or survey(server, files.name):
        raise ConflictError(
            f"cluster {files.name} exists, or something is left of it",
            hint=f"vcluster clear {files.name}, or take another --name",
        )


def _refuse_foreign(server: Server, decided: Plan) -> None:
    """Nothing of ours bears these names; whatever does is somebody else's."""
    taken = {**server.hypervisor.names(), "link": links.names()}
    needed = [("domain", node.domain) for node in decided.nodes]
    needed += [("link", port) for node in decided.nodes for port in (node.port, node.management_port)]
    for planned in decided.servers:
        needed += [("network", planned.network.name), ("pool", planned.pool.name), ("link", planned.network.bridge)]
        needed += [("link", bridge.name) for bridge in planned.bridges]
    for kind, name in needed:
        if name in taken[kind]:
            raise ConflictError(f"{kind} {name} exists and is not ours", hint="take another --name")


def _write_down(files: ClusterFiles, decided: Plan, keys: Keys) -> None:
    """The ledger first: from here on a killed command leaves a trace to follow."""
    files.write_ledger(_ledger("creating", decided))
    files.write_keys(keys)
    config = ssh_config(decided, identity=files.identity, known_hosts=files.known_hosts)
    files.write_ssh(config=config, known_hosts=known_hosts(decided, keys))
    files.make_consoles()


def _ledger(state: str, decided: Plan) -> Ledger:
    return Ledger(ledger.VERSION, state, datetime.now(timezone.utc).isoformat(timespec="seconds"), decided)


def _bring_up(site: Site, server: Server, files: ClusterFiles, decided: Plan, keys: Keys, deadline: Deadline) -> None:
    with site.report.step("network", awaiting="bridges, networks and pools"):
        for planned in decided.servers:
            links.create(planned)
            networks.create(server, planned, decided.name)
            volumes.create_pool(server, planned)
    work = NodeWork(site, server, files, decided, keys, deadline)
    with ExitStack() as open_sessions:
        sessions = {
            session.name: open_sessions.enter_context(session)
            for session in parallel.each(decided.nodes, work.bring_up, deadline=deadline)
        }
        verdict = check.run(decided, sessions, deadline=deadline, report=site.report)
    if not verdict.passed:
        raise VclusterError("the cluster is not ready:" + "".join(f"\n  {failure}" for failure in verdict.failed))


class NodeWork:
    """What happens to each node, beside the others; workers wait for the head's export and for nothing else."""

    def __init__(
        self, site: Site, server: Server, files: ClusterFiles, decided: Plan, keys: Keys, deadline: Deadline
    ) -> None:
        self._site, self._server, self._files = site, server, files
        self._plan, self._keys, self._deadline = decided, keys, deadline
        self._exported = threading.Event()

    def bring_up(self, node: Node) -> ssh.Session:
        """From nothing to a configured node, logged in to. What takes too long shows the node's last words."""
        try:
            return self._bring_up(node)
        except DeadlineError as error:
            words = boot.last_words(node, self._files.console_log(node.name))
            raise DeadlineError(error.message + words, hint=error.hint) from error

    def _bring_up(self, node: Node) -> ssh.Session:
        report = self._site.report
        with report.step("create", node.name, awaiting="its disk, seed and domain"):
            seed = seed_files(self._plan, node, self._keys, guest_file=guest_file)
            volumes.create(self._server, self._plan, node, seeds.seed_iso(seed))
            domains.create(self._server, self._plan, node, self._files.console_log(node.name))
        with closing(boot.listen(self._server, node)) as words:
            deadline = self._deadline.watching(words.check)
            boot.wait_ready(words, node, deadline=deadline, report=report)
            return self._settle(node, deadline)

    def _settle(self, node: Node, deadline: Deadline) -> ssh.Session:
        with self._site.report.step("login", node.name, awaiting="a login by ssh"):
            session = log_in(self._keys, node, user="root", deadline=deadline)
        try:
            self.configure(node, session)
        except BaseException:
            session.close()
            raise
        return session

    def configure(self, node: Node, session: ssh.Session) -> tuple[str, ...]:
        """Bring a node to what the plan says; returns what had to be changed."""
        report, decided = self._site.report, self._plan
        changed = configure.apply(session, "ssh", guest.ssh_actions(decided, node, self._keys), report=report)
        if not node.is_head:
            self._await_export(node)
        changed += configure.apply(session, "nfs", guest.nfs_actions(decided, node), report=report)
        if node.is_head:
            self._exported.set()
        return changed + configure.apply(session, "mpi", guest.mpi_actions(decided), report=report)

    def _await_export(self, node: Node) -> None:
        while not self._exported.wait(0.2):
            self._deadline.check(f"{node.name}: nfs: the head's export")


def log_in(keys: Keys, node: Node, *, user: str, deadline: Deadline) -> ssh.Session:
    """A session on a node, its host key pinned."""
    return ssh.connect(
        node.name,
        str(node.management_address),
        user=user,
        private_key=keys.admin.private,
        host_key=keys.hosts[node.name].public,
        deadline=deadline,
    )


# Clear


def clear(site: Site, name: str) -> bool:
    """Remove all of a cluster. Returns whether there was anything."""
    files = site.files(name)
    with site.server() as server:
        if not files.folder.exists() and not survey(server, name):
            files.destroy()
            return False
        servers.require_rights()
        with files.locked():
            remove(site, server, files)
        return True


def remove(site: Site, server: Server, files: ClusterFiles) -> None:
    """The one way down: a failed create, an interrupt and clear all come here. Again and again is fine.

    Everything is tried; what fails is told together, and the ledger stays until nothing is left.
    """
    failures = []
    for kind, resource in KINDS.items():
        try:
            with site.report.step(f"remove {kind}"):
                resource.destroy(server, files.name)
        except VclusterError as error:
            failures.append(error)
    left = survey(server, files.name)
    if left and not failures:
        failures.append(VclusterError(f"left of {files.name}: {', '.join(map(str, left))}"))
    if failures:
        raise SeveralErrors(failures)
    files.destroy()


def survey(server: Server, name: str | None = None) -> tuple[Found, ...]:
    """Everything on a server that carries the mark of the cluster, or of any."""
    found = (thing for resource in KINDS.values() for thing in resource.observe(server))
    return tuple(thing for thing in found if name in (None, thing.cluster))


def leftovers(site: Site, name: str | None) -> tuple[Found, ...]:
    """What is left of a cluster, or of any: marked things, and folders of state."""
    with site.server() as server:
        marked = survey(server, name)
    names = [known for known in ledger.cluster_names(site.state_root) if name in (None, known)]
    return marked + tuple(Found("state", str(site.files(known).folder), known) for known in names)


# Status


def status(site: Site, name: str) -> Status:
    """What is there of a cluster."""
    with site.server() as server:
        return observe_status(server, site.files(name))


def observe_status(server: Server, files: ClusterFiles) -> Status:
    """Hold the ledger against what a server really has."""
    kept = read_ledger(files)
    return status_of(
        kept.plan,
        ledger_state=kept.state,
        is_being_changed=files.is_locked(),
        domains={domain.name: domain.is_active for domain in server.hypervisor.domains()},
        links={found.name for found in links.observe(server)},
    )


def cluster_names(site: Site) -> tuple[str, ...]:
    """All clusters of this machine, by ledger or by mark."""
    with site.server() as server:
        marked = {found.cluster for found in survey(server)}
    return tuple(sorted(marked | set(ledger.cluster_names(site.state_root))))


def the_one(site: Site, name: str | None) -> str:
    """The cluster a command is about: the one named, or the only one there is."""
    if name is not None:
        return naming.check_cluster_name(name)
    names = ledger.cluster_names(site.state_root)
    if len(names) == 1:
        return names[0]
    if names:
        raise RequestError(f"there are {len(names)} clusters: {', '.join(names)}", hint="say which with --name")
    raise RequestError("there is no cluster", hint="vcluster local create -n 4")


def read_ledger(files: ClusterFiles) -> Ledger:
    """The ledger of a cluster that must have one."""
    kept = files.read_ledger()
    if kept is None and files.folder.exists():
        raise VclusterError(f"the ledger of cluster {files.name} is lost", hint=f"vcluster clear {files.name}")
    if kept is None:
        raise RequestError(f"there is no cluster {files.name}", hint="vcluster list")
    return kept
