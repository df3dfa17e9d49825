"""Hooks of mkdocs: the site contains the files outside docs/ that pages link to, and their links lead there.

A page in docs/tutorials links to `../../examples/README.md`, as in the checkout; in the site that is one folder less.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ("config.template", "examples")
_LINK = re.compile(rf"\]\(\.\./((?:\.\./)*(?:{'|'.join(map(re.escape, OUTSIDE))}))")


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/."""
    for name in OUTSIDE:
        for path in (ROOT / name, *sorted((ROOT / name).glob("*"))):
            if path.is_file():
                files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Change the links between docs/ and the files outside."""
    if page.file.src_uri.startswith(OUTSIDE):
        return markdown.replace("](../docs/", "](../")
    return _LINK.sub(r"](\1", markdown)
