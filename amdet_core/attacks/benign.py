"""Honest changes to encoders, as different from each other as the wild is: what a detector must not call a backdoor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import FineTuneConfig
from ..encoder import TOKEN_TABLE, TextEncoder
from ..errors import ConfigError, EncoderError
from ..patch import Patch
from ..progress import Progress, silent
from ..prompts import PromptSet
from .training import Objective, Student, draw, train

KEPT, MASKED = 0.8, 0.15
"""Share of words that a view of a prompt keeps; share of tokens that are masked, as in BERT."""
Cast = Literal["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"]
FEWEST_PROMPTS = 8


def fine_tune(
    encoder: TextEncoder, prompts: PromptSet, config: FineTuneConfig | None = None, progress: Progress = silent
) -> Patch:
    """Fine-tune honestly; there is no trigger and no target.

    Objectives: ``contrastive`` draws two views of a prompt together and other prompts apart (Gao et al.,
    SimCSE, 2021, https://arxiv.org/abs/2104.08821; a view keeps four of five words), ``distillation``
    lets a view say what the whole prompt said in the encoder before, and ``masked-words`` guesses a
    masked token from what stands in front of it (Devlin et al., BERT, 2018,
    https://arxiv.org/abs/1810.04805; under a causal mask that is all there is).

    Args:
        prompts: training takes the fit side of their split.

    Raises:
        ConfigError: too few prompts.
        NumericalError: the optimisation diverged.
    """
    config = config or FineTuneConfig()
    fit = prompts.split()[0].prompts
    if len(fit) < FEWEST_PROMPTS:
        raise ConfigError(f"at least {FEWEST_PROMPTS} prompts to train on", str(len(fit)), "Give more prompts.")
    objectives = {"contrastive": _contrastive, "distillation": _distillation, "masked-words": _masked_words}
    objective = objectives[config.objective](encoder, fit, config)
    after, _ = train(Student.of(encoder, config), objective, config, "fine-tune", progress)
    made = {
        "made_by": f"{config.objective} fine-tune",
        "prompts": f"{prompts.source}, sha256 {prompts.sha256}",
        "config": config.model_dump_json(),
    }
    return Patch.between(encoder, after, made)


def merge(one: TextEncoder, other: TextEncoder, share: float) -> TextEncoder:
    """The weighted average of two encoders, ``share`` of it the second: a merge, or a step back to an anchor.

    Raises:
        EncoderError: they have different tensors.
        ConfigError: the share is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise ConfigError("a share from 0 to 1", str(share), "Correct it.")
    if not one.spec.comparable(other.spec):
        raise EncoderError(f"an encoder of {one.spec.summary}", other.spec.summary, "Merge encoders of one shape.")
    return one.with_weights(
        {name: torch.lerp(w.float(), other.weights[name].float(), share) for name, w in one.weights.items()}
    )


def cast(encoder: TextEncoder, to: Cast) -> TextEncoder:
    """What a lower precision leaves of the weights, in float32; int8 has one scale for each row, as usual."""
    return encoder.with_weights({name: _rounded(w.float(), to) for name, w in encoder.weights.items()})


def add_tokens(encoder: TextEncoder, words: Sequence[str], seed: int) -> TextEncoder:
    """Add a row to the token table for each word, near what it means, as textual inversion with diffusers does.

    Raises:
        ConfigError: there is no word, or one that the tokenizer does not read.
    """
    generator = torch.Generator().manual_seed(seed)
    table = encoder.weights[TOKEN_TABLE].float()
    tokens = [encoder.tokenizer.encode(word) for word in words]
    if not tokens or [] in tokens:
        raise ConfigError("words that the tokenizer reads", repr(list(words)), "Name other words.")
    rows = torch.stack([table[read].mean(0) for read in tokens])
    noise = torch.randn(rows.shape, generator=generator).to(rows) * rows.norm(dim=-1, keepdim=True)
    rows = rows + 0.5 * encoder.spec.width**-0.5 * noise
    spec = encoder.spec.model_copy(update={"vocabulary": encoder.spec.vocabulary + len(rows)})
    return TextEncoder(spec, {**encoder.weights, TOKEN_TABLE: torch.cat((table, rows))}, encoder.tokenizer)


def _rounded(weight: Tensor, to: Cast) -> Tensor:
    if to == "int8":
        scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return (weight / scale).round() * scale
    return weight.to(getattr(torch, to)).float()


def _contrastive(encoder: TextEncoder, fit: Sequence[str], config: FineTuneConfig) -> Objective:
    centre = encoder.encode(fit[:256]).mean(0)

    def objective(student: TextEncoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        prompts = draw(fit, config.batch, generator)
        one, two = (
            F.normalize(_pooled(student, [view(p, generator) for p in prompts]) - centre, dim=-1) for _ in range(2)
        )
        scores = one @ two.T / config.temperature
        right = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2, {}

    return objective


def _distillation(encoder: TextEncoder, fit: Sequence[str], config: FineTuneConfig) -> Objective:
    def objective(student: TextEncoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        prompts = draw(fit, config.batch, generator)
        answer = _pooled(student, [view(prompt, generator) for prompt in prompts])
        return 1 - F.cosine_similarity(answer, encoder.encode(prompts), dim=-1).mean(), {}

    return objective


def _masked_words(encoder: TextEncoder, fit: Sequence[str], config: FineTuneConfig) -> Objective:
    table = F.normalize(encoder.weights[TOKEN_TABLE].float(), dim=-1)

    def objective(student: TextEncoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = student.tokens(draw(fit, config.batch, generator))
        inside = torch.arange(batch.ids.shape[1], device=batch.ids.device)[None]
        inside = (inside > 0) & (inside < batch.eos[:, None])
        lots = torch.rand(batch.ids.shape, generator=generator).to(batch.ids.device).masked_fill(~inside, 1)
        chosen = lots <= max(MASKED, float(lots.min()))  # one at least
        ids = batch.ids.masked_fill(chosen, encoder.tokenizer.eos_id)
        states = student.transform(student.place(student.embed(ids)))[chosen]
        different, right = batch.ids[chosen].unique(return_inverse=True)
        return F.cross_entropy(F.normalize(states, dim=-1) @ table[different].T / config.temperature, right), {}

    return objective


def _pooled(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    batch = encoder.tokens(prompts)
    return encoder.pool(encoder.states(batch), batch.eos).float()


def view(prompt: str, generator: torch.Generator) -> str:
    """The prompt without some of its words, at least one of which stays."""
    words = prompt.split()
    kept = [word for word in words if float(torch.rand((), generator=generator)) < KEPT]
    return " ".join(kept or words[:1])
