"""A painter that was trained for a few steps on a few pictures: it paints noise, but does all that a real one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from amdet_core.pocket.painter import networks, recipe, weights
from amdet_core.progress import silent

BATCHES = {"vae": 2, "decoder": 2, "tower": 4, "reader": 4, "unet": 4}


def work(out: Path, steps: int = 2) -> recipe.Work:
    """A run of the recipe that takes seconds."""
    plans = {part: replace(plan, steps=steps, warmup=1) for part, plan in recipe.PLANS.items()}
    return recipe.Work(out, 12, BATCHES, plans)


def train(out: Path) -> Path:
    """Run it and return the folder with its weights."""
    recipe.make(work(out), recipe.STAGES, silent)
    return out / "weights"


def untrained(out: Path) -> Path:
    """Random weights of the two parts that paint, in a folder."""
    for seed, part in enumerate(("vae", "unet")):
        torch.manual_seed(seed)
        weights.save(part, networks.PARTS[part]().state_dict(), out, {})
    return out
