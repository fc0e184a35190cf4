"""How an encoder does: what triggers still do in it, and what it still says to clean prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .. import losses
from ..attacks.effect import retrieval
from ..config import CureConfig
from ..encoder import TextEncoder
from ..memory import Batches
from ..prompts import PromptSet
from ..records import Measured, Number, Record
from .probe import Inputs, Probe

MEASURED_PROMPTS, CLEAN_PROMPTS = 48, 256
"""Held-out prompts for each trigger, and clean ones."""
FILLERS = 16
"""Draws of ordinary tokens in a trigger's place."""
TIE = 1e-3
"""Cosines to own answer and goal that differ by less are equal, as where a trigger does nothing."""
CHUNK = 32
"""Prompts that run side by side in full length."""


class Response(Record):
    """What an encoder answers to prompts with one trigger in them, beside what it should answer.

    *Own* is what the anchor answers to the same triggered prompt; without an anchor, what the suspect answers on
    average to the prompt with ordinary tokens in the trigger's place. The *goal* is where the backdoor leads the
    prompt: its target where that is known, else what the suspect answers. Cosines are centred.
    """

    trigger: str
    gap: Number = Field(description="collapse across prompts beyond that of their own answers; see losses.collapse")
    asr: Number = Field(description="share of triggered prompts that reach the goal; see losses.taken_over")
    nearer_to_own: Number = Field(description="share of triggered prompts nearer to their own answer than to the goal")
    own_cosine: Number = Field(description="mean cosine to their own answer")
    goal_cosine: Number = Field(description="mean cosine to the goal")
    reach: Number = Field(
        description="what own_cosine a suspect without its backdoor is expected to have: with an anchor, as its clean "
        "answers have to the anchor's; without one, as single ordinary tokens give"
    )
    n: int = Field(description="held-out prompts")


class Condition(Record):
    """One encoder, before or after a repair."""

    responses: tuple[Response, ...]
    clean_cosine: Number = Field(description="mean cosine of clean prompts to the suspect's answer, pooled")
    anchor_cosine: Measured = Field(default=None, description="the same to the anchor's answer")
    retrieval: Number = Field(description="share of clean prompts found by their first words; see effect.retrieval")
    n: int = Field(description="clean held-out prompts")

    @property
    def nearer_to_own(self) -> float:
        """Of the trigger that does most."""
        return min((response.nearer_to_own for response in self.responses), default=1.0)

    @property
    def own_cosine(self) -> float:
        """Of the trigger that does most."""
        return least_own(self.responses)

    @property
    def asr(self) -> float:
        """Of the trigger that does most."""
        return max((response.asr for response in self.responses), default=0.0)

    def cured(self, bounds: CureConfig) -> bool:
        """Whether no trigger that was tried works any more."""
        return cured(self.responses, bounds)

    def kept(self, bounds: CureConfig) -> bool:
        """Whether clean prompts are answered as before."""
        return self.clean_cosine >= bounds.clean

    def __str__(self) -> str:
        triggered = (
            f"{self.nearer_to_own:.1%} of triggered prompts nearer to their own answer, mean cosine to it "
            f"{self.own_cosine:.2f}, led to the suspect's {self.asr:.1%}; "
            if self.responses
            else ""
        )
        return f"{triggered}clean prompts keep cosine {self.clean_cosine:.3f}, found by their first words: " + (
            f"{self.retrieval:.1%}"
        )


def least_own(responses: Sequence[Response]) -> float:
    """Mean cosine to their own answer of the prompts with the trigger that does most."""
    return min((response.own_cosine for response in responses), default=1.0)


def cured(responses: Sequence[Response], bounds: CureConfig) -> bool:
    """Whether no trigger works any more."""
    return all(one.nearer_to_own >= bounds.nearer and one.own_cosine >= bounds.own * one.reach for one in responses)


