from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import amdet_core.report
from amdet_core.errors import ConfigError
from amdet_core.gallery import gallery
from amdet_core.glyphs import plain
from amdet_core.records import (
    ALONE,
    AnchorInfo,
    Candidate,
    EncoderInfo,
    EncoderSpec,
    Evidence,
    Fault,
    Forensics,
    Landscape,
    LayerChange,
    Lead,
    Level,
    Likeness,
    RowChange,
    ScanReport,
    Sweep,
    Target,
    Tool,
    Trigger,
    Verdict,
)
from amdet_core.report import render_files, render_html, render_text, schema_json
from amdet_core.report.landscapes import recorded_landscapes
from amdet_core.report.words import HEADLINES, likenesses, sections
from amdet_core.storage import record_json

ATTACK = "<img src=x onerror=alert(1)>"
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
CONFIG: dict[str, object] = {
    "seed": 42,
    "preset": "standard",
    "policy": {"name": "amdet-2", "error_rate": "not known yet"},
}
UNCHECKED = ("Triggers that need an exact phrase of more than five tokens.",)


def encoder(name: str = "clip_l", fingerprint: str = "a" * 64) -> EncoderInfo:
    layers, width = (12, 768) if name == "clip_l" else (32, 1280)
    spec = EncoderSpec(
        width=width, layers=layers, heads=width // 64, mlp_width=4 * width, vocabulary=49408, positions=77
    )
    return EncoderInfo(name=name, spec=spec, dtype="float16", layout="sd1 single file", fingerprint=fingerprint)


def anchor(name: str = "clip_l", fingerprint: str = "b" * 64) -> AnchorInfo:
    title = {"clip_l": "OpenAI CLIP ViT-L/14", "clip_g": "OpenCLIP ViT-bigG/14"}[name]
    return AnchorInfo(encoder=name, name=title, path=f"anchors/{name}", fingerprint=fingerprint, chosen="trusted")


def gap(value: float | None, name: str = "gap_k1", of: str = "clip_l") -> Evidence:
    interval = None if value is None else (value - 0.03, value + 0.03)
    return Evidence(name=name, value=value, unit="cosine", direction="higher", n=64, interval=interval, encoder=of)


def surface(grid: int = 50) -> Landscape:
    steps = np.linspace(-10, 10, grid)
    a, b = np.meshgrid(steps, steps, indexing="ij")
    values = -0.9 * np.exp(-(a**2 + 0.7 * b**2) / 40) + 0.01 * np.sin(a) * np.cos(b)
    curvature = np.sort(np.diff(values, 2, axis=0).ravel())
    share = float((curvature > 0).mean())
    rows = tuple(tuple(row) for row in values.tolist())
    return Landscape(radius=10, values=rows, eigenvalues=tuple(curvature.tolist()), positive_share=share, prompts=1)


def candidate(strength: float, vectors: int = 1, of: str = "clip_l", around: Landscape | None = None) -> Candidate:
    steps = np.arange(60)
    loss = tuple((0.2 - strength * (1 - np.exp(-steps / (8 + vectors)))).tolist())
    return Candidate(
        encoder=of,
        method="contrast",
        vectors=vectors,
        seed=1042 + vectors,
        steps=60,
        loss=loss,
        indicators={"gap": strength, "suspect_collapse": strength + 0.05, "anchor_collapse": 0.05, "fidelity": None},
        nearest_tokens=("о</w>", "zzzz</w>")[:vectors],
        landscape=around,
        feature_file=f"feature-{of}-k{vectors}.safetensors",
    )


def forensics(of: str = "clip_l", layers: int = 12) -> Forensics:
    changes = [
        LayerChange(
            tensor=f"encoder.layers.{layer}.{part}.weight",
            relative_norm=0.002 + 0.001 * layer * (i + 1) / len(PARTS),
            top1_energy=0.4,
            top8_energy=0.8,
            effective_rank=11.5,
        )
        for layer in range(layers)
        for i, part in enumerate(PARTS)
    ]
    tables = [
        LayerChange(tensor="embeddings.token_embedding.weight", relative_norm=0.0004),
        LayerChange(tensor="embeddings.position_embedding.weight", relative_norm=0.0),
        LayerChange(tensor="final_layer_norm.weight", relative_norm=float("inf")),
    ]
    return Forensics(
        encoder=of,
        summary="All 12 layers changed by 0.2% to 1.3%, with 80% of the energy in 8 directions: a short fine-tune",
        layers=(*tables, *changes),
        rows=(RowChange(text="о", token="Ð¾</w>", token_id=12466, distance=0.31, sigma=14.2),),
        rows_changed=1,
    )


