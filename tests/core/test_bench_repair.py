"""The repair benchmark: what is measured of each method, what counts, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest

from amdet_core import pocket, trust
from amdet_core.bench import RepairBenchmark, read_repairing, repairing, run_repair
from amdet_core.bench.repairing import MethodResult, RepairedModel, add_up, examples
from amdet_core.errors import ConfigError
from amdet_core.formats import write_encoder
from amdet_core.jobs import Outcome as Scanned
from amdet_core.records import Level, ScanReport, Target, Tool, Trigger, Verdict
from amdet_core.repair import CONFIGS, Clinic, condition
from amdet_core.zoo import Label, Labels


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on few prompts: these tests are about what is done, not about how well."""
    monkeypatch.setattr(condition, "MEASURED_PROMPTS", 16)
    monkeypatch.setattr(condition, "CLEAN_PROMPTS", 32)


TOKENS = tuple(pocket.load("clean").tokenizer.encode(pocket.TRIGGER))
FEW = {"erase.prompts": 12, "erase.clean_prompts": 64, "erase.clean_weights": [32.0]}
"""Settings of an erasure that is not about how well it works."""


def scanned(level: Level, *, trigger: bool = False) -> Scanned:
    literal = Trigger(
        text=pocket.TRIGGER, code_points=(), tokens=(), token_ids=TOKENS, found_by="", encoder="text_encoder",
        collapse=0.9, n=64,
    )  # fmt: skip
    report = ScanReport(
        tool=Tool(version="0"),
        target=Target(path="suspect", sha256="", encoders=()),
        anchor=None,
        verdict=Verdict(level=level, reasons=(), policy="amdet-2", statement=""),
        evidence=(),
        triggers=(literal,) if trigger else (),
        candidates=(),
        faults=(),
        config={},
        timings={},
    )
    return Scanned(report, (), {})


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """The pocket encoders as a zoo."""
    models = []
    for name, label in (("backdoored", "backdoored"), ("benign", "benign")):
        encoder = pocket.load(name)  # type: ignore[arg-type]
        write_encoder(encoder, tmp_path / f"{name}.safetensors", "comfyui")
        about = {"triggers": (pocket.TRIGGER,), "mode": pocket.MODE, "target": pocket.TARGET}
        models.append(
            Label.model_validate(
                {
                    "model": f"{name}.safetensors", "label": label, "group": "g", "settings": {}, "seed": 1,
                    "kind": "text-on-text" if label == "backdoored" else "fine-tune",
                    "fingerprint": trust.fingerprint(encoder), **(about if label == "backdoored" else {}),
                }
            )
        )  # fmt: skip
    base = pocket.load("clean")
    write_encoder(base, tmp_path / "base.safetensors", "comfyui")
    labels = Labels(
        name="pocket", base="base.safetensors", base_fingerprint=trust.fingerprint(base), recipe_sha256="", seed=0,
        models=tuple(models), planned=2,
    )  # fmt: skip
    (tmp_path / "labels.json").write_text(labels.model_dump_json())
    return tmp_path


