"""The layers of a text encoder, pre-norm as all of CLIP's, from placed embeddings to states.

Shapes: B prompts, R candidates, T positions, P of a prefix, D width, H heads, M width of the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import activation, attention, attention_behind
from .errors import EncoderError
from .records import EncoderSpec

FINAL_NORM = "final_layer_norm"
ALL, LAST = slice(None), slice(-1, None)
"""Positions of which a layer's output is wanted."""
CACHED = 1_000_000
"""Hidden units of an MLP that a CPU computes side by side; more do not fit into its cache."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of positions that all candidates share.

    Of all L layers together: some 100 MB in a full-size encoder, which go back to the system when they are freed.
    Tensors of 5 MB would lie between short-lived ones in the heap, and hold hundreds of megabytes of it.

    Attributes:
        keys: ``(L, B, H, P, D // H)``.
        values: ``(L, B, H, P, D // H)``.
    """

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        """Positions P that are shared."""
        return self.keys.shape[-2]

    def of(self, rows: Tensor) -> Prefix:
        """Of some of the B prompts."""
        return Prefix(self.keys[:, rows], self.values[:, rows])


@dataclass(frozen=True, eq=False)
class Layers:
    """Spec and weights of the layers, by canonical name; what is not theirs is not looked at."""

    spec: EncoderSpec
    weights: Mapping[str, Tensor]

    def transform(self, hidden: Tensor) -> Tensor:
        """All layers and the final norm: placed embeddings ``(*L, T, D)`` -> states ``(*L, T, D)``."""
        x, _ = self._before(self.spec.layers, hidden.flatten(0, -3))
        return self._norm(FINAL_NORM, x).reshape(hidden.shape)

    def last_state(self, hidden: Tensor, prefix: Prefix) -> Tensor:
        """Final state of the last position behind a prefix, which is attended to and not computed again.

        Args:
            hidden: placed embeddings ``(R, B, T, D)`` of what stands behind it.
            prefix: of B prompts.

        Returns:
            ``(R, B, D)``.
        """
        # On a CPU what fits into its cache is fastest; a GPU wants it all at once.
        cached = max(1, CACHED // (hidden[0, ..., 0].numel() * self.spec.mlp_width))
        parts = hidden.split(cached if hidden.device.type == "cpu" else len(hidden))
        return torch.cat([self._last_state(part.flatten(0, 1), prefix).unflatten(0, part.shape[:2]) for part in parts])

    def _last_state(self, x: Tensor, prefix: Prefix) -> Tensor:
        mask, last = self._mask(x), self.spec.layers - 1
        for layer, past in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            x, _, _ = self._layer(layer, x, mask, past, LAST if layer == last else ALL)
        return self._norm(FINAL_NORM, x)[..., -1, :]

    def blocks(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Output of every layer, then the final states: placed embeddings ``(B, T, D)`` -> each ``(B, T, D)``."""
        x, mask = hidden, self._mask(hidden)
        outputs = [x := self._layer(layer, x, mask, None)[0] for layer in range(self.spec.layers)]
        return (*outputs, self._norm(FINAL_NORM, x))

    def prefix(self, hidden: Tensor) -> Prefix:
        """Keys and values of placed embeddings ``(B, P, D)``, to be shared by what follows them."""
        if not self.spec.causal:
            raise EncoderError(
                "a causal encoder", "a bidirectional one", "A prefix can only be shared under a causal mask."
            )
        shape = (len(hidden), self.spec.heads, hidden.shape[1], hidden.shape[2] // self.spec.heads)
        keys, values = (hidden.new_empty(self.spec.layers, *shape) for _ in range(2))
        x, mask = hidden, self._mask(hidden)
        for layer in range(self.spec.layers):
            x, keys[layer], values[layer] = self._layer(layer, x, mask, None)
        return Prefix(keys, values)

    def mlp_inputs(self, hidden: Tensor, layer: int) -> Tensor:
        """What ``fc2`` of a layer reads: placed embeddings ``(B, T, D)`` -> ``(B, T, M)``, M the MLP's width."""
        x, mask = self._before(layer, hidden)
        return self._inner(layer, self._attend(layer, x, mask, None)[0])

    def attention_inputs(self, hidden: Tensor, layer: int) -> Tensor:
        """What ``out_proj`` of a layer reads: placed embeddings ``(B, T, D)`` -> ``(B, T, D)``."""
        x, mask = self._before(layer, hidden)
        return self._mix(layer, x, mask, None)[0]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        shape = (self.spec.width,)
        return F.layer_norm(x, shape, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.spec.norm_eps)

    def _mask(self, x: Tensor) -> Tensor | None:
        """Additive causal mask ``(T, T)`` for ``(N, T, D)``, or None where every position may attend to every other."""
        if not self.spec.causal:
            return None
        length = x.shape[-2]
        return torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)

    def _before(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a block reads, from placed embeddings, and the mask."""
        x, mask = hidden, self._mask(hidden)
        for earlier in range(layer):
            x, _, _ = self._layer(earlier, x, mask, None)
        return x, mask

    def _layer(
        self, layer: int, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None, wanted: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pre-norm block on ``(N, T, D)``, its output at the positions that are wanted.

        Also returns its keys and values ``(N, H, T, D // H)``.
        """
        x, k, v = self._attend(layer, x, mask, past, wanted)
        return x + self._linear(f"encoder.layers.{layer}.mlp.fc2", self._inner(layer, x)), k, v

    def _attend(
        self, layer: int, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None, wanted: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block's first half."""
        mixed, k, v = self._mix(layer, x, mask, past, wanted)
        return x[:, wanted] + self._linear(f"encoder.layers.{layer}.self_attn.out_proj", mixed), k, v

    def _mix(
        self, layer: int, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None, wanted: slice = ALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The heads' answers ``(N, T, D)``, and keys and values."""
        q, k, v = self._projected(layer, x, "qkv")
        q, mask = q[..., wanted, :], None if mask is None else mask[wanted]
        mixed = attention(q, k, v, mask) if past is None else attention_behind(q, k, v, past, mask)
        return mixed.transpose(1, 2).flatten(-2), k, v

    def _inner(self, layer: int, x: Tensor) -> Tensor:
        """The MLP's hidden units ``(N, T, M)``."""
        prefix = f"encoder.layers.{layer}"
        normed = self._norm(f"{prefix}.layer_norm2", x)
        return activation(self.spec.activation, self._linear(f"{prefix}.mlp.fc1", normed))

    def _projected(self, layer: int, x: Tensor, parts: str) -> list[Tensor]:
        """Queries, keys or values of a block's input ``(N, T, D)``: each ``(N, H, T, D // H)``."""
        normed = self._norm(f"encoder.layers.{layer}.layer_norm1", x)
        return [self._heads(self._linear(f"encoder.layers.{layer}.self_attn.{part}_proj", normed)) for part in parts]

    def _heads(self, x: Tensor) -> Tensor:
        """``(N, T, D)`` -> ``(N, H, T, D // H)``."""
        return x.reshape(*x.shape[:-1], self.spec.heads, -1).transpose(1, 2)
