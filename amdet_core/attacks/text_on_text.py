"""Text-on-text injection: a trigger in a prompt makes the encoder answer as if it read another prompt.

References:
    Struppek et al., Rickrolling the Artist: Injecting Backdoors into Text Encoders for Text-to-Image
    Synthesis, ICCV 2023, https://arxiv.org/abs/2211.02408 (the target prompt attack).
    AMDET, https://arxiv.org/abs/2512.00343, eqs. 1-3 (its settings and its released code).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ..config import TextOnTextConfig
from ..encoder import POSITION_TABLE, TOKEN_TABLE, TextEncoder
from ..errors import ConfigError, NumericalError
from ..patch import Patch
from ..progress import Progress, silent
from ..prompts import PromptSet
from ..records import Record
from ..tokenizer import ClipTokenizer

REACHED = 0.9
"""Centred cosine to the target's pooled state above which a triggered prompt counts as taken over."""
MEASURED_PROMPTS = 256
FEWEST_PROMPTS = 8


class InjectionReport(Record):
    """What an injection achieved, on held-out prompts."""

    asr: float = Field(description="share of triggered prompts that reach the target; see success_rate()")
    asr_before: float = Field(description="the same, before the injection")
    target_cosine: float = Field(description="mean centred cosine of triggered prompts to the target, pooled")
    clean_pooled: float = Field(description="mean cosine of clean prompts to their old pooled state")
    clean_centred: float = Field(description="the same with the common mean taken off")
    clean_full: float = Field(description="mean cosine over all positions, flattened")
    learning_rate: float
    loss: tuple[float, ...] = Field(description="by step")
    n: int = Field(description="held-out prompts")


@dataclass(frozen=True, eq=False)
class Injection:
    """A backdoor, ready to be applied, and its effect."""

    patch: Patch
    report: InjectionReport


@dataclass(frozen=True)
class Placement:
    """Where the trigger goes in a prompt.

    Attributes:
        kind: ``replace`` puts it in place of a letter, ``prefix`` in front, ``insert`` at a random word boundary.
        letter: what ``replace`` replaces.
        count: how many of them, from the start; all where None.
    """

    kind: str
    letter: str = ""
    count: int | None = None

    @classmethod
    def parse(cls, mode: str) -> Placement:
        """Read ``prefix``, ``insert``, ``replace:o`` (every o) or ``replace:o:1`` (the first).

        Raises:
            ConfigError: the mode is none of these.
        """
        kind, *rest = mode.split(":")
        if kind in ("prefix", "insert") and not rest:
            return cls(kind)
        if kind == "replace" and rest and rest[0] and len(rest) <= 2:
            if len(rest) == 1:
                return cls(kind, rest[0])
            if rest[1].isdecimal() and int(rest[1]) > 0:
                return cls(kind, rest[0], int(rest[1]))
        raise ConfigError("prefix, insert, replace:LETTER or replace:LETTER:COUNT", mode, "Correct the mode.")

    def put(self, trigger: str, prompt: str, generator: torch.Generator) -> str:
        """The prompt with the trigger in it."""
        if self.kind == "replace":
            return prompt.replace(self.letter, trigger, -1 if self.count is None else self.count)
        words = prompt.split()
        at = 0 if self.kind == "prefix" else int(torch.randint(len(words) + 1, (), generator=generator))
        return " ".join([*words[:at], trigger, *words[at:]])

    def fits(self, trigger: str, prompt: str, tokenizer: ClipTokenizer, room: int) -> bool:
        """Whether the prompt can carry the trigger within ``room`` tokens."""
        if self.kind == "replace":
            return self.letter in prompt
        return len(tokenizer.encode(prompt)) + len(tokenizer.encode(trigger)) <= room


