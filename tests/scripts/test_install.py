"""scripts/install and scripts/uninstall, run for real on a server of the testbed."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.scripts.conftest import LINK, RECORDS, Checkout, Installed

pytestmark = pytest.mark.netns


def links(checkout: Checkout) -> dict[str, Path]:
    """The links that scripts/install makes, and their targets."""
    lines = checkout.call('printf "%s" "$links"').stdout.split("\n")
    return {link: checkout.path / target for link, target in (line.split() for line in lines if line)}


def suggested(printed: str) -> str:
    """The command that the last line of scripts/install suggests."""
    last = printed.strip().splitlines()[-1]
    assert last.startswith("installed; try: ")
    return last.removeprefix("installed; try: ")


@contextmanager
def file_on_server(checkout: Checkout, path: str, text: str, mode: int = 0o755) -> Iterator[None]:
    """A file in place of the present one, for a while."""
    there, kept = checkout.server.path(path), checkout.server.path(f"{path}.kept")
    there.rename(kept)
    there.write_text(text)
    there.chmod(mode)
    try:
        yield
    finally:
        kept.rename(there)


@contextmanager
def without_sudo(checkout: Checkout) -> Iterator[None]:
    checkout.sh("mount --bind /dev/null /usr/bin/sudo")
    try:
        yield
    finally:
        checkout.sh("umount /usr/bin/sudo")


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oldest", "printed", "exit_code"),
    [
        ("7.2", "QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6)", 3),
        ("7.2", "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", 0),
        ("7.2", "QEMU emulator version 10.0.13", 0),
        ("3.11", "Python 3.10.12", 3),
        ("3.11", "Python 3.9.2", 3),
        ("3.11", "Python 3.13.5", 0),
        ("9.0", "9.0.0", 0),
        ("9.0", "8.10.0", 3),
    ],
)
def test_an_old_version_is_refused(installed: Installed, oldest: str, printed: str, exit_code: int) -> None:
    done = installed.checkout.call(f"check_version Program {oldest} {shlex.quote(printed)}", check=False)
    assert done.returncode == exit_code
    assert ("is too old: vcluster needs" in done.stderr) == bool(exit_code)


# --- install ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_install_works_the_next_time(installed: Installed) -> None:
    assert "include-system-site-packages = false" in installed.unfinished
    checkout = installed.checkout
    assert "include-system-site-packages = true" in (checkout.path / ".venv/pyvenv.cfg").read_text()
    assert checkout.sh("vcluster --version").startswith("vcluster, version")
    assert checkout.server.path(LINK).readlink() == checkout.path / ".venv/bin/vcluster"


def test_the_links_lead_into_the_checkout(installed: Installed) -> None:
    found = links(installed.checkout)
    assert LINK in found
    assert len(found) == 6
    for link, target in found.items():
        assert installed.checkout.server.path(link).readlink() == target
        assert target.is_file()


@pytest.mark.parametrize(("page", "title"), [("vcluster", "VCLUSTER(1)"), ("vcluster-config", "VCLUSTER-CONFIG(5)")])
def test_man_finds_the_pages(installed: Installed, page: str, title: str) -> None:
    if not shutil.which("man"):
        pytest.skip("man is not installed")
    assert installed.checkout.sh(f"man -P cat {page}").startswith(title)


def test_bash_completes_commands(installed: Installed) -> None:
    line = "COMP_WORDS=(vcluster sta) COMP_CWORD=1; _vcluster_completion vcluster; echo ${COMPREPLY[*]}"
    file = "/usr/local/share/bash-completion/completions/vcluster"
    completed = installed.checkout.sh(f"bash -c '. {file}; {line}'").split()
    assert sorted(completed) == ["start", "status"]


def test_the_environment_changes_nothing(installed: Installed) -> None:
    assert not Path("/nonexistent").exists()
    assert list(installed.checkout.path.glob(".venv/lib/python3*/site-packages/click"))


def test_install_ends_with_a_command_that_works(installed: Installed) -> None:
    assert suggested(installed.printed) == "vcluster local create -n 4"
    assert "Usage: vcluster local create" in installed.checkout.sh(f"{suggested(installed.printed)} --help")


def test_install_opens_the_device_and_prints_it(installed: Installed) -> None:
    line = "no udev sets the mode of /dev/kvm here. Set: owner root, group kvm, mode 0660 (before: 0:0 600)"
    assert line in installed.printed.splitlines()
    assert "Fix:" not in installed.printed
    assert installed.checkout.kvm() == "root:kvm 660"


def test_a_second_install_changes_nothing(installed: Installed) -> None:
    log = installed.checkout.path / "build/install.log"
    before = log.read_text(), installed.checkout.server.path(f"{RECORDS}/kvm").read_text()
    printed = installed.checkout.run("install").stderr
    assert (log.read_text(), installed.checkout.server.path(f"{RECORDS}/kvm").read_text()) == before
    steps = [line for line in printed.splitlines() if line and not line.startswith(("==>", "vcluster, version"))]
    assert steps == ["installed; try: vcluster local create -n 4"]


def test_a_user_of_sudo_reads_commands_with_sudo(installed: Installed) -> None:
    checkout = installed.checkout
    command = suggested(checkout.run("install", user="operator").stderr)
    assert command == "sudo vcluster local create -n 4"
    assert "Usage: vcluster local create" in checkout.sh(f"{command} --help", user="operator")


def test_root_reads_commands_without_sudo_where_that_is_not_installed(installed: Installed) -> None:
    with without_sudo(installed.checkout):
        done = installed.checkout.run("install", env={"SUDO_USER": "operator"})
    assert suggested(done.stderr) == "vcluster local create -n 4"


@pytest.mark.parametrize("user", ["root", "operator"])
def test_another_vcluster_on_the_path_stays(installed: Installed, user: str) -> None:
    checkout = installed.checkout
    with file_on_server(checkout, LINK, "#!/bin/sh\necho foreign\n"):
        done = checkout.run("install", user=user)
        assert f"{LINK} belongs to something else and stays as it is" in done.stderr.splitlines()
        command = suggested(done.stderr)
        assert shlex.split(command)[-5:] == [str(checkout.path / ".venv/bin/vcluster"), "local", "create", "-n", "4"]
        assert "Usage: vcluster local create" in checkout.sh(f"{command} --help", user=user)
        assert checkout.sh("vcluster") == "foreign\n"
    assert checkout.server.path(LINK).is_symlink()


def test_a_vcluster_earlier_on_the_path_is_not_suggested(installed: Installed) -> None:
    checkout = installed.checkout
    earlier = checkout.server.path("/run/earlier")
    earlier.mkdir()
    (earlier / "vcluster").write_text("#!/bin/sh\n")
    (earlier / "vcluster").chmod(0o755)
    done = checkout.run("install", env={"PATH": "/run/earlier:/usr/local/bin:/usr/bin:/bin"})
    assert shlex.split(suggested(done.stderr))[0] == str(checkout.path / ".venv/bin/vcluster")
    shutil.rmtree(earlier)


def test_a_copied_checkout_runs_its_own_code(installed: Installed) -> None:
    """The copy has the virtual environment of the original, which runs the original's code."""
    original = installed.checkout
    copy = Checkout(original.server, original.path.parent / "a copy")
    shutil.copytree(original.path, copy.path, symlinks=True)
    version = copy.path / "vcluster/__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "9.'))
    assert copy.call("environment_is_usable", check=False).returncode != 0
    printed = copy.run("install").stderr
    assert f"{LINK} led to another checkout, {original.path}; now it leads to this one" in printed.splitlines()
    assert f", from {copy.path}" in printed
    assert copy.sh("vcluster --version").startswith("vcluster, version 9.")

    moved = Checkout(original.server, copy.path.rename(original.path.parent / "moved"))
    assert moved.call("loaded_from", check=False).stdout == ""
    assert moved.call("environment_is_usable", check=False).returncode != 0
    printed = original.run("install").stderr
    assert f"{LINK} led to another checkout, {copy.path}; now it leads to this one" in printed.splitlines()
    shutil.rmtree(moved.path)


