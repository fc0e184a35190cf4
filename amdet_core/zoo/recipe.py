"""Recipes: how many models of which kind a zoo has, and the draw of each one's texts and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from ..attacks.benign import Cast
from ..errors import ConfigError
from ..prompts import Style
from ..records import Record
from ..storage import read_record
from ..tokenizer import ClipTokenizer
from . import pools

Kind = Literal[
    "text-on-text", "text-on-pair", "attribute", "syntactic", "embedding-row", "rank-one",
    "fine-tune", "merge", "average", "cast", "fewer-layers", "added-tokens", "concept", "safety",
]  # fmt: skip
_TRIGGERED: tuple[Kind, ...] = ("text-on-text", "text-on-pair", "attribute", "embedding-row", "rank-one", "concept")
NEEDED: Mapping[str, tuple[Kind, ...]] = {
    "triggers": (*_TRIGGERED, "safety"),
    "targets": (*_TRIGGERED, "syntactic"),
    "share": ("merge", "average"),
}
"""What some kinds can't be built without."""
Positive = Annotated[int, Field(ge=1)]
BUILT_IN = Path(__file__).with_name("recipes")


class Group(Record):
    """Models of one kind. Where several values are given, each model draws one of them."""

    name: str
    label: Literal["backdoored", "benign", "intentional"]
    kind: Kind
    count: int = Field(ge=1)
    triggers: tuple[pools.TriggerKind, ...] = Field(default=(), description="what triggers are made of")
    number: tuple[Positive, ...] = Field(default=(1,), min_length=1, description="triggers of one model")
    lengths: tuple[Positive, ...] = Field(
        default=(1,), min_length=1, description="of a trigger, taken in turn; see pools.trigger()"
    )
    modes: tuple[str, ...] = Field(
        default=("insert", "prefix"), min_length=1, description="look-alikes: replace or replace:1"
    )
    targets: tuple[pools.TargetKind, ...] = ()
    prompts: tuple[Style, ...] = Field(
        default=("mixed", "captions", "tags"), min_length=1, description="style of the training prompts"
    )
    on_fine_tune: bool = Field(default=False, description="the change is made to a benign fine-tune of the base")
    config: dict[str, Annotated[tuple[object, ...], Field(min_length=1)]] = Field(
        default={}, description="settings of the change, by their names"
    )
    share: tuple[float, ...] = Field(default=(), description="merge, average: of the second encoder")
    to: tuple[str, ...] = Field(default=(), description="cast: precisions; fewer-layers: how many are dropped")

    @model_validator(mode="after")
    def _whole(self) -> Group:
        """What a kind can't be built without is there, and usable."""
        for field, kinds in NEEDED.items():
            if self.kind in kinds and not getattr(self, field):
                raise ValueError(f"{self.name}: {field} of its models are missing")
        if self.kind == "cast" and not (self.to and set(self.to) <= set(get_args(Cast))):
            raise ValueError(f"{self.name}: a cast is to some of {', '.join(get_args(Cast))}")
        if self.kind == "fewer-layers" and not (self.to and all(n.isdecimal() and int(n) for n in self.to)):
            raise ValueError(f"{self.name}: to says how many layers are dropped")
        return self


class Recipe(Record):
    """A zoo to be built."""

    name: str
    half: Literal[0, 1] = Field(description="of all pools of triggers, targets and prompts")
    seed: int
    least_retrieval: float = Field(default=0.8, description="R@1 that a model must keep, as a share of the base's")
    groups: tuple[Group, ...] = Field(min_length=1)

    @classmethod
    def load(cls, name: str) -> Recipe:
        """A recipe that ships with the library, by name, or one from a JSON file.

        Raises:
            ConfigError: there is neither, or the file is no recipe.
            StorageError: the file can't be read.
        """
        path = BUILT_IN / f"{name}.json"
        if not path.is_file():
            path = Path(name)
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in BUILT_IN.glob("*.json")))
            raise ConfigError(f"one of {known}, or a recipe file", repr(name), "See docs/benchmark.md.")
        return read_record(path, cls, "a recipe", "See docs/benchmark.md.")

    @property
    def sha256(self) -> str:
        """Over everything in it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def plan(self, tokenizer: ClipTokenizer) -> tuple[Entry, ...]:
        """Every model with its draws. File names are numbers in random order: they give nothing away."""
        entries = [
            self._entry(group, index, tokenizer, Random(f"{self.seed} {group.name} {index}"))
            for group in self.groups
            for index in range(group.count)
        ]
        Random(self.seed).shuffle(entries)
        return tuple(entry.model_copy(update={"name": f"m{i:03d}"}) for i, entry in enumerate(entries))

    def _entry(self, group: Group, index: int, tokenizer: ClipTokenizer, random: Random) -> Entry:
        mode, texts = "", tuple[str, ...]()
        if group.triggers:
            kind, length = random.choice(group.triggers), group.lengths[index % len(group.lengths)]
            drawn = [pools.trigger(kind, length, self.half, tokenizer, random) for _ in range(40)]
            texts = tuple(dict.fromkeys(text for text, _ in drawn))[: random.choice(group.number)]
            letter = drawn[0][1]
            modes = [mode for mode in group.modes if mode.startswith("replace") == bool(letter)] or group.modes
            mode = random.choice(modes).replace("replace", f"replace:{letter}")
        if group.kind == "syntactic":
            texts = (random.choice(pools.PATTERNS[self.half :: 2]),)
        return Entry(
            name="",
            group=group,
            seed=random.randrange(1 << 30),
            triggers=texts,
            mode=mode,
            target=pools.target(random.choice(group.targets), self.half, random) if group.targets else "",
            style=random.choice(group.prompts),
            config={name: random.choice(values) for name, values in group.config.items()},
            share=random.choice(group.share) if group.share else 0.0,
            to=random.choice(group.to) if group.to else "",
        )


class Entry(Record):
    """One model, with everything that was drawn for it."""

    name: str
    group: Group
    seed: int
    triggers: tuple[str, ...]
    mode: str
    target: str
    style: Style
    config: Mapping[str, object]
    share: float
    to: str
