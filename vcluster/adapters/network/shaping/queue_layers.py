"""The layers above a queue of bytes: delay and damage of frames (netem), and marks of frames (red). Pure.

The layers of a class are netem, red and bfifo, from top to bottom; the first two exist if a limit needs them.
pyroute2 lacks red, the loss model of netem, and its class for other attributes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl.tcmsg import plugins
from pyroute2.netlink.rtnl.tcmsg.common import stats2

from vcluster.adapters.network.netlink_socket import Message
from vcluster.adapters.network.shaping.traffic_spec import CHANCES, PPM, Flow, burst_chances
from vcluster.model.spec import NETEM_FIELDS

NETEM, RED, FIFO = "netem", "red", "bfifo"
# Added to the number of a class, they are the handles of its layers. The queue had its handle before there were layers.
HANDLES = {NETEM: 0x2000, RED: 0x4000, FIFO: 0}
# By layer, the fields of a flow that it has.
FIELDS = {NETEM: (*NETEM_FIELDS, "delay_frames"), RED: ("ecn_bytes",), FIFO: ("queue_bytes",)}
TICK_NS = 64  # the unit of times in messages (PSCHED_SHIFT)
_ECN, _NODROP = 1, 8  # TC_RED_ECN, TC_RED_NODROP
_NO_MARK = 2**30  # a threshold that no queue reaches: the largest queue has this size
_FORGET = bytes([31]) * 256  # when the queue was empty, its average is zero (net/red.h: the average is shifted by 31)


class Counters(stats2):  # type: ignore[misc]  # pyroute2 has no types
    """With the 64-bit number of packets, which the kernel adds when it does not fit into 32 bits."""

    nla_map = (
        *stats2.nla_map,
        ("TCA_STATS_RATE_EST64", "hex"), ("TCA_STATS_PAD", "hex"), ("TCA_STATS_BASIC_HW", "hex"),
        ("TCA_STATS_PKT64", "uint64"),
    )  # fmt: skip  # linux/gen_stats.h


class _Netem(nla):  # type: ignore[misc]  # pyroute2 has no types
    """struct tc_netem_qopt and the attributes of linux/pkt_sched.h. Times are in ticks, parts in 1/2³² of all."""

    fields = (("delay", "I"), ("limit", "I"), ("loss", "I"), ("gap", "I"), ("duplicate", "I"), ("jitter", "I"))
    nla_map = (
        ("TCA_NETEM_UNSPEC", "none"), ("TCA_NETEM_CORR", "hex"), ("TCA_NETEM_DELAY_DIST", "hex"),
        ("TCA_NETEM_REORDER", "part"), ("TCA_NETEM_CORRUPT", "part"), ("TCA_NETEM_LOSS", "loss_model"),
    )  # fmt: skip

    class part(nla):  # type: ignore[misc]  # noqa: N801  pyroute2 finds it by its name
        """struct tc_netem_reorder, and struct tc_netem_corrupt."""

        fields = (("probability", "I"), ("correlation", "I"))

    class loss_model(nla):  # type: ignore[misc]  # noqa: N801
        """The models of bursts; one attribute has one model."""

        nla_flags = NLA_F_NESTED
        nla_map = (("NETEM_LOSS_UNSPEC", "none"), ("NETEM_LOSS_GI", "hex"), ("NETEM_LOSS_GE", "gilbert"))

        class gilbert(nla):  # type: ignore[misc]  # noqa: N801
            """struct tc_netem_gemodel."""

            fields = (("p", "I"), ("r", "I"), ("h", "I"), ("k1", "I"))


class _Red(nla):  # type: ignore[misc]  # pyroute2 has no types
    """struct tc_red_qopt and the attributes of linux/pkt_sched.h."""

    nla_map = (
        ("TCA_RED_UNSPEC", "none"), ("TCA_RED_PARMS", "parameters"), ("TCA_RED_STAB", "cdata"),
        ("TCA_RED_MAX_P", "uint32"), ("TCA_RED_FLAGS", "bits"),
    )  # fmt: skip

    class parameters(nla):  # type: ignore[misc]  # noqa: N801
        fields = (
            ("limit", "I"), ("qth_min", "I"), ("qth_max", "I"),
            ("Wlog", "B"), ("Plog", "B"), ("Scell_log", "B"), ("flags", "B"),
        )  # fmt: skip

    class bits(nla):  # type: ignore[misc]  # noqa: N801
        fields = (("chosen", "I"), ("selector", "I"))  # pyroute2 reserves the name "value"


class _Marks(nla):  # type: ignore[misc]  # pyroute2 has no types
    """struct tc_red_xstats."""

    fields = (("early", "I"), ("pdrop", "I"), ("other", "I"), ("marked", "I"))


plugins[NETEM] = SimpleNamespace(options=_Netem, stats2=Counters, stats=_Marks)
plugins[RED] = SimpleNamespace(options=_Red, stats2=Counters, stats=_Marks)


def layers(flow: Flow) -> tuple[str, ...]:
    """The layers that a flow needs, from top to bottom."""
    return (*([NETEM] if flow.needs_netem else []), *([RED] if flow.ecn_bytes else []), FIFO)


def options(kind: str, flow: Flow) -> dict[str, Any]:
    """The options of a layer of a flow's class."""
    if kind == FIFO:
        return {"limit": flow.queue_bytes}
    return _netem(flow) if kind == NETEM else _red(flow)


