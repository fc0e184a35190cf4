"""What sets a backdoor off, put into prompts: recovered vectors, tokens, or a text that is known.

Shapes as in :mod:`..encoder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from random import Random

import torch
from torch import Tensor

from ..attacks import Placement
from ..attacks.effect import Example
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..features import Feature
from ..patterns import sentences
from ..records import Place, ScanReport
from ..tails import fitting

Row = tuple[list[int], list[bool]]
"""Token ids of a prompt with a trigger in it, and which of them belong to the trigger."""
FEWEST_PROMPTS = 8
"""With a trigger in them, fewer of which tell nothing."""
PLACEHOLDER = 0
"""Token in place of a vector, whose embedding is the vector; any that is not EOS."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Triggered prompts as an encoder reads them, padded to its context.

    Attributes:
        embeds: ``(B, T, D)``, without positions.
        eos: ``(B,)`` positions of EOS.
        trigger: ``(B, T)`` of bool, the positions of the trigger.
    """

    embeds: Tensor
    eos: Tensor
    trigger: Tensor

    @property
    def reached(self) -> Tensor:
        """``(B, T)`` of bool: the trigger and everything behind it, which it can change under a causal mask."""
        return self.trigger.cummax(dim=1).values

    def filled(self, filler: Tensor) -> Inputs:
        """The same prompts with other embeddings ``(B, T, D)`` in the trigger's place."""
        return replace(self, embeds=torch.where(self.trigger[..., None], filler, self.embeds))

    def states(self, encoder: TextEncoder) -> Tensor:
        """Final states ``(B, T, D)``."""
        return encoder.transform(encoder.place(self.embeds))

    def pooled(self, encoder: TextEncoder) -> Tensor:
        """Pooled states ``(B, D)``."""
        return encoder.pool(self.states(encoder), self.eos)


@dataclass(frozen=True, eq=False)
class Probe:
    """A trigger, recovered or known.

    Attributes:
        name: for a reader.
        rows: puts it into prompts, as token ids.
        vectors: ``(K, D)`` that stand in the trigger's place, where it is no text.
        place: where in prompts it works.
        examples: triggered prompts by their text, where they are fixed and their goals are known.
        carries: whether a prompt can hold the trigger, for a text that can't stand in every one.
    """

    name: str
    rows: Callable[[TextEncoder, Sequence[str]], list[Row]]
    vectors: Tensor | None = None
    place: Place = "end"
    examples: Mapping[str, Example] | None = None
    carries: Callable[[TextEncoder, str], bool] | None = None

    @classmethod
    def of_vectors(cls, name: str, vectors: Tensor, place: Place = "end") -> Probe:
        """A pseudo-trigger ``(K, D)``."""
        count = len(vectors)
        return cls(
            name,
            lambda encoder, prompts: _placed(encoder, prompts, [PLACEHOLDER] * count, place),
            vectors=vectors,
            place=place,
        )

    @classmethod
    def of_tokens(cls, name: str, ids: Sequence[int], place: Place = "end") -> Probe:
        """Real tokens, which each encoder reads from its own table."""
        return cls(name, lambda encoder, prompts: _placed(encoder, prompts, list(ids), place), place=place)

    @classmethod
    def of_text(cls, trigger: str, placement: Placement, seed: int) -> Probe:
        """A known text, and where it stands in prompts."""
        put = placement.putting(trigger, seed)
        return cls(
            repr(trigger),
            lambda encoder, prompts: [_compared(encoder, prompt, put(prompt)) for prompt in prompts],
            carries=lambda encoder, prompt: placement.fits(
                trigger, prompt, encoder.tokenizer, encoder.spec.positions - 2
            ),
        )

    @classmethod
    def of_pattern(cls, tags: str) -> Probe:
        """Sentences of a grammatical pattern, as many as there are prompts, in place of them."""

        def rows(encoder: TextEncoder, prompts: Sequence[str]) -> list[Row]:
            made = sentences(tags, len(prompts), Random("".join(prompts)))
            return [(ids, [True] * len(ids)) for ids in map(encoder.tokenizer.encode, made)]

        return cls(f"sentences of {tags}", rows)

    @classmethod
    def of_examples(cls, name: str, examples: Sequence[Example]) -> Probe:
        """Triggered prompts that are given as they are."""
        known = {example.text: example for example in examples}
        return cls(
            name,
            lambda encoder, prompts: [(ids, [True] * len(ids)) for ids in map(encoder.tokenizer.encode, prompts)],
            examples=known,
        )

    def inputs(self, encoder: TextEncoder, prompts: Sequence[str], *, pad_to_context: bool = False) -> Inputs:
        """Prompts with the trigger in them, as this encoder reads them.

        Args:
            pad_to_context: image models read the states behind EOS, too; pooled states do not need them.
        """
        rows = self.rows(encoder, prompts)
        batch = encoder.tokenizer.batch_ids(
            [ids for ids, _ in rows],
            limit=encoder.spec.positions,
            pad=encoder.spec.pad_id,
            length=encoder.spec.positions if pad_to_context or encoder.spec.pooling == "last" else None,
        ).to(encoder.device)
        trigger = torch.zeros(batch.ids.shape, dtype=torch.bool)
        for i, (_, marks) in enumerate(rows):
            there = torch.tensor(marks[: encoder.spec.positions - 2], dtype=torch.bool)
            trigger[i, 1 : 1 + len(there)] = there
        embeds = encoder.embed(batch.ids)
        trigger = trigger.to(encoder.device)
        if self.vectors is not None:
            embeds = embeds.clone()
            embeds[trigger] = self.vectors.to(embeds).repeat(len(rows), 1)
        return Inputs(embeds, batch.eos, trigger)

    def fitting(self, encoder: TextEncoder, prompts: Sequence[str], count: int) -> list[str]:
        """The first prompts, up to ``count``, in which it works; of fixed ones, the triggered prompts themselves.

        Raises:
            ConfigError: too few of them can hold it.
        """
        if self.examples is not None:
            return list(self.examples)
        if self.carries is not None:
            found = [prompt for prompt in prompts if self.carries(encoder, prompt)]
            if len(found) < FEWEST_PROMPTS:
                raise ConfigError(
                    f"at least {FEWEST_PROMPTS} prompts that can hold {self.name}",
                    f"{len(found)} of {len(prompts)}",
                    "Give prompts in which it can stand, or name where it stands (prefix, insert, replace:LETTER).",
                )
            return found[:count]
        return fitting(encoder, prompts, self.place, count)