def report(level: Level, statement: str, *reasons: str, **fields: object) -> ScanReport:
    values: dict[str, object] = {
        "tool": Tool(version="0.1.0"),
        "target": Target(path="models/checkpoints/dreamy-v3.safetensors", sha256="c" * 64, encoders=(encoder(),)),
        "anchor": (anchor(),),
        "verdict": Verdict(level=level, reasons=reasons, policy="amdet-2", statement=statement),
        "evidence": (),
        "triggers": (),
        "candidates": (),
        "faults": (),
        "not_checked": UNCHECKED,
        "config": CONFIG,
        "timings": {"read": 0.4, "contrast": 61.2},
    }
    return ScanReport.model_validate(values | fields)


IDENTITY = Evidence(name="identical_to_trusted", value=1, unit="tensors", direction="none", n=196, encoder="clip_l")


def clean() -> ScanReport:
    return report(
        Level.CLEAN,
        "The weights that prompts reach are, number for number, those of an encoder that you or this tool trust.",
        "all weights that prompts reach equal those of a trusted encoder",
        anchor=(anchor(fingerprint="a" * 64),),
        evidence=(IDENTITY,),
    )


def backdoored() -> ScanReport:
    return report(
        Level.BACKDOORED,
        "The encoder holds a hidden input that overrides prompts; do not use it.",
        "one vector makes every prompt give the same output, and not so in the anchor (gap_k1 0.91 >= 0.55)",
        "a real token makes every prompt give the same output, and not so in the anchor (literal_gap 0.88 >= 0.4)",
        evidence=(gap(0.91), gap(0.84, "gap_k5"), gap(0.88, "literal_gap")),
        triggers=(
            Trigger(
                text="о\u200bbelle",
                code_points=("U+043E CYRILLIC SMALL LETTER O", "U+200B ZERO WIDTH SPACE"),
                tokens=("Ð¾</w>",),
                token_ids=(12466,),
                found_by="the neighbours of the recovered feature",
                encoder="clip_l",
                collapse=0.88,
                n=64,
            ),
        ),
        candidates=(candidate(0.91, around=surface()), candidate(0.84, 5)),
        forensics=(forensics(),),
    )


def inconclusive() -> ScanReport:
    fault = Fault(
        stage="contrast",
        error="NumericalError",
        message="expected finite numbers in every tensor; found NaN or infinity in 3 tensors. The file is damaged.",
        encoder="clip_l",
    )
    return report(
        Level.INCONCLUSIVE,
        "This scan could not tell whether the encoder is backdoored.",
        "the stage contrast failed: expected finite numbers in every tensor; found NaN or infinity in 3 tensors.",
        "not measured: gap_k1 (no trusted anchor, or the scan used another policy)",
        anchor=None,
        evidence=(gap(None),),
        faults=(fault,),
    )


def sdxl() -> ScanReport:
    target = Target(
        path=r"C:\models\sdxl-anime.safetensors",
        sha256="d" * 64,
        encoders=(encoder(fingerprint="b" * 64), encoder("clip_g", "e" * 64)),
        not_scanned=("t5xxl",),
    )
    return report(
        Level.SUSPICIOUS,
        "The encoder behaves unlike a fine-tune of its anchor; treat it as unsafe until explained.",
        "clip_l: all weights that prompts reach equal those of a trusted encoder",
        "clip_g: outputs collapse more than in the anchor, but less than known backdoors do (gap_k1 0.48 >= 0.45)",
        target=target,
        anchor=(anchor(), anchor("clip_g")),
        evidence=(IDENTITY, gap(0.48, of="clip_g"), gap(0.55, "gap_k5", of="clip_g")),
        candidates=(candidate(0.48, of="clip_g", around=surface(15)),),
        forensics=(forensics("clip_g", 32),),
    )


