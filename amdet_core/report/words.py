"""What a report says to a person, in the order in which it is asked; the page and the terminal both use it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from ..policy import FEWEST_CONTROLS, IDENTITY
from ..records import ALONE, Candidate, Evidence, Forensics, Level, Likeness, Patterns, ScanReport, Sweep, Trigger
from ..storage import PSEUDO_TRIGGER

HEADLINES = {
    Level.CLEAN: "No evidence of a backdoor",
    Level.INCONCLUSIVE: "Could not tell",
    Level.SUSPICIOUS: "Suspicious",
    Level.BACKDOORED: "Backdoored",
}
THIS_FILE = "The result holds for exactly this file: compare its SHA-256 when you get it from elsewhere."
TELL_THE_SITE = "Report it to the site that you have it from: this report names the file by its SHA-256."
IN_A_GRAPH = {
    THIS_FILE: "The result holds for these values, with every LoRA and merge: scan again when the graph changes.",
    TELL_THE_SITE: "Scan its file with amdet scan, and report that, with its SHA-256, to the site it came from.",
}
"""What is said in the place of lines about a file where a host had loaded the encoders."""
ADVICE = {
    Level.CLEAN: (
        "Nothing has to be done about the text encoders named here.",
        THIS_FILE,
    ),
    Level.INCONCLUSIVE: (
        "Do not take this for a pass: treat the file as one that was never scanned.",
        "Read the reasons above, put right what failed, and scan again.",
        "Give the original encoder that this file was made from as the anchor.",
    ),
    Level.SUSPICIOUS: (
        "Do not use or share this file until the finding is explained.",
        "Scan again with the preset 'thorough' and with the original encoder as the anchor.",
        "Ask its author what the text encoder was trained on, and take the original where there is one.",
    ),
    Level.BACKDOORED: (
        "Do not use or share this file.",
        "Get the model from its original publisher, scan that file, and delete this one.",
        TELL_THE_SITE,
        "If you think that this is wrong, scan again with another anchor: the original that it was made from.",
    ),
}
ALWAYS_UNCHECKED = (
    "Everything but the text encoders named here: the image model, the VAE, adapters and code can hold backdoors too."
)
"""Said where the report itself names nothing."""
SURE = 0.75
"""Similarity from which an output is called what it looks like."""
OVERRIDES = 0.5
"""Gap of a feature from which prompts are said to be overridden, not pulled."""
FEW = 0.5
"""Share of prompts led to one output below which a text is hardly said to be the whole of a trigger."""
PLACES = {"start": "at the start of", "end": "at the end of", "long": "at the end of long"}
"""Where a trigger stood."""
ALONE_WORDS = (
    "No trusted encoder of the same sizes was given or found: its answers are compared with those without the token"
)
"""Said where a sweep had no anchor."""
ANCHORS = {
    "given": "the anchor that was given",
    "trusted": "an encoder that you trust",
    "shipped": "an encoder that comes with this tool",
}
MEANINGS = {
    "gap": "how much of what sets outputs of prompts apart in the anchor is lost, with the recovered feature",
    "literal_gap": "the same with the best real text in place of the feature",
    "literal_success": "share of prompts that this text brings to one output (centred cosine above 0.9)",
    "sweep_gap": "the same with the best of all single tokens and characters",
    "sweep_departure": "how far the one token that does so most makes the encoder leave its anchor",
    "moved_gap": "the same with the best text of the tokens whose rows of the table moved most",
    "moved_departure": "how far the one such text that does so most makes the encoder leave its anchor",
    "pattern_gap": "the same with the best of many grammatical patterns of sentences",
    "pattern_departure": "how far the one pattern that does so most makes the encoder leave its anchor",
    "sweep_sigma": "how far that departure stands out from those of all other tokens",
    "spread": "how far apart prompts are read, as a share of how far the anchor reads them apart",
    "drift": "how unlike its anchor clean prompts are read: one minus the mean cosine",
    "suspect_collapse": "agreement of the suspect's outputs across prompts, with the feature",
    "anchor_collapse": "agreement of the anchor's outputs across prompts, with the feature",
    "smallest_gap_of_seeds": "gap of the weakest of the independent runs",
    "identical_to_trusted": "1: all weights that prompts reach equal a trusted encoder's",
    "running_loss": "mean loss since the first step",
    "assimilation": "similarity of the token positions to each other",
    "assimilation_share": "prompts whose positions became alike",
    "same_target_share": "prompts that give the same output",
    "deviation": "similarity to the output without the feature",
    "deviation_share": "prompts that the feature turned away",
    "anchor_cosine": "similarity to the anchor's output with the same feature",
    "anchor_deviation_share": "prompts on which suspect and anchor differ",
    "positive_share": "curvatures of the loss that are positive: a bowl has more",
    "delta_norm": "mean relative change of a tensor",
    "delta_top1_energy": "share of a matrix's change that lies in one direction, mean",
    "delta_top8_energy": "share of a matrix's change that lies in eight directions, mean",
    "delta_effective_rank": "directions in which a matrix changed, mean",
    "token_rows_changed": "rows of the token table that moved",
    "token_row_sigma": "how far the row that moved most stands out from the others",
    "fidelity": "similarity of the recovered feature's effect to the known trigger's",
}

# ------------------------------------------------------------------ small words


def number(value: float | None) -> str:
    """A number for a person: four significant digits, and words where there is none."""
    if value is None or not math.isfinite(value):
        return "not measured"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def measured(evidence: Evidence) -> str:
    """Value, interval and number of samples of one quantity."""
    interval = ""
    if evidence.interval is not None and all(map(math.isfinite, evidence.interval)):
        interval = f"95% interval {' to '.join(map(number, evidence.interval))}, "
    return f"{number(evidence.value)} ({interval}n = {evidence.n:,})"


def meaning(name: str) -> str:
    """What a quantity is, in words; empty for a name that this release does not know."""
    name, compared = (
        name.removeprefix(ALONE),
        "; compared with itself, without an anchor" if name.startswith(ALONE) else "",
    )
    return MEANINGS.get("gap" if name.startswith("gap_k") else name, "") + compared


def file_name(report: ScanReport) -> str:
    """Last part of the target's path, on whichever system it was scanned."""
    return PureWindowsPath(PurePosixPath(report.target.path).name).name or report.target.path


