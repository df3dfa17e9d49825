"""An image of somebody else's knows its own user and not us: by that user's password and sudo our key is let in.

From then on no password is: the image's own settings may allow them in a file that comes before all others of ours.
"""

from __future__ import annotations

import shlex

from vcluster.adapters.process import last_words
from vcluster.adapters.ssh.ssh_session import Session
from vcluster.errors import MissingError

# Before any other setting of the image's, for sshd takes the first one it reads.
SETTINGS = "/etc/ssh/sshd_config.d/0-vcluster.conf"
_KEYS_ONLY = (
    "PermitRootLogin prohibit-password",
    "PubkeyAuthentication yes",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
)
_LET_IN = f"""\
read -r key
mkdir -p -m 700 /root/.ssh
printf '%s\\n' "$key" >/root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
printf '%s\\n' {shlex.join(_KEYS_ONLY)} >{SETTINGS}
systemctl reload ssh.service 2>/dev/null || systemctl reload sshd.service
"""


def install_key(session: Session, public_key: str, password: str) -> None:
    """Let a key in as root. The password goes to sudo's standard input, if sudo wants it, and nowhere else."""
    is_free = session.run(["sudo", "-n", "true"], awaited="sudo").exit_code == 0
    argv = ["sudo", *(["-n"] if is_free else ["-S", "-p", ""]), "--", "sh", "-euc", _LET_IN]
    lines = [public_key] if is_free else [password, public_key]
    done = session.run(argv, stdin="".join(f"{line}\n" for line in lines).encode(), awaited="sudo to let our key in")
    if done.exit_code != 0:
        raise MissingError(
            f"{session.name}: {session.user} cannot let the cluster's key in: {last_words(done, 1)}",
            hint=f"the image's user {session.user} must be one who may use sudo",
        )
