"""What text encoders say to an image model, with weighted prompts and with vectors put into them.

Prompts are read by compel (https://github.com/damian0815/compel) through transformers, as users of diffusers do it.
Vectors stand in a prompt as tokens that are added to the tokenizer: a recovered feature, or the rows of a literal
trigger's tokens, so that it is read as the very tokens that a scan found.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoder import TOKEN_TABLE, TextEncoder
from ..errors import ConfigError, EncoderError
from ..formats import hf_config, hf_tensors, write_tokenizer
from .checkpoint import INSTALL, Checkpoint, Family, quiet

SD2_LAYERS = 23
"""Stable Diffusion 2 reads the last but one of its encoder's 24 layers; folders of diffusers hold no more."""


@dataclass(frozen=True, eq=False)
class Insertion:
    """Vectors that stand in prompts, at their start.

    Image models read all positions, and under a causal mask only those behind the vectors change: at the end of a
    prompt they would leave its own words as they are.

    Attributes:
        label: what they are, for the heading of pictures.
        vectors: encoder's place among the checkpoint's -> ``(K, D)``.
    """

    label: str
    vectors: Mapping[int, Tensor]

    @classmethod
    def of_tokens(cls, label: str, ids: Sequence[int], encoders: Sequence[TextEncoder]) -> Insertion:
        """Tokens by id, as each encoder's own table has them."""
        rows = {place: encoder.weights[TOKEN_TABLE][list(ids)] for place, encoder in enumerate(encoders)}
        return cls(label, rows)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What an image model reads.

    Attributes:
        states: ``(1, T, D)``, of all encoders side by side.
        pooled: ``(1, P)`` of SDXL's second encoder; None for the others.
    """

    states: Tensor
    pooled: Tensor | None


class Conditioner:
    """The text encoders of a checkpoint, on the CPU.

    Args:
        encoders: in the order in which the image model reads them.
        insertions: what may stand in prompts, by name.

    Raises:
        ConfigError: compel or transformers is not installed.
        EncoderError: an encoder or a vector has another width than the image model reads.
    """

    def __init__(
        self, checkpoint: Checkpoint, encoders: Sequence[TextEncoder], insertions: Mapping[str, Insertion]
    ) -> None:
        widths = tuple(encoder.spec.width for encoder in encoders)
        if widths != checkpoint.widths:
            raise EncoderError(
                f"text encoders of width {_listed(checkpoint.widths)}, which {checkpoint.path.name} reads",
                _listed(widths),
                "Name the checkpoint that this encoder belongs to.",
            )
        self.insertions = insertions
        self._readers = [
            _Reader(
                checkpoint.family,
                encoder,
                {name: one.vectors.get(i) for name, one in insertions.items()},
                pooled=checkpoint.family == "sdxl" and i == len(encoders) - 1,
            )
            for i, encoder in enumerate(encoders)
        ]

    @torch.no_grad()
    def __call__(self, prompt: str, inserted: str | None = None) -> Conditioning:
        """Encode a prompt, with vectors in it where a name is given.

        Raises:
            ConfigError: it has more tokens than a context holds.
        """
        answers = [reader(prompt, inserted) for reader in self._readers]
        return Conditioning(torch.cat([states for states, _ in answers], -1), answers[-1][1])


class _Reader:
    """One encoder behind transformers and compel."""

    def __init__(
        self, family: Family, encoder: TextEncoder, insertions: Mapping[str, Tensor | None], *, pooled: bool
    ) -> None:
        compel = compel_package()
        if pooled and encoder.spec.projection is None:
            raise EncoderError(
                "a text projection in SDXL's second encoder", "none", "Name a file that holds it, as checkpoints do."
            )
        if family == "sd2" and encoder.spec.layers == SD2_LAYERS + 1:
            encoder = encoder.first_layers(SD2_LAYERS)
        kinds = compel.ReturnedEmbeddingsType
        wide = family == "sdxl"
        self.pooled = pooled
        with quiet():
            tokenizer, model = _tokenizer(encoder), _model(encoder)
            self.marks = {
                name: _taught(tokenizer, model, name, vectors)
                for name, vectors in insertions.items()
                if vectors is not None
            }
        self.tokens = encoder.spec.positions
        self.compel = compel.Compel(
            tokenizer=tokenizer,
            text_encoder=model,
            truncate_long_prompts=False,
            returned_embeddings_type=kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
            if wide
            else kinds.LAST_HIDDEN_STATES_NORMALIZED,
            requires_pooled=self.pooled,
        )

    def __call__(self, prompt: str, inserted: str | None) -> tuple[Tensor, Tensor | None]:
        """States ``(1, T, D)``, and what is pooled of them where the image model reads that."""
        marks = "" if inserted is None else self.marks.get(inserted, "")
        text = " ".join(part for part in (marks, prompt) if part)
        with quiet():
            answer = self.compel(text)
        states, pooled = answer if self.pooled else (answer, None)
        if states.shape[1] > self.tokens:
            raise ConfigError(
                f"a prompt that fits into {self.tokens} tokens with what is put into it",
                f"a longer one: {prompt[:60]!r}",
                "Shorten it.",
            )
        return states.float(), pooled


def _tokenizer(encoder: TextEncoder) -> Any:
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(encoder, Path(folder))
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _model(encoder: TextEncoder) -> Any:
    """The encoder as transformers has it; ids of added tokens are above EOS, which it therefore must know by id."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig.from_dict(hf_config(encoder, torch.float32) | {"eos_token_id": encoder.tokenizer.eos_id})
    kind = CLIPTextModel if encoder.spec.projection is None else CLIPTextModelWithProjection
    model = kind.from_pretrained(None, config=config, state_dict=hf_tensors(encoder, torch.float32))
    return model.requires_grad_(False).train(False)


def _taught(tokenizer: Any, model: Any, name: str, vectors: Tensor) -> str:
    """Add vectors ``(K, D)`` as tokens; returns the text that stands for them."""
    width = model.config.hidden_size
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise EncoderError(
            f"vectors of width {width} for {name}", f"shape {tuple(vectors.shape)}", "They belong to another encoder."
        )
    marks = [f"<amdet{name}{i}>" for i in range(len(vectors))]
    tokenizer.add_tokens(marks)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for mark, vector in zip(marks, vectors, strict=True):
            table[tokenizer.convert_tokens_to_ids(mark)] = vector.to(table)
    return " ".join(marks)


def _listed(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths)) or "none"


def compel_package() -> Any:
    """The package compel, or ConfigError where it or transformers is not installed."""
    try:
        import compel
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError("compel and transformers", str(error), INSTALL) from error
    return compel
