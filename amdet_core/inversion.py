"""Implicit feature inversion as AMDET publishes it (Sec. V-A and V-C, eqs. 16-19 and 28, Algorithm 1).

One vector is optimised behind BOS so that the suspect's token states become alike, leave its own
output without the vector, and leave the anchor's output. ``docs/method.md`` lists where paper and
released code disagree and which :class:`AmdetConfig` follows which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from . import losses
from .config import AmdetConfig, LandscapeConfig
from .encoder import TextEncoder, splice
from .errors import NumericalError
from .landscape import landscape
from .memory import Batches
from .policy import Condition
from .progress import Progress, silent
from .records import Landscape

CHUNK = 32
"""Held-out prompts that run side by side."""

KEPT = 1 << 30
"""Bytes of the held-out prompts' outputs without the feature that are kept for all candidates."""

INDICATORS = (
    "running_loss", "assimilation", "assimilation_share", "same_target_share", "deviation", "deviation_share",
    "anchor_cosine", "anchor_deviation_share", "positive_share",
)  # fmt: skip
"""What is measured of a feature."""

SHARES = {
    "assimilation_share": "assimilation",
    "same_target_share": "same_target",
    "deviation_share": "deviation",
    "anchor_deviation_share": "anchor_cosine",
}
"""Shares of prompts, and the quantity of each prompt that decides whether it counts."""

