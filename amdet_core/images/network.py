"""The image encoder of the published experiments: ResNet-18 with a stem for small pictures.

References:
    He et al., Deep Residual Learning for Image Recognition, 2015, https://arxiv.org/abs/1512.03385
    Chen et al., SimCLR, 2020, https://arxiv.org/abs/2002.05709, appendix B.9 (the stem: 3 x 3, no pooling).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from ..config import NetworkConfig
from ..errors import ConfigError, NumericalError, StorageError
from ..storage import write_atomic

HEAD = 128
"""Width of the answers that are contrasted; code."""
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""Of CIFAR-10's channels, by which pictures are normalised; code."""
CHUNK = 256
"""Pictures that pass a frozen network together."""
_MARK = "amdet.image_encoder"


class ImageEncoder(nn.Module):
    """Pictures -> features. With a width of 64 and a depth of 2 its blocks are torchvision's ResNet-18.

    Attributes:
        config: its sizes alone, whatever else the given settings say.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config, width = NetworkConfig(width=config.width, depth=config.depth), config.width
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        wide = [width * 2**i for i in range(4)]
        self.stages = nn.ModuleList(
            _stage(before, after, 1 if i == 0 else 2, config.depth)
            for i, (before, after) in enumerate(zip([width, *wide], wide, strict=False))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def features(self) -> int:
        """Width E of a feature; ResNet-18: 512."""
        return self.config.width * 8

    def blocks(self, pictures: Tensor) -> list[Tensor]:
        """Output of the four blocks for pictures ``(B, 3, S, S)`` from 0 to 1: each ``(B, C, H, W)``."""
        x, out = self.stem((pictures - self.mean) / self.deviation), []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out

    def forward(self, pictures: Tensor) -> Tensor:
        """Features ``(B, E)`` of length 1."""
        return feature(self.blocks(pictures)[-1])


class Head(nn.Sequential):
    """What SimCLR contrasts: ``(B, E)`` -> ``(B, 128)``."""

    def __init__(self, features: int) -> None:
        super().__init__(
            nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(), nn.Linear(features, HEAD)
        )


def _stage(before: int, after: int, stride: int, depth: int) -> nn.Sequential:
    shortcut = None
    if stride > 1 or before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
    return nn.Sequential(
        BasicBlock(before, after, stride, shortcut), *(BasicBlock(after, after) for _ in range(depth - 1))
    )


def feature(last: Tensor) -> Tensor:
    """The feature ``(B, E)`` of length 1, from the last block's output ``(B, E, H, W)``."""
    return F.normalize(last.mean((2, 3)), dim=-1)


def places(block: Tensor) -> Tensor:
    """A block's output ``(B, C, H, W)`` as ``(B, H * W, C)``."""
    return block.flatten(2).transpose(1, 2)


def fresh(config: NetworkConfig, seed: int, device: torch.device) -> tuple[ImageEncoder, Head]:
    """A random encoder and its head, always the same of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ImageEncoder(config)
        return encoder.to(device), Head(encoder.features).to(device)


def frozen(encoder: ImageEncoder) -> ImageEncoder:
    """A copy that no longer learns."""
    return copy.deepcopy(encoder).requires_grad_(False).train(False)


@torch.no_grad()
def features(encoder: ImageEncoder, pictures: Tensor) -> Tensor:
    """Features ``(N, E)`` of pictures ``(N, 3, S, S)`` by an encoder that does not learn meanwhile."""
    calm = encoder if not encoder.training else frozen(encoder)
    return torch.cat([calm(part) for part in pictures.split(CHUNK)])


# ------------------------------------------------------------------ files


def save_encoder(encoder: ImageEncoder, path: Path, made: Mapping[str, str]) -> None:
    """Write a safetensors file with its sizes and how it was made.

    Raises:
        NumericalError: a weight is not finite.
        StorageError: the file can't be written.
    """
    weights = {name: w.detach().cpu().contiguous() for name, w in encoder.state_dict().items()}
    bad = [name for name, w in weights.items() if not bool(torch.isfinite(w).all())]
    if bad:
        raise NumericalError("finite numbers in every tensor", f"NaN or infinity in {bad[:5]}", "Lower the step size.")
    write_atomic(path, safetensors.torch.save(weights, {**made, _MARK: encoder.config.model_dump_json()}))


def made_by(path: Path) -> dict[str, str]:
    """How the encoder of a file was made, as :func:`save_encoder` was told; empty where there is no such file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}
    return {name: text for name, text in found.items() if name != _MARK}


def load_encoder(path: Path) -> ImageEncoder:
    """Read what :func:`save_encoder` wrote, as an encoder that does not learn.

    Raises:
        StorageError: the file can't be read, or is damaged.
        ConfigError: it holds no image encoder.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            sizes = (file.metadata() or {}).get(_MARK)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise StorageError("a readable image encoder", f"{path}: {error}", "Check the path.") from error
    if sizes is None:
        raise ConfigError(
            "an image encoder",
            f"other tensors in {path}",
            "Give a file that amdet image clean, badencoder or mimic wrote.",
        )
    try:
        encoder = ImageEncoder(NetworkConfig.model_validate_json(sizes))
        encoder.load_state_dict(weights)
    except (ValueError, RuntimeError) as error:
        raise StorageError(
            f"the tensors of an image encoder in {path}", " ".join(str(error).split())[:200], "The file is damaged."
        ) from error
    return encoder.requires_grad_(False).train(False)
