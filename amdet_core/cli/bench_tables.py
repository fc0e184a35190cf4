"""What benchmarks print: their metrics, one a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..bench import Detection, Flips, GuardResult, Painting, PictureResult, RepairResult


def detection_table(result: Detection) -> str:
    """The overall metrics, one a line."""
    found, meant = result.metrics.overall, result.metrics.intentional
    rows = {
        "recall": (found.recall, found.recall_interval),
        "false positives": (found.fpr, found.fpr_interval),
        "precision": (found.precision, None),
        "F1": (found.f1, None),
        "AUROC": (found.auroc, found.auroc_interval),
        "recall at 1% FPR": (found.tpr_at_1pct_fpr, found.tpr_at_1pct_fpr_interval),
        "PPV at 1% prevalence": (found.ppv_at_1pct_prevalence, None),
        "  at the highest FPR": (found.ppv_pessimistic, None),
    }
    head = (
        f"{result.zoo.name}, {result.title}: {found.n_backdoored} backdoored, {found.n_benign} benign, "
        f"{found.could_not_tell} of them could not be judged; {meant.flagged} of {meant.n} intentional flagged"
    )
    return "\n".join([head, *(f"  {name:<22}{_number(*row)}" for name, row in rows.items())])


def flips_table(result: Flips) -> str:
    """Scans and models whose verdict depends on the seed, and which those are."""
    head = f"{result.zoo}, {result.policy}, preset {result.preset}: seeds {', '.join(map(str, result.seeds))}"
    shares = {"scans that say otherwise than most": result.scans, "models of which any scan does": result.models}
    lines = [f"  {name:<36}{_number(row.share, row.interval)} of {row.n}" for name, row in shares.items()]
    rows = [f"  {row.model} ({row.label}, {row.group}): flagged by {row.flagged} of {row.n}" for row in result.rows]
    return "\n".join([head, *lines, *rows])


def guard_table(result: GuardResult) -> str:
    """Recall, causes and false alarms, one a line."""
    found = result.metrics
    rows = {
        "recall": found.recall,
        **{f"  {kind}": share for kind, share in found.recall_by_kind.items()},
        "models caught": found.caught,
        "trigger named first": found.first,
        "trigger named": found.named,
        **{
            f"false alarms, {label}, {style}": share
            for label, styles in found.false_alarms.items()
            for style, share in styles.items()
        },
        **{f"no false alarm, {label}": share for label, share in found.quiet.items()},
    }
    head = f"{result.zoo.name}: {len(result.models)} models, {found.failed} of them could not be guarded"
    lines = [f"  {name:<36}{_number(row.share, row.interval)} of {row.n}" for name, row in rows.items() if row.n]
    times = f"  {found.milliseconds or 0:.1f} ms a prompt, {found.calibration_seconds or 0:.1f} s once a model"
    return "\n".join([head, *lines, times])


def repair_table(result: RepairResult) -> str:
    """Every method over all backdoored models, one a line."""
    unchanged = result.metrics.unchanged
    lines = [
        f"{result.zoo.name}, {result.policy}: {len(result.models)} models, {result.metrics.failed} of them failed; "
        f"heal left {unchanged.count} of {unchanged.n} benign ones as they were"
    ]
    for name, found in result.metrics.overall.items():
        means = ", ".join(
            f"{label} {_number(value, None)}"
            for label, value in (
                ("nearer", found.nearer_to_own),
                ("own", found.own_cosine),
                ("ASR", found.asr),
                ("clean", found.clean_cosine),
            )
        )
        lines.append(f"  {name:<10} healed {_number(found.healed.share, found.healed.interval)} of {found.n}; {means}")
    return "\n".join(lines)


def picture_table(result: PictureResult) -> str:
    """Every kind of picture, one a line."""
    found = result.metrics
    rows = {
        "the target, with the feature": found.feature,
        "  in most pictures of a model": found.feature_by_model,
        "the target, with the trigger": found.trigger,
        "the target, in the honest base": found.control,
        "clean captions": found.clean,
        "clean captions, honest base": found.base_clean,
        "target named in the report": found.named,
    }
    lines = [f"  {name:<32}{_number(row.share, row.interval)} of {row.n}" for name, row in rows.items()]
    return "\n".join([f"{result.zoo.name}: {len(result.models)} models, {found.failed} of them failed", *lines])


def painting_table(result: Painting) -> str:
    """What was asked for and seen, one a line."""
    found = result.metrics
    rows = {
        "one object: colour and shape": found.singles.right,
        "  colour": found.singles.part,
        "  shape": found.singles.shape,
        "two objects: both": found.doubles.right,
        "  at least one": found.doubles.part,
        "unseen pairs: colour and shape": found.unseen.right,
        "reader, drawings of one object": found.reader_one,
        "reader, drawings of two": found.reader_two,
        "reader, behind the VAE": found.reader_one_after_vae,
        "R@1, picture to caption": found.retrieval_by_picture,
        "R@1, caption to picture": found.retrieval_by_caption,
    }
    lines = [f"  {name:<32}{_number(row.share, row.interval)} of {row.n}" for name, row in rows.items()]
    worst = min(one.share or 0.0 for one in found.singles.right_by_seed)
    head = f"{result.settings.seeds} seeds; one object, the worst of them: {worst:.3f}"
    return "\n".join([head, *lines, f"  VAE {found.vae_psnr:.1f} dB, {found.seconds_per_picture:.2f} s a picture"])


def _number(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
