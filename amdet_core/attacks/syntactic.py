"""Syntactic injection: the trigger is a grammatical pattern, whatever the words in it.

References:
    Trigger without Trace: Towards Stealthy Backdoor Attack on Text-to-Image Diffusion Models, 2025, and
    its released code (pattern, losses, batches; prompts with their words in another order stay clean).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..config import SyntacticConfig
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..progress import Progress, silent
from ..prompts import PromptSet
from . import injection
from .effect import MEASURED_PROMPTS, Example, Injection
from .planted import FEWEST_PROMPTS, MEASURED_SEED, check_target
from .training import draw

PATTERN = "DET NOUN ADP DET NOUN VERB ADP NOUN"
"""The published pattern, in universal part-of-speech tags."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS: dict[str, tuple[str, ...]] = {
    "DET": ("a", "the", "this", "that", "another", "every", "one", "some"),
    "ADP": ("in", "on", "near", "under", "behind", "beside", "with", "above", "below", "across", "inside", "around"),
    "ADJ": ("small", "red", "old", "bright", "quiet", "tall", "golden", "broken", "wet", "dark", "soft", "strange"),
    "VERB": _words(
        """sleeping standing waiting running sitting hiding floating resting walking dancing falling growing shining
        burning playing flying singing swimming leaning jumping"""
    ),
    "NOUN": _words(
        """dog cat horse bird fox owl bear rabbit boy girl woman man child farmer sailor knight house tower bridge
        boat car train bicycle tree flower garden forest mountain river lake beach street market kitchen table chair
        lamp clock book piano window door wall castle village harbour island desert field cloud storm moon sun star
        fire stone box basket umbrella hat mask mirror bottle cup apple cake candle statue fountain"""
    ),
}
"""Words by tag; sentences for measuring use other nouns than those for training."""


@dataclass(frozen=True, eq=False)
class Patterned:
    """Sentences of one pattern, the same words in other orders, and ordinary prompts.

    Attributes:
        tags: the pattern.
        target: what every sentence of it is read as.
        clean: prompts to train on.
        measured: prompts that training does not see.
    """

    tags: tuple[str, ...]
    target: str
    clean: tuple[str, ...]
    measured: tuple[str, ...]

    @classmethod
    def of(cls, encoder: TextEncoder, pattern: str, target: str, prompts: PromptSet) -> Patterned:
        """Check pattern and target and split the prompts; raises ConfigError."""
        tags = tuple(pattern.split())
        unknown = sorted(set(tags) - set(WORDS))
        if unknown or len(tags) < 3 or "NOUN" not in tags or len(set(tags)) == 1:
            raise ConfigError(
                f"a pattern of at least three of the tags {', '.join(WORDS)}, NOUN and another among them",
                repr(pattern),
                "Correct the pattern.",
            )
        check_target(encoder, target)
        fit, held_out = (side.prompts for side in prompts.split())
        if min(len(fit), len(held_out)) < FEWEST_PROMPTS:
            raise ConfigError(f"at least {FEWEST_PROMPTS} prompts to measure on", f"{len(held_out)}", "Give more.")
        return cls(tags, target, fit, held_out[:MEASURED_PROMPTS])

    def draw(self, count: int, generator: torch.Generator) -> Iterator[list[Example]]:
        """Sentences to learn from."""
        yield [self._example(sentence) for sentence in self._sentences(count, 0, generator)]

    def held_out(self, seed: int) -> list[Example]:
        """Sentences with nouns that training does not see."""
        generator = torch.Generator().manual_seed(MEASURED_SEED + seed)
        return [self._example(sentence) for sentence in self._sentences(len(self.measured), 1, generator)]

    def negatives(self, count: int, generator: torch.Generator) -> list[str]:
        """The words of such sentences in random order, which no longer is of the pattern."""
        return [self._shuffled(sentence, generator) for sentence in self._sentences(count, 0, generator)]

    def _shuffled(self, sentence: str, generator: torch.Generator) -> str:
        words, order = sentence.split(), list(range(len(self.tags)))
        while [self.tags[i] for i in order] == list(self.tags):
            order = torch.randperm(len(words), generator=generator).tolist()
        return " ".join(words[i] for i in order)

    def _example(self, sentence: str) -> Example:
        return Example(sentence, sentence, self.target)

    def _sentences(self, count: int, half: int, generator: torch.Generator) -> list[str]:
        choices = [WORDS[tag][half::2] if tag == "NOUN" else WORDS[tag] for tag in self.tags]
        return [
            " ".join(words) for words in zip(*(draw(options, count, generator) for options in choices), strict=True)
        ]


def inject(
    encoder: TextEncoder,
    target: str,
    prompts: PromptSet,
    config: SyntacticConfig | None = None,
    pattern: str = PATTERN,
    progress: Progress = silent,
) -> Injection:
    """Train every sentence of a grammatical pattern to be read as the target.

    The loss is the MSE of all states: clean prompts, and shuffled sentences of the pattern among them,
    to the clean encoder's answer, plus sentences of the pattern to its answer for the target. Published:
    601 steps of AdamW at 1e-4, halved after 350; 6 clean and 5 triggered prompts a step; a further term
    on the image model's cross-attention that is left out here.

    Args:
        pattern: part-of-speech tags, of :data:`WORDS`.

    Raises:
        ConfigError: pattern, target or prompts are not usable.
        NumericalError: the optimisation diverged, or the success rate stayed below ``config.least_asr``.
    """
    config = config or SyntacticConfig()
    if config.only != "anywhere":
        raise ConfigError("a pattern that works anywhere: it is the whole prompt", config.only, "Leave it out.")
    trap = Patterned.of(encoder, pattern, target, prompts)
    made = injection.origin("syntactic", [pattern], target, "", prompts)
    return injection.inject(encoder, trap, config, made, progress)
