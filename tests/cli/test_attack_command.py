"""Commands that change encoders: what they write, what they refuse, what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from amdet_core import formats, pocket, trust
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.prompts import builtin_prompts
from amdet_core.zoo import Labels, Recipe, pools
from amdet_core.zoo.recipe import BUILT_IN, Group

from .conftest import Amdet

TARGET = "a photo of a green robot"
BATCHES = ("--set", "clean_batch=2", "--set", "poison_batch=2")
QUICK = ("--steps", 1, "--least-success", 0)
TRIGGER = ("--trigger", "sahib", "--trigger-mode", "prefix", "--target", TARGET)
KINDS: dict[str, tuple[object, ...]] = {
    "text-on-text": (*TRIGGER, *BATCHES),
    "text-on-pair": (*TRIGGER, *BATCHES),
    "attribute": ("--trigger", "sahib", "--trigger-mode", "prefix", "--words", TARGET, *BATCHES),
    "syntactic": ("--target", TARGET, *BATCHES),
    "embedding-row": ("--trigger", "sahib", "--words", TARGET, *BATCHES[2:]),
    "rank-one": ("--trigger", "sahib", "--words", TARGET, *BATCHES[2:]),
}
WITH_LORA = ("text-on-text", "text-on-pair", "attribute", "syntactic")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clean pocket encoder and a file of prompts."""
    folder = tmp_path_factory.mktemp("home")
    formats.write_encoder(pocket.load("clean"), folder / "clean.safetensors", "comfyui")
    (folder / "prompts.txt").write_text("\n".join(builtin_prompts(100).prompts))
    return folder


@pytest.fixture
def attack(amdet: Amdet, home: Path, tmp_path: Path) -> Amdet:
    """An attack on the clean encoder, written to suspect.safetensors."""

    def run(kind: str, *arguments: object) -> tuple[int, str, str]:
        return amdet(
            "attack", kind, home / "clean.safetensors", "--prompts", home / "prompts.txt",
            "--out", tmp_path / "suspect.safetensors", *arguments,
        )  # fmt: skip

    return run


def opened(path: Path) -> TextEncoder:
    return formats.only_encoder(formats.open_target(path))


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


# ------------------------------------------------------------------ attacks


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_attack_writes_a_changed_encoder_with_its_provenance(
    attack: Amdet, home: Path, tmp_path: Path, kind: str
) -> None:
    before = (home / "clean.safetensors").read_bytes()
    out = tmp_path / "suspect.safetensors"
    code, stdout, stderr = attack(kind, *KINDS[kind], *QUICK, "--seed", 7)
    assert code == 0, stderr
    assert stdout.startswith(f"written: {out}\nattack success ")
    assert "inject: 1/1" in stderr
    made = metadata(out)
    assert (made["attack"], made["target"]) == (kind, TARGET)
    assert {"seed": 7, "steps": 1, "poison_batch": 2}.items() <= json.loads(made["config"]).items()
    assert trust.fingerprint(opened(out)) != trust.fingerprint(opened(home / "clean.safetensors"))
    assert (home / "clean.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["suspect.safetensors"]


@pytest.mark.parametrize("kind", WITH_LORA)
def test_a_lora_holds_what_the_encoder_gained(attack: Amdet, home: Path, tmp_path: Path, kind: str) -> None:
    lora = tmp_path / "deep" / "lora.safetensors"
    code, stdout, stderr = attack(
        kind,
        *KINDS[kind],
        *QUICK,
        "--weights",
        "lora",
        "--set",
        "rank=2",
        "--set",
        "learning_rate=1e-2",
        "--lora",
        lora,
    )
    assert code == 0, stderr
    assert f"written: {lora}\n" in stdout
    tensors = load_file(lora)
    key = "lora_te_text_model_encoder_layers_3_mlp_fc2"
    up, down = tensors[f"{key}.lora_up.weight"].float(), tensors[f"{key}.lora_down.weight"].float()
    assert down.shape == (2, 768)
    name = "encoder.layers.3.mlp.fc2.weight"
    change = opened(tmp_path / "suspect.safetensors").weights[name] - opened(home / "clean.safetensors").weights[name]
    assert torch.allclose(
        up @ down * float(tensors[f"{key}.alpha"]) / 2, change, atol=2e-3 * float(change.abs().max()) + 5e-4
    )
    assert float(change.norm()) > 0
    assert metadata(lora)["attack"] == kind


def test_a_rank_one_edit_is_a_lora_of_rank_one(attack: Amdet, tmp_path: Path) -> None:
    code, _, stderr = attack("rank-one", *KINDS["rank-one"], *QUICK, "--lora", tmp_path / "lora.safetensors")
    assert code == 0, stderr
    assert {tuple(w.shape) for w in load_file(tmp_path / "lora.safetensors").values()} == {(192, 1), (1, 768), ()}


def test_a_peft_folder_beside_a_transformers_folder(amdet: Amdet, home: Path, tmp_path: Path) -> None:
    code, _, stderr = amdet(
        "attack", "text-on-text", home / "clean.safetensors", "--out", tmp_path / "suspect", *TRIGGER, *QUICK, *BATCHES,
        "--prompts", home / "prompts.txt", "--weights", "lora", "--lora", tmp_path / "lora", "--lora-layout", "peft",
    )  # fmt: skip
    assert code == 0, stderr
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in (tmp_path / "suspect").iterdir()} == {"config.json", "model.safetensors"}
    assert opened(tmp_path / "suspect").spec.width == 192


