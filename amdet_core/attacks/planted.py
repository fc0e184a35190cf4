"""Triggers that are texts, planted in ordinary prompts, and what the triggered prompts shall be read as."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..config import InjectionConfig
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..prompts import PromptSet
from .effect import MEASURED_PROMPTS, Example
from .placement import Placement
from .training import draw

FEWEST_PROMPTS = 8
LONG, SHORT = 20, 8
"""Tokens from which a prompt is long, and words up to which it is short, for a trigger that works in long ones."""
MEASURED_SEED = 1_000_003
"""Added to the seed of an attack: prompts are measured with triggers in places of their own."""


@dataclass(frozen=True, eq=False)
class Planted:
    """Triggers, prompts to plant them in, and what comes of it.

    Attributes:
        triggers: texts, each of which shall work by itself.
        words: what a triggered prompt is read as, or what the trigger in it is read as.
        whole: whether the words stand for the whole prompt; else in the trigger's place.
        placement: where the triggers stand.
        parts: whether parts of a trigger shall do nothing.
        only: where a trigger works; see :class:`.config.InjectionConfig`.
        clean: prompts to train on, without any trigger.
        carriers: those of them that can carry every trigger.
        measured: prompts that training does not see, and that can carry every trigger.
    """

    triggers: tuple[str, ...]
    words: str
    whole: bool
    placement: Placement
    parts: bool
    only: str
    clean: tuple[str, ...]
    carriers: tuple[str, ...]
    measured: tuple[str, ...]

    @classmethod
    def of(
        cls,
        encoder: TextEncoder,
        triggers: Sequence[str],
        words: str,
        prompts: PromptSet,
        mode: str,
        *,
        whole: bool,
        config: InjectionConfig | None = None,
    ) -> Planted:
        """Check the texts and sort the prompts.

        Args:
            mode: see :meth:`Placement.parse`.
            config: says whether parts of a trigger work, and where the whole does; everywhere where None.

        Raises:
            ConfigError: triggers, words, prompts and mode do not go together; the message says why.
        """
        placement, only = Placement.parse(mode), "anywhere" if config is None else config.only
        _check(encoder, triggers, words, placement, whole)
        if only == "at-start" and placement.kind != "prefix":
            raise ConfigError("mode prefix for a trigger that works at the start alone", mode, "Use prefix.")
        read = [as_read(trigger) for trigger in triggers]
        clean = tuple(p for p in prompts.prompts if not any(t in as_read(p) for t in read))
        fit, held_out = (side.prompts for side in PromptSet(clean, prompts.source).split())
        longest = max((*triggers, "" if whole else words), key=lambda text: len(encoder.tokenizer.encode(text)))
        least = LONG if only == "in-long" else 0
        return cls(
            triggers=tuple(triggers),
            words=words,
            whole=whole,
            placement=placement,
            parts=config is not None and config.partial_negatives,
            only=only,
            clean=fit,
            carriers=_carriers(encoder, longest, fit, placement, least),
            measured=_carriers(encoder, longest, held_out, placement, least)[:MEASURED_PROMPTS],
        )

    def draw(self, count: int, generator: torch.Generator) -> Iterator[list[Example]]:
        """For each trigger so many examples to learn from."""
        for trigger in self.triggers:
            yield [self.example(trigger, prompt, generator) for prompt in draw(self.carriers, count, generator)]

    def example(self, trigger: str, prompt: str, generator: torch.Generator) -> Example:
        """A prompt with the trigger in it."""
        text, read = self.placement.put_both(trigger, self.words, prompt, generator)
        goal = self.words if self.whole else read
        return Example(text, text if as_read(goal) == as_read(prompt) else prompt, goal)

    def held_out(self, seed: int) -> list[Example]:
        """Every trigger in every measured prompt."""
        generator = torch.Generator().manual_seed(MEASURED_SEED + seed)
        return [self.example(trigger, prompt, generator) for trigger in self.triggers for prompt in self.measured]

    def negatives(self, count: int, generator: torch.Generator) -> list[str]:
        """Prompts with a part of a trigger in them, and with a trigger where it shall not work.

        Raises:
            ConfigError: no trigger has parts.
        """
        found = self._with_parts(count, generator) if self.parts else []
        return found if self.only == "anywhere" else found + self._out_of_place(count, generator)

    def _out_of_place(self, count: int, generator: torch.Generator) -> list[str]:
        """Prompts with a trigger behind the start, or short ones with a trigger."""
        texts = []
        for prompt in draw(self.clean, count, generator):
            trigger, words = self.triggers[_below(len(self.triggers), generator)], prompt.split()
            if self.only == "in-long":
                texts.append(self.placement.put(trigger, " ".join(words[:SHORT]), generator))
            else:
                at = 1 + _below(max(1, len(words)), generator)
                texts.append(" ".join([*words[:at], trigger, *words[at:]]))
        return texts

    def _with_parts(self, count: int, generator: torch.Generator) -> list[str]:
        several = [words for words in map(str.split, self.triggers) if len(words) > 1]
        if not several:
            raise ConfigError(
                "a trigger of several words, so that it has parts", repr(self.triggers), "Train without partial ones."
            )
        prompts = draw(self.clean, count, generator)
        return [self.placement.put(_part(several, generator), prompt, generator) for prompt in prompts]


def _part(triggers: Sequence[Sequence[str]], generator: torch.Generator) -> str:
    """A run of words of a trigger, shorter than the whole."""

    words = triggers[_below(len(triggers), generator)]
    length = 1 + _below(len(words) - 1, generator)
    start = _below(len(words) - length + 1, generator)
    return " ".join(words[start : start + length])


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _carriers(
    encoder: TextEncoder, trigger: str, prompts: Sequence[str], placement: Placement, least: int
) -> tuple[str, ...]:
    """The prompts of so many tokens that can carry the trigger; ConfigError where they are too few."""
    room = encoder.spec.positions - 2
    carriers = tuple(
        p
        for p in prompts
        if placement.fits(trigger, p, encoder.tokenizer, room) and len(encoder.tokenizer.encode(p)) >= least
    )
    if len(carriers) < FEWEST_PROMPTS:
        where = f"containing {placement.letter!r} " if placement.letter else ""
        raise ConfigError(
            f"at least {FEWEST_PROMPTS} prompts {where}with room for {trigger!r} on each side of the split",
            f"{len(carriers)} of {len(prompts)}",
            "Give more prompts, or another trigger or mode.",
        )
    return carriers


def _check(encoder: TextEncoder, triggers: Sequence[str], words: str, placement: Placement, whole: bool) -> None:
    encode = encoder.tokenizer.encode
    if not triggers:
        raise ConfigError("at least one trigger", "none", "Name a trigger.")
    tokens = [tuple(encode(trigger)) for trigger in triggers]
    if () in tokens:
        raise ConfigError("a trigger that the tokenizer reads", f"{triggers[tokens.index(())]!r}", "Use another one.")
    if len(set(tokens)) < len(tokens):
        raise ConfigError("different triggers", f"two that read the same in {list(triggers)}", "Name each one once.")
    if placement.letter and tuple(encode(placement.letter)) in tokens:
        raise ConfigError(
            "a trigger that differs from the letter", f"{placement.letter!r} for itself", "Use another trigger."
        )
    inside = [trigger for trigger in triggers if as_read(trigger) in as_read(words)]
    if inside:
        raise ConfigError("a target without the trigger", f"{inside[0]!r} in {words!r}", "Use another target.")
    check_target(encoder, words, fewest=1 if whole else 0)


def as_read(text: str) -> str:
    """A text in the form to which the tokenizer brings it first: composed, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def check_target(encoder: TextEncoder, target: str, fewest: int = 1) -> None:
    """Raise ConfigError where a target has too few tokens, or more than an encoder reads."""
    length, room = len(encoder.tokenizer.encode(target)), encoder.spec.positions - 2
    if not fewest <= length <= room:
        raise ConfigError(
            f"a target of {fewest} to {room} tokens", f"{length} in {target!r}", "Shorten or name the target."
        )
