"""Applies a list of actions on this node and reports what it changed.

The controller sends it to a node, where python3 runs it as root. It reads {"actions": […]} from standard input and
writes {"changed": […]}. The field "do" names the action:
  file       path, text, owner, mode           a file with exactly this content
  directory  path, owner, mode
  user       name, uid, home                   an account that logs in by key only; of any uid if `uid` is null
  line       path, key, text                   the only line of a table that has `key` as its second field
  export     path, folder, clients, owner      a table of NFS exports with one folder; to the server, every user of a
                                               client is the owner
  service    unit, restart_if, reload          running and started at boot; restarted if one of these paths was changed,
                                               else reloaded if `reload` is true
  no_service unit, paths                       stopped, not started at boot, and without these files
  mount      source, target, type, options, address
                                               `address` is the server's, if there is a server
  automounts units                             units by target: systemd mounts a target on its first use, as in fstab
  data       serial, label, target, owner      the disk with that serial number, formatted if it is blank, and mounted
  run        argv, if_changed                  run only if one of these paths was changed
  leases     path, unit, hosts, unknown_hosts  dnsmasq's leases: keep those of `hosts` (MACs by address) and those from
                                               the first to the last address of `unknown_hosts`, remove all others
  address    address                           wait until the node has this address; changes nothing
  clock      ahead_s                           set the clock to that of the virtual hardware, if there is one, which is
                                               `ahead_s` seconds ahead; a clock that NTP synchronises stays if it is
                                               only a few seconds wrong
  arp        interface, macs, unknown          the ARP cache: MACs by address, as if learned before, and addresses that
                                               are not there; not a change
  programs   names, log, unless                fails if one of these programs is missing, with the errors in the log of
                                               their installation; does nothing if the file `unless` exists, and
                                               changes nothing
  resolver   text                              /etc/resolv.conf, unless a service of the system maintains it

A user may change everything in the own home folder at any moment, for example to a link to /etc. So files and folders
of a user are made with that user's rights, and mounts do not follow the links of users.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import stat
import subprocess
import sys
import time
from typing import Any, Dict, Iterator

Action = Dict[str, Any]

UNITS = "/etc/systemd/system"
PROGRAM_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ERRORS_MAX = 3  # lines of apt-get; the first ones have the cause
MOUNT_TRIES = 2
ADDRESS_TIMEOUT_S, ADDRESS_POLL_S = 60.0, 0.1
DISK_TIMEOUT_S, DISK_POLL_S = 60.0, 0.5
MOUNT_POINT = "/run/vcluster-mount"
MS_BIND = 4096  # linux/mount.h
HARDWARE_CLOCK = "/sys/class/rtc/rtc0/since_epoch"
# The comparison here is up to 1 s wrong, so a clock that stays is less than 2.2 s wrong. The differences of servers are
# rounded to seconds. So a node and the head node differ by less than 2 * 2.2 + 0.5 = 4.9 s; the check allows 5 s.
CLOCK_MAX_S, CLOCK_POLL_S = 1.2, 0.005
SYNCHRONISED_MAX_S = 4.0  # the check allows 5 s, and the comparison here is up to 1 s wrong
TIMEX_BYTES, TIME_ERROR = 512, 5  # sys/timex.h; the structure has 208 bytes
SIOCDARP, SIOCSARP, ATF_COM, ARPHRD_ETHER = 0x8953, 0x8955, 2, 1  # linux/sockios.h, linux/if_arp.h


def run(argv: list[str]) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")


def read(path: str) -> str | None:
    try:
        # Lines of others in a file keep their bytes, in each encoding.
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path: str, text: str, mode: int, ids: tuple[int, int]) -> None:
    """Replace a file, or a link, completely or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new = f"{path}.vcluster-new"
    with contextlib.suppress(FileNotFoundError):  # left by a program that was killed, or made by the user
        os.unlink(new)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fchown(file.fileno(), *ids)
        os.fchmod(file.fileno(), mode)
    os.replace(new, path)


