"""Prompts with a place for a trigger, in suspect and anchor, of which what does not change is computed once.

A trigger stands at the end of prompts, before EOS, or at their start, behind BOS. Under the causal mask
everything in front of it is the same for all candidates: its keys and values are shared, and a candidate costs
only its own positions and those behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from .encoder import TOKEN_TABLE, TextEncoder
from .errors import ConfigError
from .layers import Prefix
from .memory import Batches
from .progress import Progress, silent
from .records import Place

CENTRE_PROMPTS = 256
"""Clean prompts whose mean pooled state is an encoder's centre."""
PREFIXES = 256
"""Cut prompts whose keys and values are computed side by side."""
SIDE_BY_SIDE = 2048
"""Candidates times prompts that run side by side on whole prompts."""
LONG = 24
"""Tokens from which a prompt counts as long."""


@dataclass(frozen=True, eq=False)
class Side:
    """One encoder with the mean ``(D,)`` of its pooled states on clean prompts, and how far they lie from it.

    A deaf side reads no trigger. The suspect itself, deaf, stands in for an anchor where there is none: what a
    trigger does is then told from what prompts give without it.
    """

    encoder: TextEncoder
    centre: Tensor
    deaf: bool = False
    clean: Tensor = field(default_factory=partial(torch.empty, 0))
    """Those pooled states ``(N, D)`` around their mean."""

    @classmethod
    def of(cls, encoder: TextEncoder, prompts: Sequence[str], progress: Progress = silent) -> Side:
        """Centre an encoder on its first clean prompts."""
        pooled = encoder.encode(prompts[:CENTRE_PROMPTS], progress=progress)
        centre = pooled.mean(0)
        return cls(encoder, centre, clean=pooled - centre)

    @property
    def spread(self) -> float:
        """Mean distance of the clean states to their mean, as a share of its length."""
        return float(self.clean.norm(dim=-1).mean() / self.centre.norm())


def spread(one: Side, other: Side) -> float:
    """How far apart one side reads clean prompts, as a share of how far the other does."""
    return one.spread / other.spread


def drift(one: Side, other: Side) -> float:
    """How differently two sides read the same clean prompts: mean of one minus the cosine, 0 to 2."""
    return float(1 - F.cosine_similarity(one.clean, other.clean, dim=-1).mean())


