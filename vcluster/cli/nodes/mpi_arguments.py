"""The command line of `vcluster mpiexec`: options of MPICH's mpiexec (hydra), `--`, then the program. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vcluster.errors import RequestError

# The options of hydra and the number of their values (MPICH 4.0, src/pm/hydra/ui/mpich/utils.c).
_VALUES = {
    0: "genvnone genvall envnone envall prepend-rank l enable-x disable-x profile verbose v "
       "print-all-exitcodes disable-auto-cleanup enable-auto-cleanup disable-hostname-propagation "
       "enable-hostname-propagation dac debug info version skip-launch-node pmi-port",
    1: "n np ppn perhost grr f hostfile machinefile hosts host wdir genvlist envlist configfile prepend-pattern "
       "outfile-pattern outfile errfile-pattern errfile nameserver ranks-per-proc launcher bootstrap launcher-exec "
       "bootstrap-exec rmk bind-to binding map-by membind topolib ckpointlib ckpoint-prefix ckpoint-num "
       "ckpoint-interval demux iface order-nodes usize localhost arch gpus-per-proc gpu-subdevs-per-proc",
    2: "genv env",
}  # fmt: skip
VALUES = {option: count for count, options in _VALUES.items() for option in options.split()}
WITHOUT_PROGRAM = {"configfile", "info", "version"}
COUNTS = {"n", "np", "ppn", "perhost", "grr"}
# hydra passes standard input to rank 0, but it never closes the pipes of the other ranks.
INPUT_FOR_RANK_0 = ("sh", "-c", '[ "${PMI_RANK-0}" = 0 ] || exec </dev/null; exec "$@"', "sh")


def parse(argv: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The cluster of `--name`, at any place before the program, and mpiexec's arguments without it and `--`.

    The program reads standard input on rank 0 only, and its end is passed on. With several programs, separated by `:`,
    the arguments stay as they are. Raises RequestError for an option that mpiexec does not have, and when the program
    is missing.
    """
    name: str | None = None
    options: list[str] = []
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        flag = rest.pop(0)
        if flag == "--":
            break
        option, equals, value = flag.lstrip("-").partition("=")
        given = [value] if equals else []
        if option == "name":
            name = _values(flag, 1, given, rest)[0]
            continue
        _require_option(option, flag)
        values = _values(flag, _count(option, given or rest), given, rest)
        _require_processes(option, flag, values)
        options += [flag, *values[len(given) :]]
    if not rest and not WITHOUT_PROGRAM & {option.lstrip("-") for option in options}:
        raise RequestError("PROGRAM is missing", hint="vcluster mpiexec -n 4 hostname")
    wrapper = INPUT_FOR_RANK_0 if rest and ":" not in rest else ()
    return name, (*options, *wrapper, *rest)


def with_program(argv: Sequence[str], passed: Sequence[str], choose: Callable[[str], str]) -> tuple[str, ...]:
    """The typed arguments with another program, `passed` as `parse` returns them. Unchanged with several programs."""
    if INPUT_FOR_RANK_0[2] not in passed:
        return tuple(argv)
    place = passed.index(INPUT_FOR_RANK_0[2]) + 2 - len(passed)
    return (*argv[:place], choose(argv[place]), *argv[len(argv) + place + 1 :])


def _require_option(option: str, flag: str) -> None:
    if option not in VALUES:
        raise RequestError(
            f"mpiexec has no option {flag}", hint="to list its options: vcluster ssh node1 -- mpiexec --help"
        )


def _count(option: str, following: Sequence[str]) -> int:
    """The number of an option's values. `-env NAME=VALUE` has one, `-env NAME VALUE` two."""
    is_pair = VALUES[option] == 2 and following and "=" in following[0]
    return 1 if is_pair else VALUES[option]


def _values(flag: str, count: int, given: Sequence[str], rest: list[str]) -> list[str]:
    """The values of an option: those after `=`, then the next arguments, which are removed from `rest`."""
    needed = count - len(given)
    if len(rest) < needed:
        raise RequestError(f"mpiexec {flag} needs {'a value' if count == 1 else f'{count} values'}")
    values = [*given, *rest[:needed]]
    del rest[:needed]
    return values


def _require_processes(option: str, flag: str, values: Sequence[str]) -> None:
    if option in COUNTS and not (values[0].isdecimal() and int(values[0]) > 0):
        raise RequestError(f"mpiexec {flag}: {values[0]!r} is not a number of processes", hint="1 or more")
