"""Strings of strangers: file names, prompts, tokens and triggers, shown so that nothing in them hides or steers."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import groupby

_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code)
    for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
    for code in range(first, last + 1)
}
"""Characters that Python calls printable although nothing is drawn for them."""


@dataclass(frozen=True)
class Glyph:
    """A run of ASCII (``code`` empty), or one other character with its code point and name."""

    text: str
    code: str = ""
    name: str = ""
    hidden: bool = False


def hidden(character: str) -> bool:
    """Whether a character shows nothing, or steers how others are shown (controls, direction marks)."""
    return not character.isprintable() or character in _BLANK


def plain(text: str) -> str:
    """The text with every hidden character spelled out as ‹U+XXXX›: nothing in it can steer a terminal or page."""
    return "".join(f"‹U+{ord(c):04X}›" if hidden(c) else c for c in text)


def glyphs(text: str) -> tuple[Glyph, ...]:
    """The text in pieces that let look-alike and invisible characters be seen."""
    pieces: list[Glyph] = []
    for ordinary, run in groupby(text, key=lambda c: c.isascii() and not hidden(c)):
        if ordinary:
            pieces.append(Glyph("".join(run)))
        else:
            pieces += [Glyph(c, f"U+{ord(c):04X}", unicodedata.name(c, "UNNAMED"), hidden(c)) for c in run]
    return tuple(pieces)


def spelled(text: str) -> str:
    """The text on one line with the code point behind every odd character, as ‹U+XXXX›."""
    return "".join(
        f"{'' if piece.hidden else piece.text}‹{piece.code}›" if piece.code else piece.text for piece in glyphs(text)
    )
