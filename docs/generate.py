"""Write the pages of docs/ that are made from the code: ``python docs/generate.py``. A test holds them."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from amdet_core import config
from amdet_core.bench import (
    Detection,
    Flips,
    ImageResult,
    Painting,
    PictureResult,
    RepairResult,
    read_detection,
    read_guarding,
    read_images,
    read_painting,
    read_pictures,
    read_repairing,
)
from amdet_core.bench.repairing import METHODS
from amdet_core.bench.results import Share, Texts
from amdet_core.calibration import Calibration
from amdet_core.policy import DEFAULT_POLICY, FARTHER, POLICIES
from amdet_core.report import schema_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKS = "<!-- results -->\n", "<!-- /results -->"
"""The lines of README.md between which the tables of results stand."""
REPAIR_MARKS = "<!-- repairs -->\n", "<!-- /repairs -->"
"""The same for repairs."""
PAINTER_MARKS = "<!-- painter -->\n", "<!-- /painter -->"
PICTURES_MARKS = "<!-- pictures -->\n", "<!-- /pictures -->"
"""The same in docs/pocket.md."""
GUARD_MARKS = "<!-- guard -->\n", "<!-- /guard -->"
FLIPS_MARKS = "<!-- flips -->\n", "<!-- /flips -->"
STAGE_MARKS = "<!-- stages -->\n", "<!-- /stages -->"
COST_MARKS = "<!-- cost -->\n", "<!-- /cost -->"
"""The same in docs/benchmark.md."""
IMAGE_MARKS = "<!-- encoders -->\n", "<!-- /encoders -->"
"""The same in docs/images.md."""
NOTHING = "Nothing is recorded yet.\n"


def configuration() -> str:
    """Every setting with its default."""
    return "\n".join(_configuration()) + "\n"


def _configuration() -> Iterator[str]:
    yield "# Settings\n"
    yield "The settings of every algorithm with their defaults, as a report records them under `config`."
    yield "This page is generated from `amdet_core/config/`.\n"
    for kind in (
        config.ScanConfig,
        config.ContrastConfig,
        config.SweepConfig,
        config.MovedConfig,
        config.PatternConfig,
        config.SearchConfig,
        config.AmdetConfig,
        config.LandscapeConfig,
        config.GuardConfig,
        config.TextOnTextConfig,
        config.TextOnPairConfig,
        config.AttributeConfig,
        config.SyntacticConfig,
        config.EmbeddingRowConfig,
        config.RankOneConfig,
        config.FineTuneConfig,
        config.CureConfig,
        config.SpectralConfig,
        config.RestoreConfig,
        config.DistilConfig,
        config.EraseConfig,
        config.HealConfig,
        config.RenderConfig,
        config.MimicConfig,
        config.SimclrConfig,
        config.BadEncoderConfig,
        config.ImageMimicConfig,
        config.DownstreamConfig,
    ):
        yield f"## {kind.__name__}\n\n{inspect.getdoc(kind)}\n"
        yield "| setting | default | meaning |\n|---|---|---|"
        for name, field in kind.model_fields.items():
            default = field.default if not isinstance(field.default, config.Config) else "see below"
            yield f"| `{name}` | `{default}` | {field.description} |"
        yield ""


def policies() -> str:
    """Every built-in policy with its bounds."""
    return "\n".join(_policies()) + "\n"


def _policies() -> Iterator[str]:
    yield "# Policies\n"
    yield f"How evidence becomes a verdict. The default is `{DEFAULT_POLICY}`. A policy is data: the `config.policy`"
    yield "of any report, changed and saved as a file, can be given to `amdet scan --policy FILE` and"
    yield "`amdet judge REPORT --policy FILE`. This page is generated from `amdet_core/policies/`.\n"
    yield "Whatever the policy: an encoder that equals a trusted one is `clean`; a stage that failed, or evidence that"
    yield "is required and was not measured, makes it `inconclusive` unless something was found.\n"
    for policy in POLICIES.values():
        yield f"## {policy.name}\n\n{policy.description}. Inversion: `{policy.method}`. "
        yield f"Error rate: {policy.error_rate}.\n"
        yield "| level | all of these hold | in words |\n|---|---|---|"
        for finding in policy.findings:
            when = ", ".join(f"`{condition}`" for condition in finding.when)
            yield f"| {finding.level.name.lower()} | {when} | {finding.reason} |"
        yield f"\nRequired: {', '.join(f'`{name}`' for name in policy.required)}.\n"
        if policy.drift is not None:
            yield "One that goes further than the honest ones below, and drifts much farther, is `inconclusive`"
            yield f"(`drift` above {FARTHER} x {policy.drift:g}), unless a finding of the gravest level holds,"
            yield "or one of what is not weighed below.\n"
        for calibration in policy.calibrations:
            yield from _calibration(calibration)


def _calibration(calibration: Calibration) -> Iterator[str]:
    """How far honest encoders go, and what is flagged."""
    honest, backdoored = len(calibration.null), calibration.n_backdoored
    known = (
        f" Of {backdoored} backdoored ones of the same zoos, which it does not know, {calibration.caught} are flagged."
    )
    yield (
        f"Learnt from {honest} {calibration.family}: suspicious where any of these goes more than "
        f"{calibration.bound:.2f} times as far as they do, a rate of {calibration.kept_rate:.1%}; those bounds flag "
        f"{calibration.alarms} of them.{known if backdoored else ''}\n"
    )
    yield "| evidence | honest ones up to | says |\n|---|---|---|"
    for term in calibration.terms:
        yield f"| `{term.name}` | {max(term.honest, term.least):.3f} | {term.words} |"
    yield ""


def _definitions() -> dict[str, Any]:
    """The recorded interface of every node."""
    found: dict[str, Any] = json.loads((ROOT / "tests" / "comfy" / "definitions.json").read_text(encoding="utf-8"))
    return found


def _inputs(node: dict[str, Any]) -> dict[str, Any]:
    return {**node["input"].get("required", {}), **node["input"].get("optional", {})}


def english() -> str:
    """The English texts of the nodes, as ComfyUI looks for them."""
    texts = {
        name: {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": {
                key: {"name": about.get("display_name", key), "tooltip": about["tooltip"]}
                for key, (_, about) in _inputs(node).items()
            },
            "outputs": {
                str(i): {"name": shown, "tooltip": tooltip}
                for i, (shown, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))
            },
        }
        for name, node in _definitions().items()
    }
    return json.dumps(texts, indent=2, ensure_ascii=False) + "\n"


def help_page(name: str) -> str:
    """A node's help: what docs/nodes says, with tables of its inputs and outputs."""
    node = _definitions()[name]
    optional = node["input"].get("optional", {})
    lines = ["## Inputs\n", "| input | type | |", "|---|---|---|"]
    for key, (kind, about) in _inputs(node).items():
        note = " Optional." if key in optional else ""
        lines.append(f"| `{key}` | {kind} | {about['tooltip']}{note} |")
    lines += ["", "## Outputs\n", "| output | type | |", "|---|---|---|"]
    for key, kind, tooltip in zip(node["output_name"], node["output"], node["output_tooltips"], strict=True):
        lines.append(f"| `{key}` | {kind} | {tooltip} |")
    prose = (ROOT / "docs" / "nodes" / f"{name}.md").read_text(encoding="utf-8")
    assert prose.count("{interface}") == 1, f"docs/nodes/{name}.md says where the tables go"
    return prose.replace("{interface}", "\n".join(lines))


