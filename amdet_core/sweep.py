"""Every token, and every look-alike or invisible character, tried as a trigger against the anchor.

A candidate stands at the end of prompts that are cut to several lengths, and at the start of short ones: a
trigger may work in one place alone. It is scored by two things that a benign fine-tune does not do to one
token, in the place where it does them most:

    gap        how much more the suspect's outputs agree across prompts than the anchor's: a takeover
    departure  how far the suspect's outputs leave the anchor's, beyond how far they do without the
               candidate: a token that reads as something else

A cascade keeps it cheap. The first look takes one long prompt and departure alone: what takes over
outputs departs as well, unless the prompt itself says what the attacker wants. Later looks take the best
of the look before and more prompts. As the space is tried out, a sweep also says what it excludes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from . import tails as carriers
from .config import MovedConfig, SweepConfig
from .confusables import invisible, lookalikes
from .encoder import TextEncoder
from .memory import Batches
from .progress import Progress, silent
from .records import Place
from .tails import Side, Tails
from .tokenizer import ClipTokenizer

SIDE_BY_SIDE = 2048
"""Candidates that are tried at once."""
LONGEST = 4
"""Most tokens of one character."""
ABOUT = 0.8
"""Share of the largest departure from which one is about as large."""
NEARLY = 0.95
"""Share of what a text does that a part of it has to do as well."""
HALF_NORMAL = 1.4826
"""Median absolute deviation to standard deviation, of normal values."""

Ids = tuple[int, ...]
"""Tokens of one candidate."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What candidates do to cut prompts of one length and place, or at most in any of them; each ``(N,)``.

    Attributes:
        gap: mean pairwise centred cosine across prompts, suspect minus anchor, -2 to 2; NaN for one prompt. It is not
            set against what the anchor leaves, as a gap on many prompts is: with few that magnifies noise.
        departure: mean of one minus the centred cosine of the suspect's and the anchor's output, minus
            the same without the candidate; -2 to 2.
    """

    gap: Tensor
    departure: Tensor

    def __getitem__(self, chosen: Tensor) -> Scores:
        return Scores(self.gap[chosen], self.departure[chosen])

    @property
    def does(self) -> Tensor:
        """Gap and departure together ``(N,)``; the departure alone for one prompt."""
        return self.gap.nan_to_num(0) + self.departure

    def most(self) -> Scores:
        """The largest ``(N,)`` of scores ``(C, N)`` of several lengths and places."""
        return Scores(reduce(torch.fmax, self.gap), self.departure.amax(0))


@dataclass(frozen=True, eq=False)
class Swept:
    """The outcome of a sweep.

    Attributes:
        leads: the survivors of the last look, the one that departs most first.
        scores: theirs, on the prompts of the last look.
        places: where each of them departs most; the end of any prompt where it departs about as much there.
        sigmas: robust z-scores of their departures in the first look among all candidates, ``(N,)``.
        tried: candidates of the first look.
        excluded_below: departure in the first look below which candidates were left behind.
        prompts: of each look.
    """

    leads: tuple[Ids, ...]
    scores: Scores
    places: tuple[Place, ...]
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


def texts(tokens: Sequence[int], config: MovedConfig, seed: int) -> tuple[Ids, ...]:
    """The first of some tokens together: for each length as they stand, and in other orders."""
    random, made = Random(seed), list[Ids]()
    for length in sorted({min(length, len(tokens)) for length in config.lengths}):
        made.append(tuple(tokens[:length]))
        made += (tuple(random.sample(made[-1], length)) for _ in range(config.orders - 1))
    return tuple(dict.fromkeys(made))


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
    tails = _cut(suspect, anchor, prompts, config, seed)
    looks = [_spread(tails, count) for count in config.prompts]
    kept = torch.arange(len(candidates))
    scored = _score(looks[0], candidates, "sweep", progress)
    first = scores = scored.most()
    bound = -torch.inf
    for number, (look, count) in enumerate(zip(looks[1:], config.kept, strict=True), start=2):
        best = scores.departure.argsort(descending=True)
        if number == 2 and len(best) > count:
            bound = float(scores.departure[best[count]])
        kept = kept[best[:count]]
        scored = _score(look, [candidates[i] for i in kept.tolist()], f"sweep, look {number}", progress)
        scores = scored.most()
    order = scores.departure.argsort(descending=True)
    places = _places(scored.departure, [tail.place for tail in looks[-1]])
    return Swept(
        leads=tuple(candidates[i] for i in kept[order].tolist()),
        scores=scores[order],
        places=tuple(places[i] for i in order.tolist()),
        sigmas=robust_sigmas(first.departure)[kept[order]],
        tried=len(candidates),
        excluded_below=bound,
        prompts=tuple(sum(map(len, look)) for look in looks),
    )


def shortened(
    suspect: Side, anchor: Side, prompts: Sequence[str], swept: Swept, config: SweepConfig, *, seed: int
) -> Swept:
    """The lead that does most, gap and departure together, without the tokens that it does not need.

    Texts of tokens that moved hold some that belong to no trigger. Those are dropped one by one, the one whose absence
    brings most first, while what is left does :data:`NEARLY` as much as the whole text; a text that a prompt can
    hold is not given up for one that none can.

    Args:
        prompts, config, seed: of the sweep that found it.

    Returns:
        That one text, and what it does on the prompts of the last look.
    """
    best = int(swept.scores.does.argmax())
    ids, writable = swept.leads[best], suspect.encoder.tokenizer.writable
    place = swept.places[best]
    every = _cut(suspect, anchor, prompts, config, seed)
    tails = [tail for tail in every if tail.place == place] or every
    scores = _score(tails, [ids], "shorten", silent).most()
    least = NEARLY * float(scores.does)
    while len(ids) > 1:
        rest = list(dict.fromkeys(ids[:i] + ids[i + 1 :] for i in range(len(ids))))
        rest = list(filter(writable, rest)) or ([] if writable(ids) else rest)
        found = _score(tails, rest, "shorten", silent).most() if rest else None
        if found is None or float(found.does.max()) < least:
            break
        chosen = found.does.argmax()[None]
        ids, scores = rest[int(chosen)], found[chosen]
    return replace(swept, leads=(ids,), scores=scores, places=(place,), sigmas=swept.sigmas[best : best + 1])


def _cut(suspect: Side, anchor: Side, prompts: Sequence[str], config: SweepConfig, seed: int) -> list[Tails]:
    """Prompts cut to each of the lengths and places."""
    generator = torch.Generator().manual_seed(seed)
    each = -(-max(config.prompts) // (len(config.prompt_tokens) + len(config.start_tokens)))
    tails = carriers.cut_prompts(suspect, anchor, prompts, config.prompt_tokens, each, generator)
    if config.start_tokens:
        tails += carriers.cut_prompts(suspect, anchor, prompts, config.start_tokens, each, generator, place="start")
    return tails


def robust_sigmas(values: Tensor) -> Tensor:
    """How many robust standard deviations each of ``(N,)`` lies above the median."""
    off = values - values.median()
    return off / (HALF_NORMAL * off.abs().median()).clamp(min=1e-6)


def departures(own: Tensor, other: Tensor) -> Tensor:
    """One minus the cosine of suspect and anchor, for unit centred states ``(*L, D)``: ``(*L)``."""
    return 1 - (own * other).sum(-1)


def _spread(tails: Sequence[Tails], count: int) -> list[Tails]:
    """So many prompts, of as many different lengths and places as there are."""
    each, more = divmod(count, len(tails))
    shares = [each + (i < more) for i in range(len(tails))]
    return [tail.first(share) for tail, share in zip(tails, shares, strict=True) if share]


def _places(departure: Tensor, places: Sequence[Place]) -> list[Place]:
    """See :attr:`Swept.places`, for departures ``(C, N)``."""
    plain = torch.tensor([place == "end" for place in places])
    preferred = departure / torch.where(plain, ABOUT, 1.0)[:, None]
    return [places[i] for i in preferred.argmax(0).tolist()]


@torch.no_grad()
def _score(tails: Sequence[Tails], candidates: Sequence[Ids], stage: str, progress: Progress) -> Scores:
    """Scores ``(C, N)`` on the prompts of each of C lengths and places; candidates of one length run side by side."""
    device = tails[0].behind.device
    nothing = torch.empty((1, 0), dtype=torch.int64, device=device)
    without = [departures(*_outputs(tail, nothing)) for tail in tails]
    gap, departure = torch.empty(2, len(tails), len(candidates))
    done = 0
    for length in sorted({len(ids) for ids in candidates}):
        places = torch.tensor([i for i, ids in enumerate(candidates) if len(ids) == length])
        ids = torch.tensor([candidates[i] for i in places.tolist()], device=device)

        def look(part: slice, ids: Tensor = ids, done: int = done) -> tuple[Tensor, Tensor]:
            progress(stage, done + part.start, len(candidates))
            pairs = [_outputs(tail, ids[part]) for tail in tails]
            gaps = [losses.mean_pair(own) - losses.mean_pair(other) for own, other in pairs]
            away = [(departures(*pair) - alone).mean(-1) for pair, alone in zip(pairs, without, strict=True)]
            return torch.stack(gaps), torch.stack(away)

        parts = Batches(SIDE_BY_SIDE).map(look, len(ids))
        gap[:, places], departure[:, places] = (torch.cat(values, 1).cpu() for values in zip(*parts, strict=True))
        done += len(ids)
    return Scores(gap, departure)


def _outputs(tails: Tails, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Unit centred outputs ``(R, B, D)`` of suspect and anchor for candidates ``(R, K)``."""
    (suspect, _), (anchor, _) = tails.suspect, tails.anchor
    own, other = tails.outputs(suspect.encoder.embed(ids), anchor.encoder.embed(ids))
    return _unit(own, suspect), _unit(other, anchor)


def _unit(pooled: Tensor, side: Side) -> Tensor:
    return F.normalize(pooled - side.centre, dim=-1)
