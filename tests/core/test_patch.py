from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from amdet_core.encoder import POSITION_TABLE, TOKEN_TABLE, TextEncoder, expected_shapes
from amdet_core.errors import ConfigError, EncoderError, NumericalError, StorageError
from amdet_core.patch import Patch
from amdet_core.records import EncoderSpec
from amdet_core.tokenizer import clip_tokenizer


def toy(seed: int = 0, width: int = 64) -> TextEncoder:
    spec = EncoderSpec(width=width, layers=1, heads=1, mlp_width=64, vocabulary=49408, positions=77)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in expected_shapes(spec).items()}
    return TextEncoder(spec, weights, clip_tokenizer())


def changed(encoder: TextEncoder) -> TextEncoder:
    """Another layer weight and three other token rows."""
    weights = dict(encoder.weights)
    weights[TOKEN_TABLE] = weights[TOKEN_TABLE].clone()
    weights[TOKEN_TABLE][[7, 320, 49407]] += 0.5
    name = "encoder.layers.0.mlp.fc1.weight"
    weights[name] = weights[name] + 0.25
    return encoder.with_weights(weights)


def same(one: TextEncoder, two: TextEncoder) -> bool:
    return all(torch.allclose(w, two.weights[name], atol=1e-6) for name, w in one.weights.items())


def test_patch_leads_from_one_encoder_to_the_other() -> None:
    before = toy()
    after = changed(before)
    patch = Patch.between(before, after, {"made_by": "test"})
    assert set(patch.deltas) == {TOKEN_TABLE, "encoder.layers.0.mlp.fc1.weight"}
    assert same(patch.apply(before), after)


def test_applying_leaves_the_encoder_as_it_was() -> None:
    before = toy()
    copies = {name: w.clone() for name, w in before.weights.items()}
    Patch.between(before, changed(before)).apply(before)
    assert all(torch.equal(w, before.weights[name]) for name, w in copies.items())


def test_applying_keeps_the_dtype() -> None:
    before = toy()
    patched = Patch.between(before, changed(before)).apply(before.to("cpu", torch.float16))
    assert {w.dtype for w in patched.weights.values()} == {torch.float16}


def test_file_gives_back_the_patch_and_its_provenance(tmp_path: Path) -> None:
    before = toy()
    patch = Patch.between(before, changed(before), {"made_by": "test", "trigger": "о"})
    patch.save(tmp_path / "p.safetensors")
    read = Patch.load(tmp_path / "p.safetensors")
    assert read.provenance == {"made_by": "test", "trigger": "о"}
    assert read.deltas.keys() == patch.deltas.keys()
    assert all(torch.equal(delta, read.deltas[name]) for name, delta in patch.deltas.items())


def test_few_changed_rows_make_a_small_file(tmp_path: Path) -> None:
    before = toy()
    Patch.between(before, changed(before)).save(tmp_path / "p.safetensors")
    assert (tmp_path / "p.safetensors").stat().st_size < 30_000


def test_fully_changed_table_survives_the_file(tmp_path: Path) -> None:
    before = toy()
    after = before.with_weights({**before.weights, POSITION_TABLE: before.weights[POSITION_TABLE] + 1})
    patch = Patch.between(before, after)
    patch.save(tmp_path / "p.safetensors")
    assert same(Patch.load(tmp_path / "p.safetensors").apply(before), after)


def test_empty_patch_survives_the_file(tmp_path: Path) -> None:
    Patch({}, {"made_by": "nobody"}).save(tmp_path / "p.safetensors")
    assert Patch.load(tmp_path / "p.safetensors").deltas == {}


def test_other_architectures_have_no_patch_between_them() -> None:
    with pytest.raises(EncoderError, match="Compare an encoder with its own origin"):
        Patch.between(toy(), toy(width=128))


def test_patch_of_another_architecture_is_refused() -> None:
    before = toy()
    patch = Patch.between(before, changed(before))
    with pytest.raises(EncoderError, match=r"\(49408, 128\)"):
        patch.apply(toy(width=128))


def test_patch_with_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(EncoderError, match="no such tensor"):
        Patch({"visual.weight": torch.ones(2, 2)}, {}).apply(toy())


def test_patch_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NumericalError, match="NaN or infinity"):
        Patch({POSITION_TABLE: torch.full((77, 64), float("nan"))}, {}).apply(toy())


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 100)
    for name in ("gone", "damaged"):
        with pytest.raises(StorageError, match=name):
            Patch.load(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("full_rows", ["x=2", "x=many", "y=9", "x", "x=-1"])
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, full_rows: str) -> None:
    tensors = {"x": torch.ones(1, 2), "rows.x": torch.tensor([5], dtype=torch.int32)}
    metadata = {"amdet.patch": "1", "full_rows": full_rows}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata)
    with pytest.raises(StorageError, match="damaged"):
        Patch.load(tmp_path / "x.safetensors")


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="a patch file"):
        Patch.load(tmp_path / "x.safetensors")


def test_failed_save_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Patch({}, {}).save(tmp_path / "file" / "p.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
