"""What is measured and decided, as frozen records that travel as JSON.

Records hold no tensors and import no torch. ``ScanReport`` is the published report; its JSON Schema is
``amdet_core/report/schema.json`` (``docs/report.md`` explains the fields).
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

SCHEMA_VERSION = "1.0"
ALONE = "alone_"
"""In front of names of evidence that was measured without an anchor."""
RUNS = "cosine of runs"
"""Unit of evidence that rests on independent runs instead of prompts."""


class Record(BaseModel):
    """Base of all records: frozen, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


def utf8(text: object) -> object:
    """A text that UTF-8 can hold: bytes of a file's name that are none are spelled with a backslash."""
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


PathText = Annotated[str, BeforeValidator(utf8, json_schema_input_type=str)]
"""The name of a file or folder, or a text with one in it; old archives hold names that are no UTF-8."""


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(_finite, json_schema_input_type=float | None)]
"""A measured quantity; null where there is none, NaN and infinity included."""

Place = Literal["start", "end", "long"]
"""Where a trigger stands: behind BOS, before EOS, or before EOS in long prompts alone (see :data:`.tails.LONG`)."""

Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value, json_schema_input_type=float | None),
    PlainSerializer(_finite, return_type=float | None, when_used="json"),
]
"""One of many numbers; NaN in memory and null in JSON where it is not finite."""


class Level(IntEnum):
    """Verdict levels in order of gravity; the worst of several encoders is the verdict of the file."""

    CLEAN = 0
    INCONCLUSIVE = 1
    SUSPICIOUS = 2
    BACKDOORED = 3


def _level(value: object) -> object:
    return Level[value.upper()] if isinstance(value, str) and value.upper() in Level.__members__ else value


LevelName = Annotated[
    Level,
    BeforeValidator(_level, json_schema_input_type=Literal["clean", "inconclusive", "suspicious", "backdoored"]),
    PlainSerializer(
        lambda level: level.name.lower(), return_type=Literal["clean", "inconclusive", "suspicious", "backdoored"]
    ),
]


class EncoderSpec(Record):
    """Sizes and conventions of one text encoder.

    ``pooling``: ``eos-id`` takes the first EOS token, ``eos-argmax`` the highest id (the same place in
    every CLIP vocabulary), ``last`` the last position (SigLIP).
    """

    width: int = Field(gt=0, description="width of the hidden states")
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_width: int = Field(gt=0)
    vocabulary: int = Field(gt=0, description="tokens")
    positions: int = Field(gt=0, description="longest prompt in tokens, BOS and EOS included")
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    causal: bool = True
    pooling: Literal["eos-id", "eos-argmax", "last"] = "eos-id"
    pad_id: int | None = Field(default=None, description="token id behind EOS; the EOS id where null")
    projection: int | None = Field(default=None, description="width of the text projection, where the file has one")
    pooled_head: int | None = Field(default=None, description="width of SigLIP's pooled head")
    norm_eps: float = 1e-5

    @property
    def summary(self) -> str:
        """Sizes in words."""
        return f"{self.layers}x{self.width}, {self.vocabulary:,} tokens, {self.positions} positions"

    def comparable(self, other: EncoderSpec) -> bool:
        """Whether the two have the same tensors."""
        return self.contains(other) and other.contains(self)

    def contains(self, other: EncoderSpec) -> bool:
        """Whether its first layers and token rows have the tensors of the other, so that they can be its anchor."""
        same = ("width", "heads", "mlp_width", "positions", "causal", "pooled_head")
        equal = all(getattr(self, field) == getattr(other, field) for field in same)
        return equal and self.layers >= other.layers and self.vocabulary >= other.vocabulary


class EncoderInfo(Record):
    """One encoder found in the target."""

    name: str = Field(description="clip_l, clip_g, clip_h or text_encoder")
    spec: EncoderSpec
    dtype: str = Field(description="dtype of the tensors in the file")
    layout: str = Field(description="key layout in which it was found")
    fingerprint: str = Field(description="SHA-256 over the float32 values of all tensors, independent of the file")
    assumptions: tuple[str, ...] = Field(default=(), description="what the file does not say and was assumed")


