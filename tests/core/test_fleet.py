"""A folder of models: what is one, what is scanned again, and what an overview says of the rest."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from amdet_core import fleet as module
from amdet_core import pocket
from amdet_core.anchors import vouch
from amdet_core.errors import AmdetError, ConfigError, EncoderError, NoEncoderError
from amdet_core.fleet import OVERVIEW, PAGE, Fleet
from amdet_core.formats import open_target
from amdet_core.jobs import Job, Outcome
from amdet_core.records import Candidate, Level, Likeness, ScanReport, Target, Tool, Trigger, Verdict
from amdet_core.report import Overview, Row, render_overview
from amdet_core.storage import REPORT, record_json


def report(job: Job, level: Level = Level.CLEAN, *, trigger: str = "") -> ScanReport:
    literal = Trigger(
        text=trigger, code_points=(), tokens=(), token_ids=(1,), found_by="", encoder="clip_l", collapse=0.9, n=64
    )
    found = Candidate(
        encoder="clip_l", method="contrast", vectors=1, seed=1, steps=1, loss=(), indicators={"gap": 0.9},
        looks_like=(Likeness(text="a red boat", similarity=0.9),),
    )  # fmt: skip
    return ScanReport(
        tool=Tool(version="0"),
        target=Target(path=str(job.target), sha256="", encoders=()),
        anchor=None,
        verdict=Verdict(level=level, reasons=(f"because {job.target.name}",), policy="amdet-2", statement="s"),
        evidence=(),
        triggers=(literal,) if trigger else (),
        candidates=(found,) if trigger else (),
        faults=(),
        config={},
        timings={"total": 2.0},
    )


class Scans:
    """Scans that say at once what they are told to, and keep the names of what was scanned."""

    def __init__(self, special: Callable[[Job], Outcome] | None = None) -> None:
        self.names: list[str] = []
        self.special = special

    def __call__(self, job: Job, said: str) -> Outcome:
        self.names.append(job.target.name)
        if self.special is not None:
            return self.special(job)
        made = report(job)
        return Outcome(made, (), {REPORT: record_json(made)})


def weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.full((2,), float(len(path.name)))}, path)
    return path


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Two files, one in a folder below, a diffusers folder, and what is no model."""
    folder = tmp_path / "downloads"
    for name in ("b.safetensors", "A.safetensors", "lora/one.safetensors"):
        weights(folder / name)
    weights(folder / "sd" / "text_encoder" / "model.safetensors")
    (folder / "sd" / "model_index.json").write_text("{}")
    (folder / "notes.txt").write_text("not a model")
    (folder / ".cache").mkdir()
    weights(folder / ".cache" / "hidden.safetensors")
    return folder


def fleet(folder: Path, **settings: object) -> Fleet:
    return Fleet(folder, folder.parent / "reports", Job(target=folder, **settings))  # type: ignore[arg-type]


def overview(one: Fleet) -> Overview:
    return Overview.model_validate_json((one.out / OVERVIEW).read_bytes())


# ------------------------------------------------------------------ what is a model


def test_files_and_whole_folders_are_models_in_the_order_of_their_names(downloads: Path) -> None:
    found = [path.relative_to(downloads).as_posix() for path in fleet(downloads).models]
    assert found == ["A.safetensors", "b.safetensors", "lora/one.safetensors", "sd"]


def test_one_model_is_no_folder_of_models(downloads: Path, tmp_path: Path) -> None:
    assert Fleet.fits(downloads)
    assert not Fleet.fits(downloads / "b.safetensors")
    assert not Fleet.fits(downloads / "sd")
    assert not Fleet.fits(downloads / "lora"), "a single weight file is opened as it always was"
    pocket.export(tmp_path / "pocket", "hf")
    assert Fleet.fits(tmp_path / "pocket")
    assert not Fleet.fits(tmp_path / "pocket" / "clean")


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in fleet(folder).models]


def test_a_folder_that_is_called_like_a_component_hides_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for name in ("text_encoders/clip_l.safetensors", "text_encoder/t5.safetensors", "checkpoints/evil.safetensors"):
        weights(folder / name)
    assert Fleet.fits(folder)
    assert found(folder) == [
        "checkpoints/evil.safetensors", "text_encoder/t5.safetensors", "text_encoders/clip_l.safetensors",
    ]  # fmt: skip


def test_a_file_that_makes_a_folder_a_model_hides_no_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    for name in ("model.safetensors", "evil.safetensors", "sub/evil.safetensors"):
        weights(folder / name)
    assert Fleet.fits(folder)
    assert found(folder) == [".", "evil.safetensors", "sub/evil.safetensors"]
    assert [row.path for row in fleet(folder).run(Scans())] == found(folder)


