"""Lets go of mounted folders whose server is down, so that nobody who looks there hangs.

Installed on a node and run there by systemd for as long as it is up: stores.py SERVER FOLDER [SERVER FOLDER …]. NFS
version 4 has no such limit of its own: soft mounts (nfs(5)) end reads and writes in time, but whoever opens a file
waits until the client's state is recovered, which needs the server. Here a server that does not answer for as long as
`PATIENCE` looks has its folder unmounted by force, which ends what waits for it; the automount below it stays, and
mounts the folder again for who comes next, once the server is back. Only folders in use are looked after: automount
unmounts the others.
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
LOOK_S, ANSWER_S, PATIENCE = 5.0, 3.0, 3
# Whoever opens a file waits for up to ten runs of the client's state manager (NFS4_MAX_LOOP_ON_RECOVER in the kernel).
TRIES, TRY_S = 24, 0.5
COMM_MAX = 15  # TASK_COMM_LEN - 1, linux/sched.h


def is_mounted(folder: str) -> bool:
    with open("/proc/self/mounts") as file:
        return any(line.split()[1:3] == [folder, "nfs4"] for line in file)


def answers(server: str) -> bool:
    try:
        socket.create_connection((server, NFS_PORT), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def recoverers(server: str) -> list[int]:
    """The kernel's threads that try to recover what the client had open on a server; they heed SIGKILL."""
    comm = f"{socket.gethostbyname(server)}-manager"[:COMM_MAX]
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/comm") as file, open(f"/proc/{name}/cmdline") as words:
                if file.read().strip() == comm and not words.read():
                    found.append(int(name))
        except OSError:
            continue
    return found


def let_go(server: str, folder: str) -> None:
    """Each unmounting by force ends the requests that wait just then; who asks again at once is ended by the next."""
    print(f"{server} is silent: {folder} is let go of", flush=True)
    for _ in range(TRIES):
        if subprocess.run(["umount", "-f", folder], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return
        for thread in recoverers(server):
            os.kill(thread, signal.SIGKILL)
        time.sleep(TRY_S)
    subprocess.run(["umount", "-f", "-l", folder], check=False)


def watch(server: str, folder: str) -> None:
    silences = 0
    while True:
        silences = silences + 1 if is_mounted(folder) and not answers(server) else 0
        if silences == PATIENCE:
            let_go(server, folder)
            silences = 0
        time.sleep(LOOK_S)


def main(arguments: list[str]) -> None:
    """Each store has a watcher of its own: one that is silent must not keep the others waiting."""
    threads = [threading.Thread(target=watch, args=arguments[at : at + 2]) for at in range(0, len(arguments), 2)]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main(sys.argv[1:])
