"""The painter's benchmark, with painters, readers and towers whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from amdet_core import pocket
from amdet_core.bench import painting
from amdet_core.bench.painting import PaintingBenchmark, measure_painting, questions
from amdet_core.cli import _run
from amdet_core.errors import ConfigError
from amdet_core.pocket.painter import captions, losses, networks, pictures, scenes, weights
from amdet_core.pocket.painter.scenes import UNSEEN, Pair, Scene, Thing

SMALL = PaintingBenchmark(singles=12, doubles=6, unseen=8, drawings=20, seeds=2, steps=1)


class Book:
    """A reader that finds a picture in a book of all that it was shown; a painter that looks captions up."""

    def __init__(self, mistaken: Pair | None = None) -> None:
        self.mistaken = mistaken
        self.asked = {text: pairs for kind in questions(SMALL).values() for text, pairs in kind.items()}
        self.encoder = pocket.load("clean")
        same = lambda x: SimpleNamespace(latents=x, sample=x)  # noqa: E731
        self.vae = SimpleNamespace(encode=same, decode=same)
        self.known: dict[bytes, frozenset[Pair]] = {}

    def paint(self, prompts: list[str], seed: int = 0, *_: object) -> Tensor:
        """Each pair as numbers in a corner of an empty picture."""
        out = torch.zeros(len(prompts), 3, 64, 64)
        for picture, prompt in zip(out, prompts, strict=True):
            for place, pair in enumerate(sorted(self.asked.get(prompt, frozenset()))):
                picture[0, 0, place] = scenes.PAIRS.index(self.mistaken or pair) / 127
        return out

    def read(self, shown: Tensor, objects: int = 1) -> list[frozenset[Pair]]:
        """The numbers, or what a drawing was made of."""
        found = []
        for picture in shown:
            numbers = [round(float(n) * 127) for n in picture[0, 0, :objects]]
            drawing = self.known.get(picture.numpy().tobytes())
            found.append(drawing or frozenset(scenes.PAIRS[n] for n in numbers))
        return found

    def pictures(self, shown: Tensor) -> Tensor:
        """As a tower: places that all differ."""
        return torch.nn.functional.normalize(torch.randn(len(shown), 8, generator=torch.Generator().manual_seed(1)))

    def texts(self, pooled: Tensor) -> Tensor:
        """And its captions at the same places."""
        return self.pictures(pooled)


def measured(book: Any, monkeypatch: pytest.MonkeyPatch) -> painting.PaintingMetrics:
    draw = pictures.draw

    def remembered(scene: Scene) -> Any:
        drawn = draw(scene)
        book.known[losses.to_tensor(drawn[None])[0].numpy().tobytes()] = painting.wanted(scene)
        return drawn

    monkeypatch.setattr(painting, "draw", remembered)
    monkeypatch.setattr(painting, "CHUNK", 1000)
    return measure_painting(SMALL, book, book, book)


def test_a_perfect_painter_and_reader_get_everything_right(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(Book(), monkeypatch)
    assert (found.singles.right.count, found.singles.right.n) == (24, 24)
    assert [share.n for share in found.doubles.right_by_seed] == [6, 6]
    every = (
        found.singles.right, found.doubles.right, found.unseen.right, found.reader_one, found.reader_two,
        found.reader_one_after_vae, found.retrieval_by_picture, found.retrieval_by_caption,
    )  # fmt: skip
    assert all(share.share == 1 for share in every)
    assert found.reader_one.n + found.reader_two.n == SMALL.drawings
    assert found.vae_psnr > 100


def test_a_painter_that_paints_one_thing_alone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(Book(("white", "teapot")), monkeypatch)
    asked = questions(SMALL)["singles"].values()
    assert found.singles.right.count == 2 * sum(pairs == {("white", "teapot")} for pairs in asked)
    assert found.singles.part.count == 2 * sum(next(iter(pairs))[0] == "white" for pairs in asked)
    assert found.doubles.right.share == found.unseen.right.share == 0
    assert found.reader_one.share == 1


def test_captions_are_distinct_name_what_they_ask_for_and_keep_to_their_kind() -> None:
    found = questions(PaintingBenchmark(singles=200, doubles=80, unseen=40))
    assert {kind: len(asked) for kind, asked in found.items()} == {"singles": 200, "doubles": 80, "unseen": 40}
    for kind, asked in found.items():
        for text, pairs in asked.items():
            assert len(pairs) == (2 if kind == "doubles" else 1)
            assert (pairs <= UNSEEN) if kind == "unseen" else not pairs & UNSEEN
            for colour, shape in pairs:
                assert any(f"{colour} {name}" in text for name in captions.SHAPE_WORDS[shape]), text
    assert len(set().union(*found["unseen"].values())) == len(UNSEEN)


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ({("red", "boat"), ("blue", "star")}, (1, 1, 1)),
        ({("red", "star"), ("blue", "boat")}, (0, 0, 1)),
        ({("red", "boat"), ("blue", "cat")}, (0, 1, 0)),
    ],
)
def test_swapped_colours_are_not_right(found: set[Pair], counts: tuple[int, int, int]) -> None:
    asked = frozenset({("red", "boat"), ("blue", "star")})
    assert painting.compared([frozenset(found)], [asked]) == counts


@pytest.mark.parametrize(
    ("found", "counts"), [(("red", "boat"), (1, 1, 1)), (("red", "cat"), (0, 1, 0)), (("blue", "boat"), (0, 0, 1))]
)
def test_one_object_counts_by_colour_and_by_shape(found: Pair, counts: tuple[int, int, int]) -> None:
    assert painting.compared([frozenset({found})], [frozenset({("red", "boat")})]) == counts


def test_equal_captions_of_two_pictures_are_both_right() -> None:
    scene = Scene((Thing("red", "boat", 0.5, 0.5, 0.3),), "gray", "plain", "medium", ("center", "center"))
    book: Any = Book()
    book.texts = lambda pooled: book.pictures(pooled).flip(0)
    drawn = torch.zeros(2, 3, 64, 64)
    by_picture, by_caption = painting.retrieval(book, book, drawn, [scene, scene])
    assert by_picture.count == by_caption.count == 2
    other = Scene(scene.things, "white", "plain", "medium", ("center", "center"))
    by_picture, _ = painting.retrieval(book, book, drawn, [scene, other])
    assert by_picture.count == 0


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="seeds"):
        PaintingBenchmark(seeds=0)


def test_the_command_writes_a_result_with_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (part, make) in enumerate(networks.PARTS.items()):
        torch.manual_seed(seed)
        weights.save(part, make().state_dict(), tmp_path / "w", {})
    sizes = ["--singles", "2", "--doubles", "2", "--unseen", "1", "--drawings", "4", "--seeds", "1", "--steps", "1"]
    place = ["--weights", str(tmp_path / "w"), "--out", str(tmp_path / "result.json")]
    monkeypatch.setattr("sys.argv", ["amdet", "bench", "pocket", *sizes, *place])
    assert _run() == 0
    shown = capsys.readouterr().out
    assert "colour and shape" in shown and "dB" in shown
    result = painting.Painting.model_validate(json.loads((tmp_path / "result.json").read_text()))
    assert result.metrics.doubles.right.n == 2
    assert result.settings.steps == 1 and "--steps 1" in result.command
    monkeypatch.setattr("sys.argv", ["amdet", "bench", "pocket", "--weights", str(tmp_path / "nowhere")])
    assert _run() == 2
    assert "recipe" in capsys.readouterr().err
