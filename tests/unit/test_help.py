"""Help: commands in sections, options in panels, whole summaries, metavars and examples."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from vcluster.cli import main
from vcluster.cli.output import hints
from vcluster.config import options

COLUMNS = 80
EXAMPLES = {"local create", "remote create", "shared create", "exec", "provision", "copy", "image import", "clear"}


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        yield (*path, name), command


COMMANDS = dict(leaves(main.main))


def help_of(*path: str) -> str:
    result = CliRunner().invoke(main.main, [*path, "--help"], terminal_width=COLUMNS, prog_name="vcluster")
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_is_whole(path: tuple[str, ...]) -> None:
    text = help_of(*path)
    assert "..." not in re.sub(r"(\]|[A-Z])\.\.\.", "", text)  # a repeated argument has three dots too
    assert not re.search(r"\b(TEXT|INTEGER|FLOAT|RANGE|BOOLEAN|DIRECTORY)\b|x>=", text)
    _, _, rest = text.partition("\n\n")
    assert [line for line in rest.partition("Examples:")[0].splitlines() if len(line) > COLUMNS] == []
    assert "\x1b" not in text
    assert "-v, --verbose" in text


@pytest.mark.parametrize(("path", "command"), COMMANDS.items(), ids=map(" ".join, COMMANDS))
def test_help_lists_each_option_and_command_once(path: tuple[str, ...], command: click.Command) -> None:
    rows = [line.split()[0].rstrip(",") for line in help_of(*path).splitlines() if re.match(r"  \S", line)]
    expected = [option.opts[0] for option in command.get_params(click.Context(command)) if shown(option)]
    expected += command.commands if isinstance(command, click.Group) else []
    for name in ("-h", *expected):
        assert rows.count(name) == 1
    assert "Other commands:" not in help_of(*path)


def shown(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and not parameter.hidden


def test_every_command_is_in_a_section() -> None:
    placed = [name for section in main.SECTIONS.values() for name in section]
    assert sorted(placed) == sorted(main.main.commands)
    text = help_of()
    found = [line.removesuffix(":") for line in text.splitlines() if re.match(r"[A-Z][a-z ]+:$", line)]
    assert found == ["Options", *main.SECTIONS]


@pytest.mark.parametrize("mode", ["local", "remote", "shared"])
def test_options_of_create_are_in_panels(mode: str) -> None:
    text = help_of(mode, "create")
    titles = [line.removesuffix(":") for line in text.splitlines() if re.match(r"[A-Z][a-z ]+:$", line)]
    assert titles == [*options.PANELS, "Options"]
    columns = {match.start(1) for line in text.splitlines() if (match := re.match(r"  -.*?\S  +(\S)", line))}
    assert len(columns) == 1  # all panels are aligned


@pytest.mark.parametrize("path", sorted(EXAMPLES))
def test_help_shows_examples(path: str) -> None:
    assert "Examples:" in help_of(*path.split())


@pytest.mark.parametrize("alias", ["delete", "destroy"])
def test_aliases_are_hidden_and_work(alias: str) -> None:
    assert f"  {alias} " not in help_of()
    assert help_of(alias) == help_of("clear").replace("vcluster clear [", f"vcluster {alias} [")


RESULTLESS = {("ssh",), ("mpiexec",), ("shell",), ("copy",), ("console",), ("completion",)}


def test_every_command_with_a_result_has_a_document() -> None:
    without = set()
    for path, command in COMMANDS.items():
        if isinstance(command, click.Group):
            continue
        names = {name for option in command.get_params(click.Context(command)) for name in option.opts}
        if "-o" not in names:
            without.add(path)
    assert without == RESULTLESS


OF_CLUSTERS = {tuple(name.split()): is_argument for name, is_argument in hints.CLUSTER_COMMANDS.items()}
# Their --name is that of a new cluster, an image or a switch; `image warm` can do without a cluster.
OTHERS = {
    *[(mode, "create") for mode in ("local", "remote", "shared")],
    *[("image", command) for command in ("build", "import", "warm")],
    *[("switch", command) for command in ("up", "down")],
}


def test_the_name_is_an_argument_and_an_option() -> None:
    takes_argument, takes_option = set(), set()
    for path, command in COMMANDS.items():
        if isinstance(command, click.Group):
            continue
        parameters = command.get_params(click.Context(command))
        if any(
            isinstance(one, click.Argument) and one.human_readable_name.rstrip("…") == "[NAME]" for one in parameters
        ):
            takes_argument.add(path)
        if any("--name" in one.opts for one in parameters):
            takes_option.add(path)
    assert takes_argument - {("switch", "down")} == {path for path, is_argument in OF_CLUSTERS.items() if is_argument}
    assert takes_option - OTHERS == {*OF_CLUSTERS}
