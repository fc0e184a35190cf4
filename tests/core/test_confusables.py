"""Characters that pass for others, or for nothing."""

from __future__ import annotations

import unicodedata

from amdet_core.confusables import invisible, lookalikes


def test_look_alikes_hold_other_scripts_marks_and_styles_of_every_letter() -> None:
    known = lookalikes()
    assert sorted(known) == [chr(code) for code in range(ord("a"), ord("z") + 1)]
    assert {
        "\N{CYRILLIC SMALL LETTER O}",
        "\N{GREEK SMALL LETTER OMICRON}",
        "ọ",
        "\N{FULLWIDTH LATIN SMALL LETTER O}",
    } <= {*known["o"]}
    for letter, others in known.items():
        assert letter not in others
        assert len(set(others)) == len(others) >= 5
        assert all(not character.isascii() and len(character) == 1 for character in others)


def test_no_character_passes_for_two_letters_of_one_word() -> None:
    shared = [c for c in lookalikes()["o"] if c in lookalikes()["a"] or c in lookalikes()["e"]]
    assert not shared


def test_invisible_characters_are_those_without_a_glyph() -> None:
    known = invisible()
    assert {"\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\ufe0f", "\u3164"} <= {*known}
    assert len(set(known)) == len(known)
    assert all(unicodedata.category(character) in ("Cf", "Mn", "Lo", "So") for character in known)