def test_a_command_that_runs_other_code_is_an_error(installed: Installed) -> None:
    checkout = installed.checkout
    finder = next(checkout.path.glob(".venv/lib/python3*/site-packages/__editable___vcluster_*_finder.py"))
    kept = finder.read_text()
    finder.write_text(kept.replace(f"{checkout.path}/vcluster", "/opt/old/vcluster"))
    done = checkout.call("check_command", check=False)
    finder.write_text(kept)
    assert done.returncode == 1
    assert f"does not run the code of {checkout.path}. It printed:" in done.stderr


def test_an_unfinished_environment_is_made_again(plain: Checkout) -> None:
    """pip cannot tell a package from one that it was copying when it was killed."""
    leftover = plain.path / ".venv/lib/package.py"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    done = plain.call('environment_is_usable() { return 0; }; quietly() { echo "$@"; }; make_environment')
    assert done.stdout == f"/usr/bin/python3 -I -m venv --system-site-packages {plain.path}/.venv\n"
    assert not leftover.exists()


def test_one_installation_waits_for_another(plain: Checkout) -> None:
    """A killed install may leave its pip running."""
    (plain.path / "build").mkdir(exist_ok=True)
    holder = plain.server.popen(["flock", str(plain.path / "build/lock"), "sh", "-c", "echo locked; sleep 1"])
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    # the other installation is complete when this one looks again
    looks = 'project_is_installed() { [ -e "$root/build/looked" ] || { touch "$root/build/looked"; false; }; }'
    done = plain.call(f"{looks}; install_project ''")
    assert done.stderr == f"another installation in {plain.path} is running; waiting for its end\n"
    holder.communicate(timeout=300)


