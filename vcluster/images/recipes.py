"""The guest image recipes: vcluster/recipes in an installed wheel, images/ in a checkout."""

from __future__ import annotations

from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

from vcluster.errors import RequestError
from vcluster.model.quoting import shown

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe: the release of Debian, and the abilities of the image. `folder` holds its files."""

    folder: Path
    suite: str
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the recipe."""
        return self.folder.name

    @property
    def common(self) -> Path:
        """The folder of the files that all recipes share."""
        return self.folder.parent / "debian"

    @property
    def guest(self) -> Path:
        """The folder of the files for every image, also of other origin."""
        return self.folder.parent / "guest"

    @property
    def packages(self) -> tuple[str, ...]:
        """The names of the packages."""
        return _first_words(self.common / "packages.txt")

    @property
    def excluded(self) -> tuple[str, ...]:
        """The patterns of files that dpkg does not unpack."""
        return _first_words(self.common / "excluded.txt") + _first_words(self.folder / "excluded.txt")


def _first_words(path: Path) -> tuple[str, ...]:
    """The first word of each line, without comments. A file that is missing has none."""
    text = path.read_text() if path.exists() else ""
    lines = (line.partition("#")[0].split() for line in text.splitlines())
    return tuple(words[0] for words in lines if words)


def recipes_path() -> Path:
    """The folder of recipes and guest files."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "images"


def guest_file(name: str) -> str:
    """The text of a file that is in guests of every image."""
    return (recipes_path() / "guest" / name).read_text()


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes."""
    return tuple(sorted(path.parent.name for path in recipes_path().glob("*/recipe.ini")))


def find_recipe(name: str) -> Recipe:
    """The recipe with this name. Raises RequestError if there is none."""
    if name not in recipe_names():
        raise RequestError(f"recipe {shown(name)} does not exist", hint=f"the recipes are {', '.join(recipe_names())}")
    return read_recipe(recipes_path() / name)


def read_recipe(folder: Path) -> Recipe:
    """The recipe in a folder."""
    settings = ConfigParser()
    settings.read_string((folder / "recipe.ini").read_text())
    section = settings["recipe"]
    return Recipe(folder, section["suite"], tuple(section["features"].split()))
