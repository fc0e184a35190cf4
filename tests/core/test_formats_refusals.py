"""What is no scannable encoder is refused by name, with what to do; nothing in a file is ever run."""

from __future__ import annotations

import collections
import gzip
import io
import json
import os
import pickle
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from amdet_core.encoder import POSITION_TABLE, TOKEN_TABLE, TextEncoder, expected_shapes
from amdet_core.errors import AmdetError, EncoderError, NoEncoderError, NumericalError, StorageError
from amdet_core.formats import open_target
from amdet_core.formats.layouts import to_open_clip
from amdet_core.records import EncoderSpec
from amdet_core.tokenizer import ClipTokenizer

TOKENIZER = ClipTokenizer([])
FC1 = "text_model.encoder.layers.1.mlp.fc1.weight"


def toy(**changes: object) -> TextEncoder:
    sizes = {"width": 64, "layers": 2, "heads": 1, "mlp_width": 128, "vocabulary": len(TOKENIZER), "positions": 16}
    spec = EncoderSpec.model_validate(sizes | changes)
    return TextEncoder(spec, {name: torch.randn(shape) for name, shape in expected_shapes(spec).items()}, TOKENIZER)


def hf(encoder: TextEncoder) -> dict[str, Tensor]:
    return {f"text_model.{name}": w for name, w in encoder.weights.items()}


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: w.contiguous().clone() for name, w in tensors.items()}, path)
    return path


def zeros(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(4, 4) for name in names}


def refusal(path: Path, kind: type[AmdetError] = EncoderError) -> str:
    with pytest.raises(kind) as caught:
        open_target(path, tokenizer=TOKENIZER)
    assert type(caught.value) is kind
    return str(caught.value)


# ---------------------------------------------------------------- content that is something else


