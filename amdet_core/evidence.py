"""Measuring: small functions from an encoder, its anchor and prompts to records. No bounds, no verdicts."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import contrast, losses, patterns, sweep
from . import tails as carriers
from .contrast import Collapse
from .encoder import TOKEN_TABLE, TextEncoder, splice
from .memory import double
from .records import ALONE, RUNS, Evidence, Lead, Pattern, Patterns, Place, Sweep, Trigger
from .sweep import Swept
from .tails import Side
from .tokenizer import ClipTokenizer

Interval = tuple[float, float]
CHUNK = 32
"""Prompts that run side by side in full length."""

INDICATORS: Mapping[str, tuple[str, Literal["higher", "lower"]]] = {
    "running_loss": ("loss", "lower"),
    "assimilation": ("cosine", "higher"),
    "assimilation_share": ("share of prompts", "higher"),
    "same_target_share": ("share of prompts", "higher"),
    "deviation": ("cosine", "lower"),
    "deviation_share": ("share of prompts", "higher"),
    "anchor_cosine": ("cosine", "lower"),
    "anchor_deviation_share": ("share of prompts", "higher"),
    "positive_share": ("share of eigenvalues", "higher"),
}
"""Unit and direction of what the published inversion measures."""


def identity(matches: bool, encoder: str, tensors: int) -> Evidence:
    """Whether all weights that prompts reach equal those of a trusted encoder."""
    return Evidence(
        name="identical_to_trusted",
        value=float(matches),
        unit="tensors",
        direction="none",
        n=tensors,
        encoder=encoder,
    )


def published(indicators: Mapping[str, float], n: int, encoder: str) -> list[Evidence]:
    """The indicators of the published inversion as evidence."""
    return [
        Evidence(name=name, value=indicators[name], unit=unit, direction=direction, n=n, encoder=encoder)
        for name, (unit, direction) in INDICATORS.items()
        if name in indicators
    ]


def alone(measured: Evidence) -> Evidence:
    """The same under the name that it has where there was no anchor: it means less, and has other bounds."""
    return measured.model_copy(update={"name": ALONE + measured.name})


def gap(name: str, collapse: Collapse, encoder: str) -> Evidence:
    """A collapse gap with its 95% jackknife interval."""
    low, high = collapse.gap - collapse.half_width, collapse.gap + collapse.half_width
    return Evidence(
        name=name,
        value=collapse.gap,
        unit="cosine",
        direction="higher",
        n=collapse.n,
        interval=(low, high),
        encoder=encoder,
    )


def spread(suspect: Side, anchor: Side, encoder: str) -> Evidence:
    """How far apart clean prompts are read, as a share of how far the anchor reads them apart.

    Gaps are measured around each encoder's own mean: one that reads every prompt as nearly the same shows here alone.
    """
    value, n = carriers.spread(suspect, anchor), len(suspect.clean)
    return Evidence(name="spread", value=value, unit="ratio", direction="lower", n=n, encoder=encoder)


def drift(suspect: Side, anchor: Side, encoder: str) -> Evidence:
    """How differently clean prompts are read: it tells which honest encoders a suspect can be compared with."""
    value = carriers.drift(suspect, anchor)
    return Evidence(
        name="drift", value=value, unit="1 - cosine", direction="none", n=len(suspect.clean), encoder=encoder
    )


def same_target(name: str, targets: Tensor, encoder: str) -> Evidence:
    """Mean cosine of the outputs to which independent runs ``(N, D)`` lead, pair by pair.

    A planted backdoor has one target, and every run finds it; in an honest encoder each run finds
    another weakness.
    """
    value = float(losses.mean_pair(targets))
    return Evidence(name=name, value=value, unit=RUNS, direction="higher", n=len(targets), encoder=encoder)


def nearest_tokens(encoder: TextEncoder, vectors: Tensor, count: int) -> Tensor:
    """Ids ``(K, count)`` of the real tokens with the highest cosine to each vector ``(K, D)``."""
    known = len(encoder.tokenizer)  # a table may have rows behind it, for added tokens without a text
    table = encoder.weights[TOKEN_TABLE][:known]
    # The products are divided, not the table: a normalised copy of it would be the largest tensor of a scan.
    scores: Tensor = F.normalize(vectors, dim=-1) @ table.T / table.norm(dim=-1).clamp(min=1e-12)
    scores[:, [encoder.tokenizer.bos_id, encoder.tokenizer.eos_id]] = -1
    return scores.topk(count, dim=-1).indices


@dataclass(frozen=True, eq=False)
class Tried:
    """A lead of a sweep, measured on whole held-out prompts.

    Attributes:
        ids: its tokens.
        collapse: what it does across prompts.
        departures: how far it makes the suspect leave the anchor, by prompt.
        sigma: robust z-score of its departure among all that were tried.
        declared: whether a token of it belongs to a phrase that the file says it was taught.
    """

    ids: tuple[int, ...]
    collapse: Collapse
    departures: Tensor
    sigma: float
    declared: bool

    @property
    def departure(self) -> float:
        """Mean over the prompts."""
        return float(self.departures.mean())


def tried(
    suspect: Side,
    anchor: Side,
    swept: Swept,
    held_out: Callable[[Place], Sequence[str]],
    count: int,
    taught: frozenset[str] = frozenset(),
) -> list[Tried]:
    """The leads that depart most and those with the largest gaps, up to ``count`` of each.

    Args:
        held_out: prompts in which a trigger can stand in a place.
        taught: spellings of tokens that the suspect's file says it was taught.
    """
    sides, tokenizer = (suspect, anchor), suspect.encoder.tokenizer
    by_departure = range(min(count, len(swept.leads)))
    by_gap = swept.scores.gap.argsort(descending=True)[:count].tolist()
    indices = list(dict.fromkeys([*by_departure, *by_gap]))
    measured: dict[int, tuple[Collapse, Tensor]] = {}
    for place in sorted({swept.places[i] for i in indices}):
        here = sorted((i for i in indices if swept.places[i] == place), key=lambda i: len(swept.leads[i]))
        alike = [list(group) for _, group in groupby(here, key=lambda i: len(swept.leads[i]))]
        lengths = [[swept.leads[i] for i in group] for group in alike]
        alone, *pairs = _both(sides, held_out(place), [[()], *lengths], place)
        without = sweep.departures(*alone)[0]
        for group, pair in zip(alike, pairs, strict=True):
            for i, own, other in zip(group, *pair, strict=True):
                measured[i] = Collapse.of(own, other, place), sweep.departures(own, other) - without
    return [
        Tried(
            swept.leads[i],
            *measured[i],
            float(swept.sigmas[i]),
            declared=not taught.isdisjoint(map(tokenizer.spelling, swept.leads[i])),
        )
        for i in indices
    ]


def _both(
    sides: tuple[Side, Side], prompts: Sequence[str], lengths: Sequence[Sequence[Sequence[int]]], place: Place
) -> list[tuple[Tensor, Tensor]]:
    """Unit centred outputs ``(R, B, D)`` of suspect and anchor for candidates of each of some lengths, 0 too."""
    ids = [torch.tensor(some, dtype=torch.int64, device=sides[0].encoder.device) for some in lengths]
    own, other = (contrast.directions(side, prompts, [side.encoder.embed(one) for one in ids], place) for side in sides)
    return list(zip(own, other, strict=True))


def of_leads(stage: str, leads: Sequence[Tried], encoder: str) -> list[Evidence]:
    """Largest gap and departure of what a stage tried.

    A token that the file declares is to read as something else: departures are of the others. A takeover
    counts whatever is declared.
    """
    most = max(_undeclared(leads), key=lambda lead: lead.departure)
    values = double(most.departures)
    middle, half_width = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5

    departure = Evidence(
        name=f"{stage}_departure",
        value=middle,
        unit="cosine",
        direction="higher",
        n=len(values),
        interval=(middle - half_width, middle + half_width),
        encoder=encoder,
    )
    return [gap(f"{stage}_gap", max((lead.collapse for lead in leads), key=lambda c: c.gap), encoder), departure]


def of_sweep(leads: Sequence[Tried], encoder: str) -> list[Evidence]:
    """The same for single tokens, and the largest z-score: among so many, one stands out or none does."""
    sigma = max(lead.sigma for lead in _undeclared(leads))
    n = leads[0].collapse.n
    most = Evidence(name="sweep_sigma", value=sigma, unit="robust sigma", direction="higher", n=n, encoder=encoder)
    return [*of_leads("sweep", leads, encoder), most]


def _undeclared(leads: Sequence[Tried]) -> Sequence[Tried]:
    return [lead for lead in leads if not lead.declared] or leads


def sweep_record(swept: Swept, leads: Sequence[Tried], tokenizer: ClipTokenizer, encoder: str) -> Sweep:
    """A sweep as a record that a person can read, the lead that departs most first."""
    ordered = sorted(leads, key=lambda lead: -lead.departure)
    return Sweep(
        encoder=encoder,
        tried=swept.tried,
        prompts=swept.prompts,
        excluded_below=swept.excluded_below,
        leads=tuple(
            Lead(
                text=tokenizer.text(lead.ids),
                tokens=tuple(tokenizer.token(i) for i in lead.ids),
                token_ids=lead.ids,
                place=lead.collapse.place,
                gap=lead.collapse.gap,
                departure=lead.departure,
                sigma=lead.sigma,
                declared=lead.declared,
            )
            for lead in ordered
        ),
        n=leads[0].collapse.n,
    )


def of_patterns(tried: Sequence[patterns.Tried], encoder: str) -> list[Evidence]:
    """Largest gap and departure of grammatical patterns."""
    most = max(tried, key=lambda pattern: pattern.collapse.gap).collapse
    departure = Evidence(
        name="pattern_departure",
        value=max(pattern.departure for pattern in tried),
        unit="cosine",
        direction="higher",
        n=most.n,
        encoder=encoder,
    )
    return [gap("pattern_gap", most, encoder), departure]


def pattern_record(tried: Sequence[patterns.Tried], encoder: str) -> Patterns:
    """Those that did most, as a record that a person can read."""
    most = tuple(
        Pattern(tags=one.tags, example=one.example, gap=one.collapse.gap, departure=one.departure) for one in tried
    )
    return Patterns(encoder=encoder, tried=len(patterns.PATTERNS), most=most, n=tried[0].collapse.n)


def success(
    suspect: Side, held_out: Sequence[str], ids: Sequence[int], goal: Tensor, place: Place = "end"
) -> tuple[float, Interval]:
    """Share of held-out prompts that tokens in their place lead to a goal, and its 95% interval (Wilson's).

    Args:
        goal: ``(D,)`` unit direction of centred pooled states.

    References:
        Wilson, Journal of the American Statistical Association 22, 1927, 209-212.
    """
    encoder = suspect.encoder
    tokens = torch.tensor(list(ids), dtype=torch.int64, device=encoder.device)
    own, triggered = (
        carriers.outputs(encoder, held_out, encoder.embed(tokens[:count]), place) for count in (0, len(tokens))
    )
    centre = suspect.centre
    count = int(losses.taken_over(triggered, own, centre + goal.to(centre), centre).sum())
    n, z = len(held_out), 1.96
    middle, half = count + z * z / 2, z * math.sqrt(count * (n - count) / n + z * z / 4)
    return count / n, ((middle - half) / (n + z * z), (middle + half) / (n + z * z))


def literal_success(success: tuple[float, Interval], n: int, encoder: str) -> Evidence:
    """Share of prompts that the text with the largest gap leads to one output."""
    share, interval = success
    return Evidence(
        name="literal_success",
        value=share,
        unit="share of prompts",
        direction="higher",
        n=n,
        interval=interval,
        encoder=encoder,
    )


def trigger(
    tokenizer: ClipTokenizer,
    ids: Sequence[int],
    collapse: Collapse,
    found_by: str,
    encoder: str,
    success: tuple[float, Interval] | None = None,
) -> Trigger:
    """A literal trigger as a record that a person can read."""
    text = tokenizer.text(ids)
    names = [f"U+{ord(c):04X} {unicodedata.name(c, 'UNNAMED')}" for c in dict.fromkeys(text) if ord(c) > 126]
    return Trigger(
        text=text,
        code_points=tuple(names),
        tokens=tuple(tokenizer.token(i) for i in ids),
        token_ids=tuple(ids),
        found_by=found_by,
        encoder=encoder,
        place=collapse.place,
        collapse=collapse.gap,
        n=collapse.n,
        asr=success and success[0],
        asr_interval=success and success[1],
    )


@torch.no_grad()
def fidelity(
    encoder: TextEncoder,
    prompts: Sequence[str],
    place: Callable[[str], str],
    vectors: Tensor,
    insert_at: int | None,
    at: Place = "end",
) -> float:
    """Similarity of outputs with the recovered feature and with the true trigger (eq. 29), -1 to 1.

    Args:
        place: puts the known trigger into a prompt.
        vectors: ``(K, D)`` token embeddings.
        insert_at: they stand behind so many positions, as published; where ``at`` says where None.
    """
    if insert_at is None:
        true = encoder.encode([place(prompt) for prompt in prompts])
        return float(F.cosine_similarity(carriers.outputs(encoder, prompts, vectors, at), true, dim=-1).mean())
    placed, values = encoder.place(vectors, start=insert_at)[None], []
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        hidden = encoder.place(encoder.embed(encoder.tokens(chunk, pad_to_context=True).ids))
        true = encoder.states(encoder.tokens([place(prompt) for prompt in chunk], pad_to_context=True))
        values.append(losses.agreement(encoder.transform(splice(hidden, placed, insert_at))[0], true))
    return float(torch.cat(values).mean())