def strongest(report: ScanReport, encoder: str | None = None) -> Candidate | None:
    """The recovered feature with the largest gap, of one encoder or of all; the first where none has one."""
    own = [candidate for candidate in report.candidates if encoder in (None, candidate.encoder)]
    return max(
        own, key=lambda c: -math.inf if c.indicators.get("gap") is None else c.indicators["gap"] or 0.0, default=None
    )


def likenesses(report: ScanReport) -> tuple[Likeness, ...]:
    """What the trigger, or else the strongest feature, looks like, the nearest first; none where that is not known."""
    told, best = () if report.trigger is None else report.trigger.looks_like, strongest(report)
    return told or (() if best is None else best.looks_like)


def identical(report: ScanReport) -> tuple[str, ...]:
    """Names of the encoders that equal a trusted one."""
    return tuple(e.encoder for e in report.evidence if e.name == IDENTITY and e.value == 1)


def alone(report: ScanReport, encoder: str) -> bool:
    """Whether an encoder was compared with itself, for want of an anchor."""
    return any(one.encoder == encoder and one.alone for one in report.evidence)


def _reference(report: ScanReport, encoder: str) -> str:
    """What its outputs with something added agree more than."""
    return "they do without it" if alone(report, encoder) else "the anchor's do"


def of_a_file(report: ScanReport) -> bool:
    """Whether a file was scanned, and not what a host had loaded."""
    return all(encoder.layout != "graph" for encoder in report.target.encoders)


# ------------------------------------------------------------------ sections


@dataclass(frozen=True)
class Section:
    """One question and its answer; ``label`` is the question in one word."""

    key: str
    label: str
    title: str
    lines: tuple[str, ...]


def sections(report: ScanReport) -> tuple[Section, ...]:
    """Everything that a person wants to know, most wanted first."""
    return (
        Section("why", "Why", "Why, and how sure is that?", tuple(_why(report))),
        Section("compared", "Compared", "Compared with what?", tuple(_compared(report))),
        Section("trigger", "Trigger", "What is the trigger?", tuple(_trigger(report))),
        Section("effect", "Effect", "What would it do?", tuple(_effect(report))),
        Section("weights", "Weights", "What was done to the weights?", tuple(_weights(report))),
        Section("advice", "Do now", "What can I do now?", tuple(_advice(report))),
        Section("unchecked", "Unchecked", "What was not checked?", tuple(_unchecked(report))),
    )


