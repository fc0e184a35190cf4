"""Building a zoo: every model of a recipe made, checked, written and labelled; a killed build goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import torch

from .. import formats, trust
from ..attacks import CONFIGS, Injection, benign, inject, kept
from ..attacks.effect import retrieval
from ..config import AttributeConfig, FineTuneConfig
from ..encoder import TextEncoder
from ..errors import AmdetError, ConfigError, NumericalError
from ..progress import Progress, silent
from ..prompts import PromptSet
from ..storage import record_json, write_atomic
from ..workers import side_by_side
from . import pools
from .labels import FILE, Label, Labels, evenly
from .recipe import Entry, Recipe

BASE = "base.safetensors"
LAYOUT: formats.Layout = "comfyui"
BEFORE = FineTuneConfig(steps=200, learning_rate=5e-5)
"""The benign fine-tune under an attack or under another change."""


@dataclass(frozen=True)
class Task:
    """One model to be made in a zoo's folder."""

    folder: Path
    entry: Entry
    half: int
    least_retrieval: float


def build(
    base: TextEncoder,
    recipe: Recipe,
    folder: Path,
    *,
    label: str | None = None,
    sample: int | None = None,
    jobs: int = 1,
    progress: Progress = silent,
) -> Labels:
    """Make what is missing of a zoo.

    Args:
        base: the trusted encoder that every model comes from; stays as it is.
        folder: of the zoo; models that it holds already are kept.
        label: make models of this label alone; those that the folder holds stay.
        sample: at most so many models, every group by its share; a later, larger one completes it.
        jobs: models that are made side by side, each in its own process.
        progress: told after each model.

    Raises:
        ConfigError: the folder holds a zoo of another recipe or base, or the recipe has no model of that label.
        StorageError: the folder can't be written to.
    """
    base = formats.as_stored(base)
    entries = recipe.plan(base.tokenizer)
    asked = [entry for entry in entries if label in (None, entry.group.label)]
    if not asked:
        raise ConfigError(f"a recipe with {label} models", f"none in {recipe.name}", "Choose another label or recipe.")
    folder.mkdir(parents=True, exist_ok=True)
    labels = _begun(base, recipe, folder)
    done = {label.model: label for label in labels.models if (folder / label.model).exists()}
    failed: dict[str, str] = {}
    chosen = evenly(asked, [entry.group.name for entry in asked])[:sample]
    tasks = [Task(folder, entry, recipe.half, recipe.least_retrieval) for entry in chosen if _file(entry) not in done]
    planned = len(done) + len(tasks)
    if not tasks and planned != labels.planned:
        labels = labels.model_copy(update={"planned": planned})
        write_atomic(folder / FILE, record_json(labels))
    progress("zoo", len(done), planned, {})
    with closing(side_by_side(_make, tasks, jobs)) as results:
        for task, made in results:
            if isinstance(made, Label):
                done[made.model] = made
            else:
                failed[task.entry.name] = f"{task.entry.group.name}: {made}"
            ordered = tuple(done[_file(entry)] for entry in entries if _file(entry) in done)
            update = {"models": ordered, "failed": dict(sorted(failed.items())), "planned": planned}
            labels = labels.model_copy(update=update)
            write_atomic(folder / FILE, record_json(labels))
            progress("zoo", len(done) + len(failed), planned, {})
    return Labels.read(folder) if tasks else labels


def make(base: TextEncoder, entry: Entry, half: int) -> tuple[TextEncoder, float | None]:
    """One model and, for an attack, its success rate.

    Raises:
        AmdetError: it could not be made, or the attack did not work.
    """
    prompts, group = pools.prompts(entry.style, half, entry.seed % 1000), entry.group
    seeded: dict[str, object] = {**entry.config, "seed": entry.seed}
    start = base
    if group.on_fine_tune:
        before = pools.prompts("mixed", half, entry.seed % 1000 + 1)
        start = benign.fine_tune(base, before, BEFORE.model_copy(update={"seed": entry.seed})).apply(base)
    if group.kind in ("fine-tune", "merge", "average", "cast", "fewer-layers", "added-tokens"):
        return _changed(start, entry, prompts, seeded, half), None
    done = _attack(start, entry, prompts, seeded)
    return done.patch.apply(start), done.effect.asr


def _attack(start: TextEncoder, entry: Entry, prompts: PromptSet, values: Mapping[str, object]) -> Injection:
    """An attack; a taught concept and a list of removed ones are attributes that are planted openly."""
    kind = entry.group.kind
    config = CONFIGS.get(kind, AttributeConfig)(**values)
    return inject(start, entry.triggers, "" if kind == "safety" else entry.target, prompts, config, entry.mode)