# --- users -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["install", "demo", "uninstall", "test"])
def test_a_script_that_needs_root_prints_the_command(plain: Checkout, script: str) -> None:
    path = plain.path / "scripts" / script
    done = plain.run_argv(["runuser", "-u", "student", "--", str(path)], check=False)
    assert (done.returncode, done.stderr) == (3, f"{script}: this needs root: sudo {path}\n")
    with without_sudo(plain):
        done = plain.run_argv(["runuser", "-u", "student", "--", str(path)], check=False)
    message = f"{script}: this needs root, and sudo is not installed here. Log in as root, and run: {path}\n"
    assert (done.returncode, done.stderr) == (3, message)


def test_a_script_without_a_folder_in_its_name(plain: Checkout) -> None:
    """`sudo install` would run another program."""
    line = f"cd {plain.path}/scripts && runuser -u student -- bash install 2>&1 || true"
    assert plain.sh(line) == "install: this needs root: sudo ./install\n"


def test_a_checkout_of_root_used_by_another_user(plain: Checkout) -> None:
    path = plain.path / "scripts/test"
    done = plain.run_argv(["runuser", "-u", "student", "--", str(path), "--quick"], check=False)
    message = f"test: student cannot write to {plain.path}, which belongs to root. Run: sudo {path} --quick\n"
    assert (done.returncode, done.stderr) == (3, message)


# --- uninstall -------------------------------------------------------------------------------------------------------


def test_uninstall_removes_what_install_made_and_install_makes_it_again(installed: Installed) -> None:
    checkout, server = installed.checkout, installed.checkout.server
    kept = checkout.path.parent / "environment"
    shutil.copytree(checkout.path / ".venv", kept, symlinks=True)
    (checkout.path / "vcluster/__pycache__").mkdir(exist_ok=True)

    printed = checkout.run("uninstall").stderr
    for name in (".venv", "build", "vcluster.egg-info", "vcluster/__pycache__"):
        assert not (checkout.path / name).exists()
    assert checkout.sh("find /usr/local/bin /usr/local/share -mindepth 1") == "/usr/local/share/man\n"
    assert not server.path(RECORDS).exists()
    assert checkout.kvm() == "root:root 600"
    assert "  the images of the nodes (" in printed
    assert "rm -r /var/lib/libvirt/images/vcluster/images" in printed
    daemons = next(line for line in printed.splitlines() if "libvirt's daemons" in line).partition(": kill ")[2].split()
    names = [server.path(f"/proc/{number}/comm").read_text().strip() for number in daemons]
    assert names == ["libvirtd", "virtlogd"]

    again = checkout.run("uninstall", user="operator").stderr
    assert "removed" not in again
    assert ": sudo rm -r /var/lib/libvirt/images/vcluster/images" in again

    kept.rename(checkout.path / ".venv")  # in place of another run of pip
    assert "no udev sets the mode" in checkout.run("install").stderr
    assert checkout.kvm() == "root:kvm 660"
    assert checkout.sh("vcluster --version").startswith("vcluster, version")


