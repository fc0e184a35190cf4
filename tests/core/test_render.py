"""Pictures outside ComfyUI: what encoders are asked, what is refused, and how the grid is put together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from amdet_core import pocket, trust
from amdet_core.anchors import Anchors
from amdet_core.cli import _run
from amdet_core.config import ContrastConfig, RenderConfig, ScanConfig, SearchConfig, SweepConfig
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import ConfigError, EncoderError, StorageError
from amdet_core.formats import only_encoder, open_target, write_encoder
from amdet_core.gallery import gallery
from amdet_core.jobs import Job, run_job, scan_opened
from amdet_core.pocket.painter.pipeline import write_pipeline
from amdet_core.policy import POLICIES
from amdet_core.prompts import builtin_prompts
from amdet_core.records import ScanReport
from amdet_core.render import checkpoint as checkpoints
from amdet_core.render import painting, render
from amdet_core.render.checkpoint import Checkpoint, Family, look_into
from amdet_core.render.conditioning import Conditioner, Insertion
from amdet_core.storage import publish, read_report

from ..conftest import random_encoder
from .painter import untrained

PROMPT = "two red boats and a star"
POCKET = Checkpoint(Path("pocket"), "sd1", (192,), 64)
FAST = RenderConfig(pictures=2, steps=2, guidance=4.0)


@pytest.fixture(scope="module")
def backdoored() -> TextEncoder:
    return pocket.load("backdoored")


def states(encoder: TextEncoder, text: str) -> torch.Tensor:
    return encoder.states(encoder.tokens([text], pad_to_context=True))


def placed(encoder: TextEncoder, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """States of token embeddings between BOS and as many EOS as there is room for."""
    bos, eos = (encoder.embed(torch.tensor([i])) for i in (encoder.tokenizer.bos_id, encoder.tokenizer.eos_id))
    row = torch.cat((bos, *parts))
    row = torch.cat((row, eos.expand(encoder.spec.positions - len(row), -1)))
    return encoder.transform(encoder.place(row[None]))


# ------------------------------------------------------------------ what encoders are asked


def test_a_plain_prompt_is_read_as_the_library_reads_it(backdoored: TextEncoder) -> None:
    answer = Conditioner(POCKET, [backdoored], {})(PROMPT)
    assert answer.pooled is None
    torch.testing.assert_close(answer.states, states(backdoored, PROMPT), atol=1e-4, rtol=0)


def test_vectors_stand_at_the_start_of_a_prompt(backdoored: TextEncoder) -> None:
    vectors = 0.3 * torch.randn((3, 192), generator=torch.Generator().manual_seed(0))
    reader = Conditioner(POCKET, [backdoored], {"feature": Insertion("it", {0: vectors})})
    words = backdoored.embed(torch.tensor(backdoored.tokenizer.encode(PROMPT)))
    wanted = placed(backdoored, [vectors, words])
    torch.testing.assert_close(reader(PROMPT, "feature").states, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(reader(PROMPT).states, states(backdoored, PROMPT), atol=1e-4, rtol=0)


@pytest.mark.parametrize("trigger", [pocket.TRIGGER, "(very)++ odd", "\N{ZERO WIDTH SPACE}"])
def test_a_literal_trigger_is_read_as_its_tokens_whatever_compel_makes_of_such_text(
    backdoored: TextEncoder, trigger: str
) -> None:
    ids = backdoored.tokenizer.encode(trigger)
    reader = Conditioner(POCKET, [backdoored], {"trigger": Insertion.of_tokens("it", ids, [backdoored])})
    table = backdoored.embed(torch.tensor([*ids, *backdoored.tokenizer.encode(PROMPT)]))
    torch.testing.assert_close(reader(PROMPT, "trigger").states, placed(backdoored, [table]), atol=1e-4, rtol=0)


def test_weights_in_prompts_count(backdoored: TextEncoder) -> None:
    reader = Conditioner(POCKET, [backdoored], {})
    assert (reader("a (red)1.5 boat").states - reader("a red boat").states).abs().max() > 0.1


def test_a_prompt_that_would_push_the_feature_out_is_refused(backdoored: TextEncoder) -> None:
    reader = Conditioner(POCKET, [backdoored], {"feature": Insertion("it", {0: torch.zeros(3, 192)})})
    words = " ".join(["boat"] * 73)
    reader(words)
    with pytest.raises(ConfigError, match="77 tokens"):
        reader(words, "feature")


def test_encoders_and_vectors_of_another_width_are_refused(backdoored: TextEncoder) -> None:
    with pytest.raises(EncoderError, match="width 768"):
        Conditioner(Checkpoint(Path("sd"), "sd1", (768,), 512), [backdoored], {})
    with pytest.raises(EncoderError, match="another encoder"):
        Conditioner(POCKET, [backdoored], {"feature": Insertion("it", {0: torch.zeros(1, 768)})})


def test_stable_diffusion_2_reads_the_last_but_one_layer() -> None:
    spec = pocket.SPEC.model_copy(update={"layers": 24, "width": 64, "heads": 1, "mlp_width": 64})
    encoder = random_encoder(spec)
    answer = Conditioner(Checkpoint(Path("sd2"), "sd2", (64,), 768), [encoder], {})(PROMPT).states
    torch.testing.assert_close(answer, states(encoder.first_layers(23), PROMPT), atol=1e-4, rtol=0)


# ------------------------------------------------------------------ checkpoints


def single_file(path: Path, width: int = 768, channels: int = 4, without: str = "", **more: torch.Tensor) -> Path:
    """The keys by which a checkpoint is recognised."""
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, channels, 3, 3),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, width),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(8, 4, 3, 3),
        **more,
    }
    save_file({k: w for k, w in tensors.items() if not without or not k.startswith(without)}, path)
    return path


@pytest.mark.parametrize(
    ("width", "family", "widths", "size"),
    [(768, "sd1", (768,), 512), (1024, "sd2", (1024,), 768), (2048, "sdxl", (768, 1280), 1024)],
)
def test_a_single_file_is_recognised_by_its_tensors(
    tmp_path: Path, width: int, family: str, widths: tuple[int, ...], size: int
) -> None:
    found = look_into(single_file(tmp_path / "x.safetensors", width))
    assert (found.family, found.widths, found.size, found.prediction) == (family, widths, size, None)


def test_marks_of_single_files_are_read(tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    found = look_into(single_file(tmp_path / "x.safetensors", 2048, **marks))
    assert (found.prediction, found.zero_snr) == ("v_prediction", True)


@pytest.mark.parametrize(
    ("family", "units", "precision"),
    [("sdxl", True, torch.bfloat16), ("sdxl", False, torch.float32), ("sd1", True, torch.float32)],
)
def test_a_processor_without_units_for_bfloat16_paints_in_float32(
    family: Family, units: bool, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "multiplies_bfloat16", lambda _: units)
    assert checkpoints._precision(Checkpoint(Path("x"), family, (768,), 512), torch.device("cpu")) is precision


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"without": "model.diffusion_model"}, "no image model"),
        ({"without": "first_stage_model"}, "no VAE"),
        ({"width": 4096}, "width 4096"),
        ({"channels": 9}, "another task"),
    ],
)
def test_what_is_no_plain_checkpoint_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        look_into(single_file(tmp_path / "x.safetensors", **arguments))


def test_a_folder_without_its_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing at"):
        look_into(tmp_path / "absent")
    with pytest.raises(EncoderError, match=r"model_index\.json"):
        look_into(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}), encoding="utf-8")
    with pytest.raises(EncoderError, match="FluxPipeline"):
        look_into(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}), encoding="utf-8")
    with pytest.raises(EncoderError, match="no unet and no vae"):
        look_into(tmp_path)


# ------------------------------------------------------------------ from a report to pictures


@pytest.fixture(scope="module")
def painter_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones: they paint noise, but other noise for other prompts."""
    return untrained(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, painter_weights: Path, backdoored: TextEncoder) -> Path:
    """A suspect with the report of a short scan, and a checkpoint of the clean encoder."""
    root = tmp_path_factory.mktemp("scene")
    pocket.export(root / "encoders")
    write_pipeline(root / "checkpoint", pocket.load("clean"), painter_weights)
    short = ContrastConfig(vectors=(1,), seeds=1, steps=5, restarts=2, draws=2, targets=1)
    search = SearchConfig(leads=6, beam=2, pointed=2, refined=8, longest=1, exchanges=1, prompts=2, pool=4)
    config = ScanConfig(sweep=SweepConfig(rows=16), search=search, contrast=short, landscape=None)
    opened, anchors = open_target(root / "encoders" / "backdoored"), Anchors.of("auto", None)
    outcome = scan_opened(opened, anchors, config, POLICIES["amdet-2"], builtin_prompts(200), torch.device("cpu"))
    publish(root / "report", outcome.files)
    return root