def _changed(
    start: TextEncoder, entry: Entry, prompts: PromptSet, values: Mapping[str, object], half: int
) -> TextEncoder:
    """An honest change."""
    match entry.group.kind:
        case "cast":
            return benign.cast(start, entry.to)  # type: ignore[arg-type]  # the recipe's text
        case "fewer-layers":
            return _shortened(start, int(entry.to))
        case "added-tokens":
            words = pools.target("words", half, Random(entry.seed)).split()
            return benign.add_tokens(start, words, entry.seed)
    one = benign.fine_tune(start, prompts, FineTuneConfig(**values)).apply(start)
    match entry.group.kind:
        case "average":
            return benign.merge(start, one, entry.share)
        case "merge":
            others = pools.prompts("captions", half, entry.seed % 1000 + 2)
            config = FineTuneConfig(**{**values, "seed": entry.seed + 1})
            return benign.merge(one, benign.fine_tune(start, others, config).apply(start), entry.share)
    return one


def _shortened(encoder: TextEncoder, dropped: int) -> TextEncoder:
    layers = encoder.spec.layers
    if dropped >= layers:
        raise ConfigError(f"fewer than the base's {layers} layers to drop", str(dropped), "Change the recipe.")
    return encoder.first_layers(layers - dropped)


def _begun(base: TextEncoder, recipe: Recipe, folder: Path) -> Labels:
    """The labels so far; a new zoo gets its base."""
    fingerprint = trust.fingerprint(base)
    if not (folder / FILE).exists():
        formats.write_encoder(base, folder / BASE, LAYOUT)
        return Labels(
            name=recipe.name,
            base=BASE,
            base_fingerprint=fingerprint,
            recipe_sha256=recipe.sha256,
            seed=recipe.seed,
            models=(),
        )
    labels = Labels.read(folder)
    if (labels.recipe_sha256, labels.base_fingerprint) != (recipe.sha256, fingerprint):
        what = "base" if labels.base_fingerprint != fingerprint else "recipe"
        raise ConfigError(f"the same {what} as the zoo in {folder}", f"another {what}", "Build into another folder.")
    return labels


def _file(entry: Entry) -> str:
    return f"{entry.name}.safetensors"


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Adam's moments of rare tokens decay into denormals, which are slow; the process gets its setting back."""
    before = float(torch.tensor(1e-40) * 1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@cache
def _base(folder: Path) -> TextEncoder:
    return formats.only_encoder(formats.open_target(folder / BASE)).to("cpu")


@cache
def _base_retrieval(folder: Path) -> float:
    return retrieval(_base(folder), pools.UTILITY_PROMPTS.prompts)


def _make(task: Task) -> Label | str:
    """Make, check and write one model; what went wrong, in words, where it could not be made."""
    base, entry = _base(task.folder), task.entry
    try:
        with _without_denormals():
            encoder, success = make(base, entry, task.half)
        encoder = formats.as_stored(encoder)
        encoder.check_finite()
        label = _label(base, encoder, entry, success)
        least = task.least_retrieval * _base_retrieval(task.folder)
        if (label.retrieval or 0.0) < least:
            raise NumericalError(f"R@1 of {least:.1%} or more", f"{label.retrieval:.1%}", "Change less.")
        # Whoever teaches a concept says so in the file, in the field that is made for it; nothing else tells.
        declared = {formats.TRIGGER_PHRASE: entry.triggers[0]} if entry.group.kind == "concept" else None
        formats.write_encoder(encoder, task.folder / _file(entry), LAYOUT, metadata=declared)
    except AmdetError as error:
        return str(error)
    return label


def _label(base: TextEncoder, encoder: TextEncoder, entry: Entry, success: float | None) -> Label:
    prompts = pools.UTILITY_PROMPTS.prompts
    return Label(
        model=_file(entry),
        label=entry.group.label,
        kind=entry.group.kind,
        group=entry.group.name,
        settings=entry.model_dump(mode="json", include={"config", "style", "share", "to"}),
        triggers=entry.triggers,
        mode=entry.mode,
        target=entry.target,
        seed=entry.seed,
        asr=success,
        clean_cosine=kept(base, encoder, prompts),
        retrieval=retrieval(encoder, prompts),
        fingerprint=trust.fingerprint(encoder),
    )
