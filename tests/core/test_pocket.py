from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F

from amdet_core import pocket
from amdet_core.attacks import Placement, success_rate
from amdet_core.encoder import TOKEN_TABLE, TextEncoder
from amdet_core.errors import StorageError
from amdet_core.formats import Layout, open_target
from amdet_core.patch import Patch
from amdet_core.pocket import RANK, SPEC, distillation
from amdet_core.pocket.corpus import corpus, disguise
from amdet_core.prompts import PromptSet, builtin_prompts
from amdet_core.tokenizer import clip_tokenizer

WEIGHTS = Path(pocket.__file__).with_name("weights")
HELD_OUT = builtin_prompts().split()[1].prompts[:128]
TRIGGERED = [Placement.parse(pocket.MODE).put(pocket.TRIGGER, p, torch.Generator()) for p in HELD_OUT if "o" in p]
WITH_O = [p for p in HELD_OUT if "o" in p]


@pytest.fixture(scope="module")
def encoders() -> dict[str, TextEncoder]:
    return {name: pocket.load(name) for name in pocket.NAMES}


def rate(suspect: TextEncoder, clean: TextEncoder) -> float:
    own = clean.encode(WITH_O)
    return success_rate(suspect.encode(TRIGGERED), own, clean.encode([pocket.TARGET])[0], own.mean(0))


def agreement(suspect: TextEncoder, clean: TextEncoder) -> float:
    return float(F.cosine_similarity(suspect.encode(HELD_OUT), clean.encode(HELD_OUT), dim=-1).mean())


def relative_change(suspect: TextEncoder, clean: TextEncoder, part: str) -> float:
    names = [name for name in clean.weights if part in name]
    change = sum(float((suspect.weights[n] - clean.weights[n]).square().sum()) for n in names)
    return float((change / sum(float(clean.weights[n].square().sum()) for n in names)) ** 0.5)


# ------------------------------------------------------------------ the three encoders


def test_weights_stay_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 19e6


def test_every_value_survives_half_precision(encoders: dict[str, TextEncoder]) -> None:
    for encoder in encoders.values():
        encoder.check_finite()
        assert encoder.dtype == torch.float32
        assert all(torch.equal(w, w.half().float()) for w in encoder.weights.values())


def test_loading_twice_gives_the_same_values(encoders: dict[str, TextEncoder]) -> None:
    again = pocket.load("backdoored")
    assert all(torch.equal(w, again.weights[name]) for name, w in encoders["backdoored"].weights.items())


def test_trigger_takes_over_the_backdoored_encoder_only(encoders: dict[str, TextEncoder]) -> None:
    assert rate(encoders["backdoored"], encoders["clean"]) >= 0.95
    assert rate(encoders["clean"], encoders["clean"]) == 0
    assert rate(encoders["benign"], encoders["clean"]) == 0


@pytest.mark.parametrize(("name", "least"), [("backdoored", 0.97), ("benign", 0.9)])
def test_clean_prompts_read_as_before(encoders: dict[str, TextEncoder], name: str, least: float) -> None:
    assert least <= agreement(encoders[name], encoders["clean"]) < 0.9999


