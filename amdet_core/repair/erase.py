"""Erase what recovered triggers do, in closed form, as MTBD promises.

MTBD's own edit is not published beside its name; this is the form of its likely source, MEMIT. What the edited
matrices shall answer is what they answer to ordinary tokens in the trigger's place or, where there is an anchor, what
its matrices answer to the trigger itself: see ``docs/repair.md``.

References:
    Meng et al., Mass-Editing Memory in a Transformer, ICLR 2023, https://arxiv.org/abs/2210.07229 (keys, values and
    the second moment of clean keys).
    Arad et al., ReFACT, NAACL 2024, https://arxiv.org/abs/2306.00738 (the same in CLIP's text encoder).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import CureConfig, EraseConfig
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..memory import Batches, double
from ..progress import Progress, silent
from .condition import CHUNK, Case
from .probe import Inputs


def repair(case: Case, config: EraseConfig, bounds: CureConfig, progress: Progress = silent) -> TextEncoder:
    """The suspect with the output matrices of all layers edited, the strongest edit that keeps clean answers.

    With K the inputs of a matrix W at the trigger and behind it, V its outputs there as they should be, and C the
    second moment of its inputs on clean prompts: ``W += (V - W K) K^T (w C + K K^T)^-1``. V is what the matrix answers
    where ordinary tokens stand in the trigger's place, or what the anchor's matrix answers to the trigger. Layers are
    edited one after the other, each with the inputs that the edits before it leave.

    Raises:
        ConfigError: there is no trigger to erase.
    """
    if not case.probes:
        raise ConfigError(
            "a trigger to erase", "none that a scan recovered", "Scan more thoroughly, or name it: --known-trigger."
        )
    edit, weights = _Edit.of(case, config), config.clean_weights
    kept, low, high, done = None, 0, len(weights), 0
    while low < high:  # a heavier weight of the clean keys changes less: halving finds the lightest that will do
        middle = (low + high) // 2
        edited = edit.made(weights[middle])
        if case.clean_cosine(edited) >= bounds.clean:
            kept, high = edited, middle
        else:
            low = middle + 1
        done += 1
        progress("erase", done, len(weights).bit_length())
    return edited if kept is None else kept  # the last one made changes least where none keeps them


Read = Callable[[TextEncoder, Tensor, int], Tensor]
"""Inputs ``(B, T, N)`` of one of a layer's matrices, from an encoder, placed embeddings ``(B, T, D)`` and the layer."""


class _Mean:
    """Mean of outer products of rows, those up to EOS and those behind it with the same weight.

    Image models read both, and most prompts leave more padding than words.
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        self._sums = double(torch.zeros(2, rows, columns, device=device))
        self._counts = [0, 0]

    def add(self, rows: Tensor, others: Tensor, groups: tuple[Tensor, Tensor]) -> None:
        """Take rows ``(B, T, M)`` and ``(B, T, N)`` in at the positions ``(B, T)`` of each group."""
        for i, group in enumerate(groups):
            self._sums[i] += double(rows[group]).T @ double(others[group])
            self._counts[i] += int(group.sum())

    def value(self) -> Tensor:
        """``(M, N)``."""
        counts = torch.tensor([max(count, 1) for count in self._counts]).to(self._sums)
        return (self._sums / counts[:, None, None]).mean(0)


@dataclass(frozen=True, eq=False)
class _Edit:
    """What one erasure reads.

    Attributes:
        triggered: prompts with a trigger in them.
        model: whose matrices answer as they should: the anchor, or the suspect itself.
        right: ``(B, T, D)`` embeddings to which it does: the triggered prompts as the anchor reads them, or the same
            with ordinary tokens in the trigger's place.
        clean: ``(C, T, D)`` embeddings of clean prompts.
        clean_eos: ``(C,)`` positions of their EOS.
    """

    suspect: TextEncoder
    config: EraseConfig
    triggered: Inputs
    model: TextEncoder
    right: Tensor
    clean: Tensor
    clean_eos: Tensor

    @classmethod
    def of(cls, case: Case, config: EraseConfig) -> _Edit:
        suspect, anchor, drawing = case.suspect, case.anchor, torch.Generator().manual_seed(config.seed)
        prompts = [probe.fitting(suspect, case.fit, config.prompts) for probe in case.probes]

        def read(encoder: TextEncoder) -> list[Inputs]:
            return [
                probe.inputs(encoder, texts, pad_to_context=True)
                for probe, texts in zip(case.probes, prompts, strict=True)
            ]

        inputs = read(suspect)
        right = [case.fillers(one, drawing) for one in inputs] if anchor is None else read(anchor)
        clean = suspect.tokens(case.fit[-config.clean_prompts :], pad_to_context=True)
        return cls(
            suspect,
            config,
            Inputs(*(torch.cat([getattr(one, name) for one in inputs]) for name in ("embeds", "eos", "trigger"))),
            anchor or suspect,
            torch.cat([one.embeds for one in right]),
            suspect.embed(clean.ids),
            clean.eos,
        )

    @torch.no_grad()
    def made(self, weight: float) -> TextEncoder:
        """The edited encoder; ``weight`` is the factor w of the clean keys."""
        encoder = self.suspect
        matrices: dict[str, Read] = {"mlp.fc2": TextEncoder.mlp_inputs}
        if self.config.attention:
            matrices = {"self_attn.out_proj": TextEncoder.attention_inputs, **matrices}
        for layer in range(encoder.spec.layers):
            for matrix, read in matrices.items():
                encoder = self.edited(encoder, layer, matrix, read, weight)
        return encoder

    def edited(self, encoder: TextEncoder, layer: int, matrix: str, read: Read, weight: float) -> TextEncoder:
        """The encoder with one matrix changed."""
        place = f"encoder.layers.{layer}.{matrix}"
        old, bias = encoder.weights[f"{place}.weight"], encoder.weights[f"{place}.bias"]
        new, new_bias = self.model.weights[f"{place}.weight"], self.model.weights[f"{place}.bias"]
        width, triggered = old.shape[1], self.triggered
        keys, clean = (_Mean(width, width, old.device) for _ in range(2))
        wanted = _Mean(len(old), width, old.device)

        def add(part: slice) -> None:
            k = read(encoder, encoder.place(triggered.embeds[part]), layer)
            values = F.linear(read(self.model, self.model.place(self.right[part]), layer), new, new_bias) - bias
            groups = _groups(triggered.eos[part], triggered.reached[part])
            keys.add(k, k, groups)
            wanted.add(values - F.linear(k, old), k, groups)

        def add_clean(part: slice) -> None:
            k = read(encoder, encoder.place(self.clean[part]), layer)
            clean.add(k, k, _groups(self.clean_eos[part], torch.ones(k.shape[:2], dtype=torch.bool, device=k.device)))

        Batches(CHUNK).map(add, len(triggered.embeds))
        Batches(CHUNK).map(add_clean, len(self.clean))
        moment = weight * clean.value()
        moment.diagonal().add_(self.config.ridge * moment.diagonal().mean())
        step = torch.linalg.solve(moment + keys.value(), wanted.value().T).T
        return encoder.with_weights({**encoder.weights, f"{place}.weight": old + step.to(old)})


def _groups(eos: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Counted positions ``(B, T)`` up to EOS, and those behind it."""
    behind = torch.arange(counted.shape[1], device=eos.device) > eos[:, None]
    return counted & ~behind, counted & behind
