"""A text encoder as plain data, and its forward pass as a pure function.

Shapes, used in every signature of the package:

    R  restarts (candidates optimised side by side)     D  width of the hidden states
    B  prompts                                          H  attention heads
    T  token positions                                  P  positions of a shared prefix
    K  vectors of a pseudo-trigger                      V  size of the vocabulary

``*L`` stands for any leading dimensions, usually ``B`` or ``R, B``.

The forward pass is out of place and takes embeddings, not token ids: gradients flow to the
embeddings through frozen weights, in every host. ComfyUI's own layers work in place and its weights
are inference tensors; transformers' text model accepts no embeddings.

References:
    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
    https://arxiv.org/abs/2103.00020 (the text tower).
    Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, https://arxiv.org/abs/2303.15343
    (the bidirectional tower with its pooled head).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import attention_weights
from .errors import ConfigError, EncoderError, NumericalError
from .layers import FINAL_NORM, Layers
from .memory import Batches
from .progress import Progress, silent
from .records import EncoderSpec
from .tokenizer import ClipTokenizer, TokenBatch

TOKEN_TABLE = "embeddings.token_embedding.weight"
POSITION_TABLE = "embeddings.position_embedding.weight"
PROJECTION = "text_projection.weight"
POOLED_HEAD = "head"


def expected_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that an encoder of this spec has, in canonical order.

    Canonical names are those of transformers' ``CLIPTextModel`` without the ``text_model.`` prefix.
    """
    width, mlp = spec.width, spec.mlp_width
    shapes: dict[str, tuple[int, ...]] = {
        TOKEN_TABLE: (spec.vocabulary, width),
        POSITION_TABLE: (spec.positions, width),
    }
    for layer in range(spec.layers):
        prefix = f"encoder.layers.{layer}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{prefix}.{norm}.weight"] = (width,)
            shapes[f"{prefix}.{norm}.bias"] = (width,)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{prefix}.self_attn.{part}.weight"] = (width, width)
            shapes[f"{prefix}.self_attn.{part}.bias"] = (width,)
        shapes[f"{prefix}.mlp.fc1.weight"] = (mlp, width)
        shapes[f"{prefix}.mlp.fc1.bias"] = (mlp,)
        shapes[f"{prefix}.mlp.fc2.weight"] = (width, mlp)
        shapes[f"{prefix}.mlp.fc2.bias"] = (width,)
    shapes[f"{FINAL_NORM}.weight"] = (width,)
    shapes[f"{FINAL_NORM}.bias"] = (width,)
    if spec.projection is not None:
        shapes[PROJECTION] = (spec.projection, width)
    if spec.pooled_head is not None:
        shapes[f"{POOLED_HEAD}.weight"] = (spec.pooled_head, width)
        shapes[f"{POOLED_HEAD}.bias"] = (spec.pooled_head,)
    return shapes


def initial_scale(spec: EncoderSpec, name: str) -> float:
    """Standard deviation with which a matrix of a layer starts, as in Radford et al., 2021 (its released code)."""
    match name.split(".")[-2]:
        case "out_proj" | "fc2":  # what adds to the residual stream
            return float(spec.width**-0.5 * (2 * spec.layers) ** -0.5)
        case "fc1":
            return float((2 * spec.width) ** -0.5)
    return float(spec.width**-0.5)


