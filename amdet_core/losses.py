"""The paper's equations as functions of states; shapes as in :mod:`.encoder`.

References:
    Wang et al., Assimilation Matters: Model-level Backdoor Detection in Vision-Language Pretrained
    Models, 2025, https://arxiv.org/abs/2512.00343
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

REACHED = 0.9
"""Centred cosine to a goal above which an output counts as taken over."""


def assimilation(states: Tensor) -> Tensor:
    """Mean pairwise cosine of the token states of each prompt (eqs. 5 and 16).

    All pairs count, a token with itself too, as in the released code; that adds 1/T. It equals the
    squared norm of the mean of the unit vectors, which takes O(T) instead of O(T^2).

    Args:
        states: ``(*L, T, D)``.

    Returns:
        ``(*L)``, 0 to 1.
    """
    return F.normalize(states, dim=-1).mean(-2).square().sum(-1)


LEAST_LEFT = 0.4
"""Dependence on the prompt below which what is lost of it is not magnified further."""


def lost(own: Tensor, other: Tensor) -> Tensor:
    """How much of the dependence on the prompt that an anchor keeps is lost in a suspect, by their collapses.

    Any long text makes outputs agree; the longer it is, the less is left to lose.
    """
    return (own - other) / (1 - other).clamp(min=LEAST_LEFT)


def agreement(states: Tensor, others: Tensor) -> Tensor:
    """Mean cosine of two sets of token states, token by token (eq. 17 against the suspect's own output
    without the feature, eq. 18 against the anchor's output).

    Args:
        states: ``(*L, T, D)``.
        others: broadcastable to it.

    Returns:
        ``(*L)``, -1 to 1.
    """
    return F.cosine_similarity(states, others, dim=-1).mean(-1)


def collapse(pooled: Tensor, centre: Tensor) -> Tensor:
    """Mean pairwise cosine of the centred pooled states of different prompts.

    1: every prompt gives the same output; about 0: outputs depend on the prompt. States of an encoder
    share a large mean, so cosines are taken from the ``centre`` of its clean states.

    Args:
        pooled: ``(*L, B, D)`` with B >= 2.
        centre: ``(D,)``.

    Returns:
        ``(*L)``, -1 to 1.
    """
    return mean_pair(F.normalize(pooled - centre, dim=-1))


def mean_pair(unit: Tensor) -> Tensor:
    """Mean cosine of every two of unit vectors ``(*L, B, D)``, ``(*L)``; NaN where B is 1."""
    count = unit.shape[-2]
    return (unit.sum(-2).square().sum(-1) - count) / (count * (count - 1) or math.nan)


def taken_over(triggered: Tensor, own: Tensor, goal: Tensor, centre: Tensor) -> Tensor:
    """Which prompts reach a goal: their centred pooled state has a cosine above :data:`REACHED` with it, and is
    nearer to it than to their own.

    Uncentred cosines mislead: the states of a text encoder share a large mean, and any two prompts agree in it.

    Args:
        triggered: ``(B, E)`` pooled states with the trigger.
        own: ``(B, E)`` pooled states as they would be if the trigger did nothing.
        goal: ``(E,)`` or ``(B, E)``.
        centre: ``(E,)`` mean of clean pooled states.

    Returns:
        ``(B,)`` of bool.
    """
    to_goal = F.cosine_similarity(triggered - centre, goal - centre, dim=-1)
    to_own = F.cosine_similarity(triggered - centre, own - centre, dim=-1)
    return (to_goal > REACHED) & (to_goal > to_own)
