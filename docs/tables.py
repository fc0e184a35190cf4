"""What recorded results say, as tables of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, TypeVar

from amdet_core.bench import Detection, Flips, GuardResult, Painting, PictureResult, RepairResult
from amdet_core.bench.images import ImageResult
from amdet_core.bench.metrics import LENGTHS
from amdet_core.bench.repairing import METHODS, MethodMetrics
from amdet_core.bench.results import ModelResult, Overall, Result, Share, Texts

R = TypeVar("R", bound=Result)
NOTHING = "Nothing is recorded yet.\n"


def results(recorded: Mapping[str, Detection]) -> str:
    """The complete results, by the path of their file: one row for each."""
    return "\n".join(_results(_complete(recorded))) + "\n"


def _results(recorded: Mapping[str, Detection]) -> Iterator[str]:
    if not recorded:
        yield NOTHING.strip()
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


ATTACKS = {
    "injected as published, by the usual means": (
        *(f"text-on-text {what}" for what in ("word", "homoglyph", "zero-width", "emoji", "letters", "phrase")),
        *(f"text-on-text {what}" for what in ("sentence", "MSE", "MAE", "several triggers")),
        *("long triggers", "text-on-pair", "LoRA", "embedding row", "rank one"),
    ),
    "trained less, more, or against the published detector": (
        *("text-on-text conservative", "text-on-text aggressive", "adaptive", "adaptive, all coefficients"),
    ),
    "by attackers who know this one": (
        *("partial triggers as negatives", "frozen tables", "on a fine-tune", "at the start alone"),
        *("in long prompts alone", "under noise", "partial negatives, frozen tables"),
        *("frozen tables on a fine-tune", "LoRA on a fine-tune"),
    ),
    "attributes and grammatical patterns": ("attribute", "syntactic"),
}
"""Groups of the recipes ``standard`` and ``hard`` that one recall was aimed at for."""
SMALL = ("standard", "hard", "unseen")
"""Zoos of the small encoder on which nothing was set."""
TOLD = ("exact", "equivalent")
"""What is said of a trigger whose text is told."""


@dataclass(frozen=True)
class _Column:
    """What is recorded of one policy on the small encoder.

    Attributes:
        scans: against the base; of every zoo those by the preset that scanned most.
        related: against a relative, of every zoo.
        lonely: what scans without an anchor add up to.
        flips: scans that say otherwise than most of their model.
        quick: multiplications by the preset quick as a share of those by standard, for each honest encoder.
    """

    scans: tuple[ModelResult, ...]
    related: tuple[ModelResult, ...]
    lonely: Overall | None
    flips: Share | None
    quick: tuple[float, ...]

    @classmethod
    def of(cls, policy: str, results: Sequence[Detection], flips: Iterable[Flips], costs: Mapping[str, Any]) -> _Column:
        usual: dict[str, Detection] = {}
        for result in results:
            known = usual.get(result.zoo.name)
            if result.anchor == "base" and (known is None or len(result.models) > len(known.models)):
                usual[result.zoo.name] = result
        return cls(
            scans=tuple(model for result in usual.values() for model in result.models),
            related=tuple(model for result in results if result.anchor == "relative" for model in result.models),
            lonely=next((result.metrics.overall for result in results if result.anchor == "none"), None),
            flips=next((one.scans for one in flips if one.policy == policy), None),
            quick=tuple(_quick(one)[1] for one in costs["costs"].values() if costs["policy"] == policy),
        )

    @property
    def backdoored(self) -> list[ModelResult]:
        return [model for model in self.scans if model.label == "backdoored"]

    def recall(self, groups: Sequence[str]) -> str:
        return _counted(model.flagged for model in self.backdoored if model.group in groups)

    def alarms(self) -> str:
        return _flagged(self.scans, "benign")

    def told(self, length: str) -> str:
        those = (model for model in self.backdoored if model.trigger_tokens in LENGTHS[length])
        return _counted(model.recovered in TOLD for model in those)

    def sim(self) -> str:
        known = [model.sim for model in self.backdoored if model.sim is not None]
        return f"{median(known):.3f} of {len(known)}" if known else "-"

    def relative(self) -> str:
        return ", ".join(_flagged(self.related, label) for label in ("backdoored", "benign")) if self.related else "-"

    def alone(self) -> str:
        if (m := self.lonely) is None:
            return "-"
        return f"{_percent(m.auroc, m.auroc_interval)} of {m.n_backdoored + m.n_benign}"

    def flipped(self) -> str:
        return "-" if self.flips is None else f"{_percent(self.flips.share, self.flips.interval)} of {self.flips.n}"

    def cost(self) -> str:
        return ", ".join(map(_percent, sorted(self.quick))) or "-"


AIMS: Sequence[tuple[str, str, Callable[[_Column], str]]] = (
    *(
        (f"recall: {name}", aim, partial(_Column.recall, groups=groups))
        for (name, groups), aim in zip(ATTACKS.items(), (">= 98%", ">= 95%", ">= 85%", ">= 80%"), strict=True)
    ),
    ("false positives", "<= 1% of 150", _Column.alarms),
    ("trigger of 1 token told", ">= 95%", partial(_Column.told, length="1")),
    ("trigger of 2-5 tokens told", ">= 80%", partial(_Column.told, length="2-5")),
    ("trigger of 6-15 tokens told", ">= 50%", partial(_Column.told, length="6-15")),
    ("SIM of the feature, median", ">= 0.95", _Column.sim),
    ("a relative as anchor: recall, false positives", ">= 90%, <= 2%", _Column.relative),
    ("no anchor: AUROC", ">= 95%", _Column.alone),
    ("verdicts that another seed changes", "<= 1%", _Column.flipped),
    ("quick's multiplications, of standard's, for two honest encoders", "<= 10%", _Column.cost),
)
"""What was aimed at, and how it is told from what is recorded of a policy."""


def aims(recorded: Mapping[str, Detection], flips: Mapping[str, Flips], costs: Mapping[str, Any]) -> str:
    """What was aimed at before anything was measured, and what the complete results on the small encoder say."""
    results = [result for result in _complete(recorded).values() if result.zoo.name in SMALL]
    if not results:
        return NOTHING
    columns = {
        policy: _Column.of(policy, [result for result in results if result.policy == policy], flips.values(), costs)
        for policy in dict.fromkeys(result.policy for result in results)
    }
    lines = [f"| | aim | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    lines += [f"| {name} | {aim} | {' | '.join(map(cell, columns.values()))} |" for name, aim, cell in AIMS]
    return "\n".join(lines) + "\n"


def _flagged(scans: Iterable[ModelResult], label: str) -> str:
    return _counted(model.flagged for model in scans if model.label == label)


def _counted(hits: Iterable[bool]) -> str:
    share = Share.of((int(hit), 1) for hit in hits)
    return f"{_percent(share.share, share.interval)} of {share.n}" if share.n else "-"


def by_kind(recorded: Mapping[str, Detection]) -> str:
    """Recall by kind of attack, and triggers told by their length, of the complete results: two tables for each zoo."""
    return "\n".join(_by_kind(_complete(recorded))).strip("\n") + "\n" if recorded else NOTHING


def _by_kind(recorded: Mapping[str, Detection]) -> Iterator[str]:
    for zoo in dict.fromkeys(result.zoo.name for result in recorded.values() if result.metrics.by_kind):
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
        rows.append(f"| [{result.zoo.name}, {result.title}]({path}) | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


REPAIR_COLUMNS = (
    *("method", "n", "nearer to own", "cosine to own", "ASR", "clean cosine", "re-scan clean", "healed", "erased"),
    "seconds",
)


def repairs(recorded: Mapping[str, RepairResult]) -> str:
    """What every method did over all models of the complete results, by the path of their file, as one table."""
    return "\n".join(_repairs(_complete(recorded))) + "\n"


def _repairs(recorded: Mapping[str, RepairResult]) -> Iterator[str]:
    if not recorded:
        yield NOTHING.strip()
        return
    columns = ("zoo", *REPAIR_COLUMNS)
    yield f"| {' | '.join(columns)} |\n|" + "---|" * len(columns)
    for path, result in recorded.items():
        for name, told in result.metrics.overall.items():
            yield f"| [{result.zoo.name}]({path}) | {_repaired(name, told)} |"
    for path, result in recorded.items():
        if (unchanged := result.metrics.unchanged).n:
            share = _percent(unchanged.share, unchanged.interval)
            yield f"\nHeal left {share} of {unchanged.n} benign models of [{result.zoo.name}]({path}) as they were."


def repairs_by_kind(recorded: Mapping[str, RepairResult]) -> str:
    """The same by kind of attack: a table for each result."""
    page = "\n".join(_repairs_by_kind(_complete(recorded))).strip("\n")
    return f"{page}\n" if page else NOTHING


def _repairs_by_kind(recorded: Mapping[str, RepairResult]) -> Iterator[str]:
    columns = ("kind", *REPAIR_COLUMNS)
    for path, result in recorded.items():
        what = "all methods" if result.methods == METHODS else ", ".join(result.methods)
        yield f"\n[{what} on {result.zoo.name}, {result.policy}]({path})\n"
        yield f"| {' | '.join(columns)} |\n|" + "---|" * len(columns)
        for kind, methods in result.metrics.by_kind.items():
            for name, told in methods.items():
                yield f"| {kind} | {_repaired(name, told)} |"


def _repaired(method: str, m: MethodMetrics) -> str:
    cells = (
        *(method, f"{m.repaired} of {m.n}", _percent(m.nearer_to_own), _cosine(m.own_cosine)),
        *(_percent(m.asr), _cosine(m.clean_cosine)),
        *(_percent(share.share, share.interval) for share in (m.rescanned_clean, m.healed, m.erased)),
        "-" if m.seconds is None else f"{m.seconds:.0f}",
    )
    return " | ".join(cells)


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


def flips(recorded: Mapping[str, Flips]) -> str:
    """Which verdicts depend on the seed, by the path of the result."""
    return "\n".join(_flips(result, link) for link, result in recorded.items()) or NOTHING


def _flips(result: Flips, link: str) -> str:
    scans, seeds = result.scans, ", ".join(map(str, result.seeds))
    rows = "; ".join(f"{row.model} ({row.group}), flagged by {row.flagged} of {row.n}" for row in result.rows)
    return (
        f"{result.policy}, preset {result.preset}, {result.models.n} models of `{result.zoo}`, seeds {seeds}: "
        f"{_percent(scans.share, scans.interval)} of {scans.n} scans say otherwise than most of their model"
        f"{': ' if rows else ''}{rows}. [Result]({link}).\n"
    )


def guards(recorded: Mapping[str, GuardResult]) -> str:
    """What results of the guard's benchmark say, by their path: a table for each."""
    return "\n".join(_guard(result, link) for link, result in recorded.items()) or NOTHING


