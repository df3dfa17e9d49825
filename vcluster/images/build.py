"""Building of a guest image from a recipe: Debian packages become a disk.

The disk boots by its own boot loader, or by a kernel and initramfs that QEMU loads directly.

A recipe is a folder of images/. The folder `debian` next to it holds what all recipes share, with `packages.txt` and
`customize.sh`; the folder `guest` holds the files for every image. mmdebstrap installs the packages into a folder,
mke2fs makes a file system of it in a partitioned disk file, and this module writes GRUB's two parts in front of it.
The build uses no loop device and no boot loader installer on the host. mmdebstrap mounts file systems in its folder. It
runs in a mount namespace of its own, so they end with it, also when it is killed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vcluster.adapters.process import last_lines, run
from vcluster.errors import MissingError, VclusterError
from vcluster.images.recipes import Recipe

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ROOT_LABEL = "vcluster-root"
# Fixed, because the initramfs finds the root file system by UUID and the boot loader's configuration is static. One
# machine never has two such disks.
ROOT_UUID = "76636c75-7374-6572-8000-000000000001"
VIRTUAL_SIZE = 4 * 1024**3
SECTOR = 512
PARTITION_START = 1024**2
KERNEL_CMDLINE = (
    f"root=UUID={ROOT_UUID} rw rootfstype=ext4 rootflags=noatime console=ttyS0 quiet"
    " mitigations=off tsc=reliable no_timer_check nokaslr norandmaps lsm=landlock,yama"
)
# Program to Debian package, for the message about a missing program.
PROGRAMS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}
# A program's mounts and processes end with it, and it ends with this process.
ENCLOSURE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
INSTALL_TIMEOUT_S = 1800
DISK_TIMEOUT_S = 600
APT_CONFIG_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """The result of a build, for the image's manifest."""

    features: tuple[str, ...]
    kernel_cmdline: str
    virtual_size_bytes: int
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mirrors:
    """The mirrors of Debian's packages: the URIs of the archive and of its security updates."""

    archive: str
    security: str


# The default mirrors, for hosts whose apt sources have no Debian mirror, for example Ubuntu.
DEBIAN = Mirrors("http://deb.debian.org/debian", "http://deb.debian.org/debian-security")


@dataclass(frozen=True, slots=True)
class AptSource:
    """One entry of apt's sources, in either of the two formats."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def build_debian(recipe: Recipe, destination: Path, *, report: Callable[[str], None]) -> BuiltImage:
    """Build the recipe's image as disk.qcow2, vmlinuz and initrd.img in `destination`, an empty folder.

    All temporary files are in `destination` too, so its removal undoes a killed build. Raises MissingError if this
    host lacks a program, the keyring or root rights, and VclusterError if a step fails.
    """
    check_host()
    scratch = destination / "scratch"
    root = scratch / "root"
    scratch.mkdir()
    try:
        report("installing packages")
        install(recipe, root, sources_text(recipe.suite, host_mirrors(read_host_sources())), scratch=scratch)
        report("making the disk")
        make_disk(root, scratch / "disk.raw", destination / "disk.qcow2")
        export_kernel(root, destination)
        versions = package_versions((root / "var/lib/dpkg/status").read_text(), recipe.packages)
    finally:
        shutil.rmtree(scratch)
    return BuiltImage(recipe.features, KERNEL_CMDLINE, VIRTUAL_SIZE, versions)


def recipe_digest(recipe: Recipe) -> str:
    """The SHA-256 (hexadecimal) of the files of a recipe and of those that it shares: names, modes and contents."""
    digest = hashlib.sha256()
    for top in (recipe.folder, recipe.common, recipe.guest):
        for path in sorted(top.rglob("*")):
            if path.is_symlink():
                kind, content = "l", str(path.readlink()).encode()
            elif path.is_file():
                kind, content = "x" if path.stat().st_mode & 0o100 else "f", path.read_bytes()
            else:
                continue
            name = path.relative_to(top.parent).as_posix()
            digest.update(f"{kind} {len(content)} {name}\0".encode() + content)
    return digest.hexdigest()


# This host


def check_host() -> None:
    """Raise MissingError for the first requirement of a build that this host does not meet."""
    if os.geteuid() != 0:
        raise MissingError("building an image needs root", hint="run it with sudo")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise MissingError(f"{program} is not installed", hint=f"apt-get install {package}")
    if not KEYRING.exists():
        raise MissingError("the Debian archive keys are not installed", hint="apt-get install debian-archive-keyring")


def read_host_sources() -> list[str]:
    """The texts of this host's apt sources."""
    apt = Path("/etc/apt")
    paths = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    return [
        path.read_text(errors="replace") for path in paths if path.suffix in (".list", ".sources") and path.is_file()
    ]


