"""vcluster doctor."""

from __future__ import annotations

import click

from vcluster.cli import common
from vcluster.errors import MissingError


@click.command()
@common.output_option
def doctor(output: str) -> None:
    """Look this machine over; each finding comes with the command that mends it."""
    from vcluster import doctor as examination

    findings = examination.examine(common.site())
    common.emit(output, findings, lambda: "\n".join(map(_line, findings)))
    errors = [finding for finding in findings if finding.level == examination.ERROR]
    if errors:
        raise MissingError(f"{len(errors)} things are missing", hint="the commands above mend them")


def _line(finding: object) -> str:
    level, what, detail, mend = (getattr(finding, name) for name in ("level", "what", "detail", "mend"))
    return f"{level:8}{what}: {detail}" + (f"\n        mend: {mend}" if mend else "")


COMMANDS = (doctor,)
