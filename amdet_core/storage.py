"""Reports on disk: written whole or not at all, read back with clear errors."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from .errors import AmdetError, ConfigError, StorageError
from .records import SCHEMA_VERSION, Record, ScanReport

REPORT = "report.json"
PSEUDO_TRIGGER = "pseudo-trigger.safetensors"
"""File with the strongest recovered feature of every encoder as a textual-inversion embedding."""
PICTURES = "pictures.png"
"""What the recovered feature draws, painted afterwards by a checkpoint."""
OWN = (
    REPORT,
    "report.html",
    "landscape.png",
    "spectrum.png",
    "loss.png",
    PICTURES,
    "pictures.json",
    PSEUDO_TRIGGER,
    "feature-*.safetensors",
)
"""Names of a report's files; ``publish`` removes those of an earlier report that the new one lacks."""

LARGEST_FEATURE = 4 * 2**20
"""Bytes that no file with features exceeds, and every text encoder does."""

STAGING = ".amdet-staging-"
STALE_SECONDS = 3600.0
"""Staging takes seconds; what is older was left by a killed run."""
DIGITS = 6
"""Significant digits of every number in a report."""


# ------------------------------------------------------------------ writing


def write_atomic(path: Path, data: bytes) -> None:
    """Write one file so that a reader sees the old bytes or the new ones, never a part.

    Missing parent folders are created.

    Raises:
        StorageError: the place can't be written to; the old file is unchanged and nothing is left behind.
    """
    temporary = path.with_name(f"{STAGING}{secrets.token_hex(6)}")
    with _as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_synced(temporary, data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def publish(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of one report as one unit.

    A new folder appears complete. In an existing one the old report.json goes first and the new one
    comes last, so that at no moment a report.json stands beside files of another scan. Files of other
    names are left alone.

    Args:
        directory: folder of the report, created where missing.
        files: plain file name -> content.

    Raises:
        ConfigError: a name is not a plain file name.
        StorageError: the place can't be written to; nothing is left behind.
    """
    for name in files:
        if Path(name).name != name:
            raise ConfigError("plain file names in a report", repr(name), "Name the file without folders.")
    # Staged inside an existing folder: it may be a mount point, to which nothing can be renamed from beside it.
    home = directory if directory.is_dir() else directory.parent
    with _as_storage_error(directory), _staging(home) as staging:
        for name, data in files.items():
            _write_synced(staging / name, data)
        if home is not directory:
            staging.rename(directory)
            return
        (directory / REPORT).unlink(missing_ok=True)
        for old in list(directory.iterdir()):
            if old.name not in files and any(fnmatchcase(old.name, pattern) for pattern in OWN):
                old.unlink()
        for name in sorted(files, key=lambda name: name == REPORT):
            (staging / name).replace(directory / name)


def check_named(path: str) -> None:
    """Refuse an empty path, which would mean the current folder.

    Raises:
        ConfigError: it is empty.
    """
    if not path:
        raise ConfigError("a path", "an empty one", "Name a file or folder; the current folder is called `.`.")


def check_writable(directory: Path) -> None:
    """Fail now rather than after a long scan; creates nothing that stays.

    Raises:
        StorageError: a report could not be written to this folder.
    """
    with _as_storage_error(directory):
        home = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
        probe = home / f"{STAGING}{secrets.token_hex(6)}"
        try:
            _write_synced(probe, b"")
        finally:
            if home.is_dir():
                probe.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """The same for a file that will be written.

    Raises:
        StorageError: it could not be, as where a folder is.
    """
    with _as_storage_error(path):
        folder = path.is_dir()
    if folder:
        raise StorageError(f"a place for a file at {path}", "a folder", "Name a file in it, or another place.")
    check_writable(path.parent)


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """A hidden folder inside ``home`` that is gone afterwards, with the parents made for it if that failed."""
    made = [folder for folder in (home, *home.parents) if not folder.exists()]
    staging = home / f"{STAGING}{secrets.token_hex(6)}"
    done = False
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_stale(home)
        staging.mkdir()
        yield staging
        done = True
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in () if done else made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _remove_stale(home: Path) -> None:
    for left in home.glob(f"{STAGING}*"):
        with suppress(OSError):  # another process may be removing it too
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _as_storage_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            expected=f"a place that can be written to at {target}",
            found=f"{error.strerror or error} ({error.filename or target})",
            remedy="Choose another folder, or give this one write access and free space.",
        ) from error


# ------------------------------------------------------------------ JSON


def record_json(record: Record) -> bytes:
    """A record as JSON: six significant digits, null for what is not finite, number series on one line.

    Everything outside ASCII is escaped, so that look-alike and invisible characters show.
    """
    return (_pretty(_rounded(record.model_dump(mode="json"))) + "\n").encode("ascii")


R = TypeVar("R", bound=Record)


def read_file(path: Path, what: str, remedy: str) -> bytes:
    """All of a file.

    Args:
        what: what is expected at the path, in words.
        remedy: what to do where it is not there.

    Raises:
        StorageError: the file can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{what} at {path}", error.strerror or str(error), remedy) from error


def read_record(path: Path, kind: type[R], what: str, remedy: str) -> R:
    """A record from a JSON file that people write, in UTF-8 with or without a byte order mark.

    Args:
        what: the record in words, for errors.

    Raises:
        StorageError: the file can't be read.
        ConfigError: it holds something else.
    """
    raw = read_file(path, f"{what} that can be read", "Check the path and your rights.")
    try:
        return kind.model_validate(json.loads(raw.decode("utf-8-sig")))
    except ValidationError as error:
        raise ConfigError(f"{what} in {path}", first_error(error), remedy) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} as JSON in {path}", str(error), remedy) from error


def read_report(path: Path) -> ScanReport:
    """Read a report from its folder or from its report.json.

    Raises:
        StorageError: there is no such file, or it can't be read.
        ConfigError: it is no report, or one of a schema version that this release does not know.
    """
    file = path / REPORT if path.is_dir() else path
    raw = read_file(file, "a report", "Name a folder or report.json that a scan wrote.")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"JSON in {file}", str(error), "Name a report.json that a scan wrote.") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not _readable(version):
        raise ConfigError(
            expected=f"a report of schema version {SCHEMA_VERSION} or an earlier {_major()}.x in {file}",
            found=repr(version),
            remedy="Scan again, or read it with the release of amdet that wrote it.",
        )
    try:
        return ScanReport.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            expected=f"the fields of a schema {version} report in {file}",
            found=first_error(error),
            remedy="The file was edited or damaged; scan again.",
        ) from error