def readme() -> str:
    """README.md with the results that are recorded."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    repaired = {_path(path): read_repairing(path) for path in sorted(RESULTS.glob("repair-*.json"))}
    return _between(_between(page, MARKS, results(_detections())), REPAIR_MARKS, repairs(repaired))


def _detections() -> dict[str, Detection]:
    """The recorded results of detection, by the path of their file."""
    found = sorted(RESULTS.glob("detection-*.json"), key=lambda path: path.stem)
    return {_path(path): read_detection(path) for path in found}


def _complete(recorded: Mapping[str, Detection]) -> dict[str, Detection]:
    return {path: result for path, result in recorded.items() if result.complete}


def _path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _between(page: str, marks: tuple[str, str], text: str) -> str:
    """The page with a text between two of its lines."""
    before, rest = page.split(marks[0])
    _, after = rest.split(marks[1])
    return before + marks[0] + text + marks[1] + after


def repairs(recorded: Mapping[str, RepairResult]) -> str:
    """Tables of the complete results, by the path of their file: every method over all models, then by kind."""
    return "\n".join(_repairs({path: result for path, result in recorded.items() if result.complete}))


def _repairs(recorded: Mapping[str, RepairResult]) -> Iterator[str]:
    if not recorded:
        yield "No repair is recorded yet.\n"
    columns = (
        "kind", "method", "n", "nearer to own", "cosine to own", "ASR", "clean cosine", "re-scan clean", "healed",
        "erased", "seconds",
    )  # fmt: skip
    for path, result in recorded.items():
        unchanged = result.metrics.unchanged
        what = "all methods" if result.methods == METHODS else ", ".join(result.methods)
        yield f"[{what} on {result.zoo.name}, {result.policy}]({path})"
        if unchanged.n:
            share = _percent(unchanged.share, unchanged.interval)
            yield f"Heal left {share} of {unchanged.n} benign models as they were."
        yield ""
        yield f"| {' | '.join(columns)} |\n|" + "---|" * len(columns)
        for kind, methods in {"all": result.metrics.overall, **result.metrics.by_kind}.items():
            for name, m in methods.items():
                cells = (
                    kind, name, f"{m.repaired} of {m.n}", _percent(m.nearer_to_own), _cosine(m.own_cosine),
                    _percent(m.asr), _cosine(m.clean_cosine),
                    _percent(m.rescanned_clean.share, m.rescanned_clean.interval),
                    _percent(m.healed.share, m.healed.interval),
                    _percent(m.erased.share, m.erased.interval), "-" if m.seconds is None else f"{m.seconds:.0f}",
                )  # fmt: skip
                yield f"| {' | '.join(cells)} |"
        yield ""


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def pocket() -> str:
    """docs/pocket.md with the painter's recorded results."""
    page = (ROOT / "docs" / "pocket.md").read_text(encoding="utf-8")
    painted, seen = RESULTS / "pocket.json", RESULTS / "pictures-visible.json"
    page = _between(page, PAINTER_MARKS, painter(read_painting(painted)) if painted.exists() else NOTHING)
    return _between(page, PICTURES_MARKS, pictures(read_pictures(seen)) if seen.exists() else NOTHING)


