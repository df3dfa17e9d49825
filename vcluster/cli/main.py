"""The command `vcluster`: its subcommands, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from types import FrameType

import click

from vcluster import __version__
from vcluster.adapters.network import load_less_of_pyroute2
from vcluster.adapters.ssh import load_less_of_paramiko
from vcluster.cli import common, guidance
from vcluster.cli.clusters import clear, create, graph, inventory, lifecycle, scale, verify
from vcluster.cli.help_layout import Group, examples
from vcluster.cli.nodes import access, check, copy, execute, fault, gateway, link, measure, power, provision, terminals
from vcluster.cli.output import streams, terminal
from vcluster.cli.servers import capture, doctor, image, support, switch, watch
from vcluster.errors import EXIT_CLOSED_PIPE, EXIT_INTERRUPTED, SeveralErrors, VclusterError
from vcluster.util.interrupts import on_interrupt

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
# A group without a command: its help is the message. Before click 8.2 this was not an error.
HELP: tuple[type[click.ClickException], ...] = tuple(
    filter(None, [getattr(click.exceptions, "NoArgsIsHelpError", None)])
)
LINE_MAX = 500  # characters of a line in a message about the command line
SECTIONS = {
    "Create and delete": ("local", "remote", "shared", "clear", "list", "status", "add", "remove"),
    "Run on nodes": ("ssh", "exec", "mpiexec", "shell", "copy", "provision", "console"),
    "Operate": ("start", "stop", "repair", "power", "gateway", "link", "fault"),
    "Verify and measure": (
        "check", "verify", "path", "discover", "timing", "capture", "measure", "graph", "watch", "doctor", "support",
    ),
    "Images": ("image",),
    "Advanced": ("switch", "ssh-config", "completion"),
}  # fmt: skip


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    sections=SECTIONS,
    aliases={"delete": "clear", "destroy": "clear"},
    guidance=guidance.COMMANDS,
    epilog=examples("sudo vcluster local create -n 4", "sudo vcluster exec -- uname -r", "sudo vcluster clear"),
)
@click.version_option(__version__, prog_name="vcluster")
def main() -> None:
    """Create and run MPI clusters of virtual machines behind one observable switch."""


for module in (
    create, clear, inventory, scale, lifecycle, access, execute, copy, terminals, provision, power, gateway, link,
    fault, check, verify, doctor, support, image, switch, capture, graph, measure, watch,
):  # fmt: skip
    for command in module.COMMANDS:
        main.add_command(command)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell completion script.

    Use it as in: eval "$(vcluster completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"vcluster has no completion for {shell}")
    terminal.print_text(kind(main, {}, "vcluster", "_VCLUSTER_COMPLETE").source())


def run() -> None:
    """The entry point: never a traceback for what a user can cause."""
    streams.prepare()
    on_interrupt(_interrupt)
    if os.geteuid() == 0:
        os.umask(0o022)  # QEMU runs as another user and opens files below the folders that root creates here
    load_less_of_pyroute2()
    load_less_of_paramiko()
    exit_code = _run()
    on_interrupt(lambda *_: _end(exit_code))  # it comes too late to change the result
    atexit.register(_end, exit_code)  # Python calls it when all threads have ended
    sys.exit(exit_code)


def _end(exit_code: int) -> None:
    """End at once. Python would first free all objects, which takes seconds while nodes occupy the processor."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(streams.OutputError):  # the exit code is known, and shows it
            stream.flush()
    os._exit(exit_code)


def _run() -> int:
    invocation = common.Invocation()
    exit_code = _exit_code(invocation)
    if invocation.log:
        invocation.log.end(exit_code)
    if invocation.has_late_threads:
        _end(exit_code)
    return exit_code


def _exit_code(invocation: common.Invocation) -> int:
    try:
        result = main.main(prog_name="vcluster", standalone_mode=False, auto_envvar_prefix=None, obj=invocation)
        sys.stdout.flush()  # an error at exit would have neither a message nor an exit code
        return result if isinstance(result, int) else 0
    except HELP as error:
        terminal.print_text(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _complain(usage_message(error), _usage_hint(error), error.exit_code, invocation)
    except SeveralErrors as error:
        for one in error.errors:
            _complain(one.message, one.hint, 1, invocation)
        return error.exit_code
    except VclusterError as error:
        return _complain(error.message, error.hint, error.exit_code, invocation)
    except (KeyboardInterrupt, click.Abort):
        on_interrupt(lambda *_: None)  # the message has priority over another interrupt
        return _complain("interrupted", None, EXIT_INTERRUPTED, invocation)
    except streams.OutputError as error:
        return EXIT_CLOSED_PIPE if error.is_closed_pipe else _complain(str(error), None, 1, invocation)
    except OSError as error:
        return _complain(
            f"{error.filename or 'the system'}: {error.strerror or error}", "vcluster doctor", 1, invocation
        )
    except Exception as error:  # noqa: BLE001 - a fault of vcluster
        return _complain_of_fault(error, invocation)


def _complain_of_fault(error: Exception, invocation: common.Invocation) -> int:
    """The message for a fault of vcluster. Its trace is in the log, and on standard error with -v."""
    import traceback

    from vcluster.cli.output import verbose
    from vcluster.model.quoting import one_line

    trace = traceback.format_exc()
    if verbose.is_on():
        terminal.print_text(trace, err=True)
    message = f"internal error: {type(error).__name__}: {one_line(error)}"
    return _complain(message, "vcluster support", 1, invocation, details=trace)


def usage_message(error: click.ClickException) -> str:
    """The message of click about a wrong command line. It quotes a user's text, which can be of any length."""
    lines = error.format_message().split("\n")
    return "\n".join(line if len(line) <= LINE_MAX else f"{line[:LINE_MAX]}…" for line in lines)


def _usage_hint(error: click.ClickException) -> str | None:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else None


def _complain(
    message: str, hint: str | None, exit_code: int, invocation: common.Invocation, *, details: str = ""
) -> int:
    from vcluster.cli.output.progress import may_color

    if invocation.log:
        invocation.log.fail(message, details)
    reader = common.reader(invocation.cluster)
    head = click.style("vcluster:", fg="red") if may_color(sys.stderr) else "vcluster:"
    gap = "\n  " if "\n" in message else " "  # the last of several lines may be a command to be copied
    hint = reader.complete_hint(hint, sys.argv[1:]) if hint else None
    tail = f"{gap}({hint})" if hint else ""
    terminal.complain(f"{reader.complete(message)}{tail}", head=head, color=may_color(sys.stderr))
    return exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
    raise KeyboardInterrupt
