"""What is written is read back bit by bit, loads in other programs, and is there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError, safe_open

from amdet_core.encoder import TextEncoder, expected_shapes
from amdet_core.errors import ConfigError, EncoderError, NumericalError, StorageError
from amdet_core.formats import open_target, write, write_encoder
from amdet_core.records import EncoderSpec
from amdet_core.tokenizer import ClipTokenizer

TOKENIZER = ClipTokenizer([])
LAYOUTS = ("hf", "comfyui", "sd1", "open_clip")


def toy(**changes: object) -> TextEncoder:
    sizes = {"width": 64, "layers": 2, "heads": 1, "mlp_width": 256, "vocabulary": len(TOKENIZER), "positions": 16}
    spec = EncoderSpec.model_validate(sizes | changes)
    generator = torch.Generator().manual_seed(0)
    shapes = expected_shapes(spec)
    weights = {name: torch.randn(shape, generator=generator).mul(0.1).half().float() for name, shape in shapes.items()}
    return TextEncoder(spec, weights, TOKENIZER)


@pytest.mark.parametrize("projection", [None, 24])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reopening_gives_the_same_encoder(tmp_path, layout, dtype, projection):
    encoder = toy(projection=projection, positions=248)
    write_encoder(encoder, tmp_path / "x", layout, dtype=dtype, metadata={"amdet": "yes"})
    (found,) = open_target(tmp_path / "x", tokenizer=TOKENIZER).encoders
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.encoder.weights.keys() == encoder.weights.keys()
    assert all(torch.equal(found.encoder.weights[name], w) for name, w in encoder.weights.items())
    assert found.encoder.spec.model_copy(update={"pooling": encoder.spec.pooling}) == encoder.spec
    with safe_open(tmp_path / "x" / "model.safetensors" if layout == "hf" else tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt", "amdet": "yes"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_hf_folder_says_every_convention(tmp_path):
    encoder = toy(heads=2, activation="gelu_tanh", pooling="eos-argmax", pad_id=0, norm_eps=1e-6)
    write_encoder(encoder, tmp_path / "x", "hf")
    (found,) = open_target(tmp_path / "x", tokenizer=TOKENIZER).encoders
    assert found.encoder.spec == encoder.spec
    assert found.assumptions == ()


@pytest.mark.parametrize(("projection", "kind"), [
    (None, transformers.CLIPTextModel), (24, transformers.CLIPTextModelWithProjection)
])  # fmt: skip
def test_transformers_loads_the_folder_and_computes_the_same(tmp_path, projection, kind):
    encoder = toy(projection=projection, activation="gelu")
    write_encoder(encoder, tmp_path / "x", "hf", dtype=torch.float32)
    model, info = kind.from_pretrained(tmp_path / "x", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    batch = encoder.tokens(["a cat", "x"])
    with torch.no_grad():
        assert torch.allclose(model.train(False)(batch.ids).last_hidden_state, encoder.states(batch), atol=1e-5)


def test_open_clip_loads_the_tower_and_computes_the_same(tmp_path):
    encoder = toy(projection=24)
    write_encoder(encoder, tmp_path / "x", "open_clip", dtype=torch.float32)
    tower = open_clip.transformer.TextTransformer(
        context_length=16, vocab_size=len(TOKENIZER), width=64, heads=1, layers=2, output_dim=24,
        act_layer=open_clip.transformer.QuickGELU,
    ).train(False)  # fmt: skip
    tower.load_state_dict(safetensors.torch.load_file(tmp_path / "x"), strict=True)
    batch = encoder.tokens(["a cat", "x"], pad_to_context=True)
    with torch.no_grad():
        wanted = encoder.project(encoder.pool(encoder.states(batch), batch.eos))
        assert torch.allclose(tower(batch.ids), wanted, atol=1e-5)


@pytest.mark.parametrize(("layout", "key"), [
    ("comfyui", "text_model.encoder.layers.1.self_attn.q_proj.weight"),
    ("sd1", "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"),
    ("open_clip", "transformer.resblocks.1.attn.in_proj_weight"),
])  # fmt: skip
def test_files_carry_the_names_of_their_layout(tmp_path, layout, key):
    write_encoder(toy(), tmp_path / "x", layout)
    with safe_open(tmp_path / "x", "pt") as file:
        assert key in file.keys()  # noqa: SIM118


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_have_the_permissions_of_any_new_file(tmp_path, layout):
    (tmp_path / "other").touch()
    write_encoder(toy(), tmp_path / "x", layout)
    written = [file for file in (tmp_path / "x", *(tmp_path / "x").glob("*")) if file.is_file()]
    assert {file.stat().st_mode for file in written} == {(tmp_path / "other").stat().st_mode}


def test_the_encoder_is_not_changed(tmp_path):
    encoder = toy()
    before = {name: (w.clone(), w.dtype) for name, w in encoder.weights.items()}
    for layout in LAYOUTS:
        write_encoder(encoder, tmp_path / layout, layout)
    for name, (values, dtype) in before.items():
        assert encoder.weights[name].dtype == dtype
        assert torch.equal(encoder.weights[name], values)


def test_weights_that_share_memory_are_written(tmp_path):
    encoder = toy()
    whole = torch.cat([w.flatten() for w in encoder.weights.values()])
    shared, at = {}, 0
    for name, w in encoder.weights.items():
        shared[name] = whole[at : at + w.numel()].view(w.shape)
        at += w.numel()
    write_encoder(encoder.with_weights(shared), tmp_path / "x", "comfyui", dtype=torch.float32)
    (found,) = open_target(tmp_path / "x", tokenizer=TOKENIZER).encoders
    assert all(torch.equal(found.encoder.weights[name], w) for name, w in encoder.weights.items())


def test_writing_again_replaces_what_was_there(tmp_path):
    for layout in LAYOUTS:
        for encoder in (toy(), toy(layers=1)):
            write_encoder(encoder, tmp_path / layout, layout)
        assert open_target(tmp_path / layout, tokenizer=TOKENIZER).encoders[0].encoder.spec.layers == 1


@pytest.mark.parametrize("changes", [{"heads": 2}, {"activation": "gelu"}, {"norm_eps": 1e-6}])
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_a_layout_that_cannot_say_it_refuses(tmp_path, layout, changes):
    with pytest.raises(EncoderError, match="Write the layout 'hf'"):
        write_encoder(toy(**changes), tmp_path / "x", layout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_siglip_tower_is_refused(tmp_path, layout):
    with pytest.raises(EncoderError, match="SigLIP"):
        write_encoder(toy(causal=False, pooling="last", pooled_head=64), tmp_path / "x", layout)


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path, value):
    encoder = toy()
    changed = {name: w.clone() for name, w in encoder.weights.items()}
    changed["final_layer_norm.bias"][0] = value
    with pytest.raises(NumericalError, match=r"final_layer_norm\.bias"):
        write_encoder(encoder.with_weights(changed), tmp_path / "x", "comfyui")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}])
def test_metadata_has_to_be_text(tmp_path, metadata):
    with pytest.raises(ConfigError, match="metadata that is text by name"):
        write_encoder(toy(), tmp_path / "x", "comfyui", metadata=metadata)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_folder_is_made(tmp_path, layout):
    write_encoder(toy(), tmp_path / "new" / "one" / "x", layout)
    assert len(open_target(tmp_path / "new" / "one" / "x", tokenizer=TOKENIZER).encoders) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_in_the_place_of_a_folder_is_a_storage_error(tmp_path, layout):
    (tmp_path / "no").touch()
    with pytest.raises(StorageError, match="a place to write"):
        write_encoder(toy(), tmp_path / "no" / "x", layout)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="a place to write"):
        write_encoder(toy(), tmp_path / "x", "comfyui")


@pytest.mark.parametrize(("layout", "make"), [("hf", Path.touch), ("comfyui", Path.mkdir)])
def test_a_path_of_the_wrong_kind_is_a_storage_error_and_stays(tmp_path, layout, make):
    make(tmp_path / "x")
    with pytest.raises(StorageError, match="a place to write"):
        write_encoder(toy(), tmp_path / "x", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, layout, error):
    write_encoder(toy(), tmp_path / "x", layout)

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(StorageError, match="has room"):
        write_encoder(toy(layers=1), tmp_path / "x", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert open_target(tmp_path / "x", tokenizer=TOKENIZER).encoders[0].encoder.spec.layers == 2


def test_the_same_encoder_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_encoder(toy(), tmp_path / name, "hf")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["eos_token_id"] == TOKENIZER.eos_id
