"""Erase what recovered triggers do, in closed form and without an anchor, as MTBD promises.

MTBD's own edit is not published beside its name; this is the form of its likely source, MEMIT, with ordinary tokens
in the trigger's place as what the edited matrices shall answer: see ``docs/repair.md``.

References:
    Meng et al., Mass-Editing Memory in a Transformer, ICLR 2023, https://arxiv.org/abs/2210.07229 (keys, values and
    the second moment of clean keys).
    Arad et al., ReFACT, NAACL 2024, https://arxiv.org/abs/2306.00738 (the same in CLIP's text encoder).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import CureConfig, EraseConfig
from ..encoder import TextEncoder
from ..errors import ConfigError
from ..memory import Batches
from ..progress import Progress, silent
from .condition import CHUNK, Case


def repair(case: Case, config: EraseConfig, bounds: CureConfig, progress: Progress = silent) -> TextEncoder:
    """The suspect with the output matrices of all layers edited, the strongest edit that keeps clean answers.

    With K the inputs of a matrix W at the trigger and behind it, K' the inputs at the same positions where ordinary
    tokens stand in the trigger's place, and C the second moment of its inputs on clean prompts:
    ``W += W (K' - K) K^T (w C + K K^T)^-1``. Layers are edited one after the other, each with the inputs that the
    edits before it leave.

    Raises:
        ConfigError: there is no trigger to erase.
    """
    if not case.probes:
        raise ConfigError(
            "a trigger to erase", "none that a scan recovered", "Scan more thoroughly, or name it: --known-trigger."
        )
    edit = _Edit.of(case, config)
    for done, weight in enumerate(config.clean_weights, start=1):
        edited = edit.made(weight)
        progress("erase", done, len(config.clean_weights))
        if case.measure(edited, ()).kept(bounds):
            break
    return edited


Read = Callable[[TextEncoder, Tensor, int], Tensor]
"""Inputs ``(B, T, N)`` of one of a layer's matrices, from an encoder, placed embeddings ``(B, T, D)`` and the layer."""


@dataclass(frozen=True, eq=False)
class _Edit:
    """What one erasure reads.

    Attributes:
        triggered: ``(B, T, D)`` embeddings of triggered prompts, without positions.
        ordinary: the same, with ordinary tokens in the trigger's place.
        reached: ``(B, T)`` of bool, the positions that a trigger reaches.
        clean: ``(N, T, D)`` of clean prompts.
    """

    suspect: TextEncoder
    config: EraseConfig
    triggered: Tensor
    ordinary: Tensor
    reached: Tensor
    clean: Tensor

    @classmethod
    def of(cls, case: Case, config: EraseConfig) -> _Edit:
        suspect, drawing = case.suspect, torch.Generator().manual_seed(config.seed)
        triggered, ordinary, reached = [], [], []
        for probe in case.probes:
            prompts = probe.fitting(suspect, case.fit, config.prompts)
            inputs = probe.inputs(suspect, prompts, pad_to_context=True)
            triggered.append(inputs.embeds)
            ordinary.append(case.fillers(inputs, drawing).embeds)
            reached.append(inputs.reached)
        clean = suspect.tokens(case.fit[-config.clean_prompts :], pad_to_context=True)
        return cls(
            suspect, config, torch.cat(triggered), torch.cat(ordinary), torch.cat(reached), suspect.embed(clean.ids)
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
                encoder = self._edited(encoder, layer, matrix, read, weight)
        return encoder

    def _edited(self, encoder: TextEncoder, layer: int, matrix: str, read: Read, weight: float) -> TextEncoder:
        """The encoder with one matrix changed."""
        name = f"encoder.layers.{layer}.{matrix}.weight"
        width = encoder.weights[name].shape[1]
        keys, clean = torch.zeros(2, width, width, dtype=torch.float64, device=encoder.device)
        wanted = torch.zeros_like(keys)

        def add(part: slice) -> int:
            k, k_ordinary = (
                read(e, e.place(x[part]), layer)[self.reached[part]].double()
                for e, x in ((encoder, self.triggered), (self.suspect, self.ordinary))
            )
            keys.add_(k.T @ k)
            wanted.add_((k_ordinary - k).T @ k)
            return len(k)

        def add_clean(part: slice) -> int:
            k = read(encoder, encoder.place(self.clean[part]), layer).flatten(0, 1).double()
            clean.add_(k.T @ k)
            return len(k)

        count = sum(Batches(CHUNK).map(add, len(self.triggered)))
        count_clean = sum(Batches(CHUNK).map(add_clean, len(self.clean)))
        moment = clean * (weight / count_clean)
        moment.diagonal().add_(self.config.ridge * moment.diagonal().mean())
        step = torch.linalg.solve(moment + keys / count, wanted.T / count).T
        old = encoder.weights[name]
        return encoder.with_weights({**encoder.weights, name: old + (old.double() @ step).to(old.dtype)})
