"""Every layout gives the same encoder; what a file does not say is written down; nothing else is read."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from amdet_core.encoder import POSITION_TABLE, PROJECTION, TextEncoder, expected_shapes
from amdet_core.errors import EncoderError, StorageError
from amdet_core.formats import TRIGGER_PHRASE, OpenedTarget, file_sha256, only_encoder, open_target
from amdet_core.formats.files import sha256
from amdet_core.formats.layouts import to_open_clip
from amdet_core.formats.open import FLOATS
from amdet_core.records import EncoderSpec
from amdet_core.tokenizer import ClipTokenizer

TOKENIZER = ClipTokenizer([])


def toy(seed: int = 0, **changes: object) -> TextEncoder:
    sizes = {"width": 64, "layers": 2, "heads": 1, "mlp_width": 128, "vocabulary": len(TOKENIZER), "positions": 16}
    spec = EncoderSpec.model_validate(sizes | changes)
    generator = torch.Generator().manual_seed(seed)
    shapes = expected_shapes(spec)
    # half-precision values, so that no layout or dtype may change a bit
    weights = {name: torch.randn(shape, generator=generator).mul(0.1).half().float() for name, shape in shapes.items()}
    return TextEncoder(spec, weights, TOKENIZER)


def hf(encoder: TextEncoder, prefix: str = "text_model.") -> dict[str, Tensor]:
    outer = prefix.removesuffix("text_model.")
    return {f"{outer if name == PROJECTION else prefix}{name}": w for name, w in encoder.weights.items()}


def fused(encoder: TextEncoder, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: w for name, w in to_open_clip(encoder.weights).items()}


def save(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = torch.float16) -> Path:
    own = {name: w.to(dtype or w.dtype) if w.is_floating_point() else w for name, w in tensors.items()}
    save_file({name: w.contiguous().clone() for name, w in own.items()}, path)
    return path


def opened(path: Path) -> OpenedTarget:
    return open_target(path, tokenizer=TOKENIZER)


def assert_same(found: TextEncoder, wanted: TextEncoder) -> None:
    assert found.weights.keys() == wanted.weights.keys()
    for name, weight in wanted.weights.items():
        assert found.weights[name].dtype == torch.float32
        assert torch.equal(found.weights[name], weight), name


SINGLE = {
    "transformers 4": (lambda e: hf(e), "hf", "text_encoder"),
    "transformers 5": (lambda e: hf(e, ""), "hf", "text_encoder"),
    "sd1": (lambda e: hf(e, "cond_stage_model.transformer.text_model."), "sd1", "text_encoder"),
    "sd1 of transformers 5": (lambda e: hf(e, "cond_stage_model.transformer."), "sd1", "text_encoder"),
    "sd2": (lambda e: fused(e, "cond_stage_model.model."), "sd2", "text_encoder"),
    "sdxl l": (lambda e: hf(e, "conditioner.embedders.0.transformer.text_model."), "sdxl", "clip_l"),
    "sdxl g": (lambda e: fused(e, "conditioner.embedders.1.model."), "sdxl", "clip_g"),
    "refiner": (lambda e: fused(e, "conditioner.embedders.0.model."), "sdxl", "clip_g"),
    "sd3 l": (lambda e: hf(e, "text_encoders.clip_l.transformer.text_model."), "sd3", "clip_l"),
    "sd3 g": (lambda e: hf(e, "text_encoders.clip_g.transformer.text_model."), "sd3", "clip_g"),
    "saved by ComfyUI": (lambda e: hf(e, "clip_l.transformer.text_model."), "comfyui", "clip_l"),
    "open_clip": (lambda e: fused(e), "open_clip", "text_encoder"),
    "open_clip custom text": (lambda e: fused(e, "text."), "open_clip", "text_encoder"),
    "wrapped by a trainer": (lambda e: hf(e, "module.model.text_model."), "hf", "text_encoder"),
}


@pytest.mark.parametrize(("tensors", "layout", "name"), SINGLE.values(), ids=SINGLE.keys())
@pytest.mark.parametrize("projection", [None, 32])
def test_every_single_file_layout_gives_the_same_weights(tmp_path, tensors, layout, name, projection):
    encoder = toy(projection=projection)
    target = opened(save(tmp_path / "misleading name.txt", tensors(encoder)))
    (found,) = target.encoders
    assert_same(found.encoder, encoder)
    assert (found.layout, found.name, found.dtype) == (layout, name, "float16")
    assert target.not_scanned == ()


@pytest.mark.parametrize(
    ("metadata", "declared"),
    [
        ({}, ()),
        ({TRIGGER_PHRASE: "sks dog, ohwx ,, sks dog"}, ("sks dog", "ohwx")),
        ({TRIGGER_PHRASE: " "}, ()),
    ],
)
def test_taught_phrases_are_read_from_the_metadata(tmp_path, metadata, declared):
    tensors = {name: w.contiguous() for name, w in hf(toy()).items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    assert opened(tmp_path / "x.safetensors").encoders[0].declared == declared


def test_old_comfyui_files_hold_an_untransposed_projection_outside_the_transformer(tmp_path):
    encoder = toy(projection=64)
    tensors = hf(encoder, "clip_l.transformer.text_model.")
    tensors["clip_l.text_projection"] = tensors.pop("clip_l.transformer.text_projection.weight").t()
    tensors["clip_l.logit_scale"] = torch.tensor(4.6)
    (found,) = opened(save(tmp_path / "x", tensors)).encoders
    assert_same(found.encoder, encoder)


def test_transformers_save_pretrained_folders_open_with_their_config(tmp_path):
    config = transformers.CLIPTextConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, hidden_act="gelu",
        vocab_size=len(TOKENIZER), max_position_embeddings=16, projection_dim=32, layer_norm_eps=2e-5,
        bos_token_id=TOKENIZER.bos_id, eos_token_id=TOKENIZER.eos_id, pad_token_id=0,
    )  # fmt: skip
    for kind in (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection):
        model = kind(config).train(False)
        model.save_pretrained(tmp_path / kind.__name__)
        target = opened(tmp_path / kind.__name__)
        (found,) = target.encoders
        spec = found.encoder.spec
        assert (spec.heads, spec.activation, spec.pad_id, spec.norm_eps) == (2, "gelu", 0, 2e-5)
        assert spec.pooling == "eos-id"
        assert spec.projection == (32 if kind is transformers.CLIPTextModelWithProjection else None)
        assert found.assumptions == ()
        assert {file.name for file in target.files} == {"config.json", "model.safetensors"}
        batch = found.encoder.tokens(["a cat", "x"])
        with torch.no_grad():
            wanted = model(batch.ids).last_hidden_state
        assert torch.allclose(found.encoder.states(batch), wanted, atol=1e-5)


def test_a_full_clip_model_gives_its_text_tower(tmp_path):
    text = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1,
        "vocab_size": len(TOKENIZER), "max_position_embeddings": 16,
        "bos_token_id": TOKENIZER.bos_id, "eos_token_id": TOKENIZER.eos_id,
    }  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 32, "patch_size": 16}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.save_pretrained(tmp_path / "clip")
    target = opened(tmp_path / "clip")
    (found,) = target.encoders
    assert found.encoder.spec.projection == 24
    assert torch.equal(found.encoder.weights[POSITION_TABLE], model.text_model.embeddings.position_embedding.weight)
    assert target.not_scanned == ()
    single = opened(tmp_path / "clip" / "model.safetensors").encoders[0]
    assert_same(single.encoder, found.encoder)


def test_an_open_clip_model_gives_its_text_tower(tmp_path):
    text = open_clip.model.CLIPTextCfg(context_length=16, vocab_size=len(TOKENIZER), width=64, heads=1, layers=2)
    vision = open_clip.model.CLIPVisionCfg(layers=1, width=32, head_width=32, patch_size=16, image_size=32)
    model = open_clip.model.CLIP(24, vision, text).train(False)
    (found,) = opened(save(tmp_path / "full", dict(model.state_dict()), torch.float32)).encoders
    assert found.encoder.spec.projection == 24
    batch = found.encoder.tokens(["a cat"], pad_to_context=True)
    gelu = TextEncoder(found.encoder.spec.model_copy(update={"activation": "gelu"}), found.encoder.weights, TOKENIZER)
    pooled = gelu.project(gelu.pool(gelu.states(batch), batch.eos))
    with torch.no_grad():
        assert torch.allclose(pooled, model.encode_text(batch.ids), atol=1e-5)


def test_an_open_clip_config_beside_the_weights_is_used(tmp_path):
    encoder = toy()
    text = {"context_length": 16, "vocab_size": len(TOKENIZER), "width": 64, "heads": 2, "layers": 2}
    raw = {"model_cfg": {"embed_dim": 64, "text_cfg": text}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(raw))
    save(tmp_path / "open_clip_model.safetensors", fused(encoder))
    (found,) = opened(tmp_path).encoders
    spec = found.encoder.spec
    assert (spec.heads, spec.activation, spec.pad_id, spec.pooling) == (2, "gelu", 0, "eos-argmax")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nest", [lambda t: t, lambda t: {"epoch": 3, "state_dict": t, "optimizer_states": [1.0]}])
def test_torch_checkpoints_open_whatever_table_they_are_in(tmp_path, zipped, nest):
    encoder = toy()
    tensors = hf(encoder, "cond_stage_model.transformer.text_model.")
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    torch.save(nest(tensors), tmp_path / "x.safetensors", _use_new_zipfile_serialization=zipped)
    target = opened(tmp_path / "x.safetensors")
    assert_same(target.encoders[0].encoder, encoder)
    assert target.encoders[0].layout == "sd1"
    assert target.encoders[0].dtype == "float32"


def test_transformers_folders_with_a_bin_file_open(tmp_path):
    encoder = toy()
    torch.save(hf(encoder), tmp_path / "pytorch_model.bin")
    assert_same(opened(tmp_path).encoders[0].encoder, encoder)


def test_sharded_folders_open(tmp_path):
    encoder = toy()
    items = sorted(hf(encoder).items())
    shards = {"model-00001-of-00002.safetensors": dict(items[:9]), "model-00002-of-00002.safetensors": dict(items[9:])}
    for name, tensors in shards.items():
        save(tmp_path / name, tensors)
    places = {key: name for name, tensors in shards.items() for key in tensors}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in (tmp_path, index):
        target = opened(path)
        assert_same(target.encoders[0].encoder, encoder)
        assert [file.name for file in target.files] == [index.name, *shards]
    assert target.bytes_read == sum(file.stat().st_size for file in target.files)


def test_diffusers_folders_give_every_encoder_and_name_the_rest(tmp_path):
    first, second = toy(1), toy(2, width=128, heads=2, projection=128)
    pipeline = {"_class_name": "StableDiffusion3Pipeline", "vae": ["diffusers", "AutoencoderKL"]}
    pipeline |= {f"text_encoder{n}": ["transformers", "CLIPTextModel"] for n in ("", "_2", "_3")}
    (tmp_path / "model_index.json").write_text(json.dumps(pipeline | {"text_encoder_4": [None, None]}))
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        (tmp_path / name).mkdir()
    save(tmp_path / "text_encoder" / "model.safetensors", hf(first))
    save(tmp_path / "text_encoder" / "model.fp16.safetensors", hf(first))
    save(tmp_path / "text_encoder_2" / "model.fp16.safetensors", hf(second))
    save(tmp_path / "text_encoder_3" / "model.safetensors", T5)
    save(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", {"encoder.conv_in.weight": torch.zeros(1)})
    target = opened(tmp_path)
    assert_same(target.encoders[0].encoder, first)
    assert_same(target.encoders[1].encoder, second)
    assert [found.name for found in target.encoders] == ["text_encoder", "text_encoder_2"]
    assert len(target.not_scanned) == 2
    assert target.not_scanned[0].startswith("text_encoder_3: a T5 text encoder (3 tensors, first encoder.block.0")
    assert target.not_scanned[1] == "text_encoder/model.fp16.safetensors: another weight file of this folder"


T5 = {
    "shared.weight": torch.zeros(4, 4),
    "encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(4, 4),
    "encoder.final_layer_norm.weight": torch.zeros(4),
}


def test_an_sdxl_checkpoint_gives_both_encoders_with_the_conventions_of_each(tmp_path):
    small, large = toy(1), toy(2, width=128, heads=2, projection=128)
    tensors = hf(small, "conditioner.embedders.0.transformer.text_model.") | fused(
        large, "conditioner.embedders.1.model."
    )
    tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, 4, 3, 3)
    tensors["first_stage_model.encoder.conv_in.weight"] = torch.zeros(8, 3, 3, 3)
    tensors["denoiser.sigmas"] = torch.zeros(10)
    target = opened(save(tmp_path / "sdxl", tensors))
    clip_l, clip_g = target.encoders
    assert (clip_l.name, clip_g.name, clip_l.layout, clip_g.layout) == ("clip_l", "clip_g", "sdxl", "sdxl")
    assert_same(clip_l.encoder, small)
    assert_same(clip_g.encoder, large)
    assert (clip_l.encoder.spec.activation, clip_l.encoder.spec.pad_id, clip_l.encoder.spec.pooling) == (
        "quick_gelu",
        None,
        "eos-id",
    )
    assert (clip_g.encoder.spec.activation, clip_g.encoder.spec.pad_id, clip_g.encoder.spec.pooling) == (
        "gelu",
        0,
        "eos-argmax",
    )
    assert clip_g.encoder.spec.heads == 2
    assert target.not_scanned == ()


def test_an_sd3_checkpoint_names_t5_as_not_scanned(tmp_path):
    tensors = hf(toy(1), "text_encoders.clip_l.transformer.text_model.")
    tensors |= hf(toy(2, projection=64), "text_encoders.clip_g.transformer.text_model.")
    tensors |= {f"text_encoders.t5xxl.transformer.{key}": w for key, w in T5.items()}
    tensors |= {"model.diffusion_model.joint_blocks.0.x.weight": torch.zeros(2, 2), "mystery.weight": torch.zeros(2)}
    target = opened(save(tmp_path / "sd3", tensors))
    assert [found.name for found in target.encoders] == ["clip_g", "clip_l"]
    assert len(target.not_scanned) == 2
    assert (
        "a T5 text encoder (3 tensors, first text_encoders.t5xxl.transformer.encoder.block.0" in target.not_scanned[0]
    )
    assert target.not_scanned[1] == "tensors of no known kind (1 tensors, first mystery.weight)"


def test_only_encoder_refuses_to_choose(tmp_path):
    both = hf(toy(1), "clip_l.transformer.text_model.") | hf(toy(2), "clip_g.transformer.text_model.")
    with pytest.raises(EncoderError, match="found clip_g, clip_l in"):
        only_encoder(opened(save(tmp_path / "x", both)))
    assert_same(only_encoder(opened(save(tmp_path / "y", hf(toy(1))))), toy(1))


def test_two_encoders_of_one_name_get_names_of_their_own(tmp_path):
    tensors = hf(toy(1), "a.text_model.") | hf(toy(2), "b.text_model.") | hf(toy(3), "c.text_model.")
    names = [found.name for found in opened(save(tmp_path / "x", tensors)).encoders]
    assert names == ["text_encoder", "text_encoder_2", "text_encoder_3"]


def test_a_siglip_tower_beside_clip_is_named_and_clip_is_read(tmp_path):
    siglip = hf(toy(pooled_head=64), "siglip.text_model.")
    target = opened(save(tmp_path / "x", siglip | hf(toy(), "clip_l.transformer.text_model.")))
    assert [found.name for found in target.encoders] == ["clip_l"]
    assert target.not_scanned == ("a SigLIP text tower: its tokenizer is not supported yet (siglip.text_model.)",)


@pytest.mark.parametrize("style", ["hf", "hf parameter", "open_clip"])
def test_long_clips_two_position_tables_become_the_one_it_computes_with(tmp_path, style):
    encoder = toy(positions=248)
    other = torch.randn(248, 64).half().float()
    tensors = fused(encoder) if style == "open_clip" else hf(encoder)
    rest = {"hf": "text_model.embeddings.position_embedding_res.weight", "open_clip": "positional_embedding_res"}
    tensors[rest.get(style, "text_model.embeddings.position_embedding_res")] = other
    (found,) = opened(save(tmp_path / "long", tensors)).encoders
    table = found.encoder.weights[POSITION_TABLE]
    assert torch.equal(table[:20], encoder.weights[POSITION_TABLE][:20])
    assert torch.equal(table[20:], other[20:])
    assert any("LongCLIP" in line for line in found.assumptions)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_dtype_loads_as_float32_and_is_recorded(tmp_path, dtype):
    encoder = toy()
    kind = getattr(torch, dtype)
    (found,) = opened(save(tmp_path / "x", hf(encoder), kind)).encoders
    assert found.dtype == dtype
    for name, weight in encoder.weights.items():
        assert torch.equal(found.encoder.weights[name], weight.to(kind).float())


def test_mixed_dtypes_are_recorded(tmp_path):
    tensors = hf(toy())
    first = next(iter(tensors))
    tensors |= {first: tensors[first].half()}
    assert opened(save(tmp_path / "x", tensors, None)).encoders[0].dtype == "float16+float32"


def test_what_a_bare_file_does_not_say_is_written_down(tmp_path):
    (found,) = opened(save(tmp_path / "x", hf(toy()))).encoders
    assert found.assumptions == (
        "1 attention heads: 64 dimensions each, as in every published CLIP",
        "activation quick_gelu: as in OpenAI's encoders of this width",
        "pooled state at the end-of-text token",
        "padding with token 513, which cannot change the pooled state",
        "layer norm epsilon 1e-05",
    )


@pytest.mark.parametrize(("width", "name", "activation", "pad"), [
    (512, "text_encoder", "quick_gelu", None),
    (768, "clip_l", "quick_gelu", None),
    (1024, "clip_h", "gelu", 0),
    (1280, "clip_g", "gelu", 0),
])  # fmt: skip
def test_the_width_decides_what_nothing_else_says(tmp_path, width, name, activation, pad):
    encoder = toy(width=width, heads=width // 64, layers=1)
    for tensors in (hf(encoder), fused(encoder)):
        (found,) = opened(save(tmp_path / "x", tensors)).encoders
        assert (found.name, found.encoder.spec.activation, found.encoder.spec.pad_id) == (name, activation, pad)
        assert found.encoder.spec.heads == width // 64


def test_a_legacy_eos_in_the_config_means_the_highest_id(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 1}))
    save(tmp_path / "model.safetensors", hf(toy()))
    (found,) = opened(tmp_path).encoders
    assert found.encoder.spec.pooling == "eos-argmax"
    assert any("padding" in line for line in found.assumptions)


def test_added_token_rows_are_kept_and_mentioned(tmp_path):
    encoder = toy(vocabulary=len(TOKENIZER) + 3)
    (found,) = opened(save(tmp_path / "x", hf(encoder))).encoders
    assert_same(found.encoder, encoder)
    assert "3 token rows behind CLIP's vocabulary are never used" in found.assumptions


# ---------------------------------------------------------------- frugality and hashes


def checkpoint(path: Path, encoder: TextEncoder, other_bytes: int) -> tuple[int, int]:
    """An SD1 checkpoint with the encoder in the middle of other tensors; returns header and encoder bytes."""
    tensors = hf(encoder, "cond_stage_model.transformer.text_model.")
    half = other_bytes // 4
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = half * 2
    table["first_stage_model.decoder.conv_in.weight"] = {"dtype": "F16", "shape": [half], "data_offsets": [0, at]}
    start = at
    for name, w in tensors.items():
        end = at + w.numel() * 2
        table[name] = {"dtype": "F16", "shape": list(w.shape), "data_offsets": [at, end]}
        at = end
    end = at + half * 2
    table["model.diffusion_model.out.weight"] = {"dtype": "F16", "shape": [half], "data_offsets": [at, end]}
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(start, os.SEEK_CUR)
        for w in tensors.values():
            file.write(w.half().numpy().tobytes())
        file.seek(half * 2 - 1, os.SEEK_CUR)
        file.write(b"\0")
    return 8 + len(header), at - start


def bytes_this_process_read() -> int:
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no independent counter here")
def test_only_the_header_and_the_encoder_are_read(tmp_path):
    encoder = toy()
    header, body = checkpoint(tmp_path / "sd.ckpt", encoder, 200_000_000)
    opened(tmp_path / "sd.ckpt")
    before = bytes_this_process_read()
    target = opened(tmp_path / "sd.ckpt")
    read = bytes_this_process_read() - before
    assert_same(target.encoders[0].encoder, encoder)
    assert target.bytes_read == header + body
    assert read < header + body + 8192


def test_an_opened_target_needs_its_file_no_more(tmp_path):
    path = save(tmp_path / "x", hf(toy()))
    target = opened(path)
    path.unlink()
    assert_same(target.encoders[0].encoder, toy())


def test_tensors_of_a_mapped_checkpoint_that_are_not_the_encoders_are_not_counted(tmp_path):
    encoder = toy()
    torch.save(hf(encoder) | {"vision_model.x.weight": torch.zeros(1_000_000)}, tmp_path / "x.bin")
    assert opened(tmp_path / "x.bin").bytes_read == 4 * sum(w.numel() for w in encoder.weights.values())


def test_weights_do_not_change_with_the_file_afterwards(tmp_path):
    encoder = toy()
    torch.save(hf(encoder), tmp_path / "x.bin")
    (found,) = opened(tmp_path / "x.bin").encoders
    with (tmp_path / "x.bin").open("r+b") as file:
        file.write(bytes((tmp_path / "x.bin").stat().st_size))
    assert_same(found.encoder, encoder)


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "model.safetensors", []
    path.write_bytes(b"one")
    monkeypatch.setattr(Path, "open", lambda file, mode, real=Path.open: read.append(file) or real(file, mode))
    assert sha256(path) == sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert len(read) == 1
    path.unlink()
    path.write_bytes(b"two")
    assert sha256(path) == hashlib.sha256(b"two").hexdigest()
    path.unlink()
    with pytest.raises(StorageError, match="can be read"):
        sha256(path)


def test_the_hash_of_a_file_is_its_sha256(tmp_path):
    path = save(tmp_path / "x", hf(toy()))
    assert file_sha256(opened(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_hash_of_a_folder_is_over_the_files_that_were_read(tmp_path):
    (tmp_path / "text_encoder").mkdir()
    weights = save(tmp_path / "text_encoder" / "model.safetensors", hf(toy()))
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(json.dumps({"hidden_act": "gelu"}))
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  text_encoder/{f.name}\n" for f in (weights, config)]
    wanted = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert file_sha256(opened(tmp_path)) == wanted
    (tmp_path / "text_encoder" / "readme.md").write_text("not read")
    assert file_sha256(opened(tmp_path)) == wanted
    config.write_text(json.dumps({"hidden_act": "quick_gelu"}))
    assert file_sha256(opened(tmp_path)) != wanted


SD15 = {"width": 768, "heads": 12, "layers": 12, "mlp_width": 3072, "vocabulary": 49408, "positions": 77}


@pytest.mark.slow
def test_a_real_size_sd15_checkpoint_opens_within_the_memory_of_its_encoder(tmp_path):
    encoder = toy(**SD15)
    header, body = checkpoint(tmp_path / "sd15.safetensors", encoder, 3_900_000_000)
    assert (tmp_path / "sd15.safetensors").stat().st_size > 4_000_000_000
    code = textwrap.dedent("""
        import json, resource, sys
        from pathlib import Path
        from amdet_core.formats import open_target
        from amdet_core.tokenizer import clip_tokenizer
        def rchar():
            return int(Path("/proc/self/io").read_text().splitlines()[0].split(": ")[1])
        clip_tokenizer()
        read, peak = rchar(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        target = open_target(sys.argv[1])
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
        total = float(sum(w.double().sum() for w in target.encoders[0].encoder.weights.values()))
        print(json.dumps([rchar() - read, growth, target.bytes_read, target.encoders[0].name, total]))
    """)
    command = [sys.executable, "-c", code, str(tmp_path / "sd15.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    read, growth, counted, name, total = json.loads(done.stdout)
    assert name == "clip_l"
    assert counted == header + body
    assert read < header + body + 65536
    assert growth < 1.5e9
    assert total == pytest.approx(float(sum(w.double().sum() for w in encoder.weights.values())))
