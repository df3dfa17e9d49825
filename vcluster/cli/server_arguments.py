"""Servers in options and arguments of commands: their specs, and the interface of this one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vcluster.cli.help_layout import PanelOption

if TYPE_CHECKING:
    from vcluster.model.spec import ServerSpec

interface_option = click.option(
    "--interface", cls=PanelOption, panel="Advanced", envvar="VCLUSTER_INTERFACE", metavar="NAME",
    help="Interface of this machine for the tunnels.  [default: by the route to the other server]",
)  # fmt: skip


def server_of(host: str) -> ServerSpec:
    """The spec of another server, from [user@]host[:port]."""
    import os

    from vcluster.adapters.ssh import openssh_config
    from vcluster.errors import RequestError
    from vcluster.model.spec import LOCAL_SERVER, Login, ServerSpec

    user, name, port = openssh_config.split_host(host)
    if name == LOCAL_SERVER:
        raise RequestError("the switch is this machine itself", hint="vcluster local create")
    password = "env:VCLUSTER_SWITCH_PASSWORD" if "VCLUSTER_SWITCH_PASSWORD" in os.environ else ""
    return ServerSpec(name, Login(name, user, port, password=password))


def servers_of(host: str) -> list[ServerSpec]:
    """The other servers of a configuration file, or the server of that name."""
    from vcluster.config import config_file

    if not host.endswith(".ini"):
        return [server_of(host)]
    spec = config_file.read(Path(host)).spec
    return [one for one in (*spec.servers, spec.switch) if one.login]
