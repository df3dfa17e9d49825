"""The folder of the guest image recipes: vcluster/recipes in an installed wheel, images/ in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def recipes_path() -> Path:
    """The folder of recipes and guest files."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "images"


def guest_file(name: str) -> str:
    """The text of a file that is in guests of every image."""
    return (recipes_path() / "guest" / name).read_text()


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes: folders with a list of packages."""
    return tuple(sorted(path.parent.name for path in recipes_path().glob("*/packages.txt")))
