"""Delays the frames of an interface, where the kernel of the switch cannot.

A service of the node runs it as root, also at each boot:
  node_delays.py set lab0 UNIT FROM TO
FROM is about frames that leave the node, TO about those that arrive; each is `-`, or DELAY,JITTER,FRAMES in
microseconds and frames. What is as wanted stays, with the frames that it holds. `node_delays.py end lab0 UNIT` removes
all delays, unless the service UNIT is enabled: then it restarts.

Without arguments, it reads {"interface"} from standard input and writes {"from", "to"} or {"error"}. Each direction is
null, or has delay_us, jitter_us, delay_frames, sent_packets, sent_bytes, dropped_packets and waiting_bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Dict, List

IFB = "vcluster-delay"  # frames that arrive pass this interface
WANTED = "/etc/systemd/system/multi-user.target.wants"


def run(argv: List[str], *, is_tried: bool = False) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode and not is_tried:
        raise RuntimeError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def exists(interface: str) -> bool:
    return os.path.exists(f"/sys/class/net/{interface}")


def qdiscs(interface: str) -> List[Dict[str, Any]]:
    found = json.loads(run(["tc", "-s", "-j", "qdisc", "show", "dev", interface]))
    return [each for each in found if each.get("kind")]


def netem_of(interface: str) -> Dict[str, Any] | None:
    return next((each for each in qdiscs(interface) if each["kind"] == "netem" and each.get("root")), None)


def delay(interface: str, wanted: str) -> None:
    """Delay the frames that leave through an interface, or end it."""
    if wanted != "-":
        delay_us, jitter_us, frames = wanted.split(",")
        limits = ["limit", frames, "delay", f"{delay_us}us", f"{jitter_us}us"]
        run(["tc", "qdisc", "replace", "dev", interface, "root", "netem", *limits])
    elif netem_of(interface):
        run(["tc", "qdisc", "del", "dev", interface, "root"])


def delay_arriving(interface: str, wanted: str) -> None:
    """Delay the frames that arrive at an interface: they pass another one first."""
    if wanted == "-":
        if any(each["kind"] == "ingress" for each in qdiscs(interface)):
            run(["tc", "qdisc", "del", "dev", interface, "ingress"])
        if exists(IFB):
            run(["ip", "link", "del", IFB])
        return
    if not exists(IFB):
        run(["modprobe", "ifb", "numifbs=0"], is_tried=True)  # it may be part of the kernel
        run(["ip", "link", "add", IFB, "type", "ifb"])
    run(["ip", "link", "set", IFB, "up"])
    delay(IFB, wanted)
    if not any(each["kind"] == "ingress" for each in qdiscs(interface)):
        run(["tc", "qdisc", "add", "dev", interface, "handle", "ffff:", "ingress"])
    if "mirred" not in run(["tc", "filter", "show", "dev", interface, "parent", "ffff:"]):
        every = ["protocol", "all", "u32", "match", "u32", "0", "0"]
        redirect = ["action", "mirred", "egress", "redirect", "dev", IFB]
        run(["tc", "filter", "add", "dev", interface, "parent", "ffff:", *every, *redirect])


def reading(interface: str) -> Dict[str, int] | None:
    """The delay of frames that leave through an interface, with its counters."""
    found = netem_of(interface) if exists(interface) else None
    if found is None:
        return None
    options = found["options"]
    delayed = options.get("delay", {})
    return {
        "delay_us": round(delayed.get("delay", 0) * 1e6),
        "jitter_us": round(delayed.get("jitter", 0) * 1e6),
        "delay_frames": options["limit"],
        "sent_packets": found["packets"],
        "sent_bytes": found["bytes"],
        "dropped_packets": found["drops"],
        "waiting_bytes": found["backlog"],
    }


def service(verb: str, interface: str, unit: str, leaving: str = "-", arriving: str = "-") -> None:
    if verb == "end" and os.path.lexists(f"{WANTED}/{unit}"):
        return
    delay(interface, leaving)
    delay_arriving(interface, arriving)


def main() -> None:
    try:
        interface = json.load(sys.stdin)["interface"]
        arriving = reading(IFB) if any(each["kind"] == "ingress" for each in qdiscs(interface)) else None
        answer: Dict[str, Any] = {"from": reading(interface), "to": arriving}
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    if sys.argv[1:]:
        service(*sys.argv[1:])
    else:
        main()