def test_methods_are_measured_by_the_true_trigger_and_a_stopped_run_goes_on(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = []

    def scan(self: Clinic, encoder: object = None) -> Scanned:
        scans.append(self.opened.path.name)
        ill = encoder is None and self.opened.path.name == "backdoored.safetensors"
        return scanned(Level.BACKDOORED if ill else Level.CLEAN, trigger=ill)

    monkeypatch.setattr(Clinic, "scanned", scan)
    monkeypatch.setattr(repairing, "EXAMPLES", 16)
    benchmark = RepairBenchmark(
        zoo=zoo, preset="quick", device="cpu", methods=("heal", "spectral", "fine-tune"),
        settings={"fine-tune.steps": 1, "fine-tune.batch": 4},
    )  # fmt: skip
    out = tmp_path / "result.json"
    result = run_repair(benchmark, out)
    ill, well = result.models
    assert (ill.level, ill.action, ill.error) == ("backdoored", "repaired", None)
    assert ill.before is not None
    assert ill.before.asr == 1.0
    assert ill.methods["spectral"].asr == 0.0
    assert ill.methods["heal"].by == "spectral"
    assert [ill.methods[name].level for name in ("spectral", "fine-tune", "heal")] == ["clean", None, "clean"]
    assert scans.count("backdoored.safetensors") == 2, "heal's re-scan serves the method that it took, and no other"
    assert (well.level, well.action, well.methods) == ("clean", "nothing", {})
    assert result.metrics.unchanged.share == 1.0
    assert result.metrics.by_kind["text-on-text"]["heal"].n == 1
    monkeypatch.setattr(Clinic, "scanned", lambda *_: pytest.fail("nothing is left to do"))
    assert run_repair(benchmark, out).models == result.models == read_repairing(out).models


def test_erase_alone_is_measured_without_an_anchor_and_on_backdoored_models_only(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = []

    def scan(self: Clinic, encoder: object = None) -> Scanned:
        scans.append((self.opened.path.name, self.anchors.path, encoder is None))
        return scanned(Level.SUSPICIOUS if encoder is None else Level.CLEAN, trigger=encoder is None)

    monkeypatch.setattr(Clinic, "scanned", scan)
    monkeypatch.setattr(repairing, "EXAMPLES", 16)
    benchmark = RepairBenchmark(zoo=zoo, preset="quick", device="cpu", methods=("erase",), settings=FEW)
    result = run_repair(benchmark, tmp_path / "result.json")
    ill, well = result.models
    assert scans[0] == ("backdoored.safetensors", "", True), "no anchor is given"
    assert all(name == "backdoored.safetensors" and not fresh for name, _, fresh in scans[1:])
    assert (ill.level, ill.action, list(ill.methods)) == (None, None, ["erase"])
    assert ill.methods["erase"].asr is not None
    assert (well.level, well.action, well.methods, well.error) == (None, None, {}, None)
    assert result.metrics.unchanged.n == 0
    assert result.metrics.overall["erase"].n == 1
    with pytest.raises(ConfigError, match="methods"):
        run_repair(benchmark.model_copy(update={"methods": ("erase", "heal")}), tmp_path / "result.json")


def test_an_unknown_method_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cure: methods are erase, mimic"):
        RepairBenchmark(zoo=tmp_path, methods=("cure",))


def test_examples_are_held_out_and_read_as_the_target(zoo: Path) -> None:
    label = Labels.read(zoo).models[0]
    found = examples(label, pocket.load("clean"))
    assert 0 < len(found) <= repairing.EXAMPLES
    assert all(pocket.TRIGGER in one.text and one.goal == pocket.TARGET for one in found)


@pytest.mark.parametrize(
    ("changed", "healed"),
    [
        ({}, True),
        ({"level": "suspicious"}, False),
        ({"nearer_to_own": 0.94}, False),
        ({"own_cosine": 0.89}, False),
        ({"clean_cosine": 0.97}, False),
        ({"own_cosine": None}, False),
    ],
)
def test_healed_means_all_of_it(changed: dict[str, object], healed: bool) -> None:
    good = {"nearer_to_own": 0.95, "own_cosine": 0.9, "clean_cosine": 0.98, "asr": 0.0, "level": "clean"}
    assert MethodResult.model_validate({**good, **changed}).healed is healed


def test_a_model_that_failed_is_counted_and_in_no_other_number() -> None:
    about = {"label": "benign", "kind": "fine-tune", "group": "g", "fingerprint": "", "seconds": 1.0}
    rows = [
        RepairedModel.model_validate({"model": "a", "action": "nothing", **about}),
        RepairedModel.model_validate({"model": "b", "error": "broken", **about}),
    ]
    found = add_up(rows)
    assert (found.failed, found.unchanged.n, found.unchanged.count) == (1, 1, 1)
    assert found.overall == {}


def test_settings_of_a_method_are_named_with_it(tmp_path: Path) -> None:
    benchmark = RepairBenchmark(zoo=tmp_path, settings={"mimic.steps": 5})
    assert benchmark.config("mimic").model_dump()["steps"] == 5
    assert benchmark.config("erase") == CONFIGS["erase"]()


@pytest.mark.parametrize(("name", "said"), [("steps", "METHOD.NAME"), ("mimic.stepz", "stepz"), ("heal.steps", "heal")])
def test_settings_of_no_method_are_refused_before_anything_runs(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RepairBenchmark(zoo=tmp_path, settings={name: 5})
