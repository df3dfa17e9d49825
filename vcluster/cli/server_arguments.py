"""Servers in options and arguments of commands: their specs, and the interface of this one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vcluster.cli.help_layout import PanelOption

if TYPE_CHECKING:
    from vcluster.model.spec import ServerSpec

PASSWORD = "VCLUSTER_SWITCH_PASSWORD"  # noqa: S105 - the name of a variable

interface_option = click.option(
    "--interface", cls=PanelOption, panel="Advanced", envvar="VCLUSTER_INTERFACE", metavar="NAME",
    help="Interface of this machine for the tunnels.  [default: by the route to the other server]",
)  # fmt: skip


def switch_of(host: str) -> ServerSpec:
    """The spec of the server of --switch, with the password for it, if the environment has it."""
    spec = server_of(host)
    if PASSWORD not in os.environ or not spec.login:
        return spec
    return replace(spec, login=replace(spec.login, password=f"env:{PASSWORD}"))


def server_of(host: str) -> ServerSpec:
    """The spec of another server, from [user@]host[:port]. It gets no password: that is for the server of --switch."""
    from vcluster.adapters.ssh import openssh_config
    from vcluster.errors import RequestError
    from vcluster.model.spec import LOCAL_SERVER, Login, ServerSpec

    user, name, port = openssh_config.split_host(host)
    if name == LOCAL_SERVER:
        raise RequestError("the switch is this machine itself", hint="vcluster local create")
    return ServerSpec(name, Login(name, user, port))


def servers_of(host: str) -> list[ServerSpec]:
    """The other servers of a configuration file, or the server of that name.

    The password is only for a server that the environment names as the one of --switch.
    """
    from vcluster.config import config_file

    if not host.endswith(".ini"):
        return [switch_of(host) if host == os.environ.get("VCLUSTER_SWITCH") else server_of(host)]
    spec = config_file.read(Path(host)).spec
    return [one for one in (*spec.servers, spec.switch) if one.login]
