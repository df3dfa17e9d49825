"""Building a guest image from a recipe: Debian from its mirror, made into a disk that boots with and without a host's
help.

A recipe is a directory (images/debian12, say) with `packages.txt`, `customize.sh` and what that script needs;
`../guest` beside it holds the files that every kind of guest gets. mmdebstrap installs the packages into a directory,
mke2fs turns that into a file system inside a partitioned disk file, and GRUB's two pieces are written before it by
hand. No loop device, no mount and no boot loader installer touches the host.
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

from vcluster.adapters.process import last_words, run
from vcluster.errors import MissingError, VclusterError

SUITE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ROOT_LABEL = "vcluster-root"
# Fixed, as the initramfs finds the root file system by UUID and the boot loader's configuration is static. Two such
# disks in one machine would be a mistake anyway.
ROOT_UUID = "76636c75-7374-6572-8000-000000000001"
VIRTUAL_SIZE = 4 * 1024**3
SECTOR = 512
PARTITION_START = 1024**2
KERNEL_CMDLINE = (
    f"root=UUID={ROOT_UUID} rw rootfstype=ext4 rootflags=noatime console=ttyS0 quiet"
    " mitigations=off tsc=reliable no_timer_check nokaslr"
)
FEATURES = ("mpich", "nfs", "ready", "mpiuser", "clone")
# Program to Debian package, for the message that tells what is missing.
PROGRAMS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}
INSTALL_TIMEOUT_S = 1800
DISK_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """What a build left in its directory, as the image's manifest will tell it."""

    features: tuple[str, ...]
    kernel_cmdline: str
    virtual_size_bytes: int
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Where Debian's packages come from: the URIs of the archive and of its security updates."""

    archive: str
    security: str


# Debian's own, for hosts that name none: Ubuntu's, say.
DEBIAN = Mirrors("http://deb.debian.org/debian", "http://deb.debian.org/debian-security")


@dataclass(frozen=True, slots=True)
class AptSource:
    """One entry of apt's sources, in either of the two formats."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def build_debian(recipe: Path, destination: Path, *, report: Callable[[str], None]) -> BuiltImage:
    """Build the recipe's image as disk.qcow2, vmlinuz and initrd.img in `destination`, an empty directory of the
    caller's.

    Everything in between lives below `destination` too, so removing it undoes a build that was killed. Raises
    MissingError when this host lacks a program, the keyring or root's rights, VclusterError when a step fails.
    """
    check_host()
    scratch = destination / "scratch"
    root = scratch / "root"
    scratch.mkdir()
    try:
        report("installing packages")
        install(recipe, root, sources_text(host_mirrors(read_host_sources())), scratch=scratch)
        report("making the disk")
        make_disk(root, scratch / "disk.raw", destination / "disk.qcow2")
        export_kernel(root, destination)
        versions = package_versions((root / "var/lib/dpkg/status").read_text(), read_packages(recipe))
    finally:
        shutil.rmtree(scratch)
    return BuiltImage(FEATURES, KERNEL_CMDLINE, VIRTUAL_SIZE, versions)


def recipe_digest(recipe: Path) -> str:
    """Return the SHA-256 (hexadecimal) over the recipe and the guest files beside it: names, modes and contents."""
    digest = hashlib.sha256()
    for top in (recipe, recipe.parent / "guest"):
        for path in sorted(top.rglob("*")):
            if path.is_symlink():
                kind, content = "l", str(path.readlink()).encode()
            elif path.is_file():
                kind, content = "x" if path.stat().st_mode & 0o100 else "f", path.read_bytes()
            else:
                continue
            name = path.relative_to(recipe.parent).as_posix() if top != recipe else path.relative_to(recipe).as_posix()
            digest.update(f"{kind} {len(content)} {name}\0".encode() + content)
    return digest.hexdigest()


# --- what this host offers -------------------------------------------------------------------------------------------


def check_host() -> None:
    """Raise MissingError for the first thing a build needs and this host has not."""
    if os.geteuid() != 0:
        raise MissingError("building an image needs root's rights", hint="sudo vcluster image build")
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise MissingError(f"{program} is not installed", hint=f"apt install {package}")
    if not KEYRING.exists():
        raise MissingError("Debian's archive keys are not installed", hint="apt install debian-archive-keyring")


def read_host_sources() -> list[str]:
    """Return the texts of this host's apt sources."""
    apt = Path("/etc/apt")
    paths = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    return [
        path.read_text(errors="replace") for path in paths if path.suffix in (".list", ".sources") and path.is_file()
    ]


