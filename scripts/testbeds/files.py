"""The files that a server has for itself: its /etc, its users, its identity, and what its first process mounts."""

from __future__ import annotations

import ctypes
import os
import secrets
import socket
import subprocess
import uuid
from pathlib import Path

from .mounts import bind, mount_kernel_filesystems
from .programs import SYSTEM_PATH, run
from .servers import STATE, Server, make_directory, servers

IMAGES = Path("/var/lib/libvirt/images/vcluster/images")  # guest images of the machine: all servers read them


OWN_DIRECTORIES = {  # directories that a server has for itself, and their modes
    "/etc": 0o755,
    "/var/lib/libvirt": 0o755,
    "/var/log/libvirt": 0o755,
    "/var/cache/libvirt": 0o711,
    "/var/lib/vcluster": 0o755,
    "/root/.ssh": 0o700,
    "/root/.config": 0o755,
    "/root/.cache": 0o755,
    "/root/.local": 0o755,
}
# Scripts of the machine that each login by ssh runs. A server does not get them.
LOGIN_SCRIPTS = (".bashrc", ".profile", ".bash_profile", ".bash_login")
# Parts of the machine's /etc that a server does not get: keys, passwords, rights, domains, networks, pools.
MACHINES_OWN = (
    *("ssh", "sudoers", "sudoers.d", "shadow", "shadow-"),
    *("libvirt/qemu", "libvirt/storage", "libvirt/secrets", "libvirt/hooks"),
)

USERS = {"student": 59001, "operator": 59002}  # numbers that the machine's users are unlikely to have
HOMES = Path("/run/home")  # not /home, because the checkout may be there
SUDOERS = f"""\
Defaults env_reset, use_pty
Defaults secure_path="{SYSTEM_PATH}"
root     ALL=(ALL:ALL) ALL
student  ALL=(ALL:ALL) ALL
operator ALL=(ALL:ALL) NOPASSWD: ALL
@includedir /etc/sudoers.d
"""
# No delay after a wrong password: nothing here is worth guessing.
SUDO_PAM = """\
auth     required pam_unix.so nodelay
account  required pam_unix.so
session  required pam_permit.so
"""
SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin yes
UsePAM no
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""
# No control groups: the /sys of a server shows none. No security driver: it would load its profiles machine-wide.
QEMU_CONF = """
cgroup_controllers = [ ]
security_driver = "none"
# libvirt moves every mount below /dev into a private /dev. It fails if one mount hides another.
namespaces = [ ]
"""
# The same rights as with polkit: root and the group libvirt may use libvirt.
LIBVIRTD_CONF = """\
auth_unix_rw = "none"
unix_sock_group = "libvirt"
unix_sock_rw_perms = "0770"
"""


def prepare_files(server: Server) -> None:
    """Make the files and directories of a server, and the directories that they are mounted on."""
    for path, mode in OWN_DIRECTORIES.items():
        make_directory(Path(path))
        server.own(path).mkdir(parents=True)
        server.own(path).chmod(mode)
    make_directory(IMAGES)
    for path in ("/var/lib/libvirt/images", "/var/log/libvirt/qemu"):
        server.own(path).mkdir()
    server.own(str(IMAGES)).mkdir(parents=True)
    copy_configuration(server)
    write_identity(server)
    write_users(server)


def copy_configuration(server: Server) -> None:
    """Give a server its own copy of the machine's /etc, with settings for libvirt and sshd."""
    own = server.own("/etc")
    run(["cp", "--archive", "/etc/.", str(own)])
    for name in MACHINES_OWN:
        run(["rm", "-rf", str(own / name)])
    for name in ("ssh", "sudoers.d"):
        (own / name).mkdir()
    with (own / "libvirt/qemu.conf").open("a") as file:
        file.write(QEMU_CONF)
    # libvirt would read the same UUID from the board for all servers
    write(own / "libvirt/libvirtd.conf", f'{LIBVIRTD_CONF}host_uuid = "{uuid.uuid4()}"\n')
    write(own / "ssh/sshd_config", SSHD_CONFIG)


