"""From a Debian without our packages to a cluster of clones, and back: as a student does it, who may use sudo."""

from __future__ import annotations

import pytest

from tests.machines.labs import NODES_S, Lab, put_image
from tests.whole_machines import WholeMachine, whole_machines

pytestmark = pytest.mark.machines

INSTALL_S = 1500  # dpkg is slow under emulation
PACKAGES = ("libvirt-daemon-system", "qemu-system-x86", "python3-libvirt", "mmdebstrap")
SCRIPTS = "vcluster/scripts"


def installed(machine: WholeMachine) -> set[str]:
    """Which of these packages dpkg has installed."""
    line = f"dpkg-query -W -f '${{db:Status-Status}} ${{Package}}\\n' {' '.join(PACKAGES)} 2>/dev/null || true"
    rows = [row.split() for row in machine.run(["sh", "-c", line]).stdout.splitlines()]
    return {row[1] for row in rows if row[0] == "installed"}


def test_a_student_installs_runs_the_demo_and_uninstalls(suite: str) -> None:
    with whole_machines("stock", suite=suite, is_bare=True) as (machine,):
        lab = Lab(machine)
        assert installed(machine) == set()
        lab.student(f"sudo {SCRIPTS}/install </dev/null", INSTALL_S)
        assert installed(machine) == set(PACKAGES)
        log = lab.root("cat /var/log/dpkg.log")
        assert all(f" status installed {name}:" in log for name in PACKAGES)
        put_image(machine)

        bare = lab.survey()
        assert {"node1", "node4"} <= set(lab.student(f"sudo {SCRIPTS}/demo </dev/null", NODES_S + 300).split())
        lab.warm()  # waits for the snapshot that the demo began
        lab.clear("demo")
        lab.student(f"sudo vcluster local create -n 4 --timeout {NODES_S}", NODES_S + 60)
        assert lab.starts() == (4, 0)
        assert lab.denied() == ""
        assert "uninstall: clusters exist" in lab.failing(f"sudo {SCRIPTS}/uninstall", 4, as_root=False)
        lab.clear()
        assert lab.survey() == bare

        lab.student(f"sudo {SCRIPTS}/uninstall")
        assert lab.root("ls -A /usr/local/bin vcluster/.venv 2>/dev/null || true").split() == ["/usr/local/bin:"]
