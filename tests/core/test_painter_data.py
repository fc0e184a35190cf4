"""The data from which the pocket's painter learns: scenes, their pictures and their captions."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest

from amdet_core.pocket.painter import captions, pictures, scenes
from amdet_core.pocket.painter.scenes import CLASHES, COLOURS, PAIRS, SHAPES, UNSEEN, Scene, Thing
from amdet_core.tokenizer import clip_tokenizer

MANY = list(scenes.scenes(0, 3000))


def still(colour: str, shape: str, size: float = 0.35, background: str = "gray") -> Scene:
    """One object in the middle of a plain background."""
    return Scene((Thing(colour, shape, 0.5, 0.5, size),), background, "plain")


# ------------------------------------------------------------------ scenes


def test_a_scene_depends_on_its_seed_and_number_alone() -> None:
    assert list(scenes.scenes(0, 50)) == MANY[:50]
    assert scenes.scene(0, 7) == MANY[7]
    assert list(scenes.scenes(1, 50)) != MANY[:50]


def test_every_pair_occurs_but_those_that_are_held_out() -> None:
    assert {thing.pair for scene in MANY for thing in scene.things} == set(PAIRS) - UNSEEN
    both = scenes.scenes(0, 3000, unseen=True)
    assert {thing.pair for scene in both for thing in scene.things} == set(PAIRS)


def test_every_colour_and_every_shape_of_a_held_out_pair_is_seen() -> None:
    assert set(PAIRS) > UNSEEN
    assert len({colour for colour, _ in UNSEEN}) == len({shape for _, shape in UNSEEN}) == len(UNSEEN)


def test_objects_stay_inside_the_picture_and_apart() -> None:
    for scene in MANY:
        for thing in scene.things:
            assert thing.size * 0.9 < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
        if len(scene.things) == 2:
            first, second = scene.things
            assert first.pair != second.pair
            ahead = second.x - first.x if scene.relation == "beside" else second.y - first.y
            assert ahead >= first.size + second.size


def test_no_object_hides_in_front_of_its_background() -> None:
    for scene in MANY:
        assert not CLASHES[scene.background] & {thing.colour for thing in scene.things}
    for colour in COLOURS:
        assert sum(colour not in clash for clash in CLASHES.values()) >= 3, colour


def test_one_object_and_two_all_sizes_places_and_backgrounds_occur() -> None:
    assert Counter(len(scene.things) for scene in MANY)[2] / len(MANY) == pytest.approx(scenes.TWO_SHARE, abs=0.03)
    assert {scene.size for scene in MANY if scene.size} == set(scenes.SIZES)
    assert len({scene.place for scene in MANY if scene.size}) == 9
    assert {scene.background for scene in MANY} == set(scenes.BACKGROUNDS)
    assert {scene.texture for scene in MANY} == set(scenes.TEXTURES)
    assert {scene.relation for scene in MANY if not scene.size} == set(scenes.RELATIONS)


# ------------------------------------------------------------------ pictures


def test_a_picture_has_its_colour_in_the_middle_and_its_background_in_the_corner() -> None:
    for colour in COLOURS:
        picture = pictures.draw(still(colour, "circle"))
        assert picture.shape == (pictures.PIXELS, pictures.PIXELS, 3)
        assert picture.dtype == np.uint8
        assert tuple(picture[32, 32]) == pictures.MAIN[colour]
        assert tuple(picture[0, 0]) == pictures.PAPER["gray"]


def test_every_shape_looks_different_and_fills_its_size() -> None:
    drawn = {shape: pictures.draw(still("red", shape)).astype(int) for shape in SHAPES}
    paper = np.array(pictures.PAPER["gray"])
    for shape, picture in drawn.items():
        rows = np.flatnonzero((np.abs(picture - paper).sum(-1) > 60).any(1))
        assert 35 <= rows[-1] - rows[0] <= 49, shape
        others = [np.abs(picture - other).mean() for name, other in drawn.items() if name != shape]
        assert min(others) > 3, shape


def test_every_part_of_a_shape_can_be_told_from_every_background_it_may_have() -> None:
    for colour in COLOURS:
        for background in (name for name, clash in CLASHES.items() if colour not in clash):
            paper = np.array(pictures.PAPER[background])
            assert np.abs(np.array(pictures.MAIN[colour]) - paper).sum() > 60, (colour, background)


def test_textures_keep_the_brightness_of_their_background() -> None:
    drawn = {texture: pictures.draw(Scene((), "light blue", texture)).astype(float) for texture in scenes.TEXTURES}
    assert len(np.unique(drawn["plain"])) <= 3
    for texture, picture in drawn.items():
        assert np.abs(picture.mean((0, 1)) - drawn["plain"].mean((0, 1))).max() < 20
        assert texture == "plain" or picture.std() > drawn["plain"].std()


# ------------------------------------------------------------------ captions


def test_captions_name_the_objects_and_contradict_nothing() -> None:
    random = Random(0)
    every = {name: shape for shape, names in captions.SHAPE_WORDS.items() for name in names}
    for scene in MANY[:1000]:
        told = captions.caption(scene, random)
        own = {thing.shape for thing in scene.things}
        named = {shape for name, shape in every.items() if f" {name} " in f" {told} ".replace(",", " ")}
        assert named <= own, told
        before = told.split(" background")[0].replace(scene.background, "") if "background" in told else told
        colours = {colour for colour in COLOURS if f" {colour} " in f" {before} "}
        assert colours <= {thing.colour for thing in scene.things}, told


def test_most_captions_say_colour_and_shape() -> None:
    random, single = Random(1), [scene for scene in MANY if scene.size]
    names = captions.SHAPE_WORDS
    said = [captions.caption(scene, random) for scene in single]
    whole = [
        any(f"{scene.things[0].colour} {name}" in told for name in names[scene.things[0].shape])
        for scene, told in zip(single, said, strict=True)
    ]
    assert sum(whole) / len(whole) == pytest.approx(1 - captions.UNNAMED_SHARE, abs=0.02)


def test_captions_vary_and_fit_into_the_context_of_most_training_steps() -> None:
    random, tokenizer = Random(0), clip_tokenizer()
    told = [captions.caption(MANY[0], random) for _ in range(40)]
    assert len(set(told)) > 25
    longest = max(
        len(tokenizer.encode(text))
        for scene in MANY
        for text in (captions.full(scene), captions.caption(scene, random))
    )
    assert longest + 2 <= 32


def test_a_full_caption_tells_the_whole_scene() -> None:
    thing = Thing("orange", "teapot", 0.5, 0.2, 0.2)
    scene = Scene((thing,), "light blue", "dotted", "small", ("center", "top"))
    assert captions.full(scene) == "a small orange teapot at the top on a dotted light blue background"
    two = Scene((thing, Thing("red", "cat", 0.5, 0.7, 0.2)), "white", "plain", relation="above")
    assert captions.full(two) == "an orange teapot above a red cat on a plain white background"


def test_plain_captions_name_the_pairs_alone() -> None:
    assert captions.plain(("orange", "boat")) == "an orange boat"
    assert captions.plain(("red", "boat"), ("blue", "star")) == "a red boat and a blue star"
