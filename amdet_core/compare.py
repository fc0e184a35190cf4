"""How far two encoders answer the same, prompt by prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from . import losses
from .errors import ConfigError, EncoderError
from .formats import OpenedTarget
from .memory import Batches
from .progress import Progress, silent
from .prompts import builtin_prompts
from .records import Number, Record
from .tails import CENTRE_PROMPTS, Side

CHUNK = 32
"""Prompts that run side by side."""


class Comparison(Record):
    """One prompt in two encoders of the same sizes; of one that hosts read in parts, the part that differs most."""

    encoder: str
    prompt: str
    pooled: Number = Field(description="cosine of the pooled states, each from its own encoder's centre")
    states: Number = Field(description="mean cosine of the token states, position by position")


def compare(
    first: OpenedTarget,
    second: OpenedTarget,
    prompts: Sequence[str],
    device: torch.device,
    progress: Progress = silent,
) -> tuple[Comparison, ...]:
    """Compare the encoders of one name in two targets.

    Raises:
        ConfigError: there are no prompts.
        EncoderError: the targets have no encoders of the same name and sizes.
    """
    if not prompts:
        raise ConfigError("at least one prompt", "none", "Write one prompt per line.")
    others = {found.name: found for found in second.encoders}
    pairs = [
        (found, others[found.name])
        for found in first.encoders
        if found.name in others and found.reachable().spec.comparable(others[found.name].reachable().spec)
    ]
    if not pairs:
        sizes = "; ".join(f"{found.name} ({found.encoder.spec.summary})" for found in first.encoders)
        other = "; ".join(f"{found.name} ({found.encoder.spec.summary})" for found in second.encoders)
        raise EncoderError(f"an encoder of the same sizes as {sizes}", other, "Compare a model with its own origin.")
    rows: list[Comparison] = []
    clean = builtin_prompts(CENTRE_PROMPTS).prompts
    for found, partner in pairs:
        sides = [Side.of(one.in_use().to(device), clean, progress) for one in (found, partner)]
        values = _cosines(sides[0], sides[1], prompts, progress).tolist()
        rows += [
            Comparison(encoder=found.name, prompt=prompt, pooled=pooled, states=states)
            for prompt, (pooled, states) in zip(prompts, values, strict=True)
        ]
    return tuple(rows)


@torch.no_grad()
def _cosines(first: Side, second: Side, prompts: Sequence[str], progress: Progress) -> Tensor:
    """Pooled and token-state cosines ``(B, 2)``, of a prompt in parts the smallest ones."""
    tokenizer, size = first.encoder.tokenizer, first.encoder.spec.positions - 2
    parts = [tokenizer.chunks(tokenizer.encode(prompt), size) for prompt in prompts]
    rows = [row for chunks in parts for row in chunks]

    def of(part: slice) -> Tensor:
        progress("compare", part.start, len(rows))
        batch = first.encoder.batch(rows[part], pad_to_context=True)
        own, other = (side.encoder.states(batch) for side in (first, second))
        pooled = first.encoder.pool(own, batch.eos) - first.centre
        meant = second.encoder.pool(other, batch.eos) - second.centre
        return torch.stack((F.cosine_similarity(pooled, meant, dim=-1), losses.agreement(own, other)), -1)

    cosines = torch.cat(Batches(CHUNK).map(of, len(rows)))
    return torch.stack([own.amin(0) for own in cosines.split([len(chunks) for chunks in parts])])


def table(rows: Sequence[Comparison]) -> str:
    """The comparison as a Markdown table."""
    lines = ["| encoder | prompt | pooled, centred | token states |", "|---|---|---|---|"]
    for row in rows:
        prompt = row.prompt.replace("|", "\\|")
        lines.append(f"| {row.encoder} | {prompt} | {row.pooled:.4f} | {row.states:.4f} |")
    return "\n".join(lines)
