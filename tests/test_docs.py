"""Pages that are made from the code are up to date, and the documents name things that exist."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import amdet_core
from amdet_core.bench import Flips, picturing
from amdet_core.bench.metrics import measure
from amdet_core.bench.painting import Asked, Painting, PaintingBenchmark, PaintingMetrics
from amdet_core.bench.picturing import PicturedModel, PictureResult
from amdet_core.bench.repairing import METHODS, MethodResult, RepairedModel, RepairResult, add_up
from amdet_core.bench.results import Detection, Machine, ModelResult, Seeds, Share, ZooInfo, read_detection
from amdet_core.zoo.recipe import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generate")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("tables")


def detection(policy: str, *, complete: bool) -> Detection:
    """A result over two backdoored and two benign models, one of each flagged, with scores that tell nothing."""
    models = tuple(
        ModelResult(
            model=f"{label}-{i}", label=label, kind=kind, group=kind, fingerprint="", level="clean", score=float(i),
            flagged=i == 1, recovered=text, trigger_tokens=tokens, sim=sim, seconds=3.0,
            stages={"sweep": 2.04},
        )
        for label, kind, text, tokens, sim in (
            ("backdoored", "text-on-text", "exact", 3, 0.5), ("benign", "fine-tune", None, None, None),
        )
        for i in range(2)
    )  # fmt: skip
    return Detection(
        command="amdet bench detection",
        commit=None,
        machine=Machine(torch="2.0", threads=1, device="cpu"),
        zoo=ZooInfo(name="small", base_fingerprint="", recipe_sha256="", n_backdoored=2, n_benign=2, n_intentional=0),
        policy=policy,
        preset="standard",
        seeds=Seeds(zoo=0, scan=42),
        settings_sha256="",
        policy_sha256="",
        complete=complete,
        metrics=measure(models),
        models=models,
    )


def test_generated_pages_are_up_to_date(generate: Any) -> None:
    for path, page in generate.PAGES.items():
        assert path.read_text(encoding="utf-8") == page(), f"run python docs/generate.py: {path.name} is old"


def test_one_version_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared is not None
    assert declared[1] == amdet_core.__version__
    heads = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heads[0] in ("Unreleased", amdet_core.__version__)


def test_links_between_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_extras_are_installed_from_the_clone_as_no_package_index_has_them() -> None:
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "amdet_core").rglob("*.py")]
    named = {file.name for file in files if re.search(r"pip install \"?amdet", file.read_text(encoding="utf-8"))}
    assert not named


def test_readme_shows_every_complete_result_and_no_other(tables: Any) -> None:
    assert tables.results({}) == "Nothing is recorded yet.\n"
    first, second = (detection(policy, complete=True) for policy in ("amdet-2", "amdet-2025-code"))
    page = tables.results({"a.json": first, "b.json": second, "c.json": detection("unfinished", complete=False)})
    assert "unfinished" not in page
    assert (
        "| small | [amdet-2](a.json) | 2, 2 | 50.0% (1.3-98.7) | 50.0% (1.3-98.7) | 50.0% | 50.0% | 50.0% (11.2-88.8) "
        "| 0.0% (0.0-84.2) | 1.0%, at worst 0.5% | 3 |" in page
    )


RECORDED = sorted((ROOT / "benchmarks" / "results").glob("detection-*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_metrics_are_what_the_recorded_scans_add_up_to(path: Path) -> None:
    result = read_detection(path)
    recorded, again = (dict(numbers(metrics.model_dump())) for metrics in (result.metrics, measure(result.models)))
    assert recorded == pytest.approx(again, rel=1e-5, nan_ok=True)


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested data by where it stands; NaN for null."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{name}.{key}")
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from numbers(item, f"{name}.{i}")
    else:
        yield name, math.nan if value is None else value


def test_the_benchmarks_page_shows_kinds_and_stages(tables: Any) -> None:
    first, second = (detection(policy, complete=True) for policy in ("amdet-2", "amdet-2025-code"))
    unfinished = detection("unfinished", complete=False)
    page = tables.by_kind({"a.json": first, "b.json": second, "c.json": unfinished})
    assert "unfinished" not in page
    good = first.model_copy(update={"metrics": first.metrics.model_copy(update={"by_kind": {}})})
    assert tables.by_kind({"good.json": good}) == "\n"  # where nothing was to be flagged there is no table
    assert page.startswith("| recall in small | amdet-2 | amdet-2025-code |")
    assert "| text-on-text | 50.0% (1.3-98.7) of 2 | 50.0% (1.3-98.7) of 2 |" in page
    assert "| 2-5 | 100.0% (15.8-100.0) of 2, 2 exactly | 100.0% (15.8-100.0) of 2, 2 exactly |" in page
    assert "| SIM of the feature, median | 0.500 | 0.500 |" in page
    assert tables.stages({}) == "Nothing is recorded yet.\n"
    table = tables.stages({"a.json": first, "c.json": unfinished})
    assert table == "| mean seconds | sweep |\n|---|---|\n| [small, amdet-2](a.json) | 2.0 |\n"


def test_readme_shows_what_was_aimed_at_and_what_was_reached(tables: Any) -> None:
    standard, other = (recorded("standard", policy, "adaptive") for policy in ("amdet-2", "amdet-2025-code"))
    hard = recorded("hard", "amdet-2", "under noise")
    quick = recorded("standard", "amdet-2", "adaptive").model_copy(update={"preset": "quick", "models": ()})
    alone = standard.model_copy(update={"anchor": "none"})
    elsewhere = detection("amdet-2", complete=True)
    honest = recorded("unseen", "amdet-2", "")
    honest = honest.model_copy(update={"models": tuple(m for m in honest.models if m.label == "benign")})
    flips = Flips(
        command="", anchor="base", zoo="standard", policy="amdet-2", preset="quick", seeds=(1, 2),
        models=Share.of([(0, 1)]), scans=Share.of([(0, 2)]), rows=(),
    )  # fmt: skip
    given = {"quick": quick, "a": standard, "b": other, "c": hard, "d": alone, "e": elsewhere, "h": honest}
    given |= {f"{name}, related": given[name].model_copy(update={"anchor": "relative"}) for name in ("a", "h")}
    work = {"quick": 3.0, "standard": 12.0}
    sweeps = {preset: {"sweep": {"seconds": 1.0, "giga_multiplications": n}} for preset, n in work.items()}
    costs = {"policy": "amdet-2", "costs": {"x": sweeps}}
    page = tables.aims(given, {"f": flips}, costs).splitlines()
    assert page[0] == "| | aim | amdet-2 | amdet-2025-code |"
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in page[2:] if (cells := line.split("|"))}
    half = "50.0% (1.3-98.7) of 2"
    assert rows["recall: trained less, more, or against the published detector"] == [">= 95%", half, half]
    assert rows["recall: by attackers who know this one"] == [">= 85%", half, "-"]
    assert rows["recall: attributes and grammatical patterns"] == [">= 80%", "-", "-"]
    assert rows["false positives"] == ["<= 1% of 150", "50.0% (11.8-88.2) of 6", half]
    assert rows["trigger of 2-5 tokens told"] == [">= 80%", "100.0% (39.8-100.0) of 4", "100.0% (15.8-100.0) of 2"]
    assert rows["SIM of the feature, median"] == [">= 0.95", "0.500 of 4", "0.500 of 2"]
    assert rows["no anchor: AUROC"] == [">= 95%", "50.0% (11.2-88.8) of 4", "-"]
    assert rows["a relative as anchor: recall, false positives"][1:] == [f"{half}, 50.0% (6.8-93.2) of 4", "-"]
    assert rows["verdicts that another seed changes"] == ["<= 1%", "0.0% (0.0-84.2) of 2", "-"]
    assert rows["quick's multiplications, of standard's, for two honest encoders"] == ["<= 10%", "25.0%", "-"]
    assert tables.aims({"e": elsewhere}, {}, costs) == "Nothing is recorded yet.\n"


def test_every_group_of_an_attack_belongs_to_an_aim(tables: Any) -> None:
    named = [group for groups in tables.ATTACKS.values() for group in groups]
    assert len(named) == len(set(named))
    made = {g.name for zoo in ("standard", "hard") for g in Recipe.load(zoo).groups if g.label == "backdoored"}
    assert set(named) == made


def recorded(zoo: str, policy: str, group: str) -> Detection:
    """A result over a zoo whose backdoored models are all of one group."""
    made = detection(policy, complete=True)
    models = tuple(m.model_copy(update={"group": group}) if m.label == "backdoored" else m for m in made.models)
    return made.model_copy(update={"zoo": made.zoo.model_copy(update={"name": zoo}), "models": models})


def repairs(*, complete: bool) -> RepairResult:
    """A result over one backdoored model that every method healed, and a benign one that was left alone."""
    healed = MethodResult(
        nearer_to_own=1.0, own_cosine=0.95, asr=0.0, clean_cosine=0.99, level="clean", seconds=2.0
    )  # fmt: skip
    models = (
        RepairedModel(
            model="m", label="backdoored", kind="attribute", group="g", fingerprint="", seconds=1.0,
            level="suspicious", action="repaired", methods=dict.fromkeys(METHODS, healed),
        ),
        RepairedModel(
            model="n", label="benign", kind="fine-tune", group="g", fingerprint="", seconds=1.0,
            level="clean", action="nothing",
        ),
    )  # fmt: skip
    return RepairResult(
        **detection("amdet-2", complete=complete).model_dump(exclude={"anchor", "policy_sha256", "metrics", "models"}),
        metrics=add_up(models),
        models=models,
    )


def test_pages_show_every_complete_repair_and_no_other(tables: Any) -> None:
    for table in (tables.repairs, tables.repairs_by_kind):
        assert table({"a.json": repairs(complete=False)}) == "Nothing is recorded yet.\n"
    page = tables.repairs({"a.json": repairs(complete=True)})
    kinds = tables.repairs_by_kind({"a.json": repairs(complete=True)})
    assert page.endswith(" |\n\nHeal left 100.0% (2.5-100.0) of 1 benign models of [small](a.json) as they were.\n")
    assert kinds.startswith("[all methods on small, amdet-2](a.json)\n\n| kind | method |")
    for method in METHODS:
        cells = (
            f"{method} | 1 of 1 | 100.0% | 0.950 | 0.0% | 0.990 | 100.0% (2.5-100.0) "
            "| 100.0% (2.5-100.0) | 100.0% (2.5-100.0) | 2 |"
        )
        assert f"| [small](a.json) | {cells}" in page
        assert f"| attribute | {cells}" in kinds
    one = repairs(complete=True).model_copy(update={"methods": ("heal",)})
    both = tables.repairs_by_kind({"a.json": one, "b.json": repairs(complete=True)})
    assert both.startswith("[heal on small, amdet-2](a.json)\n")
    assert " |\n\n[all methods on small, amdet-2](b.json)\n" in both, "no line of another's table"


def test_pages_show_what_painters_were_measured_to_do(tables: Any) -> None:
    share = Share.of([(3, 4)])
    asked = Asked(right=share, right_by_seed=(share,), part=share, shape=share)
    metrics = PaintingMetrics(
        reader_one=share, reader_two=share, vae_psnr=28.1, reader_one_after_vae=share, retrieval_by_picture=share,
        retrieval_by_caption=share, singles=asked, doubles=asked, unseen=asked, seconds_per_picture=0.5,
    )  # fmt: skip
    machine = Machine(torch="2", threads=1, device="cpu")
    made = Painting(command="", commit=None, machine=machine, settings=PaintingBenchmark(), metrics=metrics)
    page = tables.painter(made)
    assert "| one object: colour and shape right | 75.0% (19.4-99.4) | 4 |" in page
    assert "VAE 28.1 dB; 0.50 s a picture" in page
    row = {"label": "backdoored", "kind": "k", "group": "g", "fingerprint": "f", "seconds": 1.0, "target": "a cat"}
    models = (PicturedModel(model="a", feature=(3, 4), looks_like="a cat", **row),)
    zoo = ZooInfo(name="visible", base_fingerprint="", recipe_sha256="", n_backdoored=1, n_benign=0, n_intentional=0)
    seen = PictureResult(
        command="", commit=None, machine=machine, zoo=zoo, seeds=Seeds(zoo=1, scan=1), settings_sha256="",
        complete=True, models=models, metrics=picturing.add_up(models),
    )  # fmt: skip
    assert "the target is seen | 75.0% (19.4-99.4) | 4 |" in tables.pictures(seen)
    assert "| models whose report names the target | 100.0% (2.5-100.0) | 1 |" in tables.pictures(seen)
