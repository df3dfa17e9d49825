"""The way out of the private layout, opened and closed while the cluster runs; and who is on the cluster network."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from vcluster.adapters.ssh.ssh_session import Session
from vcluster.commands import access
from vcluster.commands.inventory import read_ledger
from vcluster.errors import RequestError, VclusterError
from vcluster.fleet.context import Context
from vcluster.model.plan import Plan
from vcluster.planning.neighbours import Neighbour, classify
from vcluster.render import gateway_actions
from vcluster.stages import configure
from vcluster.util.deadline import Deadline

SWEEP_MAX, SWEEP_TIMEOUT_S = 4094, 2.0


def set_open(context: Context, name: str, *, is_open: bool, timeout_s: float) -> None:
    """Open or close the way out, now and for every later start."""
    files = context.files(name)
    _private(read_ledger(files).plan)
    with ExitStack() as stack, files.locked():
        kept = read_ledger(files)  # as no other command changes it meanwhile
        decided = kept.plan
        wanted = replace(decided, is_gateway_open=is_open)
        head = _head(context, decided, stack, timeout_s)
        actions = gateway_actions.gateway_actions(wanted, wanted.head)
        configure.apply(head, "gateway", actions, report=context.report)
        if _is_open(head) is not is_open:
            raise VclusterError(f"{head.name}: its packet filter does not do what it was told")
        files.write_ledger(replace(kept, plan=wanted))


def is_open(context: Context, name: str, *, timeout_s: float) -> bool:
    """Whether the way out is open, as the head's packet filter has it."""
    decided = _private(read_ledger(context.files(name)).plan)
    with ExitStack() as stack:
        head = _head(context, decided, stack, timeout_s)
        found = _is_open(head)
    if found is None:
        raise VclusterError(f"{decided.head.name}: the rules of the gateway are gone", hint=f"vcluster repair {name}")
    return found


def discover(context: Context, name: str, *, timeout_s: float) -> tuple[Neighbour, ...]:
    """Who is on the cluster network, as the head finds out by leases, its neighbour table and a ping to everybody."""
    decided = read_ledger(context.files(name)).plan
    request = {
        "interface": "lab0",
        "subnet": str(decided.subnet),
        "own": str(decided.head.address),
        "leases": gateway_actions.LEASES,
        "sweep_max": SWEEP_MAX,
        "timeout": SWEEP_TIMEOUT_S,
    }
    with ExitStack() as stack:
        head = _head(context, decided, stack, timeout_s)
        answer = configure.ask(head, "discover", request, awaited="discover")
    if "error" in answer:
        raise VclusterError(f"{head.name}: discover: {answer['error']}")
    context.report.note(f"asked {answer['swept']}")
    return classify(decided, answer)


def _private(decided: Plan) -> Plan:
    if not decided.is_private:
        raise RequestError(
            f"cluster {decided.name} has no gateway: every node has a way out of its own",
            hint="vcluster local create --layout private",
        )
    return decided


def _head(context: Context, decided: Plan, stack: ExitStack, timeout_s: float) -> Session:
    deadline = Deadline(timeout_s)
    opened = stack.enter_context(access.sessions(context, decided, [decided.head], user="root", deadline=deadline))
    return opened[decided.head.name]


def _is_open(head: Session) -> bool | None:
    shown = head.run(gateway_actions.live_state_argv(), awaited="nft")
    return gateway_actions.is_open(shown.stdout) if shown.exit_code == 0 else None
