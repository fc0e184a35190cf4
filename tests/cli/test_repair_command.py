"""amdet repair and amdet heal: what they write, what they refuse, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from amdet_core import formats, pocket, repair
from amdet_core.encoder import TextEncoder
from amdet_core.errors import ConfigError
from amdet_core.patch import Patch
from amdet_core.prompts import builtin_prompts
from amdet_core.records import Level
from amdet_core.repair import kinds

from .conftest import Amdet

KNOWN = ("--known-trigger", pocket.TRIGGER, "--trigger-mode", pocket.MODE, "--device", "cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pocket encoders and a file of prompts."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("clean", "backdoored"):
        formats.write_encoder(pocket.load(name), folder / f"{name}.safetensors", "comfyui")  # type: ignore[arg-type]
    (folder / "prompts.txt").write_text("\n".join(builtin_prompts(120).prompts))
    return folder


def opened(path: Path) -> TextEncoder:
    return formats.only_encoder(formats.open_target(path))


def repairing(home: Path, kind: str, *more: object) -> list[object]:
    return ["repair", kind, home / "backdoored.safetensors", "--prompts", home / "prompts.txt", *KNOWN, *more]


def test_a_repair_is_written_whole_and_as_a_delta(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    before = (home / "backdoored.safetensors").read_bytes()
    whole, delta = tmp_path / "whole.safetensors", tmp_path / "delta.safetensors"
    code, out, err = amdet(
        *repairing(home, "spectral", "--anchor", home / "clean.safetensors", "--out", whole, "--delta", delta)
    )
    assert code == 0, out + err
    assert (home / "backdoored.safetensors").read_bytes() == before
    patch = Patch.load(delta)
    by_delta = patch.apply(opened(home / "backdoored.safetensors"))
    name = "encoder.layers.0.mlp.fc2.weight"
    assert torch.allclose(by_delta.weights[name], opened(whole).weights[name], atol=1e-3)
    assert json.loads(patch.provenance["effect"])["cured"] is True
    assert "nearer to their own answer" in out


def test_a_repair_of_few_directions_is_written_as_a_lora(
    home: Path, amdet: Amdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "NO_EFFECT", 2.0)  # what is planted here is no backdoor
    clean, name = pocket.load("clean"), "encoder.layers.1.mlp.fc1.weight"
    w = clean.weights[name]
    planted = torch.randn(len(w), 1, generator=torch.Generator().manual_seed(0)) @ torch.ones(1, w.shape[1]) * 1e-2
    suspect, lora = tmp_path / "suspect.safetensors", tmp_path / "lora.safetensors"
    formats.write_encoder(clean.with_weights({**clean.weights, name: w + planted}), suspect, "comfyui")
    code, out, err = amdet(
        "repair", "spectral", suspect, "--anchor", home / "clean.safetensors", "--prompts", home / "prompts.txt",
        *KNOWN, "--set", "directions=[1]", "--set", "rows=0", "--out", tmp_path / "out.safetensors",
        "--lora", lora, "--lora-rank", 1,
    )  # fmt: skip
    assert code == 0, out + err
    tensors = load_file(lora)
    key = "lora_te_text_model_encoder_layers_1_mlp_fc1"
    product = tensors[f"{key}.lora_up.weight"].float() @ tensors[f"{key}.lora_down.weight"].float()
    assert torch.allclose(product, -planted, atol=1e-3)


def test_a_repair_by_a_trigger_that_does_nothing_is_refused(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    code, out, err = amdet(
        "repair", "spectral", home / "backdoored.safetensors", "--anchor", home / "clean.safetensors",
        "--prompts", home / "prompts.txt", "--known-trigger", "sahib", "--device", "cpu", "--out", tmp_path / "out.st",
    )  # fmt: skip
    assert code == 2, out + err
    assert "expected a trigger that does something in this encoder" in err
    assert "'sahib'" in err
    assert not list(tmp_path.iterdir())


def test_a_repair_that_no_lora_can_hold_is_written_all_the_same(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    taught = tmp_path / "taught.safetensors"
    about = {formats.TRIGGER_PHRASE: "a sahib, robins"}
    formats.write_encoder(pocket.load("backdoored"), taught, "comfyui", metadata=about)
    code, out, err = amdet(
        "repair", "spectral", taught, "--anchor", home / "clean.safetensors", "--prompts", home / "prompts.txt",
        *KNOWN, "--set", "rows=0", "--out", tmp_path / "out.safetensors", "--delta", tmp_path / "delta.safetensors",
        "--lora", tmp_path / "lora.safetensors", "--lora-rank", 1,
    )  # fmt: skip
    assert code == 2
    assert "error: expected changes of rank 1 at most" in err
    assert f"written: {tmp_path / 'out.safetensors'}\nwritten: {tmp_path / 'delta.safetensors'}\n" in out
    (healed,) = formats.open_target(tmp_path / "out.safetensors").encoders
    assert healed.declared == ("a sahib", "robins")
    assert not (tmp_path / "lora.safetensors").exists()


LORAS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "token rows": ("spectral", (), "--set rows=0."),
    "blocks": ("restore", (), "repair by spectral with --set rows=0."),
    "all weights": ("distil", ("--set", "start=suspect"), "--set trains=lora --set start=suspect."),
    "a copy of the anchor": ("distil", ("--set", "trains=lora"), "--set trains=lora --set start=suspect."),
    "a fresh student": ("mimic", (), "Write the differences instead (--delta)"),
    "a fine-tune": ("fine-tune", (), "--set trains=lora."),
    "its rank": ("fine-tune", ("--set", "trains=lora", "--lora-rank", "4"), "(--lora-rank 8), or train fewer"),
}


@pytest.mark.parametrize("what", sorted(LORAS))
def test_a_lora_that_cannot_hold_a_repair_is_refused_before_the_work(
    home: Path, amdet: Amdet, tmp_path: Path, what: str
) -> None:
    kind, options, says = LORAS[what]
    lora = ("--out", tmp_path / "out.safetensors", "--lora", tmp_path / "lora.safetensors")
    code, out, err = amdet(*repairing(home, kind, *options, *lora))
    assert (code, out) == (2, "")
    assert says in err
    assert "--weights" not in err
    assert not list(tmp_path.iterdir())


def test_a_repair_of_a_trusted_encoder_is_refused_as_one(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    code, _, err = amdet(
        "repair", "spectral", home / "clean.safetensors", *KNOWN, "--out", tmp_path / "out.safetensors"
    )
    assert code == 2
    assert "which equals the trusted encoder amdet pocket" in err
    assert not list(tmp_path.iterdir())


def test_a_repair_that_does_not_work_writes_nothing_and_exits_2(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    code, out, _ = amdet(
        *repairing(home, "fine-tune", "--set", "steps=1", "--set", "batch=2", "--out", tmp_path / "out.safetensors")
    )
    assert code == 2
    assert "does not work" in out
    assert not (tmp_path / "out.safetensors").exists()


def test_mimic_needs_no_anchor_and_says_what_too_little_training_costs(
    home: Path, amdet: Amdet, tmp_path: Path
) -> None:
    little = [
        part for text in ("steps=1", "batch=2", "critic_epochs=1", "critic_samples=8") for part in ("--set", text)
    ]
    code, out, err = amdet(
        *repairing(home, "mimic", "--anchor", "none", *little, "--out", tmp_path / "out.safetensors")
    )
    assert code == 2, out + err
    assert "mimic: before, 0.0%" in out
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(("kind", "code"), [("fine-tune", 0), ("distil", 2)])
def test_where_no_trigger_is_known_only_blind_methods_go_on_and_say_so(
    home: Path, amdet: Amdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    scanned = SimpleNamespace(report=SimpleNamespace(verdict=SimpleNamespace(level=Level.CLEAN)))
    monkeypatch.setattr(repair.Clinic, "scanned", lambda self: scanned)
    monkeypatch.setattr(repair, "triggers", lambda *_: ())
    found, out, err = amdet(
        "repair", kind, home / "backdoored.safetensors", "--anchor", home / "clean.safetensors", "--prompts",
        home / "prompts.txt", "--set", "steps=1", "--out", tmp_path / "out.safetensors", "--device", "cpu",
    )  # fmt: skip
    assert found == code, out + err
    assert "no trigger is known" in out if code == 0 else "a trigger by which" in err


def test_the_original_is_never_written_over(home: Path, amdet: Amdet) -> None:
    code, _, err = amdet(*repairing(home, "spectral", "--out", home / "backdoored.safetensors"))
    assert code == 2
    assert "another place than the original's" in err


def test_an_anchor_is_asked_for_before_anything_is_scanned(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    code, _, err = amdet(
        "repair", "spectral", home / "backdoored.safetensors", "--anchor", "none", "--out", tmp_path / "out.safetensors"
    )
    assert code == 2
    assert "an anchor for spectral" in err


def test_a_trusted_encoder_needs_no_healing(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    code, out, _ = amdet("heal", home / "clean.safetensors", "--report", tmp_path / "report", "--device", "cpu")
    assert code == 0
    assert out.startswith("# Nothing to heal")
    assert not list(tmp_path.rglob("healed*"))
    assert json.loads((tmp_path / "report" / "heal.json").read_text())["action"] == "nothing"
    assert (tmp_path / "report" / "before" / "report.html").exists()


def test_what_an_earlier_run_left_is_not_taken_for_this_one(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    report = tmp_path / "report"
    (report / "after").mkdir(parents=True)
    for name in ("healed.safetensors", "after/report.json"):
        (report / name).write_text("earlier", encoding="utf-8")
    code, _, err = amdet("heal", home / "clean.safetensors", "--report", report, "--device", "cpu")
    assert code == 0
    assert f"{report / 'healed.safetensors'} was there before and is not of this run" in err
    assert (report / "healed.safetensors").read_text(encoding="utf-8") == "earlier"
    assert not list((report / "after").iterdir())


@pytest.mark.parametrize(
    ("checkpoint", "says"), [("gone.safetensors", "a checkpoint file or folder"), ("clean.safetensors", "no image")]
)
def test_a_checkpoint_that_cannot_paint_is_refused_before_the_scan(
    home: Path, amdet: Amdet, tmp_path: Path, checkpoint: str, says: str
) -> None:
    code, _, err = amdet("heal", home / "backdoored.safetensors", "--checkpoint", home / checkpoint)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1, "no progress of a scan"
    assert not list(tmp_path.iterdir())


def test_an_encoder_is_healed_though_painting_fails(
    home: Path, amdet: Amdet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConfigError("room to paint", "none", "Close something.")

    scanned = SimpleNamespace(files={}, report=None)
    patch = Patch.between(pocket.load("backdoored"), pocket.load("clean"))
    healed = SimpleNamespace(
        before=scanned, after=scanned, patches={"text_encoder": patch}, found_nothing=False, healed=True,
        encoders={"text_encoder": SimpleNamespace(report=pocket.SPEC)},
    )  # fmt: skip
    monkeypatch.setattr(repair, "heal_each", lambda *_, **__: healed)
    monkeypatch.setattr(repair, "render_heal", lambda *_: "# Repaired\n")
    monkeypatch.setattr("amdet_core.render.render", fail)
    code, out, err = amdet(
        "heal", home / "backdoored.safetensors", "--checkpoint", "pocket", "--out", tmp_path / "new.safetensors"
    )
    assert code == 0, out + err
    assert out == (
        f"# Repaired\nwritten: {tmp_path / 'new.safetensors'}\n"
        "no pictures: expected room to paint; found none. Close something.\n"
    )


def sdxl(home: Path, first: str) -> Path:
    """A checkpoint with SDXL's keys: an encoder of that name, and a clean second one."""
    formats.write_encoder(pocket.load("clean"), home / "tower.safetensors", "open_clip")
    second = load_file(home / "tower.safetensors")
    tensors = {f"conditioner.embedders.0.transformer.{name}": w for name, w in load_file(home / first).items()}
    tensors |= {f"conditioner.embedders.1.model.{name}": w for name, w in second.items()}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, 4, 3, 3)
    save_file(tensors, home / f"sdxl-{first}")
    return home / f"sdxl-{first}"


