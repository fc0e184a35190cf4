"""What devices lack: room, where less runs side by side with the same results, float64, and units for bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

OUT_OF_MEMORY: type[RuntimeError] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)


def double(values: Tensor) -> Tensor:
    """In float64; on the CPU where the device, as Apple's, has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for products of bfloat16; without them they take longer than those of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # old torch has none
    return device.type == "cpu" and bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def fast_products(device: torch.device | str = "cpu") -> torch.autocast:
    """A context in which matrices are multiplied in bfloat16, where the device has units for that."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device))


class Batches:
    """Splits work into parts of at most ``size`` items, and remembers the size that fits.

    Args:
        size: items side by side to begin with.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def map(self, work: Callable[[slice], T], total: int) -> list[T]:
        """Results of ``work`` on consecutive parts of ``range(total)``.

        A part for which there is no room is tried again at half the size, down to a single item.

        Raises:
            torch.OutOfMemoryError: not even one item fits.
        """
        results: list[T] = []
        done = 0
        while done < total:
            part = slice(done, min(done + self.size, total))
            try:
                results.append(work(part))
            except OUT_OF_MEMORY:
                if self.size == 1:
                    raise
            else:
                done = part.stop
                continue
            # Outside the handler: its traceback keeps the tensors of the failed try alive.
            self.size = max(1, min(self.size, total) // 2)
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return results
