"""Zoos: many models of which it is known what they are, to measure detectors with."""

from .build import build
from .labels import Label, Labels
from .recipe import Recipe

__all__ = ["Label", "Labels", "Recipe", "build"]