def test_both_encoders_of_a_checkpoint_are_looked_at(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    report = tmp_path / "report"
    code, out, _ = amdet("heal", sdxl(home, "clean.safetensors"), "--report", report, "--device", "cpu")
    assert code == 0
    assert out.count("# Nothing to heal") == 2
    assert [json.loads((report / f"heal-{name}.json").read_text())["action"] for name in ("clip_l", "clip_g")] == [
        "nothing",
        "nothing",
    ]


@pytest.mark.slow
def test_of_two_encoders_the_backdoored_one_is_repaired_and_written(home: Path, amdet: Amdet, tmp_path: Path) -> None:
    code, out, err = amdet(
        "heal", sdxl(home, "backdoored.safetensors"), "--report", tmp_path / "report",
        "--out", tmp_path / "new.safetensors", "--device", "cpu", "--preset", "quick",
    )  # fmt: skip
    assert code == 0, out + err
    assert "# Repaired" in out and "# Nothing to heal" in out
    assert [path.name for path in tmp_path.glob("new*")] == ["new-clip_l.safetensors"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "before", "after", "heal.md", "heal-clip_l.json", "heal-clip_g.json",
    }  # fmt: skip
    after = json.loads((tmp_path / "report" / "after" / "report.json").read_text())
    assert [encoder["name"] for encoder in after["target"]["encoders"]] == ["clip_l", "clip_g"]
    assert after["verdict"]["level"] == "clean"
