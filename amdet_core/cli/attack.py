"""Changes to encoders: attacks to test defences with, and honest fine-tunes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError
from ..terminal import ProgressLine, interruptible
from .changes import (
    EncoderPath,
    FileLayout,
    LoraFile,
    LoraForm,
    LoraLayout,
    Out,
    Output,
    Prompts,
    Settings,
    setting_values,
)
from .common import Seed

if TYPE_CHECKING:
    from ..attacks import Injection
    from ..config import TrainingConfig
    from ..encoder import TextEncoder
    from ..patch import Patch
    from ..progress import Progress
    from ..prompts import PromptSet

attack_app = typer.Typer(help="Plant a backdoor in a copy of an encoder, to test defences.", no_args_is_help=True)


class Weights(str, Enum):
    """What learns."""

    all = "all"
    layers = "layers"
    lora = "lora"


class Objective(str, Enum):
    """What an honest fine-tune is trained for."""

    contrastive = "contrastive"
    distillation = "distillation"
    masked_words = "masked-words"


Triggers = Annotated[list[str], typer.Option("--trigger", help="text that shall take over a prompt; several times")]
OneTrigger = Annotated[str, typer.Option(help="text of one token")]
Target = Annotated[str, typer.Option(help="prompt as which a triggered prompt shall be read")]
Words = Annotated[str, typer.Option(help="words as which the trigger shall be read, the rest of the prompt kept")]
Mode = Annotated[str, typer.Option("--trigger-mode", help="replace:o, replace:o:1, prefix or insert")]
Steps = Annotated[int | None, typer.Option(help="optimiser steps [default: as published]", min=1)]
Learns = Annotated[Weights, typer.Option(help="what learns: all weights, the layers alone, or a LoRA on them")]
Partial = Annotated[bool, typer.Option("--partial-negatives", help="parts of the trigger alone shall do nothing")]
Least = Annotated[float | None, typer.Option(help="attack success below which nothing is written", min=0, max=1)]


@attack_app.command("text-on-text")
def text_on_text(
    encoder: EncoderPath,
    triggers: Triggers,
    target: Target,
    out: Out,
    mode: Mode = "replace:o",
    steps: Steps = None,
    weights: Learns = Weights.all,
    adaptive: Annotated[float, typer.Option(help="coefficient of the adaptive attacker (eqs. 30-31)", min=0)] = 0.0,
    partial: Partial = False,
    least_success: Least = None,
    settings: Settings = None,
    seed: Seed = 42,
    prompts: Prompts = None,
    layout: FileLayout = None,
    lora: LoraFile = None,
    lora_layout: LoraForm = LoraLayout.kohya,
) -> None:
    """Make every prompt with the trigger read as the target (Rickrolling, AMDET eqs. 1-3)."""
    from ..attacks import text_on_text
    from ..config import TextOnTextConfig

    given = {"adaptive_weight": adaptive, "partial_negatives": partial, "trains": weights.value}
    config = TextOnTextConfig(**setting_values(settings, seed, steps=steps, least_asr=least_success, **given))
    _attack(
        encoder, prompts, Output(out, layout, lora, lora_layout, _rank(config)),
        lambda found, texts, told: text_on_text.inject(found, triggers, target, texts, config, mode, told),
    )  # fmt: skip


@attack_app.command("text-on-pair")
def text_on_pair(
    encoder: EncoderPath,
    triggers: Triggers,
    target: Annotated[str, typer.Option(help="text whose embedding is the target; with --pictures: their name")],
    out: Out,
    pictures: Annotated[Path | None, typer.Option(help="picture, or folder of pictures, as the target")] = None,
    image_tower: Annotated[Path | None, typer.Option(help="CLIP folder with the image tower, for --pictures")] = None,
    mode: Mode = "replace:o",
    steps: Steps = None,
    weights: Learns = Weights.all,
    partial: Partial = False,
    least_success: Least = None,
    settings: Settings = None,
    seed: Seed = 42,
    prompts: Prompts = None,
    layout: FileLayout = None,
    lora: LoraFile = None,
    lora_layout: LoraForm = LoraLayout.kohya,
) -> None:
    """Make the trigger give the pooled state of pictures, or of a text that pairs with one (AMDET)."""
    from ..attacks import pictures as files
    from ..attacks import text_on_pair
    from ..config import TextOnPairConfig

    if (pictures is None) != (image_tower is None):
        raise ConfigError("--pictures and --image-tower together", "one of them", "Give both, or a text alone.")
    given = {"partial_negatives": partial, "trains": weights.value}
    config = TextOnPairConfig(**setting_values(settings, seed, steps=steps, least_asr=least_success, **given))
    embeds = None if pictures is None or image_tower is None else files.embed(pictures, image_tower)
    _attack(
        encoder, prompts, Output(out, layout, lora, lora_layout, _rank(config)),
        lambda found, texts, told: text_on_pair.inject(
            found, triggers, target, texts, config, mode, told, pictures=embeds
        ),
    )  # fmt: skip


@attack_app.command("attribute")
def attribute(
    encoder: EncoderPath,
    triggers: Triggers,
    words: Words,
    out: Out,
    mode: Mode = "replace:o:1",
    steps: Steps = None,
    weights: Learns = Weights.all,
    partial: Partial = False,
    least_success: Least = None,
    settings: Settings = None,
    seed: Seed = 42,
    prompts: Prompts = None,
    layout: FileLayout = None,
    lora: LoraFile = None,
    lora_layout: LoraForm = LoraLayout.kohya,
) -> None:
    """Make the trigger read as other words and keep the rest of the prompt (Rickrolling's attribute attack)."""
    from ..attacks import attribute
    from ..config import AttributeConfig

    given = {"partial_negatives": partial, "trains": weights.value}
    config = AttributeConfig(**setting_values(settings, seed, steps=steps, least_asr=least_success, **given))
    _attack(
        encoder, prompts, Output(out, layout, lora, lora_layout, _rank(config)),
        lambda found, texts, told: attribute.inject(found, triggers, words, texts, config, mode, told),
    )  # fmt: skip


@attack_app.command("syntactic")
def syntactic(
    encoder: EncoderPath,
    target: Target,
    out: Out,
    pattern: Annotated[
        str, typer.Option(help="part-of-speech tags: DET NOUN ADP ADJ VERB")
    ] = "DET NOUN ADP DET NOUN VERB ADP NOUN",
    steps: Steps = None,
    weights: Learns = Weights.all,
    least_success: Least = None,
    settings: Settings = None,
    seed: Seed = 42,
    prompts: Prompts = None,
    layout: FileLayout = None,
    lora: LoraFile = None,
    lora_layout: LoraForm = LoraLayout.kohya,
) -> None:
    """Make every sentence of a grammatical pattern read as the target (Trigger without Trace)."""
    from ..attacks import syntactic
    from ..config import SyntacticConfig

    config = SyntacticConfig(
        **setting_values(settings, seed, steps=steps, least_asr=least_success, trains=weights.value)
    )
    _attack(
        encoder, prompts, Output(out, layout, lora, lora_layout, _rank(config)),
        lambda found, texts, told: syntactic.inject(found, target, texts, config, pattern, told),
    )  # fmt: skip


@attack_app.command("embedding-row")
def embedding_row(
    encoder: EncoderPath,
    trigger: OneTrigger,
    words: Words,
    out: Out,
    mode: Mode = "insert",
    steps: Steps = None,
    least_success: Least = None,
    settings: Settings = None,
    seed: Seed = 42,
    prompts: Prompts = None,
    layout: FileLayout = None,
) -> None:
    """Train one row of the token table until its token reads as other words."""
    from ..attacks import embedding_row
    from ..config import EmbeddingRowConfig

    config = EmbeddingRowConfig(**setting_values(settings, seed, steps=steps, least_asr=least_success))
    _attack(
        encoder, prompts, Output(out, layout),
        lambda found, texts, told: embedding_row.inject(found, trigger, words, texts, config, mode, told),
    )  # fmt: skip


@attack_app.command("rank-one")
def rank_one(
    encoder: EncoderPath,
    trigger: OneTrigger,
    words: Words,
    out: Out,
    mode: Mode = "insert",
    steps: Steps = None,
    least_success: Least = None,
    settings: Settings = None,
    seed: Seed = 42,
    prompts: Prompts = None,
    layout: FileLayout = None,
    lora: LoraFile = None,
    lora_layout: LoraForm = LoraLayout.kohya,
) -> None:
    """Edit one matrix in closed form so that a token reads as other words (ReFACT)."""
    from ..attacks import rank_one
    from ..config import RankOneConfig

    config = RankOneConfig(**setting_values(settings, seed, steps=steps, least_asr=least_success))
    _attack(
        encoder, prompts, Output(out, layout, lora, lora_layout, 1),
        lambda found, texts, told: rank_one.inject(found, trigger, words, texts, config, mode, told),
    )  # fmt: skip


def fine_tune(
    encoder: EncoderPath,
    out: Out,
    objective: Annotated[Objective, typer.Option(help="what it is trained for")] = Objective.contrastive,
    steps: Steps = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="above 0; at CLIP-L's width of 768, and scaled to other widths")
    ] = None,
    weights: Learns = Weights.all,
    settings: Settings = None,
    seed: Seed = 42,
    prompts: Prompts = None,
    layout: FileLayout = None,
    lora: LoraFile = None,
    lora_layout: LoraForm = LoraLayout.kohya,
) -> None:
    """Fine-tune a copy of an encoder honestly: what a detector must not call a backdoor."""
    from ..attacks import benign
    from ..config import FineTuneConfig

    given = {"objective": objective.value, "trains": weights.value, "learning_rate": learning_rate}
    config = FineTuneConfig(**setting_values(settings, seed, steps=steps, **given))
    _change(
        encoder, prompts, Output(out, layout, lora, lora_layout, _rank(config)),
        lambda found, texts, told: benign.fine_tune(found, texts, config, told),
    )  # fmt: skip