def report_files(folder: Path) -> set[str]:
    """Names of the files of which a report in a folder is made; none where there is no report."""
    try:
        read_report(folder)
    except AmdetError:
        return set()
    with _as_storage_error(folder):
        files = [file for file in folder.iterdir() if file.is_file() and file.stat().st_size <= LARGEST_FEATURE]
    return {file.name for file in files if any(fnmatchcase(file.name, pattern) for pattern in OWN)}


def first_error(error: ValidationError) -> str:
    """How many fields are wrong, and the first of them in words."""
    first = error.errors()[0]
    return f"{error.error_count()} error(s), first {'.'.join(map(str, first['loc']))}: {first['msg']}"


def _major() -> int:
    return int(SCHEMA_VERSION.split(".")[0])


def _readable(version: object) -> bool:
    """Whether a report of this version can be read: the same major version, no later minor one."""
    known = tuple(int(part) for part in SCHEMA_VERSION.split("."))
    parts = version.split(".") if isinstance(version, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        return False
    return int(parts[0]) == known[0] and int(parts[1]) <= known[1]


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _pretty(value: object, indent: str = "") -> str:
    """Two-space indented JSON in which a list of numbers takes one line."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key)}: {_pretty(item, inner)}" for key, item in value.items()]
        return "{\n" + inner + f",\n{inner}".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, str | dict | list) for item in value):
        return "[\n" + inner + f",\n{inner}".join(_pretty(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value)