@contextlib.contextmanager
def as_user(ids: tuple[int, int]) -> Iterator[None]:
    """Access files with the rights of a user only."""
    if os.geteuid() == ids[0]:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(ids[1])
    os.seteuid(ids[0])
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def ids_of(owner: str) -> tuple[int, int]:
    entry = pwd.getpwnam(owner)
    return entry.pw_uid, entry.pw_gid


def is_file(path: str, text: str, mode: int, ids: tuple[int, int]) -> bool:
    """Whether this is a file, not a link, with this content, mode and owner. A pipe of the user blocks nothing."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with open(opened, "rb") as file:
        state, content = os.fstat(opened), text.encode()
        return (
            (state.st_mode, state.st_uid, state.st_gid) == (stat.S_IFREG | mode, *ids)
            and state.st_size == len(content)
            and file.read(len(content)) == content
        )


def do_file(action: Action, changed: list[str]) -> None:
    path, ids = action["path"], ids_of(action["owner"])
    with as_user(ids):
        if is_file(path, action["text"], action["mode"], ids):
            return
        write(path, action["text"], action["mode"], ids)
    changed.append(path)


def do_directory(action: Action, changed: list[str]) -> None:
    path, ids = action["path"], ids_of(action["owner"])
    if path in mounts():  # a stat of a mounted folder would wait for its server
        return
    with as_user(ids):
        if make_directory(path, action["mode"], ids):
            changed.append(path)


def make_directory(path: str, mode: int, ids: tuple[int, int]) -> bool:
    """Make a folder, or change its mode and owner; returns whether it changed something."""
    wanted = (stat.S_IFDIR | mode, *ids)
    with contextlib.suppress(FileNotFoundError):
        state = os.lstat(path)
        if (state.st_mode, state.st_uid, state.st_gid) == wanted:
            return False
    os.makedirs(path, exist_ok=True)
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError as error:
        raise RuntimeError(f"{path} is not a folder") from error
    try:
        os.fchown(folder, *ids)
        os.fchmod(folder, mode)
    except PermissionError as error:
        raise RuntimeError(f"{path} belongs to another user") from error
    finally:
        os.close(folder)
    return True


def do_user(action: Action, changed: list[str]) -> None:
    try:
        if action["uid"] not in (pwd.getpwnam(action["name"]).pw_uid, None):
            raise RuntimeError(f"user {action['name']} exists with another uid than {action['uid']}")
    except KeyError:
        # "*" allows no password; "!" would lock the account for an sshd without PAM.
        options = ["-m", "-d", action["home"], "-u", str(action["uid"]), "-s", "/bin/bash", "-p", "*"]
        run(["useradd", *options, action["name"]])
        changed.append(f"user {action['name']}")


def do_line(action: Action, changed: list[str]) -> None:
    old = read(action["path"]) or ""
    lines = old.splitlines(keepends=True)
    others = [line for line in lines if line.startswith("#") or action["key"] not in line.split()[1:2]]
    if others and not others[-1].endswith("\n"):
        others[-1] += "\n"
    new = "".join(others) + action["text"]
    if sorted(new.splitlines()) == sorted(old.splitlines()):
        return
    write(action["path"], new, 0o644, (0, 0))
    changed.append(action["path"])


def do_export(action: Action, changed: list[str]) -> None:
    uid, gid = ids_of(action["owner"])
    options = f"rw,sync,all_squash,anonuid={uid},anongid={gid},no_subtree_check"
    text = f"{action['folder']} {action['clients']}({options})\n"
    do_file({"path": action["path"], "text": text, "owner": "root", "mode": 0o644}, changed)


def do_service(action: Action, changed: list[str]) -> None:
    unit = action["unit"]
    active = subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0
    if active and not set(action["restart_if"]) & set(changed):
        if action.get("reload"):
            run(["systemctl", "reload", unit])
        enable(unit)
        return
    enable(unit)
    if active and any(path.startswith(UNITS) for path in set(action["restart_if"]) & set(changed)):
        run(["systemctl", "daemon-reload"])
    run(["systemctl", "restart" if active else "start", unit])
    changed.append(unit)


def do_no_service(action: Action, changed: list[str]) -> None:
    """End a service and remove its files: the unit last, because systemctl cannot disable a service without it."""
    if not any(map(os.path.exists, action["paths"])):
        return
    unit = f"{UNITS}/{action['unit']}"
    if os.path.exists(unit):
        run(["systemctl", "disable", "--now", action["unit"]])
    else:  # root of the node removed it; systemd may still have it in memory
        with contextlib.suppress(FileNotFoundError):
            os.unlink(wanted_link(action["unit"]))
        subprocess.run(["systemctl", "stop", action["unit"]], capture_output=True, check=False)
    for path in sorted(action["paths"], key=lambda path: bool(path == unit)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    run(["systemctl", "daemon-reload"])
    changed.append(action["unit"])


def wanted_link(unit: str) -> str:
    """The link by which systemd starts a unit at each boot."""
    return f"{UNITS}/multi-user.target.wants/{unit}"


def enable(unit: str) -> None:
    """Make the link of `systemctl enable` for multi-user.target. systemctl takes a second under emulation."""
    link = wanted_link(unit)
    if os.path.islink(link):
        return
    paths = [f"{folder}/{unit}" for folder in (UNITS, "/lib/systemd/system")]
    found = [path for path in paths if os.path.exists(path)]
    if not found:
        raise RuntimeError(f"this system has no unit {unit}")
    os.makedirs(os.path.dirname(link), exist_ok=True)
    os.symlink(found[0], link)


def mounts() -> dict[str, str]:
    """The source of each mount, by mount point; the topmost mount counts."""
    with open("/proc/self/mounts") as file:
        return {line.split()[1]: line.split()[0] for line in file}


def do_mount(action: Action, changed: list[str]) -> None:
    mounted = mounts()
    # The table names the disk as the source of a bind mount.
    source = mounted.get(action["source"], "") if action["options"] == "bind" else action["source"]
    if mounted.get(action["target"]) == source:
        return
    with opened_folder(action["target"]) as place:
        if action["options"] == "bind":
            bind(action["source"], place)
        elif not is_mounted_by_the_kernel(action, place):
            mount_by_program(action, place)
    changed.append(f"mount {action['target']}")


@contextlib.contextmanager
def opened_folder(path: str) -> Iterator[str]:
    """Open a folder, and give a path of it that no user can change. Links count only in folders of root.

    With O_DIRECTORY, systemd would mount a folder that it mounts on the first use.
    """
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        for name in path.strip("/").split("/"):
            state = os.fstat(folder)
            is_roots = state.st_uid == 0 and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            found = os.open(name, os.O_PATH | (0 if is_roots else os.O_NOFOLLOW), dir_fd=folder)
            os.close(folder)
            folder = found
            if not stat.S_ISDIR(os.fstat(folder).st_mode):
                raise RuntimeError(f"{path}: {name} is not a folder")
        yield f"/proc/self/fd/{folder}"
    finally:
        os.close(folder)


def bind(source: str, place: str) -> None:
    """Show a folder at another place too, as mount --bind does."""
    import ctypes  # noqa: PLC0415 - most lists of actions do not need it

    call = ctypes.CDLL(None, use_errno=True).mount
    if call(source.encode(), place.encode(), None, ctypes.c_ulong(MS_BIND), None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), source)


def mount_by_program(action: Action, place: str) -> None:
    """Mount by mount(8), which follows links, at a place of root first."""
    os.makedirs(MOUNT_POINT, mode=0o700, exist_ok=True)
    run(["mount", "-t", action["type"], "-o", action["options"], action["source"], MOUNT_POINT])
    try:
        if mounts().get(action["target"]) != action["source"]:  # a user of the folder may have had systemd mount it
            bind(MOUNT_POINT, place)
    finally:
        run(["umount", MOUNT_POINT])


def is_mounted_by_the_kernel(action: Action, place: str) -> bool:
    """Make the system call of mount(8) without its two processes. If it fails, mount(8) retries and reports errors.

    The call passes the server's address, `addr` of nfs(5), and omits the options that only mount(8) understands.
    """
    if not action.get("address"):
        return False
    import ctypes  # noqa: PLC0415 - most lists of actions do not need it

    options = [option for option in action["options"].split(",") if option not in ("rw", "_netdev")]
    texts = [action["source"], place, action["type"], ",".join([*options, f"addr={action['address']}"])]
    source, target, kind, data = (text.encode() for text in texts)
    failed: int = ctypes.CDLL(None).mount(source, target, kind, ctypes.c_ulong(0), data)
    return not failed


def do_automounts(action: Action, changed: list[str]) -> None:
    mounted = mounts()
    units = [unit for target, unit in action["units"].items() if target not in mounted]
    if units:
        if "/etc/fstab" in changed:
            run(["systemctl", "daemon-reload"])
        run(["systemctl", "start", *units])
        changed.extend(units)
    for target in action["units"]:
        trigger_automount(target)


def trigger_automount(target: str) -> None:
    """Use the folder once, so that systemd mounts it now. A mount that competes for the processor later may time out.

    The folder of a silent server is mounted on its first use after the server is back.
    """
    for _ in range(MOUNT_TRIES):
        try:
            os.listdir(target)
        except OSError:
            continue
        return


def disk_of(serial: str) -> str:
    for name in os.listdir("/sys/block"):
        if (read(f"/sys/block/{name}/serial") or "").strip() == serial:
            return f"/dev/{name}"
    raise RuntimeError(f"no disk has the serial number {serial}")


def do_data(action: Action, changed: list[str]) -> None:
    if action["target"] in mounts():
        return
    disk, label = disk_of(action["serial"]), action["label"]
    probed = subprocess.run(["blkid", "-p", "-o", "export", disk], capture_output=True, text=True, check=False)
    if probed.returncode == 2:  # it holds nothing that blkid knows
        run(["mkfs.ext4", "-q", "-L", label, "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", disk])
        changed.append(f"file system {label}")
    elif f"LABEL={label}" not in probed.stdout.split():
        raise RuntimeError(f"{disk} holds data that vcluster did not write: {' '.join(probed.stdout.split())}")
    os.makedirs(action["target"], exist_ok=True)
    mount_disk(disk, action["target"])
    os.chown(action["target"], *ids_of(action["owner"]))
    changed.append(f"mount {action['target']}")


def mount_disk(disk: str, target: str) -> None:
    """Mount a disk. When a node boots, systemd first checks its file system and mounts it; until then it is busy."""
    deadline = time.monotonic() + DISK_TIMEOUT_S
    while target not in mounts():
        try:
            run(["mount", disk, target])
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(DISK_POLL_S)


def do_run(action: Action, changed: list[str]) -> None:
    if set(action["if_changed"]) & set(changed):
        run(action["argv"])


def is_own(address: str) -> bool:
    import socket  # noqa: PLC0415 - slow to import, and most lists of actions do not need it

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def number(address: str) -> int:
    return int.from_bytes(bytes(map(int, address.split("."))), "big")


def do_leases(action: Action, changed: list[str]) -> None:
    first, last = map(number, action["unknown_hosts"])

    def stays(line: str) -> bool:
        _, mac, address, *_ = [*line.split(), "", ""]
        is_lease = address.count(".") == 3
        return not is_lease or action["hosts"].get(address) == mac or first <= number(address) <= last

    if all(map(stays, (read(action["path"]) or "").splitlines())):
        return
    run(["systemctl", "stop", action["unit"]])  # it holds the leases in memory and would write them again
    state = os.stat(action["path"])
    lines = [line for line in (read(action["path"]) or "").splitlines(keepends=True) if stays(line)]
    write(action["path"], "".join(lines), state.st_mode & 0o7777, (state.st_uid, state.st_gid))
    changed.append(action["path"])


def do_address(action: Action, _changed: list[str]) -> None:
    deadline = time.monotonic() + ADDRESS_TIMEOUT_S
    while not is_own(action["address"]):
        if time.monotonic() > deadline:
            raise RuntimeError(f"timed out after {ADDRESS_TIMEOUT_S:.0f} s waiting for the address {action['address']}")
        time.sleep(ADDRESS_POLL_S)


def do_clock(action: Action, changed: list[str]) -> None:
    try:
        # QEMU's clock began with a whole second, so each of its seconds begins late, by less than one.
        apart_s = abs(hardware_time() + 1 - action["ahead_s"] - time.time())
        if apart_s < CLOCK_MAX_S or (apart_s < SYNCHRONISED_MAX_S and is_synchronised()):
            return
        second = next_second()
    except (OSError, ValueError):  # there is none, or it shows no time; the check of the cluster finds a wrong clock
        return
    time.clock_settime(time.CLOCK_REALTIME, second + 0.5 - action["ahead_s"])
    changed.append("clock")


def next_second() -> float:
    """Wait until the hardware's clock begins its next second."""
    second, end = hardware_time(), time.monotonic() + 2
    while hardware_time() == second and time.monotonic() < end:
        time.sleep(CLOCK_POLL_S)
    return hardware_time()


