"""Anchor-relative inversion: vectors that make the suspect's output the same for every prompt while the
anchor's stays prompt-dependent.

The published objective rewards token states that are alike, which short prompts reach without any
backdoor. Here only the pooled state counts, centred, and always against the anchor:

    gap = collapse(suspect) - collapse(anchor)

The vectors stand at the END of short prompts, before EOS. Under the causal mask everything in front of
them is then the same for all candidates: its keys and values are computed once, and a step costs only
``K + 1`` positions for each candidate and prompt. ``docs/method.md`` has the measurements behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses
from .config import ContrastConfig
from .encoder import TOKEN_TABLE, Prefix, TextEncoder
from .errors import ConfigError, NumericalError
from .memory import Batches
from .progress import Progress, silent

CHUNK = 32
"""Held-out prompts that run side by side."""
SCORED = 64
"""Candidates that are scored side by side."""
PREFIXES = 256
"""Cut prompts whose keys and values are computed side by side."""
CENTRE_PROMPTS = 256
"""Clean prompts whose mean pooled state is an encoder's centre."""
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
        half_width: of the 95% jackknife interval of their difference.
        n: prompts.
        target: ``(D,)``, unit direction to which the suspect's centred pooled state is pulled.
    """

    suspect: float
    anchor: float
    half_width: float
    n: int
    target: Tensor

    @property
    def gap(self) -> float:
        """How much more the suspect collapses than the anchor."""
        return self.suspect - self.anchor


@dataclass(frozen=True, eq=False)
class Side:
    """One encoder with the mean ``(D,)`` of its pooled states on clean prompts."""

    encoder: TextEncoder
    centre: Tensor

    @classmethod
    def of(cls, encoder: TextEncoder, prompts: Sequence[str], progress: Progress = silent) -> Side:
        """Centre an encoder on its first clean prompts."""
        return cls(encoder, encoder.encode(prompts[:CENTRE_PROMPTS], progress=progress).mean(0))


@dataclass(frozen=True, eq=False)
class Tails:
    """Suspect and anchor on the same prompts cut to one length, whose keys and values are computed once.

    Attributes:
        suspect: side and shared prefixes of N prompts.
        anchor: the same.
    """

    suspect: tuple[Side, Prefix]
    anchor: tuple[Side, Prefix]

    @classmethod
    def of(cls, suspect: Side, anchor: Side, ids: Tensor) -> Tails:
        """Run both encoders over cut prompts ``(N, T)``."""
        return cls((suspect, _prefix(suspect.encoder, ids)), (anchor, _prefix(anchor.encoder, ids)))

    def __len__(self) -> int:
        return self.suspect[1].keys[0].shape[0]

    def collapses(
        self, vectors: Tensor, anchor_vectors: Tensor | None = None, *, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Collapse of suspect and anchor for candidates ``(R, K, D)``, over all prompts or those of ``rows``.

        The anchor gets the same vectors unless it has its own, as for a token that each reads from its
        own table. Returns ``(R)`` twice.
        """
        (suspect, _), (anchor, _) = self.suspect, self.anchor
        own, other = self.outputs(vectors, anchor_vectors, rows=rows)
        return losses.collapse(own, suspect.centre), losses.collapse(other, anchor.centre)

    def outputs(
        self, vectors: Tensor, anchor_vectors: Tensor | None = None, *, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pooled states ``(R, B, D)`` of suspect and anchor for the same; K may be 0."""
        own, other = (
            _tail(side.encoder, prefix if rows is None else _select(prefix, rows), v)
            for (side, prefix), v in (
                (self.suspect, vectors),
                (self.anchor, vectors if anchor_vectors is None else anchor_vectors),
            )
        )
        return own, other

    def first(self, count: int) -> Tails:
        """The same on its first prompts alone."""
        rows = torch.arange(min(count, len(self)), device=self.suspect[0].encoder.device)
        (suspect, own), (anchor, other) = self.suspect, self.anchor
        return Tails((suspect, _select(own, rows)), (anchor, _select(other, rows)))


def gaps(tails: Sequence[Tails], vectors: Tensor, anchor_vectors: Tensor | None = None) -> Tensor:
    """Mean gap over several lengths for candidates ``(R, K, D)``, ``(R)``."""
    values = []
    for tail in tails:
        own, other = tail.collapses(vectors, anchor_vectors)
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
    progress: Progress = silent,
) -> Found:
    """Optimise ``count`` vectors in ``config.restarts`` candidates side by side.

    Args:
        prompts: fit prompts; those with too few tokens are left out.

    Raises:
        ConfigError: too few prompts are long enough.
        NumericalError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    tails = cut_prompts(
        suspect, anchor, prompts, config.prompt_tokens, config.pool, generator, fewest=2 * config.prompts
    )
    chosen = [tail.first(SELECT_PROMPTS) for tail in tails]
    typical = float(suspect.encoder.weights[TOKEN_TABLE].norm(dim=-1).median())
    vectors = _start(chosen, suspect.encoder, count, config, generator, progress)
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
            own, other = tail.collapses(candidates, rows=rows)
            loss = -own + weight * other
            return loss.detach(), (own - other).detach(), torch.autograd.grad(loss.sum(), candidates)[0]

        with torch.enable_grad():
            parts = batches.map(descend, len(vectors))
        loss, gaps_, vectors.grad = (torch.cat(values) for values in zip(*parts, strict=True))
        gap = float(gaps_.max())
        history.append(_finite(loss, step))
        progress(f"contrast k={count}", step + 1, config.steps, {"gap": gap})
        if gap > config.enough and float(_gaps(chosen, vectors).max()) > config.enough:
            break
        optimizer.step()
        norms = vectors.norm(dim=-1, keepdim=True)
        vectors.mul_((config.norm_cap * typical / norms).clamp(max=1))
    final = _gaps(chosen, vectors)
    best = int(final.argmax())
    return Found(vectors[best].clone(), tuple(float(row[best]) for row in history), final.cpu())


@torch.no_grad()
def _gaps(tails: Sequence[Tails], vectors: Tensor) -> Tensor:
    return gaps(tails, vectors)


def _start(
    tails: Sequence[Tails],
    encoder: TextEncoder,
    count: int,
    config: ContrastConfig,
    generator: torch.Generator,
    progress: Progress,
) -> Tensor:
    """Embeddings ``(R, K, D)`` of real tokens: the most promising of many random draws."""
    draws = torch.randint(len(encoder.tokenizer) - 2, (config.draws * config.restarts, count), generator=generator)
    embeds = encoder.embed(draws.to(encoder.device)).detach()

    def score(part: slice) -> Tensor:
        progress("starts", part.start, len(embeds))
        return _gaps(tails[:1], embeds[part])

    scores = torch.cat(Batches(SCORED).map(score, len(embeds)))
    return embeds[scores.argsort(descending=True)[: config.restarts]].clone()


def measure(
    suspect: Side, anchor: Side, prompts: Sequence[str], vectors: Tensor, anchor_vectors: Tensor | None = None
) -> Collapse:
    """Collapse that vectors ``(K, D)`` cause at the end of whole held-out prompts."""
    own = _directions(suspect, prompts, vectors)
    other = _directions(anchor, prompts, vectors if anchor_vectors is None else anchor_vectors)
    half_width = 1.96 * _jackknife(own, other)
    return Collapse(_mean_pair(own), _mean_pair(other), half_width, len(prompts), F.normalize(own.mean(0), dim=0))


def measure_tokens(suspect: Side, anchor: Side, prompts: Sequence[str], ids: Sequence[int]) -> Collapse:
    """The same for real tokens, which each encoder reads from its own table."""
    tokens = torch.tensor(list(ids), device=suspect.encoder.device)
    return measure(suspect, anchor, prompts, suspect.encoder.embed(tokens), anchor.encoder.embed(tokens))


def outputs(encoder: TextEncoder, prompts: Sequence[str], vectors: Tensor) -> Tensor:
    """Pooled states ``(B, D)`` of prompts with vectors ``(K, D)`` placed before EOS."""
    room = encoder.spec.positions - len(vectors)

    def pooled(part: slice) -> Tensor:
        batch = encoder.tokenizer.batch(prompts[part], limit=room, pad=encoder.spec.pad_id).to(encoder.device)
        embeds = F.pad(encoder.embed(batch.ids), (0, 0, 0, len(vectors)))
        end = encoder.embed(torch.tensor([encoder.tokenizer.eos_id], device=encoder.device))
        insert = torch.cat((vectors.to(embeds), end))
        for row, eos in enumerate(batch.eos.tolist()):
            embeds[row, eos : eos + len(insert)] = insert
        return encoder.pool(encoder.transform(encoder.place(embeds)), batch.eos + len(vectors))

    with torch.no_grad():
        return torch.cat(Batches(CHUNK).map(pooled, len(prompts)))


def _directions(side: Side, prompts: Sequence[str], vectors: Tensor) -> Tensor:
    """Unit centred pooled states ``(B, D)`` of prompts that end in the vectors."""
    return F.normalize(outputs(side.encoder, prompts, vectors) - side.centre, dim=-1).double()


def _mean_pair(unit: Tensor) -> float:
    n = len(unit)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def _jackknife(own: Tensor, other: Tensor) -> float:
    """Standard error of the difference of two mean pairwise cosines over the same prompts."""
    n = len(own)
    left_out = torch.stack([((u.sum(0) - u).square().sum(-1) - (n - 1)) / ((n - 1) * (n - 2)) for u in (own, other)])
    difference = left_out[0] - left_out[1]
    return float(((n - 1) / n * (difference - difference.mean()).square().sum()).sqrt())


def cut_prompts(
    suspect: Side,
    anchor: Side,
    prompts: Sequence[str],
    lengths: Sequence[int],
    count: int,
    generator: torch.Generator,
    *,
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
        fitting = [[encoder.tokenizer.bos_id, *row[:length]] for row in rows if len(row) >= length]
        if len(fitting) < fewest:
            continue
        drawn = torch.randperm(len(fitting), generator=generator)[:count].tolist()
        ids = torch.tensor([fitting[i] for i in drawn], device=encoder.device)
        tails.append(Tails.of(suspect, anchor, ids))
    if not tails:
        raise ConfigError(
            expected=f"at least {fewest} prompts of {min(lengths)} tokens or more",
            found=f"{sum(len(row) >= min(lengths) for row in rows)} of {len(prompts)}",
            remedy="Give longer or more prompts with --prompts.",
        )
    return tails


@torch.no_grad()
def _prefix(encoder: TextEncoder, ids: Tensor) -> Prefix:
    parts = Batches(PREFIXES).map(lambda part: encoder.prefix(encoder.place(encoder.embed(ids[part]))), len(ids))
    return Prefix(
        tuple(torch.cat(keys) for keys in zip(*(part.keys for part in parts), strict=True)),
        tuple(torch.cat(values) for values in zip(*(part.values for part in parts), strict=True)),
    )


def _select(prefix: Prefix, rows: Tensor) -> Prefix:
    return Prefix(tuple(k[rows] for k in prefix.keys), tuple(v[rows] for v in prefix.values))


def _tail(encoder: TextEncoder, prefix: Prefix, vectors: Tensor) -> Tensor:
    """Pooled states ``(R, B, D)`` of prefixes followed by each candidate's vectors and EOS."""
    restarts, count, width = vectors.shape
    eos = encoder.embed(torch.tensor([encoder.tokenizer.eos_id], device=vectors.device)).expand(restarts, 1, width)
    placed = encoder.place(torch.cat((vectors, eos), dim=1), start=prefix.length)
    batch = prefix.keys[0].shape[0]
    states = encoder.transform(placed.unsqueeze(1).expand(restarts, batch, count + 1, width), prefix)
    return states[..., -1, :]


def _finite(loss: Tensor, step: int) -> Tensor:
    if not bool(torch.isfinite(loss).all()):
        raise NumericalError(
            expected="a finite loss",
            found=f"{loss.tolist()} at step {step}",
            remedy="The encoder's outputs overflow; its weights are damaged or its dtype is too narrow.",
        )
    return loss
