"""What confines QEMU on this server, and the AppArmor profiles of our domains.

Under AppArmor libvirt confines each QEMU by a profile of its own, and never removes it.

libvirt's virt-aa-helper keeps a profile that exists. It lists the files of the domain in a second file, which the
profile includes (src/security/virt-aa-helper.c in libvirt). So we write the profile before libvirt does: with our
label, and with a rule for each file that libvirt does not know. The rule is for this domain only.

These functions are operations of the agent, as in operations.py: arguments and results are JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vcluster.errors import MissingError, VclusterError
from vcluster.model import json_text

APPARMOR, SELINUX = "apparmor", "selinux"
FOLDER = Path("/etc/apparmor.d/libvirt")
APPARMOR_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
SELINUX_ENFORCES = Path("/sys/fs/selinux/enforce")
_TEMPLATE = "TEMPLATE.qemu"
_NAME = "LIBVIRT_TEMPLATE"
_LABEL = "# vcluster "
_LABEL_MAX = 1000
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FORBIDDEN = re.compile(r'[\x00-\x1f"\\*?\[\]{}^@]')  # in a quoted path of a rule (apparmor.d(5))


def confinement() -> str:
    """What confines each QEMU here: apparmor, selinux, or nothing."""
    if _reads(APPARMOR_ENABLED, "Y") and (FOLDER / _TEMPLATE).is_file():
        return APPARMOR
    return SELINUX if _reads(SELINUX_ENFORCES, "1") else ""


def clone_obstacle(root: str) -> str:
    """Why no clone can be made on this server, or empty. It is known before a template boots.

    `root` is the folder of snapshots.
    """
    found = confinement()
    if found == SELINUX:
        return "clones were never tried under SELinux"
    missing = [program for program in ("virsh", "fallocate") if shutil.which(program) is None]
    if missing:
        return f"missing programs: {', '.join(missing)}"
    if "," in root:
        return f"QEMU cannot use a memory file in {root}, because the path contains a comma"
    if found == APPARMOR:
        try:
            _profile("libvirt-test", {}, [(os.path.realpath(root), "r")])
        except (VclusterError, OSError) as error:
            return str(error)
    return ""


def _reads(file: Path, value: str) -> bool:
    return file.is_file() and file.read_text().strip() == value


def write_profile(uuid: str, label: Mapping[str, str], rules: Sequence[Sequence[str]]) -> bool:
    """Write the profile of a domain. A rule is a path and a mode, for example r or rw.

    Returns False, and writes nothing, if AppArmor does not confine programs here.
    """
    if confinement() != APPARMOR:
        return False
    name = f"libvirt-{_checked(uuid)}"
    # AppArmor compares paths without links.
    text = _profile(name, label, [(os.path.realpath(path), mode) for path, mode in rules])
    draft = FOLDER / f".{name}"
    try:
        draft.write_text(text)
        draft.chmod(0o644)
        draft.rename(FOLDER / name)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise MissingError(
            f"{FOLDER / name}: {error.strerror}", hint="check free space and permissions there"
        ) from error
    return True


def _profile(name: str, label: Mapping[str, str], rules: Sequence[tuple[str, str]]) -> str:
    """The text of a profile. Raises VclusterError for a path or a template that cannot be used."""
    if wrong := next((path for path, _ in rules if _FORBIDDEN.search(path)), None):
        raise VclusterError(f"a rule of AppArmor cannot contain the path {wrong!r}")
    file = FOLDER / _TEMPLATE
    head, brace, tail = file.read_text().replace(_NAME, name).rpartition("}")
    if not brace or name not in head:
        raise VclusterError(f"{file} is not a template of AppArmor profiles")
    lines = [f"  #include <libvirt/{name}.files>", *(f'  "{path}" {mode},' for path, mode in rules)]
    return "\n".join([_LABEL + json.dumps(dict(label)), head.rstrip(), *lines, brace + tail])


def profiles() -> list[dict[str, str]]:
    """The labels of all profiles that have one, each with the domain's `uuid`."""
    found = []
    for path in sorted(FOLDER.glob("libvirt-*")):
        uuid = path.name.removeprefix("libvirt-")
        if _UUID.fullmatch(uuid) and (label := _label(path)):
            found.append({**label, "uuid": uuid})
    return found


def _label(path: Path) -> dict[str, str] | None:
    """The label of a profile; None without a complete one. Another command may remove the file at any time."""
    try:
        with path.open(errors="replace") as file:
            first = file.readline(_LABEL_MAX)
        found = json_text.parse(first.removeprefix(_LABEL)) if first.startswith(_LABEL) else None
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    label = {name: found.get(name) for name in ("cluster", "domain", "by")}
    return label if all(isinstance(value, str) for value in label.values()) else None  # type: ignore[return-value]


def remove_profiles(uuids: Sequence[str]) -> None:
    """Remove the profiles of domains that have stopped, and libvirt's list of their files."""
    for uuid in uuids:
        for suffix in ("", ".files"):
            (FOLDER / f"libvirt-{_checked(uuid)}{suffix}").unlink(missing_ok=True)


OPERATIONS: tuple[Callable[..., Any], ...] = (clone_obstacle, write_profile, profiles, remove_profiles)


def _checked(uuid: str) -> str:
    if not _UUID.fullmatch(uuid):
        raise VclusterError(f"{uuid!r} is not a domain's UUID")
    return uuid
