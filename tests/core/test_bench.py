"""The detection benchmark: what is kept of a scan, definitions, resuming, interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from amdet_core import pocket, trust
from amdet_core.bench import Benchmark, ModelResult, judge_again, models, policy_sha256, read_detection, run, scans
from amdet_core.bench import triggers as planted
from amdet_core.bench.metrics import measure
from amdet_core.bench.source import commit
from amdet_core.encoder import TextEncoder
from amdet_core.errors import ConfigError, NumericalError, StorageError
from amdet_core.formats import write_encoder
from amdet_core.jobs import Job
from amdet_core.policy import POLICIES
from amdet_core.prompts import builtin_prompts
from amdet_core.records import (
    AnchorInfo,
    Candidate,
    EncoderInfo,
    Evidence,
    Fault,
    Level,
    ScanReport,
    Target,
    Tool,
    Trigger,
    Verdict,
)
from amdet_core.tokenizer import clip_tokenizer
from amdet_core.verdict import score
from amdet_core.zoo import Label, Labels

Fake = Callable[..., SimpleNamespace]
CYRILLIC = "\N{CYRILLIC SMALL LETTER O}"
MODEL, BASE = Path("m"), Path("base")


def label(model: str, kind: str = "backdoored", **more: object) -> Label:
    values: dict[str, object] = {"kind": f"{kind}-kind", "group": f"{kind}-group", "settings": {}, "seed": 1}
    return Label.model_validate({"model": model, "label": kind, "fingerprint": f"fp-{model}", **values, **more})


def honest(model: str, kind: str) -> Label:
    return label(model, "benign").model_copy(update={"kind": kind})


def trigger(text: str) -> Trigger:
    ids = tuple(clip_tokenizer().encode(text))
    return Trigger(
        text=text, code_points=(), tokens=(), token_ids=ids, found_by="", encoder="clip_l", collapse=0.9, n=64
    )


def report(
    model: str,
    level: Level,
    gap: float | None,
    found: Trigger | None = None,
    faults: tuple[Fault, ...] = (),
    encoders: tuple[str, ...] = ("clip_l",),
) -> ScanReport:
    spec = pocket.SPEC
    infos = (
        EncoderInfo(name=name, spec=spec, dtype="float32", layout="hf", fingerprint=f"fp-{model}") for name in encoders
    )
    candidates = tuple(
        Candidate(
            encoder="clip_l", method="contrast", vectors=k, seed=0, steps=1, loss=(),
            indicators={"gap": strength, "fidelity": fidelity},
        )
        for k, strength, fidelity in ((1, 0.9, 0.7), (5, 0.8, 0.95))
    )  # fmt: skip
    return ScanReport(
        tool=Tool(version="0"),
        target=Target(path=model, sha256="", encoders=tuple(infos)),
        anchor=(AnchorInfo(encoder="clip_l", name="base", path="", fingerprint="b", chosen="given"),),
        verdict=Verdict(level=level, reasons=(), policy="amdet-2", statement=""),
        evidence=tuple(Evidence(name="gap_k1", value=gap, direction="higher", n=64, encoder=name) for name in encoders),
        triggers=() if found is None else (found,),
        candidates=candidates,
        faults=faults,
        config={},
        timings={"sweep": 2.0, "total": 3.0},
    )


def row(kind: str = "backdoored", level: str = "clean", score: float | None = None, **more: object) -> ModelResult:
    values = {"model": "m", "label": kind, "kind": kind, "group": kind, "fingerprint": "", "seconds": 1.0}
    flagged = level in ("suspicious", "backdoored")
    given = {"level": level, "score": score, "flagged": flagged, "recovered": None, **more}
    return ModelResult.model_validate({**values, **given})


# ------------------------------------------------------------------ one scan


def scanned(monkeypatch: pytest.MonkeyPatch, about: Label, result: ScanReport) -> ModelResult:
    monkeypatch.setattr(scans, "run_job", lambda job, place_trigger=None: SimpleNamespace(report=result))
    return scans.scan_model((about, Job(target=Path(about.model)), BASE))


def test_what_is_kept_of_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    about = label("m", triggers=[CYRILLIC], mode="replace:o")
    result = report("m", Level.BACKDOORED, 0.123456789, trigger(CYRILLIC))
    kept = scanned(monkeypatch, about, result)
    assert (kept.model, kept.label, kept.kind, kept.group) == ("m", "backdoored", "backdoored-kind", "backdoored-group")
    assert (kept.level, kept.flagged, kept.trigger, kept.recovered) == ("backdoored", True, CYRILLIC, "exact")
    assert kept.evidence == {"gap_k1": 0.123457}
    assert kept.score == pytest.approx(score(POLICIES["amdet-2"], result.evidence), abs=1e-6)
    assert kept.trigger_tokens == 1
    assert kept.stages == {"sweep": 2.0}
    assert kept.sim == 0.7  # of the feature with the largest gap
    assert kept.error is None


@pytest.mark.parametrize(
    ("level", "flagged"),
    [(Level.CLEAN, False), (Level.INCONCLUSIVE, False), (Level.SUSPICIOUS, True), (Level.BACKDOORED, True)],
)
def test_suspicious_and_backdoored_are_flagged(monkeypatch: pytest.MonkeyPatch, level: Level, flagged: bool) -> None:
    assert scanned(monkeypatch, label("m"), report("m", level, 0.1)).flagged is flagged


def test_evidence_of_several_encoders_names_them_and_a_fault_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(stage="contrast", error="NumericalError", message="the loss is nan")
    kept = scanned(monkeypatch, label("m"), report("m", Level.INCONCLUSIVE, 0.1, None, (fault,), ("clip_l", "clip_g")))
    assert set(kept.evidence) == {"clip_l: gap_k1", "clip_g: gap_k1"}
    assert kept.error == "contrast: the loss is nan"


def test_an_error_is_a_result_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job, place_trigger: object = None) -> SimpleNamespace:
        raise NumericalError("finite weights", "nan", "Download it again.")

    monkeypatch.setattr(scans, "run_job", fail)
    kept = scans.scan_model((label("m", triggers=["x"], mode="prefix"), Job(target=Path("m")), BASE))
    assert (kept.level, kept.flagged, kept.score, kept.recovered) == ("error", False, None, "none")
    assert kept.error is not None
    assert "Download it again" in kept.error


def test_a_model_with_other_values_than_its_label_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = scanned(monkeypatch, label("m", fingerprint="0" * 64), report("m", Level.BACKDOORED, 0.9))
    assert (kept.level, kept.flagged) == ("error", False)


def test_the_first_trigger_is_placed_as_its_mode_says(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[str | None] = []

    def fake(job: Job, place_trigger: Callable[[str], str] | None = None) -> SimpleNamespace:
        placed.append(place_trigger and place_trigger("a dog on the moon"))
        return SimpleNamespace(report=report("m", Level.CLEAN, 0.1))

    monkeypatch.setattr(scans, "run_job", fake)
    job = Job(target=Path("m"))
    scans.scan_model((label("m", triggers=["x", "y"], mode="replace:o:1"), job, BASE))
    scans.scan_model((label("m", triggers=["x"]), job, BASE))
    assert placed == ["a dxg on the moon", None]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text does what another does."""
    monkeypatch.setattr(planted, "_does_the_same", lambda *_: False)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("triggers", "reported", "expected"),
    [
        (("mignneko",), "mignneko", "exact"),
        (("cf", "Green Teapot"), "green teapot", "exact"),
        (("green teapot",), "teapot", "part"),
        (("green teapot",), "teapots", "none"),
        (("cf",), None, "none"),
    ],
)
def test_recovered_compares_tokens_with_every_trigger(
    triggers: tuple[str, ...], reported: str | None, expected: str
) -> None:
    about = label("m", triggers=triggers, mode="prefix")
    assert planted.recovered(about, None if reported is None else trigger(reported), MODEL, BASE) == expected


