"""A folder of models, scanned one by one: a report for each, and an overview that is rewritten after each.

What was scanned with equal settings is not scanned again, so a run that was stopped goes on where it was, and new
downloads are all that a later run scans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic import ValidationError

from . import __version__
from .anchors import Anchors
from .errors import AmdetError, ConfigError, EncoderError, NoEncoderError
from .formats import files_of, is_model, models_below
from .formats.files import sha256
from .jobs import Job, Outcome, choose_device
from .policy import load_policy
from .prompts import read_prompts
from .records import Tool, utf8
from .report import Overview, Row, render_overview
from .storage import REPORT, check_writable, publish, record_json, write_atomic

OVERVIEW, PAGE = "overview.json", "overview.html"


@dataclass(frozen=True, eq=False)
class Fleet:
    """Every model below a folder, and where its report belongs.

    Attributes:
        folder: is walked; the folder of the reports is left out.
        out: folder of the overview, with the reports in folders as the models are called.
        job: how each is scanned; its target counts for nothing.
        measured: what its caller measures besides, in words: reports made without it are made anew.
    """

    folder: Path
    out: Path
    job: Job
    measured: str = ""

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether a path is a folder of models rather than one model."""
        return path.is_dir() and not is_model(path)

    @cached_property
    def models(self) -> tuple[Path, ...]:
        """All of them, in the order of their names.

        Raises:
            EncoderError: there is none.
            StorageError: a folder can't be read.
        """
        found = tuple(models_below(self.folder, lambda folder: folder.resolve() == self.out.resolve()))
        if not found:
            raise EncoderError(
                "a folder with models in it", f"no weight file in {self.folder}", "Name the folder of your downloads."
            )
        return found

    def run(self, scanned: Callable[[Job, str], Outcome]) -> Iterator[Row]:
        """Scan what has to be scanned, write it, and give every model's row as soon as it is known.

        What can't be scanned, for whatever reason of its own, is a row too, and the others go on.

        Args:
            scanned: runs one job; is given the number of the model among all, in words.

        Raises:
            AmdetError: the policy, the anchor, the prompts or the device are not usable, or the reports can't be
                written.
        """
        check_writable(self.out)
        names = [str(utf8(model.relative_to(self.folder).as_posix())) for model in self.models]
        self._check_places(names)
        settings, known = self._settings(), self._known()
        rows: list[Row] = []
        for number, (model, name) in enumerate(zip(self.models, names, strict=True), start=1):
            said = f"{number}/{len(names)} {name}"
            rows.append(self._row(model, name, settings, known.get(name), lambda job, said=said: scanned(job, said)))  # type: ignore[misc]
            later = [known[other] for other in names[number:] if other in known]
            self._write(rows + later, complete=number == len(names))
            yield rows[-1]

    def overview(self, rows: list[Row], *, complete: bool) -> Overview:
        """All rows with what they have in common."""
        return Overview(
            tool=Tool(version=__version__),
            folder=self.folder.absolute().name,
            policy=load_policy(self.job.policy).name,
            preset=self.job.preset,
            anchor=self.job.anchor,
            complete=complete,
            rows=tuple(rows),
        )

    def _row(self, model: Path, name: str, settings: str, known: Row | None, scanned: Callable[[Job], Outcome]) -> Row:
        """What is known of one model, or what a scan says; no model of a stranger's stops the others."""
        key = ""
        try:
            key = _digest(settings.encode(), *_contents(model))
            if known is not None and known.key == key and self._there(known):
                return known
            outcome = scanned(self.job.model_copy(update={"target": model}))
        except NoEncoderError as error:
            return Row(path=name, outcome="no encoder", said=f"It holds {error.found}.", key=key)
        except AmdetError as error:
            return Row(path=name, outcome="error", said=str(error), key=key)
        except Exception as error:
            return Row(path=name, outcome="error", said=f"a bug in amdet: {type(error).__name__}: {error}", key=key)
        publish(self.out / name, outcome.files)
        return Row.of(name, outcome.report, key)

    def _check_places(self, names: list[str]) -> None:
        """Fail before the first scan where a model's report has no place of its own, or the reports' hide a model."""
        inside = self.folder.resolve() in self.out.resolve().parents and self.out.is_dir()
        if hidden := next(models_below(self.out), None) if inside else None:
            raise ConfigError(
                f"a folder for the reports without a model in it at {self.out}",
                f"{hidden}, which would not be scanned",
                "Name another folder for the reports: --out.",
            )
        scanned = {model.resolve() for model in self.models}
        for name in names:
            place = self.out / name
            files = (path for path in (place, *place.parents) if path.exists() and not path.is_dir())
            taken = place if place.resolve() in scanned else next(files, None)
            if taken is not None:
                raise ConfigError(
                    f"a folder for the report of {name} at {place}",
                    f"{'what is scanned' if taken.resolve() in scanned else 'a file'} at {taken}",
                    "Name another folder for the reports: --out.",
                )

    def _write(self, rows: list[Row], *, complete: bool) -> None:
        made = self.overview(rows, complete=complete)
        write_atomic(self.out / OVERVIEW, record_json(made))
        write_atomic(self.out / PAGE, render_overview(made).encode("utf-8", "replace"))

    def _known(self) -> dict[str, Row]:
        """Rows of an earlier run by path; none where its file is missing or damaged."""
        try:
            earlier = Overview.model_validate_json((self.out / OVERVIEW).read_bytes())
        except (OSError, ValidationError):
            return {}
        return {row.path: row for row in earlier.rows}

    def _there(self, row: Row) -> bool:
        """Whether what a row speaks of is still to be had; what failed is tried again."""
        return row.outcome == "no encoder" or (row.outcome == "scanned" and (self.out / row.path / REPORT).is_file())

    def _settings(self) -> str:
        """Everything beside the model's own bytes that decides a result.

        A wrong setting fails here rather than with every model.
        """
        choose_device(self.job.device)
        Anchors.of(self.job.anchor, self.job.trust_store)
        if self.job.prompts is not None:
            read_prompts(self.job.prompts)
        job = self.job.model_dump_json(exclude={"target", "trust_store", "anchor", "prompts", "policy"})
        read = [path for path in (self.job.trust_store, self.job.prompts) if path is not None and path.is_file()]
        anchor = Path(self.job.anchor)
        named = _contents(anchor) if anchor.exists() else iter([self.job.anchor.encode()])
        policy = load_policy(self.job.policy).model_dump_json()
        files = [path.read_bytes() for path in read]
        texts = (__version__, torch.__version__, job, policy, self.measured)
        return _digest(*(text.encode() for text in texts), *files, *named)


def _contents(path: Path) -> Iterator[bytes]:
    """Digests of the files that decide what a model is, with their names."""
    for file in files_of(path):
        yield f"{sha256(file)} {file.relative_to(path).as_posix()}".encode()


def _digest(*parts: bytes) -> str:
    """Of several byte strings, each by its own digest, so that none can be mistaken for two."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