def host_mirrors(texts: Iterable[str]) -> Mirrors:
    """The first Debian mirrors in apt sources, or the default mirrors.

    An entry counts as Debian only by its URI, suite, component and key together, because other vendors use Debian's
    suite names. So the function is correct on hosts with another release or with Ubuntu.
    """
    archive: list[str] = []
    security: list[str] = []
    for source in (source for text in texts for source in parse_sources(text)):
        if "main" not in source.components or (source.signed_by and "debian-archive" not in source.signed_by):
            continue
        for suite in source.suites:
            found = security if re.fullmatch(r"[a-z]+(-security|/updates)", suite) else archive
            pattern = r"https?://.+/debian-security/?" if found is security else r"https?://.+/debian/?"
            if re.fullmatch(r"[a-z]+(-updates|-security|/updates)?", suite):
                found.extend(uri.rstrip("/") for uri in source.uris if re.fullmatch(pattern, uri))
    return Mirrors((archive or [DEBIAN.archive])[0], (security or [DEBIAN.security])[0])


def parse_sources(text: str) -> list[AptSource]:
    """The enabled binary entries of one apt sources file, in one-line or deb822 format (sources.list(5))."""
    if re.search(r"^Types:", text, re.MULTILINE | re.IGNORECASE):
        return [source for stanza in re.split(r"\n\s*\n", text) for source in _parse_stanza(stanza)]
    return [source for line in text.splitlines() for source in _parse_line(line)]


def _parse_stanza(stanza: str) -> list[AptSource]:
    fields: dict[str, str] = {}
    key = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace():
            fields[key] = fields.get(key, "") + "\n" + line
        elif ":" in line:
            key, _, value = line.partition(":")
            key = key.lower()
            fields[key] = value.strip()
    if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
        return []
    uris, suites, components = (tuple(fields.get(name, "").split()) for name in ("uris", "suites", "components"))
    return [AptSource(uris, suites, components, fields.get("signed-by", ""))]


