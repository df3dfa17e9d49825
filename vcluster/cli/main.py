"""The command `vcluster`: its subcommands, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import click

from vcluster import __version__
from vcluster.cli import access, create, doctor, gateway, image, lifecycle, power, provision, scale, switch
from vcluster.errors import EXIT_INTERRUPTED, SeveralErrors, VclusterError

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=HELP)
@click.version_option(__version__, prog_name="vcluster")
def main() -> None:
    """Virtual MPI clusters whose traffic crosses a switch one can study."""


for command in (
    *create.COMMANDS,
    *lifecycle.COMMANDS,
    *scale.COMMANDS,
    *access.COMMANDS,
    *power.COMMANDS,
    *provision.COMMANDS,
    *gateway.COMMANDS,
    *switch.COMMANDS,
    *image.COMMANDS,
    *doctor.COMMANDS,
):
    main.add_command(command)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(vcluster completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(main, {}, "vcluster", "_VCLUSTER_COMPLETE").source())


def run() -> None:
    """The entry point: never a traceback for what a user can cause."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    sys.exit(_run())


def _run() -> int:
    try:
        result = main.main(prog_name="vcluster", standalone_mode=False, auto_envvar_prefix=None)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _complain(error.format_message(), _usage_hint(error), error.exit_code)
    except SeveralErrors as error:
        for one in error.errors:
            _complain(one.message, one.hint, 1)
        return error.exit_code
    except VclusterError as error:
        return _complain(error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", None, EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{error.filename or 'the system'}: {error.strerror or error}", "vcluster doctor", 1)


def _usage_hint(error: click.ClickException) -> str | None:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else None


def _complain(message: str, hint: str | None, exit_code: int) -> int:
    from vcluster.cli.output.progress import may_color

    head = click.style("vcluster:", fg="red") if may_color(sys.stderr) else "vcluster:"
    gap = "\n  " if "\n" in message else " "  # the last of several lines may be a command to be copied
    tail = f"{gap}({hint})" if hint else ""
    click.echo(f"{head} {message}{tail}", err=True, color=may_color(sys.stderr))
    return exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
    raise KeyboardInterrupt