def _netem(flow: Flow) -> dict[str, Any]:
    """What the attributes do not name keeps its old value in the kernel, so all are there.

    A frame of a loss by bursts is lost in the bad state: `p` is the chance to enter it, `r` that to leave it.
    """
    parts = {"TCA_NETEM_REORDER": flow.reorder_ppm, "TCA_NETEM_CORRUPT": flow.corrupt_ppm}
    attributes: list[tuple[str, Any]] = [
        (name, {"probability": _part(ppm), "correlation": 0}) for name, ppm in parts.items()
    ]
    if flow.burst_loss_ppm:
        enter, leave = map(round, burst_chances(flow.burst_loss_ppm, flow.burst_frames))
        model = {"p": enter, "r": leave, "h": 0, "k1": 0}
        attributes.append(("TCA_NETEM_LOSS", {"attrs": [("NETEM_LOSS_GE", model)]}))
    return {
        "delay": _ticks(flow.delay_us),
        "limit": flow.delay_frames,
        "loss": 0,
        "gap": int(bool(flow.reorder_ppm)),  # each frame may be one that passes the others
        "duplicate": _part(flow.duplicate_ppm),
        "jitter": _ticks(flow.jitter_us),
        "attrs": attributes,
    }


def _red(flow: Flow) -> dict[str, Any]:
    """Mark each frame that finds `ecn_bytes` waiting. Frames that cannot be marked stay, and only a full queue drops.

    The average is the present length. A limit of 0 lets the queue below be ours, so a change keeps its frames.
    """
    threshold = flow.ecn_bytes or _NO_MARK
    parameters = {
        "limit": 0, "qth_min": threshold, "qth_max": threshold, "Wlog": 0, "Plog": 0, "Scell_log": 0, "flags": 0,
    }  # fmt: skip
    flags = _ECN | _NODROP
    return {
        "attrs": [
            ("TCA_RED_PARMS", parameters),
            ("TCA_RED_STAB", _FORGET),
            ("TCA_RED_MAX_P", CHANCES),
            ("TCA_RED_FLAGS", {"chosen": flags, "selector": flags}),
        ]
    }


def _ticks(us: int) -> int:
    return round(us * 1000 / TICK_NS)


def _part(ppm: int) -> int:
    return round(ppm * CHANCES / PPM)


# Reading


def read_netem(found: Message) -> dict[str, int]:
    """The fields of a flow that the options of a netem have."""
    options, model = found.get_attr("TCA_OPTIONS"), None
    if losses := options.get_attr("TCA_NETEM_LOSS"):
        model = losses.get_attr("NETEM_LOSS_GE")
    reorder, corrupt = options.get_attr("TCA_NETEM_REORDER"), options.get_attr("TCA_NETEM_CORRUPT")
    enter, leave = (model["p"], model["r"]) if model else (0, 0)
    return {
        "delay_us": round(options["delay"] * TICK_NS / 1000),
        "jitter_us": round(options["jitter"] * TICK_NS / 1000),
        "duplicate_ppm": _ppm(options["duplicate"]),
        "reorder_ppm": _ppm(reorder["probability"]) if reorder and options["gap"] else 0,
        "corrupt_ppm": _ppm(corrupt["probability"]) if corrupt else 0,
        "burst_loss_ppm": round(PPM * enter / (enter + leave)) if enter else 0,
        "burst_frames": round(CHANCES / leave) if leave else 0,
        "delay_frames": options["limit"],
    }


def read_red(found: Message) -> dict[str, int]:
    """The threshold of a red, and the number of frames that it marked."""
    options = found.get_attr("TCA_OPTIONS")
    parameters, flags = options.get_attr("TCA_RED_PARMS"), options.get_attr("TCA_RED_FLAGS")
    counters = found.get_attr("TCA_XSTATS")
    is_marking = parameters["flags"] & _ECN or (flags and flags["chosen"] & _ECN)
    threshold = parameters["qth_min"] if is_marking and parameters["qth_min"] != _NO_MARK else 0
    return {"ecn_bytes": threshold, "marked_packets": counters["marked"] if counters else 0}


def _ppm(part: int) -> int:
    return round(part * PPM / CHANCES)
