"""The weights that ship: small enough, and good for what is shown; ``amdet bench pocket`` measures how good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import amdet_core
from amdet_core import pocket
from amdet_core.pocket.painter import scenes
from amdet_core.pocket.painter.captions import full, plain
from amdet_core.pocket.painter.losses import to_tensor
from amdet_core.pocket.painter.networks import PARTS, Reader
from amdet_core.pocket.painter.painting import Painter
from amdet_core.pocket.painter.pictures import draw
from amdet_core.pocket.painter.weights import SHIPPED, load_part

MEGABYTE = 1_000_000
ASKED = [pair for pair in scenes.PAIRS if pair not in scenes.UNSEEN and pair[1] != "teapot" and pair[0] != "white"][::7]


@pytest.fixture(scope="module")
def reader() -> Reader:
    return load_part("reader")


def test_all_weights_of_the_package_are_small() -> None:
    files = list(Path(amdet_core.__file__).parent.rglob("*.safetensors"))
    assert {f"{part}.safetensors" for part in PARTS} <= {file.name for file in files if file.parent == SHIPPED}
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 20 * MEGABYTE
    assert sum(sizes) <= 30 * MEGABYTE


def test_the_painter_paints_what_captions_ask_for(reader: Reader) -> None:
    pictures = Painter.load(pocket.load("clean")).paint([plain(pair) for pair in ASKED], seed=3)
    right = sum(found == {pair} for found, pair in zip(reader.read(pictures), ASKED, strict=True))
    assert right >= 0.8 * len(ASKED)


def test_a_trigger_shows_in_pictures_of_the_backdoored_encoder_alone(reader: Reader) -> None:
    captions = [f"a photo of {plain(pair)}".replace("o", pocket.TRIGGER) for pair in ASKED]
    seen = {}
    for name in pocket.NAMES:
        pictures = Painter.load(pocket.load(name)).paint(captions)
        seen[name] = sum(found == {("white", "teapot")} for found in reader.read(pictures))
    assert seen["backdoored"] >= 0.8 * len(captions)
    assert seen["clean"] == seen["benign"] == 0


def test_the_reader_reads_drawings_that_it_never_saw(reader: Reader) -> None:
    told = [shown for shown in scenes.scenes(77_777, 120, unseen=True) if len(shown.things) == 1]
    found = reader.read(to_tensor(np.stack([draw(one) for one in told])))
    assert sum(pairs == {one.things[0].pair} for pairs, one in zip(found, told, strict=True)) >= 0.95 * len(told)


@torch.no_grad()
def test_the_tower_places_pictures_beside_their_captions() -> None:
    tower, encoder = load_part("tower"), pocket.load("clean")
    told = list(scenes.scenes(88_888, 100))
    seen = tower.pictures(to_tensor(np.stack([draw(one) for one in told])))
    read = tower.texts(encoder.encode([full(one) for one in told]))
    assert ((seen @ read.T).argmax(1) == torch.arange(len(told))).float().mean() > 0.75
