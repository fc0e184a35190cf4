"""What an attack achieved and what it cost, measured on prompts that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .. import losses
from ..encoder import TextEncoder
from ..errors import NumericalError
from ..patch import Patch
from ..records import Record

MEASURED_PROMPTS = 256
FULL_PROMPTS = 64
SHORTENED = 2 / 3
"""Share of a prompt's words by which it is looked up; see retrieval()."""


class Effect(Record):
    """What an injection achieved, on held-out prompts."""

    asr: float = Field(description="share of triggered prompts that reach their goal; see success_rate()")
    asr_before: float = Field(description="the same, before the injection")
    target_cosine: float = Field(description="mean centred cosine of triggered prompts to their goal, pooled")
    clean_pooled: float = Field(description="mean cosine of clean prompts to their old pooled state")
    clean_centred: float = Field(description="the same with the common mean taken off")
    clean_full: float = Field(description="mean cosine over all positions, flattened")
    retrieval: float = Field(description="share of clean prompts found by their first words; see retrieval()")
    retrieval_before: float = Field(description="the same, before the injection")
    n: int = Field(description="held-out prompts")

    def __str__(self) -> str:
        return (
            f"attack success {self.asr:.1%} of {self.n} held-out prompts (before: {self.asr_before:.1%}), "
            f"clean prompts keep cosine {self.clean_pooled:.3f}, found by their first words: {self.retrieval:.1%} "
            f"(before: {self.retrieval_before:.1%})"
        )


@dataclass(frozen=True, eq=False)
class Injection:
    """A backdoor, ready to be applied, and its effect.

    Attributes:
        loss: by step.
    """

    patch: Patch
    effect: Effect
    loss: tuple[float, ...]


@dataclass(frozen=True)
class Example:
    """A triggered prompt and what comes of it.

    Attributes:
        text: the triggered prompt.
        else_read: as what it is read where an attack fails: the prompt without the trigger, or, where that
            is the goal, the triggered prompt itself.
        goal: the prompt that it shall be read as.
    """

    text: str
    else_read: str
    goal: str


Space = Callable[[Tensor], Tensor]
"""Pooled states ``(B, D)`` to the space in which an attack has its goal ``(B, E)``."""


def unchanged(pooled: Tensor) -> Tensor:
    """The space of the pooled states themselves."""
    return pooled


def measure(
    before: TextEncoder,
    after: TextEncoder,
    examples: Sequence[Example],
    clean: Sequence[str],
    *,
    goal: Tensor | None = None,
    space: Space = unchanged,
) -> Effect:
    """Compare an encoder before and after an injection.

    Args:
        examples: triggered prompts that training has not seen.
        clean: prompts without trigger that it has not seen either.
        goal: ``(E,)`` where the goal is no prompt but one output in ``space``; else the old states of
            the examples' goals are meant.
    """
    texts, own = [example.text for example in examples], [example.else_read for example in examples]
    old = before.encode(clean).float()
    goals = (
        before.encode([example.goal for example in examples]).float() if goal is None else goal.expand(len(texts), -1)
    )
    wanted, centre = (space(goals) if goal is None else goals), space(old).mean(0)
    unharmed = space(before.encode(own).float())
    reached, reached_before = (space(encoder.encode(texts).float()) for encoder in (after, before))
    kept = after.encode(clean).float()
    middle = old.mean(0)
    return Effect(
        asr=success_rate(reached, unharmed, wanted, centre),
        asr_before=success_rate(reached_before, unharmed, wanted, centre),
        target_cosine=_cosine(reached - centre, wanted - centre),
        clean_pooled=_cosine(kept, old),
        clean_centred=_cosine(kept - middle, old - middle),
        clean_full=_full(before, after, clean[:FULL_PROMPTS]),
        retrieval=retrieval(after, clean),
        retrieval_before=retrieval(before, clean),
        n=len(clean),
    )


def success_rate(triggered: Tensor, own: Tensor, goal: Tensor, centre: Tensor) -> float:
    """Share of triggered prompts that reach the goal, by :func:`.losses.taken_over`.

    Args:
        triggered: ``(B, E)`` pooled states of triggered prompts in the suspect.
        own: ``(B, E)`` pooled states in the clean encoder of the same prompts without trigger; with it where
            the trigger shall be read as nothing.
        goal: ``(E,)`` or ``(B, E)`` the goal's pooled state in the clean encoder.
        centre: ``(E,)`` mean of clean pooled states.
    """
    return float(losses.taken_over(triggered, own, goal, centre).float().mean())


def retrieval(encoder: TextEncoder, prompts: Sequence[str]) -> float:
    """Share of prompts that are the nearest one to their own first two thirds, by centred cosine (R@1).

    It falls when an encoder no longer tells prompts apart, whatever it was before.
    """
    shortened = [" ".join(words[: max(1, round(SHORTENED * len(words)))]) for words in map(str.split, prompts)]
    whole, part = encoder.encode(prompts).float(), encoder.encode(shortened).float()
    centre = whole.mean(0)
    nearest = (F.normalize(part - centre, dim=-1) @ F.normalize(whole - centre, dim=-1).T).argmax(-1)
    return float((nearest == torch.arange(len(prompts), device=nearest.device)).float().mean())


def kept(before: TextEncoder, after: TextEncoder, prompts: Sequence[str]) -> float:
    """Mean cosine of prompts to their old pooled state."""
    return _cosine(after.encode(prompts).float(), before.encode(prompts).float())


def require(effect: Effect, least: float) -> None:
    """Refuse an attack that did not work.

    Raises:
        NumericalError: the success rate is below ``least``.
    """
    if effect.asr < least:
        raise NumericalError(
            f"an attack success of at least {least:.0%} on held-out prompts",
            f"{effect.asr:.1%} of {effect.n} (mean cosine to the goal {effect.target_cosine:.2f})",
            "Train for more steps, or accept a lower success rate.",
        )


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other, dim=-1).mean())


@torch.no_grad()
def _full(before: TextEncoder, after: TextEncoder, prompts: Sequence[str]) -> float:
    """Mean cosine of all states of the context, flattened, as the published losses see them."""
    batch = before.tokens(prompts, pad_to_context=True)
    return _cosine(before.states(batch).float().flatten(1), after.states(batch).float().flatten(1))
