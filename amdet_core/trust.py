"""Which encoders are trusted: fingerprints of values, and the user's own store.

A fingerprint identifies values, a file hash identifies bytes. Two files of one encoder often differ in
bytes (key layout, precision, metadata), so trust rests on fingerprints and file hashes are a help.

Rounding goes one way. A file that equals a trusted encoder rounded to a lower precision is recognised as
its cast: nobody but the trusted encoder decided its values. A file of higher precision that only rounds to
a trusted one is not, for its low bits are anybody's: a backdoor can be trained to survive below the
rounding (quantisation-conditioned backdoors).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError, model_validator

from . import forensics
from .encoder import PROJECTION, TextEncoder
from .errors import AmdetError, ConfigError, StorageError
from .forensics_words import UNRELATED
from .records import AnchorInfo, EncoderSpec, PathText, Record, Sha256
from .storage import write_atomic

Cast = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
CASTS: tuple[Cast, ...] = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Precisions in which a trusted encoder is recognised; float32 stands for the values as they are."""

_CHUNK = 1 << 15
"""Values hashed at once: they stay in the processor's cache, and torch starts no threads for so few."""
_PREFIX = 8
"""Fewest characters of a fingerprint by which an entry can be named."""


# ------------------------------------------------------------------ fingerprints


def fingerprint(encoder: TextEncoder, cast: Cast = "float32") -> str:
    """SHA-256 over the values of an encoder, independent of file, key layout and stored precision.

    Hashed are, for every tensor in ascending order of its canonical name: the name, a line feed, the
    sizes joined by ``x``, a line feed, and the values as float32, little-endian, in row-major order. Zeros
    of either sign are the same value, +0. The text projection has a fingerprint of its own, because bare encoders
    lack it; left out is everything that is no tensor: heads, activation, pooling and padding.

    Args:
        cast: precision to which the values are rounded first.

    Returns:
        64 hexadecimal digits.
    """
    return _fingerprint(encoder, encoder.weights.keys() - {PROJECTION}, cast)


def projection_fingerprint(encoder: TextEncoder, cast: Cast = "float32") -> str | None:
    """The same over the text projection alone; None where there is none."""
    return _fingerprint(encoder, {PROJECTION}, cast) if PROJECTION in encoder.weights else None


