"""Every option and argument of every command, from the tree of commands. Each gets odd texts; the others are good.

A command runs below `main._run`, which turns errors into lines. It stops before its first effect.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import click
import pytest

from tests.odd import values
from tests.odd.entry_points import EntryPoint, Reached
from vcluster.adapters.ssh import openssh_config
from vcluster.cli import common, main
from vcluster.commands.servers import support
from vcluster.commands.steps import support_archive
from vcluster.fleet import servers

# Good values of required parameters, by the name of the parameter.
GOOD = {
    "switch": ["server2"], "config": ["config.ini"], "node": ["node1"], "command": ["true"], "argv": ["true"],
    "sources": ["setup.sh"], "destination": ["node1:x"], "script": ["setup.sh"], "start": ["node1"], "end": ["node2"],
    "peer": ["192.0.2.1"], "nodes": ["2"], "source": ["setup.sh"], "shell": ["bash"], "action": ["status"],
    "path": ["run.pcapng"], "file": ["rates.csv"],
}  # fmt: skip
# Good values that have another form than those above.
SPECIAL = {
    ("remove", "nodes"): ["node2"],
    ("link set", "nodes"): ["node1"],
    **{(f"fault {kind}", "nodes"): ["node1"] for kind in ("cut", "flap", "unplug", "pause")},
    ("fault partition", "groups"): ["node1|node2"],
    ("image rm", "name"): ["none"],
    ("image verify", "name"): ["none"],
}
OTHERS = ("No such option", "Missing argument", "unexpected extra argument", "Invalid value")  # for -x, or no text
# What messages call a parameter, if it is not the name of an option.
NAMED_AS = {
    "provision": ("script ",), "payload": ("payload ",), "config": ("regular file", "does not exist"),
    "hosts": ("host", "the switch is"), "path": (" exists",),
    "source": ("is not", "cannot read", "image name"), "script": ("script ",), "name": ("cluster ", "image "),
    "switch": ("the switch ",), "nodes": ("node",), "sources": ("node",), "destination": ("node",),
    "names": ("cluster ",), "nodeset": ("node", "panes need a terminal"), "node": ("node",),
    "number": ("nodes",), "recipe": ("recipe ",), "groups": ("node", "partition", "group"),
    "file": ("cannot read", "regular file", "does not exist", "is not a path"),
}  # fmt: skip
TEXTS_NEAR = values.near(
    "lab", "node1", "node[1-2]", "node1,node2", "4", "512MiB", "10.0.0.0/24", "10.0.0.[101-105]", "900",
    "student@server2:22", "node1:cloud/x", "config.ini", "setup.sh", "debian13", "env:SECRET", "10000:10100",
    "node2:20GiB", "192.0.2.7", "rate=100mbit,queue=64KiB", "loss=0.1%",
)  # fmt: skip


def commands() -> Iterator[tuple[str, click.Command]]:
    """Each command that is not a group, with its path, for example `image build`."""

    def walk(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                yield from walk((*path, name), inner)
        else:
            yield " ".join(path), command

    return walk((), main.main)


def all_parameters(command: click.Command) -> list[click.Parameter]:
    """The options and arguments of a command. click keeps the --help that it makes here."""
    with click.Context(command, help_option_names=main.CONTEXT["help_option_names"]) as context:
        return command.get_params(context)


def parameters(command: click.Command) -> list[click.Parameter]:
    """The options and arguments that take a value, or that are no flags."""
    return [each for each in all_parameters(command) if not getattr(each, "is_flag", False)]


def flags(command: click.Command) -> list[str]:
    """The options without a value, but those that print something else and end."""
    found = [each for each in all_parameters(command) if getattr(each, "is_flag", False)]
    return [each.opts[-1] for each in found if each.name not in ("help", "version", "verbose")]


@dataclass(frozen=True)
class Use:
    """A parameter of a command."""

    path: str
    command: click.Command
    parameter: click.Parameter

    @property
    def title(self) -> str:
        """The name of its entry point: that of an option is the same in all commands."""
        is_option = isinstance(self.parameter, click.Option)
        return f"option {self.parameter.opts[-1]}" if is_option else f"argument {self.parameter.name}"

    def call(self, texts: list[str], *, is_by_variable: bool = False) -> None:
        """Run the command with these texts for the parameter, and good ones for the required others."""
        others = _good_words(self.path, self.command, but=self.parameter)
        words, variables = self.path.split(), {}
        if not isinstance(self.parameter, click.Option):
            at = _position(self.path, self.command, self.parameter)
            words += [*others[:at], *texts, *others[at:]]
        elif is_by_variable and isinstance(self.parameter.envvar, str):
            variables = dict.fromkeys([self.parameter.envvar], *texts)
            words += others
        else:
            option = self.parameter.opts[-1]
            words += [word for text in texts for word in _joined(option, text)] + others
        call(words, variables=variables)

    def call_good(self) -> None:
        """Run the command with a good value; an option that may be missing is left out."""
        self.call(_good(self.path, self.parameter) if self.parameter.required else [])

    @property
    def places(self) -> tuple[str, ...]:
        """Texts that name the parameter in a message."""
        parameter = self.parameter
        variables = [parameter.envvar] if isinstance(parameter.envvar, str) else []
        named = [parameter.human_readable_name, *OTHERS] if isinstance(parameter, click.Argument) else []
        return (*parameter.opts, *variables, *named, *NAMED_AS.get(str(parameter.name), ()))


def uses() -> Iterator[Use]:
    """Each parameter of each command."""
    for path, command in commands():
        for parameter in parameters(command):
            yield Use(path, command, parameter)


def entry_points() -> list[EntryPoint]:
    """One for each option and argument of the same name, in all commands, and one for lines with several odd words."""
    by_title: dict[str, list[Use]] = {}
    for use in uses():
        by_title.setdefault(use.title, []).append(use)
    return [*(_of_parameter(title, found) for title, found in by_title.items()), _of_lines()]


def _of_lines() -> EntryPoint:
    choices = [
        (path, [*flags(command), *(each.opts[-1] for each in parameters(command) if isinstance(each, click.Option))])
        for path, command in commands()
    ]

    def lines(random: Random) -> tuple[str, list[str]]:
        path, options = random.choice(choices)
        words = values.lists(values.one_of(values.choice(options), TEXTS_NEAR), 0, 5)
        return path, words(random)

    return EntryPoint("command line", lines, lambda line: call([*line[0].split(), *line[1]]))


def _of_parameter(title: str, found: list[Use]) -> EntryPoint:
    inputs = values.tuples(values.choice(range(len(found))), TEXTS_NEAR, values.choice((False, True)))
    return EntryPoint(
        title,
        inputs,
        lambda drawn: found[drawn[0]].call([drawn[1]], is_by_variable=drawn[2]),
        tuple({place for use in found for place in use.places}),
        lambda drawn: found[drawn[0]].call_good(),
        lambda drawn: drawn[1],
    )


def _joined(option: str, text: str) -> list[str]:
    return [f"{option}={text}"] if option.startswith("--") else [option, text]


def _good_words(path: str, command: click.Command, *, but: click.Parameter) -> list[str]:
    """The words of a good line, without those of one parameter."""
    options, arguments = [], []
    for parameter in parameters(command):
        if parameter is but or not parameter.required:
            continue
        words = _good(path, parameter)
        if isinstance(parameter, click.Option):
            options += [parameter.opts[-1], *words]
        else:
            arguments += words
    return [*options, *arguments]


def _good(path: str, parameter: click.Parameter) -> list[str]:
    words = SPECIAL.get((path, str(parameter.name)), GOOD.get(str(parameter.name), []))
    assert words, f"{path}: the required parameter {parameter.name} has no good value in GOOD"
    return words


def _position(path: str, command: click.Command, parameter: click.Parameter) -> int:
    """The place of an argument among the good words: options, then the arguments before it."""
    before = 0
    for each in parameters(command):
        if each is parameter:
            break
        if each.required and isinstance(each, click.Argument):
            before += len(_good(path, each))
    required = [each for each in parameters(command) if each.required and isinstance(each, click.Option)]
    return 2 * len(required) + before


def call(words: list[str], *, variables: dict[str, str] | None = None) -> None:
    """Run a command line below the handler of all errors."""
    with _environment(variables or {}):
        try:
            main.main.main(words, prog_name="vcluster", standalone_mode=False, obj=common.Invocation())
        except main.HELP:  # a group without a command
            return
        except click.Abort:
            raise Reached from None


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, text in before.items():
            if text is None:
                del os.environ[name]
            else:
                os.environ[name] = text


def make_files(folder: Path) -> None:
    """The files that good words name."""
    (folder / "setup.sh").write_text("#!/bin/sh\n")
    (folder / "rates.csv").write_text("t_s,from\n0,10mbit\n")
    (folder / "config.ini").write_text("[switch]\nhost = server2\n[server server1]\nhost = localhost\nnodes = 2\n")


def stop_before_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every route out of the process raise Reached: servers, programs, sockets."""

    def stop(*_: object, **__: object) -> None:
        raise Reached

    for place, name in (
        (subprocess, "Popen"), (socket, "socket"), (socket, "getaddrinfo"), (servers.Connector, "open"),
        (servers.Connector, "log_in"),
        (support, "collect"), (support_archive, "write_new"), (servers, "open_fleet"), (openssh_config, "resolve"),
        (os, "execv"), (os, "execve"), (os, "execvp"), (os, "execvpe"), (os, "posix_spawn"), (os, "fork"), (os, "kill"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, stop)
