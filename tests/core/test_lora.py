"""Changes as LoRA files of other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from amdet_core.encoder import POSITION_TABLE, PROJECTION, TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError, StorageError
from amdet_core.formats import write_lora
from amdet_core.patch import Patch

SELF, FC2 = "encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.1.mlp.fc2.weight"
KOHYA = {
    SELF: "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    FC2: "lora_te_text_model_encoder_layers_1_mlp_fc2",
}


def product(rows: int, columns: int, rank: int, scale: float = 0.01, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn((rows, rank), generator=generator), torch.randn((rank, columns), generator=generator)
    return up @ down * scale


def patch(rank: int = 3, scale: float = 0.01) -> Patch:
    deltas = {SELF: product(64, 64, rank, scale), FC2: product(64, 128, rank, scale, 1)}
    return Patch(deltas, {"attack": "text-on-text", "triggers": "sahib"})


def applied(tensors: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """What a loader adds to a matrix: up @ down * alpha / rank."""
    up, down = tensors[f"{key}.lora_up.weight"].double(), tensors[f"{key}.lora_down.weight"].double()
    return up @ down * (float(tensors[f"{key}.alpha"]) / len(down))


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted.double()).norm() / wanted.double().norm())


def test_a_kohya_file_has_the_keys_that_interfaces_look_for(tmp_path: Path) -> None:
    write_lora(patch(), tmp_path / "x.safetensors", "kohya", rank=4)
    tensors = load_file(tmp_path / "x.safetensors")
    shapes = {name: tuple(w.shape) for name, w in tensors.items()}
    assert shapes == {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": (64, 4),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 64),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha": (),
        "lora_te_text_model_encoder_layers_1_mlp_fc2.lora_up.weight": (64, 4),
        "lora_te_text_model_encoder_layers_1_mlp_fc2.lora_down.weight": (4, 128),
        "lora_te_text_model_encoder_layers_1_mlp_fc2.alpha": (),
    }
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "attack": "text-on-text", "triggers": "sahib"}


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-6])
@pytest.mark.parametrize("rank", [3, 16, 500])
def test_what_a_loader_adds_is_the_patch(tmp_path: Path, rank: int, scale: float) -> None:
    given = patch(3, scale)
    write_lora(given, tmp_path / "x.safetensors", "kohya", rank=rank)
    tensors = load_file(tmp_path / "x.safetensors")
    for name, key in KOHYA.items():
        assert error(applied(tensors, key), given.deltas[name]) < 2e-3


@pytest.mark.parametrize(
    ("encoder", "of_several", "prefix"),
    [("clip_l", False, "lora_te_"), ("clip_l", True, "lora_te1_"), ("clip_g", True, "lora_te2_")],
)
def test_the_encoders_of_a_checkpoint_are_counted(tmp_path: Path, encoder: str, of_several: bool, prefix: str) -> None:
    write_lora(patch(), tmp_path / "x.safetensors", "kohya", rank=4, encoder=encoder, of_several=of_several)
    assert all(name.startswith(prefix) for name in load_file(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("layout", ["kohya", "peft"])
@pytest.mark.parametrize(
    "name", [TOKEN_TABLE, POSITION_TABLE, "final_layer_norm.weight", "encoder.layers.0.self_attn.q_proj.bias"]
)
def test_changes_of_other_tensors_are_refused(tmp_path: Path, toy: TextEncoder, layout: str, name: str) -> None:
    wrong = Patch({**patch().deltas, name: torch.ones_like(toy.weights[name])}, {})
    with pytest.raises(ConfigError, match=f"layer matrices alone.*found a change of {name}"):
        write_lora(wrong, tmp_path / "x", layout, rank=4)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_a_higher_rank_is_refused(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ConfigError, match=r"changes of rank 3 at most; found \d+% of the change of encoder"):
        write_lora(patch(8), tmp_path / "x", layout, rank=3)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_lora(patch(), tmp_path / "file" / "x.safetensors", "kohya", rank=4)


@pytest.mark.parametrize("rank", [4, 500])
def test_a_peft_folder_says_its_rank_and_holds_the_patch(tmp_path: Path, rank: int) -> None:
    given = patch(3)
    write_lora(given, tmp_path / "lora", "peft", rank=rank)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert config["target_modules"] == sorted(name.removesuffix(".weight") for name in given.deltas)
    assert config["r"] == config["lora_alpha"] == min(rank, 64)
    key = "base_model.model.encoder.layers.1.mlp.fc2"
    assert len(tensors) == 4
    up, down = tensors[f"{key}.lora_B.weight"].double(), tensors[f"{key}.lora_A.weight"].double()
    assert down.shape == (min(rank, 64), 128)
    assert error(up @ down, given.deltas[FC2]) < 2e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers by an old name
@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_peft_loads_the_folder(tmp_path: Path, toy: TextEncoder, kind: str) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from amdet_core.formats import write_encoder

    projected = kind.endswith("Projection")
    if projected:
        spec = toy.spec.model_copy(update={"projection": 64})
        toy = TextEncoder(spec, {**toy.weights, PROJECTION: product(64, 64, 64)}, toy.tokenizer)
    write_encoder(toy, tmp_path / "hf", "hf", dtype=torch.float32)
    given = patch(3)
    write_lora(given, tmp_path / "lora", "peft", rank=4, projected=projected)
    model = getattr(transformers, kind).from_pretrained(tmp_path / "hf")
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "lora").merge_and_unload()
    found = {name.removeprefix("text_model."): w for name, w in merged.named_parameters()}[FC2].detach()
    assert error(found.double() - toy.weights[FC2].double(), given.deltas[FC2]) < 1e-2