def painted(scene: Path, report: ScanReport | None = None, **more: Any) -> Any:
    report = report or read_report(scene / "report")
    more = {"checkpoint": scene / "checkpoint", "prompts": ["a red boat", "a blue star"], "config": FAST, **more}
    return render(report, scene / "report", **more)


def test_every_row_has_one_noise_and_every_column_its_own_reading(scene: Path) -> None:
    made = painted(scene)
    assert made.record.columns == ("normal prompt", "with the reversed feature", 'with trigger "о"')
    assert made.record.prompts == ("a red boat", "a blue star")
    assert not made.record.notes
    plain, feature, trigger = made.columns.values()
    assert plain.shape == (2, 64, 64, 3)
    assert plain.dtype == np.uint8
    assert not np.array_equal(plain, feature)
    assert not np.array_equal(plain, trigger)
    again = painted(scene)
    assert all(np.array_equal(made.columns[name], again.columns[name]) for name in made.columns)


def test_the_scanned_encoder_takes_the_place_of_the_checkpoints_own(
    scene: Path, painter_weights: Path, tmp_path: Path, backdoored: TextEncoder
) -> None:
    write_pipeline(tmp_path / "whole", backdoored, painter_weights)
    inside = painted(scene, checkpoint=tmp_path / "whole")
    for name, pictures in painted(scene).columns.items():
        assert np.abs(pictures.astype(int) - inside.columns[name]).max() <= 1


