"""Passwords and host keys of a configuration file, with real servers. These tests make nothing."""

from __future__ import annotations

import subprocess

import pytest

from tests.clusters import left_behind
from tests.servers.conftest import PASSWORD, Bed, Survey

pytestmark = pytest.mark.vm


def plan(bed: Bed, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`shared create --plan` of a file."""
    config = bed.write("/root/.config/plan.ini", text)
    try:
        return bed.control.vcluster("shared", "create", config, "--name", "plan", "--plan", check=False, **env)
    finally:
        bed.control.sh(f"rm {config}")


def test_a_missing_password(bed: Bed, bare: Survey) -> None:
    refused = plan(bed, bed.config)
    assert refused.returncode == 3
    assert "THREE_PASSWORD" in refused.stderr
    assert_unchanged(bed, bare)


def test_a_fingerprint_in_the_file_replaces_an_entry_in_known_hosts(bed: Bed, bare: Survey) -> None:
    known = bed.control.server.path("/root/.ssh/known_hosts")
    original = known.read_text()
    fingerprint = bed.switch.sh("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    host = f"host = {bed.switch.server.name}\n"
    known.write_text("".join(line for line in original.splitlines(True) if bed.switch.server.name not in line))
    try:
        unknown = plan(bed, bed.config, THREE_PASSWORD=PASSWORD)
        given = plan(bed, bed.config.replace(host, f"{host}fingerprint = {fingerprint}\n", 1), THREE_PASSWORD=PASSWORD)
        other = f"{host}fingerprint = SHA256:{'A' * 43}\n"
        wrong = plan(bed, bed.config.replace(host, other, 1), THREE_PASSWORD=PASSWORD)
        assert known.read_text() == "".join(
            line for line in original.splitlines(True) if bed.switch.server.name not in line
        )
    finally:
        known.write_text(original)
    assert unknown.returncode == 3
    assert given.returncode == 0, given.stderr
    assert wrong.returncode == 4
    assert fingerprint in wrong.stderr
    assert_unchanged(bed, bare)


def assert_unchanged(bed: Bed, bare: Survey) -> None:
    """A plan changes nothing on any server."""
    for name, found in bed.survey().items():
        assert left_behind(found, bare[name]) == {}
