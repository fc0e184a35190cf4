"""Which trusted encoder a suspect is compared with, and whether it simply is one.

The only place where trust, files and the shipped encoders meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from . import forensics, formats, pocket, published, trust
from .encoder import PROJECTION, TextEncoder
from .errors import AmdetError, ConfigError, EncoderError
from .forensics_words import UNRELATED
from .formats import FoundEncoder, OpenedTarget
from .progress import Progress, silent
from .records import AnchorInfo, EncoderSpec
from .trust import TrustEntry, TrustStore, trust_entry

SHIPPED = "amdet pocket"
OTHER_ANCHOR = (
    "Give the encoder that the suspect was made from, or none (on the command line: --anchor auto or --anchor none; "
    "in a graph: nothing connected)."
)
Chosen = Literal["given", "trusted", "shipped"]


@dataclass(frozen=True, eq=False)
class Anchor:
    """What is known about one suspect before anything is measured.

    Attributes:
        fingerprint: of the suspect's values, all that the file has.
        encoder: the trusted encoder to compare it with, as far as the suspect goes; None where there is none, or
            no need for one.
        info: which trusted encoder that is, or which one the suspect is.
        identical: whether all that prompts reach of the suspect has the values of a trusted encoder, or of a cast
            of one.
        notes: what a reader should know about the choice.
    """

    fingerprint: str
    encoder: TextEncoder | None = None
    info: AnchorInfo | None = None
    identical: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Anchors:
    """Where anchors come from in one job.

    Attributes:
        given: encoders of the file that the user named, empty where none was.
        path: that file.
        search: whether trusted and shipped encoders may serve.
        store: the user's trusted encoders, or None.
    """

    given: tuple[FoundEncoder, ...]
    path: str
    search: bool
    store: TrustStore | None

    @classmethod
    def of(cls, choice: str, store: Path | None) -> Anchors:
        """Read the option ``auto``, ``none`` or a path.

        Raises:
            AmdetError: the path holds no usable encoder.
        """
        trusted = None if store is None else TrustStore(store)
        if choice in ("auto", "none"):
            return cls((), "", choice == "auto", trusted)
        with serving_as("the anchor", choice):
            opened = formats.open_target(choice)
            for found in opened.encoders:
                found.encoder.check_finite()
        return cls(opened.encoders, choice, False, trusted)

    def match(self, suspect: FoundEncoder, opened: OpenedTarget) -> Anchor:
        """Identity and anchor of one encoder of a target.

        Raises:
            EncoderError: the anchor that was named can't be compared with it.
        """
        own = trust.fingerprint(suspect.encoder)
        self._learn(suspect, opened)
        notes = _added_tokens(suspect)
        if same := self._identity(suspect, own):
            entry, info = same
            known = bool(entry.projections) or PROJECTION not in suspect.encoder.weights
            if known or not self.given:  # what is given may have a projection to compare with
                return Anchor(own, info=info, identical=True, notes=notes if known else notes + _projection(suspect))
        if self.given:
            chosen: trust.Anchor | None = self._given(suspect)
        elif self.search:
            chosen, refused = self._nearest(suspect)
            notes += refused
        else:
            return Anchor(own, notes=(*notes, *_projection(suspect), "no anchor was used, as asked"))
        if chosen is None:
            return Anchor(own, notes=(*notes, *_projection(suspect), _no_anchor(suspect)))
        anchor, info = suspect.reachable(chosen.encoder), chosen.info
        notes += _fewer_layers(suspect, chosen.encoder) + _projection(suspect, anchor)
        if cast := trust.cast_between(anchor, suspect.reachable()):
            info = info.model_copy(update={"name": _named(info.name, cast)})
            return Anchor(own, info=info, identical=True, notes=notes)
        return Anchor(own, anchor, info, notes=notes)

    def _nearest(self, suspect: FoundEncoder) -> tuple[trust.Anchor | None, tuple[str, ...]]:
        return trust.choose_anchor(
            suspect.reachable(),
            self.store.entries if self.store else (),
            lambda path: [found.encoder for found in formats.open_target(path).encoders],
            shipped=_shipped(suspect.reachable().spec),
            slot=suspect.name,
        )

    def _given(self, suspect: FoundEncoder) -> trust.Anchor:
        reachable = suspect.reachable()
        usable = [found for found in self.given if found.encoder.spec.contains(reachable.spec)]
        if not usable:
            raise EncoderError(
                expected=f"an anchor with the shape of {suspect.name} ({reachable.spec.summary}), or with more layers",
                found="; ".join(f"{found.name} ({found.encoder.spec.summary})" for found in self.given),
                remedy=OTHER_ANCHOR,
            )
        apart, best = min(
            ((forensics.distance(reachable, suspect.reachable(found.encoder)), found) for found in usable),
            key=lambda pair: pair[0],
        )
        if apart > UNRELATED:
            raise EncoderError(
                expected=f"an anchor from the same training run as {suspect.name}",
                found=f"{best.name} in {self.path}, with unrelated weights (relative distance {apart:.2g})",
                remedy=OTHER_ANCHOR,
            )
        value = trust.fingerprint(best.encoder)
        return trust.Anchor(best.encoder, self._info(suspect, Path(self.path).name, "given", value, self.path))

    def _identity(self, suspect: FoundEncoder, own: str) -> tuple[TrustEntry, AnchorInfo] | None:
        """The trusted encoder that has these values, or whose cast has them, known by its fingerprints alone.

        The suspect counts with and without its added token rows.
        """
        values = [own, trust.fingerprint(suspect.reachable())] if suspect.added_tokens else [own]
        projection = trust.projection_fingerprint(suspect.encoder)
        for value in values:
            for entry in _shipped_entries(suspect.reachable().spec):
                for cast, known in entry.fingerprints.items():
                    if known == value and entry.has_projection(projection):
                        return entry, self._info(suspect, _named(entry.name, cast), "shipped", value)
            if match := self.store.match(value, projection) if self.store else None:
                entry, cast = match
                return entry, self._info(suspect, _named(entry.name, cast), "trusted", value, entry.path or "")
        return None

    @staticmethod
    def _info(suspect: FoundEncoder, name: str, chosen: Chosen, fingerprint: str, path: str = "") -> AnchorInfo:
        return AnchorInfo(encoder=suspect.name, name=name, path=path, fingerprint=fingerprint, chosen=chosen)

    def _learn(self, suspect: FoundEncoder, opened: OpenedTarget) -> None:
        """A file with a known hash teaches its encoders to the user's store."""
        if self.store is None or opened.files != (opened.path,):
            return
        known = published.known_file(opened.path)
        if known is not None:
            self.store.add(_known_entry(known, suspect, opened.path))


