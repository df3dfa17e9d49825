"""What distinguishes machines that resume from one snapshot: clock, name, machine-id and address. Pure text."""

from __future__ import annotations

from collections.abc import Iterable

from .records import LAN_SUBNET, Machine


def identity_script(machine: Machine, *, now: float, machine_id: str) -> str:
    """A script that root of the machine runs after the machine has resumed."""
    return f"""\
set -eu
date --set=@{now:.3f} >/dev/null
hostname {machine.name}
echo {machine.name} >/etc/hostname
sed -i 's/^127\\.0\\.1\\.1 .*/127.0.1.1 {machine.name}/' /etc/hosts
echo {machine_id} >/etc/machine-id
systemctl restart systemd-journald.service
""" + (lan_script(machine) if machine.is_on_lan else "")


def lan_script(machine: Machine) -> str:
    return f"""\
cat >/etc/network/interfaces.d/lan <<'EOF'
auto eth1
iface eth1 inet static
    address {machine.address}/{LAN_SUBNET.prefixlen}
    hwaddress ether {machine.lan_mac}
EOF
ifup eth1
"""


def hosts_script(machines: Iterable[Machine]) -> str:
    """A script that makes the names of all machines on the LAN known in one of them."""
    beginning = str(LAN_SUBNET.network_address).rpartition(".")[0].replace(".", "\\.")
    names = "".join(f"{machine.address} {machine.name}\n" for machine in machines)
    return f"set -eu\nsed -i '/^{beginning}\\./d' /etc/hosts\ncat >>/etc/hosts <<'EOF'\n{names}EOF\n"