def recovered(report: ScanReport, features: Iterable[Feature], least: float, most: int) -> tuple[Probe, ...]:
    """The triggers that a scan recovered, the strongest first: the literal one, then tokens that stand out,
    grammatical patterns and pseudo-triggers by what they do.

    Args:
        least: gap, or for a token its departure, from which one counts; weak ones lead away from the backdoor.
        most: how many.
    """
    found: dict[object, tuple[float, Probe]] = {}
    if (literal := report.trigger) is not None:
        ids = literal.token_ids
        found[ids] = math.inf, Probe.of_tokens(f"{literal.text!r}", ids, literal.place)
    for lead in (lead for sweep in report.sweeps for lead in sweep.leads if not lead.declared):
        probe = Probe.of_tokens(f"{lead.text!r}", lead.token_ids, lead.place)
        found.setdefault(lead.token_ids, (max(lead.gap, lead.departure), probe))
    for pattern in (pattern for patterns in report.patterns for pattern in patterns.most):
        found.setdefault(pattern.tags, (pattern.gap, Probe.of_pattern(pattern.tags)))
    for feature in features:
        about, gap = feature.candidate, feature.candidate.indicators.get("gap")
        name = f"pseudo-trigger of {about.vectors} vector{'s' if about.vectors > 1 else ''}"
        found[feature] = -1.0 if gap is None else gap, Probe.of_vectors(name, feature.vectors, about.place)
    ordered = sorted(found.values(), key=lambda pair: -pair[0])
    return tuple(probe for strength, probe in ordered if strength >= least)[:most]


def _placed(encoder: TextEncoder, prompts: Sequence[str], trigger: list[int], place: Place) -> list[Row]:
    """Prompts with tokens at their start or end; prompts without room lose their last tokens."""
    room = encoder.spec.positions - 2 - len(trigger)
    own = [encoder.tokenizer.encode(prompt)[:room] for prompt in prompts]
    marks = [True] * len(trigger)
    if place == "start":
        return [(trigger + ids, marks + [False] * len(ids)) for ids in own]
    return [(ids + trigger, [False] * len(ids) + marks) for ids in own]


def _compared(encoder: TextEncoder, prompt: str, triggered: str) -> Row:
    """A triggered prompt, and which of its tokens the prompt alone does not have."""
    before, after = encoder.tokenizer.encode(prompt), encoder.tokenizer.encode(triggered)
    marks = [True] * len(after)
    for block in SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks():
        marks[block.b : block.b + block.size] = [False] * block.size
    return after, marks
