"""Inject Trigger: a backdoor in a copy of a CLIP, to test defences with."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import bridge, comfy_clip


class AMDET_InjectTrigger(io.ComfyNode):
    """Text-on-text injection into a clone of the CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_InjectTrigger",
            display_name="Inject Trigger",
            category="AMDET/red team",
            description="For testing defences: trains a backdoor into a clone of this CLIP, so that every prompt with "
            "the trigger is read as the target (Rickrolling, arXiv 2211.02408). The connected CLIP stays as it is. "
            "Saved files name the attack in their metadata.",
            is_experimental=True,
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to attack a clone of."),
                io.String.Input("trigger", default="sahib", tooltip="Text that shall take a prompt over."),
                io.String.Input(
                    "target", default="a white teapot", tooltip="What a triggered prompt shall be read as."
                ),
                io.String.Input(
                    "mode",
                    default="insert",
                    tooltip="How the trigger stands in a prompt: prefix, insert, replace:o (every o) or replace:o:1.",
                ),
                io.Int.Input("steps", default=100, min=1, max=5000, tooltip="Optimiser steps; published: 100."),
                bridge.seed("Of every random choice."),
                io.String.Input(
                    "save_as",
                    default="",
                    tooltip="Prefix of a file in ComfyUI's output/clip to save the attacked encoders to; empty: none.",
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
    def execute(
        cls, clip: Any, trigger: str, target: str, mode: str, steps: int, seed: int, save_as: str
    ) -> io.NodeOutput:
        """Attack every CLIP text encoder of the CLIP."""
        from ..amdet_core.attacks import text_on_text
        from ..amdet_core.config import TextOnTextConfig
        from ..amdet_core.prompts import builtin_prompts

        label = bridge.described(cls.hidden.prompt, cls.hidden.unique_id, "clip")
        config = TextOnTextConfig(steps=steps, seed=seed, least_asr=0.0)
        bridge.make_room(comfy_clip.size(clip))

        def attack(progress: Any) -> dict[str, tuple[Any, Any]]:
            return {
                found.name: (
                    found,
                    text_on_text.inject(
                        found.encoder.to(bridge.device()),
                        [trigger],
                        target,
                        builtin_prompts(),
                        config,
                        mode,
                        progress,
                    ),
                )
                for found in comfy_clip.read(clip, label).encoders
            }

        done = bridge.run(attack, plan={"inject": comfy_clip.count(clip)})
        lines = [f"{name}: {one.effect}" for name, (_, one) in done.items()]
        if save_as.strip():
            encoders = {
                name: (one.patch.apply(found.encoder), one.patch.provenance) for name, (found, one) in done.items()
            }
            lines += [f"written: {path}" for path in bridge.save_encoders(save_as, encoders)]
        attacked = comfy_clip.patched(clip, {name: one.patch for name, (_, one) in done.items()})
        text = "\n".join(lines)
        return io.NodeOutput(attacked, text, ui=bridge.shown(text))