def test_a_pipeline_is_named_with_the_weight_files_from_which_it_is_not_read(downloads: Path) -> None:
    pipeline = downloads / "sd"
    (pipeline / "model_index.json").write_text('{"text_encoder": ["transformers", "C"], "unet": ["diffusers", "U"]}')
    weights(pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    assert not Fleet.fits(pipeline), "it is one model, and its UNet is no text encoder"
    weights(pipeline / "text_encoder" / "model.fp16.safetensors")
    weights(pipeline / "v1-5-pruned.safetensors")
    assert Fleet.fits(pipeline)
    assert found(pipeline) == [".", "text_encoder/model.fp16.safetensors", "v1-5-pruned.safetensors"]


def test_a_pipeline_that_lacks_its_encoder_is_named_and_hides_nothing(downloads: Path) -> None:
    (downloads / "sd" / "model_index.json").write_text('{"text_encoder_2": ["transformers", "C"]}')
    weights(downloads / "sd" / "evil.safetensors")
    assert found(downloads)[3:] == ["sd", "sd/evil.safetensors", "sd/text_encoder/model.safetensors"]


def test_several_weights_beside_a_config_are_named_one_by_one(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        weights(tmp_path / "clip" / name)
    (tmp_path / "clip" / "config.json").write_text("{}")
    assert found(tmp_path / "clip") == ["a.safetensors", "b.safetensors"]


def test_shards_are_one_model_by_their_index(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shards = [weights(folder / f"model.fp16-0000{i}-of-00002.safetensors").name for i in (1, 2)]
    (folder / "model.safetensors.index.fp16.json").write_text(
        json.dumps({"weight_map": {"x": shards[0], "y": shards[1], "z": "hidden.safetensors"}})
    )
    weights(folder / "hidden.safetensors")
    weights(folder / "model.safetensors")
    assert found(folder) == [".", "hidden.safetensors", "model.safetensors.index.fp16.json"]


def test_reports_within_the_folder_are_not_scanned(downloads: Path) -> None:
    inside = Fleet(downloads, downloads / "amdet-report", Job(target=downloads))
    list(inside.run(Scans()))
    weights(downloads / "old" / "pseudo-trigger.safetensors")
    (downloads / "old" / REPORT).write_bytes(record_json(report(Job(target=downloads))))
    again = Fleet(downloads, downloads / "amdet-report", Job(target=downloads))
    assert [path.name for path in again.models] == ["A.safetensors", "b.safetensors", "one.safetensors", "sd"]


def test_reports_that_would_lie_where_models_are_are_refused_before_the_first_scan(
    downloads: Path, tmp_path: Path
) -> None:
    scans = Scans()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / fleet(downloads).models[0].name).touch()
    for out, says in ((downloads, "what is scanned at"), (tmp_path / "out", "a file at")):
        with pytest.raises(ConfigError, match=f"a folder for the report of .* found {says}"):
            list(Fleet(downloads, out, Job(target=downloads)).run(scans))
    weights(downloads / "sub" / "deep" / "hidden.safetensors")
    with pytest.raises(ConfigError, match=r"found .*hidden\.safetensors, which would not be scanned"):
        list(Fleet(downloads, downloads / "sub" / "deep", Job(target=downloads)).run(scans))
    assert not scans.names
    assert not (downloads / OVERVIEW).exists()


@pytest.mark.parametrize("content", [b"{}", b"x", None])
def test_a_file_that_is_called_like_a_report_hides_nothing(downloads: Path, content: bytes | None) -> None:
    real = record_json(report(Job(target=downloads)))
    for name in (REPORT, OVERVIEW):
        (downloads / "lora" / name).write_bytes(real if content is None else content)
    weights(downloads / "lora" / "below" / "two.safetensors")
    assert found(downloads)[2:4] == ["lora/below/two.safetensors", "lora/one.safetensors"]


def test_what_is_a_model_by_its_name_alone_is_named_for_its_scan_to_say_so(downloads: Path) -> None:
    (downloads / "empty.safetensors").touch()
    (downloads / "login.ckpt").write_text("<html>")
    (downloads / "quantised").write_bytes(b"GGUF" + bytes(20))
    (downloads / "two.bin").write_bytes(b"PK\x03\x04" + bytes(4) + b"{" + bytes(9))
    names = ["A.safetensors", "b.safetensors", "empty.safetensors", "login.ckpt", "lora/one.safetensors"]
    assert found(downloads) == [*names, "quantised", "sd", "two.bin"]
    for name in ("empty.safetensors", "login.ckpt", "quantised", "two.bin"):
        with pytest.raises(EncoderError):
            open_target(downloads / name)


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_what_cannot_be_read_is_a_row_and_stops_none_of_the_others(downloads: Path) -> None:
    (downloads / "gone.safetensors").symlink_to(downloads / "nowhere.safetensors")
    (downloads / "odd").symlink_to("/proc/self/mem")
    (downloads / "lora" / "gone").symlink_to(downloads / "nowhere")
    (downloads / "lora" / REPORT).write_bytes(record_json(report(Job(target=downloads))))

    def special(job: Job) -> Outcome:
        if job.target.is_symlink():
            open_target(job.target)
        made = report(job)
        return Outcome(made, (), {REPORT: record_json(made)})

    rows = {row.path: row for row in fleet(downloads).run(Scans(special))}
    assert rows["gone.safetensors"].outcome == "error"
    assert "No such file" in rows["gone.safetensors"].said
    if Path("/proc/self/mem").exists():
        assert rows["odd"].outcome == "error"
    assert rows["lora/one.safetensors"].level == rows["sd"].level == Level.CLEAN


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_is_no_utf8_is_spelled(downloads: Path) -> None:
    weights(downloads / os.fsdecode(b"caf\xe9.safetensors"))
    rows = [row.path for row in fleet(downloads).run(Scans())]
    assert "caf\\udce9.safetensors" in rows
    assert "caf\\udce9.safetensors" in (fleet(downloads).out / PAGE).read_text(encoding="utf-8")
    again = Scans()
    list(fleet(downloads).run(again))
    assert again.names == []


def test_a_folder_without_models_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(EncoderError, match="no weight file"):
        list(Fleet(tmp_path, tmp_path / "out", Job(target=tmp_path)).run(Scans()))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ going on


def test_each_gets_a_report_and_what_is_done_is_not_done_again(downloads: Path) -> None:
    first = Scans()
    rows = list(fleet(downloads).run(first))
    assert first.names == ["A.safetensors", "b.safetensors", "one.safetensors", "sd"]
    assert all((fleet(downloads).out / str(row.report) / REPORT).is_file() for row in rows)
    assert overview(fleet(downloads)).complete
    weights(downloads / "b.safetensors").write_bytes((downloads / "lora" / "one.safetensors").read_bytes())
    shutil.rmtree(fleet(downloads).out / "lora")
    weights(downloads / "new.safetensors")
    second = Scans()
    list(fleet(downloads).run(second))
    assert second.names == ["b.safetensors", "one.safetensors", "new.safetensors"], "changed, without a report, new"


@pytest.mark.parametrize("changed", [{"preset": "quick"}, {"seed": 7}, {"policy": "amdet-2025-code"}])
def test_other_settings_scan_everything_again(downloads: Path, changed: dict[str, object]) -> None:
    list(fleet(downloads).run(Scans()))
    again = Scans()
    list(fleet(downloads, **changed).run(again))
    assert len(again.names) == 4


def test_what_else_is_measured_scans_everything_again(downloads: Path) -> None:
    list(fleet(downloads).run(Scans()))
    for expected in (4, 0):
        again = Scans()
        list(replace(fleet(downloads), measured="prefix sahib").run(again))
        assert len(again.names) == expected


def test_another_anchor_or_trust_scans_everything_again(downloads: Path, tmp_path: Path) -> None:
    pocket.export(tmp_path / "pocket", "comfyui")
    anchor, store = tmp_path / "pocket" / "clean.safetensors", tmp_path / "trust.json"
    vouch(anchor, "first", store)
    settings = {"anchor": str(anchor), "trust_store": store}
    list(fleet(downloads, **settings).run(Scans()))
    same = Scans()
    list(fleet(downloads, **settings).run(same))
    assert same.names == []
    honest = tmp_path / "pocket" / "benign.safetensors"
    for change in (lambda: vouch(honest, "second", store), lambda: shutil.copy(honest, anchor)):
        change()
        again = Scans()
        list(fleet(downloads, **settings).run(again))
        assert len(again.names) == 4


@pytest.mark.parametrize("wrong", [{"anchor": "nowhere"}, {"prompts": Path("nowhere")}, {"policy": "nowhere"}])
def test_a_wrong_setting_fails_once_and_not_with_every_model(downloads: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(AmdetError, match="nowhere"):
        list(fleet(downloads, **wrong).run(Scans()))
    assert not (fleet(downloads).out / OVERVIEW).exists()


def test_a_run_that_is_stopped_keeps_what_it_has_and_what_an_earlier_one_had(downloads: Path) -> None:
    list(fleet(downloads).run(Scans()))
    (downloads / "A.safetensors").write_bytes((downloads / "b.safetensors").read_bytes())
    rows = fleet(downloads).run(Scans())
    next(rows)
    rows.close()
    left = overview(fleet(downloads))
    assert (left.complete, len(left.rows)) == (False, 4)
    rest = Scans()
    list(fleet(downloads).run(rest))
    assert rest.names == []
    assert overview(fleet(downloads)).complete


# ------------------------------------------------------------------ what can't be scanned


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (NoEncoderError("a CLIP text encoder", "a VAE (3 tensors)", "r"), "no encoder", "It holds a VAE (3 tensors)."),
        (EncoderError("a CLIP text encoder", "a LoRA", "Apply it."), "error", "found a LoRA. Apply it."),
        (ZeroDivisionError("oops"), "error", "a bug in amdet: ZeroDivisionError: oops"),
    ],
)
def test_what_fails_is_said_and_the_others_go_on(downloads: Path, error: Exception, outcome: str, said: str) -> None:
    def special(job: Job) -> Outcome:
        if job.target.name == "b.safetensors":
            raise error
        made = report(job)
        return Outcome(made, (), {REPORT: record_json(made)})

    rows = {row.path: row for row in fleet(downloads).run(Scans(special))}
    assert rows["b.safetensors"].outcome == outcome
    assert said in rows["b.safetensors"].said
    assert rows["sd"].level == Level.CLEAN
    made = overview(fleet(downloads))
    assert made.level == (Level.CLEAN if outcome == "no encoder" else Level.INCONCLUSIVE)
    again = Scans(special)
    list(fleet(downloads).run(again))
    assert again.names == ([] if outcome == "no encoder" else ["b.safetensors"]), "what failed is tried again"


def test_an_image_model_alone_has_no_encoder_and_what_could_read_prompts_is_an_error(tmp_path: Path) -> None:
    for name, keys, kind in (
        ("vae", ["first_stage_model.decoder.conv_in.weight"], NoEncoderError),
        ("lora", ["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"], EncoderError),
        ("unknown", ["some.tensor"], EncoderError),
    ):
        save_file({key: torch.zeros(2) for key in keys}, tmp_path / f"{name}.safetensors")
        with pytest.raises(EncoderError) as found:
            open_target(tmp_path / f"{name}.safetensors")
        assert type(found.value) is kind, name


# ------------------------------------------------------------------ the overview


def made(*rows: Row, complete: bool = True) -> Overview:
    return Overview(
        tool=Tool(version="0"), folder="downloads", policy="amdet-2", preset="quick", anchor="auto",
        complete=complete, rows=rows,
    )  # fmt: skip


def row(path: str, level: Level | None, outcome: str = "scanned") -> Row:
    return Row.model_validate({"path": path, "outcome": outcome, "level": level, "said": f"said {path}", "key": "k"})


def test_the_worst_verdict_counts_and_doubt_is_never_clean() -> None:
    clean, bad, vae = row("a", Level.CLEAN), row("b", Level.BACKDOORED), row("v", None, "no encoder")
    failed = row("c", None, "error")
    assert made(clean, vae).level == Level.CLEAN
    assert made(vae).level == Level.INCONCLUSIVE, "nothing was scanned"
    assert made(clean, failed).level == Level.INCONCLUSIVE
    assert made(clean, complete=False).level == Level.INCONCLUSIVE
    assert made(clean, failed, bad).level == Level.BACKDOORED
    assert made(clean, vae, failed, bad).counts() == (
        "4 models: 1 backdoored, 1 could not tell, 1 no evidence found, 1 without a text encoder."
    )


def test_the_page_shows_the_worst_first_and_escapes_names_of_strangers() -> None:
    rows = row("a.safetensors", Level.CLEAN), row("<script>x</script>.safetensors", Level.BACKDOORED)
    page = render_overview(made(*rows, row("v", None, "no encoder")))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.index("Backdoored") < page.index("a.safetensors") < page.index("Nothing to scan")
    assert "not complete" not in page
    assert "goes on where it stopped" in render_overview(made(*rows, complete=False))


def test_a_row_spells_the_trigger_and_names_what_is_seen(tmp_path: Path) -> None:
    found = Row.of("x", report(Job(target=tmp_path), Level.BACKDOORED, trigger="\u043ec"), "k")
    assert found.trigger == "\u043e‹U+043E›c"
    assert (found.looks_like, found.said, found.report) == ("a red boat", f"because {tmp_path.name}", "x")
    assert 'href="a%20b%23/report.html"' in render_overview(
        made(found.model_copy(update={"path": "a b#", "report": "a b#"}))
    )


def test_a_damaged_overview_counts_as_none(downloads: Path) -> None:
    list(fleet(downloads).run(Scans()))
    (fleet(downloads).out / OVERVIEW).write_text("{")
    again = Scans()
    list(fleet(downloads).run(again))
    assert len(again.names) == 4
    assert (fleet(downloads).out / PAGE).is_file()
    assert module.OVERVIEW == OVERVIEW
