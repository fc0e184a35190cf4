from __future__ import annotations

import pytest

from amdet_core.glyphs import glyphs, plain
from amdet_core.report.words import number


def test_hidden_characters_are_spelled_out_and_ordinary_ones_kept() -> None:
    assert plain("a\u200bb\u2800c\ufe0fd\n") == "a‹U+200B›b‹U+2800›c‹U+FE0F›d‹U+000A›"
    assert plain("о is Cyrillic, 名前") == "о is Cyrillic, 名前"
    assert [g.text for g in glyphs("ab\u00adc")] == ["ab", "\u00ad", "c"]
    assert [g.hidden for g in glyphs("ab\u00adcо")] == [False, True, False, False]


@pytest.mark.parametrize(
    ("value", "words"), [(None, "not measured"), (float("nan"), "not measured"), (0.123456, "0.1235"), (4608, "4,608")]
)
def test_numbers_are_written_for_people(value: float | None, words: str) -> None:
    assert number(value) == words
