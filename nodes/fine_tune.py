"""Benign Fine-tune: an honest change of a copy of a CLIP, to see what a detector says to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import bridge
from .attack import WEIGHTS, changed

if TYPE_CHECKING:
    from ..amdet_core.encoder import TextEncoder
    from ..amdet_core.patch import Patch
    from ..amdet_core.progress import Progress

OBJECTIVES = ["contrastive", "distillation", "masked-words"]


class AMDET_FineTune(io.ComfyNode):
    """Training without a trigger and without a target."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_FineTune",
            display_name="Benign Fine-tune",
            category="AMDET/red team",
            description="Makes an honest control to test a detector with: fine-tunes a clone of this CLIP without a "
            "trigger and without a target, so a scan of it against the original must not find a backdoor. The "
            "connected CLIP stays as it is.",
            is_experimental=True,
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to train a clone of."),
                io.Combo.Input(
                    "objective",
                    options=OBJECTIVES,
                    default=OBJECTIVES[0],
                    tooltip="contrastive: tell prompts apart. distillation: say of a shortened prompt what was said of "
                    "the whole. masked-words: guess hidden words.",
                ),
                io.Int.Input("steps", default=200, min=1, max=5000, tooltip="Optimiser steps; in the wild 10 to 2000."),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-7,
                    max=0.1,
                    step=1e-7,
                    tooltip="Step size at CLIP-L's width of 768; scaled to other widths, and ten times as large for "
                    "a LoRA.",
                ),
                io.Combo.Input(
                    "weights",
                    options=WEIGHTS,
                    default=WEIGHTS[0],
                    tooltip="What learns: all weights, the layers without the two tables, or a LoRA on them.",
                ),
                bridge.seed("Of every random choice."),
                io.String.Input(
                    "save_as",
                    default="",
                    tooltip="Prefix of a file in ComfyUI's output/clip to save the trained encoders to; empty: none. "
                    "With weights lora also of a LoRA in output/loras.",
                ),
                bridge.advanced(
                    io.String.Input(
                        "prompts",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip="Your own prompts to train on, one per line, at least 20, in place of the built-in "
                        "ones.",
                    )
                ),
            ],
            outputs=[
                io.Clip.Output("clip_out", display_name="clip", tooltip="The trained clone."),
                io.String.Output(
                    "info", display_name="info", tooltip="How far held-out prompts are read as before, and the steps."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["fine-tune", "finetune", "control", "benign", "red team", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, objective: str, weights: str) -> bool | str:
        """Refuse unknown choices before anything runs."""
        return bridge.all_right(
            bridge.among(objective, OBJECTIVES, "objective"), bridge.among(weights, WEIGHTS, "weights")
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        objective: str,
        steps: int,
        learning_rate: float,
        weights: str,
        seed: int,
        save_as: str,
        prompts: str = "",
    ) -> io.NodeOutput:
        """Train every CLIP text encoder of the CLIP."""
        from ..amdet_core.attacks import benign, kept
        from ..amdet_core.attacks.effect import MEASURED_PROMPTS
        from ..amdet_core.config import FineTuneConfig

        config = FineTuneConfig(
            objective=objective, steps=steps, learning_rate=learning_rate, trains=weights, seed=seed
        )
        texts = bridge.prompts(prompts)
        measured = bridge.prompts(None).split()[1].first(MEASURED_PROMPTS).prompts

        def make(encoder: TextEncoder, progress: Progress) -> tuple[Patch, str]:
            patch = benign.fine_tune(encoder, texts, config, progress)
            cosine = kept(encoder, patch.apply(encoder), measured)
            return patch, f"{len(measured)} held-out prompts keep cosine {cosine:.3f} after {steps} {objective} steps"

        trained, text = changed(cls.hidden, clip, make, stage="fine-tune", save_as=save_as, weights=weights)
        return io.NodeOutput(trained, text, ui=bridge.shown(text))
