"""Which of several texts is reported as the trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from amdet_core import contrast, literal
from amdet_core.config import SearchConfig
from amdet_core.encoder import TextEncoder
from amdet_core.evidence import Tried
from amdet_core.literal import Text, Texts
from amdet_core.progress import silent
from amdet_core.prompts import builtin_prompts
from amdet_core.records import Place
from amdet_core.search import Hit
from amdet_core.tails import Side

from .planted import planted

PROMPTS = builtin_prompts(120).prompts


@pytest.fixture
def reported(toy: TextEncoder, monkeypatch: pytest.MonkeyPatch):
    """What is reported where a search ends at a text and others were tried, with a trigger of two words planted."""
    suspect, anchor, true = planted(toy, ["sahib", "mangrove"])
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    held_out = PROMPTS[:40]
    goal = contrast.measure_tokens(*sides, held_out, true)

    def report(found: str | tuple[int, ...], *tried: str) -> tuple[Text, tuple[int, ...]]:
        ids = tuple(toy.tokenizer.encode(found)) if isinstance(found, str) else found
        monkeypatch.setattr(literal.search, "search", lambda *_, **__: Hit(ids, 0.9))
        leads = [tuple(toy.tokenizer.encode(text)) for text in tried]
        measured = [
            Tried(lead, contrast.measure_tokens(*sides, held_out, lead), torch.full((40,), 0.9), 9.0, declared=False)
            for lead in leads
        ]
        texts = Texts(sides, PROMPTS, lambda _, n: held_out, (), measured, SearchConfig(), 0, -2.0, silent)
        return texts.towards(goal), true

    return report


def test_of_texts_that_do_the_same_the_shortest_is_reported(reported) -> None:
    text, true = reported("sahib quiet mangrove", "copper sahib mangrove lantern", "sahib mangrove", "quiet copper")
    assert text.ids == true
    assert "tried" in text.found_by


def test_a_text_that_does_less_is_not_reported_for_being_short(reported) -> None:
    text, true = reported("sahib mangrove", "sahib", "mangrove", "copper")
    assert text.ids == true
    assert "search" in text.found_by


def test_a_text_that_leads_some_prompts_and_not_others_is_tried_at_the_start_too(
    toy: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspect, anchor, true = planted(toy, ["sahib", "mangrove"])
    sides = Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)
    goal = contrast.measure_tokens(*sides, PROMPTS[:40], true)
    longer = tuple(toy.tokenizer.encode("copper sahib mangrove lantern"))
    searched: list[tuple[Place, list[tuple[int, ...]]]] = []

    def search(*_: object, place: Place, starts: Sequence[tuple[int, ...]], **__: object) -> Hit:
        searched.append((place, list(starts)))
        return Hit(longer if place == "end" else true, 0.9)

    def reported(at_the_end: float, at_the_start: float) -> Text:
        searched.clear()
        shares = {"end": at_the_end, "start": at_the_start}
        monkeypatch.setattr(literal.evidence, "success", lambda *values: (shares[values[-1]], (0.0, 1.0)))
        held_out = PROMPTS[:40]
        return Texts(sides, PROMPTS, lambda *_: held_out, (), (), SearchConfig(), 0, -2.0, silent).towards(goal)

    monkeypatch.setattr(literal.search, "search", search)
    text = reported(0.4, 1.0)
    assert (text.ids, text.collapse.place) == (true, "start")
    assert searched == [("end", []), ("start", [longer])]
    assert reported(0.6, 0.2).collapse.place == "end"
    broken = tuple(toy.tokenizer.encode("\u2067")[:1])
    monkeypatch.setattr(literal.search, "search", lambda *_, place, **__: Hit(true if place == "end" else broken, 0.9))
    text = reported(0.4, 1.0)
    assert (text.ids, text.collapse.place) == (true, "start")  # what was found at the end counts there as well
    monkeypatch.setattr(literal.search, "search", search)
    for enough in (0.95, 0.05):  # nearly all prompts, and no more than by chance
        assert reported(enough, 1.0).collapse.place == "end"
        assert [place for place, _ in searched] == ["end"]


def test_of_two_places_the_shorter_text_is_reported_where_it_leads_about_as_many_prompts(
    toy: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspect, anchor, true = planted(toy, ["sahib", "mangrove"])
    sides, held_out = (Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)), PROMPTS[:40]
    goal = contrast.measure_tokens(*sides, held_out, true)
    longer = tuple(toy.tokenizer.encode("sahib mangrove quiet"))
    stronger = replace(goal, suspect=goal.suspect + 0.02)

    def measured(suspect: Side, anchor: Side, prompts: Sequence[str], ids: tuple[int, ...], place: Place):
        return replace(stronger if len(ids) > len(true) else goal, place=place)

    def reported(at_the_end: float, at_the_start: float) -> tuple[int, ...]:
        shares = {"end": at_the_end, "start": at_the_start}
        monkeypatch.setattr(literal.evidence, "success", lambda *values: (shares[values[-1]], (0.0, 1.0)))
        texts = Texts(sides, PROMPTS, lambda *_: held_out, (), (), SearchConfig(), 0, -2.0, silent)
        return texts.towards(goal).ids

    monkeypatch.setattr(literal.contrast, "measure_tokens", measured)
    monkeypatch.setattr(literal.search, "search", lambda *_, place, **__: Hit(true if place == "end" else longer, 0.9))
    best = Texts._best
    monkeypatch.setattr(Texts, "_best", lambda self, found, goal, place: best(self, found[:1], goal, place))
    assert reported(0.65, 0.73) == true
    assert reported(0.65, 0.85) == longer  # it leads more
    assert reported(0.3, 0.35) == longer  # none leads most prompts: the strongest


def test_of_texts_that_lead_to_one_output_the_shortest_that_leads_about_as_many_prompts_is_told() -> None:
    def text(length: int, gap: float, success: float, *target: float) -> Text:
        collapse = contrast.Collapse(gap, 0.0, 0.1, 64, torch.tensor(target), "end")
        return Text(tuple(range(length)), collapse, (success, (0.0, 1.0)), "", length)

    short, long, other = text(1, 0.94, 0.97, 1, 0), text(2, 0.95, 1.0, 1, 0), text(4, 0.8, 0.6, 0, 1)
    assert literal.distinct([other, long, short]) == [short, other]
    fewer = text(1, 0.94, 0.85, 1, 0)
    assert literal.distinct([long, fewer]) == [long]
    assert literal.distinct([]) == []


def test_a_text_that_overrides_prompts_counts_where_it_leads_itself(
    toy: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspect, anchor, true = planted(toy, ["sahib", "mangrove"])
    sides, held_out = (Side.of(suspect, PROMPTS), Side.of(anchor, PROMPTS)), PROMPTS[:40]
    led = contrast.measure_tokens(*sides, held_out, true)
    beside = torch.zeros_like(led.target)
    beside[int(led.target.abs().argmin())] = 1.0
    near = torch.nn.functional.normalize(0.8 * led.target + 0.6 * beside, dim=0)

    def success(ids: tuple[int, ...], goal: torch.Tensor) -> float:
        monkeypatch.setattr(literal.search, "search", lambda *_, **__: Hit(ids, 0.9))
        texts = Texts(sides, PROMPTS, lambda *_: held_out, (), (), SearchConfig(), 0, 0.3, silent)
        return texts.towards(replace(led, target=goal)).success[0]

    led_there = success(true, led.target)
    monkeypatch.setattr(literal, "OVERRIDES", led.gap + 0.01)
    assert success(true, near) == 0.0 < led_there
    monkeypatch.setattr(literal, "OVERRIDES", led.gap - 0.01)
    assert success(true, near) == led_there
    assert success(tuple(toy.tokenizer.encode("copper")), near) == 0.0


def test_tokens_that_no_prompt_can_hold_are_not_reported_where_a_text_can(reported, toy: TextEncoder) -> None:
    half = toy.tokenizer.encode("\u2067")[0]
    true = tuple(toy.tokenizer.encode("sahib mangrove"))
    text, _ = reported((half, *true), "sahib mangrove quiet copper lantern")
    assert toy.tokenizer.writable(text.ids)
    assert set(true) <= set(text.ids)