@contextmanager
def serving_as(role: str, path: str | Path) -> Iterator[None]:
    """Say of errors of which file they speak, where the suspect could be meant."""
    try:
        yield
    except AmdetError as error:
        raise type(error)(f"{error.expected} (as {role}: {path})", error.found, error.remedy) from error


def learn_known(paths: Iterable[Path], store: TrustStore, progress: Progress = silent) -> tuple[str, ...]:
    """Trust the encoders of every file with a known hash, so that they can be found as anchors.

    Only files of a known file's size are read; those that the store names already are left out.

    Returns:
        One line for each file that could not be read.
    """
    notes = []
    trusted_paths = {entry.path for entry in store.entries}
    new = [path for path in paths if str(path.absolute()) not in trusted_paths]
    for done, path in enumerate(new):
        progress("known files", done, len(new), {})
        try:
            if known := published.known_file(path):
                for found in formats.open_target(path).encoders:
                    store.add(_known_entry(known, found, path))
        except AmdetError as error:
            notes.append(f"{path.name}: not used as anchor: {error}")
    return tuple(notes)


def _known_entry(known: published.KnownFile, found: FoundEncoder, path: Path) -> TrustEntry:
    return trust_entry(
        found.encoder,
        f"{known.name} {found.name}",
        slot=found.name,
        source="known-hash",
        path=path,
        file_sha256=known.sha256,
        note=known.evidence,
    )