def images() -> str:
    """docs/images.md with the recorded result."""
    page, recorded = (ROOT / "docs" / "images.md").read_text(encoding="utf-8"), RESULTS / "image.json"
    return _between(page, IMAGE_MARKS, encoders(read_images(recorded)) if recorded.exists() else NOTHING)


def encoders(result: ImageResult) -> str:
    """What classifiers say on features of each encoder, as a table."""
    columns = ("accuracy", "ASR", "ASR, other classes", "without the trigger", "taken for any one class")
    lines = [f"| encoder | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, told in result.metrics.items():
        shares = (told.accuracy, told.asr, told.asr_others, told.said_others, told.gathered)
        cells = " | ".join(_percent(share.share, share.interval) for share in shares)
        lines.append(f"| {name} | {cells} |")
    by_seed = "; ".join(
        f"{name} {', '.join(_percent(one.told[name].asr_others.share) for one in result.repetitions)}"
        for name in ("backdoored", "purified")
    )
    pictures, settings = result.metrics["clean"].accuracy.n, result.settings
    return "\n".join(lines) + (
        f"\n\n{settings.seeds} seeds from {settings.seed} on, {pictures} answers. ASR in other classes by seed: "
        f"{by_seed}. [Result](../benchmarks/results/image.json).\n"
    )


def benchmark() -> str:
    """docs/benchmark.md with the recorded costs of a scan, and what other benchmarks say."""
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    recorded, guarded = RESULTS / "cost.json", sorted(RESULTS.glob("guard-*.json"), reverse=True)
    page = _between(page, COST_MARKS, costs(json.loads(recorded.read_bytes())) if recorded.exists() else NOTHING)
    page = _between(page, STAGE_MARKS, stages(_detections()))
    page = _between(page, GUARD_MARKS, "\n".join(map(guard, guarded)) or NOTHING)
    return _between(page, FLIPS_MARKS, "\n".join(map(flips, sorted(RESULTS.glob("flips-*.json")))) or NOTHING)


def stages(recorded: Mapping[str, Detection]) -> str:
    """What every stage took, as one table of the complete results that tell it, by the path of their file."""
    told = {path: result for path, result in _complete(recorded).items() if result.metrics.seconds_by_stage}
    if not told:
        return NOTHING
    names = list(dict.fromkeys(name for result in told.values() for name in result.metrics.seconds_by_stage))
    rows = [f"| mean seconds | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for path, result in told.items():
        seconds = result.metrics.seconds_by_stage
        cells = (f"{seconds[name]:.1f}" if name in seconds else "-" for name in names)
        rows.append(f"| [{result.zoo.name}, {result.title}](../{path}) | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def flips(path: Path) -> str:
    """Which verdicts depend on the seed."""
    result = Flips.model_validate_json(path.read_bytes())
    scans, seeds = result.scans, ", ".join(map(str, result.seeds))
    rows = "; ".join(f"{row.model} ({row.group}), flagged by {row.flagged} of {row.n}" for row in result.rows)
    return (
        f"{result.policy}, preset {result.preset}, {result.models.n} models of `{result.zoo}`, seeds {seeds}: "
        f"{_percent(scans.share, scans.interval)} of {scans.n} scans say otherwise than most of their model"
        f"{': ' if rows else ''}{rows}. [Result](../{_path(path)}).\n"
    )


def guard(path: Path) -> str:
    """What a result of the guard's benchmark says, as a table."""
    result = read_guarding(path)
    m = result.metrics
    rows = {
        "triggered prompts flagged (recall)": m.recall,
        **{f"- {kind}": share for kind, share in m.recall_by_kind.items()},
        "models caught": m.caught,
        "trigger named first": m.first,
        "trigger named": m.named,
        **{
            f"false alarms, {label} models, {style}": share
            for label, styles in m.false_alarms.items()
            for style, share in styles.items()
        },
        **{f"{label} models without a false alarm": share for label, share in m.quiet.items()},
    }
    return _shares(rows) + (
        f"\n{len(result.models)} models of `{result.zoo.name}`, {m.failed} of them failed. A prompt takes "
        f"{m.milliseconds:.0f} ms, setting the bound {m.calibration_seconds:.0f} s (medians, "
        f"{result.machine.threads} thread). [Result](../{_path(path)}).\n"
    )


def costs(recorded: Mapping[str, Any]) -> str:
    """What ``benchmarks/cost.py`` measured: a table for each suspect, with a line for each stage that ran."""
    return "\n".join(_costs(recorded)) + "\n"


def _costs(recorded: Mapping[str, Any]) -> Iterator[str]:
    units = ("seconds", "giga_multiplications")
    for suspect, presets in recorded["costs"].items():
        quick, standard = presets["quick"], presets["standard"]
        yield f"| {suspect} | quick, s | standard, s | quick, 10^9 | standard, 10^9 |\n|---|---|---|---|---|"
        rows = {
            stage: [
                preset.get(stage, dict.fromkeys(units, 0.0))[unit] for unit in units for preset in (quick, standard)
            ]
            for stage in standard
        }
        rows = {stage: values for stage, values in rows.items() if any(values)}
        whole = [sum(column) for column in zip(*rows.values(), strict=True)]
        for stage, values in {**rows, "all": whole}.items():
            yield f"| {stage} | {' | '.join(f'{value:.1f}' for value in values)} |"
        seconds, products = (whole[2 * i] / whole[2 * i + 1] for i in range(2))
        yield f"| quick by standard | {seconds:.2f} | | {products:.2f} | |\n"
    machine = recorded["machine"]
    yield f"One run on {machine['threads']} thread of a {machine['processor']} processor, torch {recorded['torch']}."
    yield "[Result](../benchmarks/results/cost.json)."


def painter(result: Painting) -> str:
    """What the painter's benchmark says, as a table."""
    m, settings = result.metrics, result.settings
    rows = {
        "one object: colour and shape right": m.singles.right,
        "two objects: both right": m.doubles.right,
        "two objects: at least one right": m.doubles.part,
        "pairs that it never saw: colour and shape right": m.unseen.right,
        "the reader, on held-out drawings of one object": m.reader_one,
        "the reader, on those drawings behind the VAE": m.reader_one_after_vae,
        "pictures whose caption is nearest of all (R@1)": m.retrieval_by_picture,
        "captions whose picture is nearest of all (R@1)": m.retrieval_by_caption,
    }
    seeds = ", ".join(_percent(share.share) for share in m.singles.right_by_seed)
    return _shares(rows) + (
        f"\nOver {settings.seeds} seeds (one object: {seeds}), guidance {settings.guidance:g}, {settings.steps} steps. "
        f"VAE {m.vae_psnr:.1f} dB; {m.seconds_per_picture:.2f} s a picture. "
        "[Result](../benchmarks/results/pocket.json).\n"
    )


def pictures(result: PictureResult) -> str:
    """What the benchmark of pictures says, as a table."""
    m = result.metrics
    rows = {
        "with the recovered feature: the target is seen": m.feature,
        "models in which most of these pictures show it": m.feature_by_model,
        "with the true trigger: the target is seen": m.trigger,
        "the same feature in the honest base: the target is seen": m.control,
        "clean captions: what they ask for is seen": m.clean,
        "clean captions in the honest base": m.base_clean,
        "models whose report names the target": m.named,
    }
    return _shares(rows) + (
        f"\n{len(result.models)} models, {m.failed} of them failed. "
        "[Result](../benchmarks/results/pictures-visible.json).\n"
    )


def _shares(rows: Mapping[str, Share]) -> str:
    lines = [f"| {name} | {_percent(row.share, row.interval)} | {row.n} |" for name, row in rows.items()]
    return "\n".join(["| | share (95% interval) | n |", "|---|---|---|", *lines]) + "\n"


def results(recorded: Mapping[str, Detection]) -> str:
    """Tables of the complete results, by the path of their file: one row for each, then recall by kind and zoo."""
    return "\n".join(_results(_complete(recorded))) + "\n"


def _results(recorded: Mapping[str, Detection]) -> Iterator[str]:
    if not recorded:
        yield "No result is recorded yet."
        return
    columns = (
        *("zoo", "policy", "backdoored, benign", "recall", "false positives", "precision", "F1", "AUROC"),
        *("recall at 1% FPR", "PPV at 1%", "seconds"),
    )
    yield f"| {' | '.join(columns)} |\n|" + "---|" * len(columns)
    for path, result in recorded.items():
        m = result.metrics.overall
        cells = (
            result.zoo.name,
            f"[{result.title}]({path})",
            f"{m.n_backdoored}, {m.n_benign}",
            _percent(m.recall, m.recall_interval),
            _percent(m.fpr, m.fpr_interval),
            _percent(m.precision),
            _percent(m.f1),
            _percent(m.auroc, m.auroc_interval),
            _percent(m.tpr_at_1pct_fpr, m.tpr_at_1pct_fpr_interval),
            f"{_percent(m.ppv_at_1pct_prevalence)}, at worst {_percent(m.ppv_pessimistic)}",
            "-" if m.seconds_mean is None else f"{m.seconds_mean:.0f}",
        )
        yield f"| {' | '.join(cells)} |"
    for zoo in dict.fromkeys(result.zoo.name for result in recorded.values()):
        policies = {r.title: r.metrics.by_kind for r in recorded.values() if r.zoo.name == zoo}
        yield f"\n| recall in {zoo} | {' | '.join(policies)} |\n|" + "---|" * (len(policies) + 1)
        for kind in dict.fromkeys(kind for by_kind in policies.values() for kind in by_kind):
            found = [by_kind.get(kind) for by_kind in policies.values()]
            cells = ["-" if k is None else f"{_percent(k.recall, k.interval)} of {k.n}" for k in found]
            yield f"| {kind} | {' | '.join(cells)} |"
        yield from _told([r for r in recorded.values() if r.zoo.name == zoo and r.metrics.by_trigger_tokens])


def _told(recorded: Sequence[Detection]) -> Iterator[str]:
    """How often the trigger's text is told, by its length, and how alike the recovered feature is to it."""
    if not recorded:
        return
    yield f"\n| trigger of so many tokens | {' | '.join(result.title for result in recorded)} |"
    yield "|---" * (len(recorded) + 1) + "|"
    tables = [result.metrics.by_trigger_tokens for result in recorded]
    for length in dict.fromkeys(length for table in tables for length in table):
        yield f"| {length} | {' | '.join(_texts(table.get(length)) for table in tables)} |"
    medians = ("-" if (m := result.metrics.sim_median) is None else f"{m:.3f}" for result in recorded)
    yield f"| SIM of the feature, median | {' | '.join(medians)} |"


def _texts(found: Texts | None) -> str:
    if found is None:
        return "-"
    told, exact = found.recovered, found.exact
    return f"{_percent(told.share, told.interval)} of {told.n}, {exact.count} exactly"


def _percent(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" + (f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else "")


PAGES = {
    ROOT / "locales" / "en" / "nodeDefs.json": english,
    **{ROOT / "web" / "docs" / f"{name}.md": partial(help_page, name) for name in _definitions()},
    ROOT / "docs" / "benchmark.md": benchmark,
    ROOT / "docs" / "images.md": images,
    ROOT / "docs" / "configuration.md": configuration,
    ROOT / "docs" / "policies.md": policies,
    ROOT / "docs" / "pocket.md": pocket,
    ROOT / "README.md": readme,
    ROOT / "amdet_core" / "report" / "schema.json": lambda: schema_json().decode(),
}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8", newline="\n")
        sys.stdout.write(f"{path}\n")