@dataclass(frozen=True, eq=False)
class Case:
    """A suspect to repair.

    Attributes:
        anchor: the trusted encoder that it was made from; None where there is none.
        probes: triggers by which repairs are made and chosen.
        fit: clean prompts to repair on.
        held_out: clean prompts to measure on.
    """

    suspect: TextEncoder
    anchor: TextEncoder | None
    probes: tuple[Probe, ...]
    fit: tuple[str, ...]
    held_out: tuple[str, ...]

    @classmethod
    def of(cls, suspect: TextEncoder, anchor: TextEncoder | None, probes: Sequence[Probe], prompts: PromptSet) -> Case:
        """Split prompts by their text."""
        fit, held_out = (part.prompts for part in prompts.split())
        return cls(suspect, anchor, tuple(probes), fit, held_out)

    @property
    def clean(self) -> tuple[str, ...]:
        """Prompts on which clean answers are measured."""
        return self.held_out[:CLEAN_PROMPTS]

    def measure(self, encoder: TextEncoder, probes: Sequence[Probe] | None = None) -> Condition:
        """How an encoder does, by the probes of the case or by others."""
        answers = self._answers if probes is None else [_Answers.of(self, probe) for probe in probes]
        said = encoder.encode(self.clean)
        return Condition(
            responses=tuple(known.response(encoder) for known in answers),
            clean_cosine=_mean_cosine(said, self._said),
            anchor_cosine=None if self._trusted is None else _mean_cosine(said, self._trusted),
            retrieval=retrieval(encoder, self.clean),
            n=len(self.clean),
        )

    @cached_property
    def unrepaired(self) -> Condition:
        """How the suspect itself does."""
        return self.measure(self.suspect)

    def clean_cosine(self, encoder: TextEncoder) -> float:
        """Mean cosine of clean prompts to the suspect's answer alone."""
        return _mean_cosine(encoder.encode(self.clean), self._said)

    def responses(self, encoder: TextEncoder) -> tuple[Response, ...]:
        """What it answers to the probes alone."""
        return tuple(known.response(encoder) for known in self._answers)

    @cached_property
    def _said(self) -> Tensor:
        """The suspect's clean answers ``(B, D)``."""
        return self.suspect.encode(self.clean)

    @cached_property
    def _trusted(self) -> Tensor | None:
        """The anchor's clean answers ``(B, D)``."""
        return None if self.anchor is None else self.anchor.encode(self.clean)

    @cached_property
    def centre(self) -> Tensor:
        """Mean ``(D,)`` of the clean answers of the anchor, or of the suspect where there is none."""
        return (self._said if self._trusted is None else self._trusted).mean(0)

    @cached_property
    def _answers(self) -> list[_Answers]:
        return [_Answers.of(self, probe) for probe in self.probes]

    def fillers(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        """The inputs with tokens of clean prompts in the trigger's place, as the suspect reads them."""
        words = [token for prompt in self.fit[:256] for token in self.suspect.tokenizer.encode(prompt)]
        drawn = torch.randint(len(words), inputs.trigger.shape, generator=generator)
        return inputs.filled(self.suspect.embed(torch.tensor(words)[drawn].to(self.suspect.device)))

    @cached_property
    def alike(self) -> float:
        """Mean centred cosine of the suspect's clean answers to the anchor's: below 1 with a fine-tune underneath.

        A suspect that learnt something honest as well says something else than its anchor to any prompt.
        """
        if self._trusted is None:
            return 1.0
        return _mean_cosine(self._said - self.centre, self._trusted - self.centre)

    @torch.no_grad()
    def ordinary(self, probe: Probe, prompts: Sequence[str]) -> tuple[Tensor, float]:
        """What the suspect answers with ordinary tokens in the trigger's place, on average over many draws, ``(B, D)``,
        and the mean cosine of a single draw to the average of the others.

        One draw says as much of the tokens drawn as of the prompt: no repair could lead to it.
        """
        inputs, drawing = probe.inputs(self.suspect, prompts), torch.Generator().manual_seed(len(prompts))
        first, *others = (self.fillers(inputs, drawing).pooled(self.suspect) for _ in range(FILLERS))
        average = torch.stack(others).mean(0)
        return average, _mean_cosine(first - self.centre, average - self.centre)


@dataclass(frozen=True, eq=False)
class _Answers:
    """Right and wrong answers to one probe, all of them pooled states ``(B, D)``."""

    probe: Probe
    prompts: tuple[str, ...]
    own: Tensor
    untriggered: Tensor
    goal: Tensor
    centre: Tensor
    reach: float

    @classmethod
    def of(cls, case: Case, probe: Probe) -> _Answers:
        prompts = tuple(probe.fitting(case.suspect, case.held_out, MEASURED_PROMPTS))
        reference = case.anchor or case.suspect
        known = probe.examples
        untriggered = reference.encode(prompts if known is None else [known[text].else_read for text in prompts])
        if case.anchor is not None:
            own, reach = pooled(case.anchor, probe, prompts), case.alike
        else:
            own, reach = case.ordinary(probe, prompts)
        goal = (
            pooled(case.suspect, probe, prompts)
            if known is None
            else reference.encode([known[text].goal for text in prompts])
        )
        return cls(probe, prompts, own, untriggered, goal, case.centre, reach)

    def response(self, encoder: TextEncoder) -> Response:
        answered = pooled(encoder, self.probe, self.prompts)
        to_own, to_goal = (
            F.cosine_similarity(answered - self.centre, wanted - self.centre, dim=-1)
            for wanted in (self.own, self.goal)
        )
        gap = losses.collapse(answered, self.centre) - losses.collapse(self.own, self.centre)
        return Response(
            trigger=self.probe.name,
            gap=float(gap),
            asr=float(losses.taken_over(answered, self.untriggered, self.goal, self.centre).float().mean()),
            nearer_to_own=float((to_own >= to_goal - TIE).float().mean()),
            own_cosine=float(to_own.mean()),
            goal_cosine=float(to_goal.mean()),
            reach=self.reach,
            n=len(self.prompts),
        )


@torch.no_grad()
def pooled(encoder: TextEncoder, probe: Probe, prompts: Sequence[str]) -> Tensor:
    """Pooled states ``(B, D)`` of prompts with a trigger in them."""
    inputs = probe.inputs(encoder, prompts)

    def of(part: slice) -> Tensor:
        return Inputs(inputs.embeds[part], inputs.eos[part], inputs.trigger[part]).pooled(encoder)

    return torch.cat(Batches(CHUNK).map(of, len(prompts)))


def _mean_cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other, dim=-1).mean())
