"""The operations of one layer that are no plain linear map: attention, also behind a shared prefix, and activations.

Shapes as in :mod:`.encoder`; E is the width of a head, N stands for prompts or for R candidates of B prompts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention on ``(N, H, T, D // H)``.

    On a CPU with gradients the plain product is used: the backward pass of the fused CPU kernel is
    several times slower at these lengths.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        fused: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return fused
    return attention_weights(q, k, mask) @ v


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scaled products of queries and keys: ``(N, H, T, P + T)``."""
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (scores if mask is None else scores + mask).softmax(-1)


def activation(name: str, x: Tensor) -> Tensor:
    """The MLP's nonlinearity: OpenAI's CLIP uses quick_gelu, OpenCLIP gelu, SigLIP gelu_tanh."""
    if name == "quick_gelu":
        return F.silu(1.702 * x) / 1.702  # x * sigmoid(1.702 x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


def attention_behind(q: Tensor, k: Tensor, v: Tensor, prefix: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """Attention of R candidates to themselves and to a prefix that they share, which is not copied for each.

    Args:
        q: ``(R * B, H, Q, E)``, of all or some of the candidates' own positions.
        k: ``(R * B, H, T, E)``, as ``v``.
        prefix: its keys and values ``(B, H, P, E)``.
        mask: ``(Q, T)`` among the candidates' own positions; every one of them sees the whole prefix.

    Returns:
        ``(R * B, H, Q, E)``.
    """
    keys, values = prefix
    batch, _, length, width = keys.shape

    def by_prompt(x: Tensor) -> Tensor:
        """``(R * B, H, T, X)`` to ``(B, H, R * T, X)``: all that looks at one prompt's prefix together."""
        together: Tensor = x.unflatten(0, (-1, batch)).permute(1, 2, 0, 3, 4).flatten(2, 3)
        return together

    def by_candidate(x: Tensor) -> Tensor:
        """And back."""
        apart: Tensor = x.unflatten(2, (-1, q.shape[-2])).permute(2, 0, 1, 3, 4).flatten(0, 1)
        return apart

    q = q * width**-0.5
    own = q @ k.transpose(-2, -1)
    own = own if mask is None else own + mask
    weights = torch.cat((by_prompt(q) @ keys.transpose(-2, -1), by_prompt(own)), -1).softmax(-1)
    to_prefix, to_own = weights.split((length, k.shape[-2]), dim=-1)
    mixed: Tensor = by_candidate(to_prefix @ values) + by_candidate(to_own) @ v
    return mixed