def _why(report: ScanReport) -> Iterator[str]:
    yield from map(_sentence, report.verdict.reasons)
    policy, controls = report.config.get("policy"), Counter(control.encoder for control in report.controls)
    by_them = min(controls.values(), default=0) >= FEWEST_CONTROLS  # the statement says their rate
    lone = [encoder for encoder in report.target.encoders if alone(report, encoder.name)]
    if lone:
        yield "How often a scan without an anchor is wrong is not known."
    if (
        len(lone) < len(report.target.encoders)
        and isinstance(policy, dict)
        and policy.get("name") == report.verdict.policy
        and "error_rate" in policy
        and not by_them
    ):
        yield f"How often policy {report.verdict.policy} is wrong: {policy['error_rate']}."
    for name in dict.fromkeys(e.encoder for e in report.evidence):
        own = [e for e in report.evidence if e.encoder == name and e.interval and e.value is not None]
        if own:
            yield f"Measured in {name}: {', '.join(f'{e.name} {measured(e)}' for e in own)}."


def _sentence(reason: str) -> str:
    first = reason.split(maxsplit=1)[:1]
    start = reason[:1].upper() if first and first[0].isalpha() else reason[:1]  # names stay as they are
    return start + reason[1:].rstrip(".") + "."


def _compared(report: ScanReport) -> Iterator[str]:
    anchors = {anchor.encoder: anchor for anchor in report.anchor or ()}
    equal = identical(report)
    swept = {sweep.encoder for sweep in report.sweeps}
    for encoder in report.target.encoders:
        anchor = anchors.get(encoder.name)
        if anchor is None and encoder.name in swept:
            yield f"{encoder.name}: with itself. {ALONE_WORDS}."
        elif anchor is None:
            yield f"{encoder.name}: with nothing; no trusted encoder of the same sizes was at hand."
        elif encoder.name in equal:
            who = f"{anchor.name} ({ANCHORS[anchor.chosen]})"
            yield f"{encoder.name}: identical, number for number, to {who} in all that prompts reach."
        else:
            yield f"{encoder.name}: with {anchor.name} ({ANCHORS[anchor.chosen]})."
    if not report.target.encoders:
        yield "No text encoder that this tool supports was found in the file."


def _trigger(report: ScanReport) -> Iterator[str]:
    if report.trigger is not None:
        yield from _literal(report, report.trigger)
        for other in report.triggers:
            if other is not report.trigger and report.verdict.of(other.encoder) > Level.CLEAN:
                yield "Another one leads to another output."
                yield from _literal(report, other)
        told = {trigger.encoder for trigger in report.triggers}
        for encoder, level in report.verdict.levels.items():
            if level >= Level.SUSPICIOUS and encoder not in told:
                yield f"What was found in {encoder} could not be written as text."
    elif report.verdict.level >= Level.SUSPICIOUS:
        kept = "the recovered feature below stands for it" if report.candidates else "no feature stands for it either"
        yield f"It could not be written as text; {kept}."
    elif report.verdict.level == Level.INCONCLUSIVE:
        yield "Not known; none was found so far."
    else:
        yield "None was found."
        if report.triggers:
            yield "The text that comes nearest to one:"
            yield from _literal(report, report.triggers[0])
    yield from (_swept(report, sweep) for sweep in report.sweeps)
    yield from map(_patterned, report.patterns)


def _swept(report: ScanReport, sweep: Sweep) -> str:
    """What trying every token shows and excludes."""
    most = sweep.leads[0]
    does = "changes the encoder's answers" if alone(report, sweep.encoder) else "makes the encoder leave its anchor"
    gap = max(lead.gap for lead in sweep.leads)
    return (
        f"{sweep.encoder}: {sweep.tried:,} tokens and characters were tried one by one. “{most.text}” stands out most: "
        f"{PLACES[most.place]} prompts it {does} by {most.departure:.2f} (cosine); no other one does more. With one of "
        f"them outputs agree {gap:.2f} more than {_reference(report, sweep.encoder)}; with no other one more than that."
        + "".join(f" The file says that it was taught “{lead.text}”." for lead in sweep.leads if lead.declared)
    )


def _patterned(patterns: Patterns) -> str:
    """What trying grammatical patterns shows."""
    most = patterns.most[0]
    return (
        f"{patterns.encoder}: sentences of {patterns.tried:,} grammatical patterns were tried. Those like "
        f"“{most.example}” make outputs agree most, {most.gap:.2f} beyond the anchor's."
    )