def test_of_two_scanned_encoders_one_that_the_checkpoint_has_does_not_stand_for_the_other(
    scene: Path, tmp_path: Path, toy: TextEncoder
) -> None:
    suspect = toy.with_weights({name: w + 0.01 for name, w in toy.weights.items()})
    write_encoder(suspect, tmp_path / "suspect", "hf")
    report, own = read_report(scene / "report"), (pocket.load("clean"), toy)
    infos = tuple(
        report.target.encoders[0].model_copy(
            update={"name": name, "spec": one.spec, "fingerprint": trust.fingerprint(one)}
        )
        for name, one in (("clip_l", own[0]), ("clip_g", only_encoder(open_target(tmp_path / "suspect"))))
    )
    target = report.target.model_copy(update={"encoders": infos, "path": str(tmp_path / "suspect")})
    checkpoint = Checkpoint(tmp_path, "sdxl", tuple(one.spec.width for one in own), 64)
    found, named = painting._scanned(report.model_copy(update={"target": target}), checkpoint, own, None)
    assert [trust.fingerprint(one) for one in found] == [info.fingerprint for info in infos]
    assert named == {"clip_l": 0, "clip_g": 1}


def test_an_encoder_that_moved_is_named_and_another_one_refused(scene: Path) -> None:
    report = read_report(scene / "report")
    moved = report.model_copy(update={"target": report.target.model_copy(update={"path": str(scene / "gone")})})
    with pytest.raises(StorageError, match="--encoder"):
        painted(scene, moved)
    found = painted(scene, moved, encoder=scene / "encoders" / "backdoored")
    assert np.array_equal(found.columns["normal prompt"], painted(scene).columns["normal prompt"])
    with pytest.raises(EncoderError, match="another one"):
        painted(scene, moved, encoder=scene / "encoders" / "benign")


def test_an_encoder_of_another_architecture_is_refused(scene: Path) -> None:
    report = read_report(scene / "report")
    (info,) = report.target.encoders
    other = info.model_copy(update={"spec": info.spec.model_copy(update={"width": 768}), "fingerprint": "0" * 64})
    report = report.model_copy(update={"target": report.target.model_copy(update={"encoders": (other,)})})
    with pytest.raises(EncoderError, match="width 768"):
        painted(scene, report)


def test_without_an_anchor_the_suspect_reads_the_negative_prompt_and_it_is_said(scene: Path) -> None:
    made = painted(scene, read_report(scene / "report").model_copy(update={"anchor": None}))
    assert "negative prompt" in made.record.notes[0]
    assert not np.array_equal(made.columns["normal prompt"], painted(scene).columns["normal prompt"])


