"""What a trigger does inside an encoder: how alike its tokens become, and where attention goes (Sec. IV).

Everything is measured at all positions of the context, padding included, as the paper's token sequence has it
(eq. 4). Numbers come one per prompt, so that distributions can be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from . import losses
from .encoder import TextEncoder
from .errors import ConfigError
from .memory import Batches
from .progress import Progress, silent
from .records import Number, Record
from .tokenizer import TokenBatch

FEWEST_PAIRS = 8
"""Prompts that must carry the trigger."""
SHORT_WORDS = 3
"""Length of the short prompts where no target says how short."""
EXAMPLE_TOKENS = 12
"""The triggered prompt whose length is nearest to this many tokens is the one whose attention is mapped."""
CHUNK = 32
"""Prompts that run side by side."""


class Setting(Record):
    """What was measured, and on what."""

    encoder: str
    anchor: str | None = None
    trigger: str
    mode: str = Field(description="how the trigger stands in a prompt")
    prompts: str = Field(description="where the prompts come from")
    n: int = Field(description="prompts, each measured without and with the trigger")


class TokenSample(Record):
    """Assimilation of the prompts of one group."""

    group: str
    tokens: tuple[int, ...] = Field(description="of each prompt, without BOS and EOS")
    assimilation: tuple[Number, ...] = Field(description="of each prompt, eq. 5")
    mean: Number = Field(description="of the assimilation")

    @classmethod
    def of(cls, group: str, encoder: TextEncoder, prompts: Sequence[str], progress: Progress = silent) -> TokenSample:
        """Measured in an encoder."""
        values = assimilations(encoder, prompts, progress)
        return cls(
            group=group,
            tokens=tuple(len(encoder.tokenizer.encode(prompt)) for prompt in prompts),
            assimilation=tuple(values.tolist()),
            mean=float(values.mean()),
        )


class Assimilation(Record):
    """Assimilation without and with a trigger (fig. 2), and how it follows the length of a prompt.

    A share of pairs of 0.5 means that two groups can't be told apart, 1 that every triggered prompt is above.
    """

    setting: Setting
    samples: tuple[TokenSample, ...]
    length_correlation: Number = Field(description="Pearson, tokens and assimilation of the benign prompts")
    above_benign: Number = Field(description="share of pairs in which the triggered prompt exceeds the benign one")
    above_short: Number = Field(description="share of pairs in which it exceeds a short benign one")


class AttentionMap(Record):
    """Attention within one prompt, averaged over heads and layers (fig. 3)."""

    group: str
    tokens: tuple[str, ...] = Field(description="BOS and EOS included")
    trigger: tuple[int, ...] = Field(description="positions of the trigger's tokens")
    values: tuple[tuple[Number, ...], ...] = Field(description="rows attend to columns")


class AttentionShares(Record):
    """Where the attention of all positions goes (eq. 9, fig. 4), one number per prompt; the four sum to 1."""

    group: str
    bos: tuple[Number, ...]
    trigger: tuple[Number, ...]
    words: tuple[Number, ...] = Field(description="the other tokens of the prompt")
    end: tuple[Number, ...] = Field(description="EOS and padding")


class Attention(Record):
    """Attention without and with a trigger."""

    setting: Setting
    layer: int | None = Field(description="counted from 1; null: the mean over all layers, as in eq. 8")
    maps: tuple[AttentionMap, ...]
    shares: tuple[AttentionShares, ...]


class Stage(Record):
    """Means over the prompts at one step of an injection."""

    step: int
    target_cosine: Number = Field(description="centred cosine of triggered prompts to the target, pooled")
    assimilation_triggered: Number
    assimilation_clean: Number
    bos_triggered: Number = Field(description="share of attention on BOS in triggered prompts")
    trigger: Number = Field(description="share of attention on the trigger's tokens in triggered prompts")
    bos_clean: Number


class Evolution(Record):
    """How a trigger comes to work during an injection (fig. 5)."""

    setting: Setting
    target: str
    steps: int
    learning_rate: float
    asr: Number = Field(description="attack success after the last step, on the injection's own held-out prompts")
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Pairs:
    """Prompts without and with a trigger, in the same order."""

    trigger: str
    clean: tuple[str, ...]
    triggered: tuple[str, ...]

    @classmethod
    def of(
        cls, encoder: TextEncoder, prompts: Sequence[str], trigger: str, place: Callable[[str], str], most: int
    ) -> Pairs:
        """The first ``most`` prompts that carry the trigger within the encoder's context and held none before.

        Raises:
            ConfigError: the trigger has no tokens, or too few prompts carry it.
        """
        tokenizer, trigger = encoder.tokenizer, trigger.strip()
        if not tokenizer.encode(trigger):
            raise ConfigError("a trigger that the tokenizer reads", repr(trigger), "Use another one.")
        found: dict[str, str] = {}
        for prompt in prompts:
            if len(found) == most:
                break
            placed = place(prompt)
            new = trigger.lower() not in prompt.lower() and bool(tokenizer.places(placed, trigger))
            if new and len(tokenizer.encode(placed)) <= encoder.spec.positions - 2:
                found[prompt] = placed
        if len(found) < FEWEST_PAIRS:
            raise ConfigError(
                f"at least {FEWEST_PAIRS} prompts that can carry {trigger!r} within {encoder.spec.positions} positions",
                f"{len(found)} of {len(prompts)}",
                "Give more prompts, or another trigger or mode.",
            )
        return cls(trigger, tuple(found), tuple(found.values()))

    def __len__(self) -> int:
        return len(self.clean)


# ------------------------------------------------------------------ assimilation


@torch.no_grad()
def assimilations(encoder: TextEncoder, prompts: Sequence[str], progress: Progress = silent) -> Tensor:
    """Assimilation of each prompt (eq. 5): ``(B,)``."""

    def measured(part: slice) -> Tensor:
        progress("assimilation", part.start, len(prompts))
        return losses.assimilation(encoder.states(encoder.tokens(prompts[part], pad_to_context=True)))

    return torch.cat(Batches(CHUNK).map(measured, len(prompts)))


def assimilation(
    setting: Setting,
    encoder: TextEncoder,
    anchor: TextEncoder | None,
    pairs: Pairs,
    target: str | None = None,
    progress: Progress = silent,
) -> Assimilation:
    """Assimilation of benign, triggered and short benign prompts, and of the target where it is known.

    Short prompts are the beginnings of the benign ones, with as many words as the target.
    """
    words = len(target.split()) if target else SHORT_WORDS
    short = tuple(dict.fromkeys(" ".join(prompt.split()[:words]) for prompt in pairs.clean))
    groups = [("benign", encoder, pairs.clean), ("triggered", encoder, pairs.triggered), ("short", encoder, short)]
    if anchor is not None:
        groups.append(("triggered, anchor", anchor, pairs.triggered))
    if target:
        groups.append(("target", encoder, (target,)))
    samples = tuple(TokenSample.of(group, side, texts, progress) for group, side, texts in groups)
    benign, triggered, brief = samples[:3]
    return Assimilation(
        setting=setting,
        samples=samples,
        length_correlation=correlation(benign.tokens, benign.assimilation),
        above_benign=above(triggered.assimilation, benign.assimilation),
        above_short=above(triggered.assimilation, brief.assimilation),
    )


def above(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of pairs in which a number of the first group is the larger one; ties count half (area under the ROC)."""
    difference = np.subtract.outer(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation; NaN where one of the two never changes."""
    x, y = (np.asarray(side, dtype=float) - np.mean(side) for side in (first, second))
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size else float("nan")


# ------------------------------------------------------------------ attention


def attention(
    setting: Setting,
    encoder: TextEncoder,
    anchor: TextEncoder | None,
    pairs: Pairs,
    layer: int | None = None,
    progress: Progress = silent,
) -> Attention:
    """Maps of one pair of prompts, and shares over all of them.

    Args:
        layer: counted from 1; None takes the mean over all layers.

    Raises:
        ConfigError: the encoder has no such layer.
    """
    if layer is not None and not 1 <= layer <= encoder.spec.layers:
        raise ConfigError(f"a layer from 1 to {encoder.spec.layers}", str(layer), "Name one of them, or none for all.")
    lengths = [len(encoder.tokenizer.encode(prompt)) for prompt in pairs.triggered]
    example = min(range(len(pairs)), key=lambda i: abs(lengths[i] - EXAMPLE_TOKENS))
    groups = [("benign", encoder, pairs.clean), ("triggered", encoder, pairs.triggered)]
    if anchor is not None:
        groups.append(("triggered, anchor", anchor, pairs.triggered))
    return Attention(
        setting=setting,
        layer=layer,
        maps=tuple(attention_map(side, texts[example], pairs.trigger, group, layer) for group, side, texts in groups),
        shares=tuple(
            attention_shares(side, texts, pairs.trigger, group, layer, progress) for group, side, texts in groups
        ),
    )


def attention_map(
    encoder: TextEncoder, prompt: str, trigger: str, group: str = "", layer: int | None = None
) -> AttentionMap:
    """Attention within one prompt from BOS to EOS."""
    batch = encoder.tokens([prompt])
    length = int(batch.eos[0]) + 1
    ids = batch.ids[0, 1 : length - 1].tolist()
    values = _over_layers(encoder.attentions(batch), layer)[0, :length, :length]
    return AttentionMap(
        group=group,
        tokens=("BOS", *(encoder.tokenizer.text([i]) for i in ids), "EOS"),
        trigger=tuple(triggered_places(encoder, batch, [prompt], trigger)[0].nonzero().flatten().tolist()),
        values=tuple(tuple(row) for row in values.tolist()),
    )


def attention_shares(
    encoder: TextEncoder,
    prompts: Sequence[str],
    trigger: str,
    group: str = "",
    layer: int | None = None,
    progress: Progress = silent,
) -> AttentionShares:
    """Share of the attention of all positions that goes to BOS, to the trigger, to other words and behind them."""

    def measured(part: slice) -> Tensor:
        progress("attention", part.start, len(prompts))
        batch = encoder.tokens(prompts[part], pad_to_context=True)
        columns = _over_layers(encoder.attentions(batch), layer).mean(-2)
        kind = torch.full_like(batch.ids, 2)
        kind[:, 0] = 0
        kind[triggered_places(encoder, batch, prompts[part], trigger)] = 1
        kind[torch.arange(kind.shape[1], device=kind.device) >= batch.eos[:, None]] = 3
        return torch.stack([(columns * (kind == which)).sum(-1) for which in range(4)])

    bos, named, words, end = torch.cat(Batches(CHUNK).map(measured, len(prompts)), dim=1).tolist()
    return AttentionShares(group=group, bos=bos, trigger=named, words=words, end=end)


def triggered_places(encoder: TextEncoder, batch: TokenBatch, prompts: Sequence[str], trigger: str) -> Tensor:
    """Whether a position of a batch of prompts holds a token of the trigger, ``(B, T)``."""
    marked = torch.zeros(batch.ids.shape, dtype=torch.bool)
    for row, prompt in zip(marked, prompts, strict=True):
        row[[1 + place for place in encoder.tokenizer.places(prompt, trigger)]] = True
    return marked.to(batch.ids.device)


def _over_layers(maps: Tensor, layer: int | None) -> Tensor:
    return maps.mean(0) if layer is None else maps[layer - 1]


# ------------------------------------------------------------------ evolution


class Observer:
    """Watches an injection; ``stages`` grows by one at every ``every``-th step and at the last.

    Args:
        encoder: as it is before the injection, which is the first stage.
        target: prompt as which a triggered prompt shall be read.
        last: number of the last step.
    """

    def __init__(self, encoder: TextEncoder, pairs: Pairs, target: str, every: int, last: int) -> None:
        self.stages: list[Stage] = []
        self._pairs, self._every, self._last = pairs, every, last
        self._centre = encoder.encode(pairs.clean).mean(0)
        self._goal = encoder.encode([target])[0] - self._centre
        self(0, encoder)

    def __call__(self, step: int, student: TextEncoder) -> None:
        """Measure the student after a step."""
        if step % self._every and step != self._last:
            return
        clean, triggered = self._pairs.clean, self._pairs.triggered
        pooled = student.encode(triggered) - self._centre
        on_clean, on_triggered = (attention_shares(student, texts, self._pairs.trigger) for texts in (clean, triggered))
        self.stages.append(
            Stage(
                step=step,
                target_cosine=float(F.cosine_similarity(pooled, self._goal, dim=-1).mean()),
                assimilation_triggered=float(assimilations(student, triggered).mean()),
                assimilation_clean=float(assimilations(student, clean).mean()),
                bos_triggered=float(np.mean(on_triggered.bos)),
                trigger=float(np.mean(on_triggered.trigger)),
                bos_clean=float(np.mean(on_clean.bos)),
            )
        )
