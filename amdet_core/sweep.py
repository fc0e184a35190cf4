"""Every token and every look-alike or invisible character, tried as a trigger against the anchor.

A candidate stands in front of EOS in cut prompts, so that what comes before it is computed once. It is
scored by two things that a benign fine-tune does not do:

    gap        how much more the suspect's outputs agree across prompts than the anchor's: a takeover
    departure  how far the suspect's outputs leave the anchor's, beyond how far they do without it: a
               token that reads as something else

A cascade keeps it cheap: few prompts for all candidates, more for the best of them, whole held-out
prompts for the last. As the space of single tokens is tried out, it also says what is excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ContrastConfig, SweepConfig
from .confusables import invisible, lookalikes
from .contrast import Side, Tails, cut_prompts
from .encoder import TextEncoder
from .memory import Batches
from .progress import Progress, silent
from .tokenizer import ClipTokenizer

SIDE_BY_SIDE = 2048
"""Candidates that are tried at once."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What candidates do to cut prompts; each ``(N)``.

    Attributes:
        gap: mean pairwise centred cosine across prompts, suspect minus anchor; -2 to 2.
        departure: mean of one minus the centred cosine of the suspect's and the anchor's output, minus
            the same without the candidate; -2 to 2.
    """

    gap: Tensor
    departure: Tensor

    def at(self, index: Tensor) -> Scores:
        """Those of some candidates."""
        return Scores(self.gap[index], self.departure[index])


@dataclass(frozen=True, eq=False)
class Swept:
    """The outcome of a sweep.

    Attributes:
        candidates: token ids of everything that was tried, in the order of the first look's scores.
        first: scores of all candidates on the few prompts of the first look.
        leads: indices into ``candidates`` of the last survivors, best gap first, then best departure.
        last: scores of the survivors on the prompts of the last look.
        prompts: of the first and of the last look.
    """

    candidates: tuple[tuple[int, ...], ...]
    first: Scores
    leads: tuple[int, ...]
    last: Scores
    prompts: tuple[int, int]

    @property
    def outlier(self) -> Tensor:
        """Robust z-scores of the survivors' departures among all candidates' of the first look, ``(N)``."""
        middle = self.first.departure.median()
        spread = 1.4826 * (self.first.departure - middle).abs().median()
        return (self.last.departure - middle) / spread.clamp(min=1e-6)


def single_tokens(encoder: TextEncoder) -> tuple[tuple[int, ...], ...]:
    """Every token that a prompt can hold."""
    tokenizer = encoder.tokenizer
    return tuple((i,) for i in range(len(tokenizer)) if i not in (tokenizer.bos_id, tokenizer.eos_id))


def characters(tokenizer: ClipTokenizer) -> tuple[tuple[int, ...], ...]:
    """Look-alike and invisible characters of several tokens, as they read inside a word and as one."""
    texts = [c for others in lookalikes().values() for c in others] + list(invisible())
    words = (tuple(tokenizer.encode(text)) for text in texts)
    inside = (tuple(tokenizer.encode(f"{text}a")[:-1]) for text in texts)
    return tuple(dict.fromkeys(ids for ids in (*words, *inside) if 1 < len(ids) <= 4))


def sweep(
    suspect: Side,
    anchor: Side,
    prompts: Sequence[str],
    candidates: Sequence[tuple[int, ...]],
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
    cutting = ContrastConfig(pool=config.prompts_last, prompts=2)
    tails = cut_prompts(suspect, anchor, prompts, cutting, generator)
    few = [tail.first(config.prompts_first) for tail in tails]
    first = _score(few, candidates, progress)
    kept = _best(first, config.kept_first)
    last = _score(tails, [candidates[i] for i in kept.tolist()], progress)
    best = _best(last, config.kept_last)
    return Swept(
        candidates=tuple(candidates),
        first=first,
        leads=tuple(kept[best].tolist()),
        last=last.at(best),
        prompts=(sum(map(len, few)), sum(map(len, tails))),
    )


def _best(scores: Scores, count: int) -> Tensor:
    """Indices of the best by gap, and of as many others by departure."""
    by_gap = scores.gap.argsort(descending=True)[:count]
    rest = scores.departure.clone()
    rest[by_gap] = -torch.inf
    more = min(count, len(rest) - len(by_gap))
    return torch.cat((by_gap, rest.argsort(descending=True)[:more]))


@torch.no_grad()
def _score(tails: Sequence[Tails], candidates: Sequence[tuple[int, ...]], progress: Progress) -> Scores:
    """Scores of candidates over all prompts of all lengths; those of one length run side by side."""
    sides = tails[0].suspect[0], tails[0].anchor[0]
    without = _departures(*_centred(tails, None, sides)).squeeze(0)
    gap, departure = torch.empty(len(candidates)), torch.empty(len(candidates))
    done = 0
    for length in sorted({len(ids) for ids in candidates}):
        places = torch.tensor([i for i, ids in enumerate(candidates) if len(ids) == length])
        ids = torch.tensor([candidates[i] for i in places.tolist()], device=sides[0].encoder.device)

        def look(part: slice, ids: Tensor = ids, done: int = done) -> tuple[Tensor, Tensor]:
            own, other = _centred(tails, ids[part], sides)
            progress("sweep", done + part.start, len(candidates))
            return _agreement(own) - _agreement(other), (_departures(own, other) - without).mean(-1)

        parts = Batches(SIDE_BY_SIDE).map(look, len(ids))
        gap[places] = torch.cat([part[0] for part in parts]).cpu()
        departure[places] = torch.cat([part[1] for part in parts]).cpu()
        done += len(ids)
    return Scores(gap, departure)


def _centred(tails: Sequence[Tails], ids: Tensor | None, sides: tuple[Side, Side]) -> tuple[Tensor, Tensor]:
    """Unit centred outputs ``(R, B, D)`` of suspect and anchor for candidates ``(R, K)``; of no candidate: R is 1."""
    if ids is None:
        ids = torch.empty((1, 0), dtype=torch.int64, device=sides[0].encoder.device)
    embeds = [side.encoder.embed(ids) for side in sides]
    outputs = [tail.outputs(*embeds) for tail in tails]
    own, other = (torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True))
    return F.normalize(own - sides[0].centre, dim=-1), F.normalize(other - sides[1].centre, dim=-1)


def _agreement(unit: Tensor) -> Tensor:
    """Mean pairwise cosine of ``(R, B, D)``, ``(R)``."""
    count = unit.shape[1]
    return (unit.sum(1).square().sum(-1) - count) / (count * (count - 1))


def _departures(own: Tensor, other: Tensor) -> Tensor:
    """One minus the cosine of suspect and anchor, ``(R, B)``."""
    return 1 - (own * other).sum(-1)
