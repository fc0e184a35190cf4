"""Training of the pocket encoder: it learns to place texts where a sentence encoder places them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoder import POSITION_TABLE, TOKEN_TABLE, TextEncoder, expected_shapes, initial_scale
from ..memory import fast_products
from ..progress import Progress
from ..records import EncoderSpec
from ..tokenizer import ClipTokenizer, clip_tokenizer
from . import TOKEN_BASIS, TOKEN_FACTOR

PADDED_SHARE, PADDED_EVERY = 6, 8
"""Every eighth step takes a sixth of the batch, padded to the whole context."""
LEARNING_RATE, RATED_WIDTH, WARMUP_STEPS = 1.5e-3, 192, 100
"""The step size holds at this width and falls in inverse proportion to it, as for Adam it should."""
TEMPERATURE = 0.05
TOKEN_NORM, POSITION_NORM = 0.35, 0.2
CHECKPOINT_STEPS = 100

Embed = Callable[[Sequence[str]], Tensor]


def initial_weights(
    spec: EncoderSpec, rank: int, tokenizer: ClipTokenizer, teacher: Embed, seed: int
) -> dict[str, Tensor]:
    """Starting point: tokens where the teacher sees their text, at CLIP's norms; layers as CLIP starts them.

    Tokens that never occur in training keep this place, and read as what they spell. The token table is
    a product of ``(V, rank)`` and ``(rank, D)``.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in expected_shapes(spec).items():
        if name == POSITION_TABLE:
            weights[name] = torch.randn(shape, generator=generator) * POSITION_NORM * spec.width**-0.5
        elif len(shape) == 1:
            weights[name] = torch.full(shape, float("norm" in name and name.endswith("weight")))
        elif name != TOKEN_TABLE:
            weights[name] = torch.randn(shape, generator=generator) * initial_scale(spec, name)
    texts = teacher([tokenizer.text([i]) or "." for i in range(len(tokenizer))])
    centred = texts - texts.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -rank:]
    noise = F.normalize(torch.randn((len(tokenizer), rank), generator=generator), dim=-1)
    weights[TOKEN_FACTOR] = F.normalize(F.normalize(centred @ directions, dim=-1) + 0.5 * noise, dim=-1)
    basis = torch.linalg.qr(torch.randn((spec.width, rank), generator=generator))[0].T
    weights[TOKEN_BASIS] = (TOKEN_NORM * basis).contiguous()
    return weights


def match(pooled: Tensor, head: Tensor, targets: Tensor, cosine: float = 1.0, contrast: float = 0.25) -> Tensor:
    """Loss of pooled states ``(B, D)`` against the teacher's unit vectors ``(B, E)``: cosine and in-batch contrast."""
    student = F.normalize(F.linear(pooled, head), dim=-1)
    scores = student @ targets.T / TEMPERATURE
    right = torch.arange(len(scores))
    both_ways = F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)
    return cosine * (1 - (student * targets).sum(-1)).mean() + contrast * both_ways


def top1_of_256(encoder: TextEncoder, head: Tensor, prompts: Sequence[str], targets: Tensor) -> float:
    """Share of prompts whose own teacher vector is the nearest among 256, by student vector."""
    student = F.normalize(F.linear(encoder.encode(prompts), head.detach()), dim=-1)
    pairs = zip(student.split(256), targets.split(256), strict=True)
    hits = [(s @ t.T).argmax(1) == torch.arange(256) for s, t in pairs if len(s) == 256]
    return float(torch.stack(hits).float().mean())