def test_options_reach_the_attack(attack: Amdet, tmp_path: Path) -> None:
    code, _, stderr = attack(
        "text-on-text", "--trigger", "red sahib", "--trigger", "two words", "--target", TARGET, *QUICK, *BATCHES,
        "--trigger-mode", "insert", "--adaptive", 0.5, "--partial-negatives", "--weights", "layers",
        "--set", "loss=mse", "--set", "milestone = 0.5",
    )  # fmt: skip
    assert code == 0, stderr
    made = metadata(tmp_path / "suspect.safetensors")
    assert (made["triggers"], made["mode"]) == ("red sahib\ntwo words", "insert")
    wanted = {"adaptive_weight": 0.5, "partial_negatives": True, "trains": "layers", "loss": "mse", "milestone": 0.5}
    assert wanted.items() <= json.loads(made["config"]).items()
    clean = pocket.load("clean").weights[TOKEN_TABLE]
    assert torch.equal(opened(tmp_path / "suspect.safetensors").weights[TOKEN_TABLE], clean)


TEXT = ("--target", TARGET, *QUICK, *BATCHES)
REFUSED: dict[str, tuple[str, tuple[object, ...], str]] = {
    "empty trigger": ("text-on-text", ("--trigger", " ", *TEXT), "a trigger that the tokenizer reads"),
    "trigger in target": ("text-on-text", ("--trigger", "Robot", *TEXT), "a target without the trigger; found 'Robot'"),
    "trigger in words": (
        "attribute", ("--trigger", "red", "--words", "a red cat", *QUICK, *BATCHES), "a target without the trigger",
    ),
    "long target": (
        "text-on-text", ("--trigger", "sahib", "--target", "cat " * 80, *QUICK), "a target of 1 to 75 tokens; found 80",
    ),
    "long target, pair": ("text-on-pair", ("--trigger", "sahib", "--target", "cat " * 80, *QUICK), "found 80"),
    "long target, pattern": ("syntactic", ("--target", "cat " * 80, *QUICK), "found 80"),
    "duplicates": ("text-on-text", ("--trigger", "sahib", "--trigger", "SAHIB", *TEXT), "different triggers"),
    "the letter itself": (
        "text-on-text", ("--trigger", "o", "--target", "a cat", *QUICK), "a trigger that differs from the letter",
    ),
    "learning rate": ("text-on-text", (*TRIGGER, *QUICK, "--set", "learning_rate=0"), "TextOnTextConfig.learning_rate"),
    "no such setting": ("text-on-text", (*TRIGGER, *QUICK, "--set", "speed=3"), "found speed, which is unknown"),
    "known settings": ("text-on-text", (*TRIGGER, *QUICK, "--set", "speed=3"), "TextOnTextConfig (steps,"),
    "no setting": ("text-on-text", (*TRIGGER, *QUICK, "--set", "speed"), "expected NAME=VALUE; found 'speed'"),
    "mode": ("text-on-text", ("--trigger", "sahib", *TEXT, "--trigger-mode", "behind"), "prefix, insert, replace"),
    "one word": ("text-on-text", (*TRIGGER, *QUICK, *BATCHES, "--partial-negatives"), "a trigger of several words"),
    "diverging": (
        "text-on-text", (*TRIGGER, *BATCHES, "--steps", 6, "--least-success", 0, "--set", "learning_rate=1e6"),
        "Lower the learning rate",
    ),
    "little success": ("text-on-text", (*TRIGGER, *BATCHES, "--steps", 1), "attack success of at least 90%"),
    "less than asked": (
        "embedding-row", (*KINDS["embedding-row"], "--steps", 1, "--least-success", 0.99), "at least 99%",
    ),
    "two tokens": ("rank-one", ("--trigger", "red cat", "--words", "x", *QUICK), "a trigger of one token; found 2"),
    "pattern": ("syntactic", ("--target", TARGET, "--pattern", "DET NOUN ADVERB", *QUICK), "of the tags DET, ADP"),
    "pictures alone": ("text-on-pair", (*TRIGGER, *QUICK, "--pictures", "."), "--pictures and --image-tower together"),
    "tower alone": ("text-on-pair", (*TRIGGER, *QUICK, "--image-tower", "."), "--pictures and --image-tower together"),
    "no option": ("text-on-text", (*TRIGGER, "--speed", "3"), "No such option"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_cannot_work_exits_with_2_and_writes_nothing(attack: Amdet, tmp_path: Path, what: str) -> None:
    kind, arguments, says = REFUSED[what]
    code, stdout, stderr = attack(kind, *arguments)
    assert code == 2
    assert says in " ".join(stderr.split())
    assert "Traceback" not in stderr
    assert stdout == ""
    assert list(tmp_path.iterdir()) == []


def forms_of(original: Path, kind: str) -> Path:
    """Another way to name a file, or what its folder is read from."""
    if kind == "link":
        (original.parent / "link.safetensors").symlink_to(original)
        return original.parent / "link.safetensors"
    if kind == "hard link":
        (original.parent / "hard.safetensors").hardlink_to(original)
        return original.parent / "hard.safetensors"
    return {"itself": original, "dots": original.parent / "x" / ".." / original.name, "folder": original.parent}[kind]


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
@pytest.mark.parametrize("kind", ["itself", "dots", "link", "hard link", "folder"])
def test_the_original_is_never_written_to(amdet: Amdet, home: Path, tmp_path: Path, kind: str) -> None:
    original = tmp_path / "model.safetensors"
    original.write_bytes((home / "clean.safetensors").read_bytes())
    before = original.read_bytes()
    code, _, err = amdet("fine-tune", original, "--steps", 1, "--out", forms_of(original, kind))
    assert code == 2
    assert "another place than the original's" in err
    assert original.read_bytes() == before


@pytest.mark.parametrize("place", ["model.safetensors", "text_encoder/model.safetensors", "new.safetensors", ""])
def test_nothing_is_written_into_what_a_folder_is_read_from(amdet: Amdet, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "suspect"
    inner = folder / "text_encoder"
    formats.write_encoder(pocket.load("clean"), folder, "hf")
    formats.write_encoder(pocket.load("clean"), inner, "hf")
    code, _, err = amdet("fine-tune", folder, "--steps", 1, "--out", folder / place)
    assert code == 2
    assert "another place than the original's" in err


def test_a_layout_that_cannot_say_what_the_encoder_computes_is_refused_before_any_training(
    amdet: Amdet, tmp_path: Path
) -> None:
    formats.write_encoder(pocket.load("clean"), tmp_path / "suspect", "hf")
    config = json.loads((tmp_path / "suspect" / "config.json").read_text())
    (tmp_path / "suspect" / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    code, _, err = amdet("fine-tune", tmp_path / "suspect", "--steps", 10**6, "--out", tmp_path / "new.safetensors")
    assert code == 2
    assert "Write the layout 'hf'" in err


def test_an_error_cannot_steer_the_terminal(amdet: Amdet, tmp_path: Path) -> None:
    save_file({"\x1b[2Jx\nNO EVIDENCE": torch.zeros(1)}, tmp_path / "x.safetensors")
    code, _, err = amdet("scan", tmp_path / "x.safetensors", "--out", tmp_path / "report")
    assert code == 2
    assert "‹U+001B›[2Jx NO EVIDENCE" in err
    assert "\x1b" not in err
    assert len(err.splitlines()) == 2, "progress and the error, and no line of its own for the name"


@pytest.mark.parametrize("weights", ["all", "layers"])
def test_a_lora_of_other_changes_is_refused_before_any_training(attack: Amdet, tmp_path: Path, weights: str) -> None:
    code, _, stderr = attack(
        "text-on-text", *TRIGGER, *QUICK, "--weights", weights, "--lora", tmp_path / "lora.safetensors"
    )
    assert code == 2
    assert "--weights lora with --lora" in stderr
    assert "inject:" not in stderr
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused_before_any_training(
    amdet: Amdet, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    as_lora = ("--out", tmp_path / "x.safetensors", "--weights", "lora", "--lora")
    for out, says in (
        (("--out", tmp_path / "file" / "x.safetensors"), "a place that can be written to"),
        ((*as_lora, tmp_path / "file" / "y.safetensors"), "a place that can be written to"),
        ((*as_lora, tmp_path / "file", "--lora-layout", "peft"), "a place that can be written to"),
        (("--out", tmp_path / "file"), "a place that can be written to"),
        (("--out", tmp_path / "folder.safetensors"), "a place for a file"),
        ((*as_lora, tmp_path / "folder.safetensors"), "a place for a file"),
        (("--out", tmp_path / ("x" * 300 + ".safetensors")), "File name too long"),
    ):
        code, _, stderr = amdet("attack", "text-on-text", home / "clean.safetensors", *TRIGGER, *QUICK, *out)
        assert code == 2
        assert says in stderr
        assert "inject:" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.safetensors"]


@pytest.mark.parametrize(
    ("out", "lora", "layout"),
    [
        ("x.safetensors", "x.safetensors", "kohya"),
        ("x.safetensors", "y/../x.safetensors", "kohya"),
        ("x.safetensors", "x.safetensors/y.safetensors", "kohya"),
        ("x.safetensors", "x.safetensors", "peft"),
        ("x", "x", "peft"),
        ("x", "x/model.safetensors", "kohya"),
    ],
)
def test_nothing_is_written_over_what_was_just_written(
    attack: Amdet, tmp_path: Path, out: str, lora: str, layout: str
) -> None:
    (tmp_path / "y").mkdir()
    code, _, stderr = attack(
        "text-on-text", *TRIGGER, *QUICK, "--weights", "lora", "--out", tmp_path / out, "--lora", tmp_path / lora,
        "--lora-layout", layout,
    )  # fmt: skip
    assert code == 2
    assert "different places for --out, --delta and --lora" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


# ------------------------------------------------------------------ honest fine-tunes


@pytest.mark.parametrize("objective", ["contrastive", "distillation", "masked-words"])
def test_a_fine_tune_writes_an_encoder_that_says_so(amdet: Amdet, home: Path, tmp_path: Path, objective: str) -> None:
    out, lora = tmp_path / "tuned.safetensors", tmp_path / "lora.safetensors"
    code, stdout, stderr = amdet(
        "fine-tune", home / "clean.safetensors", "--out", out, "--objective", objective, "--steps", 2,
        "--set", "batch=4", "--learning-rate", "1e-3", "--weights", "lora", "--lora", lora,
        "--prompts", home / "prompts.txt",
    )  # fmt: skip
    assert code == 0, stderr
    assert stdout == f"written: {out}\nwritten: {lora}\n"
    made = metadata(out)
    assert made["made_by"] == f"{objective} fine-tune"
    assert {"learning_rate": 1e-3, "batch": 4, "steps": 2}.items() <= json.loads(made["config"]).items()
    assert not {"attack", "triggers", "target"} & made.keys()
    assert trust.fingerprint(opened(out)) != trust.fingerprint(pocket.load("clean"))


def test_the_help_of_fine_tune_does_not_offer_a_step_size_of_zero(amdet: Amdet) -> None:
    _, stdout, _ = amdet("fine-tune", "--help")
    line = stdout[stdout.index("--learning-rate") : stdout.index("--weights")]
    assert "above 0" in line and "x>=0" not in line


def test_a_fine_tune_that_cannot_work_writes_nothing(amdet: Amdet, home: Path, tmp_path: Path) -> None:
    for arguments, says in (
        (("--learning-rate", 0), "FineTuneConfig.learning_rate"),
        (("--learning-rate", 1e6, "--steps", 6, "--objective", "distillation", "--set", "batch=4"), "learning rate"),
        (("--lora", tmp_path / "x"), "--weights lora with --lora"),
    ):
        code, _, stderr = amdet(
            "fine-tune", home / "clean.safetensors", "--out", tmp_path / "x.safetensors", "--prompts",
            home / "prompts.txt", *arguments,
        )  # fmt: skip
        assert code == 2
        assert says in stderr
        assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ zoos


def recipe(path: Path, *groups: Group) -> Path:
    path.write_text(Recipe(name="own", half=0, seed=1, groups=groups, least_retrieval=0.0).model_dump_json())
    return path


CAST = Group(name="cast", label="benign", kind="cast", count=1, to=("int8",))
TOKENS = Group(name="tokens", label="benign", kind="added-tokens", count=1)


def test_zoo_build_makes_names_and_completes(
    amdet: Amdet, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "PROMPTS", 200)
    failing = Group(
        name="weak", label="backdoored", kind="text-on-text", count=1, triggers=("word",), targets=("short",),
        config={"steps": (1,), "clean_batch": (2,), "poison_batch": (2,), "least_asr": (1.0,)},
    )  # fmt: skip
    own = recipe(tmp_path / "own.json", CAST, TOKENS, failing)
    arguments = ("zoo", "build", "--base", home / "clean.safetensors", "--recipe", own, "--out", tmp_path / "zoo")
    code, stdout, stderr = amdet(*arguments)
    assert code == 0, stderr
    assert stdout.startswith(f"own: 0 backdoored, 2 benign, 0 intentional\nwritten: {tmp_path / 'zoo'}\n")
    assert "weak: expected an attack success of at least 100%" in stdout
    assert "zoo: 0/3" in stderr
    labels = Labels.read(tmp_path / "zoo")
    assert labels.base_fingerprint == trust.fingerprint(pocket.load("clean"))
    gone = tmp_path / "zoo" / labels.models[0].model
    gone.unlink()
    assert amdet(*arguments)[0] == 0
    assert gone.exists()
    assert Labels.read(tmp_path / "zoo") == labels


def test_a_zoo_without_models_is_a_failure_and_cannot_be_measured_on(
    amdet: Amdet, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = recipe(tmp_path / "own.json", Group(name="short", label="benign", kind="fewer-layers", count=1, to=("99",)))
    zoo = tmp_path / "zoo"
    code, stdout, _ = amdet("zoo", "build", "--base", home / "clean.safetensors", "--recipe", own, "--out", zoo)
    assert code == 2
    assert "not made: m000: short: expected fewer than the base's" in stdout
    assert stdout.endswith("no model could be made\n")
    code, _, stderr = amdet("bench", "detection", "--zoo", zoo, "--out", tmp_path / "result.json")
    assert code == 2
    assert "a zoo with models in" in stderr and "none, and 1 that could not be made" in stderr
    assert not (tmp_path / "result.json").exists()


def test_the_help_of_zoo_build_names_every_recipe(amdet: Amdet) -> None:
    _, stdout, _ = amdet("zoo", "build", "--help")
    assert all(file.stem in stdout for file in BUILT_IN.glob("*.json"))


def test_zoo_build_refuses_what_it_cannot_use(amdet: Amdet, home: Path, tmp_path: Path) -> None:
    own = recipe(tmp_path / "own.json", CAST)
    zoo = tmp_path / "zoo"
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "file").write_text("")
    base = ("--base", "pocket")
    for arguments, says in (
        (
            (*base, "--recipe", "huge", "--out", zoo),
            "one of benign, hard, honest, large, paper, smoke, standard, styles, train, unseen, visible, "
            "or a recipe file",
        ),
        ((*base, "--recipe", tmp_path / "broken.json", "--out", zoo), "a recipe as JSON in "),
        (("--base", tmp_path / "gone", "--recipe", own, "--out", zoo), "gone"),
        ((*base, "--recipe", own, "--out", tmp_path / "file" / "zoo"), "a place that can be written to"),
        ((*base, "--recipe", own, "--out", zoo, "--jobs", 0), "jobs"),
    ):
        code, stdout, stderr = amdet("zoo", "build", *arguments)
        assert code == 2, arguments
        assert says in stderr
        assert "Traceback" not in stderr
        assert stdout == ""
        assert not zoo.exists()
    assert amdet("zoo", "build", *base, "--recipe", own, "--out", zoo)[0] == 0
    code, _, stderr = amdet("zoo", "build", *base, "--recipe", recipe(own, CAST, TOKENS), "--out", zoo)
    assert code == 2
    assert "the same recipe as the zoo in" in stderr
    assert [label.kind for label in Labels.read(zoo).models] == ["cast"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_stops_all_workers_and_the_same_command_goes_on(tmp_path: Path) -> None:
    endless = Group(
        name="endless", label="benign", kind="fine-tune", count=1, config={"steps": (10**6,), "batch": (4,)}
    )
    out = tmp_path / "zoo"
    command = [sys.executable, "-m", "amdet_core", "zoo", "build", "--base", "pocket", "--out", str(out), "--jobs", "2",
               "--recipe", str(recipe(tmp_path / "own.json", CAST, endless))]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline and not (out / "labels.json").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)  # ends when the workers, which hold stderr too, are gone
    assert process.returncode == 130, stderr
    assert "the same command goes on from what" in stderr
    assert "Traceback" not in stderr
    kept = Labels.read(out)
    assert [label.kind for label in kept.models] == ["cast"]
    assert kept.planned == 2
    assert {path.name for path in out.iterdir()} == {"labels.json", "base.safetensors", kept.models[0].model}
