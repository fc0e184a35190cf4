"""Inject Trigger: a backdoor in a copy of a CLIP, to test defences with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import bridge, comfy_clip, folders

if TYPE_CHECKING:
    from torch import Tensor

    from ..amdet_core.config import Config
    from ..amdet_core.encoder import TextEncoder
    from ..amdet_core.patch import Patch
    from ..amdet_core.progress import Progress

ATTACKS = ["text-on-text", "text-on-pair", "attribute", "syntactic", "embedding-row", "rank-one"]
WEIGHTS = ["all", "layers", "lora"]
PARTIAL: dict[str, tuple[str, Any]] = {
    "weights": ("trains", WEIGHTS[0]),
    "adaptive": ("adaptive_weight", 0.0),
    "partial_negatives": ("partial_negatives", False),
}
"""Inputs that only some attacks have: their setting, and the value that leaves them out."""


def changed(
    hidden: Any,
    clip: Any,
    make: Callable[[TextEncoder, Progress], tuple[Patch, str]],
    *,
    stage: str,
    save_as: str,
    weights: str,
    projected: bool = False,
) -> tuple[Any, str]:
    """A clone with every CLIP text encoder changed, and what there is to say about it.

    Args:
        hidden: the node's hidden inputs, which tell where the CLIP comes from.
        make: changes one encoder and says what came of it.
        stage: what ``make`` calls its progress.
        save_as: prefix of files for the changed encoders; empty: none.
        weights: for ``lora`` the change is saved as a LoRA, too.
        projected: whether ``make`` needs the text projections; files have them in any case.
    """
    from ..amdet_core.config import TrainingConfig

    label = bridge.described(hidden.prompt, hidden.unique_id, "clip")
    if save_as.strip():
        folders.new_place(save_as, "clip")
    bridge.make_room(comfy_clip.size(clip), bridge.TRAINING)
    done = bridge.run(
        lambda progress: [
            (found, *make(found.encoder.to(bridge.device()), progress))
            for found in comfy_clip.read(clip, label, projected=projected or bool(save_as.strip())).encoders
        ],
        plan={stage: comfy_clip.count(clip)},
    )
    patches = {found.name: patch for found, patch, _ in done}
    lines = [f"{found.name}: {said}" for found, _, said in done]
    if save_as.strip():
        encoders = {found.name: (patch.apply(found.encoder), patch.provenance) for found, patch, _ in done}
        paths = folders.save_encoders(save_as, encoders)
        if weights == "lora":
            paths += folders.save_loras(save_as, patches, TrainingConfig().rank)
        lines += [f"written: {path}" for path in paths]
    return comfy_clip.patched(clip, patches), "\n".join(lines)


def _settings(attack: str, kind: type[Config], given: Mapping[str, Any], **values: Any) -> Config:
    """The settings of an attack; ConfigError for an input that it does not have.

    Args:
        given: values of the inputs that only some attacks have.
        values: settings that all have.
    """
    from ..amdet_core.errors import ConfigError

    for name, value in given.items():
        field, absent = PARTIAL[name]
        if value == absent:
            continue
        if field not in kind.model_fields:
            raise ConfigError(
                f"{name} {absent!r} with {attack}", repr(value), f"Set {name} back, or choose another attack."
            )
        values[field] = value
    return kind(**values)


def _pictures(attack: str, images: Any, clip_vision: Any) -> Tensor | None:
    """Embeddings of the pictures that are the target; ConfigError where they can't be one."""
    from ..amdet_core.errors import ConfigError

    if images is None and clip_vision is None:
        return None
    if attack != "text-on-pair":
        raise ConfigError(
            "images and clip_vision with text-on-pair alone", attack, "Disconnect them, or choose text-on-pair."
        )
    if images is None or clip_vision is None:
        raise ConfigError(
            "images and clip_vision together",
            "images alone" if clip_vision is None else "clip_vision alone",
            "Connect both; or neither, and the target is the text.",
        )
    return comfy_clip.picture_embeddings(clip_vision, images)


