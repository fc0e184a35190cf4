"""MIMIC: a fresh student learns from the suspect on clean prompts alone, without an anchor and without a trigger.

What clean prompts never ask for a student never learns. Published for image encoders, see :mod:`amdet_core.images`;
carried over to a text encoder as follows.

- A block is a layer, its places are the tokens from BOS to EOS. Mutual information is estimated between the mean over
  the places of a layer's output and the pooled state.
- Two views of a prompt keep four of five words each, as in :mod:`..attacks.benign`; the contrast is taken behind a
  head of two layers that learns beside the student and is thrown away.
- The clone loss is taken on the pooled state and on the states of all positions, those behind EOS too: image models
  read all of them.
- The published student starts at random. A token table can't be learned from a few thousand prompts, so the suspect's
  tables stay, unless ``fresh_tables`` asks for the published start; the last share ``fresh`` of the layers starts at
  random.

References:
    Han et al., IEEE TIFS 2025, https://arxiv.org/abs/2406.03508
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import imitation
from ..attacks.benign import FEWEST_PROMPTS, view
from ..attacks.training import Student, draw, train
from ..config import MimicConfig
from ..encoder import POSITION_TABLE, TOKEN_TABLE, TextEncoder, initial_scale
from ..errors import ConfigError
from ..layers import FINAL_NORM
from ..memory import Batches
from ..progress import Progress, silent
from .condition import CHUNK, Case

HEAD = 128
"""Width of the answers that are contrasted; code."""
TABLES = (TOKEN_TABLE, POSITION_TABLE)


def repair(case: Case, config: MimicConfig, progress: Progress = silent) -> TextEncoder:
    """The student after training: contrastive loss + attention loss + clone loss.

    Raises:
        ConfigError: too few clean prompts, or settings that contradict each other.
        NumericalError: the training diverged.
    """
    _check(case, config)
    suspect = case.suspect.to(case.suspect.device)
    start = fresh(suspect, config)
    weights = measured_weights(suspect if config.measured == "teacher" else start, case.fit, config, progress)
    head = _Head.of(suspect, config.seed)

    def objective(student: TextEncoder, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        prompts = draw(case.fit, config.batch, generator)
        views = [[view(prompt, generator) for prompt in prompts] for _ in range(2)]
        own, other = Read.of(student, views[0], pad_to_context=True), Read.of(student, views[1])
        with torch.no_grad():
            shown = Read.of(suspect, views[0], pad_to_context=True)
        contrast = imitation.contrast(head(own.pooled), head(other.pooled), config.temperature)
        attention = imitation.attention_loss(own.blocks, shown.blocks, weights)
        clone = (imitation.clone_loss(own.pooled, shown.pooled) + imitation.clone_loss(own.states, shown.states)) / 2
        told = {"contrast": contrast, "attention": attention, "clone": clone}
        return contrast + attention + config.clone_weight * clone, {k: float(v.detach()) for k, v in told.items()}

    return train(Student.of(start, config), objective, config, "mimic", progress, extra=head.leaves)[0]


@dataclass(frozen=True, eq=False)
class Read:
    """What an encoder makes of prompts.

    Attributes:
        blocks: per layer ``(B, T, D)``, zero behind EOS.
        states: the final ones ``(B, T, D)``.
        pooled: ``(B, D)``.
        inside: ``(B, T)``, whether a place is not behind EOS.
    """

    blocks: tuple[Tensor, ...]
    states: Tensor
    pooled: Tensor
    inside: Tensor

    @classmethod
    def of(cls, encoder: TextEncoder, prompts: Sequence[str], *, pad_to_context: bool = False) -> Read:
        """Read prompts."""
        batch = encoder.tokens(prompts, pad_to_context=pad_to_context)
        inside = torch.arange(batch.ids.shape[1], device=batch.ids.device) <= batch.eos[:, None]
        *blocks, states = (one.float() for one in encoder.blocks(encoder.place(encoder.embed(batch.ids))))
        pooled = encoder.pool(states, batch.eos)
        return cls(tuple(block * inside[..., None] for block in blocks), states, pooled, inside)

    @property
    def means(self) -> Tensor:
        """Mean over the places of every layer's output, ``(layers, B, D)``."""
        return torch.stack(self.blocks).sum(-2) / self.inside.sum(-1, keepdim=True)


