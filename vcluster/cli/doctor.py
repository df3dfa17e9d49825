"""vcluster doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vcluster.cli import common
from vcluster.errors import MissingError, RequestError

if TYPE_CHECKING:
    from vcluster.commands.doctor import Finding
    from vcluster.model.spec import Spec


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path), metavar="[CONFIG.ini]")
@click.option(
    "--switch",
    "host",
    envvar="VCLUSTER_SWITCH",
    metavar="HOST",
    help="This machine and a switch there, [user@]host[:port].",
)
@common.output_option
def doctor(config: Path | None, host: str | None, output: str) -> None:
    """Look this machine over, or every server of a cluster to be and the paths between them.

    Each finding comes with the command that mends it.
    """
    from vcluster.commands import doctor as examination

    context = common.context()
    spec = _spec(config, host)
    findings = examination.check_this_machine(
        context, carries_nodes=not spec or any(one.login is None for one in spec.servers)
    )
    if spec:
        findings += examination.check_servers(context, spec)
    common.emit(output, [_document(one) for one in findings], lambda: "\n".join(map(_line, findings)))
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise MissingError(f"{len(errors)} things are missing", hint="the commands above mend them")


def _spec(config: Path | None, host: str | None) -> Spec | None:
    """The cluster to be that is asked about."""
    from vcluster.cli.create import server_of
    from vcluster.config import config_file as configuration
    from vcluster.model.spec import Spec

    if config and host:
        raise RequestError("a file and --switch exclude each other")
    if config:
        return configuration.read(config).spec
    return Spec(name="doctor", mode="remote", node_names=("node1",), switch=server_of(host)) if host else None


def _document(finding: Finding) -> dict[str, str]:
    """`mend` is the former name of `fix`, kept for scripts."""
    return {**asdict(finding), "mend": finding.fix}


def _line(finding: Finding) -> str:
    where = f"{finding.server}: " if finding.server else ""
    fix = f"\n        fix: {finding.fix}" if finding.fix and finding.level != "ok" else ""
    return f"{finding.level:8}{where}{finding.what}: {finding.detail}{fix}"


COMMANDS = (doctor,)
