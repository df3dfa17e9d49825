"""Write the reference pages and the man pages from the code.

.venv/bin/python scripts/reference.py            write them
.venv/bin/python scripts/reference.py --check    fail if one of them is not as the code says
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from reference_pages import commands, configuration, environment, manual, messages  # noqa: E402  the path is set above


def pages() -> dict[Path, str]:
    """The text of each page, by its path in the checkout."""
    reference, man = Path("docs/reference"), Path("docs/man")
    return {
        reference / "commands.md": commands.page(),
        reference / "configuration.md": configuration.page(),
        reference / "environment.md": environment.page(),
        reference / "messages.md": messages.page(ROOT / "vcluster"),
        man / "vcluster.1": manual.command_page(),
        man / "vcluster-config.5": manual.configuration_page(),
    }


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page differs")
    is_check = parser.parse_args().check
    stale = []
    for path, text in pages().items():
        place = ROOT / path
        if place.is_file() and place.read_text() == text:
            continue
        stale.append(str(path))
        if not is_check:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    if stale and is_check:
        sys.exit(f"not as the code says: {', '.join(stale)} (python scripts/reference.py)")


if __name__ == "__main__":
    main()
