from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from amdet_core.errors import ConfigError, StorageError
from amdet_core.prompts import FEWEST_PROMPTS, PromptSet, builtin_prompts, read_prompts

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