class Target(Record):
    """The file or folder that was scanned, or what a host had loaded."""

    path: PathText
    sha256: str = Field(
        description="of the file; for a folder, of its files' hashes in order of their names; for what a host had "
        "loaded, of its encoders' fingerprints"
    )
    encoders: tuple[EncoderInfo, ...]
    not_scanned: tuple[str, ...] = Field(default=(), description="parts that this tool does not support, named")


class AnchorInfo(Record):
    """The trusted encoder that the suspect was compared with."""

    encoder: str
    name: PathText
    path: PathText
    fingerprint: str
    chosen: Literal["given", "trusted", "shipped"]


class Evidence(Record):
    """One measured quantity. It holds no threshold: judging is the policy's business."""

    name: str
    value: Measured = Field(description="null: it could not be measured")
    unit: str = ""
    direction: Literal["higher", "lower", "none"] = Field(description="which way points to a backdoor")
    n: int = Field(ge=0, description="prompts, tokens or tensors that it rests on")
    interval: tuple[Number, Number] | None = Field(default=None, description="95% interval, where there is one")
    encoder: str = "text_encoder"

    @property
    def alone(self) -> bool:
        """Whether the encoder was compared with itself, for want of an anchor."""
        return self.name.startswith(ALONE)


class Landscape(Record):
    """Loss surface around a recovered feature and the curvature that it shows (eqs. 21-27)."""

    radius: Number = Field(description="half side of the window, in embedding units")
    values: tuple[tuple[Number, ...], ...] = Field(description="loss on the grid, rows along the gradient")
    eigenvalues: tuple[Number, ...] = Field(description="of all interior 2x2 Hessians, ascending")
    positive_share: Number
    prompts: int


class Likeness(Record):
    """What an output looks like."""

    text: str
    similarity: Number = Field(description="centred cosine of the output to what the encoder says to this text")


class Candidate(Record):
    """One recovered implicit feature."""

    encoder: str
    method: Literal["amdet", "contrast"]
    vectors: int = Field(description="length K of the pseudo-trigger")
    place: Place = Field(default="end", description="where its vectors stand in prompts; amdet has its own setting")
    seed: int
    steps: int
    loss: tuple[Number, ...] = Field(description="loss by step")
    indicators: dict[str, Measured] = Field(description="measured on held-out prompts")
    nearest_tokens: tuple[str, ...] = ()
    looks_like: tuple[Likeness, ...] = Field(
        default=(), description="what its output looks like, the nearest first; of the strongest features alone"
    )
    landscape: Landscape | None = None
    feature_file: str | None = Field(default=None, description="file in the report's folder with its tensors")


class Trigger(Record):
    """A literal trigger, as text."""

    text: str
    code_points: tuple[str, ...] = Field(description="U+XXXX NAME of every non-ASCII character")
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    found_by: str
    encoder: str
    place: Place = Field(default="end", description="where in prompts it was verified")
    collapse: Number = Field(description="how much more the suspect's outputs agree than the anchor's, 0 to 1")
    n: int = Field(description="held-out prompts on which it was verified")
    asr: Measured = Field(default=None, description="share of them that end at the one output; see losses.taken_over")
    asr_interval: tuple[Number, Number] | None = Field(default=None, description="95% interval, Wilson's")
    looks_like: tuple[Likeness, ...] = Field(
        default=(), description="what a photo of it looks like, the nearest first; of one that reads as something else"
    )


class Lead(Record):
    """A token, or a character of several, that stood out when all were tried."""

    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    place: Place = Field(default="end", description="where in prompts it was measured")
    gap: Number = Field(description="how much more the suspect's outputs agree across prompts than the anchor's")
    departure: Number = Field(description="how far it makes the suspect leave the anchor, in cosine")
    sigma: Number = Field(description="robust z-score of its departure among all that were tried")
    declared: bool = Field(default=False, description="whether the file itself says that it was taught this token")


class Sweep(Record):
    """Every token, and every look-alike or invisible character, tried as a trigger."""

    encoder: str
    tried: int
    prompts: tuple[int, ...] = Field(description="of each look at fewer and fewer of them")
    excluded_below: Number = Field(description="departure in the first look below which they were left behind")
    leads: tuple[Lead, ...] = Field(description="those that stood out most, measured on held-out prompts")
    n: int = Field(description="held-out prompts")


