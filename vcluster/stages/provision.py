"""Run the user's script on nodes, as root, with its payload."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcluster import guest
from vcluster.adapters.process import Completed, last_lines
from vcluster.adapters.ssh.ssh_session import Session
from vcluster.errors import RequestError, VclusterError
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import path_shown, quoted
from vcluster.render import node_actions as paths
from vcluster.stages import payload
from vcluster.stages.guest_answer import find
from vcluster.stages.payload import Payload
from vcluster.util import parallel
from vcluster.util.deadline import Cancelled, Deadline
from vcluster.util.events import Reporter

FANOUT = 64
NODE_LOGS = "/var/log/vcluster"
NODE_PAYLOADS = "/var/lib/vcluster/payloads"
CANNOT_RUN = 126  # the exit code of shells for a program that exists and cannot be run
BROKEN = 255  # the exit code of ssh(1) for a connection that broke
NAME_MAX = 100


@dataclass(frozen=True, slots=True)
class Job:
    """A script and its payload. It runs on at most `fanout` nodes at a time; `keep_going` continues after a failure."""

    script: Path
    text: bytes
    payload: Payload | None = None
    keep_going: bool = False
    fanout: int = FANOUT

    @classmethod
    def read(
        cls, script: Path, payload_path: Path | None = None, *, keep_going: bool = False, fanout: int = FANOUT
    ) -> Job:
        """Read a job completely. Raises RequestError for a script or a payload that cannot be used."""
        content = payload.read(payload_path) if payload_path else None
        return cls(script, _read_script(script), content, keep_going, fanout)

    @property
    def name(self) -> str:
        """The script's name, with characters that a log's name cannot hold replaced."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.script.name)[:NAME_MAX]

    @property
    def log_name(self) -> str:
        """The name of its log folder on the controller, and of its log file on a node, without the suffix."""
        return f"provision-{self.name}"


def _read_script(script: Path) -> bytes:
    try:
        text = script.read_bytes()
    except OSError as error:
        raise RequestError(f"script {path_shown(script)}: {error.strerror}") from error
    if not re.match(rb"#![ \t]*/", text):
        raise RequestError(
            f"script {path_shown(script)} has no interpreter line", hint="begin the script with a line like #!/bin/sh"
        )
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
    """Run a job on nodes (on all, if none are given), over sessions of root. A payload needs the head's session.

    The deadline of each session derives from `deadline`.
    Returns, by node, the script's output and exit code, or in `stderr` the reason why it could not be run.
    The value is None for a node on which the script was not run because it failed on another.
    The output goes to NODE.log in the folder `logs` as it arrives.
    """
    nodes = plan.nodes if nodes is None else nodes
    request = _request(job)
    if job.payload:
        head, shared = sessions[plan.head.name], paths.shared_folder(plan)
        source = payload.put(head, job.payload, shared, user=plan.user, deadline=head.deadline, report=report)
        request |= {
            "folder": f"{NODE_PAYLOADS}/{job.payload.name}",
            "payload": {"source": source, "digest": job.payload.digest, "size": job.payload.size_bytes},
        }
    _clear_logs(logs, nodes)
    has_failed = threading.Event()

    def work(node: Node) -> Completed | None:
        if has_failed.is_set() and not job.keep_going:
            return None
        node_request = request | {"environment": _environment(plan, node, request["folder"])}
        completed = _run_on(sessions[node.name], job, node_request, logs, deadline, report)
        if completed.exit_code:
            has_failed.set()
        return completed

    done = parallel.each(nodes, work, deadline=deadline, limit=job.fanout)
    return {node.name: completed for node, completed in zip(nodes, done, strict=True)}


def require_passed(results: Mapping[str, Completed | None], job: Job, *, hint: str, with_output: bool) -> None:
    """Raise VclusterError with the nodes on which a job failed and those on which it was not run.

    `with_output` adds the last line of output of each, for callers that neither print the output nor keep the logs.
    """
    failed = {name: completed for name, completed in results.items() if completed and completed.exit_code}
    if not failed:
        return
    left = [name for name, completed in results.items() if completed is None]
    rest = f" and was not run on {folded(left)}" if left else ""
    outputs = [f"\n  {name}: {last_lines(completed, 1)}" for name, completed in failed.items()] if with_output else []
    detail = f":{''.join(outputs)}" if outputs else ""
    raise VclusterError(f"{job.script.name} failed on {folded(failed)}{rest}{detail}", hint=hint)


def _request(job: Job) -> dict[str, object]:
    return {
        "script": base64.b64encode(job.text).decode(),
        "name": job.name,
        "folder": None,
        "payload": None,
        "log": f"{NODE_LOGS}/{job.log_name}.log",
    }


def _environment(plan: Plan, node: Node, folder: object) -> dict[str, object]:
    variables = {
        "VCLUSTER_NODE": node.name,
        "VCLUSTER_CLUSTER": plan.name,
        "VCLUSTER_HEAD": plan.head.name,
        "VCLUSTER_USER": plan.user,
    }
    return variables | ({"VCLUSTER_PAYLOAD": folder} if folder else {})


def _clear_logs(logs: Path, nodes: Sequence[Node]) -> None:
    """Remove the logs of an earlier run."""
    for node in nodes:
        (logs / f"{node.name}.log").unlink(missing_ok=True)


def _run_on(
    session: Session, job: Job, request: Mapping[str, object], logs: Path, deadline: Deadline, report: Reporter
) -> Completed:
    name = session.name
    report.emit("start", "provision", name, job.script.name)
    with (logs / f"{name}.log").open("wb") as log:

        def on_output(stream: str, data: bytes) -> None:
            if stream == "stdout":
                log.write(data)
                log.flush()
                report.emit("progress", "provision", name, _last_line(data.decode(errors="replace")))

        try:
            deadline.check(f"{job.script.name} on {name}")
            ended = session.run_program(
                guest.program("provision"),
                json.dumps(request).encode(),
                awaited=job.script.name,
                on_output=on_output,
            )
            completed = _script_result(ended)
        except Cancelled:
            raise
        except VclusterError as error:
            completed = Completed(BROKEN, "", error.message)
        log.write(completed.stderr.encode())
    if completed.exit_code:
        line = _last_line(completed.stderr or completed.stdout)
        report.emit("fail", "provision", name, f"exit code {completed.exit_code}: {line}")
    else:
        report.emit("end", "provision", name)
    return completed


def _script_result(ended: Completed) -> Completed:
    """The script's output and exit code, which the guest program reports in its last line."""
    answer = find(_last_line(ended.stderr)) or {}
    if "error" in answer:
        return Completed(CANNOT_RUN, ended.stdout, quoted(answer["error"]))
    if isinstance(exit_code := answer.get("exit_code"), int):
        return Completed(exit_code, ended.stdout, "")
    return Completed(ended.exit_code or BROKEN, ended.stdout, ended.stderr)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