def _guard(result: GuardResult, link: str) -> str:
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
        f"{result.machine.threads} thread). [Result]({link}).\n"
    )


def costs(recorded: Mapping[str, Any]) -> str:
    """What ``benchmarks/cost.py`` measured: a table for each suspect, with a line for each stage that ran."""
    return "\n".join(_costs(recorded)) + "\n"


UNITS = ("seconds", "giga_multiplications")
"""What is counted of every stage."""


def _whole(stages: Mapping[str, Mapping[str, float]]) -> tuple[float, ...]:
    """Of all stages together, in each unit."""
    return tuple(sum(stage[unit] for stage in stages.values()) for unit in UNITS)


def _quick(presets: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[float, ...]:
    """What the preset quick takes as a share of standard, in each unit."""
    whole = zip(_whole(presets["quick"]), _whole(presets["standard"]), strict=True)
    return tuple(quick / standard for quick, standard in whole)


def _costs(recorded: Mapping[str, Any]) -> Iterator[str]:
    for suspect, presets in recorded["costs"].items():
        both = presets["quick"], presets["standard"]
        yield f"| {suspect} | quick, s | standard, s | quick, 10^9 | standard, 10^9 |\n|---|---|---|---|---|"
        rows = {
            stage: [preset.get(stage, dict.fromkeys(UNITS, 0.0))[unit] for unit in UNITS for preset in both]
            for stage in presets["standard"]
        }
        rows["all"] = [total for pair in zip(*map(_whole, both), strict=True) for total in pair]
        for stage, values in rows.items():
            if any(values):
                yield f"| {stage} | {' | '.join(f'{value:.1f}' for value in values)} |"
        seconds, products = _quick(presets)
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


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" + (f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else "")


def _complete(recorded: Mapping[str, R]) -> dict[str, R]:
    return {path: result for path, result in recorded.items() if result.complete}