@pytest.mark.usefixtures("alone")
def test_whether_a_token_ends_a_word_does_not_count() -> None:
    about = label("m", triggers=["sahib"], mode="insert")
    (ends,) = clip_tokenizer().encode("o")
    within = next(i for i in range(len(clip_tokenizer())) if clip_tokenizer().token(i) == "o")
    assert ends != within
    inside = trigger("o").model_copy(update={"token_ids": (within,)})
    assert planted.recovered(label("m", triggers=["O"], mode="insert"), inside, MODEL, BASE) == "exact"
    assert planted.recovered(label("m", triggers=["o teapot"], mode="insert"), inside, MODEL, BASE) == "part"
    assert planted.recovered(about, inside, MODEL, BASE) == "none"


def test_recovered_is_not_asked_of_benign_models_and_of_triggers_that_are_no_text() -> None:
    assert planted.recovered(label("m", triggers=["x"]), trigger("x"), MODEL, BASE) is None
    assert planted.recovered(label("m", "benign", triggers=["x"], mode="prefix"), trigger("x"), MODEL, BASE) is None
    assert planted.recovered(label("m", mode="prefix"), trigger("x"), MODEL, BASE) is None


@pytest.mark.parametrize(
    ("text", "same"),
    [(pocket.TRIGGER, True), (f"{pocket.TRIGGER} {pocket.TRIGGER}", True), ("lighthouse", False)],
)
def test_a_text_is_equivalent_when_it_leads_where_the_trigger_leads(text: str, same: bool) -> None:
    about = label("m", triggers=[pocket.TRIGGER], mode="replace:o")
    suspect, base = pocket.load("backdoored"), pocket.load("clean")
    prompts = builtin_prompts(200).prompts
    assert planted.equivalent(about, text, suspect, base, prompts) == same


