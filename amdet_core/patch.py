"""What an attack, a repair or a fine-tune changed: differences of tensors, apart from any encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .encoder import TextEncoder
from .errors import ConfigError, EncoderError, NumericalError, StorageError
from .storage import write_atomic

_ROWS = "rows."
"""In a file, ``rows.NAME`` lists the rows that the tensor NAME holds; all others are zero."""
_FULL_ROWS = "full_rows"
_MARK = "amdet.patch"


@dataclass(frozen=True, eq=False)
class Patch:
    """Differences to be added to an encoder's weights.

    Attributes:
        deltas: canonical tensor name -> float32 difference; unchanged tensors are left out.
        provenance: what made the patch, as text.
    """

    deltas: Mapping[str, Tensor]
    provenance: Mapping[str, str]

    @classmethod
    def between(cls, before: TextEncoder, after: TextEncoder, provenance: Mapping[str, str] | None = None) -> Patch:
        """The patch that leads from one encoder to another of the same architecture.

        Raises:
            EncoderError: the two have different tensors.
        """
        if not before.spec.comparable(after.spec):
            raise EncoderError(
                f"two encoders of {before.spec.summary}", after.spec.summary, "Compare an encoder with its own origin."
            )
        deltas = {
            name: after.weights[name].detach().to("cpu", torch.float32) - w.detach().to("cpu", torch.float32)
            for name, w in before.weights.items()
            if name in after.weights
        }
        return cls({name: delta for name, delta in deltas.items() if bool(delta.any())}, dict(provenance or {}))

    def apply(self, encoder: TextEncoder) -> TextEncoder:
        """A new encoder with the differences added; the given one stays as it is.

        Raises:
            EncoderError: a tensor of the patch is missing in the encoder or has another shape there.
            NumericalError: a difference is NaN or infinite.
        """
        weights = dict(encoder.weights)
        for name, delta in self.deltas.items():
            found = tuple(weights[name].shape) if name in weights else "no such tensor"
            if found != tuple(delta.shape):
                raise EncoderError(
                    f"{name} {tuple(delta.shape)}, as in the patch",
                    f"{found} in the encoder of {encoder.spec.summary}",
                    "Apply the patch to the encoder that it was made for.",
                )
            if not bool(torch.isfinite(delta).all()):
                raise NumericalError("finite differences", f"NaN or infinity in {name}", "Make the patch again.")
            weight = weights[name]
            weights[name] = (weight.detach().float() + delta.to(weight.device)).to(weight.dtype)
        return encoder.with_weights(weights)

    def save(self, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write a safetensors file in one piece; tables of which few rows changed are stored sparsely.

        Raises:
            StorageError: the file can't be written.
        """
        tensors: dict[str, Tensor] = {}
        full_rows: list[str] = []
        for name, delta in self.deltas.items():
            rows = delta.any(-1).nonzero().squeeze(-1) if delta.ndim == 2 else torch.arange(len(delta))
            if 2 * len(rows) < len(delta):
                tensors[_ROWS + name] = rows.to(torch.int32)
                full_rows.append(f"{name}={len(delta)}")
                delta = delta[rows]
            tensors[name] = delta.to("cpu", dtype).contiguous()
        metadata = {**self.provenance, _MARK: "1", _FULL_ROWS: ",".join(full_rows)}
        write_atomic(path, safetensors.torch.save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> Patch:
        """Read a patch as :meth:`save` writes it.

        Raises:
            StorageError: the file can't be read, or is damaged.
            ConfigError: it is a safetensors file, but no patch.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StorageError("a readable patch file", f"{path}: {error}", "Check the path.") from error
        if metadata.pop(_MARK, None) is None:
            raise ConfigError("a patch file", f"other tensors in {path}", "Give a file that was saved as a patch.")
        try:
            deltas = _spread_out(tensors, metadata.pop(_FULL_ROWS, ""))
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise StorageError("rows that fit their table", f"{path}: {error}", "The file is damaged.") from error
        return cls(deltas, metadata)


def _spread_out(tensors: Mapping[str, Tensor], full_rows: str) -> dict[str, Tensor]:
    """Dense differences of a file's tensors; ``full_rows`` is ``NAME=ROWS`` of the sparse ones, by commas."""
    deltas = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith(_ROWS)}
    for name, size in (entry.split("=") for entry in full_rows.split(",") if entry):
        full = torch.zeros(int(size), deltas[name].shape[1])
        deltas[name] = full.index_copy_(0, tensors[_ROWS + name].long(), deltas[name])
    return deltas