def _literal(report: ScanReport, trigger: Trigger) -> Iterator[str]:
    yield f"“{trigger.text}” in {trigger.encoder}, found as {trigger.found_by}."
    more = f"{trigger.collapse:.2f} more than {_reference(report, trigger.encoder)}"
    yield (
        f"With it {PLACES[trigger.place]} prompts, {trigger.n:,} that were held out, the outputs agree {more} "
        "(0: no more, 1: they are all the same)."
    )
    if trigger.asr is not None and trigger.asr_interval is not None:
        low, high = trigger.asr_interval
        yield f"It leads {trigger.asr:.0%} of them to one and the same output (95% interval {low:.0%} to {high:.0%})."
        if trigger.asr < FEW and report.verdict.level >= Level.SUSPICIOUS:
            yield "So it may be a part of the trigger alone, or a trigger that changes a part of what prompts say."
    if trigger.code_points:
        yield f"Outside ASCII: {', '.join(trigger.code_points)}."


def _effect(report: ScanReport) -> Iterator[str]:
    best, trigger = strongest(report), report.trigger
    if trigger is not None:
        yield from _looks(trigger.looks_like, f"The output of “a photo of {trigger.text}”")
    if best is None:
        known = "Nothing: no feature that overrides prompts was recovered."
        if trigger is None or not trigger.looks_like:
            yield known if report.verdict.level == Level.CLEAN else "Not known: no feature was recovered."
        return
    gap = best.indicators.get("gap")
    beside = "prompts without it" if alone(report, best.encoder) else "the anchor"
    strength = "" if gap is None else f" (gap to {beside} {gap:.2f})"
    if report.verdict.level < Level.SUSPICIOUS:
        yield f"The strongest feature that was recovered is not what the policy calls a finding{strength}."
        return
    overrides = report.verdict.level == Level.BACKDOORED and (gap is None or gap >= OVERRIDES)
    act = "overrides what prompts say" if overrides else "pulls prompts towards one output"
    yield f"A feature of {_count(best.vectors, 'vector')} was recovered from {best.encoder} that {act}{strength}."
    yield from _looks(best.looks_like, "The output")
    if best.feature_file is not None:
        yield (
            f"To see what it draws, copy {PSEUDO_TRIGGER} to models/embeddings/amdet in ComfyUI and use "
            f"embedding:amdet/{PurePosixPath(PSEUDO_TRIGGER).stem} at the start of a prompt for this very model."
        )
    if best.nearest_tokens:
        yield f"Nearest real tokens: {', '.join(f'“{token}”' for token in best.nearest_tokens)}."


def _looks(likenesses: Sequence[Likeness], output: str) -> Iterator[str]:
    """What an output looks like, as far as that is known."""
    if not likenesses:
        return
    first, *others = likenesses
    after = f"; next comes “{others[0].text}” ({others[0].similarity:.2f})" if others else ""
    if first.similarity >= SURE:
        yield f"{output} looks like “{first.text}” (similarity {first.similarity:.2f}{after})."
    else:
        yield (
            f"{output} looks like nothing on the list of things that it was compared with; “{first.text}” is nearest "
            f"(similarity {first.similarity:.2f}{after})."
        )


def _weights(report: ScanReport) -> Iterator[str]:
    equal = identical(report)
    compared = {forensics.encoder: forensics for forensics in report.forensics}
    for encoder in report.target.encoders:
        if encoder.name in compared:
            yield from _changes(compared[encoder.name])
        elif encoder.name in equal:
            yield f"{encoder.name}: nothing; those that prompts reach are the anchor's."
        else:
            yield f"{encoder.name}: not known; they were not compared."
    if not report.target.encoders:
        yield "Not known; they were not compared."


def _changes(forensics: Forensics) -> Iterator[str]:
    yield f"{forensics.encoder}: {forensics.summary.rstrip('.')}."
    if forensics.rows:
        most = ", ".join(f"“{row.text}”" for row in forensics.rows[:5])
        yield f"{_count(forensics.rows_changed, 'row')} of its token table moved, most of all: {most}."


def _advice(report: ScanReport) -> Iterator[str]:
    for line in ADVICE[report.verdict.level]:
        yield line if of_a_file(report) else IN_A_GRAPH.get(line, line)


def _unchecked(report: ScanReport) -> Iterator[str]:
    notes = dict.fromkeys(report.target.not_scanned + report.not_checked)
    yield from map(_sentence, notes)
    if not report.not_checked:
        yield ALWAYS_UNCHECKED