@dataclass(frozen=True, eq=False)
class Tails:
    """Suspect and anchor on N prompts cut to one length, with a place for a trigger.

    Attributes:
        suspect: side, and what stands in front of the trigger.
        anchor: the same.
        behind: ``(N, S)`` tokens behind it, EOS the last.
        place: where the trigger stands.
    """

    suspect: tuple[Side, Prefix]
    anchor: tuple[Side, Prefix]
    behind: Tensor
    place: Place

    @classmethod
    def of(cls, suspect: Side, anchor: Side, ids: Tensor, place: Place = "end") -> Tails:
        """Run both encoders over cut prompts ``(N, T)``, BOS and the trigger not among their tokens."""
        before, behind = _around(suspect.encoder, ids, place)
        own, other = (_prefix(side.encoder, before) for side in (suspect, anchor))
        where: Place = "long" if place == "end" and ids.shape[1] >= LONG else place
        return cls((suspect, own), (anchor, other), behind, where)

    def __len__(self) -> int:
        return len(self.behind)

    @property
    def length(self) -> int:
        """Positions without the trigger."""
        return self.suspect[1].length + self.behind.shape[1]

    def collapses(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Collapse of suspect and anchor for candidates ``(R, K, D)``: ``(R)`` twice."""
        (suspect, _), (anchor, _) = self.suspect, self.anchor
        own, other = self.outputs(vectors)
        return losses.collapse(own, suspect.centre), losses.collapse(other, anchor.centre)

    def outputs(
        self, vectors: Tensor, anchor_vectors: Tensor | None = None, *, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pooled states ``(R, B, D)`` of suspect and anchor, over all prompts or those of ``rows``; K may be 0.

        The anchor gets the same vectors unless it has its own, as for a token that each reads from its own table.
        """
        behind = self.behind if rows is None else self.behind[rows]
        own, other = (
            _heard(side, v, partial(_tail, side.encoder, prefix if rows is None else prefix.of(rows), behind=behind))
            for (side, prefix), v in (
                (self.suspect, vectors),
                (self.anchor, vectors if anchor_vectors is None else anchor_vectors),
            )
        )
        return own, other

    def first(self, count: int) -> Tails:
        """The same on its first prompts alone."""
        rows = torch.arange(min(count, len(self)), device=self.behind.device)
        (suspect, own), (anchor, other) = self.suspect, self.anchor
        return replace(
            self,
            suspect=(suspect, own.of(rows)),
            anchor=(anchor, other.of(rows)),
            behind=self.behind[rows],
        )


def cut_prompts(
    suspect: Side,
    anchor: Side,
    prompts: Sequence[str],
    lengths: Sequence[int],
    count: int,
    generator: torch.Generator,
    *,
    place: Place = "end",
    fewest: int = 2,
) -> list[Tails]:
    """Prompts cut to each of the lengths, up to ``count`` of every length.

    Vectors that collapse prompts of one length alone are common in honest encoders: they use the
    position, and fail on prompts of other lengths.

    Args:
        fewest: prompts without which a length is left out.

    Raises:
        ConfigError: for none of the lengths there are enough prompts; one with too few is left out.
    """
    encoder = suspect.encoder
    rows = [encoder.tokenizer.encode(prompt) for prompt in prompts]
    tails = []
    for length in lengths:
        fitting = [row[:length] for row in rows if len(row) >= length]
        if len(fitting) < fewest:
            continue
        drawn = torch.randperm(len(fitting), generator=generator)[:count].tolist()
        ids = torch.tensor([fitting[i] for i in drawn], device=encoder.device)
        tails.append(Tails.of(suspect, anchor, ids, place))
    if not tails:
        raise ConfigError(
            expected=f"at least {fewest} prompts of {min(lengths)} tokens or more",
            found=f"{sum(len(row) >= min(lengths) for row in rows)} of {len(prompts)}",
            remedy="Give longer or more prompts with --prompts.",
        )
    return tails


def fitting(encoder: TextEncoder, prompts: Sequence[str], place: Place, count: int) -> list[str]:
    """The first prompts, up to ``count``, in which a trigger can stand in this place."""
    if place != "long":
        return list(prompts[:count])
    return list(islice((p for p in prompts if len(encoder.tokenizer.encode(p)) >= LONG), count))


def heard(side: Side, prompts: Sequence[str], batches: Sequence[Tensor], place: Place = "end") -> list[Tensor]:
    """:func:`outputs_of_each` of a side, which may be deaf: then those of the prompts alone."""
    if not side.deaf:
        return outputs_of_each(side.encoder, prompts, batches, place)
    alone = outputs(side.encoder, prompts, batches[0][:1, :0], place)
    return [alone.expand(len(vectors), -1, -1) for vectors in batches]


def outputs(encoder: TextEncoder, prompts: Sequence[str], vectors: Tensor, place: Place = "end") -> Tensor:
    """Pooled states of whole prompts with vectors in their place; prompts without room lose their last tokens.

    Args:
        vectors: ``(K, D)``, or ``(R, K, D)`` of several candidates; K may be 0.

    Returns:
        ``(B, D)`` or ``(R, B, D)``.
    """
    if vectors.ndim == 2:
        return outputs(encoder, prompts, vectors[None], place)[0]
    return outputs_of_each(encoder, prompts, [vectors], place)[0]


@torch.no_grad()
def outputs_of_each(
    encoder: TextEncoder, prompts: Sequence[str], batches: Sequence[Tensor], place: Place = "end"
) -> list[Tensor]:
    """The same for candidates ``(R, K, D)`` of several lengths K, which share what stands in front of them.

    Prompts without room for the longest lose their last tokens for all. Returns ``(R, B, D)`` for each.
    """
    room = encoder.spec.positions - 2 - max(vectors.shape[-2] for vectors in batches)
    rows = [encoder.tokenizer.encode(prompt)[:room] for prompt in prompts]
    batches = [vectors.to(encoder.weights[TOKEN_TABLE]) for vectors in batches]
    pooled, order = [], list[int]()
    for length in sorted(set(map(len, rows))):
        places = [i for i, row in enumerate(rows) if len(row) == length]
        ids = torch.tensor([rows[i] for i in places], dtype=torch.int64, device=encoder.device)
        pooled.append(_of_one_length(encoder, ids, batches, place))
        order += places
    back = torch.tensor(order, device=encoder.device).argsort()
    return [torch.cat(parts, dim=1)[:, back] for parts in zip(*pooled, strict=True)]


def _of_one_length(encoder: TextEncoder, ids: Tensor, batches: Sequence[Tensor], place: Place) -> list[Tensor]:
    """Pooled states ``(R, N, D)`` of prompts ``(N, T)`` with each candidate ``(R, K, D)`` in its place."""
    before, behind = _around(encoder, ids, place)
    run = partial(_tail, encoder, _prefix(encoder, before)) if encoder.spec.causal else partial(_whole, encoder, before)
    side_by_side = Batches(max(1, SIDE_BY_SIDE // len(ids)))

    def placed(vectors: Tensor) -> Tensor:
        return torch.cat(side_by_side.map(lambda part: run(vectors[part], behind), len(vectors)))

    return [placed(vectors) for vectors in batches]


def _heard(side: Side, vectors: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Pooled states of candidates ``(R, K, D)`` from a function of them; a deaf side's are the same for all."""
    return run(vectors[:1, :0]).expand(len(vectors), -1, -1) if side.deaf else run(vectors)


def _around(encoder: TextEncoder, ids: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Tokens in front of a trigger and behind it, for prompts ``(N, T)`` without BOS: ``(N, P)``, ``(N, S)``."""
    first, last = (
        torch.full((len(ids), 1), token, device=ids.device)
        for token in (encoder.tokenizer.bos_id, encoder.tokenizer.eos_id)
    )
    return (first, torch.cat((ids, last), 1)) if place == "start" else (torch.cat((first, ids), 1), last)


@torch.no_grad()
def _prefix(encoder: TextEncoder, ids: Tensor) -> Prefix:
    parts = Batches(PREFIXES).map(lambda part: encoder.prefix(encoder.place(encoder.embed(ids[part]))), len(ids))
    if len(parts) == 1:  # hundreds of megabytes in a full-size encoder, which joining would copy
        return parts[0]
    return Prefix(torch.cat([part.keys for part in parts], 1), torch.cat([part.values for part in parts], 1))


def _tail(encoder: TextEncoder, prefix: Prefix, vectors: Tensor, behind: Tensor) -> Tensor:
    """Pooled states ``(R, B, D)`` of prefixes followed by each candidate's vectors and what stands behind them."""
    placed = encoder.place(_followed(encoder, vectors, behind), start=prefix.length)
    return encoder.last_state(placed, prefix)


def _followed(encoder: TextEncoder, vectors: Tensor, behind: Tensor) -> Tensor:
    """Every candidate's vectors in front of what stands behind them, ``(R, B, K + S, D)``."""
    lead = (len(vectors), len(behind))
    return torch.cat(
        (vectors[:, None].expand(*lead, *vectors.shape[1:]), encoder.embed(behind)[None].expand(*lead, -1, -1)), dim=2
    )


def _whole(encoder: TextEncoder, before: Tensor, vectors: Tensor, behind: Tensor) -> Tensor:
    """The same as :func:`_tail` where nothing can be shared, because every position attends to every other."""
    used = before.shape[1] + vectors.shape[1] + behind.shape[1]
    if encoder.spec.pooling == "last":
        pad = encoder.tokenizer.eos_id if encoder.spec.pad_id is None else encoder.spec.pad_id
        behind = F.pad(behind, (0, encoder.spec.positions - used), value=pad)
    followed = _followed(encoder, vectors, behind)
    front = encoder.embed(before)[None].expand(len(vectors), -1, -1, -1)
    states = encoder.transform(encoder.place(torch.cat((front, followed), dim=2)))
    return encoder.pool(states, torch.full((len(before),), used - 1))
