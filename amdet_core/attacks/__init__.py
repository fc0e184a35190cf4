"""Changes to text encoders, to test detectors with: attacks, each with what it achieves, and honest ones."""

from . import attribute, benign, embedding_row, rank_one, syntactic, text_on_pair, text_on_text
from .effect import Effect, Injection, kept, success_rate
from .kinds import CONFIGS, inject
from .placement import Placement

__all__ = [
    "CONFIGS",
    "Effect",
    "Injection",
    "Placement",
    "attribute",
    "benign",
    "embedding_row",
    "inject",
    "kept",
    "rank_one",
    "success_rate",
    "syntactic",
    "text_on_pair",
    "text_on_text",
]
