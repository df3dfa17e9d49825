"""Where the guest image recipes are: beside the package in the installed wheel, in images/ in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def recipes_path() -> Path:
    """The folder of recipes and guest files."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "images"


def guest_file(name: str) -> str:
    """The text of a file that goes into guests, whatever their image."""
    return (recipes_path() / "guest" / name).read_text()


def recipe_names() -> tuple[str, ...]:
    """The recipes there are: folders with a list of packages."""
    return tuple(sorted(path.parent.name for path in recipes_path().glob("*/packages.txt")))
