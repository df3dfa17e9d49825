"""Other ways to libvirt than root's to libvirtd: the sockets of modular daemons, and users in the group libvirt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machines.labs import Lab
from tests.whole_machines import whole_machines

pytestmark = pytest.mark.machines

# Debian has no package of the modular daemons. Here libvirtd serves their sockets, so clients take the path to them.
MODULAR = """\
set -e
mkdir -p /etc/systemd/system/libvirtd.socket.d
cat >/etc/systemd/system/libvirtd.socket.d/modular.conf <<'EOF'
[Socket]
ListenStream=
ListenStream=/run/libvirt/virtqemud-sock
ListenStream=/run/libvirt/virtnetworkd-sock
ListenStream=/run/libvirt/virtstoraged-sock
EOF
systemctl daemon-reload
systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
rm -f /run/libvirt/libvirt-sock  # systemd leaves it
systemctl start libvirtd.socket
"""


@pytest.fixture(scope="module")
def lab(suite: str) -> Iterator[Lab]:
    with whole_machines("green", suite=suite) as (machine,):
        yield Lab(machine)


def as_member(line: str) -> str:
    """A shell line of student as a member of the group libvirt."""
    return f"sg libvirt -c '{line}'"


def test_a_member_of_the_group_libvirt_learns_that_root_is_needed(lab: Lab) -> None:
    lab.root("usermod --append --groups libvirt student")
    assert lab.student(as_member("virsh -c qemu:///system list --name")).strip() == ""
    for command in ("local create -n 2", "image warm"):
        printed = lab.failing(as_member(f"vcluster {command}"), 3, as_root=False)
        assert "root" in printed.splitlines()[0]
        assert printed.splitlines()[1:] == []
    assert "creating and clearing clusters here needs root" in lab.student(as_member("vcluster doctor || true"), 300)


def test_clones_through_the_sockets_of_modular_daemons(lab: Lab) -> None:
    lab.root(MODULAR)
    lab.root("test -S /run/libvirt/virtqemud-sock && ! test -e /run/libvirt/libvirt-sock")
    lab.warm()
    bare = lab.survey()
    lab.wait("local create -n 2")
    assert lab.starts() == (2, 0)
    lab.clear()
    assert lab.survey() == bare
