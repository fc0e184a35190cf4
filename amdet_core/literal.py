"""The literal trigger: which text leads prompts to an output to which other stages found them to be led.

A search ends at one text; others are the tokens and texts that sweeps tried. They are compared on held-out prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import contrast, evidence, search
from .config import SearchConfig
from .contrast import Collapse
from .evidence import Interval, Tried
from .progress import Progress
from .records import Place
from .tails import Side

SAME = 0.05
"""Triggers whose gaps, or shares of prompts that they take over, differ by less do the same."""
Ids = tuple[int, ...]
"""Tokens of one text."""


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens that may be a trigger, and what they do to held-out prompts.

    Attributes:
        ids: the tokens.
        collapse: what they do across prompts.
        success: share of the prompts that they lead to the goal, with its 95% interval.
        found_by: how they were found, in words.
    """

    ids: Ids
    collapse: Collapse
    success: tuple[float, Interval]
    found_by: str


@dataclass(frozen=True, eq=False)
class Texts:
    """Where texts come from, and what they are measured on.

    Attributes:
        sides: suspect and anchor.
        fit: prompts on which a search is run.
        held_out: place and count -> prompts in which a trigger can stand there.
        leads: tokens from which a trigger may be made, the most promising first.
        tried: what sweeps tried.
        enough: gap of a text from which no other place is searched.
    """

    sides: tuple[Side, Side]
    fit: Sequence[str]
    held_out: Callable[[Place, int], Sequence[str]]
    leads: Sequence[int]
    tried: Sequence[Tried]
    settings: SearchConfig
    seed: int
    enough: float
    progress: Progress

    def towards(self, goal: Collapse) -> Text:
        """The text that leads to one output."""
        # Vectors at the end set off triggers whose text works at the start alone.
        places: tuple[Place, ...] = (goal.place, "start")
        found: list[Text] = []
        for place in dict.fromkeys(places):
            hit = search.search(
                *self.sides,
                self.fit,
                goal.target,
                self.leads,
                self.settings,
                seed=self.seed,
                starts=[tried.ids for tried in self.tried if len(tried.ids) > 1],
                place=place,
                progress=self.progress,
            )
            found.append(self._best(hit.ids, goal, place))
            if found[-1].collapse.gap >= self.enough:
                break
        return max(found, key=_gap)

    def _best(self, found: Ids, goal: Collapse, place: Place) -> Text:
        """What a search found, as tokens or as its text is read, or the best that was tried, on held-out prompts.

        Of those that lead about as many of them to the goal and make them about as much alike, one that can be written
        as text is preferred, and a short one.
        """
        tokenizer, prompts = self.sides[0].encoder.tokenizer, self.held_out(place, goal.n)
        options = {found: "the text at which a search from the recovered feature ends"}
        options.setdefault(tuple(tokenizer.encode(tokenizer.text(found))), options[found])
        for lead in (max(self.tried, key=key) for key in (_gap, _departure) if self.tried):
            options[lead.ids] = "what takes prompts over when all tokens, and texts of those that moved, are tried"
        able = [
            Text(
                ids,
                contrast.measure_tokens(*self.sides, prompts, ids, place),
                evidence.success(self.sides[0], prompts, ids, goal.target, place),
                found_by,
            )
            for ids, found_by in options.items()
            if ids
        ]
        for score in (_rate, _gap):
            least = max(map(score, able)) - SAME
            able = [text for text in able if score(text) >= least]
        return min(able, key=lambda text: (tokenizer.encode(tokenizer.text(text.ids)) != list(text.ids), len(text.ids)))


def _rate(text: Text) -> float:
    return text.success[0]


def _gap(one: Text | Tried) -> float:
    return one.collapse.gap


def _departure(tried: Tried) -> float:
    return tried.departure
