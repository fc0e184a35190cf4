from __future__ import annotations

from pathlib import Path
from random import Random
from typing import get_args

import numpy as np
import pytest

from amdet_core.errors import ConfigError, StorageError
from amdet_core.prompts import (
    BODY_TAGS,
    CLOTHES_TAGS,
    FEWEST_PROMPTS,
    SCENE_TAGS,
    PromptSet,
    Style,
    builtin_prompts,
    generated_prompts,
    read_prompts,
)

LINES = [f"a photo of thing {i}" for i in range(FEWEST_PROMPTS)]


def test_builtin_set_is_large_unique_and_clean() -> None:
    prompts = builtin_prompts(4000).prompts
    assert len(prompts) == len(set(prompts)) == 4000
    assert all(p == " ".join(p.split()) and p.isascii() for p in prompts)
    assert len({word for p in prompts for word in p.lower().split()}) > 400


def test_builtin_lengths_are_those_of_typed_prompts() -> None:
    low, middle, high = np.percentile([len(p.split()) for p in builtin_prompts(4000).prompts], [10, 50, 90])
    assert 3 <= low <= 5
    assert 14 <= middle <= 18
    assert 29 <= high <= 37


def test_builtin_set_never_changes() -> None:
    assert builtin_prompts(4000).sha256 == "4492ede7c8fbaef0622f86fe1381a2ffeedd51227401e87f48ad7e4f1370e729"


@pytest.mark.parametrize("style", get_args(Style))
def test_generated_prompts_are_different_ones_and_always_the_same(style: Style) -> None:
    prompts = generated_prompts(style, 1000, 7)
    assert len(set(prompts.prompts)) == len(prompts) == 1000
    assert prompts.source == f"generated {style}, seed 7"
    generated_prompts.cache_clear()
    assert generated_prompts(style, 1000, 7).prompts == prompts.prompts
    assert generated_prompts(style, 100, 7).prompts == prompts.prompts[:100]
    others = set(generated_prompts(style, 1000, 8).prompts)
    assert len(others & set(prompts.prompts)) < 20


def test_the_builtin_set_is_the_mixed_style() -> None:
    assert generated_prompts("mixed", 200, 2025).prompts == builtin_prompts(200).prompts


def test_styles_look_different() -> None:
    captions, tags = (generated_prompts(style, 300, 1).prompts for style in ("captions", "tags"))
    assert not set(captions) & set(tags)
    assert all(p.split()[0].lower() in ("a", "an") for p in captions)
    assert {p.endswith(".") or " of " in p for p in captions} == {True}
    known = {*BODY_TAGS, *CLOTHES_TAGS, *SCENE_TAGS}
    for prompt in tags:
        parts = [tag for tag in prompt.split(", ") if tag not in ("1girl", "1boy", "2girls", "no humans")]
        assert prompt.startswith(("1girl", "1boy", "2girls", "no humans"))
        assert 5 <= len(parts) <= 15
        assert len(set(parts)) == len(parts)
        assert set(parts) <= known


def test_smaller_builtin_set_is_the_beginning_of_the_larger() -> None:
    assert builtin_prompts(4000).prompts[:100] == builtin_prompts(100).prompts


def test_too_small_a_builtin_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 20 prompts; found 3"):
        builtin_prompts(3)


def test_split_is_a_partition_of_about_four_to_one() -> None:
    prompts = builtin_prompts(4000)
    fit, held_out = prompts.split()
    assert sorted(fit.prompts + held_out.prompts) == sorted(prompts.prompts)
    assert 0.17 < len(held_out) / len(prompts) < 0.23


def test_split_depends_on_each_text_alone() -> None:
    prompts = list(builtin_prompts(1000).prompts)
    held_out = set(PromptSet(tuple(prompts), "x").split()[1].prompts)
    Random(1).shuffle(prompts)
    half = prompts[:500]
    assert set(PromptSet(tuple(half), "y").split()[1].prompts) == held_out & set(half)


def test_sha256_tells_sets_apart() -> None:
    assert PromptSet(("a", "b"), "x").sha256 == PromptSet(("a", "b"), "y").sha256
    assert PromptSet(("a", "b"), "x").sha256 != PromptSet(("b", "a"), "x").sha256


def test_file_keeps_order_and_drops_repetitions_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff" + "\r\n".join(["  öffentlich ", "", *LINES, "öffentlich", LINES[0]]), encoding="utf-8")
    read = read_prompts(path)
    assert read.prompts == ("öffentlich", *LINES)
    assert read.source == str(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.txt"):
        read_prompts(tmp_path / "gone.txt")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        read_prompts(tmp_path)


@pytest.mark.parametrize("text", ["", "\n \n", "\n".join(LINES[:-1]), "\n".join([LINES[0]] * 50)])
def test_too_few_lines_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match="at least 20 different prompts"):
        read_prompts(path)


def test_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\n".join(LINES).encode() + b"\0\1\2")
    with pytest.raises(ConfigError, match="NUL bytes"):
        read_prompts(path)


def test_wrong_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\n".join([*LINES[:4], "caf\xe9", *LINES[4:]]).encode("latin-1"))
    with pytest.raises(ConfigError, match="byte 0xe9 in line 5"):
        read_prompts(path)