def hardware_time() -> float:
    """The real-time clock, which shows whole seconds. That of a virtual machine follows the clock of its server."""
    with open(HARDWARE_CLOCK) as file:
        return float(file.read())


def is_synchronised() -> bool:
    """Whether a program of the image, for example an NTP client, sets the clock (adjtimex(2)).

    The kernel still answers yes after a pause of the node, when the clock is behind.
    """
    import ctypes  # noqa: PLC0415 - most lists of actions do not need it

    state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    return state != TIME_ERROR


def do_arp(action: Action, _changed: list[str]) -> None:
    """The kernel uses a stale entry at once, and asks that address for it a few seconds later."""
    import fcntl  # noqa: PLC0415 - only this action needs it
    import socket  # noqa: PLC0415

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for address in action["unknown"]:
            with contextlib.suppress(OSError):  # there is no such entry
                fcntl.ioctl(control, SIOCDARP, arp_entry(action["interface"], address, "00:00:00:00:00:00"))
        for address, mac in action["macs"].items():
            try:
                fcntl.ioctl(control, SIOCSARP, arp_entry(action["interface"], address, mac))
            except OSError:  # the interface has no address yet, and ARP will ask for the others
                return


def arp_entry(interface: str, address: str, mac: str) -> bytes:
    """A complete entry: struct arpreq of linux/if_arp.h."""
    import socket  # noqa: PLC0415
    import struct  # noqa: PLC0415

    protocol = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
    hardware = struct.pack("=H6s8x", ARPHRD_ETHER, bytes.fromhex(mac.replace(":", "")))
    return protocol + hardware + struct.pack("=i16x16s", ATF_COM, interface.encode())


