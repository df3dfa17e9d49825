"""Prints how many TCP segments the kernel of this node has sent again, until its input ends.

The request has the time between two readings. A line is JSON. A count that has not changed is printed after SIGN_S, as
a sign of life.
"""

from __future__ import annotations

import json
import select
import sys
import time

SIGN_S = 2.0


def retransmits() -> int:
    """The segments since the boot, RFC 4022: the kernel prints a line of names, and one of their values."""
    with open("/proc/net/snmp") as file:
        names, values = [line.split() for line in file if line.startswith("Tcp:")]
    return int(values[names.index("RetransSegs")])


def main() -> None:
    every_s = json.loads(sys.stdin.buffer.readline())["every_s"]
    printed, printed_s = None, 0.0
    while True:
        count, now_s = retransmits(), time.monotonic()
        if count != printed or now_s - printed_s >= SIGN_S:
            print(json.dumps({"retransmits": count}), flush=True)
            printed, printed_s = count, now_s
        if select.select([0], [], [], every_s)[0]:
            return


if __name__ == "__main__":
    main()
