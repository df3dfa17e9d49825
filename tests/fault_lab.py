"""A cluster of QEMU processes without a guest system, for tests of faults of nodes.

In shared mode the nodes are on another server, where the agent starts the process that ends a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests import broken_promises
from tests.clusters import Host
from tests.testbed import testbed

STORAGE = "/var/lib/libvirt/distant"
CONFIG = """\
[cluster]
name = lab
[switch]
host = localhost
[server one]
host = operator@{one}
key = /root/.ssh/id_ed25519
path = {storage}
cpu = 2
ram = 4 GiB
hdd = 20 GiB
nodes = 2
"""
HOLDERS = "pgrep -f '[f]ault_holder' || true"
RECORDS = "find /run/vcluster -name '*.json' 2>/dev/null || true"


@contextmanager
def places(mode: str) -> Iterator[tuple[Host, Host]]:
    """The controller, and the server that carries the nodes of the cluster."""
    with testbed(f"desk-{mode}", f"one-{mode}") as (desk, one):
        host = Host(desk)
        if mode == "local":
            broken_promises.make(host, "local", "2")
        else:
            one.allow_login_of(desk, user="operator")
            desk.path("/run/lab.ini").write_text(CONFIG.format(one=one.name, storage=STORAGE))
            desk.path("/run/lab.ini").chmod(0o600)
            Host(one).sh(broken_promises.blank_image(STORAGE))
            broken_promises.make(host, "shared", "2", "/run/lab.ini")
        yield host, host if mode == "local" else Host(one)
        host.vcluster("clear", "lab", "-y")


def state(place: Host, node: str) -> tuple[str, str]:
    """The state of a node, and that of the link of its lab0."""
    mac = place.sh(f"virsh -q domiflist lab.{node} | grep vp-lab | awk '{{print $5}}'").strip()
    return tuple(
        place.sh(f"virsh -q {line}").split()[-1] for line in (f"domstate lab.{node}", f"domif-getlink lab.{node} {mac}")
    )  # type: ignore[return-value]