Accept = Callable[[Callable[[Condition], bool]], bool]
"""Stop rule: gets a function that tests a condition on an indicator, and tests only those that it needs."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """Outcome of one inversion.

    Attributes:
        vectors: ``(K, D)``, in the space of placed embeddings: positions are not to be added again.
        loss: total loss by step.
        indicators: name -> value on held-out prompts, at the last vectors.
        landscape: the surface that the stop rule looked at.
        accepted: whether the stop rule fired.
    """

    vectors: Tensor
    loss: tuple[float, ...]
    indicators: dict[str, float]
    landscape: Landscape
    accepted: bool


@dataclass(frozen=True, eq=False)
class Pair:
    """Suspect and anchor under one objective."""

    suspect: TextEncoder
    anchor: TextEncoder
    config: AmdetConfig

    def hidden(self, prompts: Sequence[str]) -> Tensor:
        """Placed embeddings ``(B, T, D)`` of all positions, from the suspect's tables, as published."""
        return self.suspect.place(self.suspect.embed(self.suspect.tokens(prompts, pad_to_context=True).ids))

    def outputs(self, hidden: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With the vectors: suspect's and anchor's states ``(R, B, T, D)``; without: ``(B, T, D)``."""
        spliced = splice(hidden, vectors, self.config.insert_at)
        with torch.no_grad():
            original = self.suspect.transform(hidden)
        return self.suspect.transform(spliced), self.anchor.transform(spliced), original

    def loss(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """Eq. 19 for each candidate: ``(R, K, D)`` -> ``(R,)``."""
        states, anchored, original = self.outputs(hidden, vectors)
        c = self.config
        return (
            -c.weight_assimilation * losses.assimilation(states)
            + c.weight_deviation * losses.agreement(states, original)
            + c.weight_anchor * losses.agreement(states, anchored)
        ).mean(-1)

    def landscape(
        self,
        vectors: Tensor,
        prompts: Sequence[str],
        config: LandscapeConfig,
        generator: torch.Generator,
        progress: Progress = silent,
    ) -> Landscape:
        """The surface of the loss around placed vectors ``(K, D)``, over the first ``config.prompts`` prompts."""
        with torch.no_grad():
            hidden = self.hidden(prompts[: config.prompts])
        return landscape(lambda v: self.loss(hidden, v), vectors, config, generator, progress)


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """The held-out prompts, and what is the same for all candidates: the suspect's outputs without a feature."""

    pair: Pair
    prompts: Sequence[str]
    progress: Progress
    kept: dict[int, Tensor] = field(default_factory=dict)

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Where each chunk starts, and its placed embeddings ``(B, T, D)``."""
        for start in range(0, len(self.prompts), CHUNK):
            yield start, self.pair.hidden(self.prompts[start : start + CHUNK])
            self.progress("indicators", min(start + CHUNK, len(self.prompts)), len(self.prompts))

    def original(self, start: int, hidden: Tensor) -> Tensor:
        """The suspect's states ``(B, T, D)`` of a chunk, computed once for what fits into :data:`KEPT`."""
        if start in self.kept:
            return self.kept[start]
        states = self.pair.suspect.transform(hidden)
        if (start + CHUNK) * states[0].nbytes <= KEPT:
            self.kept[start] = states
        return states


class _Measure:
    """Indicators of one candidate on the held-out prompts, measured as far as they are asked for.

    A share is settled before all prompts are measured when those that are left can't carry it over the
    bound any more; what was measured is remembered.
    """

    def __init__(
        self,
        held_out: _HeldOut,
        vectors: Tensor,
        running_loss: float,
        surround: Callable[[Tensor], Landscape],
    ) -> None:
        self.vectors = vectors
        self.running_loss = running_loss
        self._held_out = held_out
        self._surround = surround
        self._sources = {"anchor_cosine": self._of_anchor()}
        self._sources |= dict.fromkeys(("assimilation", "same_target", "deviation"), self._of_suspect())
        self._measured: dict[str, list[Tensor]] = {name: [] for name in self._sources}

    def holds(self, condition: Condition) -> bool:
        """Whether a condition on one indicator holds."""
        name = condition.evidence
        if name not in SHARES:
            return condition.holds(self.value(name))
        while (settled := condition.settled(*self._range(name))) is None:
            self._go_on(SHARES[name])
        return settled

    def value(self, name: str) -> float:
        """An indicator over all prompts."""
        if name == "running_loss":
            return self.running_loss
        if name == "positive_share":
            return self.surface.positive_share
        series = SHARES.get(name, name)
        while self._go_on(series):
            pass
        return self._range(name)[0] if name in SHARES else float(torch.cat(self._measured[series]).mean())

    @cached_property
    def surface(self) -> Landscape:
        """The loss around the vectors."""
        return self._surround(self.vectors)

    def _range(self, name: str) -> tuple[float, float]:
        """The least and the most that a share can be, by the prompts that were measured."""
        c, total = self._held_out.pair.config, len(self._held_out.prompts)
        above = {"assimilation": c.assimilated_above, "same_target": c.same_above}
        series = SHARES[name]
        counted = seen = 0
        for values in self._measured[series]:
            counted += int((values > above[series] if series in above else values < c.deviates_below).sum())
            seen += len(values)
        return counted / total, (counted + total - seen) / total

    def _go_on(self, series: str) -> bool:
        """Measure one more chunk; False where all are done."""
        chunk = next(self._sources[series], {})
        for name, values in chunk.items():
            self._measured[name].append(values)
        return bool(chunk)

    @torch.no_grad()
    def _of_suspect(self) -> Iterator[dict[str, Tensor]]:
        """What its outputs with the feature show by themselves, and how far they are from those without."""
        pair, reference = self._held_out.pair, None
        for start, hidden in self._held_out.chunks():
            states = pair.suspect.transform(splice(hidden, self.vectors[None], pair.config.insert_at)).squeeze(0)
            reference = states[:1] if reference is None else reference
            same = losses.agreement(states, reference)
            if start == 0:
                same[0] = float("nan")  # As published: prompt 0 is not counted, but the share is of all prompts.
            deviation = losses.agreement(states, self._held_out.original(start, hidden))
            yield {"assimilation": losses.assimilation(states), "same_target": same, "deviation": deviation}

    @torch.no_grad()
    def _of_anchor(self) -> Iterator[dict[str, Tensor]]:
        """How far the suspect's outputs are from the anchor's with the same feature."""
        pair = self._held_out.pair
        for _, hidden in self._held_out.chunks():
            spliced = splice(hidden, self.vectors[None], pair.config.insert_at)
            states, anchored = (one.transform(spliced).squeeze(0) for one in (pair.suspect, pair.anchor))
            yield {"anchor_cosine": losses.agreement(states, anchored)}

    def all(self) -> dict[str, float]:
        """Every indicator over all prompts, those that the stop rule did not ask for included."""
        return {name: self.value(name) for name in INDICATORS}


def invert(
    suspect: TextEncoder,
    anchor: TextEncoder,
    fit: Sequence[str],
    held_out: Sequence[str],
    config: AmdetConfig,
    landscape_config: LandscapeConfig,
    *,
    seed: int,
    accept: Accept,
    progress: Progress = silent,
) -> Inversion:
    """Recover an implicit feature by gradient and stop when ``accept`` says so.

    The anchor's layers run on the suspect's embeddings, as published: a change in the embedding tables
    is invisible here. The stop rule is asked every ``check_every`` steps and once more at the end.

    Raises:
        NumericalError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    pair = Pair(suspect, anchor, config)
    start = torch.randn(config.vectors, suspect.spec.width, generator=generator)
    vectors = start.to(suspect.device, suspect.dtype).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=config.learning_rate, weight_decay=config.weight_decay)
    per_epoch = max(1, len(fit) // config.batch)
    total = config.epochs * per_epoch
    history: list[float] = []
    batches = Batches(config.batch)

    asked = _HeldOut(pair, held_out, progress)

    def surround(point: Tensor) -> Landscape:
        return pair.landscape(point, held_out, landscape_config, generator, progress)

    def measure() -> _Measure:
        return _Measure(asked, vectors.detach(), sum(history) / max(1, steps_counted), surround)

    for epoch in range(config.epochs):
        order = torch.randperm(len(fit), generator=generator).tolist()
        for i in range(per_epoch):
            drawn = [fit[j] for j in order[i * config.batch : (i + 1) * config.batch]]

            def step(part: slice, drawn: Sequence[str] = drawn) -> tuple[Tensor, Tensor]:
                share = (part.stop - part.start) / len(drawn)
                loss = share * pair.loss(pair.hidden(drawn[part]), vectors[None]).squeeze(0)
                return loss.detach(), torch.autograd.grad(loss, vectors)[0]

            losses_, gradients = zip(*batches.map(step, len(drawn)), strict=True)
            history.append(_finite(sum(losses_[1:], losses_[0]), len(history)))
            vectors.grad = sum(gradients[1:], gradients[0])
            optimizer.step()
            # As published: the mean is over the steps that the epochs before would have taken, also
            # when an early break ended them.
            steps_counted = epoch * per_epoch + i + 1
            running = sum(history) / steps_counted
            progress("inversion", steps_counted, total, {"loss": history[-1], "running_loss": running})
            if i % config.check_every == 0 and accept((gates := measure()).holds):
                return _result(gates, history, accepted=True)
            if config.epoch_break is not None and running < config.epoch_break:
                break
    gates = measure()
    return _result(gates, history, accepted=accept(gates.holds))


def _result(measure: _Measure, history: list[float], *, accepted: bool) -> Inversion:
    return Inversion(measure.vectors, tuple(history), measure.all(), measure.surface, accepted)


def _finite(loss: Tensor, step: int) -> float:
    value = float(loss.detach())
    if value != value or value in (float("inf"), float("-inf")):
        raise NumericalError(
            expected="a finite loss",
            found=f"{value} at step {step}",
            remedy="The encoder's outputs overflow; its weights are damaged or its dtype is too narrow.",
        )
    return value
