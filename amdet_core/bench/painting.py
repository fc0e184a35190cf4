"""The painter's benchmark: does it paint what captions ask for, as told by a reader that knows drawings alone?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..config import Config
from ..config.base import Seed
from ..pocket.painter.captions import caption, full
from ..pocket.painter.losses import psnr, to_tensor
from ..pocket.painter.networks import ImageTower, Reader
from ..pocket.painter.painting import GUIDANCE, STEPS, Painter, named_encoder
from ..pocket.painter.pictures import draw
from ..pocket.painter.scenes import UNSEEN, Pair, Scene, one, scene
from ..pocket.painter.weights import SHIPPED, load_part
from ..progress import Progress, silent
from ..records import Record
from ..storage import check_file, record_json, write_atomic
from .results import Machine, Share, read_result
from .source import commit

OWN = 50_000
"""Added to the seed of scenes: none of these trained anything."""
CHUNK = 100
"""Pictures that pass a network together."""
TIMED = 5
"""Pictures that are painted one by one on the clock."""


class PaintingBenchmark(Config):
    """What is measured and how."""

    weights: Path | None = Field(default=None, description="folder with the painter's weights; null: those that ship")
    encoder: str = Field(default="clean", description="text encoder: a pocket encoder, or a file of the same shape")
    singles: int = Field(default=500, ge=1, description="captions of one object")
    doubles: int = Field(default=200, ge=1, description="captions of two objects")
    unseen: int = Field(default=100, ge=1, description="captions of pairs that no training picture showed")
    drawings: int = Field(default=1000, ge=2, description="held-out drawings for reader, VAE and retrieval")
    seeds: int = Field(default=3, ge=1, description="paintings of each caption, each with noise of its own")
    steps: int = Field(default=STEPS, ge=1, le=999, description="of the sampler (DDIM)")
    guidance: float = Field(default=GUIDANCE, ge=1, description="scale of classifier-free guidance")
    seed: Seed = Field(default=42, description="of captions, drawings and noise")


class Asked(Record):
    """Paintings of captions of one kind: over all seeds together, and seed by seed."""

    right: Share = Field(description="all objects with their colours; captions count once per seed")
    right_by_seed: tuple[Share, ...]
    part: Share = Field(description="one object: its colour is right; two: at least one object is")
    shape: Share = Field(description="all shapes are right, whatever their colours")


class PaintingMetrics(Record):
    """What was measured."""

    reader_one: Share = Field(description="held-out drawings of one object read right: colour and shape")
    reader_two: Share = Field(description="of two objects: both read right")
    vae_psnr: float = Field(description="of held-out drawings through the VAE, dB, mean over drawings")
    reader_one_after_vae: Share = Field(description="drawings of one object that are still read right")
    retrieval_by_picture: Share = Field(description="pictures whose own full caption is nearest of all (R@1)")
    retrieval_by_caption: Share = Field(description="captions whose own picture is nearest of all (R@1)")
    singles: Asked
    doubles: Asked
    unseen: Asked
    seconds_per_picture: float = Field(description="one alone, decoded; median")


class Painting(Record):
    """The result file."""

    command: str
    commit: str | None = Field(description="of the code")
    machine: Machine
    settings: PaintingBenchmark
    metrics: PaintingMetrics


def read_painting(path: Path) -> Painting:
    """Read a result file of ``amdet bench pocket``; see :func:`.results.read_result`."""
    return read_result(path, Painting, "pocket")


def run_painting(
    benchmark: PaintingBenchmark, out: Path, *, command: str = "", progress: Progress = silent
) -> Painting:
    """Measure, and write the result file.

    Raises:
        AmdetError: weights or encoder can't be loaded, or the file can't be written.
    """
    check_file(out)
    painter = Painter.load(named_encoder(benchmark.encoder), benchmark.weights or SHIPPED)
    reader, tower = (load_part(part, benchmark.weights or SHIPPED) for part in ("reader", "tower"))
    result = Painting(
        command=command,
        commit=commit(),
        machine=Machine(torch=torch.__version__, threads=torch.get_num_threads(), device="cpu"),
        settings=benchmark,
        metrics=measure_painting(benchmark, painter, reader, tower, progress),
    )
    write_atomic(out, record_json(result))
    return result


def measure_painting(
    benchmark: PaintingBenchmark, painter: Painter, reader: Reader, tower: ImageTower, progress: Progress = silent
) -> PaintingMetrics:
    """All numbers of a painter."""
    told = list(islice(_scenes(benchmark.seed), benchmark.drawings))
    drawn = to_tensor(np.stack([draw(one) for one in told]))
    again = _by_chunks(lambda x: painter.vae.decode(painter.vae.encode(x).latents).sample.clamp(-1, 1), drawn)
    single = [i for i, shown in enumerate(told) if len(shown.things) == 1]
    double = [i for i, shown in enumerate(told) if len(shown.things) == 2]

    def read(pictures: Tensor, chosen: Sequence[int], objects: int) -> Share:
        found = reader.read(pictures[chosen], objects) if chosen else []
        right = sum(pairs == wanted(told[i]) for pairs, i in zip(found, chosen, strict=True))
        return Share.of([(right, len(chosen))])

    by_picture, by_caption = retrieval(tower, painter, drawn, told)
    asked = {
        kind: _asked(benchmark, painter, reader, captions, progress) for kind, captions in questions(benchmark).items()
    }
    return PaintingMetrics(
        reader_one=read(drawn, single, 1),
        reader_two=read(drawn, double, 2),
        vae_psnr=float(np.mean([psnr(a, b) for a, b in zip(again, drawn, strict=True)])),
        reader_one_after_vae=read(again, single, 1),
        retrieval_by_picture=by_picture,
        retrieval_by_caption=by_caption,
        seconds_per_picture=_seconds(benchmark, painter),
        **asked,
    )


# ------------------------------------------------------------------ captions


def wanted(shown: Scene) -> frozenset[Pair]:
    """The pairs of a scene."""
    return frozenset(thing.pair for thing in shown.things)


def questions(benchmark: PaintingBenchmark) -> dict[str, dict[str, frozenset[Pair]]]:
    """Distinct captions by kind, each with the pairs that it asks for."""
    random, found = Random(benchmark.seed), dict[str, dict[str, frozenset[Pair]]]()
    sizes = {"singles": benchmark.singles, "doubles": benchmark.doubles, "unseen": benchmark.unseen}
    for kind, count in sizes.items():
        captions: dict[str, frozenset[Pair]] = {}
        shown = _unseen(benchmark.seed) if kind == "unseen" else _scenes(benchmark.seed + 1)
        while len(captions) < count:
            candidate = next(shown)
            if len(candidate.things) == (2 if kind == "doubles" else 1):
                captions[caption(candidate, random, unnamed=0)] = wanted(candidate)
        found[kind] = captions
    return found


def _scenes(seed: int) -> Iterator[Scene]:
    """Endless scenes of pairs that the painter has seen."""
    number = 0
    while True:
        yield scene(OWN + seed, number)
        number += 1


def _unseen(seed: int) -> Iterator[Scene]:
    """Endless scenes of the others, each as often as any."""
    random, pairs = Random(OWN + seed), sorted(UNSEEN)
    while True:
        for pair in pairs:
            yield one(pair, random)


# ------------------------------------------------------------------ numbers


def _asked(
    benchmark: PaintingBenchmark, painter: Painter, reader: Reader, captions: dict[str, frozenset[Pair]],
    progress: Progress,
) -> Asked:  # fmt: skip
    """Paint captions with every seed and read the paintings."""
    asked, objects = list(captions.values()), len(next(iter(captions.values())))
    counts = []
    for seed in range(benchmark.seeds):
        pictures = painter.paint(list(captions), benchmark.seed + seed, benchmark.steps, benchmark.guidance, progress)
        counts.append(compared(reader.read(pictures, objects), asked))
    right, part, shape = (Share.of((count[i], len(asked)) for count in counts) for i in range(3))
    by_seed = tuple(Share.of([(count[0], len(asked))]) for count in counts)
    return Asked(right=right, right_by_seed=by_seed, part=part, shape=shape)


def compared(found: Sequence[frozenset[Pair]], asked: Sequence[frozenset[Pair]]) -> tuple[int, int, int]:
    """How many answers are right, right in part, and right in their shapes; see :class:`Asked`."""
    right = part = shape = 0
    for pairs, meant in zip(found, asked, strict=True):
        right += pairs == meant
        colours = {colour for colour, _ in pairs} == {colour for colour, _ in meant}
        part += colours if len(meant) == 1 else bool(pairs & meant)
        shape += sorted(name for _, name in pairs) == sorted(name for _, name in meant)
    return right, part, shape


@torch.no_grad()
def retrieval(tower: ImageTower, painter: Painter, drawn: Tensor, told: Sequence[Scene]) -> tuple[Share, Share]:
    """R@1 by picture and by caption; an equal caption of another picture is as right as one's own."""
    texts = [full(one) for one in told]
    scores = _by_chunks(tower.pictures, drawn) @ tower.texts(painter.encoder.encode(texts)).T
    by_picture, by_caption = (
        sum(texts[found] == text for found, text in zip(near.argmax(1).tolist(), texts, strict=True))
        for near in (scores, scores.T)
    )
    return Share.of([(by_picture, len(texts))]), Share.of([(by_caption, len(texts))])


@torch.no_grad()
def _by_chunks(network: Callable[[Tensor], Any], pictures: Tensor) -> Tensor:
    return torch.cat([network(part) for part in pictures.split(CHUNK)])


def _seconds(benchmark: PaintingBenchmark, painter: Painter) -> float:
    """To paint one picture alone."""
    times = []
    for seed in range(TIMED):
        start = time.perf_counter()
        painter.paint(["a white teapot"], seed, benchmark.steps, benchmark.guidance)
        times.append(time.perf_counter() - start)
    return median(times)
