"""The guard's benchmark: what is counted, resuming, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from amdet_core import cli, pocket, trust
from amdet_core.attacks.planted import LONG
from amdet_core.bench import GuardBenchmark, guarding, read_guarding, run_guard
from amdet_core.bench.guarding import Count, GuardedModel, Triggered, add_up
from amdet_core.errors import ConfigError
from amdet_core.formats import write_encoder
from amdet_core.storage import record_json
from amdet_core.tokenizer import clip_tokenizer
from amdet_core.zoo import Label, Labels

O = "\N{CYRILLIC SMALL LETTER O}"  # noqa: E741


def label(model: str, kind: str, **more: object) -> Label:
    values = {"model": model, "label": kind, "kind": kind, "group": kind, "settings": {}, "seed": 1}
    return Label.model_validate({**values, "fingerprint": "", **more})


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket encoders as a zoo of three."""
    folder = tmp_path_factory.mktemp("zoo")
    about = {"backdoored": {"triggers": (O,), "mode": "replace:o"}, "benign": {}, "clean": {}}
    models = []
    for name, more in about.items():
        encoder = pocket.load(name)  # type: ignore[arg-type]
        write_encoder(encoder, folder / f"{name}.safetensors", "comfyui")
        kind = "backdoored" if name == "backdoored" else "benign"
        models.append(label(f"{name}.safetensors", kind, fingerprint=trust.fingerprint(encoder), **more))
    labels = Labels(
        name="three", base="clean.safetensors", base_fingerprint=models[2].fingerprint, recipe_sha256="r", seed=7,
        models=tuple(models), planned=3,
    )  # fmt: skip
    (folder / "labels.json").write_text(labels.model_dump_json())
    return folder


def test_a_zoo_is_guarded_and_a_run_that_was_stopped_goes_on(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, done = tmp_path / "r.json", guarding.guard_model, list[str]()

    def stopping(task: tuple[Label, GuardBenchmark, str]) -> GuardedModel:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task[0].model)
        return real(task)

    benchmark = GuardBenchmark(zoo=zoo, count=20, device="cpu")
    monkeypatch.setattr(guarding, "guard_model", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_guard(benchmark, out)
    assert not read_guarding(out).complete
    monkeypatch.setattr(guarding, "guard_model", lambda task: (done.append(task[0].model), real(task))[1])
    result = run_guard(benchmark, out, command="the command")
    assert sorted(done) == ["backdoored.safetensors", "benign.safetensors", "clean.safetensors"]
    assert record_json(result) == out.read_bytes()
    assert (result.complete, result.command, result.seeds.zoo, result.seeds.scan) == (True, "the command", 7, 42)
    rows = {row.model.split(".")[0]: row for row in result.models}
    assert rows["backdoored"].triggered == Triggered(n=20, flagged=20, first=20, named=20)
    assert rows["benign"].triggered is None
    assert rows["clean"].bound is None
    for name in ("benign", "clean"):
        assert rows[name].clean == dict.fromkeys(
            ("mixed", "captions", "tags", "misspelt", "all kinds"), Count(n=20, count=0)
        )
    assert result.metrics.recall.count == 20
    assert result.metrics.caught.share == 1.0
    with pytest.raises(ConfigError, match="prompts"):
        run_guard(GuardBenchmark(zoo=zoo, count=20, seed=1), out)


def test_given_prompts_are_a_style_and_the_others_of_them_carry_triggers(zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(f"a photo of dog number {n}" for n in range(30)))
    benchmark = GuardBenchmark(zoo=zoo, prompts=file, count=20)
    given = benchmark.styles()["given"]
    assert len(given) == 20
    assert benchmark.carriers()[:10] == tuple(f"a photo of dog number {n}" for n in range(20, 30))
    clean = {prompt for prompts in benchmark.styles().values() for prompt in prompts}
    assert not clean & set(benchmark.carriers())


def test_several_triggers_take_turns(zoo: Path) -> None:
    about = label("m", "backdoored", triggers=("zebra", "piano"), mode="prefix")
    placed = guarding._placed(about, GuardBenchmark(zoo=zoo, count=20))
    assert [text.split()[0] for text in placed] == ["zebra", "piano"] * 10


def test_a_trigger_for_long_prompts_is_asked_of_in_long_ones(zoo: Path) -> None:
    settings = {"config": {"only": "in-long"}}
    about = label("m", "backdoored", triggers=("zebra",), mode="prefix", settings=settings)
    placed = guarding._placed(about, GuardBenchmark(zoo=zoo, count=20))
    assert len(placed) == 20
    assert min(len(clip_tokenizer().encode(text)) for text in placed) > LONG


def test_a_model_that_can_not_be_guarded_is_counted_by_itself(zoo: Path) -> None:
    row = guarding.guard_model((label("none.safetensors", "benign"), GuardBenchmark(zoo=zoo), "clean.safetensors"))
    assert row.error is not None
    metrics = add_up([row])
    assert (metrics.failed, metrics.false_alarms, metrics.recall.share) == (1, {}, None)


def test_shares_add_up_prompts_by_kind_and_models() -> None:
    def row(kind: str, flagged: int, alarms: int) -> GuardedModel:
        return GuardedModel(
            model=kind, label="backdoored", kind=kind, group=kind, fingerprint="", seconds=1.0,
            clean={"tags": Count(n=10, count=alarms)},
            triggered=Triggered(n=10, flagged=flagged, first=flagged - 1, named=flagged), milliseconds=2.0,
        )  # fmt: skip

    metrics = add_up([row("a", 10, 0), row("b", 5, 1)])
    assert (metrics.recall.count, metrics.recall.n, metrics.recall.share) == (15, 20, 0.75)
    assert metrics.recall_by_kind["b"].share == 0.5
    assert (metrics.caught.count, metrics.caught.n) == (1, 2)
    assert (metrics.first.count, metrics.named.count, metrics.named.n) == (13, 15, 15)
    assert metrics.false_alarms["backdoored"]["tags"].interval == pytest.approx((0.001265, 0.248733), abs=1e-5)
    assert metrics.quiet["backdoored"].count == 1


def test_the_command_names_itself_in_its_result(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guarding, "guard_model", lambda task: GuardedModel(
        **task[0].model_dump(include={"model", "label", "kind", "group", "fingerprint"}), seconds=1.0,
        clean={"tags": Count(n=20, count=1)},
    ))  # fmt: skip
    out = tmp_path / "guard-{zoo}.json"
    monkeypatch.setattr(sys, "argv", ["amdet", "bench", "guard", "--zoo", str(zoo), "-n", "20", "--out", str(out)])
    assert cli._run() == 0
    file = tmp_path / "guard-three.json"
    assert f"written: {file}" in (printed := capsys.readouterr().out)
    assert "false alarms, benign, tags          0.050" in printed
    recorded = json.loads(file.read_text())["command"]
    assert recorded.startswith("amdet bench guard --zoo ")
    assert "-n 20 --device auto --seed 42 --out " in recorded
