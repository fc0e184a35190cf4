"""The literal trigger: which text leads prompts to an output to which other stages found them to be led.

A search ends at one text; others are the tokens and texts that sweeps tried. They are compared on held-out prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from . import contrast, evidence, search
from .config import SearchConfig
from .contrast import Collapse
from .evidence import Interval, Tried
from .findings import different
from .progress import Progress
from .records import Place
from .tails import Side

FINALISTS = 4
"""Texts of which it is counted how many prompts they lead to the goal."""
AS_MANY = 0.1
"""Difference of two such shares that is within chance, for the 64 prompts of a scan."""
MOST = 0.5
"""Share of prompts that are most of them."""
SOME, NEARLY_ALL = 0.1, 0.9
"""Shares between which a text leads prompts to the goal, but may belong in another place; below is chance."""
OVERRIDES = 0.75
"""Gap from which a text overrides what prompts say; no text of an honest model of the committed scans reaches it."""
DOUBLING = 0.15
"""Gap that a text must bring for each doubling of its characters or tokens: any random one brings a little more."""
Ids = tuple[int, ...]
"""Tokens of one text."""


@dataclass(frozen=True, eq=False)
class Text:
    """Tokens that may be a trigger, and what they do to held-out prompts.

    Attributes:
        ids: the tokens.
        collapse: what they do across prompts.
        success: share of the prompts that they lead to the goal, with its 95% interval. Where they lead none there, but
            override prompts, to their own output: the goal was a vector's, which stands near what the text says.
        found_by: how they were found, in words.
        pieces: characters or tokens, as :data:`DOUBLING` counts them.
    """

    ids: Ids
    collapse: Collapse
    success: tuple[float, Interval]
    found_by: str
    pieces: int

    @property
    def worth(self) -> float:
        """How alike they make prompts, for their length."""
        return _worth(self.collapse.gap, self.pieces)


def distinct(texts: Sequence[Text]) -> list[Text]:
    """One for each output to which texts lead, the strongest first.

    It is the one of most worth that leads about as many prompts as any. Weaker outputs beside a backdoor's target send
    searches to texts that hold the trigger and more, and lead to that target as well.
    """
    kept, rest = list[Text](), list(texts)
    while rest:
        strongest = max(rest, key=lambda text: text.collapse.gap).collapse
        alike = [text for text in rest if not different(text.collapse, [strongest])]
        kept.append(max(_leading_most(alike), key=lambda text: text.worth))
        rest = [text for text in rest if text not in alike]
    return kept


@dataclass(frozen=True, eq=False)
class Texts:
    """Where texts come from, and what they are measured on.

    Attributes:
        sides: suspect and anchor.
        fit: prompts on which a search is run.
        held_out: place and count -> prompts in which a trigger can stand there.
        leads: tokens from which a trigger may be made, the most promising first.
        tried: what sweeps tried.
        enough: gap of a text from which no other place is searched, unless it leads some prompts and not others.
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
        # Vectors at the end set off triggers whose text works at the start alone, or better.
        places: tuple[Place, ...] = (goal.place, "start")
        starts, found = [tried.ids for tried in self.tried if len(tried.ids) > 1], list[Text]()
        for place in dict.fromkeys(places):
            hit = search.search(
                *self.sides,
                self.fit,
                goal.target,
                self.leads,
                self.settings,
                seed=self.seed,
                starts=starts,
                place=place,
                progress=self.progress,
            )
            found.append(self._best([hit.ids, *(text.ids for text in found)], goal, place))
            if found[-1].collapse.gap >= self.enough and not SOME <= found[-1].success[0] < NEARLY_ALL:
                break
            starts = [*starts, found[-1].ids]
        any_leads = max(text.success[0] for text in found) >= MOST
        best = max(_leading_most(found), key=lambda text: text.worth if any_leads else text.collapse.gap)
        if best.success[0] >= SOME or best.collapse.gap < OVERRIDES:
            return best
        return replace(best, success=self._success(best.ids, best.collapse.target, best.collapse.place, goal.n))

    def _success(self, ids: Ids, goal: Tensor, place: Place, count: int) -> tuple[float, Interval]:
        return evidence.success(self.sides[0], self.held_out(place, count), ids, goal, place)

    def _best(self, found: Sequence[Ids], goal: Collapse, place: Place) -> Text:
        """What searches found, as tokens or as its text is read, or a text that was tried, on held-out prompts.

        Of those that a prompt can hold and that lead about as many prompts to the goal, it is the one that makes them
        most alike there, for its length.
        """
        tokenizer, prompts = self.sides[0].encoder.tokenizer, self.held_out(place, goal.n)
        measured = {tried.ids: tried.collapse for tried in self.tried if tried.collapse.place == place}
        found_by = dict.fromkeys(measured, "one of the tokens, characters and texts that were all tried")
        read = (tuple(tokenizer.encode(tokenizer.text(ids))) for ids in found)
        for ids in filter(None, (*found, *read)):
            if ids not in measured:
                measured[ids] = contrast.measure_tokens(*self.sides, prompts, ids, place)
            found_by[ids] = "the text at which a search from the recovered feature ends"
        pieces = {ids: len(tokenizer.pieces(ids)) for ids in measured}

        def worth(ids: Ids) -> float:
            """At the goal: what leads elsewhere does less there."""
            return _worth(measured[ids].gap * float(measured[ids].target @ goal.target), pieces[ids])

        able = list(filter(tokenizer.writable, measured)) or list(measured)
        texts = [
            Text(ids, measured[ids], self._success(ids, goal.target, place, goal.n), found_by[ids], pieces[ids])
            for ids in sorted(able, key=worth, reverse=True)[:FINALISTS]
        ]
        return max(_leading_most(texts), key=lambda text: worth(text.ids))


def _worth(gap: float, pieces: int) -> float:
    return gap - DOUBLING * math.log2(pieces)


def _leading_most(texts: Sequence[Text]) -> list[Text]:
    """Those that lead about as many prompts to the goal as any; all where hardly any gets there."""
    most = max(text.success[0] for text in texts)
    least = most - AS_MANY if most >= MOST else 0.0
    return [text for text in texts if text.success[0] >= least]