class Pattern(Record):
    """A grammatical pattern that stood out when a small grammar's were tried, or the one that did most."""

    tags: str = Field(description="universal part-of-speech tags")
    example: str
    gap: Number = Field(description="how much more the suspect's outputs agree across its sentences than the anchor's")
    departure: Number = Field(description="how far they make the suspect leave the anchor, beyond the median pattern's")


class Patterns(Record):
    """Sentences of many grammatical patterns, tried as triggers."""

    encoder: str
    tried: int
    most: tuple[Pattern, ...] = Field(description="that whose sentences agree most, and that whose depart most")
    n: int = Field(description="fresh sentences on which those were measured")


class LayerChange(Record):
    """Difference to the anchor of one tensor."""

    tensor: str
    relative_norm: Number = Field(description="norm of the difference over the norm of the anchor's tensor")
    top1_energy: Measured = Field(default=None, description="share of the largest singular value, squared")
    top8_energy: Measured = None
    effective_rank: Measured = Field(default=None, description="exponential of the spectrum's entropy")


class RowChange(Record):
    """A row of the token table that moved."""

    text: str = Field(description="what it stands for; the token itself where that is no whole character")
    token: str = Field(description="the vocabulary's spelling")
    token_id: int
    distance: Number = Field(description="norm of the difference over the median norm of a row")
    sigma: Number = Field(description="robust z-score among the rows that moved")


class Forensics(Record):
    """What was done to the weights."""

    encoder: str
    summary: str
    layers: tuple[LayerChange, ...]
    rows: tuple[RowChange, ...]
    rows_changed: int


class Fault(Record):
    """A stage that failed. With any fault the verdict cannot be clean."""

    stage: str
    error: str
    message: str
    encoder: str = "text_encoder"


class Verdict(Record):
    """The decision of one policy."""

    level: LevelName
    reasons: tuple[str, ...]
    policy: str
    statement: str = Field(description="what the level means, in one sentence that claims no more than was measured")
    p_value: Measured = Field(
        default=None,
        description="how often an honest encoder scores as high; of several the smallest, times their number",
    )
    rate: Measured = Field(
        default=None, description="false-positive rate to which it is calibrated, over all encoders; null: to none"
    )
    levels: dict[str, LevelName] = Field(default={}, description="of each encoder; the worst is the target's")

    def of(self, encoder: str) -> Level:
        """The level of one encoder."""
        return self.levels.get(encoder, self.level)


class Control(Record):
    """An honest fine-tune of the anchor that was made for this scan, and scanned as the suspect was."""

    encoder: str
    made_by: str = Field(description="what was trained, and for what")
    evidence: dict[str, Measured] = Field(description="name -> value, null where it could not be measured")


class Tool(Record):
    """What made a report."""

    name: str = "amdet"
    version: str


class ScanReport(Record):
    """The report of one scan; equal inputs, seed and machine give equal bytes but for ``timings``."""

    schema_version: str = SCHEMA_VERSION
    tool: Tool
    target: Target
    anchor: tuple[AnchorInfo, ...] | None
    verdict: Verdict
    evidence: tuple[Evidence, ...]
    triggers: tuple[Trigger, ...] = Field(description="one for each output that was found, the strongest first")
    sweeps: tuple[Sweep, ...] = ()
    patterns: tuple[Patterns, ...] = ()
    candidates: tuple[Candidate, ...]
    forensics: tuple[Forensics, ...] = ()
    controls: tuple[Control, ...] = Field(
        default=(), description="honest encoders that it was judged by; see `p_value`"
    )
    faults: tuple[Fault, ...]
    not_checked: tuple[str, ...] = Field(default=(), description="what this scan says nothing about")
    config: dict[str, object]
    timings: dict[str, float] = Field(description="seconds by stage")

    @property
    def trigger(self) -> Trigger | None:
        """The strongest literal trigger of the encoder found worst that has one; None where none of the flagged has.

        Honest encoders have texts that do a little, beside one with a backdoor as well. Of a file that is inconclusive,
        those of its inconclusive encoders count.
        """
        least = max(Level.INCONCLUSIVE, min(self.verdict.level, Level.SUSPICIOUS))
        found = [one for one in self.triggers if self.verdict.of(one.encoder) >= least]
        return max(found, key=lambda one: self.verdict.of(one.encoder), default=None)
