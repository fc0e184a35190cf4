"""The image model of a checkpoint, by diffusers, without its text encoders; nothing is fetched from the net.

The text encoders are read by :mod:`amdet_core.formats`; what they say is encoded before the image model is loaded, so
that the two are never in memory side by side. This file alone knows diffusers here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import ConfigError, EncoderError, StorageError
from ..formats.files import read_json
from ..formats.folders import PIPELINE
from ..formats.source import open_source
from ..memory import multiplies_bfloat16

CONFIGS = Path(__file__).with_name("configs")
INSTALL = 'Install it: pip install -c constraints.txt -e ".[render]" in the clone of amdet.'
UNET, VAE = "model.diffusion_model.", "first_stage_model."
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Keys by which makers of single files mark what the file itself does not show."""
PLAIN_CHANNELS = 4
ROOM = 2 * 1024**3
"""Bytes that painting takes beside the weights, at most at the default sizes."""

Family = Literal["sd1", "sd2", "sdxl"]
SIZES: dict[Family, int] = {"sd1": 512, "sd2": 768, "sdxl": 1024}
"""Side of the pictures that a family was trained on, px."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before its weights are read.

    Attributes:
        path: a single file, or a diffusers folder.
        family: decides settings that a single file does not hold.
        widths: of the text encoders whose states the image model reads side by side.
        size: side of a picture, px.
        prediction: what the image model predicts by the file; None where the settings say it.
        zero_snr: whether its noise schedule ends without signal.
    """

    path: Path
    family: Family
    widths: tuple[int, ...]
    size: int
    prediction: str | None = None
    zero_snr: bool = False

    @property
    def folder(self) -> bool:
        """Whether it is a folder of diffusers."""
        return self.path.is_dir()


def look_into(path: Path) -> Checkpoint:
    """Recognise a checkpoint by its headers.

    Raises:
        EncoderError: it has no image model or no VAE, or one that is not supported.
        StorageError: it can't be read.
    """
    if not path.exists():
        raise StorageError("a checkpoint file or folder", f"nothing at {path}", "Check the path.")
    return _folder(path) if path.is_dir() else _single_file(path)


def _folder(path: Path) -> Checkpoint:
    if not (path / PIPELINE).is_file():
        raise _not_supported("a diffusers folder with model_index.json", f"none in {path}")
    kind = read_json(path / PIPELINE).get("_class_name")
    families: dict[object, Family] = {"StableDiffusionPipeline": "sd1", "StableDiffusionXLPipeline": "sdxl"}
    if kind not in families:
        raise _not_supported(" or ".join(map(str, families)), str(kind))
    missing = [part for part in ("unet", "vae") if not (path / part / "config.json").is_file()]
    if missing:
        raise _not_supported("the folders unet and vae", f"no {' and no '.join(missing)} in {path}")
    unet, vae = (read_json(path / part / "config.json") for part in ("unet", "vae"))
    width, side, channels = (unet.get(name) for name in ("cross_attention_dim", "sample_size", "in_channels"))
    if not isinstance(width, int) or not isinstance(side, int):
        raise _not_supported("a UNet with cross_attention_dim and sample_size", f"{width} and {side} in {path}")
    _plain(channels)
    blocks = vae.get("block_out_channels") or vae.get("decoder_block_out_channels")
    size = side * 2 ** (len(blocks) - 1 if isinstance(blocks, list) else 3)
    family: Family = families[kind] if kind != "StableDiffusionPipeline" or width != 1024 else "sd2"
    return Checkpoint(path, family, (768, 1280) if family == "sdxl" else (width,), size)


