"""JSON of unknown origin: a value, or one error, however deep it is nested."""

from __future__ import annotations

import json

import pytest

from vcluster.model import json_text


@pytest.mark.parametrize(
    ("opening", "closing", "depth"),
    [("[", "]", 1), ('{"a":', "}", 1), ('[{"a":', "}]", 2)],
    ids=["list", "map", "both"],
)
def test_a_deep_text_is_refused(opening: str, closing: str, depth: int) -> None:
    times = json_text.DEPTH_MAX // depth
    json_text.parse(opening * times + "1" + closing * times)
    for more in (times + 1, 900 // depth, 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            json_text.parse(opening * more + "1" + closing * more)


@pytest.mark.parametrize("text", ["", "{", b"\xff", b"\xef\xbb\xbf{", "9" * 5000, "[1,]"])
def test_what_is_not_json_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        json_text.parse(text)


def test_a_wide_text_is_read() -> None:
    wide = [{"a": [1, {"b": 2}]}] * 10_000
    assert json_text.parse(json.dumps(wide)) == wide
