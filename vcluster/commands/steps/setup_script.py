"""The user's setup script and its payload, kept with the cluster, so that it also runs on nodes that `add` makes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from vcluster.adapters.ssh.ssh_session import Session
from vcluster.commands.steps.deployment import Deployment
from vcluster.errors import MissingError
from vcluster.fleet.ledger import ClusterFiles
from vcluster.model.plan import Node
from vcluster.stages import provision


def keep(files: ClusterFiles, job: provision.Job) -> None:
    """Copy the script and the payload of a create into the cluster's folder, which `clear` removes."""
    script = files.setup / "script" / job.script.name
    try:
        script.parent.mkdir(parents=True, mode=0o700)
        script.write_bytes(job.text)
        if job.payload:
            _copy(job.payload.source, files.setup / "payload")
    except (OSError, shutil.Error) as error:
        raise MissingError(
            f"cannot keep {job.script.name} in {files.setup}: {error}", hint="free space there"
        ) from error


def _copy(source: Path, folder: Path) -> None:
    if source.is_dir():  # its name is not part of the payload; "..", for example, has another one
        shutil.copytree(source, folder / (source.resolve().name or "root"), symlinks=True)
    else:
        folder.mkdir()
        shutil.copyfile(source, folder / source.name)
        shutil.copymode(source, folder / source.name)


def kept(files: ClusterFiles) -> provision.Job | None:
    """The job of the create, or None if it had no script."""
    script, payload = (_only_entry(files.setup / part) for part in ("script", "payload"))
    return provision.Job.read(script, payload) if script else None


def _only_entry(folder: Path) -> Path | None:
    return next(folder.iterdir(), None) if folder.is_dir() else None


def run(
    cluster: Deployment,
    job: provision.Job,
    sessions: Mapping[str, Session],
    *,
    nodes: Sequence[Node] | None = None,
    hint: str,
) -> None:
    """Run a job on nodes (on all, if none are given). The error quotes its output: the logs may be removed."""
    logs = cluster.files.make_logs(job.log_name)
    results = provision.run(
        cluster.plan, sessions, job, nodes=nodes, deadline=cluster.deadline, report=cluster.report, logs=logs
    )
    provision.require_passed(results, job, hint=hint, with_output=True)
