"""Inspect every promise about a cluster that is up. It changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from vcluster.agent.survey.file_states import file_state, text_of_file, tree_states
from vcluster.commands.steps.deployment import ssh_texts
from vcluster.commands.steps.inventory import read_ledger
from vcluster.errors import ConflictError, MissingError, VclusterError
from vcluster.fleet import ledger as ledgers
from vcluster.fleet import servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles, Ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.model.plan import Plan
from vcluster.model.promises import Fact, PromiseReport
from vcluster.model.spec import LOCAL_SERVER
from vcluster.planning import controller_promises, file_promises, server_promises
from vcluster.util import parallel
from vcluster.util.events import timed_call

ANSWERS = "answers"
RUN_WITH_SUDO = "run it with sudo"  # the hint of an error about a lack of rights


def verify(context: Context, name: str) -> PromiseReport:
    """Compare the servers and the state folder with the plan of a cluster.

    Raises ConflictError if another command changes the cluster, and MissingError without the rights to inspect it.
    """
    files = context.files(name)
    ledger = read_ledger(files)
    _refuse_changes(files)
    key = files.server_key()
    requests = [replace(one, carries_nodes=False) for one in servers.requests_for_plan(ledger.plan, key)]
    with timed_call("verify", name), context.fleet(requests, allow_unreachable=True) as fleet:
        outcomes = parallel.outcomes(
            tuple(fleet.servers.values()), lambda server: _facts_on(server, ledger.plan, _public_key(files))
        )
        facts = {LOCAL_SERVER: [*_facts_of_controller(context, fleet, files, ledger)]}
    _refuse_changes(files)
    found = dict(zip(fleet.servers, outcomes, strict=True)) | fleet.unreachable
    for server in ledger.plan.servers:
        facts.setdefault(server.name, []).extend(_facts_or_error(server.name, found[server.name]))
    return PromiseReport(name, facts)


def _refuse_changes(files: ClusterFiles) -> None:
    """Raise ConflictError while a command changes the cluster: the servers then are between two plans."""
    if files.is_locked():
        raise ConflictError(
            f"another command is changing cluster {files.name}", hint="wait for that command, or interrupt it"
        )


def _public_key(files: ClusterFiles) -> str:
    keys = files.find_keys()
    return keys.admin.public if keys else ""


def _facts_on(server: Server, plan: Plan, key: str) -> list[Fact]:
    """What one request to the server's agent finds. It is the only one, and it changes nothing."""
    planned = plan.server(server.name)
    user = server.session.user if server.session else ""
    arguments = server_promises.survey_arguments(plan, planned, trees=file_promises.trees(planned), user=user)
    seen = server.call("survey_cluster", **arguments)
    return [
        *server_promises.facts_of_server(plan, planned, seen),
        *file_promises.facts_of_files(plan, planned, seen, key=key if server.has_password else ""),
    ]


def _facts_or_error(server: str, outcome: list[Fact] | VclusterError) -> list[Fact]:
    """The facts of a server, and whether it answers. Raises MissingError if this user may not inspect the server."""
    if isinstance(outcome, MissingError) and outcome.hint == RUN_WITH_SUDO:
        raise outcome
    if isinstance(outcome, VclusterError):
        return [Fact("server-answers", server, ANSWERS, outcome.message, outcome.hint or "")]
    return [Fact("server-answers", server, ANSWERS, ANSWERS), *outcome]


def _facts_of_controller(context: Context, fleet: Fleet, files: ClusterFiles, ledger: Ledger) -> Iterator[Fact]:
    """The promises about the state folder of this user."""
    plan, uid, keys = ledger.plan, os.geteuid(), files.find_keys()
    identity, found = files.read_ssh()
    yield Fact("ledger", str(files.ledger), controller_promises.READY, ledger.state)
    required = [path.name for path in (files.ledger, files.keys, files.identity, files.known_hosts, files.ssh_config)]
    yield from controller_promises.facts_of_state_files(
        files.folder, tree_states(files.folder), required=[".", *required], uid=uid
    )
    owner = context.state_root / ledgers.OWNER
    yield controller_promises.owner_fact(plan, owner, file_state(owner), text_of_file(owner).strip(), uid=uid)
    yield from controller_promises.key_facts(plan, files.keys, keys, files.identity, identity)
    if keys and not keys.hosts.keys() ^ {node.name for node in plan.nodes} and not fleet.unreachable:
        texts = ssh_texts(fleet, files, plan, keys)
        yield controller_promises.text_fact(files.ssh_config, texts["config"], found["config"])
        yield controller_promises.text_fact(files.known_hosts, texts["known_hosts"], found["known_hosts"])
