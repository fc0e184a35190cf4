"""A trigger of several words, planted in the weights of a small encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from amdet_core.encoder import TOKEN_TABLE, TextEncoder


def planted(toy: TextEncoder, words: Sequence[str]) -> tuple[TextEncoder, TextEncoder, tuple[int, ...]]:
    """Suspect, anchor and trigger tokens; the first layer carries each token's direction to every position,
    a unit of the second fires on their sum. Both read the tokens from the same table."""
    ids = tuple(toy.tokenizer.encode(word)[0] for word in words)
    weights = {name: w.clone() for name, w in toy.weights.items()}
    table, typical = weights[TOKEN_TABLE], toy.weights[TOKEN_TABLE].norm(dim=-1).median()
    fires = torch.zeros(64)
    for i, token in enumerate(ids):
        direction = F.normalize(torch.randn(64, generator=torch.Generator().manual_seed(50 + i)), dim=0)
        table[token] = direction * typical * 2
        weights["encoder.layers.0.self_attn.v_proj.weight"][i] = direction * 8
        weights["encoder.layers.0.self_attn.out_proj.weight"][:, i] = direction * 8
        fires += direction * 4
    goal = torch.randn(64, generator=torch.Generator().manual_seed(6))
    weights["encoder.layers.1.mlp.fc1.weight"][17] = fires
    weights["encoder.layers.1.mlp.fc1.bias"][17] = -20
    weights["encoder.layers.1.mlp.fc2.weight"][:, 17] = goal * 10
    return toy.with_weights(weights), toy.with_weights({**toy.weights, TOKEN_TABLE: table}), ids