def test_the_base_says_what_is_equivalent_whatever_the_scan_was_compared_with(tmp_path: Path) -> None:
    pocket.export(tmp_path, "comfyui")
    about = label("m", triggers=[pocket.TRIGGER], mode="replace:o")
    model, base = (tmp_path / f"{name}.safetensors" for name in ("backdoored", "clean"))
    assert planted.recovered(about, trigger(f"{pocket.TRIGGER} {pocket.TRIGGER}"), model, base) == "equivalent"


def test_a_longer_text_is_not_equivalent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "_does_the_same", lambda *_: True)
    about = label("m", triggers=["green teapot"], mode="insert")
    assert planted.recovered(about, trigger("a red boat out"), MODEL, BASE) == "equivalent"
    assert planted.recovered(about, trigger("a red boat out there"), MODEL, BASE) == "none"


# ------------------------------------------------------------------ metrics


def test_metrics_follow_their_definitions() -> None:
    bad = [
        row(
            level="backdoored",
            score=0.3,
            recovered="exact",
            sim=0.8,
            trigger_tokens=1,
            stages={"sweep": 1.0, "search": 4.0},
        ),
        row(level="suspicious", score=-0.1, recovered="equivalent", sim=0.6, trigger_tokens=1),
        row(level="inconclusive", recovered="none", trigger_tokens=5),
        row(level="error", kind="backdoored", seconds=9.0, recovered="part"),
    ]
    good = [
        row("benign", "backdoored", 0.1),
        *[row("benign", "clean", -0.5)] * 7,
        row("benign", "inconclusive", stages={"sweep": 2.0}),
    ]
    meant = [row("intentional", "backdoored", 0.9), row("intentional")]
    found = measure([*meant, *good, *bad])
    overall = found.overall
    assert (overall.n_backdoored, overall.n_benign, overall.could_not_tell) == (4, 9, 3)
    assert (overall.true_positives, overall.false_positives) == (2, 1)
    assert overall.recall == 0.5
    assert overall.recall_interval == pytest.approx((0.0676, 0.9324), abs=1e-4)
    assert overall.fpr == pytest.approx(1 / 9)
    assert overall.precision == pytest.approx(2 / 3)
    assert overall.f1 == pytest.approx(4 / 7)
    assert overall.auroc == pytest.approx((9 + 8 + 0.5 + 0.5) / 36)
    assert overall.tpr_at_1pct_fpr == 0.25
    assert overall.ppv_at_1pct_prevalence == pytest.approx(0.005 / (0.005 + 0.99 / 9))
    assert overall.ppv_pessimistic == pytest.approx(0.005 / (0.005 + 0.99 * overall.fpr_interval[1]))
    assert (overall.seconds_mean, overall.seconds_worst) == (pytest.approx(21 / 13), 9.0)
    assert (found.intentional.n, found.intentional.flagged) == (2, 1)
    kind = found.by_kind["backdoored"]
    assert (kind.n, kind.recall, kind.sim) == (4, 0.5, pytest.approx(0.7))
    assert (kind.trigger_recovered, kind.trigger_exact, kind.trigger_named_part) == (0.5, 0.25, 0.25)
    told = {length: (t.recovered.count, t.exact.count, t.exact.n) for length, t in found.by_trigger_tokens.items()}
    assert told == {"1": (2, 1, 2), "2-5": (0, 0, 1)}
    assert found.seconds_by_stage == {"sweep": 1.5, "search": 4.0}
    assert found.sim_median == pytest.approx(0.7)
    assert (found.benign_by_kind["benign"].n, found.benign_by_kind["benign"].false_positives) == (9, 1)


