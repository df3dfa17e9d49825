"""The MPI program that measures: one rank on each node, and commands to it over the connection to the head node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from vcluster import guest
from vcluster.adapters.pipe import Pipe
from vcluster.adapters.ssh.attached_command import with_input
from vcluster.adapters.ssh.ssh_session import Session
from vcluster.errors import VclusterError
from vcluster.images.recipes import guest_file
from vcluster.model.plan import Plan
from vcluster.model.quoting import quoted
from vcluster.planning.measure_plan import Work
from vcluster.render import node_actions as paths
from vcluster.stages.guest_answer import parsed, unknown_result
from vcluster.util.deadline import Deadline

AWAITED = "the measuring program"
SKIPPED = 3  # times of each command that are left out: the partner of the first one may still sleep
TIME_MAX_NS = 10**13
ANSWER_MAX = 1 << 16  # bytes of an answer, which has a thousand numbers at most
# For images without the program: its source is at the begin of the input. Its end also removes the program, and so does
# a signal, which comes when the connection ends. A node that was switched off meanwhile still has one: of a day ago.
_COMPILED = """
folder=$1 size=$2
shift 2
find "$folder" -maxdepth 1 -name '.mpi-measure-*' -mmin +1440 -delete
program=$(mktemp "$folder/.mpi-measure-XXXXXXXX") || exit
trap 'rm -f "$program"' EXIT
trap 'exit 143' TERM HUP INT
head -c "$size" | mpicc -O2 -x c -o "$program" - || exit
mpiexec "$@" "$program"
"""


@dataclass(slots=True)
class MeasuringProgram:
    """The running program. `nodes` are in the order of their ranks; `library` is the version of MPI.

    `control_bytes` is the length of all commands and answers so far.
    """

    pipe: Pipe
    deadline: Deadline
    nodes: Sequence[str]
    library: str
    control_bytes: int = 0

    def times_ns(self, work: Work, count: int) -> list[int]:
        """Repeat a work this many times, after SKIPPED times that are left out. Returns the times."""
        ranks = [0 if node is None else self.nodes.index(node) for node in (work.start, work.end)]
        return self._ask(
            f"{work.operation} {ranks[0]} {ranks[1]} {work.size_bytes} {work.window} {SKIPPED} {count}", count
        )

    def sent_bytes(self) -> int:
        """The bytes that all ranks have sent over their TCP connections so far, also those that they sent again."""
        return self._ask("sent 0 0 0 0 0 1", 1)[0]

    def _ask(self, command: str, count: int) -> list[int]:
        self.pipe.write(f"{command}\n".encode(), self.deadline, AWAITED)
        line = _next_line(self.pipe, self.deadline)
        self.control_bytes += len(command) + len(line) + 2
        times = parsed(line, f"{self.pipe.name}: {AWAITED}").get("ns")
        if isinstance(times, list) and len(times) == count and all(map(_is_time, times)):
            return times
        raise unknown_result(f"{self.pipe.name}: {AWAITED}")


def _next_line(pipe: Pipe, deadline: Deadline) -> str:
    return pipe.read_line(deadline, AWAITED, limit=ANSWER_MAX).decode(errors="replace")


def _is_time(value: object) -> bool:
    return type(value) is int and 0 < value < TIME_MAX_NS


@contextmanager
def started(session: Session, plan: Plan, nodes: Sequence[str], deadline: Deadline) -> Iterator[MeasuringProgram]:
    """The program, started by mpiexec on the head node with a rank on each of `nodes`. `session` is of a user."""
    ranks = ("-n", str(len(nodes)), "-ppn", "1", "-hosts", ",".join(nodes))
    argv, source = ["mpiexec", *ranks, paths.MPI_MEASURE], b""
    if session.run(["test", "-x", paths.MPI_MEASURE], awaited=AWAITED, deadline=deadline).exit_code != 0:
        source = guest_file("mpi-measure.c").encode()
        argv = ["sh", "-c", _COMPILED, "sh", paths.shared_folder(plan), str(len(source)), *ranks]
    attached = with_input(argv, guest.program("hangup_watch"))
    with closing(session.start(attached, deadline=deadline, awaited=AWAITED)) as pipe:
        try:
            pipe.write(source, deadline, AWAITED)
            yield _introduced(pipe, nodes, deadline)
        except VclusterError as error:
            if reason := pipe.error_output:
                raise VclusterError(f"{error.message}; it printed: {quoted(reason)}", hint=error.hint) from error
            raise


def _introduced(pipe: Pipe, nodes: Sequence[str], deadline: Deadline) -> MeasuringProgram:
    """The program after its first line. Raises VclusterError if a rank is not on its node."""
    begin = parsed(_next_line(pipe, deadline), f"{pipe.name}: {AWAITED}")
    library = begin.get("library")
    if begin.get("nodes") != list(nodes) or not isinstance(library, str):
        raise VclusterError(
            f"{pipe.name}: the ranks of {AWAITED} are on {quoted(begin.get('nodes'))}, not on {', '.join(nodes)}"
        )
    return MeasuringProgram(pipe, deadline, nodes, quoted(library))