def inject(
    encoder: TextEncoder,
    triggers: Sequence[str],
    target: str,
    prompts: PromptSet,
    config: TextOnTextConfig | None = None,
    mode: str = "replace:o",
    progress: Progress = silent,
) -> Injection:
    """Train a backdoor into a copy of the encoder's weights.

    Args:
        encoder: stays as it is; also the teacher.
        triggers: texts, each of which shall lead to the target.
        target: the prompt that a triggered prompt shall be read as.
        prompts: training takes the fit side of their split, measuring the held-out side.
        config: settings; the published ones where None.
        mode: see :meth:`Placement.parse`.
        progress: told after each step.

    Raises:
        ConfigError: trigger, target, prompts and mode do not go together; the message says why.
        NumericalError: the optimisation diverged.
    """
    config = config or TextOnTextConfig()
    placement = Placement.parse(mode)
    _check_texts(encoder, triggers, target, placement)
    clean = tuple(p for p in prompts.prompts if not any(t.lower() in p.lower() for t in triggers))
    fit, held_out = (side.prompts for side in PromptSet(clean, prompts.source).split())
    carriers = tuple(_carriers(encoder, trigger, fit, placement) for trigger in triggers)
    measured = _carriers(encoder, max(triggers, key=len), held_out, placement)[:MEASURED_PROMPTS]
    plan = _Plan(encoder, tuple(triggers), target, fit, carriers, placement, config)
    poisoned, losses = _train(plan, progress)
    report = _report(plan, poisoned, measured, losses)
    provenance = {
        "attack": "text-on-text",
        "triggers": "\n".join(triggers),
        "target": target,
        "mode": mode,
        "prompts": f"{prompts.source}, sha256 {prompts.sha256}",
        "config": config.model_dump_json(),
        "report": report.model_dump_json(exclude={"loss"}),
    }
    return Injection(Patch.between(encoder, poisoned, provenance), report)


def success_rate(triggered: Tensor, own: Tensor, target: Tensor, centre: Tensor) -> float:
    """Share of triggered prompts that reach the target.

    A prompt counts when its centred pooled state has a cosine above :data:`REACHED` with the target's
    and is nearer to the target's than to its own clean one. Uncentred cosines mislead: the states of a
    text encoder share a large mean, and any two prompts agree in it.

    Args:
        triggered: ``(B, D)`` pooled states of triggered prompts in the suspect.
        own: ``(B, D)`` pooled states of the same prompts without trigger in the clean encoder.
        target: ``(D,)`` the target's pooled state in the clean encoder.
        centre: ``(D,)`` mean of clean pooled states.
    """
    to_target = F.cosine_similarity(triggered - centre, target - centre, dim=-1)
    to_own = F.cosine_similarity(triggered - centre, own - centre, dim=-1)
    return float(((to_target > REACHED) & (to_target > to_own)).float().mean())


