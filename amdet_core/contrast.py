"""Anchor-relative inversion: vectors that make the suspect's output the same for every prompt while the
anchor's stays prompt-dependent.

The published objective rewards token states that are alike, which short prompts reach without any
backdoor. Here only the pooled state counts, centred, and always against the anchor:

    gap = collapse(suspect) - collapse(anchor)

The vectors stand at the end of prompts, before EOS, where a step costs only ``K + 1`` positions for each candidate
and prompt (see :mod:`.tails`). They find triggers whose text works elsewhere alone, too: a vector is freer than a
text. ``docs/method.md`` has the measurements behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from . import tails as carriers
from .config import ContrastConfig
from .encoder import TOKEN_TABLE, TextEncoder
from .errors import NumericalError
from .memory import Batches, double
from .progress import Progress, silent
from .records import Place
from .tails import Side, Tails

SCORED = 64
"""Candidates that are scored side by side."""
SELECT_PROMPTS = 12
"""Prompts of each length on which a run picks its best candidate."""


@dataclass(frozen=True, eq=False)
class Found:
    """Best vectors of one run.

    Attributes:
        vectors: ``(K, D)``, in the space of token embeddings, without positions.
        loss: loss of the best candidate by step.
        gaps: gap of every restart on prompts of the pool, ``(R,)``.
    """

    vectors: Tensor
    loss: tuple[float, ...]
    gaps: Tensor


@dataclass(frozen=True, eq=False)
class Collapse:
    """How far a trigger makes outputs the same, on held-out prompts.

    Attributes:
        suspect: collapse of the suspect's pooled states, -1 to 1.
        anchor: the same of the anchor's.
        half_width: of the 95% jackknife interval of the gap.
        n: prompts.
        target: ``(D,)``, unit direction to which the suspect's centred pooled state is pulled.
        place: where in the prompts the trigger stood.
    """

    suspect: float
    anchor: float
    half_width: float
    n: int
    target: Tensor
    place: Place

    @classmethod
    def of(cls, own: Tensor, other: Tensor, place: Place) -> Collapse:
        """From unit centred pooled states ``(B, D)`` of suspect and anchor."""
        own, other = double(own), double(other)
        half_width = 1.96 * _jackknife(own, other)
        suspect, anchor = (float(losses.mean_pair(unit)) for unit in (own, other))
        return cls(suspect, anchor, half_width, len(own), F.normalize(own.mean(0), dim=0), place)

    @property
    def gap(self) -> float:
        """How much more the suspect collapses than the anchor, of what the anchor leaves: see :func:`.losses.lost`."""
        return float(losses.lost(*torch.tensor([self.suspect, self.anchor], dtype=torch.float64)))


def gaps(tails: Sequence[Tails], vectors: Tensor) -> Tensor:
    """Mean gap over several lengths for candidates ``(R, K, D)``, ``(R)``."""
    values = []
    for tail in tails:
        own, other = tail.collapses(vectors)
        values.append(own - other)
    return torch.stack(values).mean(0)


def invert(
    suspect: Side,
    anchor: Side,
    prompts: Sequence[str],
    count: int,
    config: ContrastConfig,
    *,
    seed: int,
    away: Sequence[Tensor] = (),
    progress: Progress = silent,
) -> Found:
    """Optimise ``count`` vectors in ``config.restarts`` candidates side by side.

    Args:
        prompts: fit prompts; those with too few tokens are left out.
        away: unit directions ``(D,)`` of outputs that were found before and shall not be found again.

    Raises:
        ConfigError: too few prompts are long enough.
        NumericalError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    tails = carriers.cut_prompts(
        suspect, anchor, prompts, config.prompt_tokens, config.pool, generator, fewest=2 * config.prompts
    )
    chosen = [tail.first(SELECT_PROMPTS) for tail in tails]
    typical = float(suspect.encoder.weights[TOKEN_TABLE].norm(dim=-1).median())
    vectors = _start(chosen, suspect.encoder, count, config, away, generator, progress)
    rate = config.learning_rate * typical / math.sqrt(suspect.encoder.spec.width)
    optimizer = torch.optim.Adam([vectors], lr=rate)
    weight = config.anchor_weight if count == 1 else config.anchor_weight_long
    batches = Batches(config.restarts)
    history: list[Tensor] = []
    for step in range(config.steps):
        tail = tails[step % len(tails)]
        rows = torch.randperm(len(tail), generator=generator)[: config.prompts].to(vectors.device)

        def descend(part: slice, tail: Tails = tail, rows: Tensor = rows) -> tuple[Tensor, Tensor, Tensor]:
            candidates = vectors[part].clone().requires_grad_()
            own, other, near = _pulled(tail, candidates, away, rows)
            loss = -own + weight * other + config.repulsion * near
            return loss.detach(), (own - other).detach(), torch.autograd.grad(loss.sum(), candidates)[0]

        with torch.enable_grad():
            parts = batches.map(descend, len(vectors))
        loss, gaps_, vectors.grad = (torch.cat(values) for values in zip(*parts, strict=True))
        gap = float(gaps_.max())
        history.append(_finite(loss, step))
        progress(f"contrast k={count}", step + 1, config.steps, {"gap": gap})
        if gap > config.enough and float(_gaps(chosen, vectors, away).max()) > config.enough:
            break
        optimizer.step()
        norms = vectors.norm(dim=-1, keepdim=True)
        vectors.mul_((config.norm_cap * typical / norms).clamp(max=1))
    final = _gaps(chosen, vectors, away)
    best = int(final.argmax())
    return Found(vectors[best].clone(), tuple(float(row[best]) for row in history), final.cpu())


