"""Open and close the gateway of the private layout while the cluster runs; list the hosts of the cluster network."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from vcluster.adapters.ssh.ssh_session import Session
from vcluster.commands.nodes import access
from vcluster.commands.steps.inventory import read_ledger
from vcluster.errors import RequestError, VclusterError
from vcluster.fleet.context import Context
from vcluster.model.plan import Plan
from vcluster.model.quoting import quoted
from vcluster.planning.neighbours import Neighbour, classify
from vcluster.render import gateway_actions
from vcluster.stages import configure
from vcluster.stages.guest_answer import ask, field, require_success, unknown_result
from vcluster.util.deadline import Deadline

AWAITED = "the search for hosts"
SWEEP_MAX, SWEEP_TIMEOUT_S = 4094, 2.0


def set_open(context: Context, name: str, *, is_open: bool, timeout_s: float) -> None:
    """Open or close the gateway, now and for every later start."""
    files = context.files(name)
    _require_gateway(read_ledger(files).plan)
    with ExitStack() as stack, files.locked():
        ledger = read_ledger(files)  # another command may have changed it before the lock
        plan = replace(ledger.plan, is_gateway_open=is_open)
        head = _log_in_to_head(context, plan, stack, timeout_s)
        actions = gateway_actions.gateway_actions(plan, plan.head)
        configure.apply(head, "gateway", actions, report=context.report)
        if _is_open(head) is not is_open:
            raise VclusterError(
                f"{head.name}: the packet filter does not have the new rules", hint=f"vcluster repair {name}"
            )
        files.write_ledger(replace(ledger, plan=plan))


def is_open(context: Context, name: str, *, timeout_s: float) -> bool:
    """Whether the gateway is open, by the rules in the head's packet filter."""
    plan = _require_gateway(read_ledger(context.files(name)).plan)
    with ExitStack() as stack:
        head = _log_in_to_head(context, plan, stack, timeout_s)
        found = _is_open(head)
    if found is None:
        raise VclusterError(f"{plan.head.name}: the rules of the gateway are missing", hint=f"vcluster repair {name}")
    return found


def discover(context: Context, name: str, *, timeout_s: float) -> tuple[Neighbour, ...]:
    """The hosts on the cluster network, by the head's leases, its neighbour table and a ping to every address."""
    plan = read_ledger(context.files(name)).plan
    request = {
        "interface": "lab0",
        "subnet": str(plan.subnet),
        "own": str(plan.head.address),
        "leases": gateway_actions.LEASES,
        "sweep_max": SWEEP_MAX,
        "timeout": SWEEP_TIMEOUT_S,
    }
    with ExitStack() as stack:
        head = _log_in_to_head(context, plan, stack, timeout_s)
        answer = ask(head, "discover", request, awaited=AWAITED)
    require_success(answer, f"{head.name}: cannot discover hosts")
    where = f"{head.name}: {AWAITED}"
    swept = field(answer, "swept", str, where)
    try:
        found = classify(plan, answer)
    except (KeyError, TypeError, ValueError) as error:
        raise unknown_result(where) from error
    context.report.note(f"pinged {quoted(swept)}")
    return found


def _require_gateway(plan: Plan) -> Plan:
    if not plan.is_private:
        raise RequestError(
            f"cluster {plan.name} has no gateway: every node has its own route to the internet",
            hint="vcluster local create -n 4 --layout private --name private",
        )
    return plan


def _log_in_to_head(context: Context, plan: Plan, stack: ExitStack, timeout_s: float) -> Session:
    access.require_running(context, plan, [plan.head])
    deadline = Deadline(timeout_s)
    sessions = stack.enter_context(access.sessions(context, plan, [plan.head], user="root", deadline=deadline))
    return sessions[plan.head.name]


def _is_open(head: Session) -> bool | None:
    """Whether the live rules open the gateway; None if they are missing."""
    listing = head.run(gateway_actions.live_state_argv(), awaited="nft")
    return gateway_actions.is_open(listing.stdout) if listing.exit_code == 0 else None
