"""A host that reaches Debian's mirrors by a proxy only, as its apt is configured."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vcluster.errors import VclusterError
from vcluster.images import build
from vcluster.images.recipes import find_recipe

pytestmark = pytest.mark.skipif(shutil.which("apt-config") is None, reason="this machine has no apt")
SETTINGS = """
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::https::Proxy "DIRECT";
Acquire::http::Proxy::deb.example "DIRECT";
"""


def seen_by_mmdebstrap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of mmdebstrap, whose place a script takes."""
    program = folder / "mmdebstrap"
    program.write_text(f"#!/bin/sh\nenv >{folder}/seen\nexit 7\n")
    program.chmod(0o755)
    (folder / "apt.conf").write_text(SETTINGS)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("APT_CONFIG", str(folder / "apt.conf"))
    with pytest.raises(VclusterError, match="mmdebstrap failed with exit code 7"):
        build.install(find_recipe("debian12"), folder / "root", "deb x y main\n", scratch=folder)
    return dict(line.split("=", 1) for line in (folder / "seen").read_text().splitlines() if "=" in line)


def test_mmdebstrap_uses_the_proxy_of_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    seen = seen_by_mmdebstrap(tmp_path, monkeypatch)
    assert seen["http_proxy"] == "http://proxy.example:3128"
    assert "https_proxy" not in seen


def test_the_users_own_proxy_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://other.example:8080")
    assert seen_by_mmdebstrap(tmp_path, monkeypatch)["http_proxy"] == "http://other.example:8080"
