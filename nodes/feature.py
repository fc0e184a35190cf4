"""The stages one by one, and the recovered feature at work: invert, judge the landscape, encode, save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import bridge, comfy_clip, conditioning, folders, report
from .scan import scanned

if TYPE_CHECKING:
    from ..amdet_core.features import Feature

METHODS = {"contrast": "amdet-2", "amdet-code": "amdet-2025-code", "amdet-paper": "amdet-2025-paper"}
"""Search -> policy that it belongs to."""
POSITIONS = ["start", "end"]
"""Image models read all positions, and under a causal mask only those behind a feature change."""


class AMDET_InvertFeature(io.ComfyNode):
    """The gradient search for one length of trigger."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_InvertFeature",
            display_name="Invert Feature",
            category="AMDET/scan",
            description="Searches by gradient for vectors that take every prompt over in this CLIP and not in the "
            "anchor. One stage of Backdoor Scan, with its settings open.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to search in."),
                io.Clip.Input("anchor", tooltip="A trusted CLIP to compare with."),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="contrast",
                    tooltip="contrast: collapse that the anchor does not share. amdet-code and amdet-paper: the "
                    "published objective; slow.",
                ),
                io.Int.Input("vectors", default=1, min=1, max=16, tooltip="Length K of the trigger that is searched."),
                io.Int.Input("steps", default=60, min=1, max=2000, tooltip="Optimiser steps per search (contrast)."),
                io.Int.Input("searches", default=2, min=1, max=20, tooltip="Independent searches (contrast)."),
                bridge.seed("Of every random choice."),
            ],
            outputs=[
                bridge.Feature.Output("feature", display_name="feature", tooltip="What was recovered."),
                bridge.Report.Output("report", display_name="report", tooltip="What was measured, judged and drawn."),
                io.Image.Output("loss", display_name="loss", tooltip="Loss by step."),
                io.Float.Output(
                    "gap", display_name="gap", tooltip="Collapse in this CLIP minus the anchor's, -1 to 1."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["invert", "trigger inversion", "pseudo trigger", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, method: str) -> bool | str:
        """One of the methods."""
        return bridge.among(method, METHODS, "method")

    @classmethod
    def execute(
        cls, clip: Any, anchor: Any, method: str, vectors: int, steps: int, searches: int, seed: int
    ) -> io.NodeOutput:
        """Search, without landscape and literal trigger."""
        from ..amdet_core import figures
        from ..amdet_core.config import ContrastConfig, ScanConfig
        from ..amdet_core.features import strongest
        from ..amdet_core.policy import POLICIES
        from ..amdet_core.prompts import builtin_prompts
        from ..amdet_core.scan import plan

        policy = POLICIES[METHODS[method]]
        published = plan(policy, "standard", seed).amdet
        if published is None:
            contrast = ContrastConfig(vectors=(vectors,), seeds=searches, steps=steps)
            config = ScanConfig(seed=seed, contrast=contrast, landscape=None)
        else:
            config = ScanConfig(seed=seed, amdet=published.model_copy(update={"vectors": vectors}))
        outcome = scanned(
            cls.hidden,
            clip,
            anchor,
            config,
            policy,
            builtin_prompts(config.prompt_limit),
            lambda done: figures.image(figures.loss_curves(done.report.candidates)),
        )
        gaps = [gap for one in outcome.features if (gap := one.candidate.indicators.get("gap")) is not None]
        picture = figures.image(figures.loss_curves(outcome.report.candidates))
        text = f"gap {max(gaps):.2f}" if gaps else report.headline(outcome.report)
        return io.NodeOutput(
            strongest(outcome.features),
            outcome,
            bridge.tensor(picture),
            float(max(gaps, default=0.0)),
            ui=bridge.shown(text),
        )


class AMDET_LandscapeVerdict(io.ComfyNode):
    """Injected or natural, by the shape of the loss."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_LandscapeVerdict",
            display_name="Landscape Verdict",
            category="AMDET/scan",
            description="Draws the loss around a recovered feature and counts its positive curvatures: by the paper, "
            "an injected feature sits in a smooth bowl and a natural one on rough ground.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP in which the feature was recovered."),
                io.Clip.Input("anchor", tooltip="The anchor with which it was recovered."),
                bridge.Feature.Input("feature", tooltip="From Invert Feature or Backdoor Scan."),
                io.Int.Input("grid", default=25, min=5, max=101, tooltip="Points along each side of the picture."),
                io.Float.Input(
                    "radius",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Half side of the picture in embedding units; 0 takes the length of the feature. "
                    "The paper's code takes 10.",
                ),
                bridge.seed("Of the second direction and the prompts."),
            ],
            outputs=[
                io.Image.Output("landscape", display_name="landscape", tooltip="The loss from above and its cuts."),
                io.Image.Output("spectrum", display_name="spectrum", tooltip="Histogram of the curvatures."),
                io.Float.Output(
                    "positive_share", display_name="positive_share", tooltip="Share of positive curvatures, 0 to 1."
                ),
                io.String.Output("verdict", display_name="verdict", tooltip="injected or natural, with the figures."),
            ],
            **bridge.newer(search_aliases=["loss landscape", "hessian", "curvature", "amdet"]),
        )

    @classmethod
    def execute(
        cls, clip: Any, anchor: Any, feature: Mapping[str, Feature], grid: int, radius: float, seed: int
    ) -> io.NodeOutput:
        """Draw around the strongest feature."""
        from ..amdet_core import figures
        from ..amdet_core.config import LandscapeConfig, ScanConfig
        from ..amdet_core.features import best
        from ..amdet_core.prompts import builtin_prompts
        from ..amdet_core.surface import surround
        from ..amdet_core.verdict import landscape_verdict

        one = best(feature.values())
        around = LandscapeConfig(grid=grid, radius=radius or float(one.vectors.norm()))
        config = ScanConfig(seed=seed, landscape=around)
        bridge.make_room(comfy_clip.size(clip))
        surface = bridge.run(
            lambda progress: surround(
                comfy_clip.subject(clip, anchor, one.candidate.encoder, bridge.device()),
                one,
                builtin_prompts(config.prompt_limit),
                config,
                progress,
            ),
            plan={"encode": 2, "landscape": 3},
            show=lambda done: figures.image(figures.landscape(done)),
        )
        verdict = f"{one.candidate.encoder}: {landscape_verdict(surface.positive_share)}"
        pictures = [bridge.tensor(figures.image(draw(surface))) for draw in (figures.landscape, figures.spectrum)]
        return io.NodeOutput(*pictures, surface.positive_share, verdict, ui=bridge.shown(verdict))


class AMDET_ReversedTarget(io.ComfyNode):
    """A prompt with the recovered feature in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_ReversedTarget",
            display_name="Reversed Target",
            category="AMDET/render",
            description="Encodes a prompt with the recovered feature in it, for a sampler with the same checkpoint: "
            "the picture shows what the hidden trigger would draw. Without a recovered feature nothing behind it "
            "runs.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that was scanned."),
                bridge.Feature.Input("feature", tooltip="From Backdoor Scan or Invert Feature."),
                io.String.Input(
                    "text",
                    default="a photo of a dog in the park",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Any prompt; a backdoor overrides it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="0 is the plain prompt, 1 the prompt with the feature; between and beyond they are mixed.",
                ),
                bridge.advanced(
                    io.Combo.Input(
                        "position",
                        options=POSITIONS,
                        default=POSITIONS[0],
                        tooltip="Where the feature stands in the prompt: at the start, where it changes all that "
                        "follows, or in front of the end, where the prompt's own words stay as they are.",
                    )
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="For the positive input of a sampler."
                )
            ],
            **bridge.newer(search_aliases=["render trigger", "show backdoor", "pseudo trigger", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, position: str) -> bool | str:
        """One of the positions."""
        return bridge.among(position, POSITIONS, "position")

    @classmethod
    def execute(
        cls, clip: Any, feature: Mapping[str, Feature], text: str, strength: float, position: str
    ) -> io.NodeOutput:
        """Encode through the host, clip skip and SDXL included."""
        if not feature:
            return io.NodeOutput(bridge.blocked(), ui=bridge.shown("no feature was recovered: nothing to show"))
        vectors = {name: one.vectors for name, one in feature.items()}
        at_start = position == "start"
        with_feature = conditioning.encode(clip, text, vectors, at_start)
        return io.NodeOutput(
            conditioning.blended(conditioning.encode(clip, text, {}, at_start), with_feature, strength)
        )


class AMDET_SavePseudoTrigger(io.ComfyNode):
    """The recovered feature as a textual-inversion file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_SavePseudoTrigger",
            display_name="Save Pseudo-Trigger",
            category="AMDET/render",
            description="Writes the recovered feature as a textual-inversion embedding into ComfyUI's output; "
            "embedding:amdet/NAME works at once in any prompt for the scanned model.",
            is_output_node=True,
            inputs=[
                bridge.Feature.Input("feature", tooltip="From Backdoor Scan or Invert Feature."),
                io.String.Input(
                    "name", default="pseudo-trigger", tooltip="Name of the embedding; letters, digits, - and _."
                ),
            ],
            outputs=[io.String.Output("prompt", display_name="prompt", tooltip="What to write into a prompt.")],
            **bridge.newer(search_aliases=["textual inversion", "embedding", "amdet"]),
        )

    @classmethod
    def execute(cls, feature: Mapping[str, Feature], name: str) -> io.NodeOutput:
        """Write under a name that no other embedding has."""
        from ..amdet_core.features import pseudo_trigger_bytes

        data = pseudo_trigger_bytes(feature.values())
        if data is None:
            return io.NodeOutput(bridge.blocked(), ui=bridge.shown("no feature was recovered: nothing was written"))
        prompt = folders.save_embedding(name, data)
        return io.NodeOutput(prompt, ui=bridge.shown(prompt))