def host_mirrors(texts: Iterable[str]) -> Mirrors:
    """Return the Debian mirrors named by apt sources, each the first that fits; Debian's own where none does.

    An entry is taken for Debian itself when its URI, suite, component and key all look so: other vendors use
    Debian's suite names too. A host of another release, or of Ubuntu, still names a fitting mirror or none.
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
    """Return the enabled binary entries of one apt sources file, one-line or deb822 (sources.list(5))."""
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


def sources_text(mirrors: Mirrors) -> str:
    """Return the sources.list the image is built from, and keeps."""
    return (
        f"deb {mirrors.archive} {SUITE} main\n"
        f"deb {mirrors.archive} {SUITE}-updates main\n"
        f"deb {mirrors.security} {SUITE}-security main\n"
    )


# --- installing ------------------------------------------------------------------------------------------------------


def read_packages(recipe: Path) -> tuple[str, ...]:
    """Return the package names of a recipe."""
    lines = (line.partition("#")[0].strip() for line in (recipe / "packages.txt").read_text().splitlines())
    return tuple(line for line in lines if line)


def install(recipe: Path, root: Path, sources: str, *, scratch: Path) -> None:
    """Install the recipe's packages into the new directory `root` and customize it."""
    done = run(
        install_command(recipe, root, read_packages(recipe)),
        stdin=sources,
        timeout_s=INSTALL_TIMEOUT_S,
        env={**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C.UTF-8"},
        may_fail=True,
    )
    if done.exit_code != 0:
        # mmdebstrap ends with lines about its own processes; the reason stands above them.
        raise VclusterError(f"mmdebstrap failed with exit code {done.exit_code}: {last_words(done, lines=12)}")


def install_command(recipe: Path, root: Path, packages: Iterable[str]) -> list[str]:
    """Return the mmdebstrap command; it reads the sources from its standard input."""
    # No manuals and translations: nobody reads them in a guest, and each megabyte is copied, hashed and cached.
    excluded = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/i18n/*")
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        f"--keyring={KEYRING}",
        f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in excluded),
        "--dpkgopt=force-unsafe-io",
        f'--customize-hook={shlex.quote(str(recipe / "customize.sh"))} "$1"',
        SUITE,
        str(root),
        "-",
    ]


def package_versions(status: str, names: Iterable[str]) -> dict[str, str]:
    """Return the versions that dpkg's status file gives for the named packages."""
    found = dict(re.findall(r"^Package: (\S+)\n(?:(?!\n\n)[\s\S])*?^Version: (\S+)$", status, re.MULTILINE))
    return {name: found[name] for name in names if name in found}


# --- the disk --------------------------------------------------------------------------------------------------------


def make_disk(root: Path, raw: Path, disk: Path) -> None:
    """Make the bootable qcow2 file `disk` of the directory `root`, by way of the sparse file `raw`."""
    boot, core = ((root / "boot/grub" / name).read_bytes() for name in ("boot.img", "core.img"))
    with raw.open("wb") as file:
        file.truncate(VIRTUAL_SIZE)
    run(file_system_command(root, raw), timeout_s=DISK_TIMEOUT_S)
    with raw.open("r+b") as file:
        file.write(boot_gap(boot, core))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)], timeout_s=DISK_TIMEOUT_S)


def file_system_command(root: Path, raw: Path) -> list[str]:
    """Return the mke2fs command that fills the disk's only partition."""
    return [
        "mke2fs",
        *("-q", "-F", "-t", "ext4", "-m", "1", "-L", ROOT_LABEL, "-U", ROOT_UUID, "-d", str(root)),
        # Everything is initialised now: what is left for later, each guest's kernel would write into its own overlay.
        *("-E", f"offset={PARTITION_START},lazy_itable_init=0,lazy_journal_init=0"),
        # Without a CRC instruction, as under emulation, checksums of metadata cost time in every guest.
        *("-O", "^metadata_csum", "-J", "size=16"),
        str(raw),
        f"{(VIRTUAL_SIZE - PARTITION_START) // 1024}k",
    ]


def boot_gap(boot: bytes, core: bytes) -> bytes:
    """Return the disk's first bytes: GRUB's boot.img with a table of one active partition, then its core.img.

    boot.img loads sector 1, where core.img begins; grub-mkimage has written into core.img how long it is.
    Raises VclusterError when core.img does not fit before the partition.
    """
    if SECTOR + len(core) > PARTITION_START:
        raise VclusterError(f"GRUB's core.img has {len(core)} bytes and does not fit before the first partition")
    no_geometry = b"\xfe\xff\xff"
    start, length = PARTITION_START // SECTOR, (VIRTUAL_SIZE - PARTITION_START) // SECTOR
    entry = b"\x80" + no_geometry + b"\x83" + no_geometry + start.to_bytes(4, "little") + length.to_bytes(4, "little")
    signature = bytes.fromhex(ROOT_UUID[:8])
    return boot[:440] + signature + bytes(2) + entry + bytes(48) + b"\x55\xaa" + core


def export_kernel(root: Path, destination: Path) -> None:
    """Copy the kernel and its initramfs out, for guests booted without the boot loader."""
    for name in ("vmlinuz", "initrd.img"):
        # The link is read by hand: an absolute one would lead into this host.
        target = root / str((root / name).readlink()).lstrip("/")
        shutil.copyfile(target, destination / name)
