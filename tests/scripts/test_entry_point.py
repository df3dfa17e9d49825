"""The command as a process: its output is complete, and it ends with its exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.scripts.conftest import CHECKOUT

# A command that gets interrupts all the time, until Python has waited for its threads.
FLOODED = """
import os, signal, threading, time
from vcluster.cli import main

def flood():
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)

def work(**_):
    threading.Thread(target=flood).start()
    time.sleep(5)

main.main.main = work
main.run()
"""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "output"), [(["--version"], 0, "vcluster, version"), (["nonsense"], 2, "nonsense")]
)
def test_a_process_ends_with_its_exit_code_and_all_output(arguments: list[str], exit_code: int, output: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vcluster", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, output in done.stdout + done.stderr) == (exit_code, True)


def test_output_that_is_not_flushed_is_complete() -> None:
    program = (
        "import sys\nfrom vcluster.cli import main\nmain._run = lambda: sys.stdout.write('the end') and 1\nmain.run()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "the end")


def test_the_command_loads_only_the_modules_of_pyroute2_that_it_uses() -> None:
    program = (
        "import sys, atexit\n"
        "from vcluster.cli import main\n"
        "main._run = lambda: 0\n"
        "atexit.register = lambda *_: None\n"
        "try:\n    main.run()\nexcept SystemExit:\n    pass\n"
        "from vcluster.adapters.network import guard_table, netlink_interfaces, netlink_routes, nftables_rules\n"
        "print(sorted(name for name in sys.modules if name.startswith('pyroute2.') and name.count('.') == 1))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "pyroute2.netlink" in done.stdout
    assert not [name for name in ("pyroute2.ndb", "pyroute2.ethtool", "pyroute2.ipdb") if name in done.stdout]


@pytest.mark.parametrize("name", ["machine", "testbed", "fresh"])
def test_a_script_needs_only_the_python_of_the_system(name: str) -> None:
    done = subprocess.run(
        ["/usr/bin/python3", str(CHECKOUT / "scripts" / name), "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_more_interrupts_do_not_disturb_the_end_of_a_command() -> None:
    done = subprocess.run([sys.executable, "-c", FLOODED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "vcluster: interrupted\n")


PRINT_UMASK = """
import os, sys
from vcluster.cli import main
os.geteuid = lambda: int(sys.argv[1])
os.umask(0o077)
main.main.main = lambda **_: print(f"{os.umask(0):03o}")
main.run()
"""


@pytest.mark.parametrize(("uid", "mask"), [(0, "022"), (1000, "077")])
def test_the_umask_of_root_does_not_close_images_to_qemu(uid: int, mask: str) -> None:
    """The files of another user stay as private as that user wants."""
    done = subprocess.run([sys.executable, "-c", PRINT_UMASK, str(uid)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{mask}\n"