@dataclass(frozen=True, eq=False)
class TextEncoder(Layers):
    """Spec, weights and tokenizer of one text encoder. Nothing in it is ever changed in place.

    Attributes:
        spec: sizes and conventions.
        weights: canonical name -> tensor; see :func:`expected_shapes`.
        tokenizer: turns prompts into token ids of this encoder's vocabulary.
    """

    tokenizer: ClipTokenizer

    def __post_init__(self) -> None:
        shapes = expected_shapes(self.spec)
        missing = sorted(shapes.keys() - self.weights.keys())
        unexpected = sorted(self.weights.keys() - shapes.keys())
        if missing or unexpected:
            raise EncoderError(
                expected=f"exactly the {len(shapes)} tensors of a {self.spec.summary} text encoder",
                found=f"{len(missing)} missing {missing[:5]} and {len(unexpected)} unexpected {unexpected[:5]}",
                remedy="The file is incomplete or of another architecture; download it again or name the right one.",
            )
        wrong = [
            f"{name} {tuple(self.weights[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if tuple(self.weights[name].shape) != shape
        ]
        if wrong:
            raise EncoderError(
                expected=f"the tensor shapes of a {self.spec.summary} text encoder",
                found="; ".join(wrong[:5]),
                remedy="The file mixes two architectures or is damaged; download it again.",
            )

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.weights[TOKEN_TABLE].device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.weights[TOKEN_TABLE].dtype

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """The same encoder on another device or in another dtype, as frozen copies where they differ."""
        return self.with_weights({name: w.detach().to(device, dtype) for name, w in self.weights.items()})

    def with_weights(self, weights: Mapping[str, Tensor]) -> TextEncoder:
        """The same architecture with other weights, for example trainable ones."""
        return replace(self, weights=weights)

    def first_layers(self, count: int) -> TextEncoder:
        """The encoder that ends after its first layers, with the same final norm: what clip skip leaves of it."""
        return self._part(layers=count)

    def first_tokens(self, count: int) -> TextEncoder:
        """The encoder with the first rows of its token table alone."""
        return self._part(vocabulary=count)

    def _part(self, **sizes: int) -> TextEncoder:
        spec = self.spec.model_copy(update=sizes)
        if spec == self.spec:
            return self
        shapes = expected_shapes(spec)
        weights = {name: self.weights[name][: shape[0]] for name, shape in shapes.items() if name in self.weights}
        return replace(self, spec=spec, weights=weights)

    def without_mlp(self, layer: int) -> TextEncoder:
        """The encoder without what the MLP of one layer adds."""
        last = f"encoder.layers.{layer}.mlp.fc2"
        weights = {name: torch.zeros_like(w) for name, w in self.weights.items() if name.startswith(f"{last}.")}
        return replace(self, weights={**self.weights, **weights})

    def check_finite(self) -> None:
        """Raise NumericalError when any weight is NaN or infinite."""
        bad = [name for name, w in self.weights.items() if not bool(torch.isfinite(w.to(torch.float32)).all())]
        if bad:
            raise NumericalError(
                expected="finite numbers in every tensor",
                found=f"NaN or infinity in {len(bad)} tensors, first {bad[:5]}",
                remedy="The file is damaged or was saved from an uninitialised model; nothing can be said about it.",
            )

    # ------------------------------------------------------------------ forward

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings without positions: ``(*L, T)`` ids -> ``(*L, T, D)``."""
        return F.embedding(ids, self.weights[TOKEN_TABLE])

    def place(self, embeds: Tensor, start: int = 0) -> Tensor:
        """Add position rows ``start .. start + T`` to ``(*L, T, D)`` embeddings."""
        stop = start + embeds.shape[-2]
        if stop > self.spec.positions:
            raise EncoderError(
                expected=f"at most {self.spec.positions} token positions",
                found=f"{stop}",
                remedy="Shorten the prompt or the trigger.",
            )
        return embeds + self.weights[POSITION_TABLE][start:stop]

    def pool(self, states: Tensor, eos: Tensor) -> Tensor:
        """The pooled state: ``(*L, B, T, D)`` states and ``(B,)`` positions of EOS -> ``(*L, B, D)``.

        For a SigLIP tower the last position is taken and its head applied. The text projection is left out: most
        files lack it, and of Stable Diffusion XL and 3, which read it, a report names it as not scanned.
        """
        if self.spec.pooling == "last":
            pooled = states[..., -1, :]
        else:
            index = eos.to(states.device).view(-1, 1, 1).expand(*states.shape[:-2], 1, states.shape[-1])
            pooled = states.gather(-2, index).squeeze(-2)
        if self.spec.pooled_head is None:
            return pooled
        return F.linear(pooled, self.weights[f"{POOLED_HEAD}.weight"], self.weights[f"{POOLED_HEAD}.bias"])

    def project(self, pooled: Tensor) -> Tensor:
        """The text projection of pooled states ``(*L, D)``; raises EncoderError where there is none."""
        if self.spec.projection is None:
            raise EncoderError("an encoder with a text projection", "one without", "Use the pooled state.")
        return F.linear(pooled, self.weights[PROJECTION])

    # ------------------------------------------------------------------ prompts

    def tokens(self, prompts: Sequence[str], *, pad_to_context: bool = False) -> TokenBatch:
        """Token ids of prompts on this encoder's device, padded to the longest or to all positions."""
        if not prompts:
            raise ConfigError("at least one prompt", "none", "Give prompts, or use the built-in set.")
        return self.batch([self.tokenizer.encode(prompt) for prompt in prompts], pad_to_context=pad_to_context)

    def batch(self, rows: Sequence[Sequence[int]], *, pad_to_context: bool = False) -> TokenBatch:
        """The same of token ids without BOS and EOS; what does not fit is cut."""
        length = self.spec.positions if pad_to_context or self.spec.pooling == "last" else None
        batch = self.tokenizer.batch_ids(rows, limit=self.spec.positions, pad=self.spec.pad_id, length=length)
        return batch.to(self.device)

    def states(self, batch: TokenBatch) -> Tensor:
        """Final states ``(B, T, D)`` of a token batch."""
        return self.transform(self.place(self.embed(batch.ids)))

    @torch.no_grad()
    def attentions(self, batch: TokenBatch) -> Tensor:
        """How much every position (row) attends to every other (column), averaged over the heads.

        Returns:
            ``(layers, B, T, T)``; rows sum to 1.
        """
        x, maps = self.place(self.embed(batch.ids)), []
        mask = self._mask(x)
        for layer in range(self.spec.layers):
            q, k = self._projected(layer, x, "qk")
            maps.append(attention_weights(q, k, mask).mean(1))
            x, _, _ = self._layer(layer, x, mask, None)
        return torch.stack(maps)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, batch_size: int = 64, progress: Progress = silent) -> Tensor:
        """Pooled states ``(B, D)`` of prompts.

        Prompts run in batches of similar length: under a causal mask padding behind EOS cannot change
        the pooled state, so it is not computed.

        Raises:
            ConfigError: no prompts were given.
        """
        if not prompts:
            raise ConfigError("at least one prompt", "none", "Give prompts, or use the built-in set.")
        rows = [self.tokenizer.encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        return self._encode(rows, order, batch_size, progress)

    @torch.no_grad()
    def encode_ids(self, rows: Sequence[Sequence[int]], *, batch_size: int = 64, progress: Progress = silent) -> Tensor:
        """The same for prompts that are token ids already, without BOS and EOS: ``(B, D)``."""
        return self._encode(rows, sorted(range(len(rows)), key=lambda i: len(rows[i])), batch_size, progress)

    def _encode(
        self, rows: Sequence[Sequence[int]], order: Sequence[int], batch_size: int, progress: Progress
    ) -> Tensor:
        def pooled(part: slice) -> Tensor:
            progress("encode", part.start, len(order))
            batch = self.batch([rows[i] for i in order[part]])
            return self.pool(self.states(batch), batch.eos)

        out = torch.cat(Batches(batch_size).map(pooled, len(order)))
        return out[torch.tensor(order, device=out.device).argsort()]


def splice(hidden: Tensor, vectors: Tensor, at: int = 1) -> Tensor:
    """Insert pseudo-trigger vectors after the first ``at`` positions and drop as many at the end.

    Args:
        hidden: ``(B, T, D)`` placed embeddings.
        vectors: ``(R, K, D)``.
        at: number of positions that stay in front; 1 puts the vectors behind BOS.

    Returns:
        ``(R, B, T, D)``. The vectors get no position row and the other tokens keep theirs, as in the
        published code.
    """
    restarts, count, _ = vectors.shape
    batch, length, width = hidden.shape
    head = hidden[:, :at].expand(restarts, batch, at, width)
    tail = hidden[:, at : length - count].expand(restarts, batch, length - count - at, width)
    middle = vectors.unsqueeze(1).expand(restarts, batch, count, width)
    return torch.cat((head, middle, tail), dim=-2)