SIGLIP_FUSED = to_open_clip(toy().weights) | {"text_projection.weight": torch.zeros(8, 64)}
OTHER = {
    "kohya LoRA": (zeros("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"), "a LoRA", "Apply it"),
    "peft LoRA": (zeros("text_model.encoder.layers.0.mlp.fc1.lora_A.weight"), "a LoRA", "Apply it"),
    "diffusers LoRA": (zeros("unet.down_blocks.0.attn.to_k_lora.up.weight"), "a LoRA", "Apply it"),
    "loha": (zeros("lora_unet_x.hada_w1_a"), "a LoRA", "Apply it"),
    "VAE": (zeros("encoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight"), "a VAE", "text encoder"),
    "VAE of diffusers": (zeros("decoder.up_blocks.0.resnets.0.conv1.weight"), "a VAE", "text encoder"),
    "UNet": (zeros("model.diffusion_model.input_blocks.0.0.weight"), "an image model", "text encoder"),
    "UNet of diffusers": (zeros("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "an image model", "text"),
    "Flux": (zeros("double_blocks.0.img_attn.qkv.weight", "img_in.weight"), "an image model", "text encoder"),
    "Flux dev": (zeros("double_blocks.0.img_mod.lin.weight", "guidance_in.in_layer.weight"), "an image model", "text"),
    "Flux of diffusers": (
        zeros("norm_out.linear.weight", "proj_out.weight", "time_text_embed.x"),
        "an image model",
        "text",
    ),
    "VAE with its training": (
        zeros("state_dict.encoder.conv_in.weight", "state_dict.loss.discriminator.main.0.weight"),
        "a VAE",
        "text",
    ),
    "embedding": (zeros("emb_params"), "a textual-inversion embedding", "Scan the encoder"),
    "SDXL embedding": (zeros("clip_l", "clip_g"), "a textual-inversion embedding", "Scan the encoder"),
    "T5": (zeros("shared.weight", "encoder.block.0.layer.0.SelfAttention.k.weight"), "a T5 text encoder", "Only CLIP"),
    "BERT": (zeros("bert.encoder.layer.0.attention.self.query.weight"), "a BERT text encoder", "Only CLIP"),
    "Llama": (zeros("model.layers.0.mlp.gate_proj.weight"), "a Llama-like language model", "Only CLIP"),
    "Qwen": (zeros("model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm.weight"), "a Qwen", "Only"),
    "Gemma": (zeros("model.layers.0.pre_feedforward_layernorm.weight"), "a Gemma language model", "Only CLIP"),
    "CLIP image tower": (zeros("vision_model.encoder.layers.0.mlp.fc1.weight"), "a CLIP image tower", "text encoder"),
    "open_clip image tower": (
        zeros("visual.transformer.resblocks.0.ln_1.weight"),
        "a CLIP image tower",
        "text encoder",
    ),
    "bare image tower": (zeros("embeddings.patch_embedding.weight"), "a CLIP image tower", "text encoder"),
    "SigLIP": (hf(toy(pooled_head=64)), "a SigLIP text tower: its tokenizer is not supported yet", "Only CLIP"),
    "SigLIP of open_clip": (SIGLIP_FUSED | zeros("text_projection.bias"), "a SigLIP text tower", "Only CLIP"),
    "anything else": (zeros("hello.world"), "tensors of no known kind (1 tensors, first hello.world)", "Name a"),
    "no tensors": ({}, "a file without tensors", "Name a"),
}


@pytest.mark.parametrize(("tensors", "found", "remedy"), OTHER.values(), ids=OTHER.keys())
def test_other_content_is_named(tmp_path, tensors, found, remedy):
    """What takes no part in reading prompts is told from what does and can't be scanned."""
    kind = NoEncoderError if found in ("a VAE", "an image model", "a CLIP image tower") else EncoderError
    message = refusal(save(tmp_path / "clip_l.safetensors", tensors), kind)
    assert message.startswith("expected a CLIP text encoder; found ")
    assert found in message
    assert remedy in message


def test_a_pickled_embedding_of_a_web_ui_is_named(tmp_path):
    torch.save({"string_to_param": {"*": torch.zeros(2, 768)}, "name": "x"}, tmp_path / "x.pt")
    assert "a textual-inversion embedding" in refusal(tmp_path / "x.pt")


def _png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + bytes(64)


def _zip() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return raw.getvalue()


FILES = {
    "empty": (b"", "an empty file", "download it again"),
    "text": (b"a text that is no model", "a file that is no model", "Name a safetensors file"),
    "short": (b"x", "a file that is no model", "Name a safetensors file"),
    "png": (_png(), "a file that is no model", "Name a safetensors file"),
    "gzip": (gzip.compress(bytes(64)), "a file that is no model", "Name a safetensors file"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(64), "a GGUF file, whose weights are quantised", "that it was made from"),
    "zip": (_zip(), "a zip archive without a model in it", "Name a safetensors file"),
    "zip header only": (b"PK\x03\x04" + bytes(64), "a damaged zip archive", "Name a safetensors file"),
    "json": (b'{"a": 1}', "a JSON file that is no index of shards", "Name a safetensors file"),
    "two formats": (b"PK\x03\x04\0\0\0\0{" + bytes(64), "a zip archive and safetensors at once", "Don't use it"),
}


@pytest.mark.parametrize(("raw", "found", "remedy"), FILES.values(), ids=FILES.keys())
def test_files_that_are_no_model_are_refused_by_their_content(tmp_path, raw, found, remedy):
    (tmp_path / "model.safetensors").write_bytes(raw)
    message = refusal(tmp_path / "model.safetensors")
    assert found in message
    assert remedy in message


def test_a_path_that_does_not_exist_is_a_storage_error(tmp_path):
    assert "No such file" in refusal(tmp_path / "nothing", StorageError)


# ---------------------------------------------------------------- encoders that are not whole


def test_a_missing_tensor_is_named(tmp_path):
    tensors = hf(toy())
    del tensors[FC1]
    assert "1 missing ['encoder.layers.1.mlp.fc1.weight']" in refusal(save(tmp_path / "x", tensors))


@pytest.mark.parametrize("table", [TOKEN_TABLE, POSITION_TABLE])
def test_a_missing_table_is_named(tmp_path, table):
    tensors = hf(toy())
    del tensors[f"text_model.{table}"]
    wanted = {TOKEN_TABLE: "without a token table", POSITION_TABLE: f"no {POSITION_TABLE}"}
    assert wanted[table] in refusal(save(tmp_path / "x", tensors))


def test_a_missing_layer_is_noticed(tmp_path):
    tensors = {key: w for key, w in hf(toy(layers=3)).items() if ".layers.1." not in key}
    assert "expected layers 0 to 1; found layers ['0', '2']" in refusal(save(tmp_path / "x", tensors))


def test_one_broken_encoder_in_a_file_of_two_is_no_pass(tmp_path):
    broken = {f"b.{key}": w for key, w in hf(toy()).items() if key != FC1}
    whole = {f"a.{key}": w for key, w in hf(toy()).items()}
    assert "1 missing" in refusal(save(tmp_path / "x", whole | broken))


@pytest.mark.parametrize(
    "key",
    [
        "text_model.encoder.layers.0.extra.weight",
        "text_model.encoder.layers.0.self_attn.q_proj.gate",
        "text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "cls_emb",
    ],
)
def test_an_unexpected_tensor_is_named(tmp_path, key):
    assert f"1 unexpected ['{key}']" in refusal(save(tmp_path / "x", hf(toy()) | zeros(key)))


def test_a_wrong_shape_is_named(tmp_path):
    message = refusal(save(tmp_path / "x", hf(toy()) | {FC1: torch.zeros(100, 64)}))
    assert "encoder.layers.1.mlp.fc1.weight (100, 64) instead of (128, 64)" in message


@pytest.mark.parametrize("shape", [(), (192,), (191, 64), (2, 64), (3, 64, 64)])
def test_a_fused_projection_of_wrong_shape_is_refused(tmp_path, shape):
    tensors = to_open_clip(toy().weights) | {"transformer.resblocks.1.attn.in_proj_weight": torch.zeros(shape)}
    assert "self_attn" in refusal(save(tmp_path / "x", tensors))


@pytest.mark.parametrize("shape", [(514,), (0, 64), (514, 0), (2, 2, 2)])
def test_a_token_table_of_impossible_shape_is_refused(tmp_path, shape):
    tensors = hf(toy()) | {f"text_model.{TOKEN_TABLE}": torch.zeros(shape)}
    assert f"the shape {shape} of {TOKEN_TABLE}" in refusal(save(tmp_path / "x", tensors))


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path):
    message = refusal(save(tmp_path / "x", hf(toy(vocabulary=500))))
    assert "expected a row for each of the tokenizer's 514 tokens; found 500 rows" in message


def test_a_width_without_whole_heads_needs_a_config(tmp_path):
    save(tmp_path / "model.safetensors", hf(toy(width=96, heads=2)))
    assert "a multiple of 64, or a config.json with the heads; found 96" in refusal(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    assert open_target(tmp_path, tokenizer=TOKENIZER).encoders[0].encoder.spec.heads == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_a_numerical_error(tmp_path, value):
    tensors = hf(toy())
    tensors[FC1][3, 3] = value
    assert "mlp.fc1.weight" in refusal(save(tmp_path / "x", tensors), NumericalError)


def test_integer_weights_are_refused_as_quantised(tmp_path):
    message = refusal(save(tmp_path / "x", hf(toy()) | {FC1: torch.zeros(128, 64, dtype=torch.int8)}))
    assert "found float32 and int8" in message or "found float32 and i8" in message
    assert "before it was quantised" in message


@pytest.mark.parametrize("key", ["scaled_fp8", "text_model.encoder.layers.0.mlp.fc1.scale_weight"])
def test_eight_bit_weights_with_scales_are_refused(tmp_path, key):
    message = refusal(save(tmp_path / "x", hf(toy()) | {key: torch.ones(1)}))
    assert f"quantised weights with scales of their own ({key})" in message


@pytest.mark.parametrize(("rows", "others"), [(16, 248), (248, 77), (77, 77)])
def test_two_position_tables_that_are_not_long_clips_are_refused(tmp_path, rows, others):
    tensors = to_open_clip(toy(positions=rows).weights) | {"positional_embedding_res": torch.zeros(others, 64)}
    assert f"({rows}, 64) and ({others}, 64)" in refusal(save(tmp_path / "x", tensors))


# ---------------------------------------------------------------- configs


CONTRADICTIONS = {
    "hidden_size": 128,
    "num_hidden_layers": 12,
    "intermediate_size": 1,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "model_type": "t5",
}


@pytest.mark.parametrize(("key", "value"), CONTRADICTIONS.items(), ids=CONTRADICTIONS.keys())
@pytest.mark.parametrize("nested", [False, True])
def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path, key, value, nested):
    save(tmp_path / "model.safetensors", hf(toy()))
    config = {"text_config": {key: value}} if nested else {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"found {key} {value!r} in config.json" in refusal(tmp_path)


@pytest.mark.parametrize(("key", "value"), [
    ("hidden_act", "relu"), ("hidden_act", 3), ("num_attention_heads", 7), ("num_attention_heads", 0),
    ("num_attention_heads", "1"), ("eos_token_id", 7), ("layer_norm_eps", 0), ("layer_norm_eps", "x"),
])  # fmt: skip
def test_a_config_with_impossible_values_is_refused(tmp_path, key, value):
    save(tmp_path / "model.safetensors", hf(toy()))
    (tmp_path / "config.json").write_text(json.dumps({key: value}))
    assert f"found {value!r}" in refusal(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff{}", b'{"a":' * 100_000])
def test_a_config_that_is_no_json_object_is_refused(tmp_path, raw):
    save(tmp_path / "model.safetensors", hf(toy()))
    (tmp_path / "config.json").write_bytes(raw)
    assert "expected a JSON object" in refusal(tmp_path)


# ---------------------------------------------------------------- folders


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "0 weight files" in refusal(tmp_path)


def test_a_folder_of_several_models_asks_for_one(tmp_path):
    save(tmp_path / "a.safetensors", hf(toy()))
    save(tmp_path / "b.safetensors", hf(toy()))
    message = refusal(tmp_path)
    assert "2 weight files" in message
    assert "a.safetensors, b.safetensors. Name the file itself." in message


def test_a_pipeline_without_its_text_encoder_is_incomplete(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"text_encoder": ["transformers", "CLIPTextModel"]}))
    assert "no text_encoder" in refusal(tmp_path, StorageError)


def test_an_error_in_a_component_names_it(tmp_path):
    for name in ("text_encoder", "text_encoder_2"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "model.safetensors", hf(toy()))
    (tmp_path / "text_encoder_2" / "model.safetensors").write_bytes(b"")
    assert "an empty file: model.safetensors (in text_encoder_2)" in refusal(tmp_path)


def index(folder: Path, places: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_missing_shards_are_named(tmp_path):
    index(tmp_path, dict.fromkeys(hf(toy()), "model-00001-of-00001.safetensors"))
    assert "1 missing, first model-00001-of-00001.safetensors" in refusal(tmp_path, StorageError)


def test_a_shard_without_a_tensor_of_its_index_is_refused(tmp_path):
    save(tmp_path / "a.safetensors", hf(toy()))
    index(tmp_path, dict.fromkeys(hf(toy()), "a.safetensors") | {"other": "a.safetensors"})
    assert "1 missing, first other" in refusal(tmp_path)


@pytest.mark.parametrize("place", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", ".."])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path, place):
    index(tmp_path, {"text_model.x": place})
    assert refusal(tmp_path, StorageError if place == ".." else EncoderError)


def test_an_index_that_names_itself_is_refused(tmp_path):
    index(tmp_path, {"text_model.x": "model.safetensors.index.json"})
    assert "a JSON file" in refusal(tmp_path)


# ---------------------------------------------------------------- pickles


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["root", "value", "nested"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(tmp_path, zipped, place):
    mark = tmp_path / "ran"
    bomb = Bomb(mark)
    table = {"root": bomb, "value": hf(toy()) | {"x": bomb}, "nested": {"state_dict": hf(toy()), "y": [bomb]}}[place]
    torch.save(table, tmp_path / "model.safetensors", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "model.safetensors")
    assert "would run code" in message
    assert "mkdir" in message
    assert "Nothing of it was run" in message
    assert "weights_only" not in message
    assert not mark.exists()


def test_the_bomb_of_these_tests_does_go_off_elsewhere(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_raw_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    for protocol in (2, 3, 4, 5):
        (tmp_path / "x.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol))
        assert "Nothing of it was run" in refusal(tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), 0))
    assert "a file that is no model" in refusal(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    assert "would run code" in refusal(tmp_path / "x.pt")


def test_a_torchscript_program_is_refused_with_the_way_to_convert_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-L-14.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"archive/{name}", b"\x80\x02N.")
    message = refusal(tmp_path / "ViT-L-14.pt")
    assert "a TorchScript program" in message
    assert "state_dict()" in message


def test_a_tar_checkpoint_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.pt", "w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("\udc80\x02sys_info")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"abcd"))
    assert (tmp_path / "x.pt").read_bytes()[:2] == b"\x80\x02"
    assert "a tar archive of an early torch version" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_checkpoint_is_refused(tmp_path, zipped):
    torch.save(hf(toy()), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    raw = (tmp_path / "x.pt").read_bytes()
    for size in (100, len(raw) // 2, len(raw) - 10):
        (tmp_path / "x.pt").write_bytes(raw[:size])
        message = refusal(tmp_path / "x.pt")
        assert "damaged" in message
        assert "weights_only" not in message


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_changed_bytes_of_a_checkpoint_raise_only_the_librarys_errors(tmp_path, zipped):
    torch.save({"x": torch.zeros(3), "y": {"z": 1}}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    raw = (tmp_path / "x.pt").read_bytes()
    dice = random.Random(0)
    for _ in range(300):
        changed = bytearray(raw)
        for _ in range(dice.randint(1, 3)):
            changed[dice.randrange(2, len(raw))] = dice.randrange(256)
        (tmp_path / "x.pt").write_bytes(changed)
        with pytest.raises((EncoderError, StorageError)):
            open_target(tmp_path / "x.pt", tokenizer=TOKENIZER)


def test_a_tensor_that_is_larger_than_its_bytes_is_refused(tmp_path):
    torch.save(hf(toy()) | {"text_model.big": torch.zeros(1).expand(10**12)}, tmp_path / "x.pt")
    assert "'text_model.big' that is larger than its own bytes" in refusal(tmp_path / "x.pt")


def test_two_tensors_of_one_name_are_refused(tmp_path):
    torch.save({"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}, tmp_path / "x.pt")
    assert "two tensors that are both called 'a.b'" in refusal(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "x.pt")
    assert "torch.sparse_coo" in refusal(tmp_path / "x.pt")


def test_a_table_that_contains_itself_is_read_once(tmp_path):
    table: dict[str, object] = collections.OrderedDict()
    table["state_dict"] = table
    torch.save(table, tmp_path / "x.pt")
    assert "a file without tensors" in refusal(tmp_path / "x.pt")


def test_a_table_nested_without_end_is_refused(tmp_path):
    table: dict[str, object] = {}
    for _ in range(50):
        table = {"x": table}
    torch.save(table, tmp_path / "x.pt")
    assert "nested more than 8 deep" in refusal(tmp_path / "x.pt")
