"""From leads to the literal trigger: the shortest text that does what a recovered feature does.

Tokens are added one by one to the best sequences so far (a beam), taken from the leads and from where the
gradient points; or a search begins with whole sequences that other stages found. Single tokens are then exchanged
for better ones (GCG) or moved elsewhere, and tokens that are not needed are dropped. A sequence is scored by how
near it brings the suspect's outputs to the goal, less what it does so in the anchor: words that merely describe the
goal move both. Sequences that no prompt can hold are left out. Every round looks at other prompts, so that a sequence
can't fit a few of them; scored by collapse alone, searches run past the trigger.

References:
    Zou et al., Universal and Transferable Adversarial Attacks on Aligned Language Models, 2023,
    https://arxiv.org/abs/2307.15043 (greedy coordinate gradient).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from . import tails as carriers
from .config import SearchConfig
from .encoder import TOKEN_TABLE
from .memory import Batches
from .progress import Progress, silent
from .records import Place
from .tails import LONG, Side, Tails

SIDE_BY_SIDE = 256
"""Sequences that are scored at once."""

Ids = tuple[int, ...]
"""Tokens of one sequence."""
Look = tuple[Tails, Tensor | None]
"""Prompts of one length, and which of them count; all where None."""


@dataclass(frozen=True, eq=False)
class Hit:
    """A sequence of tokens and its score.

    Attributes:
        ids: the tokens.
        score: mean cosine of the suspect's outputs to the goal, minus the anchor's where that is positive;
            -2 to 1.
    """

    ids: Ids
    score: float


def search(
    suspect: Side,
    anchor: Side,
    prompts: Sequence[str],
    goal: Tensor,
    leads: Sequence[int],
    config: SearchConfig,
    *,
    seed: int,
    starts: Sequence[Ids] = (),
    place: Place = "end",
    progress: Progress = silent,
) -> Hit:
    """The shortest sequence of tokens that leads the suspect, and not the anchor, to the goal.

    Args:
        prompts: from which prompts are cut.
        goal: ``(D,)`` unit direction of the suspect's centred pooled state, as :class:`.contrast.Collapse` has it.
        leads: tokens to begin with, the most promising first; one at least.
        starts: sequences to begin with as well.
        place: of the sequence in the prompts.

    Raises:
        ConfigError: too few prompts are long enough.
    """
    generator = torch.Generator().manual_seed(seed)
    long = tuple(length for length in config.prompt_tokens if length >= LONG) or (LONG,)
    lengths = {"end": config.prompt_tokens, "start": config.start_tokens, "long": long}[place]
    tails = carriers.cut_prompts(suspect, anchor, prompts, lengths, config.pool, generator, place=place)
    room = suspect.encoder.spec.positions - max(tail.length for tail in tails)
    chosen = tuple(leads)[: config.leads]
    hunt = _Hunt(suspect, anchor, tails, goal.to(suspect.centre), chosen, config, generator, progress)
    longest = min(config.longest, room)
    singles: list[Ids] = [(lead,) for lead in hunt.leads]
    grown = [hunt.grow(singles, longest)]
    if begun := [hunt.best_of(alike) for alike in _by_length(starts) if len(alike[0]) <= longest]:
        whole = max(begun, key=_score)
        part = hunt.best_of([hunt.shorten(whole, 0.0, hunt.draw(config.prompts)).ids])
        needed = max(whole, part, key=_score)
        if needed.score > hunt.best_of(singles).score:  # otherwise it is no better start than a single token
            grown.append(hunt.grow([needed.ids], longest))
    return hunt.shorten(hunt.exchange(max(grown, key=_score)), config.slack, hunt.all)


def _score(hit: Hit) -> float:
    return hit.score


def _by_length(sequences: Iterable[Ids]) -> list[list[Ids]]:
    return [list(alike) for _, alike in groupby(sorted(sequences, key=len), key=len)]


@dataclass(frozen=True, eq=False)
class _Hunt:
    """One search: what is scored against what."""

    suspect: Side
    anchor: Side
    tails: Sequence[Tails]
    goal: Tensor
    leads: Ids
    config: SearchConfig
    generator: torch.Generator
    progress: Progress

    def grow(self, sequences: Sequence[Ids], longest: int) -> Hit:
        """Add tokens to the best of some sequences of one length until that brings nothing more on all prompts."""
        beam = self._best(sequences)
        best = self.best_of(beam)
        for length in range(len(beam[0]) + 1, longest + 1):
            self.progress("trigger search", length - 2, longest, {"score": best.score})
            if best.score >= self.config.enough:
                break
            beam = self._best(self._longer(beam))
            longer = self.best_of(beam)
            if longer.score < best.score + self.config.gain:
                break
            best = longer
        return best

    def exchange(self, best: Hit) -> Hit:
        """Exchange single tokens for better ones, where the gradient points, or move them, while that helps."""
        for _ in range(self.config.exchanges):
            if best.score >= self.config.enough:
                break
            tried = [
                (*best.ids[:place], token, *best.ids[place + 1 :])
                for place, tokens in enumerate(self._pointed([best.ids])[0])
                for token in (*tokens, *self.leads)
            ]
            found = self.best_of(self._best(tried + _moved(best.ids)))
            if found.score < best.score + self.config.gain:
                break
            best = found
        return best

    def shorten(self, best: Hit, slack: float, looks: Sequence[Look]) -> Hit:
        """Drop tokens while the rest does as much on some prompts, but for a score that may be lost in all."""
        best, writable = self._scores([best.ids], looks)[0], self.suspect.encoder.tokenizer.writable
        least = best.score - slack
        while len(best.ids) > 1:
            shorter = self._scores((best.ids[:i] + best.ids[i + 1 :] for i in range(len(best.ids))), looks)[0]
            if shorter.score < least or (writable(best.ids) and not writable(shorter.ids)):
                break
            best = shorter
        return best

    def _longer(self, beam: Sequence[Ids]) -> list[Ids]:
        """Every sequence with one token more, at every place."""
        # A token in each gap, to see where the gradient points from there: the lead that is best by itself.
        gaps = [((*ids[:at], self.leads[0], *ids[at:]), at) for ids in beam for at in range(len(ids) + 1)]
        pointed = self._pointed([ids for ids, _ in gaps])
        return [
            (*ids[:at], token, *ids[at + 1 :])
            for (ids, at), options in zip(gaps, pointed, strict=True)
            for token in (*self.leads, *options[at])
        ]

    def _pointed(self, sequences: Sequence[Ids]) -> list[list[list[int]]]:
        """For each sequence of one length and each place the tokens to which the gradient points."""
        encoder = self.suspect.encoder
        table = encoder.weights[TOKEN_TABLE][: len(encoder.tokenizer)]
        ids, look = torch.tensor(sequences, device=table.device), self.draw(self.config.prompts)
        embeds = encoder.embed(ids)

        def slope(part: slice) -> Tensor:
            own = embeds[part].clone().requires_grad_()
            # The anchor reads the same tokens: what its table has otherwise is a constant.
            other = own + (self.anchor.encoder.embed(ids[part]) - embeds[part])
            with torch.enable_grad():
                score = self._agreement(own, other, look).sum()
            return torch.autograd.grad(score, own)[0]

        promise = torch.cat(Batches(SIDE_BY_SIDE // 4).map(slope, len(ids))) @ table.T
        promise[..., [encoder.tokenizer.bos_id, encoder.tokenizer.eos_id]] = -torch.inf
        options: list[list[list[int]]] = promise.topk(self.config.pointed, dim=-1).indices.tolist()
        return options

    def _best(self, sequences: Iterable[Ids]) -> list[Ids]:
        """The beam: the best of many on a few prompts of one length, and the best of those on more."""
        tail = self.tails[int(torch.randint(len(self.tails), (), generator=self.generator))]
        some = self._scores(sequences, [self._some(tail, self.config.glance)])[: self.config.refined]
        more = self._scores((hit.ids for hit in some), self.draw(self.config.prompts))
        return [hit.ids for hit in more[: self.config.beam]]

    def best_of(self, sequences: Iterable[Ids]) -> Hit:
        """The best of a few sequences on all prompts."""
        return self._scores(sequences, self.all)[0]

    @property
    def all(self) -> list[Look]:
        """All prompts of each length."""
        return [(tail, None) for tail in self.tails]

    def draw(self, count: int) -> list[Look]:
        """So many prompts of each length, drawn anew."""
        return [self._some(tail, count) for tail in self.tails]

    def _some(self, tail: Tails, count: int) -> Look:
        return tail, torch.randperm(len(tail), generator=self.generator)[:count].to(self.goal.device)

    @torch.no_grad()
    def _scores(self, sequences: Iterable[Ids], looks: Sequence[Look]) -> list[Hit]:
        """Sequences of one length with their scores, each once, the best first.

        Those that no prompt can hold are left out, unless there are no others.
        """
        distinct = list(dict.fromkeys(sequences))
        distinct = list(filter(self.suspect.encoder.tokenizer.writable, distinct)) or distinct
        ids = torch.tensor(distinct, device=self.goal.device)

        def look(part: slice) -> Tensor:
            own, other = (side.encoder.embed(ids[part]) for side in (self.suspect, self.anchor))
            return self._agreement(own, other, looks)

        scores = torch.cat(Batches(SIDE_BY_SIDE).map(look, len(ids))).tolist()
        return sorted((Hit(*pair) for pair in zip(distinct, scores, strict=True)), key=lambda hit: -hit.score)

    def _agreement(self, own: Tensor, other: Tensor, looks: Sequence[Look]) -> Tensor:
        """Scores ``(R,)`` for embeddings ``(R, K, D)`` in suspect and anchor."""
        values = []
        for tail, rows in looks:
            ours, theirs = (
                F.normalize(pooled - side.centre, dim=-1) @ self.goal
                for pooled, side in zip(tail.outputs(own, other, rows=rows), (self.suspect, self.anchor), strict=True)
            )
            values.append(ours - theirs.clamp(min=0))
        return torch.cat(values, dim=1).mean(1)


def _moved(ids: Ids) -> list[Ids]:
    """Every sequence that has one token elsewhere."""
    rest = [(token, ids[:i] + ids[i + 1 :]) for i, token in enumerate(ids)]
    moved = [(*others[:at], token, *others[at:]) for token, others in rest for at in range(len(ids))]
    return [sequence for sequence in dict.fromkeys(moved) if sequence != ids]