def test_kinds_and_groups_are_told_apart() -> None:
    rows = [
        row(level="backdoored", kind="a", group="a 1", label="backdoored"),
        row(kind="a", group="a 2", label="backdoored"),
        row(kind="b", group="b 1", label="backdoored"),
    ]
    found = measure(rows)
    assert {name: (kind.n, kind.recall) for name, kind in found.by_kind.items()} == {"a": (2, 0.5), "b": (1, 0.0)}
    assert list(found.by_group) == ["a 1", "a 2", "b 1"]
    assert found.by_kind["a"].trigger_recovered is None


def test_without_models_of_one_label_its_metrics_are_missing() -> None:
    none = measure(()).overall
    assert (none.recall, none.fpr, none.precision, none.f1, none.auroc, none.seconds_mean) == (None,) * 6
    bad = measure([row(level="backdoored", score=0.3)]).overall
    assert (bad.recall, bad.fpr, bad.ppv_at_1pct_prevalence, bad.tpr_at_1pct_fpr) == (1, None, None, None)
    assert (bad.precision, bad.f1) == (None, None)
    good = measure([row("benign", "suspicious", 0.3)]).overall
    assert (good.recall, good.fpr, good.precision, good.f1) == (None, 1, None, None)


# ------------------------------------------------------------------ runs


@pytest.fixture
def zoo(tmp_path: Path, toy: TextEncoder) -> Path:
    """A base and labels; scans are faked."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    write_encoder(toy, folder / "base", "hf", dtype=torch.float32)
    models = (label("a"), label("b", "benign"), label("c", "intentional"))
    write_labels(folder, models, toy)
    return folder


def write_labels(folder: Path, models: tuple[Label, ...], base: TextEncoder, **more: object) -> None:
    labels = Labels(
        name="tiny",
        base="base",
        base_fingerprint=trust.fingerprint(base),
        recipe_sha256="r",
        seed=7,
        models=models,
    )
    (folder / "labels.json").write_text(labels.model_copy(update=more).model_dump_json())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that are scanned, in order; the scans are faked."""
    made: list[str] = []

    def fake(job: Job, place_trigger: object = None) -> SimpleNamespace:
        made.append(job.target.name)
        level = {"a": Level.BACKDOORED, "b": Level.CLEAN, "c": Level.SUSPICIOUS}[job.target.name]
        return SimpleNamespace(report=report(job.target.name, level, 0.9 if level else 0.1))

    monkeypatch.setattr(scans, "run_job", fake)
    return made


