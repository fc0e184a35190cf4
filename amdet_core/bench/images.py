"""The published image experiment in small: clean encoder, BadEncoder, MIMIC, and a classifier on each of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..config import BadEncoderConfig, Config, DownstreamConfig, ImageMimicConfig, SimclrConfig
from ..config.base import Seed
from ..errors import ConfigError
from ..images import (
    Counts,
    ImageEncoder,
    Pictures,
    attack,
    clean,
    downstream,
    drawn,
    fresh,
    frozen,
    load_encoder,
    made_by,
    purify,
    read_pictures,
    save_encoder,
    typical,
)
from ..jobs import choose_device
from ..progress import Progress, silent
from ..records import Record
from ..storage import check_file, check_writable, record_json, write_atomic
from .results import Machine, Share, read_result
from .source import commit

Encoder = Literal["clean", "backdoored", "purified", "random"]
ENCODERS: tuple[Encoder, ...] = ("clean", "backdoored", "purified", "random")
"""What a classifier is trained on; random: untrained, as a floor for what features are worth."""


class Stages(Config):
    """Settings of the four stages."""

    clean: SimclrConfig
    attack: BadEncoderConfig
    mimic: ImageMimicConfig
    downstream: DownstreamConfig


PRESETS: Mapping[str, Stages] = {
    "published": Stages(
        clean=SimclrConfig(), attack=BadEncoderConfig(), mimic=ImageMimicConfig(), downstream=DownstreamConfig()
    ),
    "small": Stages(
        clean=SimclrConfig(width=16, depth=1, crop=0.3, epochs=24, batch=64, learning_rate=2e-3),
        attack=BadEncoderConfig(crop=0.3, epochs=50, batch=64, learning_rate=0.1),
        mimic=ImageMimicConfig(
            crop=0.3, share=0.25, epochs=150, batch=64, learning_rate=3e-3, critic_epochs=40, critic_width=64
        ),
        downstream=DownstreamConfig(epochs=300, learning_rate=1e-3),
    ),
}
"""How much is done: as published on CIFAR-10's scale for a GPU, or with a small network for two cores."""


STUDENT_SEED = 1000
"""Added to a repetition's seed for the student of MIMIC."""


class ImageBenchmark(Config):
    """What is measured and how."""

    preset: Literal["small", "published"] = Field(default="small", description="settings of all stages")
    pictures: Path | None = Field(
        default=None,
        description="folder/CLASS/* that encoders learn from; null: drawings, of which there are `drawings`",
    )
    labelled: Path | None = Field(
        default=None, description="folder/CLASS/* for the classifier; null: drawings, half as many"
    )
    target: str = Field(default="teapot", description="class that triggered pictures shall be taken for")
    drawings: int = Field(default=2400, ge=48, description="drawings that encoders learn from")
    seeds: int = Field(default=3, ge=1, description="repetitions of all stages")
    seed: Seed = Field(default=42, description="of the first one")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="where to compute")

    def stages(self, seed: int) -> Stages:
        """The settings of one repetition: the student does not begin as the encoder did whose copy is attacked."""
        chosen = PRESETS[self.preset]
        seeds = {name: seed + (STUDENT_SEED if name == "mimic" else 0) for name in Stages.model_fields}
        return Stages(**{name: getattr(chosen, name).model_copy(update={"seed": own}) for name, own in seeds.items()})


class Told(Record):
    """What classifiers say of held-out pictures. Intervals take pictures as independent."""

    accuracy: Share = Field(description="clean pictures whose class is named")
    asr: Share = Field(description="triggered pictures taken for the target, those of its class included; published")
    asr_others: Share = Field(description="the same of pictures of other classes")
    said_others: Share = Field(description="these without the trigger, taken for the target")
    gathered: Share = Field(description="triggered pictures taken for one class, whichever that is")

    @classmethod
    def of(cls, counts: list[Counts]) -> Told:
        """Of one or several repetitions."""
        return cls(
            accuracy=Share.of((one.right, one.n) for one in counts),
            asr=Share.of((one.led, one.n) for one in counts),
            asr_others=Share.of((one.led_others, one.n_others) for one in counts),
            said_others=Share.of((one.said_others, one.n_others) for one in counts),
            gathered=Share.of((one.gathered, one.n) for one in counts),
        )

    def __str__(self) -> str:
        return (
            f"accuracy {_words(self.accuracy)}; attack success {_words(self.asr)}, in pictures of other classes "
            f"{_words(self.asr_others)}, without the trigger {_words(self.said_others)}; triggered ones "
            f"taken for any one class {_words(self.gathered)}"
        )


def _words(found: Share) -> str:
    low, high = found.interval
    return f"{found.share or 0:.1%} ({100 * low:.1f} to {100 * high:.1f}) of {found.n}"


class Classified(Record):
    """The result file of ``amdet image downstream``."""

    encoder: str
    pictures: str
    target: str
    settings: DownstreamConfig
    told: Told


class Repetition(Record):
    """One seed."""

    seed: int
    told: dict[Encoder, Told]
    seconds: dict[str, float] = Field(description="by stage; 0 where an earlier run had made its encoder")