def vouch(path: Path, name: str | None, store: Path) -> tuple[TrustEntry, ...]:
    """Add the encoders of a file to the user's store.

    Raises:
        AmdetError: it holds none that can be used, or the store can't be written.
    """
    opened = formats.open_target(path)
    digest = formats.file_sha256(opened)
    entries = []
    for found in opened.encoders:
        found.encoder.check_finite()
        label = name or path.absolute().name
        entries.append(
            trust_entry(
                found.encoder,
                label if len(opened.encoders) == 1 else f"{label} {found.name}",
                slot=found.name,
                path=path,
                file_sha256=digest,
            )
        )
    for entry in entries:
        TrustStore(store).add(entry)
    return tuple(entries)


def distrust(name: str, store: Path) -> TrustEntry:
    """Take an encoder out of the user's store, by its name or the first digits of its fingerprint.

    Raises:
        ConfigError: no entry is called so, or several are, or it ships with the library.
        StorageError: the store can't be read or written.
    """
    own = TrustStore(store)
    shipped = [entry for entry in _shipped_entries(pocket.SPEC) if entry.called(name)]
    if shipped and not any(entry.called(name) for entry in own.entries):
        raise ConfigError(
            "an encoder that you trusted yourself",
            f"{shipped[0].name}, which ships with amdet",
            "It can't be removed; where it shall not serve as the anchor, give another one or none.",
        )
    return own.remove(name)


def trusted(store: Path) -> tuple[TrustEntry, ...]:
    """All entries: what ships with the library, then the user's own."""
    return (*_shipped_entries(pocket.SPEC), *TrustStore(store).entries)


def _named(name: str, cast: str) -> str:
    return name if cast == "float32" else f"{name}, cast to {cast}"


def _added_tokens(suspect: FoundEncoder) -> tuple[str, ...]:
    if not suspect.added_tokens:
        return ()
    rows = f"{suspect.added_tokens:,} added token row{'s' if suspect.added_tokens > 1 else ''}"
    return (f"{suspect.name}: {rows} behind CLIP's vocabulary (named tokens of a textual inversion?) are not scanned",)


def _fewer_layers(suspect: FoundEncoder, anchor: TextEncoder) -> tuple[str, ...]:
    ours, theirs = suspect.encoder.spec.layers, anchor.spec.layers
    return (f"{suspect.name}: compared with the first {ours} of the anchor's {theirs} layers",) if ours < theirs else ()


def _projection(suspect: FoundEncoder, anchor: TextEncoder | None = None) -> tuple[str, ...]:
    """What is to be said of a text projection, which takes no part in a scan."""
    if PROJECTION not in suspect.encoder.weights:
        return ()
    reads = "through it SDXL and SD3 read the pooled output, and a backdoor in it is not looked for"
    apart = projection_change(suspect, anchor)
    if apart is None:
        return (f"{suspect.name}: its text projection has none to be compared with; {reads}",)
    return (f"{suspect.name}: its text projection differs from the anchor's by {apart:.1%}; {reads}",) if apart else ()


def projection_change(suspect: FoundEncoder, anchor: TextEncoder | None) -> float | None:
    """Relative change of a text projection, 0 where it is the anchor's or a cast of it; None where either has none."""
    own = suspect.encoder.weights.get(PROJECTION)
    other = None if anchor is None else anchor.weights.get(PROJECTION)
    if own is None or other is None or own.shape != other.shape:
        return None
    if torch.equal(own, other) or any(torch.equal(forensics.rounded(other, cast), own) for cast in forensics.CASTS):
        return 0.0
    return float((own - other).norm() / other.norm())


def _no_anchor(suspect: FoundEncoder) -> str:
    return (
        f"{suspect.name}: no trusted encoder of its shape ({suspect.encoder.spec.summary}) is known; "
        "give the original encoder as the anchor (on the command line: --anchor PATH, or once and for all: "
        "amdet trust add PATH)"
    )


def _shipped(spec: EncoderSpec) -> Sequence[tuple[str, TextEncoder]]:
    return [(SHIPPED, pocket.load("clean"))] if pocket.SPEC.contains(spec) else []


def _shipped_entries(spec: EncoderSpec) -> Sequence[TrustEntry]:
    return [_pocket_entry()] if spec.comparable(pocket.SPEC) else []


@cache
def _pocket_entry() -> TrustEntry:
    return trust_entry(pocket.load("clean"), SHIPPED, source="shipped")
