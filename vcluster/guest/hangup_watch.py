"""Kills a command on a node when its SSH connection ends. Without a terminal, sshd leaves such a command running.

It runs next to the command, in the same process group, and shares its standard output and standard error. When sshd
closes its ends of these, it sends SIGTERM to the group, and SIGKILL after GRACE_S.
"""

from __future__ import annotations

import os
import select
import signal
import time

GRACE_S = 2.0


def main() -> None:
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)  # without events: poll reports POLLHUP and POLLERR always
    poll.poll()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