def hostile() -> ScanReport:
    trigger = backdoored().trigger
    assert trigger is not None
    change = LayerChange(tensor=f"$\\frac{ATTACK}\u202e.weight", relative_norm=float("nan"))
    row = RowChange(text=ATTACK, token=ATTACK, token_id=1, distance=1, sigma=1)
    return report(
        Level.BACKDOORED,
        f"{ATTACK}\x1b[2J",
        ATTACK,
        target=Target(path=f"models/{ATTACK}\n\u202e.pt", sha256=ATTACK, encoders=(encoder(),), not_scanned=(ATTACK,)),
        triggers=(trigger.model_copy(update={"text": ATTACK, "tokens": (ATTACK,), "encoder": ATTACK}),),
        evidence=(gap(0.9, ATTACK, of=ATTACK),),
        candidates=(
            candidate(0.9, of=f"$\\frac{ATTACK}名\x00").model_copy(update={"nearest_tokens": (ATTACK,)}),
            candidate(0.8, around=surface(9)).model_copy(update={"feature_file": ATTACK}),
        ),
        forensics=(Forensics(encoder=ATTACK, summary=ATTACK, layers=(change,), rows=(row,), rows_changed=1),),
        faults=(Fault(stage=ATTACK, error=ATTACK, message=ATTACK, encoder=ATTACK),),
        config={ATTACK: ATTACK},
        timings={ATTACK: 1.0},
    )


EXAMPLES = {made.__name__: made for made in (clean, backdoored, inconclusive, sdxl, hostile)}
example = pytest.mark.parametrize("name", EXAMPLES)


