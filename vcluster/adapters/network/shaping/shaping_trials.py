"""Whether the kernel can give limits to links: it is tried, and nothing stays."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence

from pyroute2.netlink.rtnl.tcmsg import tcmsg

from vcluster.adapters.network.kernel_modules import load_command
from vcluster.adapters.network.netlink_socket import NETFILTER, ROUTE, Message, NetlinkError, NetlinkSocket
from vcluster.adapters.network.nftables_messages import BRIDGE, NETDEV, trial
from vcluster.adapters.network.shaping import frame_rules, queue_messages
from vcluster.adapters.network.shaping.queue_layers import NETEM, RED, layers
from vcluster.adapters.network.shaping.shaper import KIND, creation, removal
from vcluster.adapters.network.shaping.traffic_spec import ALL, MAJORS, Flow, ShapedDirection
from vcluster.errors import MissingError, VclusterError
from vcluster.model.spec import TO

PROBE_TABLE = "vcluster probe"  # no cluster has it
_PURPOSES = {NETEM: "delay or damage frames", RED: "mark frames"}
_DENIED = (errno.EPERM, errno.EACCES)


def require_support(directions: Sequence[ShapedDirection]) -> None:
    """Raise MissingError if the kernel cannot give these limits. It tries each kind, and changes nothing that stays."""
    flows = [flow for each in directions for flow in each.flows]
    for queued in _different(directions):
        _try_queues(queued)
    if any(each.is_redirected for each in directions):
        _try_rules(NETDEV, frame_rules.redirection_trial(PROBE_TABLE), "redirect frames", "nft_fwd_netdev")
    if any(flow.loss_ppm for flow in flows):
        _try_rules(BRIDGE, frame_rules.loss_trial(PROBE_TABLE), "drop frames at random", "nft_numgen")


def can_delay() -> bool:
    """Whether the kernel can delay frames."""
    try:
        _try_queues([Flow(number=ALL, queue_bytes=2**16, frame_bytes=1500, delay_us=1000, delay_frames=1000)])
    except MissingError as error:
        if error.hint == _no_rights().hint:
            raise
        return False
    return True


def _no_rights() -> MissingError:
    return MissingError("limits of links need root", hint="run it with sudo")


def _different(directions: Sequence[ShapedDirection]) -> list[tuple[Flow, ...]]:
    """The queues of directions, each kind once. Some kernels refuse a netem next to one that duplicates frames."""
    by_kind = {
        tuple(sorted((layers(flow), bool(flow.duplicate_ppm)) for flow in each.queued)): each.queued
        for each in directions
    }
    return [flows for flows in by_kind.values() if flows]


def _try_queues(flows: Sequence[Flow]) -> None:
    """Make an interface with queues and remove it. The kernel handles all messages of one send, also for a process
    that is killed, so nothing stays.
    """
    index, major = secrets.randbelow(2**29) + 2**30, MAJORS[TO]
    messages = [
        creation(f"vi-{secrets.token_hex(5)}", index=index),  # two processes may try at once
        queue_messages.root(index, major),
        *(queue_messages.rate(index, major, flow) for flow in flows),
        *(message for flow in flows for message in queue_messages.queue(index, major, flow, layers(flow))),
        removal(index),
    ]
    with NetlinkSocket(ROUTE) as netlink:
        try:
            netlink.change(messages)
        except NetlinkError as error:
            raise _lack(error, flows) from error


def _lack(error: NetlinkError, flows: Sequence[Flow]) -> VclusterError:
    if error.code in _DENIED:
        return _no_rights()
    kind = error.message.get_attr("TCA_KIND") if isinstance(error.message, tcmsg) else KIND
    is_mixed = any(flow.duplicate_ppm for flow in flows) and sum(flow.needs_netem for flow in flows) > 1
    if is_mixed and (kind, error.code) == (NETEM, errno.EINVAL):  # a module that is missing is another error
        return MissingError(
            f"the kernel cannot duplicate frames in a direction with other delays or damage: {kind}: {error.reason}",
            hint="remove it: duplicate=none",
        )
    module, purpose = f"sch_{kind}" if kind != KIND else KIND, _PURPOSES.get(kind, "limit rates")
    return MissingError(f"the kernel cannot {purpose}: {kind}: {error.reason}", hint=load_command(module))


def _try_rules(family: int, messages: Sequence[Message], purpose: str, module: str) -> None:
    with NetlinkSocket(NETFILTER) as netlink:
        try:
            netlink.change(trial(PROBE_TABLE, family, messages))
        except NetlinkError as error:
            if error.code in _DENIED:
                raise _no_rights() from error
            raise MissingError(f"the kernel cannot {purpose}: {error.reason}", hint=load_command(module)) from error
