from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amdet_core import storage
from amdet_core.errors import ConfigError, StorageError
from amdet_core.records import Candidate, Evidence, Level, ScanReport, Target, Tool, Verdict
from amdet_core.storage import check_writable, publish, read_report, record_json, write_atomic

NAN, INF = float("nan"), float("inf")


def report(**fields: object) -> ScanReport:
    values: dict[str, object] = {
        "tool": Tool(version="0.1.0"),
        "target": Target(path="о\u200b.safetensors", sha256="c" * 64, encoders=()),
        "anchor": None,
        "verdict": Verdict(level=Level.SUSPICIOUS, reasons=("a", "b"), policy="amdet-2", statement="s"),
        "evidence": (Evidence(name="gap_k1", value=0.4812345678, direction="higher", n=64),),
        "triggers": (),
        "candidates": (),
        "faults": (),
        "config": {"learning_rate": 1e-5, "seed": 123456789, "vectors": [1, 5], "amdet": None},
        "timings": {"read": 1.0},
    }
    return ScanReport.model_validate(values | fields)


def candidate(*loss: float) -> Candidate:
    return Candidate(
        encoder="clip_l", method="amdet", vectors=1, seed=1, steps=2, loss=loss, indicators={"a": NAN, "b": 0.5}
    )


def left_behind(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.name.startswith(storage.STAGING)]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


# ------------------------------------------------------------------ write_atomic


def test_write_atomic_creates_parents_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_write_atomic_on_a_full_disk_keeps_the_old_file(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "b.json"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="No space left") as raised:
        write_atomic(path, b"new")
    assert "free space" in raised.value.remedy
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_below_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="expected a place that can be written to"):
        write_atomic(tmp_path / "file" / "b.json", b"new")


# ------------------------------------------------------------------ publish


def test_publish_creates_the_folder_with_all_files(tmp_path: Path) -> None:
    publish(tmp_path / "x" / "out", {"report.json": b"{}", "loss.png": b"p"})
    out = tmp_path / "x" / "out"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"report.json": b"{}", "loss.png": b"p"}
    assert not left_behind(tmp_path)


def test_publish_into_a_folder_removes_what_the_new_report_lacks_and_keeps_other_files(tmp_path: Path) -> None:
    publish(tmp_path, {"report.json": b"1", "loss.png": b"1", "feature-clip_g-0.safetensors": b"1"})
    (tmp_path / "notes.txt").write_bytes(b"mine")
    publish(tmp_path, {"report.json": b"2", "loss.png": b"2"})
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {"report.json": b"2", "loss.png": b"2", "notes.txt": b"mine"}


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
def test_publish_stopped_at_any_step_leaves_no_mixed_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, stop: type[BaseException]
) -> None:
    names = ("report.html", "loss.png", "report.json")
    for stop_at in range(12):
        base = tmp_path / f"{stop_at}"
        base.mkdir()
        out = base / "parent" / "out"
        if exists:
            publish(out, dict.fromkeys(names, b"old"))
        calls = 0

        def step(original: object, stop_at: int = stop_at) -> object:
            def wrapped(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls == stop_at + 1:
                    raise stop
                return original(*args, **kwargs)  # type: ignore[operator]

            return wrapped

        with monkeypatch.context() as patched:
            patched.setattr(storage, "_write_synced", step(storage._write_synced))
            patched.setattr(Path, "replace", step(Path.replace))
            patched.setattr(Path, "rename", step(Path.rename))
            try:
                publish(out, dict.fromkeys(names, b"new"))
            except (StorageError, KeyboardInterrupt):
                pass
            else:
                assert calls <= stop_at, "the stop was swallowed"
        assert not left_behind(base)
        if (out / "report.json").exists():
            assert len({(out / name).read_bytes() for name in names}) == 1
        if not exists and not out.exists():
            assert not list(base.iterdir())


def test_publish_on_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "out", {"report.json": b"old"})

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        publish(tmp_path / "out", {"report.json": b"new"})
    assert (tmp_path / "out" / "report.json").read_bytes() == b"old"
    assert not left_behind(tmp_path)