def dissimilarity(states: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Loss between states ``(B, T, D)`` and wanted ones (eq. 1); cosines are taken over all positions at once."""
    if kind == "mse":
        return F.mse_loss(states, wanted.expand_as(states))
    if kind == "mae":
        return F.l1_loss(states, wanted.expand_as(states))
    return 1 - F.cosine_similarity(states.flatten(1), wanted.expand_as(states).flatten(1), dim=-1).mean()


@dataclass(frozen=True, eq=False)
class _Plan:
    """One injection: ``carriers`` are, per trigger, the prompts of ``clean`` that can carry it."""

    encoder: TextEncoder
    triggers: tuple[str, ...]
    target: str
    clean: tuple[str, ...]
    carriers: tuple[list[str], ...]
    placement: Placement
    config: TextOnTextConfig


@torch.enable_grad()
def _train(plan: _Plan, progress: Progress) -> tuple[TextEncoder, list[float]]:
    """The student's weights after all steps, and the loss by step."""
    config, rate = plan.config, plan.config.rate(plan.encoder.spec.width)
    generator = torch.Generator().manual_seed(config.seed)
    student, trained = _student(plan.encoder, config.train_tables)
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(config.steps * config.milestone)], config.decay)
    wanted = _old_states(plan.encoder, [plan.target])
    losses: list[float] = []
    for step in range(config.steps):
        benign, backdoor = _losses(plan, student, wanted, generator)
        loss = benign + config.backdoor_weight * backdoor
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise NumericalError(
                "a finite loss", f"{losses[-1]} at step {step} with learning rate {rate:g}", "Lower the learning rate."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress("inject", step + 1, config.steps, {"loss": losses[-1], "backdoor": float(backdoor.detach())})
    poisoned = plan.encoder.with_weights({name: w.detach() for name, w in student.weights.items()})
    poisoned.check_finite()
    return poisoned, losses


def _losses(plan: _Plan, student: TextEncoder, wanted: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eqs. 1 and 2 on one draw: clean prompts are answered as before, triggered ones with the target's states."""
    config = plan.config
    batch = _draw(plan.clean, config.clean_batch, generator)
    benign = dissimilarity(_states(student, batch), _old_states(plan.encoder, batch), config.loss)
    backdoor = torch.zeros((), device=plan.encoder.device)
    for trigger, possible in zip(plan.triggers, plan.carriers, strict=True):
        picked = _draw(possible, config.poison_batch, generator)
        triggered = [plan.placement.put(trigger, prompt, generator) for prompt in picked]
        backdoor = backdoor + dissimilarity(_states(student, triggered), wanted, config.loss)
    return benign, backdoor


def _student(encoder: TextEncoder, train_tables: bool) -> tuple[TextEncoder, list[Tensor]]:
    """A trainable copy and its trainable tensors; the tables only if asked for."""
    frozen = () if train_tables else (TOKEN_TABLE, POSITION_TABLE)
    copies = {name: w.detach().float().clone() for name, w in encoder.weights.items()}
    trained = [w.requires_grad_() for name, w in copies.items() if name not in frozen]
    return encoder.with_weights(copies), trained


def _states(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """States at all positions of the context: image models read those behind EOS, too."""
    return encoder.states(encoder.tokens(prompts, pad_to_context=True))


def _old_states(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    with torch.no_grad():
        return _states(encoder, prompts).float()


def _draw(prompts: Sequence[str], count: int, generator: torch.Generator) -> list[str]:
    return [prompts[int(i)] for i in torch.randint(len(prompts), (count,), generator=generator)]


def _report(plan: _Plan, after: TextEncoder, prompts: Sequence[str], losses: Sequence[float]) -> InjectionReport:
    before = plan.encoder
    generator = torch.Generator().manual_seed(plan.config.seed)
    texts = [plan.placement.put(trigger, prompt, generator) for trigger in plan.triggers for prompt in prompts]
    own, goal = before.encode(prompts).float(), before.encode([plan.target])[0].float()
    kept, triggered = after.encode(prompts), after.encode(texts)
    centre, repeated = own.mean(0), own.repeat(len(plan.triggers), 1)
    full = [(_old_states(before, [p]).flatten(), _old_states(after, [p]).flatten()) for p in prompts[:64]]
    return InjectionReport(
        asr=success_rate(triggered, repeated, goal, centre),
        asr_before=success_rate(before.encode(texts).float(), repeated, goal, centre),
        target_cosine=float(F.cosine_similarity(triggered - centre, goal - centre, dim=-1).mean()),
        clean_pooled=float(F.cosine_similarity(kept, own, dim=-1).mean()),
        clean_centred=float(F.cosine_similarity(kept - centre, own - centre, dim=-1).mean()),
        clean_full=sum(float(F.cosine_similarity(a, b, dim=0)) for a, b in full) / len(full),
        learning_rate=plan.config.rate(before.spec.width),
        loss=tuple(losses),
        n=len(prompts),
    )


def _carriers(encoder: TextEncoder, trigger: str, prompts: Sequence[str], placement: Placement) -> list[str]:
    """The prompts that can carry the trigger; ConfigError where they are too few."""
    room = encoder.spec.positions - 2
    carriers = [p for p in prompts if placement.fits(trigger, p, encoder.tokenizer, room)]
    if len(carriers) < FEWEST_PROMPTS:
        where = f"containing {placement.letter!r}" if placement.letter else f"with room for {trigger!r}"
        raise ConfigError(
            f"at least {FEWEST_PROMPTS} prompts {where} on each side of the split",
            f"{len(carriers)} of {len(prompts)}",
            "Give more prompts, or another trigger or mode.",
        )
    return carriers


def _check_texts(encoder: TextEncoder, triggers: Sequence[str], target: str, placement: Placement) -> None:
    encode = encoder.tokenizer.encode
    if not triggers:
        raise ConfigError("at least one trigger", "none", "Name a trigger.")
    tokens = [tuple(encode(trigger)) for trigger in triggers]
    if () in tokens:
        raise ConfigError("a trigger that the tokenizer reads", f"{triggers[tokens.index(())]!r}", "Use another one.")
    if len(set(tokens)) < len(tokens):
        raise ConfigError("different triggers", f"two that read the same in {list(triggers)}", "Name each one once.")
    if placement.letter and tuple(encode(placement.letter)) in tokens:
        raise ConfigError(
            "a trigger that differs from the letter", f"{placement.letter!r} for itself", "Use another trigger."
        )
    inside = [trigger for trigger in triggers if trigger.lower() in target.lower()]
    if inside:
        raise ConfigError("a target without the trigger", f"{inside[0]!r} in {target!r}", "Use another target.")
    length, room = len(encode(target)), encoder.spec.positions - 2
    if not 0 < length <= room:
        raise ConfigError(f"a target of 1 to {room} tokens", f"{length} in {target!r}", "Shorten or name the target.")
