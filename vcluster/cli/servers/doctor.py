"""vcluster doctor."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples
from vcluster.cli.server_arguments import switch_of
from vcluster.errors import MissingError, RequestError

if TYPE_CHECKING:
    from vcluster.commands.servers.doctor import Finding
    from vcluster.model.spec import Spec


@click.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster doctor                    this machine",
        "sudo vcluster doctor config.ini         every server of the file, and the tunnels between them",
        "sudo vcluster doctor --switch server2   this machine and the switch's server",
    ),
)
@click.argument("config", required=False, type=click.Path(path_type=Path), metavar="[CONFIG.ini]")
@click.option(
    "--switch", "host", envvar="VCLUSTER_SWITCH", metavar="HOST",
    help="Check this machine and the switch's server: [user@]host[:port], or a Host of ~/.ssh/config.",
)  # fmt: skip
@arguments.output_option
def doctor(config: Path | None, host: str | None, output: str) -> None:
    """Diagnose this machine, or the servers of a cluster.

    Each problem is printed with its fix, if there is one. Exits 3 when there is an error.
    """
    from vcluster.commands.servers import doctor as work

    context = common.context()
    spec = _spec(config, host)
    findings = work.check_this_machine(
        context, carries_nodes=not spec or any(one.login is None for one in spec.servers)
    )
    if spec:
        findings = tuple(dict.fromkeys((*findings, *work.check_servers(context, spec))))
    complete = functools.partial(common.reader().complete_hint, arguments=sys.argv[1:])
    document = [_document(one) for one in findings]
    common.emit(output, document, lambda found: "\n".join(_line(one, complete) for one in found))
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        has_fix = any(finding.fix for finding in errors)
        raise MissingError(
            f"doctor found {len(errors)} {'error' if len(errors) == 1 else 'errors'}",
            hint="run the commands after 'fix:' above" if has_fix else None,
        )


def _spec(config: Path | None, host: str | None) -> Spec | None:
    """The cluster whose servers are to be checked."""
    from vcluster.config import config_file as configuration
    from vcluster.model.spec import Spec

    if config and host:
        raise RequestError("a file and --switch cannot be used together")
    if config:
        return configuration.read(config).spec
    return Spec(name="doctor", mode="remote", node_names=("node1",), switch=switch_of(host)) if host else None


def _document(finding: Finding) -> dict[str, str]:
    """`mend` is the former name of `fix`; scripts may read it."""
    return {**asdict(finding), "mend": finding.fix}


def _line(found: dict[str, Any], complete: Callable[[str], str | None]) -> str:
    where = f"{found['server']}: " if found["server"] else ""
    fix = f"\n        fix: {complete(found['fix'])}" if found["fix"] and found["level"] != "ok" else ""
    return f"{found['level']:8}{where}{found['what']}: {found['detail']}{fix}"


COMMANDS = (doctor,)
