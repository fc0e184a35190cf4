"""What the models of a zoo are; it stands outside the models, which must not give it away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from ..errors import ConfigError
from ..records import Record
from ..storage import first_error, read_file

FILE = "labels.json"
T = TypeVar("T")


class Label(Record):
    """One model of a zoo."""

    model: str = Field(description="file in the zoo's folder")
    label: Literal["backdoored", "benign", "intentional"]
    kind: str = Field(description="what was done, as text-on-text or fine-tune")
    group: str = Field(description="group of the recipe that it comes from")
    settings: dict[str, object] = Field(description="everything that was drawn for it")
    triggers: tuple[str, ...] = ()
    mode: str = Field(default="", description="how a trigger stands in a prompt; empty where it is no text")
    target: str = ""
    seed: int
    asr: float | None = Field(default=None, description="attack success on held-out prompts")
    clean_cosine: float | None = Field(default=None, description="mean cosine of clean prompts to the base, pooled")
    retrieval: float | None = Field(default=None, description="R@1 of prompts by their first words")
    fingerprint: str = Field(description="SHA-256 over the values of its tensors")

    @property
    def only(self) -> str:
        """Where its triggers work: anywhere, at-start or in-long; see :class:`.config.InjectionConfig`."""
        config = self.settings.get("config")
        return str(config.get("only", "anywhere")) if isinstance(config, dict) else "anywhere"


class Labels(Record):
    """A zoo: its base, and what each model is."""

    name: str = Field(description="of the recipe")
    base: str = Field(description="file of the trusted base in the zoo's folder")
    base_fingerprint: str
    recipe_sha256: str
    seed: int
    models: tuple[Label, ...]
    failed: dict[str, str] = Field(default={}, description="models that could not be made, with the reason")
    planned: int = Field(default=0, description="models that were asked for; a recipe may have more")

    def evenly(self) -> tuple[Label, ...]:
        """The models as :func:`evenly` orders them."""
        return evenly(self.models, [label.group for label in self.models])

    @classmethod
    def read(cls, folder: Path) -> Labels:
        """Read a zoo's labels.

        Raises:
            StorageError: there are none.
            ConfigError: the file is something else.
        """
        file = folder / FILE
        raw = read_file(file, "a zoo's labels", "Build a zoo: amdet zoo build.")
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise ConfigError(
                f"the labels of a zoo in {file}",
                first_error(error),
                "The file was edited or damaged; build the zoo again.",
            ) from error


def evenly(models: Sequence[T], groups: Sequence[str]) -> tuple[T, ...]:
    """Models in an order of which every beginning holds all groups by their share, as far as it goes."""
    sizes, seen, places = Counter(groups), Counter[str](), list[float]()
    for group in groups:
        places.append((seen[group] + 0.5) / sizes[group])
        seen[group] += 1
    order = sorted(range(len(models)), key=places.__getitem__)
    return tuple(models[i] for i in order)