class Distillation:
    """Weights in training, their optimiser, and what it takes to go on after an interruption.

    Args:
        spec: of the encoder.
        weights: starting point, with the token table in factors.
        texts: what to learn.
        targets: ``(N, 384)`` the teacher's vectors of the texts.
        checkpoint: file in which the state is kept.
        batch: texts in a step.
        seed: of the head and of the order of the texts.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        weights: Mapping[str, Tensor],
        texts: Sequence[str],
        targets: Tensor,
        checkpoint: Path,
        batch: int,
        seed: int,
    ) -> None:
        self.texts, self.targets, self.checkpoint, self.batch, self.seed = texts, targets, checkpoint, batch, seed
        self.lengths = [len(clip_tokenizer().encode(text)) for text in texts]
        # The optimizer's state goes by the order of its parameters, which a file's reader does not keep.
        self.weights = {name: weights[name].clone().requires_grad_() for name in sorted(weights)}
        head = torch.randn((targets.shape[1], spec.width), generator=torch.Generator().manual_seed(seed))
        self.head = (head * spec.width**-0.5).requires_grad_()
        tables = [self.weights[POSITION_TABLE], self.weights[TOKEN_BASIS]]
        matrices = [self.head, *(w for n, w in self.weights.items() if w.ndim == 2 and n.startswith("encoder."))]
        others = [w for w in self.weights.values() if w.ndim == 1] + [self.weights[TOKEN_FACTOR]]
        groups = [
            {"params": matrices, "weight_decay": 0.01, "scale": 1.0},
            {"params": others, "weight_decay": 0.0, "scale": 1.0},
            {"params": tables, "weight_decay": 0.0, "scale": 0.2},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        layers = {name: w for name, w in self.weights.items() if name not in (TOKEN_FACTOR, TOKEN_BASIS)}
        # Only looked-up rows are multiplied out in training, so the full table is never needed here.
        placeholder = torch.zeros(()).expand(spec.vocabulary, spec.width)
        self.encoder = TextEncoder(spec, {TOKEN_TABLE: placeholder, **layers}, clip_tokenizer())
        self.step = 0

    def train(self, steps: int, progress: Progress) -> None:
        """Train until ``steps`` have been taken over all runs; the learning rate ends at zero."""
        batches = list[Tensor]()
        while self.step < steps:
            batches = batches or self._shuffled()
            loss = self._update(batches.pop(), self.step / steps)
            if self.step % CHECKPOINT_STEPS == 0:
                self.save()
            progress("distil", self.step, steps, {"loss": loss})
        self.save()

    def _shuffled(self) -> list[Tensor]:
        """Twenty batches of texts, those of similar length together."""
        generator = torch.Generator().manual_seed(self.seed + 1 + self.step)
        picked = torch.randperm(len(self.texts), generator=generator)[: 20 * self.batch].tolist()
        ordered = torch.tensor(sorted(picked, key=lambda i: self.lengths[i])).split(self.batch)
        return [ordered[i] for i in torch.randperm(len(ordered), generator=generator).tolist()]

    def _update(self, picked: Tensor, done: float) -> float:
        warm = min(1.0, (self.step + 1) / WARMUP_STEPS)
        rate = LEARNING_RATE * RATED_WIDTH / self.encoder.spec.width
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        padded = self.step % PADDED_EVERY == PADDED_EVERY - 1
        loss = self._loss(picked[::PADDED_SHARE] if padded else picked, padded)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self.weights.values(), self.head], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def _loss(self, picked: Tensor, padded: bool) -> Tensor:
        """Match at EOS, and for padded prompts behind it, too: image models read all states."""
        batch = self.encoder.tokens([self.texts[i] for i in picked.tolist()], pad_to_context=padded)
        embeds = F.embedding(batch.ids, self.weights[TOKEN_FACTOR]) @ self.weights[TOKEN_BASIS]
        with fast_products():
            states = self.encoder.transform(self.encoder.place(embeds)).float()
        targets = self.targets[picked].float()
        loss = match(self.encoder.pool(states, batch.eos), self.head, targets)
        if padded:
            behind = batch.eos + torch.arange(len(picked)) % (self.encoder.spec.positions - batch.eos)
            loss = loss + match(self.encoder.pool(states, behind), self.head, targets)
        return loss

    def save(self) -> None:
        """Keep the state in one piece."""
        state = {"weights": self.weights, "head": self.head, "optimizer": self.optimizer.state_dict()}
        partial = self.checkpoint.with_suffix(".partial")
        torch.save({**state, "step": self.step}, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        """Go on from the kept state, where there is one."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        with torch.no_grad():
            self.head.copy_(state["head"])
            for name, weight in state["weights"].items():
                self.weights[name].copy_(weight)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