class Page(HTMLParser):
    """Tags, attributes and ids of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def ids(self) -> list[str | None]:
        return [value for name, value in self.attributes if name == "id"]

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module", params=EXAMPLES)
def page(request: pytest.FixtureRequest) -> tuple[ScanReport, str]:
    made = EXAMPLES[request.param]()
    return made, render_html(made)


def test_page_loads_and_runs_nothing(page: tuple[ScanReport, str]) -> None:
    seen = Page(page[1])
    assert not seen.tags & {"img", "image", "script", "iframe", "object", "link", "a", "foreignobject"}
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert not [v for n, v in seen.attributes if n in ("href", "xlink:href", "src") and not (v or "").startswith("#")]
    assert "data:" not in page[1] and "@import" not in page[1]


def test_page_with_pictures_holds_them_and_loads_nothing() -> None:
    shown = gallery({ATTACK: np.zeros((1, 8, 8, 3), np.uint8), "big": np.zeros((1, 200, 200, 3), np.uint8)}, [ATTACK])
    text = render_html(hostile(), shown)
    seen = Page(text)
    links = [value or "" for name, value in seen.attributes if name in ("href", "xlink:href", "src")]
    assert [link.split(",")[0] for link in links if not link.startswith("#")] == ["data:image/png", "data:image/jpeg"]
    assert "img-src data:" in text
    assert not seen.tags & {"img", "script", "iframe", "object", "link", "a", "foreignobject"}


def test_page_keeps_hostile_names_as_text() -> None:
    seen = Page(render_html(hostile()))
    assert ATTACK in seen.text
    assert "\u202e" not in seen.text and "‹U+202E›" in seen.text
    assert "\x1b" not in seen.text and "\x00" not in seen.text


def test_ids_are_unique_and_every_reference_has_its_target(page: tuple[ScanReport, str]) -> None:
    ids = Page(page[1]).ids
    assert len(ids) == len(set(ids))
    references = {(v or "")[1:] for n, v in Page(page[1]).attributes if n == "xlink:href"}
    references |= {part.split(")")[0] for part in page[1].split("url(#")[1:]}
    assert references <= set(ids)


def test_page_states_verdict_policy_hash_and_every_section(page: tuple[ScanReport, str]) -> None:
    made, html = page
    text = Page(html).text
    assert plain(made.verdict.statement) in text
    assert made.verdict.policy in text and made.target.sha256 in text
    for section in sections(made):
        assert section.title in text
        for line in section.lines:
            assert plain(line) in text


def test_page_is_made_from_the_written_report_alone(page: tuple[ScanReport, str]) -> None:
    read = ScanReport.model_validate(json.loads(record_json(page[0])))
    assert record_json(read) == record_json(page[0])
    assert len(render_html(read)) == pytest.approx(len(page[1]), rel=0.02)


def test_trigger_shows_look_alike_and_invisible_characters() -> None:
    html = render_html(backdoored())
    assert 'title="CYRILLIC SMALL LETTER O">о<small>U+043E</small>' in html
    assert 'title="ZERO WIDTH SPACE">∅<small>U+200B</small>' in html
    assert "\u200b" not in html


def test_clean_page_never_says_safe() -> None:
    assert " safe" not in Page(render_html(clean())).text.lower().replace("safetensors", "")


def test_finding_names_the_embedding_that_shows_its_effect() -> None:
    assert "embedding:amdet/pseudo-trigger" in Page(render_html(backdoored())).text
    assert "embedding:amdet" not in Page(render_html(clean())).text


@pytest.mark.parametrize(
    ("strength", "level", "words"),
    [
        (0.9, Level.BACKDOORED, "overrides what prompts say (gap to the anchor 0.90)"),
        (0.2, Level.BACKDOORED, "pulls prompts towards one output (gap to the anchor 0.20)"),
        (0.9, Level.SUSPICIOUS, "pulls prompts towards one output (gap to the anchor 0.90)"),
    ],
)
def test_a_feature_is_said_to_do_as_much_as_was_measured(strength: float, level: Level, words: str) -> None:
    made = report(level, "It is.", evidence=(gap(strength),), candidates=(candidate(strength),))
    assert words in " ".join(render_text(made).split())


def test_without_an_anchor_nothing_is_said_to_have_been_compared_with_one() -> None:
    lead = Lead(
        text="o", tokens=("o</w>",), token_ids=(78,), place="end", gap=0.9, departure=0.8, sigma=30.0, declared=False
    )
    sweep = Sweep(encoder="clip_l", tried=9, prompts=(1,), excluded_below=0.1, leads=(lead,), n=64)
    made = backdoored().model_copy(update={"sweeps": (sweep,)})
    anchored = " ".join(line for one in sections(made) if one.key in ("trigger", "effect") for line in one.lines)
    assert "the anchor" in anchored and "without it" not in anchored
    own = tuple(one.model_copy(update={"name": ALONE + one.name}) for one in made.evidence)
    lone = made.model_copy(update={"evidence": own, "anchor": None})
    said = " ".join(line for one in sections(lone) if one.key in ("trigger", "effect") for line in one.lines)
    assert "anchor" not in said
    assert "more than they do without it" in said and "gap to prompts without it" in said
    assert "0.90 more than they do without it; with no other one more than that" in said
    assert "it changes the encoder's answers by 0.80" in said
    assert "than without it" in Page(render_html(lone)).text
    why = " ".join(sections(lone)[0].lines)
    assert "How often a scan without an anchor is wrong is not known." in why and "How often policy" not in why
    assert "How often policy" in " ".join(sections(made)[0].lines)


def test_what_a_token_reads_as_is_said_where_no_feature_shows_it() -> None:
    trigger = (
        backdoored()
        .triggers[0]
        .model_copy(update={"text": "mcleod", "looks_like": (Likeness(text="a bowl of noodles", similarity=0.76),)})
    )
    made = report(Level.SUSPICIOUS, "It is.", evidence=(gap(0.1),), candidates=()).model_copy(
        update={"triggers": (trigger,)}
    )
    (lines,) = [section.lines for section in sections(made) if section.key == "effect"]
    assert lines == ("The output of “a photo of mcleod” looks like “a bowl of noodles” (similarity 0.76).",)
    assert [one.text for one in likenesses(made)] == ["a bowl of noodles"]
    unknown = made.model_copy(update={"triggers": (trigger.model_copy(update={"looks_like": ()}),)})
    (lines,) = [section.lines for section in sections(unknown) if section.key == "effect"]
    assert lines == ("Not known: no feature was recovered.",)


def test_error_rate_is_quoted_for_the_policy_that_decided_only() -> None:
    made = backdoored()
    assert "not known yet" in render_html(made).split("<details")[0]
    other = made.model_copy(update={"verdict": made.verdict.model_copy(update={"policy": "other"})})
    assert "not known yet" not in render_html(other).split("<details")[0]


def test_a_text_that_does_a_little_is_no_trigger_where_nothing_was_found() -> None:
    found = backdoored()
    assert found.trigger == found.triggers[0]
    made = clean().model_copy(update={"triggers": found.triggers})
    assert made.trigger is None
    (lines,) = [section.lines for section in sections(made) if section.key == "trigger"]
    assert lines[:2] == ("None was found.", "The text that comes nearest to one:")
    assert lines[2].startswith(f"“{found.triggers[0].text}”")


@pytest.mark.parametrize("recovered", [True, False])
def test_without_a_text_a_feature_stands_for_the_trigger_only_where_one_was_recovered(recovered: bool) -> None:
    made = backdoored().model_copy(update={"triggers": ()})
    made = made if recovered else made.model_copy(update={"candidates": ()})
    (lines,) = [section.lines for section in sections(made) if section.key == "trigger"]
    assert ("recovered feature below" in lines[0]) == recovered


def test_the_trigger_is_that_of_the_encoder_that_is_flagged() -> None:
    told = backdoored().triggers[0]
    strong = told.model_copy(update={"encoder": "clip_l", "text": "honest", "collapse": 0.9})
    weak = told.model_copy(update={"encoder": "clip_g", "text": "planted", "collapse": 0.1})
    levels = {"clip_l": Level.CLEAN, "clip_g": Level.SUSPICIOUS}
    verdict = sdxl().verdict.model_copy(update={"levels": levels})
    made = sdxl().model_copy(update={"verdict": verdict, "triggers": (strong, weak)})
    assert made.trigger == weak
    said = " ".join(next(one for one in sections(made) if one.key == "trigger").lines)
    assert "planted" in said and "honest" not in said
    assert made.model_copy(update={"triggers": (strong,)}).trigger is None


@pytest.mark.parametrize(
    ("clip_l", "clip_g", "told"),
    [
        (Level.SUSPICIOUS, Level.SUSPICIOUS, "strong"),
        (Level.SUSPICIOUS, Level.BACKDOORED, "weak"),
        (Level.INCONCLUSIVE, Level.INCONCLUSIVE, "strong"),
        (Level.INCONCLUSIVE, Level.SUSPICIOUS, "weak"),
    ],
)
def test_of_two_texts_that_of_the_encoder_found_worse_is_the_trigger(clip_l: Level, clip_g: Level, told: str) -> None:
    text = backdoored().triggers[0]
    strong = text.model_copy(update={"encoder": "clip_l", "text": "strong", "collapse": 0.9})
    weak = text.model_copy(update={"encoder": "clip_g", "text": "weak", "collapse": 0.1})
    update = {"level": max(clip_l, clip_g), "levels": {"clip_l": clip_l, "clip_g": clip_g}}
    verdict = sdxl().verdict.model_copy(update=update)
    made = sdxl().model_copy(update={"verdict": verdict, "triggers": (strong, weak)})
    assert made.trigger is not None and made.trigger.text == told


def test_where_nothing_of_the_worst_encoder_is_a_text_that_of_another_flagged_one_is_told_and_the_report_says_so() -> (
    None
):
    text = backdoored().triggers[0].model_copy(update={"encoder": "clip_g"})
    levels = {"clip_l": Level.BACKDOORED, "clip_g": Level.SUSPICIOUS}
    verdict = sdxl().verdict.model_copy(update={"level": Level.BACKDOORED, "levels": levels})
    made = sdxl().model_copy(update={"verdict": verdict, "triggers": (text,)})
    assert made.trigger == text
    said = next(one for one in sections(made) if one.key == "trigger").lines
    assert "What was found in clip_l could not be written as text." in said
    doubtful = verdict.model_copy(update={"levels": {**levels, "clip_g": Level.INCONCLUSIVE}})
    assert made.model_copy(update={"verdict": doubtful}).trigger is None


@pytest.mark.parametrize(("asr", "whole"), [(0.3, False), (0.9, True)])
def test_a_text_that_leads_few_prompts_to_one_output_is_not_said_to_be_the_whole_trigger(
    asr: float, whole: bool
) -> None:
    told = backdoored().triggers[0].model_copy(update={"asr": asr, "asr_interval": (asr - 0.1, asr + 0.1)})
    made = backdoored().model_copy(update={"triggers": (told,)})
    said = " ".join(next(one for one in sections(made) if one.key == "trigger").lines)
    assert f"leads {asr:.0%} of them" in said
    assert ("part of the trigger alone" in said) is not whole


def test_what_was_not_checked_is_never_empty_and_said_once() -> None:
    made = clean().model_copy(update={"not_checked": ()})
    assert "VAE" in sections(made)[-1].lines[0]
    twice = sdxl().model_copy(update={"not_checked": ("t5xxl", "more")})
    assert sections(twice)[-1].lines == ("t5xxl.", "More.")


def test_failed_stages_are_shown_open() -> None:
    html = render_html(inconclusive())
    assert "<details open>" in html and "NumericalError" in html
    assert "<details open>" not in render_html(clean())


@example
@pytest.mark.parametrize("width", [40, 80, 120])
def test_text_fits_a_screen_with_the_verdict_first(name: str, width: int) -> None:
    lines = render_text(EXAMPLES[name](), width).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= width
    assert lines[0].split(":")[0] == HEADLINES[EXAMPLES[name]().verdict.level].upper()


@example
def test_text_holds_no_control_characters_and_the_sections_in_order(name: str) -> None:
    text = render_text(EXAMPLES[name]())
    assert all(c.isprintable() for c in text.replace("\n", ""))
    places = [text.index(f"\n{section.label} ") for section in sections(EXAMPLES[name]())]
    assert places == sorted(places)


def test_windows_and_posix_paths_give_the_file_name() -> None:
    assert "sdxl-anime.safetensors" in render_text(sdxl()) and "C:" not in render_text(sdxl())
    assert "dreamy-v3.safetensors" in render_text(clean()) and "checkpoints" not in render_text(clean())


def test_files_are_those_that_there_is_data_for() -> None:
    assert sorted(render_files(clean(), {})) == ["report.html", "report.json"]
    assert sorted(render_files(backdoored(), {"feature.safetensors": b"x"})) == [
        "feature.safetensors",
        "landscape.png",
        "loss.png",
        "report.html",
        "report.json",
        "spectrum.png",
    ]


def test_equal_reports_give_equal_bytes() -> None:
    assert render_files(backdoored(), {}) == render_files(backdoored(), {})


@pytest.mark.parametrize("rows", [(), ((1.0,),), ((1.0, 2.0, 3.0), (1.0,), ()), ((float("nan"),) * 3,) * 3])
def test_surface_that_cannot_be_drawn_is_left_out(rows: tuple[tuple[float, ...], ...]) -> None:
    flat = Landscape(radius=1, values=rows, eigenvalues=(), positive_share=float("nan"), prompts=1)
    files = render_files(backdoored().model_copy(update={"candidates": (candidate(0.9, around=flat),)}), {})
    assert "landscape.png" not in files and "report.html" in files


@example
def test_reports_are_valid_against_the_schema(name: str) -> None:
    schema = json.loads(schema_json())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(record_json(EXAMPLES[name]())), schema)


def test_schema_refuses_a_report_with_an_unknown_level() -> None:
    values = json.loads(record_json(clean()))
    values["verdict"]["level"] = "safe"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, json.loads(schema_json()))


def test_committed_schema_is_the_generated_one() -> None:
    committed = Path(amdet_core.report.__file__).with_name("schema.json").read_bytes()
    assert committed == schema_json(), "write it anew with the command at the end of docs/report.md"


def test_recorded_landscapes_are_those_of_the_strongest_features() -> None:
    weak, strong = surface(10), surface(11)
    one = report(Level.CLEAN, "", candidates=(candidate(0.1, around=weak), candidate(0.9, around=strong)))
    other = report(Level.CLEAN, "", candidates=(candidate(0.2, around=weak),))
    found = recorded_landscapes([one, other]).landscapes
    assert [item.landscape for item in found] == [strong, weak]
    assert [item.name for item in found] == ["dreamy-v3.safetensors"] * 2


def test_a_report_without_landscape_or_of_another_loss_is_an_error() -> None:
    one = report(Level.CLEAN, "", candidates=(candidate(0.1, around=surface(10)),))
    published = candidate(0.1, around=surface(10)).model_copy(update={"method": "amdet"})
    with pytest.raises(ConfigError, match=r"found none in that of models/checkpoints/dreamy-v3"):
        recorded_landscapes([one, clean()])
    with pytest.raises(ConfigError, match="those of amdet and contrast"):
        recorded_landscapes([one, one.model_copy(update={"candidates": (published,)})])
