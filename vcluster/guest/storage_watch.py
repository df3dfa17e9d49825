"""Unmounts shared folders whose server is down, so that processes do not hang there.

Installed on a node, where systemd runs it: stores.py SERVER FOLDER [SERVER FOLDER …]. NFS version 4 has no time limit
for this: soft mounts (nfs(5)) end reads and writes in time, but a process that opens a file waits until the client's
state is recovered, which needs the server. If a server misses `SILENT_POLLS_MAX` polls in a row, this program unmounts
its folder by force, which ends the waiting requests. The automount unit stays, and mounts the folder on its next use
when the server is back. Only folders in use are watched, because systemd unmounts idle ones.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

NFS_PORT = 2049
POLL_S, ANSWER_S, SILENT_POLLS_MAX = 5.0, 3.0, 3
# An open waits for up to ten runs of the client's state manager (NFS4_MAX_LOOP_ON_RECOVER in the kernel).
TRIES, TRY_S = 24, 0.5
COMM_MAX = 15  # TASK_COMM_LEN - 1, linux/sched.h


def is_mounted(folder: str) -> bool:
    with open("/proc/self/mounts") as file:
        return any(line.split()[1:3] == [folder, "nfs4"] for line in file)


def is_answering(server: str) -> bool:
    try:
        socket.create_connection((server, NFS_PORT), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def recovery_threads(server: str) -> list[int]:
    """The kernel threads that recover the client's open files on a server. SIGKILL ends them."""
    comm = f"{socket.gethostbyname(server)}-manager"[:COMM_MAX]
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/comm") as file, open(f"/proc/{name}/cmdline") as cmdline:
                if file.read().strip() == comm and not cmdline.read():
                    found.append(int(name))
        except OSError:
            continue
    return found


def unmount(server: str, folder: str) -> None:
    """Unmount by force, repeatedly: each call ends the requests that wait at that moment."""
    print(f"{server} does not answer: unmounting {folder}", flush=True)
    for _ in range(TRIES):
        if subprocess.run(["umount", "-f", folder], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return
        for thread in recovery_threads(server):
            os.kill(thread, signal.SIGKILL)
        time.sleep(TRY_S)
    subprocess.run(["umount", "-f", "-l", folder], check=False)


def watch(server: str, folder: str) -> None:
    silent_polls = 0
    while True:
        silent_polls = silent_polls + 1 if is_mounted(folder) and not is_answering(server) else 0
        if silent_polls == SILENT_POLLS_MAX:
            unmount(server, folder)
            silent_polls = 0
        time.sleep(POLL_S)


def main(arguments: list[str]) -> None:
    """Watch each storage node in its own thread: a silent one must not delay the others."""
    threads = [threading.Thread(target=watch, args=arguments[at : at + 2]) for at in range(0, len(arguments), 2)]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main(sys.argv[1:])