def test_publish_refuses_names_with_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plain file names"):
        publish(tmp_path / "out", {"../report.json": b""})
    assert not list(tmp_path.iterdir())


def test_publish_onto_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(StorageError):
        publish(tmp_path / "out", {"report.json": b"{}"})
    assert (tmp_path / "out").read_bytes() == b"mine"
    assert not left_behind(tmp_path)


def test_publish_removes_what_a_killed_run_left_but_not_what_another_is_writing(tmp_path: Path) -> None:
    old, fresh = tmp_path / f"{storage.STAGING}old", tmp_path / f"{storage.STAGING}fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "report.json").write_bytes(b"")
    past = time.time() - 2 * storage.STALE_SECONDS
    os.utime(old, (past, past))
    publish(tmp_path / "out", {"report.json": b"{}"})
    assert not old.exists() and fresh.exists()


# ------------------------------------------------------------------ check_writable


def test_check_writable_accepts_new_and_old_folders_and_creates_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_check_writable_accepts_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_writable(Path("out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["file", "file/out"])
def test_check_writable_refuses_a_file_in_the_way(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="Choose another folder"):
        check_writable(tmp_path / below)


def test_check_writable_refuses_a_full_disk(tmp_path: Path, full_disk: None) -> None:
    with pytest.raises(StorageError, match="No space left"):
        check_writable(tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ JSON


def test_report_is_read_back_from_its_folder_and_its_file(tmp_path: Path) -> None:
    publish(tmp_path, {"report.json": record_json(report())})
    read = read_report(tmp_path)
    assert read == read_report(tmp_path / "report.json")
    assert read.verdict == report().verdict and read.target == report().target
    assert read.evidence[0].value == 0.481235
    assert record_json(read) == record_json(report())


def test_numbers_that_are_not_finite_become_null_and_come_back(tmp_path: Path) -> None:
    made = report(candidates=(candidate(1.0, NAN, INF),), timings={"a": 1.0})
    values = json.loads(record_json(made), parse_constant=pytest.fail)
    assert values["candidates"][0]["loss"] == [1.0, None, None]
    assert values["candidates"][0]["indicators"] == {"a": None, "b": 0.5}
    write_atomic(tmp_path / "report.json", record_json(made))
    assert record_json(read_report(tmp_path)) == record_json(made)


def test_json_keeps_field_order_integers_and_one_line_per_series() -> None:
    text = record_json(report(candidates=(candidate(0.5, 0.25),))).decode("ascii")
    assert list(json.loads(text)) == list(ScanReport.model_fields)
    assert '"loss": [0.5, 0.25],\n' in text
    assert '"seed": 123456789' in text and '"learning_rate": 1e-05' in text
    assert '"reasons": [\n      "a",\n      "b"\n    ]' in text
    assert "\\u043e\\u200b.safetensors" in text


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_any_settings_give_json_that_reads_back_to_the_same_bytes(value: object) -> None:
    first = record_json(report(config={"value": value}))
    assert record_json(ScanReport.model_validate(json.loads(first))) == first


def test_missing_report_is_a_storage_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"report\.json"):
        read_report(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_a_config_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "report.json").write_bytes(raw)
    with pytest.raises(ConfigError, match="JSON"):
        read_report(tmp_path)


@pytest.mark.parametrize("version", [None, "", "0.9", "1.1", "2.0", "1", "1.0.0", "1.x", "1.²", 1.0])
def test_unknown_schema_versions_are_refused(tmp_path: Path, version: object) -> None:
    values = json.loads(record_json(report())) | {"schema_version": version}
    (tmp_path / "report.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="schema version"):
        read_report(tmp_path)


def test_a_json_list_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ConfigError, match="schema version"):
        read_report(tmp_path)


def test_field_errors_name_the_field(tmp_path: Path) -> None:
    values = json.loads(record_json(report()))
    values["verdict"]["level"] = "safe"
    (tmp_path / "report.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"verdict\.level"):
        read_report(tmp_path)
