"""Grammatical patterns as triggers."""

from __future__ import annotations

from random import Random

import torch

from amdet_core import patterns, pocket
from amdet_core.attacks.syntactic import PATTERN
from amdet_core.config import PatternConfig
from amdet_core.encoder import TextEncoder
from amdet_core.prompts import builtin_prompts
from amdet_core.tails import Side

PROMPTS = builtin_prompts(100).prompts
FEW = PatternConfig(sentences=4, held_out=16)


def test_the_published_pattern_is_among_those_that_are_tried() -> None:
    assert PATTERN in patterns.PATTERNS
    assert len(set(patterns.PATTERNS)) == len(patterns.PATTERNS) > 100


def test_sentences_follow_their_pattern() -> None:
    for sentence in patterns.sentences("DET ADJ NOUN VERB", 20, Random(1)):
        words = sentence.split()
        assert all(word in patterns.WORDS[tag] for word, tag in zip(words, ["DET", "ADJ", "NOUN", "VERB"], strict=True))


def test_an_encoder_compared_with_itself_shows_nothing(toy: TextEncoder) -> None:
    side = Side.of(toy, PROMPTS)
    tried = patterns.try_patterns(side, side, FEW, seed=0)
    assert all(abs(one.collapse.gap) < 1e-6 and abs(one.departure) < 1e-5 for one in tried)


def test_a_pattern_that_gives_one_output_is_named(monkeypatch) -> None:
    """An encoder that reads every sentence of one pattern as the same text."""
    suspect, anchor = pocket.load("clean"), pocket.load("clean")
    planted, encode = "DET NOUN VERB ADP NOUN", TextEncoder.encode
    tags = {word: tag for tag, words in patterns.WORDS.items() for word in words}

    def read(self: TextEncoder, prompts, **options) -> torch.Tensor:
        if self is suspect:
            prompts = ["a teapot" if " ".join(map(tags.get, p.split())) == planted else p for p in prompts]
        return encode(self, prompts, **options)

    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    monkeypatch.setattr(TextEncoder, "encode", read)
    most = patterns.try_patterns(*sides, FEW, seed=0)[0]
    assert most.tags == planted
    assert most.collapse.gap > 0.5
    assert most.departure > 0.3