@pytest.fixture
def clusters(server_state: Path) -> Iterator[None]:
    """Ledgers of two clusters: one of root, one of student."""
    folders = [server_state / "var/lib/vcluster", server_state / "run/home/student/.local/state/vcluster"]
    for folder, name in zip(folders, ("demo", "lab"), strict=True):
        (folder / "clusters" / name).mkdir(parents=True)
        (folder / "clusters" / name / "ledger.json").write_text("{}")
    (folders[0] / "clusters/empty").mkdir()  # without a ledger it is not a cluster
    yield
    for folder in folders:
        shutil.rmtree(folder / "clusters")


@pytest.fixture
def server_state(plain: Checkout) -> Path:
    return plain.server.path("/")


@pytest.mark.usefixtures("clusters")
def test_uninstall_refuses_while_clusters_exist(installed: Installed) -> None:
    checkout = installed.checkout
    done = checkout.run("uninstall", user="operator", check=False)
    assert done.returncode == 4
    script = shlex.quote(str(checkout.path / "scripts/uninstall")).replace("'", "").replace(" ", "\\ ")
    assert done.stderr.splitlines() == [
        "uninstall: clusters exist on this machine. Remove them first:",
        "  sudo vcluster clear demo",
        "  sudo runuser -u student -- vcluster clear lab",
        f"Or keep them running: sudo {script} --keep-clusters",
    ]
    assert (checkout.path / ".venv").exists()
    assert checkout.server.path(LINK).is_symlink()


@pytest.mark.usefixtures("clusters")
def test_uninstall_can_keep_clusters(plain: Checkout) -> None:
    (plain.path / ".venv").mkdir(exist_ok=True)
    printed = plain.run("uninstall", "--keep-clusters").stderr
    assert not (plain.path / ".venv").exists()
    assert "The clusters need all of this." in printed
    assert plain.server.path("/var/lib/vcluster/clusters/demo/ledger.json").exists()


def test_uninstall_of_one_checkout_leaves_the_other(installed: Installed, plain: Checkout) -> None:
    printed = plain.run("uninstall").stderr
    assert f"{LINK} does not belong to this checkout and stays" in printed.splitlines()
    assert f"stay: the checkout {installed.checkout.path} is installed too" in printed
    assert plain.server.path(LINK).is_symlink()
    assert plain.kvm() == "root:kvm 660"


def test_uninstall_refuses_what_it_does_not_know(plain: Checkout) -> None:
    done = plain.run("uninstall", "--all", check=False)
    assert (done.returncode, done.stderr) == (2, "usage: scripts/uninstall [--keep-clusters]\n")


def test_uninstall_lists_the_packages_that_install_added(plain: Checkout) -> None:
    plain.call("record_packages python3 no-such-package; record_packages kmod python3")
    printed = plain.run("uninstall", "--keep-clusters").stderr
    assert "  Debian packages: apt-get remove --autoremove kmod python3" in printed.splitlines()
    plain.server.path(f"{RECORDS}/packages").unlink()


def test_the_line_in_qemu_conf_is_removed_to_the_byte(plain: Checkout) -> None:
    path = plain.server.path("/run/qemu.conf")
    text = '# settings\nuser = "root"\n\n\n'
    path.write_text(text)
    path.chmod(0o600)
    plain.sh("mkdir -p /dev/hidden && mount -t tmpfs a /dev/hidden && mount -t tmpfs b /dev/hidden")
    try:
        line = "qemu_conf=/run/qemu.conf; allow_hidden_mounts"
        assert "setting namespaces = [ ] in /run/qemu.conf" in plain.call(f"{line}; {line}").stderr
        assert path.read_text().count("\nnamespaces = [ ]\n") == 1
        plain.call("qemu_conf=/run/qemu.conf; restore_qemu_conf")
        assert (path.read_text(), path.stat().st_mode & 0o777) == (text, 0o600)
        path.write_text(f"{text}namespaces = [ ]\n")  # a line of the machine's owner
        plain.call("qemu_conf=/run/qemu.conf; restore_qemu_conf")
        assert path.read_text() == f"{text}namespaces = [ ]\n"
    finally:
        plain.sh("umount /dev/hidden; umount /dev/hidden; rmdir /dev/hidden")
