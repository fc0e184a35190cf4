"""Characters that look like others, or like nothing at all: what a trigger can hide behind.

References:
    Unicode Technical Standard 39, Unicode Security Mechanisms, https://www.unicode.org/reports/tr39/
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping
from functools import cache

FOREIGN: Mapping[str, str] = {
    "a": "аɑαⲁ", "b": "Ьƅᖯ", "c": "сϲⅽⲥ", "d": "ԁⅾɗ", "e": "еҽεℯ", "f": "ẝք", "g": "ɡցɢ", "h": "һհℎ", "i": "іιıɩⅰӏ",
    "j": "јϳ", "k": "κкⲕ", "l": "ӏⅼǀւ", "m": "мⅿ", "n": "ոռп", "o": "оοօσⲟ೦०", "p": "рρⲣ", "q": "ԛզ", "r": "гⲅᴦ",
    "s": "ѕꜱƽ", "t": "тτ", "u": "υսᴜʋ", "v": "νѵⅴᴠ", "w": "ԝшѡᴡ", "x": "хχⅹ", "y": "уγүỿ", "z": "ᴢʐ",
}  # fmt: skip
"""By Latin letter, those of other scripts: Cyrillic, Greek, Coptic, Armenian and some more."""
BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Characters that show nothing and are no format characters by their category."""


@cache
def lookalikes() -> Mapping[str, tuple[str, ...]]:
    """Latin small letter -> characters that pass for it: of other scripts, with marks, and in other styles."""
    found: dict[str, list[str]] = {letter: list(others) for letter, others in FOREIGN.items()}
    for code in range(0xA0, 0x20000):
        character = chr(code)
        parts = unicodedata.normalize("NFKD", character)
        base = parts[:1].lower()
        plain = base in found and all(unicodedata.combining(mark) for mark in parts[1:])
        if plain and character not in found[base]:
            found[base].append(character)
    return {letter: tuple(others) for letter, others in found.items()}


@cache
def invisible() -> tuple[str, ...]:
    """Characters that take no room or show nothing: zero-width, joiners, marks of direction, tags, variants."""
    formats = (chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == "Cf")
    return (*formats, *BLANK, *(chr(c) for c in range(0xFE00, 0xFE10)))