def _fingerprint(encoder: TextEncoder, names: Set[str], cast: Cast) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        weight = encoder.weights[name].detach()
        digest.update(f"{name}\n{'x'.join(str(size) for size in weight.shape)}\n".encode())
        for chunk in weight.reshape(-1).split(_CHUNK):
            values = chunk.to("cpu", torch.float32)
            if cast != "float32":
                values = forensics.rounded(values, cast)
            digest.update((values + 0.0).numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def cast_between(anchor: TextEncoder, suspect: TextEncoder) -> Cast | None:
    """The precision to which an anchor's values are the suspect's when rounded, float32 where they are as they are.

    None where they differ. The two have the same tensors, but that one may lack a text projection.
    """
    shared = suspect.weights.keys() - ({PROJECTION} - anchor.weights.keys())
    names = sorted(shared, key=lambda name: suspect.weights[name].numel())

    def equal(cast: Cast, name: str) -> bool:
        weight = anchor.weights[name] if cast == "float32" else forensics.rounded(anchor.weights[name], cast)
        return torch.equal(weight, suspect.weights[name])

    return next((cast for cast in CASTS if all(equal(cast, name) for name in names)), None)


# ------------------------------------------------------------------ the user's store


class TrustEntry(Record):
    """One trusted encoder."""

    name: PathText = Field(min_length=1)
    spec: EncoderSpec
    fingerprints: dict[Cast, Sha256] = Field(description="of the values, and of their casts")
    projections: dict[Cast, Sha256] = Field(default={}, description="the same of the text projection; none: unknown")
    file_sha256: Sha256 | None = Field(default=None, description="of the file it was read from")
    path: PathText | None = Field(default=None, description="where it can be read again as an anchor")
    encoder: str = Field(default="text_encoder", description="clip_l, clip_g, clip_h or text_encoder")
    source: Literal["shipped", "known-hash", "user"] = Field(default="user", description="why it is trusted")
    note: str = ""

    @model_validator(mode="after")
    def _has_values(self) -> TrustEntry:
        if "float32" not in self.fingerprints:
            raise ValueError("the fingerprint of the values themselves (float32) is missing")
        return self

    @property
    def fingerprint(self) -> str:
        """Of the values themselves."""
        return self.fingerprints["float32"]

    def called(self, name_or_fingerprint: str) -> bool:
        """Whether it is named so, or its fingerprint begins so, by enough digits."""
        if self.name == name_or_fingerprint:
            return True
        return len(name_or_fingerprint) >= _PREFIX and self.fingerprint.startswith(name_or_fingerprint)

    def has_projection(self, value: str | None) -> bool:
        """Whether a text projection is this encoder's, in any precision, or one of the two has none."""
        return value is None or not self.projections or value in self.projections.values()


def trust_entry(
    encoder: TextEncoder,
    name: str,
    *,
    slot: str = "text_encoder",
    source: Literal["shipped", "known-hash", "user"] = "user",
    path: Path | None = None,
    file_sha256: str | None = None,
    note: str = "",
) -> TrustEntry:
    """The entry that trusts an encoder and its casts.

    Args:
        slot: name of the encoder within its file.
        path: file or folder from which it can be read again.
    """
    return TrustEntry(
        name=name,
        spec=encoder.spec,
        fingerprints={cast: fingerprint(encoder, cast) for cast in CASTS},
        projections={cast: value for cast in CASTS if (value := projection_fingerprint(encoder, cast))},
        file_sha256=file_sha256,
        path=None if path is None else str(path.absolute()),
        encoder=slot,
        source=source,
        note=note,
    )


class _StoreFile(Record):
    version: Literal[1] = 1
    entries: tuple[TrustEntry, ...] = ()


class TrustStore:
    """The encoders that a user trusts, in one JSON file.

    Every call reads the file anew and every change replaces it whole. A missing file is an empty store; a
    damaged one is an error and stays as it is.

    Args:
        path: the JSON file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def entries(self) -> tuple[TrustEntry, ...]:
        """All entries, oldest first.

        Raises:
            StorageError: the file can't be read.
            ConfigError: it holds something else than a store of this version.
        """
        try:
            return _StoreFile.model_validate_json(self.path.read_bytes()).entries
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StorageError(
                expected=f"a readable list of trusted encoders at {self.path}",
                found=error.strerror or str(error),
                remedy="Give yourself read access to it, or name another file.",
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ConfigError(
                expected=f"a list of trusted encoders in {self.path}",
                found=f"{where}: {first['msg']}",
                remedy="Correct the file, or move it away to start an empty list; it has not been changed.",
            ) from error

    def add(self, entry: TrustEntry) -> None:
        """Trust an encoder. Of one with the same values name and place become those that a user gives.

        A file that is trusted for its hash alone takes the place of one that is gone, and no other. What is known of
        a text projection is kept where the new file has none.
        """
        entries = self.entries
        known = next((one for one in entries if one.fingerprint == entry.fingerprint), None)
        if known is not None:
            stays = entry.source != "user" and known.path is not None and Path(known.path).exists()
            kept, other = (known, entry) if stays else (entry, known)
            entry = kept.model_copy(update={"projections": kept.projections or other.projections})
        if entry != known:
            self._write((*(one for one in entries if one is not known), entry))

    def remove(self, name_or_fingerprint: str) -> TrustEntry:
        """Trust an encoder no longer.

        Args:
            name_or_fingerprint: its name, or at least the first eight digits of its fingerprint.

        Returns:
            The entry that was removed.

        Raises:
            ConfigError: no entry is called so, or several are.
        """
        entries = self.entries
        found = [entry for entry in entries if entry.called(name_or_fingerprint)]
        if len(found) != 1:
            named = ", ".join(f"{e.name} ({e.fingerprint[:12]})" for e in found or entries) or "none"
            raise ConfigError(
                expected=f"one trusted encoder called {name_or_fingerprint!r}",
                found=f"{len(found)}; {'these' if found else 'trusted are'}: {named}",
                remedy="Name it by the first digits of its fingerprint.",
            )
        self._write(tuple(e for e in entries if e is not found[0]))
        return found[0]

    def match(self, fingerprint: str, projection: str | None = None) -> tuple[TrustEntry, Cast] | None:
        """The trusted encoder with these values, and the precision to which it was rounded for that.

        Equal values come before casts, whatever the order of the entries.

        Args:
            fingerprint: of the suspect's values as they are, never of a cast of them.
            projection: the same of its text projection, where it has one.
        """
        entries = self.entries
        for cast in CASTS:
            for entry in entries:
                if entry.fingerprints.get(cast) == fingerprint and entry.has_projection(projection):
                    return entry, cast
        return None

    def _write(self, entries: tuple[TrustEntry, ...]) -> None:
        write_atomic(self.path, _StoreFile(entries=entries).model_dump_json(indent=2).encode() + b"\n")


# ------------------------------------------------------------------ anchors


@dataclass(frozen=True, eq=False)
class Anchor:
    """A trusted encoder to compare a suspect with, and where it came from."""

    encoder: TextEncoder
    info: AnchorInfo


def choose_anchor(
    suspect: TextEncoder,
    entries: Sequence[TrustEntry],
    open_encoders: Callable[[Path], Sequence[TextEncoder]],
    *,
    shipped: Sequence[tuple[str, TextEncoder]] = (),
    slot: str = "text_encoder",
) -> tuple[Anchor | None, tuple[str, ...]]:
    """The trusted encoder of the suspect's architecture whose weights are nearest to it.

    One with more layers or token rows than the suspect is compared by its first ones. A trusted file is read
    again and used only if it still holds the values that were trusted. An encoder from another training run
    is no anchor and is not used.

    Args:
        open_encoders: reads all encoders of a file or folder.
        shipped: name and weights of encoders that come with the library.
        slot: name of the suspect within its file.

    Returns:
        The anchor as it was trusted, or None where there is none, and one note for every trusted encoder that
        was refused and for a choice among several.

    An anchor file that can't be read is a note, not an error.
    """
    notes: list[str] = []
    best, nearest, usable = None, math.inf, 0
    for anchor in _candidates(suspect.spec, entries, open_encoders, shipped, slot, notes):
        part = anchor.encoder.first_layers(suspect.spec.layers).first_tokens(suspect.spec.vocabulary)
        apart = forensics.distance(suspect, part)
        if apart > UNRELATED:
            notes.append(f"{anchor.info.name}: not used as anchor, its weights are unrelated (distance {apart:.2g})")
            continue
        usable += 1
        if apart < nearest:
            best, nearest = anchor, apart
    if best is not None and usable > 1:
        notes.append(f"{best.info.name}: nearest of {usable} trusted encoders (distance {nearest:.2g})")
    return best, tuple(notes)


def _candidates(
    spec: EncoderSpec,
    entries: Sequence[TrustEntry],
    open_encoders: Callable[[Path], Sequence[TextEncoder]],
    shipped: Sequence[tuple[str, TextEncoder]],
    slot: str,
    notes: list[str],
) -> Iterator[Anchor]:
    """One after the other, the user's own first: several may not fit into memory."""
    for entry in entries:
        if entry.path is not None and entry.spec.contains(spec):
            encoder = _read_again(entry, Path(entry.path), open_encoders, notes)
            if encoder is not None:
                info = AnchorInfo(
                    encoder=slot, name=entry.name, path=entry.path, fingerprint=entry.fingerprint, chosen="trusted"
                )
                yield Anchor(encoder, info)
    for name, encoder in shipped:
        if encoder.spec.contains(spec):
            values = fingerprint(encoder)
            yield Anchor(encoder, AnchorInfo(encoder=slot, name=name, path="", fingerprint=values, chosen="shipped"))


def _read_again(
    entry: TrustEntry, path: Path, open_encoders: Callable[[Path], Sequence[TextEncoder]], notes: list[str]
) -> TextEncoder | None:
    """The trusted encoder from its file, or None with a note where the file can't be read or was replaced."""
    try:
        encoders = open_encoders(path)
    except AmdetError as error:
        notes.append(f"{entry.name}: not used as anchor, {path} can't be read: {error}")
        return None
    for encoder in encoders:
        if entry.spec.comparable(encoder.spec) and fingerprint(encoder) == entry.fingerprint:
            return encoder
    notes.append(f"{entry.name}: refused as anchor, {path} no longer holds the values that were trusted")
    return None
