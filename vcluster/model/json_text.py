"""Read JSON of unknown origin: files that another program may have changed, and messages of servers and nodes.

Only the standard library is needed, because the agent uses this module too.
"""

from __future__ import annotations

import json
from typing import Any

DEPTH_MAX = 64  # far above every document of vcluster, and far below the recursion limit of Python


def parse(text: str | bytes) -> Any:
    """The value in a JSON text. Raises ValueError if the text is not JSON, not UTF-8, or nested too deeply.

    Python's own parser raises RecursionError for `[[[[…`. A value that it just accepts would raise it later.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if len(text) > DEPTH_MAX and _openings(text) > DEPTH_MAX and _is_deeper(value, DEPTH_MAX):
        raise ValueError("it is nested too deeply")
    return value


def parse_document(text: str) -> Any:
    """The value in a JSON text that is written again. Raises ValueError too if it has text that UTF-8 cannot hold."""
    value = parse(text)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def _openings(text: str | bytes) -> int:
    """An upper limit of the levels in a text; most texts need no further check."""
    return text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in more levels."""
    level = [value]
    for _ in range(levels):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [each for values in inner for each in values]
        if not level:
            return False
    return True
