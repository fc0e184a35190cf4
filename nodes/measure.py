"""Trigger Sweep and Weight Forensics: single stages of a scan, without a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..amdet_core.policy import POLICIES
from . import bridge
from .scan import scanned

if TYPE_CHECKING:
    from PIL import Image

    from ..amdet_core.records import ScanReport

POLICY = POLICIES["amdet-2"]
"""The policy whose stages these are."""


def _tokens(found: ScanReport) -> Image.Image:
    """How far the tokens that stand out depart, or a card that says why there are none."""
    from ..amdet_core import figures
    from ..amdet_core.report.tables import sweep_table

    if not found.sweeps:
        return figures.image(figures.card(sweep_table(found)))
    rows = [(lead.text or " ".join(lead.tokens), lead.departure) for sweep in found.sweeps for lead in sweep.leads]
    return figures.image(figures.bars(rows, "departure from the anchor, cosine"))


def _weights(found: ScanReport) -> Image.Image:
    """Relative change of every weight of the encoder that changed most, or a card that says why there is none."""
    from ..amdet_core import figures
    from ..amdet_core.report.tables import forensics_table

    if not found.forensics:
        return figures.image(figures.card(forensics_table(found)))
    most = max(found.forensics, key=lambda forensics: max((x.relative_norm for x in forensics.layers), default=0.0))
    return figures.image(figures.weight_changes(most))


ANCHOR = "A trusted CLIP to compare with. Without it, an installed encoder with a known hash is looked for."


class AMDET_TriggerSweep(bridge.Anchored, io.ComfyNode):
    """Which token changes this CLIP's answer most?"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_TriggerSweep",
            display_name="Trigger Sweep",
            category="AMDET/scan",
            description="Tries every token, and every look-alike or invisible character, as a trigger, and lists those "
            "that make the CLIP leave the anchor most or make all prompts give the same output.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to search, from any loader, LoRA or merge."),
                io.Clip.Input("anchor", optional=True, tooltip=ANCHOR),
                bridge.seed("Of the prompts that are drawn; the same seed gives the same list."),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Tokens that stand out, as Markdown."),
                io.Image.Output("picture", display_name="picture", tooltip="How far they depart, as bars."),
                io.String.Output(
                    "strongest", display_name="strongest", tooltip="The text that makes the CLIP depart most."
                ),
                io.Float.Output(
                    "departure",
                    display_name="departure",
                    tooltip="How far it does so: 0 not at all, 1 to an unrelated output.",
                ),
                bridge.Report.Output("report", display_name="report", tooltip="For Save Report and Show Report."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["trigger", "token", "vocabulary", "backdoor", "amdet"]),
        )

    @classmethod
    def execute(cls, clip: Any, seed: int, anchor: Any = bridge.UNCONNECTED) -> io.NodeOutput:
        """Try them all."""
        from ..amdet_core.report.tables import sweep_table
        from ..amdet_core.scan import plan

        config = plan(POLICY, "standard", seed).model_copy(update={"contrast": None, "search": None})
        texts = bridge.prompts(None, config.prompt_limit)
        outcome = scanned(cls.hidden, clip, anchor, config, POLICY, texts, lambda done: _tokens(done.report))
        found = outcome.report
        leads = [lead for sweep in found.sweeps for lead in sweep.leads]
        most = max(leads, key=lambda lead: lead.departure, default=None)
        text = sweep_table(found)
        return io.NodeOutput(
            text,
            bridge.tensor(_tokens(found)),
            "" if most is None else most.text,
            0.0 if most is None else most.departure,
            outcome,
            ui=bridge.shown(text),
        )


class AMDET_WeightForensics(bridge.Anchored, io.ComfyNode):
    """What was done to this CLIP's weights?"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_WeightForensics",
            display_name="Weight Forensics",
            category="AMDET/scan",
            description="Says in words what was done to a CLIP's weights: a cast, a fine-tune, a LoRA and its rank, an "
            "edit of one layer or of single tokens. It describes and judges nothing: a backdoor and an honest "
            "fine-tune can look alike here.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to look at, from any loader, LoRA or merge."),
                io.Clip.Input("anchor", optional=True, tooltip=ANCHOR),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Weights that changed most, as Markdown."),
                io.Image.Output("picture", display_name="picture", tooltip="Change of every weight, by layer."),
                io.String.Output("summary", display_name="summary", tooltip="What was done, in words."),
                bridge.Report.Output("report", display_name="report", tooltip="For Save Report and Show Report."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["weights", "diff", "lora", "merge", "fine-tune", "amdet"]),
        )

    @classmethod
    def execute(cls, clip: Any, anchor: Any = bridge.UNCONNECTED) -> io.NodeOutput:
        """Compare the weights."""
        from ..amdet_core.config import ScanConfig
        from ..amdet_core.report.tables import forensics_table

        config = ScanConfig(landscape=None)
        texts = bridge.prompts(None, config.prompt_limit)
        outcome = scanned(cls.hidden, clip, anchor, config, POLICY, texts, lambda done: _weights(done.report))
        found, text = outcome.report, forensics_table(outcome.report)
        summary = "\n".join(f"{one.encoder}: {one.summary}" for one in found.forensics) or text
        return io.NodeOutput(text, bridge.tensor(_weights(found)), summary, outcome, ui=bridge.shown(text))