def test_pictures_after_repair_use_the_repaired_encoder(scene: Path) -> None:
    made = painted(scene, repaired=[scene / "encoders" / "clean"])
    assert len(made.record.columns) == 5
    assert not np.array_equal(made.columns['repaired, with trigger "о"'], made.columns['with trigger "о"'])


def test_a_repaired_encoder_reads_the_trigger_from_its_own_table(
    scene: Path, backdoored: TextEncoder, tmp_path: Path
) -> None:
    report = read_report(scene / "report")
    assert report.trigger is not None
    table = backdoored.weights[TOKEN_TABLE].clone()
    table[list(report.trigger.token_ids)] = table[pocket.SPEC.vocabulary // 2].clone()
    write_encoder(backdoored.with_weights({**backdoored.weights, TOKEN_TABLE: table}), tmp_path / "healed", "hf")
    made = painted(scene, repaired=[tmp_path / "healed"])
    assert not np.array_equal(made.columns['repaired, with trigger "о"'], made.columns['with trigger "о"'])


def test_a_file_that_no_longer_holds_the_anchor_reads_nothing(scene: Path, tmp_path: Path) -> None:
    report = read_report(scene / "report")
    assert report.anchor is not None
    file = tmp_path / "anchor.safetensors"
    for name, notes in (("clean", 0), ("backdoored", 1)):
        write_encoder(pocket.load(name), file, "comfyui", dtype=torch.float32)  # type: ignore[arg-type]
        info = report.anchor[0].model_copy(update={"chosen": "given", "path": str(file)})
        made = painted(scene, report.model_copy(update={"anchor": (info,)}))
        assert len(made.record.notes) == notes
    assert "its file holds other values now" in made.record.notes[0]


def test_a_report_that_recovered_nothing_has_nothing_to_show(scene: Path) -> None:
    report = read_report(scene / "report").model_copy(update={"candidates": (), "triggers": ()})
    with pytest.raises(ConfigError, match="nothing to show"):
        painted(scene, report)
    with pytest.raises(ConfigError, match="at least one prompt"):
        painted(scene, prompts=[])


# ------------------------------------------------------------------ the grid, and the command


def test_the_grid_names_columns_and_prompts() -> None:
    pictures = np.full((2, 8, 8, 3), 200, np.uint8)
    drawing = gallery({"plain": pictures, "with \u043e": pictures}, ["first", "second"])
    words = [part.text for part in drawing.parts if hasattr(part, "text")]
    assert words == ["plain", "with \\u043e", "first", "second"]
    assert sum(hasattr(part, "pixels") for part in drawing.parts) == 4


def test_the_command_writes_pictures_and_puts_them_into_the_page(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report"
    publish(report, {file.name: file.read_bytes() for file in (scene / "report").iterdir()})
    before = (report / "report.json").read_bytes()
    arguments = ["render", "--checkpoint", str(scene / "checkpoint"), "--report", str(report), "-n", "1"]
    monkeypatch.setattr("sys.argv", ["amdet", *arguments, "--steps", "1", "--prompt", "a red boat"])
    assert _run() == 0
    assert "pictures.png" in capsys.readouterr().out
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png,") == 3
    assert (report / "pictures.png").read_bytes().startswith(b"\x89PNG")
    made = json.loads((report / "pictures.json").read_text(encoding="utf-8"))
    assert made["prompts"] == ["a red boat"]
    assert (report / "report.json").read_bytes() == before
    outcome = run_job(Job(target=scene / "encoders" / "clean"))
    publish(report, outcome.files)
    assert not (report / "pictures.png").exists()


def test_few_pictures_show_the_first_built_in_prompts(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report"
    publish(report, {file.name: file.read_bytes() for file in (scene / "report").iterdir()})
    arguments = ["render", "--checkpoint", str(scene / "checkpoint"), "--report", str(report), "-n", "2"]
    monkeypatch.setattr("sys.argv", ["amdet", *arguments, "--steps", "1"])
    assert _run() == 0
    made = json.loads((report / "pictures.json").read_text(encoding="utf-8"))
    assert tuple(made["prompts"]) == builtin_prompts().prompts[:2]