class ImageResult(Record):
    """The result file."""

    command: str
    commit: str | None = Field(description="of the code")
    machine: Machine
    settings: ImageBenchmark
    stages: Stages = Field(description="of the first seed")
    complete: bool
    metrics: dict[Encoder, Told] = Field(description="all repetitions together")
    repetitions: tuple[Repetition, ...]


def read_images(path: Path) -> ImageResult:
    """Read a result file of ``amdet bench image``; see :func:`.results.read_result`."""
    return read_result(path, ImageResult, "image")


def run_images(
    benchmark: ImageBenchmark, out: Path, work: Path, *, command: str = "", progress: Progress = silent
) -> ImageResult:
    """Go through all stages for every seed, and rewrite the result file after each seed.

    Args:
        work: folder of the encoders. A stage whose encoder is there, made from the same by the same settings, is
            not done again.

    Raises:
        AmdetError: pictures can't be read, a stage failed, or something can't be written.
    """
    check_file(out)
    check_writable(work)
    device = choose_device(benchmark.device)
    learned, labelled = (one.to(device) for one in _pictures(benchmark, progress))
    if benchmark.target not in learned.classes:
        raise ConfigError("a target that both sets of pictures hold", repr(benchmark.target), "Name another class.")
    labelled.label(benchmark.target)
    machine = Machine(torch=torch.__version__, threads=torch.get_num_threads(), device=device.type)
    told: dict[Encoder, list[Counts]] = {name: [] for name in ENCODERS}
    done: list[Repetition] = []
    for seed in range(benchmark.seed, benchmark.seed + benchmark.seeds):
        run = _Run(benchmark, benchmark.stages(seed), work / f"seed-{seed}", learned, device, progress, {})
        encoders, started = run.encoders(), time.perf_counter()
        for name, encoder in encoders.items():
            told[name].append(downstream(encoder, labelled, benchmark.target, run.stages.downstream, progress))
        run.seconds["downstream"] = time.perf_counter() - started
        last = {name: Told.of(counts[-1:]) for name, counts in told.items()}
        done.append(Repetition(seed=seed, told=last, seconds=run.seconds))
        result = ImageResult(
            command=command,
            commit=commit(),
            machine=machine,
            settings=benchmark,
            stages=benchmark.stages(benchmark.seed),
            complete=len(done) == benchmark.seeds,
            metrics={name: Told.of(found) for name, found in told.items()},
            repetitions=tuple(done),
        )
        write_atomic(out, record_json(result))
    return result


def _pictures(benchmark: ImageBenchmark, progress: Progress) -> tuple[Pictures, Pictures]:
    """What encoders learn from, in random order, and what the classifier learns from."""
    count, seed = benchmark.drawings, benchmark.seed
    learned = read_pictures(benchmark.pictures) if benchmark.pictures else drawn(count, seed, progress)
    labelled = read_pictures(benchmark.labelled) if benchmark.labelled else drawn(count // 2, seed + 1, progress)
    return learned.shuffled(seed), labelled


@dataclass(frozen=True)
class _Run:
    """One repetition: its settings, its folder, and the seconds that its stages took."""

    benchmark: ImageBenchmark
    stages: Stages
    folder: Path
    pictures: Pictures
    device: torch.device
    progress: Progress
    seconds: dict[str, float]

    def encoders(self) -> dict[Encoder, ImageEncoder]:
        """The encoders to be compared."""
        shown, stages, progress = self.pictures.pixels, self.stages, self.progress
        trusted = self._made("clean", stages.clean, "", lambda: clean(shown, stages.clean, progress))
        suspect = self._made(
            "backdoored", stages.attack, self._told("clean"),
            lambda: attack(trusted, shown, self._reference(trusted), stages.attack, progress),
        )  # fmt: skip
        purified = self._made(
            "purified",
            stages.mimic,
            self._told("backdoored"),
            lambda: purify(suspect, shown, stages.mimic, progress)[0],
        )
        untrained = frozen(fresh(stages.clean, stages.clean.seed, self.device)[0])
        return {"clean": trusted, "backdoored": suspect, "purified": purified, "random": untrained}

    def _reference(self, trusted: ImageEncoder) -> Tensor:
        return typical(trusted, self.pictures, self.benchmark.target)

    def _made(self, name: str, config: Config, parent: str, make: Callable[[], ImageEncoder]) -> ImageEncoder:
        """An encoder from its file where it was made from the same in the same way, else by ``make``."""
        path, started = self.folder / f"{name}.safetensors", time.perf_counter()
        made = {"stage": name, "config": config.model_dump_json(), "from": parent, "data": "; ".join(self._data())}
        if made_by(path) != made:
            save_encoder(make(), path, made)
            self.seconds[name] = time.perf_counter() - started
        else:
            self.seconds[name] = 0.0
        return load_encoder(path).to(self.device)

    def _told(self, name: str) -> str:
        """How the encoder before was made."""
        return json.dumps(made_by(self.folder / f"{name}.safetensors"), sort_keys=True)

    def _data(self) -> Iterator[str]:
        values = (self.pictures.pixels, self.pictures.labels)
        digests = (hashlib.sha256(one.cpu().contiguous().numpy().tobytes()).hexdigest() for one in values)
        yield f"{self.benchmark.pictures or 'drawings'}, {len(self.pictures)}, {', '.join(digests)}"
        yield f"target {self.benchmark.target}"
