"""Prompts as a CLIP object of ComfyUI reads them: token ids by chunk, conditionings with vectors in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..amdet_core.errors import EncoderError
from . import comfy_clip


def chunks(clip: Any, text: str, name: str) -> tuple[list[list[int]], int]:
    """Token ids that one encoder reads of a prompt, by chunk, without what stands around them.

    Returns:
        The chunks, and how many vectors of textual inversions are not among them.
    """
    special = getattr(clip.cond_stage_model, name).special_tokens
    rows, vectors = [], 0
    for chunk in clip.tokenize(text)[name.removeprefix("clip_")]:
        ids = [token[0] for token in chunk]
        while len(ids) > 1 and isinstance(ids[-1], int) and ids[-1] == special["pad"] != special["end"]:
            ids.pop()
        rows.append([i for i in ids if isinstance(i, int) and i not in (special["start"], special["end"])])
        vectors += sum(not isinstance(i, int) for i in ids)
    return rows, vectors


def encode(clip: Any, text: str, vectors: Mapping[str, Tensor], at_start: bool) -> Any:
    """CONDITIONING of a prompt with token embeddings in every chunk of it.

    Args:
        vectors: encoder name -> ``(K, D)``.
        at_start: behind BOS instead of in front of EOS.

    Raises:
        EncoderError: the CLIP has no encoder of that name and width.
    """
    model, tokens = comfy_clip.model(clip), clip.tokenize(text)
    for name, rows in vectors.items():
        tower, key = getattr(model, name, None), name.removeprefix("clip_")
        width = tower.transformer.text_model.embeddings.token_embedding.weight.shape[1] if tower is not None else None
        if key not in tokens or width != rows.shape[-1]:
            raise EncoderError(
                f"a CLIP with {name} of width {rows.shape[-1]}",
                f"width {width}" if width else f"{', '.join(sorted(tokens))}",
                "Connect the CLIP that was scanned.",
            )
        end = tower.special_tokens["end"]
        tokens[key] = [list(_with(chunk, rows, end, at_start)) for chunk in tokens[key]]
    return clip.encode_from_tokens_scheduled(tokens)


def _with(chunk: Sequence[tuple[Any, ...]], rows: Tensor, end: int, at_start: bool) -> Iterator[tuple[Any, ...]]:
    """A chunk of tokens with vectors in it, as long as before: padding gives way first, then the prompt's end."""
    eos = next((i for i, token in enumerate(chunk) if isinstance(token[0], int) and token[0] == end), len(chunk) - 1)
    kept = min(eos, len(chunk) - len(rows) - 1)
    inserted = [(row, 1.0) for row in rows.detach().float().cpu()]
    words = list(chunk[:kept])
    yield from (words[:1] + inserted + words[1:]) if at_start else words + inserted
    yield from chunk[eos : eos + len(chunk) - kept - len(rows)]


def blended(plain: Any, other: Any, strength: float) -> Any:
    """Conditionings of equal shape, mixed: 0 gives the first, 1 the second."""
    if strength == 1:
        return other
    mixed = []
    for (first, options), (second, extra) in zip(plain, other, strict=True):
        pooled = options.get("pooled_output"), extra.get("pooled_output")
        both = {} if None in pooled else {"pooled_output": torch.lerp(*pooled, strength)}
        mixed.append([torch.lerp(first, second, strength), {**extra, **both}])
    return mixed