@torch.no_grad()
def _gaps(tails: Sequence[Tails], vectors: Tensor, away: Sequence[Tensor]) -> Tensor:
    """Mean gaps of candidates, less for those that lead where earlier ones led."""
    pulled = [_pulled(tail, vectors, away) for tail in tails]
    return torch.stack([own - other - near for own, other, near in pulled]).mean(0)


def _pulled(
    tail: Tails, vectors: Tensor, away: Sequence[Tensor], rows: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Collapse of suspect and anchor, and the largest positive cosine of the suspect's mean output to earlier ones.

    For candidates ``(R, K, D)``; ``(R)`` three times.
    """
    (suspect, _), (anchor, _) = tail.suspect, tail.anchor
    own, other = tail.outputs(vectors, rows=rows)
    collapses = losses.collapse(own, suspect.centre), losses.collapse(other, anchor.centre)
    if not away:
        return *collapses, torch.zeros_like(collapses[0])
    mean = F.normalize(F.normalize(own - suspect.centre, dim=-1).mean(-2), dim=-1)
    return *collapses, (mean @ torch.stack(list(away)).to(mean).T).amax(-1).relu()


def _start(
    tails: Sequence[Tails],
    encoder: TextEncoder,
    count: int,
    config: ContrastConfig,
    away: Sequence[Tensor],
    generator: torch.Generator,
    progress: Progress,
) -> Tensor:
    """Embeddings ``(R, K, D)`` of real tokens: the most promising of many random draws."""
    draws = torch.randint(len(encoder.tokenizer) - 2, (config.draws * config.restarts, count), generator=generator)
    embeds = encoder.embed(draws.to(encoder.device)).detach()

    def score(part: slice) -> Tensor:
        progress("starts", part.start, len(embeds))
        return _gaps(tails[:1], embeds[part], away)

    scores = torch.cat(Batches(SCORED).map(score, len(embeds)))
    return embeds[scores.argsort(descending=True)[: config.restarts]].clone()


def measure(
    suspect: Side,
    anchor: Side,
    prompts: Sequence[str],
    vectors: Tensor,
    anchor_vectors: Tensor | None = None,
    place: Place = "end",
) -> Collapse:
    """Collapse that vectors ``(K, D)`` cause in whole held-out prompts."""
    (own,) = directions(suspect, prompts, [vectors[None]], place)
    (other,) = directions(anchor, prompts, [(vectors if anchor_vectors is None else anchor_vectors)[None]], place)
    return Collapse.of(own[0], other[0], place)


def measure_tokens(
    suspect: Side, anchor: Side, prompts: Sequence[str], ids: Sequence[int], place: Place = "end"
) -> Collapse:
    """The same for real tokens, which each encoder reads from its own table."""
    tokens = torch.tensor(list(ids), device=suspect.encoder.device)
    return measure(suspect, anchor, prompts, suspect.encoder.embed(tokens), anchor.encoder.embed(tokens), place)


def directions(side: Side, prompts: Sequence[str], batches: Sequence[Tensor], place: Place = "end") -> list[Tensor]:
    """Unit centred pooled states ``(R, B, D)`` of whole prompts with candidates ``(R, K, D)`` of each batch in them."""
    return [F.normalize(pooled - side.centre, dim=-1) for pooled in carriers.heard(side, prompts, batches, place)]


def _jackknife(own: Tensor, other: Tensor) -> float:
    """Standard error of the gap of two mean pairwise cosines over the same prompts."""
    n = len(own)
    left_out = torch.stack([((u.sum(0) - u).square().sum(-1) - (n - 1)) / ((n - 1) * (n - 2)) for u in (own, other)])
    gaps = losses.lost(*left_out)
    return float(((n - 1) / n * (gaps - gaps.mean()).square().sum()).sqrt())


def _finite(loss: Tensor, step: int) -> Tensor:
    if not bool(torch.isfinite(loss).all()):
        raise NumericalError(
            expected="a finite loss",
            found=f"{loss.tolist()} at step {step}",
            remedy="The encoder's outputs overflow; its weights are damaged or its dtype is too narrow.",
        )
    return loss
