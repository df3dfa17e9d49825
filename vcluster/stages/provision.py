"""Running a script of the user's on nodes, as root, with what it brings along."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcluster import guest
from vcluster.adapters.process import Completed, last_words
from vcluster.adapters.ssh.ssh_session import Session
from vcluster.errors import RequestError, VclusterError
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.render import node_actions as paths
from vcluster.stages import payload
from vcluster.stages.payload import Payload
from vcluster.util import parallel
from vcluster.util.deadline import Cancelled, Deadline
from vcluster.util.events import Reporter

FANOUT = 64
NODE_LOGS = "/var/log/vcluster"
CANNOT_RUN = 126  # the exit code of shells for a program that is there and cannot be run
BROKEN = 255  # that of ssh(1) for a connection that broke
NAME_MAX = 100


@dataclass(frozen=True, slots=True)
class Job:
    """A script, and what it brings along; `keep_going` after a failure, on at most `fanout` nodes at a time."""

    script: Path
    text: bytes
    payload: Payload | None = None
    keep_going: bool = False
    fanout: int = FANOUT

    @classmethod
    def read(
        cls, script: Path, payload_path: Path | None = None, *, keep_going: bool = False, fanout: int = FANOUT
    ) -> Job:
        """A job, read in whole before anything is done. Raises RequestError for what can be no script or payload."""
        brought = payload.read(payload_path) if payload_path else None
        return cls(script, _read_script(script), brought, keep_going, fanout)

    @property
    def name(self) -> str:
        """What logs are called by: the script's name, as far as it is fit for that."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.script.name)[:NAME_MAX]

    @property
    def log_name(self) -> str:
        """The folder of its logs on this machine, and the file on a node without its ending."""
        return f"provision-{self.name}"


def _read_script(script: Path) -> bytes:
    try:
        text = script.read_bytes()
    except OSError as error:
        raise RequestError(f"script {script}: {error.strerror}") from error
    if not re.match(rb"#![ \t]*/", text):
        raise RequestError(f"script {script} does not say what runs it", hint="by a first line such as #!/bin/sh")
    return text


def run(
    plan: Plan,
    sessions: Mapping[str, Session],
    job: Job,
    *,
    nodes: Sequence[Node] | None = None,
    deadline: Deadline,
    report: Reporter,
    logs: Path,
) -> dict[str, Completed | None]:
    """Run a job on nodes (all, if none are given), over root's sessions; the head's is needed for a payload.

    Returns by node what its script has printed and its exit code, or why it could not be run in `stderr`; None where it
    was not run because it had failed elsewhere. What is printed goes to NODE.log in the folder `logs` as it comes.
    """
    nodes = plan.nodes if nodes is None else nodes
    request = _request(job)
    if job.payload:
        head, shared = sessions[plan.head.name], paths.shared_folder(plan)
        request["folder"] = payload.put(head, job.payload, shared, deadline=deadline, report=report)
    _clear_logs(logs, nodes)
    has_failed = threading.Event()

    def work(node: Node) -> Completed | None:
        if has_failed.is_set() and not job.keep_going:
            return None
        mine = request | {"environment": _environment(plan, node, request["folder"])}
        completed = _run_on(sessions[node.name], job, mine, logs, deadline, report)
        if completed.exit_code:
            has_failed.set()
        return completed

    done = parallel.each(nodes, work, deadline=deadline, limit=job.fanout)
    return {node.name: completed for node, completed in zip(nodes, done, strict=True)}


def require_passed(results: Mapping[str, Completed | None], job: Job, *, hint: str, with_words: bool) -> None:
    """Raise VclusterError with the nodes that a job has failed on and those it was not run on, unless all went well.

    `with_words` adds the last thing it said on each, for where neither its output is shown nor its logs are kept.
    """
    failed = {name: completed for name, completed in results.items() if completed and completed.exit_code}
    if not failed:
        return
    left = [name for name, completed in results.items() if completed is None]
    rest = f" and was not run on {folded(left)}" if left else ""
    said = [f"\n  {name}: {last_words(completed, 1)}" for name, completed in failed.items()] if with_words else []
    words = f":{''.join(said)}" if said else ""
    raise VclusterError(f"{job.script.name} failed on {folded(failed)}{rest}{words}", hint=hint)


def _request(job: Job) -> dict[str, object]:
    return {
        "script": base64.b64encode(job.text).decode(),
        "name": job.name,
        "folder": None,
        "log": f"{NODE_LOGS}/{job.log_name}.log",
    }


def _environment(plan: Plan, node: Node, folder: object) -> dict[str, object]:
    known = {
        "VCLUSTER_NODE": node.name,
        "VCLUSTER_CLUSTER": plan.name,
        "VCLUSTER_HEAD": plan.head.name,
        "VCLUSTER_USER": plan.user,
    }
    return known | ({"VCLUSTER_PAYLOAD": folder} if folder else {})


def _clear_logs(logs: Path, nodes: Sequence[Node]) -> None:
    """Logs of an earlier run would be taken for this one's."""
    for node in nodes:
        (logs / f"{node.name}.log").unlink(missing_ok=True)


def _run_on(
    session: Session, job: Job, request: Mapping[str, object], logs: Path, deadline: Deadline, report: Reporter
) -> Completed:
    name = session.name
    report.emit("start", "provision", name, job.script.name)
    with (logs / f"{name}.log").open("wb") as log:

        def hear(stream: str, data: bytes) -> None:
            if stream == "stdout":
                log.write(data)
                log.flush()
                report.emit("progress", "provision", name, _last_line(data.decode(errors="replace")))

        try:
            deadline.check(f"{name}: {job.script.name}")
            ended = session.run_program(
                guest.program("provision"),
                json.dumps(request).encode(),
                awaited=job.script.name,
                deadline=deadline,
                on_output=hear,
            )
            completed = _judge(ended)
        except Cancelled:
            raise
        except VclusterError as error:
            completed = Completed(BROKEN, "", error.message)
        log.write(completed.stderr.encode())
    if completed.exit_code:
        words = _last_line(completed.stderr or completed.stdout)
        report.emit("fail", "provision", name, f"exit code {completed.exit_code}: {words}")
    else:
        report.emit("end", "provision", name)
    return completed


def _judge(ended: Completed) -> Completed:
    """What the script left behind, as the guest program tells in its last line."""
    try:
        answer = json.loads(_last_line(ended.stderr))
    except ValueError:
        return Completed(ended.exit_code or BROKEN, ended.stdout, ended.stderr)
    if "error" in answer:
        return Completed(CANNOT_RUN, ended.stdout, answer["error"])
    return Completed(answer["exit_code"], ended.stdout, "")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