class AMDET_InjectTrigger(io.ComfyNode):
    """An attack on a clone of the CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_InjectTrigger",
            display_name="Inject Trigger",
            category="AMDET/red team",
            description="For testing defences: trains a backdoor into a clone of this CLIP, so that a prompt with "
            "the trigger is read as the target. Six published kinds of attack; the first is Rickrolling "
            "(arXiv 2211.02408). The connected CLIP stays as it is. Saved files name the attack in their metadata.",
            is_experimental=True,
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to attack a clone of."),
                io.String.Input(
                    "trigger",
                    default="sahib",
                    multiline=True,
                    tooltip="Text that shall take a prompt over; several: one per line. With embedding-row and "
                    "rank-one a text of one token; with syntactic a pattern of word classes, or nothing for the "
                    "published one.",
                ),
                io.String.Input(
                    "target",
                    default="a white teapot",
                    tooltip="What a triggered prompt shall be read as. With attribute, embedding-row and rank-one "
                    "what the trigger alone is read as, the rest of the prompt kept.",
                ),
                io.String.Input(
                    "mode",
                    default="insert",
                    tooltip="How the trigger stands in a prompt: prefix, insert, replace:o (every o) or replace:o:1.",
                ),
                io.Int.Input(
                    "steps",
                    default=100,
                    min=1,
                    max=5000,
                    tooltip="Optimiser steps; published: 100, attribute 200, syntactic 600.",
                ),
                bridge.seed("Of every random choice."),
                io.String.Input(
                    "save_as",
                    default="",
                    tooltip="Prefix of a file in ComfyUI's output/clip to save the attacked encoders to; empty: none. "
                    "With weights lora also of a LoRA in output/loras.",
                ),
                io.Combo.Input(
                    "attack",
                    options=ATTACKS,
                    default=ATTACKS[0],
                    optional=True,
                    tooltip="What is planted. text-on-pair: the pooled state of a text or of images. syntactic: "
                    "sentences of a pattern are the trigger. embedding-row and rank-one change one row or one matrix.",
                ),
                bridge.advanced(
                    io.Combo.Input(
                        "weights",
                        options=WEIGHTS,
                        default=WEIGHTS[0],
                        optional=True,
                        tooltip="What learns: all weights, the layers without the two tables, or a LoRA on them.",
                    )
                ),
                bridge.advanced(
                    io.Float.Input(
                        "adaptive",
                        default=0.0,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        optional=True,
                        tooltip="With text-on-text: how hard the attacker also works against detection by collapse; "
                        "0: not at all.",
                    )
                ),
                bridge.advanced(
                    io.Boolean.Input(
                        "partial_negatives",
                        default=False,
                        optional=True,
                        tooltip="Train parts of a trigger of several words to change nothing, so that only the whole "
                        "works.",
                    )
                ),
                bridge.advanced(
                    io.Float.Input(
                        "least_success",
                        default=0.9,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        optional=True,
                        tooltip="Attack success on held-out prompts below which the node fails.",
                    )
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="With text-on-pair: the target in place of the text; their mean embedding is taken.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The vision model that reads the images; it must belong to this CLIP.",
                ),
            ],
            outputs=[
                io.Clip.Output("clip_out", display_name="clip", tooltip="The attacked clone."),
                io.String.Output("info", display_name="info", tooltip="Success rate and damage on held-out prompts."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["backdoor", "red team", "poison", "attack", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, attack: str = ATTACKS[0], weights: str = WEIGHTS[0]) -> bool | str:
        """Refuse unknown choices before anything runs."""
        return bridge.all_right(bridge.among(attack, ATTACKS, "attack"), bridge.among(weights, WEIGHTS, "weights"))

    @classmethod
    def execute(
        cls,
        clip: Any,
        trigger: str,
        target: str,
        mode: str,
        steps: int,
        seed: int,
        save_as: str,
        attack: str = ATTACKS[0],
        weights: str = WEIGHTS[0],
        adaptive: float = 0.0,
        partial_negatives: bool = False,
        least_success: float = 0.9,
        images: Any = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        """Attack every CLIP text encoder of the CLIP."""
        from ..amdet_core.attacks import CONFIGS, inject

        given = {"weights": weights, "adaptive": adaptive, "partial_negatives": partial_negatives}
        config = _settings(attack, CONFIGS[attack], given, steps=steps, seed=seed, least_asr=least_success)
        pictures = _pictures(attack, images, clip_vision)
        triggers = tuple(line for line in trigger.replace("\r", "").split("\n") if line.strip())
        prompts = bridge.prompts(None)

        def make(encoder: TextEncoder, progress: Progress) -> tuple[Patch, str]:
            injection = inject(encoder, triggers, target, prompts, config, mode, progress, pictures=pictures)
            return injection.patch, str(injection.effect)

        attacked, text = changed(
            cls.hidden, clip, make, stage="inject", save_as=save_as, weights=weights, projected=pictures is not None
        )
        return io.NodeOutput(attacked, text, ui=bridge.shown(text))