def _single_file(path: Path) -> Checkpoint:
    shapes = open_source(path).shapes
    missing = [name for name, root in (("image model (UNet)", UNET), ("VAE", VAE)) if not _holds(shapes, root)]
    if missing:
        raise _not_supported("a checkpoint with text encoder, image model and VAE", f"no {' and no '.join(missing)}")
    first = shapes.get(f"{UNET}input_blocks.0.0.weight", (0, 0))
    _plain(first[1])
    read = next((shape for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")), (0, 0))[1]
    families: dict[int, tuple[Family, tuple[int, ...]]] = {
        768: ("sd1", (768,)), 1024: ("sd2", (1024,)), 2048: ("sdxl", (768, 1280)),
    }  # fmt: skip
    if read not in families:
        raise _not_supported("Stable Diffusion 1, 2 or XL", f"an image model that reads states of width {read}")
    family, widths = families[read]
    marked = "v_prediction" if V_PREDICTION in shapes else None
    return Checkpoint(path, family, widths, SIZES[family], marked, ZERO_SNR in shapes)


def _holds(shapes: Any, root: str) -> bool:
    return any(key.startswith(root) for key in shapes)


def _plain(channels: object) -> None:
    if channels != PLAIN_CHANNELS:
        raise _not_supported(f"an image model of {PLAIN_CHANNELS} channels", f"{channels}: it is for another task")


def _not_supported(expected: str, found: str) -> EncoderError:
    return EncoderError(
        expected, found, "Name a whole checkpoint of Stable Diffusion 1, 2 or XL, or render in ComfyUI instead."
    )


# ------------------------------------------------------------------ loading


def load(checkpoint: Checkpoint, device: torch.device, prediction: str | None = None) -> Any:
    """The pipeline of diffusers without text encoders, on its device or streamed to it where there is little room.

    Args:
        device: in half precision on a GPU; on the CPU in float32, which takes 11 GB for XL, or that in bfloat16 where
            the processor has units for it: without them a convolution takes hundreds of times as long.
        prediction: epsilon or v_prediction, where the user knows better than the file.

    Raises:
        ConfigError: a package is missing.
        EncoderError: weights are missing, or of other shapes.
        StorageError: a file can't be read.
    """
    diffusers = diffusers_package()
    absent = {"text_encoder": None, "tokenizer": None}
    if checkpoint.family == "sdxl":
        absent |= {"text_encoder_2": None, "tokenizer_2": None}
        kind = diffusers.StableDiffusionXLPipeline
    else:
        absent |= {"safety_checker": None}
        kind = diffusers.StableDiffusionPipeline
    settings = {"torch_dtype": _precision(checkpoint, device), "local_files_only": True}
    try:
        with quiet():
            if checkpoint.folder:
                pipeline = kind.from_pretrained(checkpoint.path, **absent, **settings, **_variant(checkpoint.path))
            else:
                config = str(CONFIGS / checkpoint.family)
                pipeline = kind.from_single_file(str(checkpoint.path), config=config, **absent, **settings)
    except OSError as error:
        raise StorageError(
            f"the weights of {checkpoint.path}", _short(error), "Download the checkpoint again."
        ) from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise EncoderError(
            f"the tensors of an image model ({checkpoint.family}) in {checkpoint.path}", _short(error),
            "Its layout is another one, or a part is missing; render in ComfyUI instead.",
        ) from error  # fmt: skip
    _schedule(pipeline, checkpoint, prediction)
    pipeline.set_progress_bar_config(disable=True)
    _place(pipeline, device)
    return pipeline


def _precision(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if checkpoint.family == "sdxl" and multiplies_bfloat16(device) else torch.float32


def _schedule(pipeline: Any, checkpoint: Checkpoint, prediction: str | None) -> None:
    """Settings of the noise schedule that the file marks, or the user names."""
    changed: dict[str, object] = {}
    if prediction or checkpoint.prediction:
        changed["prediction_type"] = prediction or checkpoint.prediction
    if checkpoint.zero_snr:
        changed["rescale_betas_zero_snr"] = True
    if changed:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changed)


def _variant(folder: Path) -> dict[str, str]:
    """The name of the variant, where a folder has its weights under no other."""
    names = [file.name for file in (folder / "unet").glob("*.*")]
    plain = any(name.startswith("diffusion_pytorch_model.safetensors") for name in names)
    half = any(".fp16." in name for name in names)
    return {"variant": "fp16"} if half and not plain else {}


def _place(pipeline: Any, device: torch.device) -> None:
    if device.type != "cuda":
        pipeline.to(device)
        return
    pipeline.vae.enable_slicing()
    parts = [sum(w.numel() * w.element_size() for w in part.parameters()) for part in (pipeline.unet, pipeline.vae)]
    free, _ = torch.cuda.mem_get_info(device)
    if sum(parts) + ROOM <= free:
        pipeline.to(device)
        return
    try:
        if max(parts) + ROOM <= free:
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.enable_sequential_cpu_offload(device=device)
    except ImportError as error:
        raise ConfigError("accelerate, to paint with little GPU memory", str(error), INSTALL) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers and transformers from writing to the terminal; their settings come back afterwards."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)]
    for log, _, _ in before:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # one release's new name is not yet known to the other
            yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def diffusers_package() -> Any:
    """The package diffusers, or ConfigError where it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError("diffusers", str(error), INSTALL) from error
    return diffusers
