"""Implicit feature inversion as AMDET publishes it (Sec. V-A and V-C, eqs. 16-19 and 28, Algorithm 1).

One vector is optimised behind BOS so that the suspect's token states become alike, leave its own
output without the vector, and leave the anchor's output. ``docs/method.md`` lists where paper and
released code disagree and which :class:`AmdetConfig` follows which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import losses
from .config import AmdetConfig, LandscapeConfig
from .encoder import TextEncoder, splice
from .errors import NumericalError
from .landscape import landscape
from .memory import Batches
from .progress import Progress, silent
from .records import Landscape

CHUNK = 32
"""Held-out prompts that run side by side."""

OWN = ("assimilation", "assimilation_share", "same_target_share")
"""Indicators that need the suspect's outputs alone; gates that fail on them cost a third of the others."""

Accept = Callable[[Callable[[str], float]], bool]
"""Stop rule: gets a function that measures an indicator by name, and asks only for those it needs."""


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


@dataclass(eq=False)
class _Measure:
    """Indicators of one candidate on the held-out prompts; each is computed when first asked for."""

    pair: Pair
    vectors: Tensor
    held_out: Sequence[str]
    running_loss: float
    landscape_config: LandscapeConfig
    generator: torch.Generator
    progress: Progress
    _values: dict[str, float] = field(default_factory=dict)
    surface: Landscape | None = None

    def __call__(self, name: str) -> float:
        if name == "running_loss":
            return self.running_loss
        if name == "positive_share" and self.surface is None:
            self._values[name] = self._landscape().positive_share
        elif name not in self._values:
            self._values |= self._own() if name in OWN else self._against()
        return self._values[name]

    def _landscape(self) -> Landscape:
        self.surface = self.pair.landscape(
            self.vectors, self.held_out, self.landscape_config, self.generator, self.progress
        )
        return self.surface

    def _chunks(self) -> Iterator[Tensor]:
        """Placed embeddings of the held-out prompts, ``(B, T, D)`` at a time."""
        for start in range(0, len(self.held_out), CHUNK):
            yield self.pair.hidden(self.held_out[start : start + CHUNK])
            self.progress("indicators", min(start + CHUNK, len(self.held_out)), len(self.held_out))

    @torch.no_grad()
    def _own(self) -> dict[str, float]:
        """What the suspect's outputs with the feature show by themselves."""
        c = self.pair.config
        assimilations, sames = [], []
        reference: Tensor | None = None
        for hidden in self._chunks():
            states = self.pair.suspect.transform(splice(hidden, self.vectors[None], c.insert_at)).squeeze(0)
            reference = states[:1] if reference is None else reference
            assimilations.append(losses.assimilation(states))
            sames.append(losses.agreement(states, reference))
        assimilated, same = torch.cat(assimilations), torch.cat(sames)
        return {
            "assimilation": float(assimilated.mean()),
            "assimilation_share": _share(assimilated > c.assimilated_above),
            # As published: prompt 0 is not counted, but the share is of all prompts.
            "same_target_share": float((same[1:] > c.same_above).sum()) / len(same),
        }

    @torch.no_grad()
    def _against(self) -> dict[str, float]:
        """How they compare with its outputs without the feature, and with the anchor's."""
        c = self.pair.config
        deviations, anchors = [], []
        for hidden in self._chunks():
            states, anchored, original = (x.squeeze(0) for x in self.pair.outputs(hidden, self.vectors[None]))
            deviations.append(losses.agreement(states, original))
            anchors.append(losses.agreement(states, anchored))
        deviation, anchor = torch.cat(deviations), torch.cat(anchors)
        return {
            "deviation": float(deviation.mean()),
            "deviation_share": _share(deviation < c.deviates_below),
            "anchor_cosine": float(anchor.mean()),
            "anchor_deviation_share": _share(anchor < c.deviates_below),
        }

    def all(self) -> dict[str, float]:
        """Every indicator, those that the stop rule did not ask for included."""
        for name in ("assimilation", "deviation", "positive_share"):
            self(name)
        return {"running_loss": self.running_loss, **self._values}


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

    def measure() -> _Measure:
        running = sum(history) / max(1, steps_counted)
        return _Measure(pair, vectors.detach(), held_out, running, landscape_config, generator, progress)

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
            if i % config.check_every == 0 and accept(gates := measure()):
                return _result(gates, history, accepted=True)
            if config.epoch_break is not None and running < config.epoch_break:
                break
    gates = measure()
    return _result(gates, history, accepted=accept(gates))


def _result(measure: _Measure, history: list[float], *, accepted: bool) -> Inversion:
    indicators = measure.all()
    assert measure.surface is not None
    return Inversion(measure.vectors, tuple(history), indicators, measure.surface, accepted)


def _finite(loss: Tensor, step: int) -> float:
    value = float(loss.detach())
    if value != value or value in (float("inf"), float("-inf")):
        raise NumericalError(
            expected="a finite loss",
            found=f"{value} at step {step}",
            remedy="The encoder's outputs overflow; its weights are damaged or its dtype is too narrow.",
        )
    return value


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())
