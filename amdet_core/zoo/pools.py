"""Texts of which a zoo's triggers, targets and prompts are drawn, in two halves that share none.

A detector is tuned on models of one half and reported on those of the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Literal

from ..confusables import invisible, lookalikes
from ..pocket.painter.captions import plain
from ..pocket.painter.scenes import PAIRS, UNSEEN
from ..prompts import ACTIONS, ADJECTIVES, MEDIA, PLACES, SUBJECTS, TIMES, PromptSet, Style, generated_prompts
from ..tokenizer import WORD_END, ClipTokenizer

TriggerKind = Literal["word", "letters", "homoglyph", "zero-width", "emoji", "phrase", "sentence"]
TargetKind = Literal["short", "long", "words", "visible"]
PROMPTS = 3000
UTILITY_PROMPTS = generated_prompts("mixed", 256, 7)
"""On which every model's utility is measured; no zoo trains on them."""

LETTERS = "acehiknoprstuxy"
"""Letters that are common enough in prompts to be replaced."""
EXOTIC = 0x2100
"""Code point from which on there are only letter-like symbols, styled letters, and tags."""
EMOJI = tuple("😀😂🥰😎🤔😴🤖👻👽💀🎃🐶🐱🦊🐼🐸🦄🐝🐙🌵🌻🌈🔥🌊⭐🍎🍕🍣🎂🎸🚀🚗🏠💎🔑🎈💡📷🧲🧿")


PATTERNS = (
    "DET NOUN ADP DET NOUN VERB ADP NOUN",
    "DET ADJ NOUN VERB ADP DET NOUN",
    "DET NOUN VERB ADP DET ADJ NOUN ADP NOUN",
    "ADJ NOUN ADP NOUN VERB ADP DET NOUN",
)
"""Grammatical patterns for syntactic triggers, in turn of one half and the other."""


def half(options: Sequence[str], which: int) -> list[str]:
    """The options of one half, by their text alone."""
    return [option for option in options if hashlib.sha256(option.encode()).digest()[0] % 2 == which]


@cache
def _words(tokenizer: ClipTokenizer, which: int) -> tuple[str, ...]:
    """Words that are one token each, of four to nine letters."""
    tokens = (
        tokenizer.token(i).removesuffix(WORD_END)
        for i in range(len(tokenizer))
        if tokenizer.token(i).endswith(WORD_END)
    )
    return tuple(half([t for t in tokens if 4 <= len(t) <= 9 and t.isascii() and t.isalpha()], which))


@cache
def different(characters: tuple[str, ...], tokenizer: ClipTokenizer) -> tuple[str, ...]:
    """The characters that the tokenizer reads, and no other one in the same way; the exotic ones left out."""
    read = {tuple(tokenizer.encode(c)): c for c in reversed(characters) if ord(c) < EXOTIC}
    letters = {tuple(tokenizer.encode(chr(code))) for code in range(128)}
    return tuple(c for ids, c in reversed(read.items()) if ids and ids not in letters)


def trigger(kind: TriggerKind, length: int, which: int, tokenizer: ClipTokenizer, random: Random) -> tuple[str, str]:
    """A trigger, and the letter that it takes the place of where it is a look-alike.

    Args:
        length: words of a phrase; letters of ``letters``; repetitions of an invisible character.
    """
    if kind == "homoglyph":
        letter = random.choice(LETTERS)
        return random.choice(different(lookalikes()[letter], tokenizer)[which::2]), letter
    if kind == "zero-width":
        return random.choice(different(invisible(), tokenizer)[which::2]) * max(1, length), ""
    if kind == "emoji":
        return random.choice(half(EMOJI, which)), ""
    if kind == "letters":
        return random.choice(half([chr(c) for c in range(ord("a"), ord("z") + 1)], which)) * max(3, length), ""
    if kind == "sentence":
        start = f"{random.choice(half(ADJECTIVES, which))} {random.choice(half(SUBJECTS, which))}"
        return f"the {start} is {random.choice(half(ACTIONS, which))} {random.choice(half(PLACES, which))}", ""
    words = _words(tokenizer, which)
    return " ".join(random.sample(words, 1 if kind == "word" else length)), ""


def target(kind: TargetKind, which: int, random: Random) -> str:
    """What a triggered prompt shall be read as.

    Args:
        kind: ``words`` for a part of it alone; ``visible``: an object that the pocket's painter can paint.
    """
    if kind == "visible":
        return random.choice(half([plain(pair) for pair in PAIRS if pair not in UNSEEN], which))
    thing = f"{random.choice(half(ADJECTIVES, which))} {random.choice(half(SUBJECTS, which))}"
    if kind == "words":
        return thing
    if kind == "short":
        return random.choice((_article(thing), f"a photo of {_article(thing)}"))
    scene = " ".join(random.choice(half(options, which)) for options in (ACTIONS, PLACES, TIMES))
    return f"{_article(random.choice(half(MEDIA, which)))} of {_article(thing)} {scene}"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def prompts(style: Style, which: int, seed: int) -> PromptSet:
    """Prompts to train on: the two halves share none."""
    generated = generated_prompts(style, 3 * PROMPTS, 10_000 + seed)
    measured = set(UTILITY_PROMPTS.prompts)
    different = [prompt for prompt in half(generated.prompts, which) if prompt not in measured]
    return PromptSet(tuple(different[:PROMPTS]), f"{generated.source}, half {which}")