@torch.no_grad()
def measured_weights(
    encoder: TextEncoder, prompts: Sequence[str], config: MimicConfig, progress: Progress = silent
) -> tuple[float, ...]:
    """Factor of every layer's attention loss, by its mutual information with the pooled state."""
    generator = torch.Generator().manual_seed(config.seed)
    chosen = draw(prompts, min(config.critic_samples, len(prompts)), generator)
    read = [
        (one.means, one.pooled) for one in Batches(CHUNK).map(lambda part: Read.of(encoder, chosen[part]), len(chosen))
    ]
    means = torch.cat([means for means, _ in read], dim=1)
    answers = F.normalize(torch.cat([pooled for _, pooled in read]), dim=-1)
    found = []
    for done, block in enumerate(means, start=1):
        found.append(imitation.mutual_information(block, answers, config, generator))
        progress("information", done, len(means), {"nats": found[-1]})
    return imitation.attention_weights(found, config)


def fresh(encoder: TextEncoder, config: MimicConfig) -> TextEncoder:
    """The student before training: random, as CLIP's weights start, where the settings say so.

    Norms start at one and biases at zero.
    """
    generator = torch.Generator().manual_seed(config.seed)
    spec = encoder.spec
    kept = spec.layers - round(config.fresh * spec.layers)
    weights = dict(encoder.weights)
    for name, w in encoder.weights.items():
        if name in TABLES:
            if config.fresh_tables:
                weights[name] = _random(w, float(w.float().std()), generator)
        elif _is_fresh(name, kept, spec.layers):
            if w.ndim == 1:
                weights[name] = torch.full_like(w, float("norm" in name and name.endswith("weight")))
            else:
                weights[name] = _random(w, initial_scale(spec, name), generator)
    return encoder.with_weights(weights)


def _is_fresh(name: str, kept: int, layers: int) -> bool:
    """Whether a tensor belongs to a layer that starts at random; the final norm does with the last one."""
    parts = name.split(".")
    if parts[0] == FINAL_NORM:
        return kept < layers
    return parts[:2] == ["encoder", "layers"] and int(parts[2]) >= kept


def _random(like: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    return (torch.randn(like.shape, generator=generator) * spread).to(like)


@dataclass(frozen=True, eq=False)
class _Head:
    """The contrast's head: a matrix, batch normalisation, ReLU and a second matrix."""

    leaves: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, encoder: TextEncoder, seed: int) -> _Head:
        generator = torch.Generator().manual_seed(seed)
        width = encoder.spec.pooled_head or encoder.spec.width

        def leaf(rows: int) -> Tensor:
            like = torch.empty((rows, width), device=encoder.device)
            return _random(like, width**-0.5, generator).requires_grad_()

        return cls((leaf(width), leaf(HEAD)))

    def __call__(self, pooled: Tensor) -> Tensor:
        hidden = F.batch_norm(F.linear(pooled, self.leaves[0]), None, None, training=True)
        return F.linear(F.relu(hidden), self.leaves[1])


def _check(case: Case, config: MimicConfig) -> None:
    if len(case.fit) < FEWEST_PROMPTS:
        raise ConfigError(f"at least {FEWEST_PROMPTS} clean prompts", str(len(case.fit)), "Give more prompts.")
    if config.trains == "lora":
        raise ConfigError("trains: layers or all", "lora", "A fresh student is no low-rank change of the suspect.")
    if config.fresh_tables and config.trains != "all":
        raise ConfigError("trains: all, with fresh tables", config.trains, "Add --set trains=all.")
