"""The files of the checkout that decide what scripts/install does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
INSTALLATION = ("setup.py", "scripts/install", "scripts/lib.sh", "scripts/lib")


def installation() -> dict[str, bytes]:
    """The content of these files, by path."""
    paths = [CHECKOUT / name for name in INSTALLATION]
    return contents(file for path in paths for file in (path.iterdir() if path.is_dir() else [path]))


def contents(paths: Iterable[Path]) -> dict[str, bytes]:
    """The content of files of the checkout, by path."""
    return {str(path.relative_to(CHECKOUT)): path.read_bytes() for path in paths}