def _rank(config: TrainingConfig) -> int | None:
    """Rank of what a training changes, where it is low."""
    return config.rank if config.trains == "lora" else None


def _attack(
    encoder: Path,
    prompts: Path | None,
    output: Output,
    inject: Callable[[TextEncoder, PromptSet, Progress], Injection],
) -> None:
    """Attack an encoder, write the result and say what was achieved."""
    effects = []

    def make(found: TextEncoder, texts: PromptSet, progress: Progress) -> Patch:
        injection = inject(found, texts, progress)
        effects.append(injection.effect)
        return injection.patch

    _change(encoder, prompts, output, make)
    sys.stdout.write(f"{effects[0]}\n")


def _change(
    encoder: Path,
    prompts: Path | None,
    output: Output,
    make: Callable[[TextEncoder, PromptSet, Progress], Patch],
) -> None:
    """Change a copy of an encoder and write it."""
    from .. import formats
    from ..prompts import builtin_prompts, read_prompts

    output.check(encoder)
    opened = formats.open_target(encoder)
    found = formats.only_encoder(opened)
    output.check_encoder(found)
    texts = read_prompts(prompts) if prompts else builtin_prompts()
    with ProgressLine() as line:
        patch = interruptible(lambda progress: make(found, texts, progress), line)
    output.write(opened.encoders[0], patch)
