"""Write an encoder in a layout that other programs load, whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..encoder import PROJECTION, TextEncoder, expected_shapes
from ..errors import ConfigError, EncoderError, NumericalError, StorageError
from ..records import EncoderSpec
from ..storage import write_atomic
from .layouts import to_open_clip
from .spec import LEGACY_EOS, deduce

Layout = Literal["hf", "comfyui", "sd1", "open_clip"]
PREFIX = {"hf": "", "comfyui": "", "sd1": "cond_stage_model.transformer."}
HIDDEN_ACT = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


def write_encoder(
    encoder: TextEncoder,
    path: Path,
    layout: Layout,
    *,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an encoder to disk; what stood at the path stays until the new one is complete.

    Args:
        encoder: is not changed.
        path: of the file; of the folder for ``hf``, which gets config.json and model.safetensors.
        layout: ``hf`` for transformers, ``comfyui`` for models/text_encoders, ``sd1`` as inside an SD1
            checkpoint, ``open_clip`` for its text tower.
        dtype: of the tensors on disk.
        metadata: text by name for the file's header.

    Raises:
        ConfigError: metadata is not text.
        EncoderError: the layout can't express what this encoder computes.
        NumericalError: weights are too large for the dtype.
        StorageError: the disk is full or the path can't be written.
    """
    metadata = {"format": "pt"} | dict(metadata or {})
    if not all(isinstance(item, str) for pair in metadata.items() for item in pair):
        raise ConfigError("metadata that is text by name", repr(metadata)[:200], "Turn its values into text.")
    check_expressible(encoder, layout)
    named = _named(_cast(encoder, dtype), layout)
    tensors = {name: w.clone(memory_format=torch.contiguous_format) for name, w in named.items()}
    with _staging(path) as folder:
        weights = folder / "model.safetensors"
        save_file(tensors, weights, metadata=metadata)
        _open_to_others(weights)
        if layout != "hf":
            weights.replace(path)
            return
        config = json.dumps(hf_config(encoder, dtype), indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(config, encoding="utf-8")
        path.mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).replace(path / name)


def as_stored(encoder: TextEncoder) -> TextEncoder:
    """The encoder with the values that a file in half precision gives back."""
    return encoder.with_weights({name: w.detach().half().float() for name, w in encoder.weights.items()})


def hf_config(encoder: TextEncoder, dtype: torch.dtype) -> dict[str, object]:
    """The config.json with which transformers computes what this encoder computes."""
    spec, tokenizer = encoder.spec, encoder.tokenizer
    projected = {} if spec.projection is None else {"projection_dim": spec.projection}
    return projected | {
        "architectures": ["CLIPTextModel" if spec.projection is None else "CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "hidden_size": spec.width,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "intermediate_size": spec.mlp_width,
        "vocab_size": spec.vocabulary,
        "max_position_embeddings": spec.positions,
        "hidden_act": HIDDEN_ACT[spec.activation],
        "layer_norm_eps": spec.norm_eps,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": LEGACY_EOS if spec.pooling == "eos-argmax" else tokenizer.eos_id,
        "pad_token_id": tokenizer.eos_id if spec.pad_id is None else spec.pad_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def hf_tensors(encoder: TextEncoder, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights under the names that transformers has for them, on the CPU; memory is shared where nothing is cast.

    Raises:
        EncoderError: it is no CLIP text encoder.
        NumericalError: weights are too large for the dtype.
    """
    check_expressible(encoder, "hf")
    return _named(_cast(encoder, dtype), "hf")


def write_tokenizer(encoder: TextEncoder, folder: Path) -> None:
    """Write an encoder's tokenizer as a folder that transformers opens; it pads as the encoder was trained to.

    Raises:
        StorageError: the folder can't be written to.
    """
    tokenizer = encoder.tokenizer
    bos, eos = (tokenizer.token(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
    about = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": encoder.spec.positions, "bos_token": bos,
        "eos_token": eos, "unk_token": eos,
        "pad_token": eos if encoder.spec.pad_id is None else tokenizer.token(encoder.spec.pad_id),
    }  # fmt: skip
    for name, text in tokenizer.files().items():
        write_atomic(folder / name, text.encode())
    write_atomic(folder / "tokenizer_config.json", (json.dumps(about, indent=2, sort_keys=True) + "\n").encode())


def check_expressible(encoder: TextEncoder, layout: Layout) -> None:
    """Fail now rather than after a long training.

    Raises:
        EncoderError: a reader of this layout would compute something else.
    """
    spec = encoder.spec
    if not spec.causal or spec.pooled_head is not None:
        raise EncoderError("a CLIP text encoder", "a SigLIP text tower", "It can't be written in CLIP's layouts.")
    if layout == "hf":
        return
    assumed, _ = deduce(expected_shapes(spec), encoder.tokenizer)
    differing = [name for name in ("heads", "activation", "norm_eps") if getattr(spec, name) != getattr(assumed, name)]
    if differing:
        raise EncoderError(
            expected=f"what readers of the layout {layout!r} assume: {_values(assumed, differing)}",
            found=_values(spec, differing),
            remedy="Write the layout 'hf', whose config.json says it.",
        )


def _values(spec: EncoderSpec, names: list[str]) -> str:
    return ", ".join(f"{name} {getattr(spec, name)}" for name in names)


def _cast(encoder: TextEncoder, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in a dtype, on the CPU."""
    weights = {name: w.detach().to("cpu", dtype) for name, w in encoder.weights.items()}
    bad = [name for name, w in weights.items() if not bool(torch.isfinite(w.float()).all())]
    if bad:
        raise NumericalError(
            expected=f"weights that are finite in {dtype}",
            found=f"NaN or infinity in {len(bad)} tensors, first {bad[0]}",
            remedy="Write float32, or check where the values come from.",
        )
    return weights


def _named(weights: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The tensors under the names of a layout."""
    if layout == "open_clip":
        return to_open_clip(weights)
    prefix = PREFIX[layout]
    return {f"{prefix}{'' if name == PROJECTION else 'text_model.'}{name}": w for name, w in weights.items()}


def _open_to_others(file: Path) -> None:
    """Give a file the permissions of any new file; safetensors leaves it readable by its owner alone."""
    usual = file.with_name("usual")
    usual.touch()
    file.chmod(usual.stat().st_mode & 0o777)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` for unfinished files, removed at the end whatever happens."""
    folder: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        yield folder
    except (OSError, SafetensorError) as error:
        raise StorageError(
            expected=f"a place to write {path}",
            found=str(error),
            remedy="Check that its folder may be written and has room.",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