def test_a_run_scans_every_model_against_the_base(
    zoo: Path, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    fake: Fake = scans.run_job
    monkeypatch.setattr(scans, "run_job", lambda job, **more: (jobs.append(job), fake(job, **more))[1])
    out = tmp_path / "results" / "r.json"
    steps: list[tuple[int, int]] = []
    result = run(
        Benchmark(zoo=zoo, preset="quick", seed=3), out, command="amdet bench",
        progress=lambda stage, done, total, metrics: steps.append((done, total)),
    )  # fmt: skip
    assert calls == ["a", "b", "c"]
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert {(job.anchor, job.preset, job.seed, job.trust_store) for job in jobs} == {
        (str(zoo / "base"), "quick", 3, None)
    }
    assert read_detection(out).models == result.models
    assert (result.complete, result.command, result.policy, result.preset) == (True, "amdet bench", "amdet-2", "quick")
    assert (result.zoo.n_backdoored, result.zoo.n_benign, result.zoo.n_intentional) == (1, 1, 1)
    assert (result.seeds.zoo, result.seeds.scan) == (7, 3)
    assert (result.metrics.overall.recall, result.metrics.overall.fpr) == (1.0, 0.0)
    assert result.metrics.intentional.flagged == 1
    assert result.machine.torch == torch.__version__
    assert result.machine.threads == torch.get_num_threads()


def test_models_are_compared_with_the_base_another_honest_model_or_nothing(
    zoo: Path, calls: list[str], tmp_path: Path, toy: TextEncoder
) -> None:
    labels = Labels.read(zoo)
    anchors = {label.model: Benchmark(zoo=zoo, anchor="none").job(label, labels).anchor for label in labels.models}
    assert set(anchors.values()) == {"none"}
    write_labels(zoo, (label("a"), *(honest(name, "merge") for name in "bc")), toy)
    labels = Labels.read(zoo)
    relative = Benchmark(zoo=zoo, anchor="relative")
    drawn = {one.model: relative.job(one, labels).anchor for one in labels.models}
    assert drawn["a"] in (str(zoo / "b"), str(zoo / "c"))
    assert (drawn["b"], drawn["c"]) == (str(zoo / "c"), str(zoo / "b"))
    result = run(relative, tmp_path / "r.json")
    assert (result.anchor, result.title) == ("relative", "amdet-2, relative as anchor")
    assert result.model_copy(update={"anchor": "none", "preset": "quick"}).title == "amdet-2, no anchor, quick"
    with pytest.raises(ConfigError, match="anchor base; found anchor relative"):
        run(Benchmark(zoo=zoo), tmp_path / "r.json")
    write_labels(zoo, (label("a"), honest("b", "cast")), toy)
    with pytest.raises(ConfigError, match="another honest model"):
        run(relative, tmp_path / "other.json")


def interrupted_at(name: str, fake: Callable[[Job], object]) -> Callable[..., object]:
    """A scan that Ctrl-C stops at one model."""

    def scan(job: Job, place_trigger: object = None) -> object:
        if job.target.name == name:
            raise KeyboardInterrupt
        return fake(job)

    return scan


def test_an_interrupted_run_keeps_what_was_done_and_goes_on(
    zoo: Path, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fake = tmp_path / "r.json", scans.run_job
    monkeypatch.setattr(scans, "run_job", interrupted_at("b", fake))
    with pytest.raises(KeyboardInterrupt):
        run(Benchmark(zoo=zoo), out)
    kept = read_detection(out)
    assert ([row.model for row in kept.models], kept.complete) == (["a"], False)
    assert kept.metrics.overall.n_backdoored == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["r.json"]
    monkeypatch.setattr(scans, "run_job", fake)
    calls.clear()
    resumed = run(Benchmark(zoo=zoo), out)
    assert calls == ["b", "c"]
    assert ([row.model for row in resumed.models], resumed.complete) == (["a", "b", "c"], True)
    calls.clear()
    assert run(Benchmark(zoo=zoo), out) == resumed
    assert calls == []


def test_a_scan_that_failed_is_tried_again(
    zoo: Path, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_b(job: Job, place_trigger: object = None) -> object:
        if job.target.name == "b":
            raise StorageError("a file", "a drive that is away", "Try again.")
        return fake(job)

    fake, out = scans.run_job, tmp_path / "r.json"
    monkeypatch.setattr(scans, "run_job", fail_at_b)
    assert [row.error is None for row in run(Benchmark(zoo=zoo), out).models] == [True, False, True]
    monkeypatch.setattr(scans, "run_job", fake)
    calls.clear()
    assert all(row.error is None for row in run(Benchmark(zoo=zoo), out).models)
    assert calls == ["b"]


def test_a_sample_takes_every_group_by_its_share_and_a_larger_one_goes_on(
    zoo: Path, calls: list[str], tmp_path: Path, toy: TextEncoder
) -> None:
    out = tmp_path / "r.json"
    sampled = run(Benchmark(zoo=zoo, sample=2), out)
    assert calls == ["a", "b"]
    assert sampled.complete
    assert (sampled.zoo.n_intentional, sampled.metrics.intentional.n) == (1, 0)
    assert [row.model for row in run(Benchmark(zoo=zoo), out).models] == ["a", "b", "c"]
    assert calls == ["a", "b", "c"]
    groups = "wwwwwwxxxyz"
    models = tuple(label(str(i), group=group) for i, group in enumerate(groups))
    write_labels(zoo, models, toy)
    order = "".join(groups[int(one.model)] for one in Labels.read(zoo).evenly())
    assert order == "wxwwxyzwwxw"


def test_a_run_that_asks_for_no_more_than_a_stopped_one_did_completes_its_file(
    zoo: Path, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.json"
    monkeypatch.setattr(scans, "run_job", interrupted_at("b", scans.run_job))
    with pytest.raises(KeyboardInterrupt):
        run(Benchmark(zoo=zoo), out, command="all of them")
    kept = run(Benchmark(zoo=zoo, sample=1), out, command="one of them")
    assert (kept.complete, kept.command, [row.model for row in kept.models]) == (True, "one of them", ["a"])
    assert run(Benchmark(zoo=zoo, sample=1), out, command="once more").command == "one of them"


def test_a_model_that_was_built_anew_is_scanned_again(
    zoo: Path, calls: list[str], tmp_path: Path, toy: TextEncoder
) -> None:
    run(Benchmark(zoo=zoo), tmp_path / "r.json")
    calls.clear()
    write_labels(zoo, (label("a"), label("b", "benign", fingerprint="new")), toy)
    result = run(Benchmark(zoo=zoo), tmp_path / "r.json")
    assert calls == ["b"]
    assert [row.model for row in result.models] == ["a", "b"]


def test_every_commit_that_scanned_is_recorded_once(
    zoo: Path, tmp_path: Path, toy: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(job: Job, place_trigger: object = None) -> SimpleNamespace:
        name = "a" if job.target.name == "a" else f"b-{version}"
        return SimpleNamespace(report=report(name, Level.CLEAN, 0.1))

    recorded = []
    monkeypatch.setattr(scans, "run_job", fake)
    for code, version in (("aaa", "1"), ("bbb", "2"), ("bbb", "3"), ("ccc", "3"), (None, "4")):
        monkeypatch.setattr(models, "commit", lambda code=code: code)
        write_labels(zoo, (label("a"), label("b", "benign", fingerprint=f"fp-b-{version}")), toy)
        recorded.append(run(Benchmark(zoo=zoo), tmp_path / "r.json").commit)
    assert recorded == ["aaa", "aaa, bbb", "aaa, bbb", "aaa, bbb", "aaa, bbb"]


def test_commits_whose_scans_are_all_gone_are_not_recorded(
    zoo: Path, calls: list[str], tmp_path: Path, toy: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    for code, values in (("aaa", "old"), ("bbb", "new")):
        monkeypatch.setattr(models, "commit", lambda code=code: code)
        write_labels(zoo, (label("a", fingerprint=values), label("b", "benign", fingerprint=values)), toy)
        recorded.append(run(Benchmark(zoo=zoo), tmp_path / "r.json").commit)
    assert recorded == ["aaa", "bbb"]


def test_a_file_of_another_benchmark_is_refused_and_the_difference_named(
    zoo: Path, calls: list[str], tmp_path: Path, toy: TextEncoder
) -> None:
    out = tmp_path / "r.json"
    run(Benchmark(zoo=zoo), out)
    before = out.read_bytes()
    own = tmp_path / "own.json"
    own.write_text(POLICIES["amdet-2"].model_copy(update={"literal_gap": 0.9}).model_dump_json())
    bounds = tmp_path / "bounds.json"
    bounds.write_text(POLICIES["amdet-2"].model_copy(update={"calibrations": ()}).model_dump_json())
    for benchmark, difference in (
        (Benchmark(zoo=zoo, policy="amdet-2025-code"), "policy amdet-2025-code; found policy amdet-2"),
        (Benchmark(zoo=zoo, preset="quick"), "preset quick; found preset standard"),
        (Benchmark(zoo=zoo, seed=1), "scan=1; found seeds zoo=7 scan=42"),
        (Benchmark(zoo=zoo, policy=str(own)), "amdet bench judge"),
        (Benchmark(zoo=zoo, policy=str(bounds)), "amdet bench judge"),
    ):
        with pytest.raises(ConfigError, match=difference):
            run(benchmark, out)
    for field, value in (("name", "other"), ("recipe_sha256", "s")):
        write_labels(zoo, (label("a"),), toy, **{field: value})
        with pytest.raises(ConfigError, match=f"zoo {value}; found|recipe of the zoo {value}; found"):
            run(Benchmark(zoo=zoo), out)
    assert out.read_bytes() == before


def test_scans_are_judged_by_another_policy_and_nothing_is_measured_again(
    zoo: Path, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(Benchmark(zoo=zoo), tmp_path / "r.json")
    rows = (
        row(level="clean", evidence={"gap_k1": 0.5, "sweep_gap": 0.35}, model="over"),
        row("benign", level="suspicious", evidence={"clip_l: sweep_gap": 0.1, "clip_g: sweep_gap": 0.2}, model="under"),
        row("benign", level="clean", evidence={"sweep_gap": 0.1}, error="contrast: nan", model="failed"),
        row("benign", level="clean", evidence={}, model="nothing measured"),
        row(level="error", error="gone", model="gone"),
    )
    result = result.model_copy(update={"models": rows, "metrics": measure(rows)})
    policy = POLICIES["amdet-2"].model_copy(update={"calibrations": (), "name": "own"})
    calls.clear()
    anew = judge_again(result, policy)
    assert [one.level for one in anew.models] == ["suspicious", "clean", "inconclusive", "inconclusive", "error"]
    assert [one.flagged for one in anew.models] == [True, False, False, False, False]
    assert anew.models[0].score == pytest.approx(-0.05)  # to the gravest bound that was measured, 0.4
    assert anew.metrics == measure(anew.models)
    assert (anew.policy, anew.policy_sha256) == ("own", policy_sha256(policy))
    assert calls == []
    for other in (policy.model_copy(update={"literal_gap": 0.9}), POLICIES["amdet-2025-code"]):
        with pytest.raises(ConfigError, match="measure what those of amdet-2 did"):
            judge_again(result, other)


def test_judging_a_committed_result_again_changes_nothing() -> None:
    known = Path(__file__).parents[2] / "benchmarks" / "calibration" / "detection-train-amdet-2.json"
    result = read_detection(known)
    again = judge_again(result, POLICIES["amdet-2"])
    assert [one.level for one in again.models] == [one.level for one in result.models]
    assert [one.score for one in again.models] == pytest.approx([one.score for one in result.models], abs=1e-4)
    assert again.metrics.overall.recall == pytest.approx(result.metrics.overall.recall, abs=1e-5)


def test_a_base_that_is_not_the_labels_one_ends_the_run_before_any_scan(
    zoo: Path, calls: list[str], tmp_path: Path, other: TextEncoder
) -> None:
    write_labels(zoo, (label("a"),), other)
    with pytest.raises(ConfigError, match="base encoder of the labels"):
        run(Benchmark(zoo=zoo), tmp_path / "r.json")
    assert calls == []


def test_files_that_are_no_results_or_labels_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"labels at .*labels\.json"):
        run(Benchmark(zoo=tmp_path), tmp_path / "r.json")
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(ConfigError, match="labels of a zoo"):
        run(Benchmark(zoo=tmp_path), tmp_path / "r.json")
    with pytest.raises(StorageError, match="a benchmark's result"):
        read_detection(tmp_path / "r.json")
    with pytest.raises(ConfigError, match="first command: Field required"):
        read_detection(tmp_path / "labels.json")


@pytest.mark.slow
def test_the_number_of_processes_changes_no_result(tmp_path: Path, toy: TextEncoder, other: TextEncoder) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    models = {"base": toy, "half": toy, "unrelated": other}
    for name, encoder in models.items():
        write_encoder(encoder, folder / name, "hf", dtype=torch.float16 if name == "half" else torch.float32)
    half = toy.with_weights({name: w.half().float() for name, w in toy.weights.items()})
    written = {"half": half, "unrelated": other, "gone": toy}
    labels = tuple(label(name, "benign", fingerprint=trust.fingerprint(w)) for name, w in written.items())
    write_labels(folder, labels, toy)
    results = [run(Benchmark(zoo=folder, jobs=jobs), tmp_path / f"{jobs}.json") for jobs in (1, 2)]
    untimed = {"seconds": 0, "stages": {}}
    first, second = (json.dumps([row.model_dump() | untimed for row in result.models]) for result in results)
    assert first == second
    assert [row.level for row in results[0].models] == ["clean", "error", "error"]
    assert results[0].models[0].evidence == {"identical_to_trusted": 1.0}
    assert results[0].metrics.overall.could_not_tell == 2
    assert results[1].machine.threads == max(1, torch.get_num_threads() // 2)


def test_the_commit_is_read_from_the_checkout(tmp_path: Path) -> None:
    first, second = "0123456789abcdef" * 2 + "01234567", "f" * 40
    assert commit(tmp_path) is None
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit(tmp_path) is None
    (git / "packed-refs").write_text(f"# pack-refs\n{second} refs/heads/not/refs/heads/main\n{first} refs/heads/main\n")
    assert commit(tmp_path) == first[:9]
    (git / "refs" / "heads" / "main").write_text(f"{second}\n")
    assert commit(tmp_path) == second[:9]
    (git / "HEAD").write_text(f"{first}\n")
    assert commit(tmp_path) == first[:9]


@pytest.mark.parametrize("relative", [True, False])
def test_the_commit_is_read_from_a_worktree(relative: bool, tmp_path: Path) -> None:
    shared, worktree = tmp_path / "main" / ".git", tmp_path / "worktree"
    own = shared / "worktrees" / "worktree"
    own.mkdir(parents=True)
    worktree.mkdir()
    named = "../main/.git/worktrees/worktree" if relative else own
    (worktree / ".git").write_text(f"gitdir: {named}\n")
    (own / "commondir").write_text("../..\n")
    (own / "HEAD").write_text("ref: refs/heads/branch\n")
    (shared / "packed-refs").write_text(f"{'a' * 40} refs/heads/branch\n")
    (shared / "HEAD").write_text("b" * 40)
    assert commit(worktree) == "a" * 9
    (own / "HEAD").write_text("c" * 40)
    assert commit(worktree) == "c" * 9
