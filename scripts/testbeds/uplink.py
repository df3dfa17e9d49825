"""The route to the outside: slirp4netns, in user mode, so that the machine's own network stays as it is."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

from .namespaces import entering
from .programs import NamespaceError, last_lines

UPLINK = "uplink"  # the name of the link
UPLINK_SUBNET = "172.30.254"  # slirp4netns offers 10.0.2.0/24, which is too close to the subnets of clusters
UPLINK_DNS = f"{UPLINK_SUBNET}.3"


def start_uplink(pid: int, log: Path) -> None:
    """Give the network namespace of a first process a route to the outside, through the link `uplink`.

    slirp4netns stays in the machine's network namespace, where its sockets are ordinary ones. It joins the PID
    namespace, so it ends with that.
    """
    reader, writer = os.pipe()
    # --disable-host-loopback: services of the machine that listen on its loopback address cannot be reached
    options = ["--configure", "--mtu=1500", f"--cidr={UPLINK_SUBNET}.0/24", "--disable-host-loopback"]
    options += [f"--ready-fd={writer}", "--netns-type=path", f"/proc/{pid}/ns/net", UPLINK]
    with log.open("a") as out:
        process = subprocess.Popen(
            [*entering(pid, ["pid"]), "slirp4netns", *options],
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    os.close(writer)
    with os.fdopen(reader, "rb") as ready:
        if not select.select([ready], [], [], 10)[0] or not ready.read(1):
            process.kill()
            raise NamespaceError(f"slirp4netns made no route to the outside: {last_lines(log)}")
    process.returncode = 0  # it outlives us, on purpose
