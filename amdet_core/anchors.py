"""Which trusted encoder a suspect is compared with, and whether it simply is one.

The only place where trust, files and the shipped encoders meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from . import forensics, formats, pocket, trust
from .encoder import TextEncoder
from .errors import AmdetError, EncoderError
from .formats import FoundEncoder, OpenedTarget
from .progress import Progress, silent
from .records import AnchorInfo, EncoderSpec
from .trust import CASTS, KnownFile, TrustEntry, TrustStore, trust_entry

SHIPPED = "amdet pocket"
Chosen = Literal["given", "trusted", "shipped"]


@dataclass(frozen=True, eq=False)
class Anchor:
    """What is known about one suspect before anything is measured.

    Attributes:
        fingerprint: of the suspect's values.
        encoder: the trusted encoder to compare it with; None where there is none, or no need for one.
        info: which trusted encoder that is, or which one the suspect is.
        notes: what a reader should know about the choice.
    """

    fingerprint: str
    encoder: TextEncoder | None = None
    info: AnchorInfo | None = None
    notes: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether the suspect's values are those of a trusted encoder, or of a cast of one."""
        return self.info is not None and self.info.fingerprint == self.fingerprint


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
        same = self._identity(suspect, own)
        if same is not None:
            return Anchor(own, info=same)
        if self.given:
            return self._given(suspect, own)
        if not self.search:
            return Anchor(own, notes=("no anchor was used, as asked",))
        chosen, notes = trust.choose_anchor(
            suspect.encoder,
            self.store.entries if self.store else (),
            lambda path: [found.encoder for found in formats.open_target(path).encoders],
            shipped=_shipped(suspect.encoder.spec),
            slot=suspect.name,
        )
        if chosen is None:
            return Anchor(own, notes=(*notes, _no_anchor(suspect)))
        return Anchor(own, chosen.encoder, chosen.info, notes=notes)

    def _given(self, suspect: FoundEncoder, own: str) -> Anchor:
        comparable = [found for found in self.given if found.encoder.spec.comparable(suspect.encoder.spec)]
        if not comparable:
            raise EncoderError(
                expected=f"an anchor with the shape of {suspect.name} ({suspect.encoder.spec.summary})",
                found="; ".join(f"{found.name} ({found.encoder.spec.summary})" for found in self.given),
                remedy="Name the encoder that the suspect was made from, or use --anchor auto.",
            )
        apart, best = min(
            ((forensics.distance(suspect.encoder, found.encoder), found) for found in comparable),
            key=lambda pair: pair[0],
        )
        if apart > forensics.UNRELATED:
            raise EncoderError(
                expected=f"an anchor from the same training run as {suspect.name}",
                found=f"{best.name} in {self.path}, with unrelated weights (relative distance {apart:.2g})",
                remedy="Name the encoder that the suspect was made from, or use --anchor auto.",
            )
        value = trust.fingerprint(best.encoder)
        return Anchor(own, best.encoder, self._info(suspect, Path(self.path).name, "given", value, self.path))

    def _identity(self, suspect: FoundEncoder, own: str) -> AnchorInfo | None:
        """The trusted encoder with these values, or whose cast has them."""
        spec = suspect.encoder.spec
        for found in self.given:
            if found.encoder.spec.comparable(spec):
                for cast in CASTS:
                    if trust.fingerprint(found.encoder, cast) == own:
                        return self._info(suspect, _named(Path(self.path).name, cast), "given", own, self.path)
        for entry in _shipped_entries(spec):
            for cast, value in entry.fingerprints.items():
                if value == own:
                    return self._info(suspect, _named(entry.name, cast), "shipped", own)
        match = self.store.match(own) if self.store else None
        if match is None:
            return None
        return self._info(suspect, _named(match[0].name, match[1]), "trusted", own, match[0].path or "")

    @staticmethod
    def _info(suspect: FoundEncoder, name: str, chosen: Chosen, fingerprint: str, path: str = "") -> AnchorInfo:
        return AnchorInfo(encoder=suspect.name, name=name, path=path, fingerprint=fingerprint, chosen=chosen)

    def _learn(self, suspect: FoundEncoder, opened: OpenedTarget) -> None:
        """A file with a known hash teaches its encoders to the user's store."""
        if self.store is None or opened.files != (opened.path,):
            return
        known = trust.known_file(opened.path)
        if known is not None:
            self.store.add(_known_entry(known, suspect, opened.path))


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
            if known := trust.known_file(path):
                for found in formats.open_target(path).encoders:
                    store.add(_known_entry(known, found, path))
        except AmdetError as error:
            notes.append(f"{path.name}: not used as anchor: {error}")
    return tuple(notes)


def _known_entry(known: KnownFile, found: FoundEncoder, path: Path) -> TrustEntry:
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


def trusted(store: Path) -> tuple[TrustEntry, ...]:
    """All entries: what ships with the library, then the user's own."""
    return (*_shipped_entries(pocket.SPEC), *TrustStore(store).entries)


def _named(name: str, cast: str) -> str:
    return name if cast == "float32" else f"{name}, cast to {cast}"


def _no_anchor(suspect: FoundEncoder) -> str:
    return (
        f"{suspect.name}: no trusted encoder of its shape ({suspect.encoder.spec.summary}) is known; "
        "give the original encoder as the anchor (on the command line: --anchor PATH, or once and for all: "
        "amdet trust add PATH)"
    )


def _shipped(spec: EncoderSpec) -> Sequence[tuple[str, TextEncoder]]:
    return [(SHIPPED, pocket.load("clean"))] if spec.comparable(pocket.SPEC) else []


def _shipped_entries(spec: EncoderSpec) -> Sequence[TrustEntry]:
    return [_pocket_entry()] if spec.comparable(pocket.SPEC) else []


@cache
def _pocket_entry() -> TrustEntry:
    return trust_entry(pocket.load("clean"), SHIPPED, source="shipped")
