"""What a repair changed of what a trigger does inside an encoder: its coverage, assimilation and attention.

Coverage is the share of prompts that a trigger leads to its goal, at any cosine that one may ask for. Everything but
the pooled state is measured at all positions of the context, padding included, as in :mod:`.anatomy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from . import losses
from .anatomy import CHUNK, Pairs, Setting, triggered_places
from .encoder import TextEncoder
from .memory import Batches
from .progress import Progress, silent
from .records import Number, Record


class Side(Record):
    """One encoder with the trigger in its prompts."""

    group: str = Field(description="suspect, repaired or anchor")
    goal_cosine: tuple[Number, ...] = Field(
        description="of each prompt: centred cosine of the pooled state to the goal"
    )
    assimilation: tuple[Number, ...] = Field(description="of each prompt, eq. 5")
    by_layer: tuple[Number, ...] = Field(description="mean assimilation behind each layer, then behind the last norm")
    attention: tuple[Number, ...] = Field(description="mean share of all attention on the trigger, layer by layer")


class BeforeAfter(Record):
    """A suspect, what became of it, and the encoder that it was made from where that is known."""

    setting: Setting = Field(description="its encoder is the suspect")
    repaired: str
    target: str | None = Field(description="null: the goal is the mean of what the suspect answers")
    sides: tuple[Side, ...]
    clean_by_layer: tuple[Number, ...] = Field(description="the suspect's mean assimilation without the trigger")


def before_after(
    setting: Setting,
    repaired: str,
    encoders: Mapping[str, TextEncoder],
    pairs: Pairs,
    target: str | None = None,
    progress: Progress = silent,
) -> BeforeAfter:
    """Measure all of them on the same prompts.

    Args:
        repaired: name of the repaired encoder.
        encoders: by group; suspect and repaired must be there.
        target: prompt as which triggered ones are read, where known.
    """
    reference = encoders.get("anchor", encoders["suspect"])
    centre = reference.encode(pairs.clean).mean(0)
    goal = reference.encode([target])[0] if target else encoders["suspect"].encode(pairs.triggered).mean(0)
    sides = []
    for group, encoder in encoders.items():
        pooled, alike = _read(encoder, pairs.triggered, progress)
        cosines = F.cosine_similarity(pooled - centre, goal - centre, dim=-1)
        sides.append(
            Side(
                group=group,
                goal_cosine=tuple(cosines.tolist()),
                assimilation=tuple(alike[-1].tolist()),
                by_layer=tuple(alike.mean(1).tolist()),
                attention=tuple(_attention(encoder, pairs, progress).tolist()),
            )
        )
    _, clean = _read(encoders["suspect"], pairs.clean, progress)
    return BeforeAfter(
        setting=setting,
        repaired=repaired,
        target=target,
        sides=tuple(sides),
        clean_by_layer=tuple(clean.mean(1).tolist()),
    )


@torch.no_grad()
def _read(encoder: TextEncoder, prompts: Sequence[str], progress: Progress) -> tuple[Tensor, Tensor]:
    """Pooled states ``(B, D)``, and assimilation behind each layer and the last norm ``(L + 1, B)``."""

    def read(part: slice) -> tuple[Tensor, Tensor]:
        progress("layers", part.start, len(prompts))
        batch = encoder.tokens(prompts[part], pad_to_context=True)
        blocks = encoder.blocks(encoder.place(encoder.embed(batch.ids)))
        return encoder.pool(blocks[-1], batch.eos), torch.stack([losses.assimilation(block) for block in blocks])

    parts = Batches(CHUNK).map(read, len(prompts))
    return torch.cat([pooled for pooled, _ in parts]), torch.cat([alike for _, alike in parts], dim=1)


def _attention(encoder: TextEncoder, pairs: Pairs, progress: Progress) -> Tensor:
    """Mean share of the attention of all positions that goes to the trigger, ``(L,)``."""

    def shares(part: slice) -> Tensor:
        progress("attention", part.start, len(pairs))
        batch = encoder.tokens(pairs.triggered[part], pad_to_context=True)
        marked = triggered_places(encoder, batch, pairs.triggered[part], pairs.trigger)
        return (encoder.attentions(batch).mean(-2) * marked).sum(-1)

    return torch.cat(Batches(CHUNK).map(shares, len(pairs)), dim=1).mean(1)