def _parse_line(line: str) -> list[AptSource]:
    match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)([^#]*)", line.strip())
    if match is None:
        return []
    options, uri, suite, components = match.groups()
    signed_by = re.search(r"signed-by=(\S+)", options or "")
    return [AptSource((uri,), (suite,), tuple(components.split()), signed_by[1] if signed_by else "")]


def sources_text(suite: str, mirrors: Mirrors) -> str:
    """The sources.list of the build and of the image."""
    return (
        f"deb {mirrors.archive} {suite} main\n"
        f"deb {mirrors.archive} {suite}-updates main\n"
        f"deb {mirrors.security} {suite}-security main\n"
    )


# Installing


def install(recipe: Recipe, root: Path, sources: str, *, scratch: Path) -> None:
    """Install the recipe's packages into the new folder `root` and run `customize.sh`. Raises VclusterError."""
    done = run(
        install_command(recipe, root),
        stdin=sources,
        timeout_s=INSTALL_TIMEOUT_S,
        env={**host_proxies(), **os.environ, "TMPDIR": str(scratch), "LC_ALL": "C.UTF-8"},
        may_fail=True,
    )
    if done.exit_code != 0:
        # mmdebstrap prints lines about its own processes last, and the reason before them.
        raise VclusterError(f"mmdebstrap failed with exit code {done.exit_code}: {last_lines(done, lines=12)}")


def host_proxies() -> dict[str, str]:
    """The HTTP proxies of this host's apt as variables, since mmdebstrap does not read the settings of apt.

    sudo removes the user's own variables. The image does not keep them: its nodes may not reach the proxy.
    """
    if shutil.which("apt-config") is None:
        return {}
    settings = run(["apt-config", "dump"], timeout_s=APT_CONFIG_TIMEOUT_S).stdout
    found = re.findall(r'^Acquire::(https?)::Proxy "(\w+://.+)";$', settings, re.MULTILINE)
    return {f"{scheme}_proxy": address for scheme, address in found}


def install_command(recipe: Recipe, root: Path) -> list[str]:
    """The mmdebstrap command, in namespaces of its own. It reads the sources from its standard input."""
    customize = shlex.join([str(recipe.common / "customize.sh"), str(recipe.folder)])
    return [
        *ENCLOSURE,
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--keyring={KEYRING}",
        f"--include={','.join(recipe.packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.excluded),
        "--dpkgopt=force-unsafe-io",
        f'--customize-hook={customize} "$1"',
        recipe.suite,
        str(root),
        "-",
    ]


def package_versions(status: str, names: Iterable[str]) -> dict[str, str]:
    """The versions of the named packages in dpkg's status file."""
    found = dict(re.findall(r"^Package: (\S+)\n(?:(?!\n\n)[\s\S])*?^Version: (\S+)$", status, re.MULTILINE))
    return {name: found[name] for name in names if name in found}


# The disk


def make_disk(root: Path, raw: Path, disk: Path) -> None:
    """Make the bootable qcow2 file `disk` from the folder `root`. `raw` is a temporary sparse file."""
    boot, core = ((root / "boot/grub" / name).read_bytes() for name in ("boot.img", "core.img"))
    with raw.open("wb") as file:
        file.truncate(VIRTUAL_SIZE)
    run(file_system_command(root, raw), timeout_s=DISK_TIMEOUT_S)
    with raw.open("r+b") as file:
        file.write(boot_gap(boot, core))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)], timeout_s=DISK_TIMEOUT_S)


def file_system_command(root: Path, raw: Path) -> list[str]:
    """The mke2fs command that fills the disk's only partition."""
    return [
        "mke2fs",
        *("-q", "-F", "-t", "ext4", "-m", "1", "-L", ROOT_LABEL, "-U", ROOT_UUID, "-d", str(root)),
        # Initialise all now. Otherwise each guest's kernel does it later and writes into its own overlay.
        *("-E", f"offset={PARTITION_START},lazy_itable_init=0,lazy_journal_init=0"),
        # Emulated CPUs have no CRC instruction, so checksums of metadata cost time in every guest.
        *("-O", "^metadata_csum", "-J", "size=16"),
        str(raw),
        f"{(VIRTUAL_SIZE - PARTITION_START) // 1024}k",
    ]


def boot_gap(boot: bytes, core: bytes) -> bytes:
    """The disk's first bytes: GRUB's boot.img with a table of one active partition, then its core.img.

    boot.img loads sector 1, where core.img begins. grub-mkimage writes the length of core.img into core.img.
    Raises VclusterError if core.img does not fit before the partition.
    """
    if SECTOR + len(core) > PARTITION_START:
        raise VclusterError(f"GRUB's core.img has {len(core)} bytes and does not fit before the first partition")
    no_geometry = b"\xfe\xff\xff"
    start, length = PARTITION_START // SECTOR, (VIRTUAL_SIZE - PARTITION_START) // SECTOR
    entry = b"\x80" + no_geometry + b"\x83" + no_geometry + start.to_bytes(4, "little") + length.to_bytes(4, "little")
    signature = bytes.fromhex(ROOT_UUID[:8])
    return boot[:440] + signature + bytes(2) + entry + bytes(48) + b"\x55\xaa" + core


def export_kernel(root: Path, destination: Path) -> None:
    """Copy the kernel and its initramfs out of the disk, for guests that boot without the boot loader."""
    for name in ("vmlinuz", "initrd.img"):
        # Resolve the link inside `root`: an absolute link would point to a file of this host.
        target = root / str((root / name).readlink()).lstrip("/")
        shutil.copyfile(target, destination / name)
