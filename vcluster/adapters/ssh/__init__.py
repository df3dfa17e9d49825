"""SSH by paramiko, with the settings and known host keys of OpenSSH."""

from __future__ import annotations

import sys


def load_less_of_paramiko() -> None:
    """Keep paramiko from loading invoke, which takes 65 ms. It is for `Match exec` in paramiko's reader of ssh_config.

    openssh_config asks OpenSSH instead. For a process in which nothing else uses invoke.
    """
    sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]  # an import of it then fails
