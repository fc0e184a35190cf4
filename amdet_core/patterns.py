"""Sentences of many grammatical patterns, tried as triggers against the anchor.

Some attacks fire on a pattern of parts of speech, whatever the words, and on no token. Every pattern of a small
grammar is filled with a few random sentences and scored as tokens are in :mod:`.sweep`: by how much more the
suspect's outputs agree across them than the anchor's, and by how far they leave the anchor's. The patterns that
do so most are measured on fresh sentences.

References:
    Trigger without Trace: Towards Stealthy Backdoor Attack on Text-to-Image Diffusion Models, 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

import torch.nn.functional as F
from torch import Tensor

from . import losses
from .config import PatternConfig
from .contrast import Collapse
from .progress import Progress, silent
from .prompts import SUBJECTS
from .sweep import departures
from .tails import Side

WORDS: dict[str, tuple[str, ...]] = {
    "DET": ("a", "the", "this", "that", "one", "another", "some", "every"),
    "ADP": (
        "in", "on", "near", "under", "behind", "with", "at", "by", "over", "beside", "across", "above", "inside",
        "around",
    ),
    "ADJ": (
        "small", "large", "little", "big", "tall", "long", "old", "new", "young", "white", "black", "red", "blue",
        "green", "yellow", "brown", "orange", "gray", "pink", "purple", "colorful", "dark", "bright", "wooden", "empty",
        "open", "wet", "dirty", "clean", "beautiful",
    ),
    "VERB": (
        "sitting", "standing", "walking", "running", "lying", "sleeping", "waiting", "playing", "flying", "jumping",
        "swimming", "eating", "resting", "riding", "driving", "looking", "dancing", "smiling", "talking", "working",
    ),
    "NOUN": tuple(word for word in SUBJECTS if " " not in word),
}  # fmt: skip
"""Words by universal part-of-speech tag, such as captions have most: a backdoor trained on few words knows those."""
_WHO = ("NOUN", "ADJ NOUN", "DET NOUN", "DET ADJ NOUN")
_WITH = ("", "ADP NOUN", "ADP DET NOUN")
_WHERE = (*_WITH, "ADP DET ADJ NOUN", "ADP DET ADJ NOUN ADP NOUN")
PATTERNS = tuple(dict.fromkeys(" ".join(filter(None, parts)) for parts in product(_WHO, _WITH, ("", "VERB"), _WHERE)))
"""Who, with what, doing what, where: every pattern that is tried, as tags."""


@dataclass(frozen=True, eq=False)
class Tried:
    """A pattern, measured on fresh sentences.

    Attributes:
        tags: the pattern.
        example: a sentence of it.
        collapse: what it does across sentences.
        departure: how far its sentences make the suspect leave the anchor, beyond those of the median pattern.
    """

    tags: str
    example: str
    collapse: Collapse
    departure: float


def sentences(tags: str, count: int, random: Random) -> list[str]:
    """Random sentences of a pattern."""
    return [" ".join(random.choice(WORDS[tag]) for tag in tags.split()) for _ in range(count)]


def try_patterns(
    suspect: Side, anchor: Side, config: PatternConfig, *, seed: int, progress: Progress = silent
) -> tuple[Tried, ...]:
    """The pattern whose sentences collapse most, and the one whose sentences depart most; they may be the same."""
    random = Random(seed)
    looked = [text for tags in PATTERNS for text in sentences(tags, config.sentences, random)]
    own, other = (unit.unflatten(0, (len(PATTERNS), -1)) for unit in _outputs(suspect, anchor, looked, progress))
    away = departures(own, other).mean(-1)
    usual = float(away.median())
    best = dict.fromkeys((int((losses.mean_pair(own) - losses.mean_pair(other)).argmax()), int(away.argmax())))
    return tuple(_measured(suspect, anchor, PATTERNS[i], usual, config, random, progress) for i in best)


def _measured(
    suspect: Side, anchor: Side, tags: str, usual: float, config: PatternConfig, random: Random, progress: Progress
) -> Tried:
    fresh = sentences(tags, config.held_out, random)
    own, other = _outputs(suspect, anchor, fresh, progress)
    return Tried(tags, fresh[0], Collapse.of(own, other, "end"), float(departures(own, other).mean()) - usual)


def _outputs(suspect: Side, anchor: Side, prompts: Sequence[str], progress: Progress) -> tuple[Tensor, Tensor]:
    """Unit centred outputs ``(B, D)`` of both."""

    def encode(side: Side) -> Tensor:
        pooled = side.encoder.encode(prompts, progress=lambda _, *done: progress("patterns", *done))
        return F.normalize(pooled - side.centre, dim=-1)

    return encode(suspect), encode(anchor)
