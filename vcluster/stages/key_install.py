"""Install the cluster's key in an imported image, with the password and the sudo rights of the image's own user.

Afterwards sshd accepts keys only. The image may allow passwords in a settings file of its own, so ours sorts before it.
"""

from __future__ import annotations

import shlex

from vcluster.adapters.process import last_lines
from vcluster.adapters.ssh.ssh_session import Session
from vcluster.errors import MissingError

# Sorts before the image's own files, because sshd uses the first value that it reads.
SETTINGS = "/etc/ssh/sshd_config.d/0-vcluster.conf"
_KEYS_ONLY = (
    "PermitRootLogin prohibit-password",
    "PubkeyAuthentication yes",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
)
_INSTALL = f"""\
read -r key
mkdir -p -m 700 /root/.ssh
printf '%s\\n' "$key" >/root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
printf '%s\\n' {shlex.join(_KEYS_ONLY)} >{SETTINGS}
systemctl reload ssh.service 2>/dev/null || systemctl reload sshd.service
"""


def install_key(session: Session, public_key: str, password: str) -> None:
    """Let root log in with a key. Only sudo gets the password, on its standard input, and only if sudo asks for it."""
    is_free = session.run(["sudo", "-n", "true"], awaited="sudo").exit_code == 0
    argv = ["sudo", *(["-n"] if is_free else ["-S", "-p", ""]), "--", "sh", "-euc", _INSTALL]
    lines = [public_key] if is_free else [password, public_key]
    done = session.run(argv, stdin="".join(f"{line}\n" for line in lines).encode(), awaited="sudo")
    if done.exit_code != 0:
        raise MissingError(
            f"{session.name}: {session.user} cannot install the cluster's key: {last_lines(done, 1)}",
            hint=f"let the image's user {session.user} use sudo",
        )
