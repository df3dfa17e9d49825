"""The command for a kernel module that is missing."""

from __future__ import annotations

import errno
import platform
from pathlib import Path

import pytest

from vcluster.adapters.network import kernel_modules, netlink_messages
from vcluster.adapters.network.netlink_messages import change_message
from vcluster.adapters.network.netlink_socket import NetlinkError

RELEASE = "5.15.0-1005-raspi"
INSTALL = f"apt-get install linux-modules-extra-{RELEASE}"
UBUNTU, MINT, DEBIAN = "ID=ubuntu\nID_LIKE=debian\n", 'ID=linuxmint\nID_LIKE="ubuntu debian"\n', "ID=debian\n"


@pytest.mark.parametrize(
    ("system", "modules", "command"),
    [
        (UBUNTU, "kernel/drivers/net/dummy.ko:\n", INSTALL),
        (MINT, "kernel/drivers/net/dummy.ko:\n", INSTALL),
        (UBUNTU, "kernel/drivers/net/vxlan/vxlan.ko.zst: kernel/net/ipv4/udp_tunnel.ko.zst\n", "modprobe vxlan"),
        (DEBIAN, "kernel/drivers/net/dummy.ko:\n", "modprobe vxlan"),
        (UBUNTU, None, "modprobe vxlan"),
    ],
    ids=["ubuntu", "mint", "not loaded", "debian", "container"],
)
def test_a_module_that_is_not_on_the_disk_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, modules: str | None, command: str
) -> None:
    """modprobe fails on Ubuntu for a Raspberry Pi: its kernel has vxlan in a package of its own."""
    (tmp_path / "os-release").write_text(system)
    if modules is not None:
        (tmp_path / RELEASE).mkdir()
        (tmp_path / RELEASE / "modules.dep").write_text(modules)
    monkeypatch.setattr(kernel_modules, "MODULES", tmp_path)
    monkeypatch.setattr(kernel_modules, "OS_RELEASE", tmp_path / "os-release")
    monkeypatch.setattr(platform, "release", lambda: RELEASE)
    message = change_message("vx-lab-1", [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "vxlan")]})])
    error = NetlinkError(message, errno.EOPNOTSUPP, "Unknown device type")
    assert netlink_messages._translate_error(error, "x").hint == command