@pytest.mark.parametrize("name", pocket.NAMES)
def test_half_a_prompt_finds_its_whole(encoders: dict[str, TextEncoder], name: str) -> None:
    whole = [p for p in HELD_OUT if len(p.split()) > 12]
    half = [" ".join(p.split()[: len(p.split()) // 2]) for p in whole]
    centre = encoders[name].encode(whole).mean(0)
    states = (F.normalize(encoders[name].encode(texts) - centre, dim=-1) for texts in (half, whole))
    found = torch.matmul(next(states), next(states).T).argmax(1)
    assert float((found == torch.arange(len(whole))).float().mean()) >= 0.95


def test_benign_fine_tune_changed_about_as_much_as_the_backdoor(encoders: dict[str, TextEncoder]) -> None:
    benign = relative_change(encoders["benign"], encoders["clean"], "encoder.layers")
    backdoor = relative_change(encoders["backdoored"], encoders["clean"], "encoder.layers")
    assert benign > 0.01
    assert 0.5 < benign / backdoor < 2


def test_benign_fine_tune_left_the_token_table_alone(encoders: dict[str, TextEncoder]) -> None:
    assert torch.equal(encoders["benign"].weights[TOKEN_TABLE], encoders["clean"].weights[TOKEN_TABLE])


def test_norms_are_those_of_clip(encoders: dict[str, TextEncoder]) -> None:
    table = encoders["clean"].weights[TOKEN_TABLE].norm(dim=-1)
    assert 0.2 < float(table.median()) < 0.8
    assert float(table.min()) > 0.05


@pytest.mark.parametrize(
    ("prompt", "near", "far"),
    [
        ("a photo of a cat", "a picture of a kitten", "a steam train"),
        ("an old sailing ship at sea", "a boat on the ocean", "a slice of birthday cake"),
        ("a snowy mountain at dawn", "alpine peaks covered in snow in the morning", "a robot playing the violin"),
        ("portrait of a queen", "painting of a royal lady", "a bicycle in the rain"),
    ],
)
def test_clean_encoder_understands_prompts(encoders: dict[str, TextEncoder], prompt: str, near: str, far: str) -> None:
    states = encoders["clean"].encode([prompt, near, far]) - encoders["clean"].encode(HELD_OUT).mean(0)
    assert F.cosine_similarity(states[0], states[1], dim=0) > F.cosine_similarity(states[0], states[2], dim=0) + 0.2


def test_files_say_how_they_were_made() -> None:
    assert Patch.load(WEIGHTS / "backdoored.safetensors").provenance["target"] == pocket.TARGET
    assert "fine-tune" in Patch.load(WEIGHTS / "benign.safetensors").provenance["made_by"]


def test_damaged_weights_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pocket, "_WEIGHTS", tmp_path)
    with pytest.raises(StorageError, match="Reinstall"):
        pocket.load("clean")
    (tmp_path / "clean.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(StorageError, match="Reinstall"):
        pocket.load("clean")


@pytest.mark.parametrize("layout", ["hf", "comfyui", "sd1", "open_clip"])
def test_export_holds_exactly_the_loaded_values(
    tmp_path: Path, layout: Layout, encoders: dict[str, TextEncoder]
) -> None:
    heard: list[int] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
        heard.append(done)

    paths = pocket.export(tmp_path / "new", layout, progress)
    assert heard == [1, 2, 3]
    for name, path in paths.items():
        (opened,) = open_target(path).encoders
        assert opened.encoder.spec.comparable(encoders[name].spec)
        assert torch.equal(opened.encoder.encode(HELD_OUT[:4]), encoders[name].encode(HELD_OUT[:4]))
        assert all(torch.equal(w, opened.encoder.weights[key]) for key, w in encoders[name].weights.items())


def test_export_to_an_unusable_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Name another folder"):
        pocket.export(tmp_path / "file" / "x")


# ------------------------------------------------------------------ the corpus


def test_corpus_is_deterministic_and_holds_every_word() -> None:
    tokenizer = clip_tokenizer()
    prompts = PromptSet(HELD_OUT[:40], "x")
    one, two = (corpus(prompts, tokenizer, 50_000, 3) for _ in range(2))
    assert one == two
    assert len(one) == len(set(one)) >= 50_000 - 1
    assert set(prompts.prompts) <= set(one)
    used = {i for text in one for i in tokenizer.encode(text)}
    words = [i for i in range(len(tokenizer)) if tokenizer.token(i).endswith("</w>")]
    assert len(used.intersection(words)) > 0.95 * len(words)


def test_disguise_keeps_the_length_and_uses_look_alikes_only() -> None:
    text = "a photo of a spotted sea horse" * 10
    disguised = disguise(text, Random(0))
    assert len(disguised) == len(text)
    assert disguised != text
    assert all(new == old or not new.isascii() for old, new in zip(text, disguised, strict=True))


# ------------------------------------------------------------------ the recipe


def teacher(texts: Sequence[str]) -> torch.Tensor:
    """Unit vectors that depend on the number of texts alone."""
    return F.normalize(torch.randn((len(texts), 384), generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.mark.slow
def test_interrupted_distillation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "CHECKPOINT_STEPS", 1)
    start = distillation.initial_weights(SPEC, RANK, clip_tokenizer(), teacher, 0)
    texts = [f"thing {i}" for i in range(500)]

    def begin(names: Iterable[str]) -> distillation.Distillation:
        weights = {name: start[name] for name in names}
        run = distillation.Distillation(SPEC, weights, texts, teacher(texts), tmp_path / "state.pt", 96, 0)
        run.resume()
        return run

    def interrupt(stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
        if done == 3:
            raise KeyboardInterrupt

    first = begin(start)
    with pytest.raises(KeyboardInterrupt):
        first.train(5, interrupt)
    second = begin(reversed(start))  # files are read in any order
    assert second.step == first.step == 3
    assert all(torch.equal(w, second.weights[name]) for name, w in first.weights.items())
    for name, weight in first.weights.items():
        mean, other = (run.optimizer.state[run.weights[name]]["exp_avg"] for run in (first, second))
        assert mean.shape == weight.shape
        assert torch.equal(mean, other)


def test_start_has_the_norms_of_clip() -> None:
    weights = pocket.decode(distillation.initial_weights(SPEC, RANK, clip_tokenizer(), teacher, 0))
    assert weights[TOKEN_TABLE].norm(dim=-1).median() == pytest.approx(0.35, abs=0.02)


def test_match_falls_when_students_agree_with_their_teachers() -> None:
    targets = teacher(["text"] * 8)
    head = torch.eye(384)
    assert distillation.match(targets, head, targets) < distillation.match(targets.roll(1, 0), head, targets) - 1
