"""Every token, and every look-alike or invisible character, tried as a trigger against the anchor.

A candidate stands in front of EOS in cut prompts, so that what comes before it is computed once. It is
scored by two things that a benign fine-tune does not do to one token alone:

    gap        how much more the suspect's outputs agree across prompts than the anchor's: a takeover
    departure  how far the suspect's outputs leave the anchor's, beyond how far they do without the
               candidate: a token that reads as something else

A cascade keeps it cheap. The first look takes very few prompts and departure alone: what takes over
outputs departs as well, unless the prompt itself says what the attacker wants. Later looks take the best
of the look before and more prompts. As the space is tried out, a sweep also says what it excludes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import contrast
from .config import SweepConfig
from .confusables import invisible, lookalikes
from .contrast import Side, Tails
from .encoder import TextEncoder
from .memory import Batches
from .progress import Progress, silent
from .tokenizer import ClipTokenizer

SIDE_BY_SIDE = 2048
"""Candidates that are tried at once."""
LONGEST = 4
"""Most tokens of one character."""
HALF_NORMAL = 1.4826
"""Median absolute deviation to standard deviation, of normal values."""

Ids = tuple[int, ...]
"""Tokens of one candidate."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What candidates do to cut prompts; each ``(N,)``.

    Attributes:
        gap: mean pairwise centred cosine across prompts, suspect minus anchor, -2 to 2; NaN for one prompt.
        departure: mean of one minus the centred cosine of the suspect's and the anchor's output, minus
            the same without the candidate; -2 to 2.
    """

    gap: Tensor
    departure: Tensor


@dataclass(frozen=True, eq=False)
class Swept:
    """The outcome of a sweep.

    Attributes:
        leads: the survivors of the last look, the one that departs most first.
        scores: theirs, on the prompts of the last look.
        sigmas: robust z-scores of their departures in the first look among all candidates, ``(N,)``.
        tried: candidates of the first look.
        excluded_below: departure in the first look below which candidates were left behind.
        prompts: of each look.
    """

    leads: tuple[Ids, ...]
    scores: Scores
    sigmas: Tensor
    tried: int
    excluded_below: float
    prompts: tuple[int, ...]


def single_tokens(encoder: TextEncoder) -> tuple[Ids, ...]:
    """Every token that a prompt can hold."""
    tokenizer = encoder.tokenizer
    return tuple((i,) for i in range(len(tokenizer)) if i not in (tokenizer.bos_id, tokenizer.eos_id))


def characters(tokenizer: ClipTokenizer) -> tuple[Ids, ...]:
    """Look-alike and invisible characters of several tokens, as they read inside a word and as one."""
    texts = [c for others in lookalikes().values() for c in others] + list(invisible())
    words = (tuple(tokenizer.encode(text)) for text in texts)
    inside = (tuple(tokenizer.encode(f"{text}a")[:-1]) for text in texts)
    return tuple(dict.fromkeys(ids for ids in (*words, *inside) if 1 < len(ids) <= LONGEST))


def sweep(
    suspect: Side,
    anchor: Side,
    prompts: Sequence[str],
    candidates: Sequence[Ids],
    config: SweepConfig,
    *,
    seed: int,
    progress: Progress = silent,
) -> Swept:
    """Try all candidates and keep those that stand out.

    Args:
        prompts: from which prompts are cut.
        candidates: token ids of each.

    Raises:
        ConfigError: too few prompts are long enough.
    """
    generator = torch.Generator().manual_seed(seed)
    each = -(-max(config.prompts) // len(config.prompt_tokens))
    tails = contrast.cut_prompts(suspect, anchor, prompts, config.prompt_tokens, each, generator)
    looks = [_spread(tails, count) for count in config.prompts]
    kept = torch.arange(len(candidates))
    first = scores = _score(looks[0], candidates, "sweep", progress)
    bound = -torch.inf
    for number, (look, count) in enumerate(zip(looks[1:], config.kept, strict=True), start=2):
        best = scores.departure.argsort(descending=True)
        if number == 2 and len(best) > count:
            bound = float(scores.departure[best[count]])
        kept = kept[best[:count]]
        scores = _score(look, [candidates[i] for i in kept.tolist()], f"sweep, look {number}", progress)
    order = scores.departure.argsort(descending=True)
    return Swept(
        leads=tuple(candidates[i] for i in kept[order].tolist()),
        scores=Scores(scores.gap[order], scores.departure[order]),
        sigmas=robust_sigmas(first.departure)[kept[order]],
        tried=len(candidates),
        excluded_below=bound,
        prompts=tuple(sum(map(len, look)) for look in looks),
    )


def robust_sigmas(values: Tensor) -> Tensor:
    """How many robust standard deviations each of ``(N,)`` lies above the median."""
    off = values - values.median()
    return off / (HALF_NORMAL * off.abs().median()).clamp(min=1e-6)


def departures(suspect: Side, anchor: Side, prompts: Sequence[str], candidates: Sequence[Ids]) -> list[Tensor]:
    """How far each candidate at the end of whole prompts makes the suspect leave the anchor, by prompt, ``(B,)``.

    What the two differ by without it is taken off.
    """
    without = _apart(suspect, anchor, prompts, ())
    return [_apart(suspect, anchor, prompts, ids) - without for ids in candidates]


def _apart(suspect: Side, anchor: Side, prompts: Sequence[str], ids: Sequence[int]) -> Tensor:
    tokens = torch.tensor(list(ids), dtype=torch.int64, device=suspect.encoder.device)
    own, other = (
        _unit(contrast.outputs(side.encoder, prompts, side.encoder.embed(tokens)), side) for side in (suspect, anchor)
    )
    return _departures(own, other)


def _spread(tails: Sequence[Tails], count: int) -> list[Tails]:
    """So many prompts, of as many different lengths as there are."""
    each, more = divmod(count, len(tails))
    shares = [each + (i < more) for i in range(len(tails))]
    return [tail.first(share) for tail, share in zip(tails, shares, strict=True) if share]


@torch.no_grad()
def _score(tails: Sequence[Tails], candidates: Sequence[Ids], stage: str, progress: Progress) -> Scores:
    """Scores over all prompts of all lengths; candidates of one length run side by side."""
    sides = tails[0].suspect[0], tails[0].anchor[0]
    device = sides[0].encoder.device
    without = _departures(*_outputs(tails, torch.empty((1, 0), dtype=torch.int64, device=device), sides))
    gap, departure = torch.empty(len(candidates)), torch.empty(len(candidates))
    done = 0
    for length in sorted({len(ids) for ids in candidates}):
        places = torch.tensor([i for i, ids in enumerate(candidates) if len(ids) == length])
        ids = torch.tensor([candidates[i] for i in places.tolist()], device=device)

        def look(part: slice, ids: Tensor = ids, done: int = done) -> tuple[Tensor, Tensor]:
            own, other = _outputs(tails, ids[part], sides)
            progress(stage, done + part.start, len(candidates))
            return _agreement(own) - _agreement(other), (_departures(own, other) - without).mean(-1)

        parts = Batches(SIDE_BY_SIDE).map(look, len(ids))
        gap[places], departure[places] = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
        done += len(ids)
    return Scores(gap, departure)


def _outputs(tails: Sequence[Tails], ids: Tensor, sides: tuple[Side, Side]) -> tuple[Tensor, Tensor]:
    """Unit centred outputs ``(R, B, D)`` of suspect and anchor for candidates ``(R, K)``."""
    embeds = [side.encoder.embed(ids) for side in sides]
    outputs = [tail.outputs(*embeds) for tail in tails]
    own, other = (torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True))
    return _unit(own, sides[0]), _unit(other, sides[1])


def _unit(pooled: Tensor, side: Side) -> Tensor:
    return F.normalize(pooled - side.centre, dim=-1)


def _agreement(unit: Tensor) -> Tensor:
    """Mean pairwise cosine of ``(R, B, D)``, ``(R)``; NaN where B is 1."""
    count = unit.shape[1]
    return (unit.sum(1).square().sum(-1) - count) / (count * (count - 1) or torch.nan)


def _departures(own: Tensor, other: Tensor) -> Tensor:
    """One minus the cosine of suspect and anchor, for unit states ``(*L, D)``: ``(*L)``."""
    return 1 - (own * other).sum(-1)
