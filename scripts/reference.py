"""Write the reference pages, the man pages and the completions of shells from the code.

.venv/bin/python scripts/reference.py            write them
.venv/bin/python scripts/reference.py --check    fail if one of them is not as the code says
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from reference_pages import commands, completions, configuration, environment, json_results, manual, messages, promises  # noqa: E402  the path is set above

COMPLETIONS = Path("scripts/completions")


def pages() -> dict[Path, str]:
    """The text of each page, by its path in the checkout."""
    reference, man = Path("docs/reference"), Path("docs/man")
    return {
        reference / "commands.md": commands.page(),
        reference / "configuration.md": configuration.page(),
        reference / "environment.md": environment.page(),
        reference / "messages.md": messages.page(ROOT / "vcluster"),
        reference / "json.md": json_results.page(),
        reference / "promises.md": promises.page(),
        **{reference / json_results.FOLDER / name: text for name, text in json_results.files().items()},
        man / "vcluster.1": manual.command_page(),
        man / "vcluster-config.5": manual.configuration_page(),
        **{COMPLETIONS / name: text for name, text in completions.files().items()},
    }


# Each file in these folders is made here: a former one is removed.
OWN_FOLDERS = (Path("docs/reference") / json_results.FOLDER, Path("docs/man"), COMPLETIONS)


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page differs")
    parser.add_argument("--to", type=Path, default=ROOT, metavar="FOLDER", help="write below this folder")
    arguments = parser.parse_args()
    made = pages()
    stale = [path for path, text in made.items() if _differs(arguments.to / path, text)]
    former = [path for path in _own_files(arguments.to) if path not in made]
    if arguments.check and (stale or former):
        names = ", ".join(map(str, (*stale, *former)))
        sys.exit(f"not as the code says: {names}. To fix it: python scripts/reference.py")
    for path in stale:
        (arguments.to / path).parent.mkdir(parents=True, exist_ok=True)
        (arguments.to / path).write_text(made[path])
    for path in former:
        (arguments.to / path).unlink()


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_text() != text


def _own_files(root: Path) -> list[Path]:
    """The files below `root` in folders that have only files made here."""
    return [path.relative_to(root) for folder in OWN_FOLDERS for path in (root / folder).rglob("*") if path.is_file()]


if __name__ == "__main__":
    main()