def do_programs(action: Action, _changed: list[str]) -> None:
    import shutil  # noqa: PLC0415 - only this action needs it

    if os.path.exists(action["unless"]):
        return
    missing = [name for name in action["names"] if not shutil.which(name, path=PROGRAM_FOLDERS)]
    if not missing:
        return
    lines = (read(action["log"]) or "").splitlines()
    errors = [line for line in lines if line.startswith(("E: ", "W: ", "Err:"))] or lines[-1:]
    reason = "; ".join(errors[:ERRORS_MAX]) or "it did not run"
    raise RuntimeError(f"{', '.join(missing)} not installed at the first boot; apt-get: {reason}")


def do_resolver(action: Action, changed: list[str]) -> None:
    path = "/etc/resolv.conf"
    if os.path.islink(path) or read(path) == action["text"]:
        return
    write(path, action["text"], 0o644, (0, 0))
    changed.append(path)


def apply(actions: list[Action]) -> list[str]:
    """Apply all actions. Then write their changes and the files of the node's seed to the disk.

    Otherwise a node that loses its power soon has empty files, for example its keys.
    """
    changed: list[str] = []
    for action in actions:
        globals()["do_" + action["do"]](action, changed)
    if changed:
        os.sync()
    return changed


def main() -> None:
    answer: dict[str, Any]
    try:
        answer = {"changed": apply(json.load(sys.stdin)["actions"])}
    except (OSError, RuntimeError, KeyError) as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