def write_identity(server: Server) -> None:
    """Give a server its own host key, name and machine-id."""
    etc = server.own("/etc")
    key = etc / "ssh/ssh_host_ed25519_key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", server.name, "-f", str(key)])
    write(etc / "hostname", f"{server.name}\n")
    write(etc / "machine-id", f"{uuid.uuid4().hex}\n")
    write(etc / "resolv.conf", "")
    write(etc / "hosts", "")  # the file of all servers is mounted on it


def write_users(server: Server) -> None:
    """Add the users student and operator, with homes and sudo. No password of the machine is valid there."""
    etc = server.own("/etc")
    password = {"student": encrypted(server.password)}
    add_lines(etc / "passwd", {name: f"x:{uid}:{uid}::{HOMES / name}:/bin/bash" for name, uid in USERS.items()})
    add_lines(etc / "group", {name: f"x:{uid}:" for name, uid in USERS.items()})
    # sshd refuses keys of an account that is locked with "!"; "*" only means that no password fits
    known = [line.split(":")[0] for line in (etc / "passwd").read_text().splitlines()]
    write(etc / "shadow", "".join(f"{name}:{password.get(name, '*')}:20000:0:99999:7:::\n" for name in known), 0o600)
    write(etc / "sudoers", SUDOERS, 0o440)
    for name in ("sudo", "sudo-i"):
        write(etc / "pam.d" / name, SUDO_PAM)
    for name, uid in USERS.items():
        for path in (server.own(str(HOMES / name)), server.own(str(HOMES / name / ".ssh"))):
            path.mkdir(parents=True)
            path.chmod(0o700)
            os.chown(path, uid, uid)


def add_lines(path: Path, entries: dict[str, str]) -> None:
    """Put entries into a file like /etc/passwd. They replace entries of the same names."""
    kept = [line for line in path.read_text().splitlines() if line.split(":")[0] not in entries]
    path.write_text("\n".join([*kept, *(f"{name}:{rest}" for name, rest in entries.items()), ""]))


def encrypted(password: str) -> str:
    """The SHA-512 form of a password for /etc/shadow. Python 3.13 has no module for it any more."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    return str(crypt(password.encode(), f"$6${secrets.token_hex(8)}".encode()).decode())


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a new file in place of the old one, which may be a link to a file of the machine."""
    path.unlink(missing_ok=True)
    path.touch(mode=mode)
    path.write_text(text)


def write_hosts() -> None:
    """Write the names of all servers to the hosts file.

    They share it, so it is written in place. It is never empty meanwhile: their programs read it at any moment.
    """
    known = [f"{server.address} {server.name}" for server in servers()]
    text = "\n".join(["127.0.0.1 localhost", *known, ""]).encode()
    descriptor = os.open(STATE / "hosts", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
    finally:
        os.close(descriptor)


def run_server(server: Server) -> None:
    """Work of the first process: mount the server's files over those of the machine, then start its daemons."""
    os.chdir("/")
    socket.sethostname(server.name)
    mount_kernel_filesystems()
    bind(IMAGES, server.own(str(IMAGES)), is_read_only=True)
    HOMES.mkdir()
    for path in (*OWN_DIRECTORIES, str(HOMES)):
        run(["mount", "--rbind", str(server.own(path)), path])
    bind(STATE / "hosts", Path("/etc/hosts"), is_read_only=True)
    for script in filter(Path.exists, map(Path("/root").joinpath, LOGIN_SCRIPTS)):
        bind(Path("/dev/null"), script)
    run(["ip", "link", "set", "lo", "up"])
    Path("/run/sshd").mkdir()
    subprocess.Popen(["/usr/sbin/sshd", "-D", "-e"], stdin=subprocess.DEVNULL)
    for daemon in ("virtlogd", "libvirtd"):
        subprocess.run([daemon, "--daemon"], stdin=subprocess.DEVNULL, check=True)
