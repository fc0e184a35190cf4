"""The prompt guard: which prompts does a suspect read otherwise than its anchor, and what in them causes it?

The departure of a prompt is one minus the cosine of the pooled states of suspect and anchor, each from its own
centre. Clean prompts of many kinds say how far the same two encoders are apart without any trigger, so what a benign
fine-tune changed everywhere flags nothing. ``docs/method.md`` has the measurements behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .config import GuardConfig
from .encoder import TextEncoder
from .errors import EncoderError, NumericalError
from .glyphs import glyphs, plain
from .progress import Progress, silent
from .prompts import builtin_prompts, unlike_prompts
from .records import Number, Record
from .tails import CENTRE_PROMPTS, Side

FENCE = 10
"""Distances from the first quartile to the median beyond which a clean prompt is an outlier among its like."""
UNRELATED = 1.0
"""Departure of a prompt that two encoders read in unrelated ways; a bound there would flag nothing."""


class Cause(Record):
    """A piece of a prompt, and what the prompt is without it."""

    text: str
    code_points: tuple[str, ...] = Field(description="U+XXXX NAME of every character that is not plain ASCII")
    token_ids: tuple[int, ...]
    without: Number = Field(description="departure without it and, unless each cause suffices, those before it")


class Alarm(Record):
    """A prompt, or a chunk of a long one, that departs beyond the bound in one encoder."""

    encoder: str
    chunk: int = Field(description="from 1; the encoder reads a long prompt in chunks")
    departure: Number = Field(description="1 - cosine to the anchor, 0 to 2")
    bound: Number
    causes: tuple[Cause, ...] = Field(description="the strongest first; a piece counts with all its places")
    joint: bool = Field(description="the causes have to go together; otherwise each of them suffices")
    explained: bool = Field(description="without its causes the prompt is below the bound")

    def __str__(self) -> str:
        """One line, in which nothing is hidden."""
        named = [plain(repr(one.text)) + "".join(f" ({point})" for point in one.code_points) for one in self.causes]
        where = f"{self.encoder}, chunk {self.chunk}" if self.chunk > 1 else self.encoder
        why = (" with " if self.joint else ", ").join(named) if self.explained else "no few pieces of it alone"
        return f"{where}: departs by {self.departure:.2f}, bound {self.bound:.2f}; caused by {why}"


@dataclass(frozen=True, eq=False)
class Guard:
    """One encoder of a suspect, its anchor, and how far clean prompts depart.

    Attributes:
        name: of the encoder.
        suspect: with its centre.
        anchor: with its own.
        config: settings.
        clean: departures of the clean prompts, ascending ``(N,)``.
    """

    name: str
    suspect: Side
    anchor: Side
    config: GuardConfig
    clean: Tensor

    @classmethod
    def of(
        cls, name: str, suspect: TextEncoder, anchor: TextEncoder, config: GuardConfig, progress: Progress = silent
    ) -> Guard:
        """Measure two encoders on clean prompts.

        Raises:
            EncoderError: they have different sizes, or are too far apart.
        """
        if not suspect.spec.comparable(anchor.spec):
            raise EncoderError(
                f"an anchor of the same sizes as {name} ({suspect.spec.summary})",
                anchor.spec.summary,
                "Guard a model with its own origin.",
            )
        centre = builtin_prompts(CENTRE_PROMPTS).prompts
        own, other = (Side.of(encoder, centre, progress) for encoder in (suspect, anchor))
        guard = cls(name, own, other, config, torch.empty(0))
        prompts = unlike_prompts(suspect.tokenizer.words(), config.prompts, config.seed).prompts
        clean = guard.departures([guard.chunks(prompt)[0] for prompt in prompts], progress)
        guard = cls(name, own, other, config, clean.sort().values)
        if guard.bound >= UNRELATED:
            raise EncoderError(
                f"an anchor that reads clean prompts nearly as {name} does",
                f"one from which they depart by {float(clean.median()):.2f} (1 is unrelated): nothing could stand out",
                "Give the encoder that it was made from; after a heavy fine-tune there may be none near enough.",
            )
        return guard

    @property
    def bound(self) -> float:
        """The departure beyond which a prompt is flagged: a quantile of the clean ones, with a margin.

        Where a few of these depart as far as no fine-tune was seen to make them, and by far more than the others,
        they hold the trigger themselves: a trigger of common words. They can't raise the bound. How far prompts vary
        is told from those that depart least: a backdoor that leaks into clean prompts widens the upper half.
        """
        lower, middle = (float(self.clean.quantile(share)) for share in (0.25, 0.5))
        most = max(self.config.most, middle + FENCE * (middle - lower))
        return max(min(self.config.margin * float(self.clean[-self._allowed]), most), self.config.least)

    @property
    def rate(self) -> float:
        """Highest expected share of clean prompts that are flagged, for prompts like those that set the bound.

        A prompt that is exchangeable with N others is above the k-th largest of them with a chance of k / (N + 1).
        """
        return max(self._allowed, 1 + int((self.clean > self.bound).sum())) / (len(self.clean) + 1)

    @property
    def _allowed(self) -> int:
        """Which clean prompt, from the top, is the quantile."""
        return max(1, math.floor(self.config.rate * (len(self.clean) + 1)))

    def chunks(self, prompt: str | Sequence[int]) -> list[list[int]]:
        """Token ids of what the encoder reads of a prompt at a time, BOS and EOS left out."""
        tokenizer = self.suspect.encoder.tokenizer
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        inner = [i for i in ids if i not in (tokenizer.bos_id, tokenizer.eos_id)]
        return tokenizer.chunks(inner, self.suspect.encoder.spec.positions - 2)

    def departures(self, rows: Sequence[Sequence[int]], progress: Progress = silent) -> Tensor:
        """Departure of token ids ``(N,)``, on the CPU.

        Raises:
            NumericalError: an encoder's output is not finite.
        """
        own, other = (
            side.encoder.encode_ids(rows, progress=progress) - side.centre for side in (self.suspect, self.anchor)
        )
        departures = (1 - F.cosine_similarity(own, other, dim=-1)).cpu()
        if not bool(departures.isfinite().all()):
            raise NumericalError(
                f"finite states of all prompts in {self.name} and its anchor",
                "NaN or infinity",
                "The encoder's outputs overflow; its weights are damaged.",
            )
        return departures

    def check(self, prompts: Sequence[Sequence[Sequence[int]]], progress: Progress = silent) -> list[list[Alarm]]:
        """Alarms of prompts, each of them one or more chunks of token ids."""
        places = [(prompt, chunk) for prompt, chunks in enumerate(prompts) for chunk in range(len(chunks))]
        values = self.departures([prompts[i][j] for i, j in places], progress).tolist() if places else []
        bound, alarms = self.bound, [list[Alarm]() for _ in prompts]
        for (i, j), value in zip(places, values, strict=True):
            if value > bound:
                alarms[i].append(self._alarm(j + 1, prompts[i][j], value, bound))
        return alarms

    def _alarm(self, number: int, row: Sequence[int], departure: float, bound: float) -> Alarm:
        causes, joint = self._causes(row, bound)
        return Alarm(
            encoder=self.name,
            chunk=number,
            departure=departure,
            bound=bound,
            causes=causes,
            joint=joint,
            explained=bool(causes) and causes[-1].without <= bound,
        )

    def _causes(self, row: Sequence[int], bound: float) -> tuple[tuple[Cause, ...], bool]:
        """Every piece that suffices alone; where none does, the strongest is taken out, then the next one."""
        tokenizer, causes = self.suspect.encoder.tokenizer, list[Cause]()
        pieces = [(tokenizer.text(piece), piece) for piece in tokenizer.pieces(row)]
        while pieces and len(causes) < self.config.causes:
            ids = dict(reversed(pieces))
            rests = [[piece for piece in pieces if piece[0] != text] for text in ids]
            values = self.departures([[i for _, piece in rest for i in piece] for rest in rests]).tolist()
            ranked = sorted(zip(values, ids, rests, strict=True), key=lambda option: option[0])
            enough = [option for option in ranked if option[0] <= bound]
            for value, text, _ in enough if enough and not causes else ranked[:1]:
                names = tuple(f"{glyph.code} {glyph.name}" for glyph in glyphs(text) if glyph.code)
                causes.append(Cause(text=text, code_points=names, token_ids=ids[text], without=value))
            if enough:
                break
            pieces = ranked[0][2]
        return tuple(causes), bool(causes) and causes[0].without > bound


class Watch(Record):
    """What guards one encoder."""

    encoder: str
    clean: int = Field(description="clean prompts that set the bound")
    bound: Number
    rate: Number = Field(description="highest expected share of clean prompts of these kinds that are flagged")


class Flagged(Record):
    """A prompt with its alarms."""

    prompt: str
    alarms: tuple[Alarm, ...]


class Guarded(Record):
    """What guards say of prompts."""

    watches: tuple[Watch, ...] = Field(description="none of an encoder that equals a trusted one")
    prompts: int
    flagged: tuple[Flagged, ...]

    @property
    def rate(self) -> float:
        """Highest expected share of clean prompts that any of the guards flags, for prompts of one chunk."""
        return sum(watch.rate for watch in self.watches)


def check(guards: Sequence[Guard], prompts: Sequence[str], progress: Progress = silent) -> Guarded:
    """Check every chunk of prompts in every encoder."""
    alarms = alarms_of(guards, prompts, progress)
    return Guarded(
        watches=tuple(Watch(encoder=g.name, clean=len(g.clean), bound=g.bound, rate=g.rate) for g in guards),
        prompts=len(prompts),
        flagged=tuple(
            Flagged(prompt=prompt, alarms=tuple(found)) for prompt, found in zip(prompts, alarms, strict=True) if found
        ),
    )


def alarms_of(guards: Sequence[Guard], prompts: Sequence[str], progress: Progress = silent) -> list[list[Alarm]]:
    """Alarms of every prompt in all encoders and chunks."""
    found = [guard.check([guard.chunks(prompt) for prompt in prompts], progress) for guard in guards]
    return [[alarm for each in found for alarm in each[i]] for i in range(len(prompts))]
