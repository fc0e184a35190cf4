"""Backdoor Scan: the whole scan in one node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..amdet_core.policy import DEFAULT_POLICY, POLICIES
from ..amdet_core.records import Level, ScanReport
from . import bridge, comfy_clip, report

if TYPE_CHECKING:
    from PIL import Image

    from ..amdet_core.config import ScanConfig
    from ..amdet_core.jobs import Outcome
    from ..amdet_core.policy import Policy
    from ..amdet_core.prompts import PromptSet

STOP_AT = {
    "never": None,
    "backdoored": Level.BACKDOORED,
    "suspicious": Level.SUSPICIOUS,
    "inconclusive": Level.INCONCLUSIVE,
}
PRESETS = ["quick", "standard", "thorough"]


def scanned(
    hidden: Any,
    clip: Any,
    anchor: Any,
    config: ScanConfig,
    policy: Policy,
    prompts: PromptSet,
    show: Callable[[Outcome], Image.Image],
) -> Outcome:
    """Scan a CLIP as the graph uses it, with progress and interrupt.

    Args:
        hidden: the node's hidden inputs, which tell where the CLIPs come from.
        anchor: a CLIP, or bridge.UNCONNECTED to look for trusted encoders.
        show: makes the last live picture.
    """
    from ..amdet_core.jobs import scan_opened, stages

    label, anchor_label = (bridge.described(hidden.prompt, hidden.unique_id, name) for name in ("clip", "anchor"))
    bridge.make_room(comfy_clip.size(clip))
    outcome = bridge.run(
        lambda progress: scan_opened(
            comfy_clip.read(clip, label),
            bridge.anchors(progress, anchor, anchor_label),
            config,
            policy,
            prompts,
            bridge.device(),
            progress=progress,
        ),
        plan=stages(config, comfy_clip.count(clip)),
        show=show,
    )
    bridge.raise_no_room(outcome.report.faults)
    return outcome


class AMDET_BackdoorScan(bridge.Anchored, io.ComfyNode):
    """Is the text encoder of this CLIP backdoored?"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_BackdoorScan",
            display_name="Backdoor Scan",
            category="AMDET/scan",
            description="Searches a text encoder for a hidden trigger that takes prompts over, and judges what it "
            "finds against a trusted encoder. Scans the CLIP as the graph uses it: LoRAs, merges and clip skip "
            "included.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to scan, from any loader, LoRA or merge."),
                io.Clip.Input(
                    "anchor",
                    optional=True,
                    tooltip="A trusted CLIP to compare with: the original that the scanned one was made from. "
                    "Without it, an installed encoder with a known hash is looked for.",
                ),
                io.Combo.Input(
                    "preset",
                    options=PRESETS,
                    default="standard",
                    tooltip="How much work the scan does. Thorough also trains and scans honest "
                    "fine-tunes of the anchor, to tell how far those go: 20 times the work.",
                ),
                io.Combo.Input(
                    "policy",
                    options=list(POLICIES),
                    default=DEFAULT_POLICY,
                    tooltip="How evidence becomes a verdict. The two amdet-2025 policies are the published ones and "
                    "slow.",
                ),
                bridge.seed("Of every random choice; the same seed gives the same report."),
                io.Combo.Input(
                    "stop_at",
                    options=list(STOP_AT),
                    default="never",
                    tooltip="Nothing behind the clip output runs when the verdict is this or worse.",
                ),
                bridge.advanced(
                    io.String.Input(
                        "prompts",
                        optional=True,
                        force_input=True,
                        tooltip="Your own prompts, one per line, at least 20, in place of the built-in ones.",
                    )
                ),
            ],
            outputs=[
                io.Clip.Output("clip_out", display_name="clip", tooltip="The scanned CLIP, unchanged."),
                bridge.Report.Output("report", display_name="report", tooltip="For Save Report and Show Report."),
                io.String.Output("verdict", display_name="verdict", tooltip="The verdict and its reasons as text."),
                io.Boolean.Output(
                    "passed",
                    display_name="passed",
                    tooltip="True only when the verdict is clean: no evidence was found. Not a proof.",
                ),
                io.Image.Output("landscape", display_name="landscape", tooltip="Loss around the recovered feature."),
                bridge.Feature.Output(
                    "pseudo_trigger",
                    display_name="pseudo_trigger",
                    tooltip="What was recovered, for Reversed Target and Save Pseudo-Trigger.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["backdoor", "trojan", "trigger", "security", "poison", "safety", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, preset: str, policy: str, stop_at: str) -> bool | str:
        """Refuse unknown choices before anything runs."""
        return bridge.all_right(
            bridge.among(preset, PRESETS, "preset"),
            bridge.among(policy, POLICIES, "policy"),
            bridge.among(stop_at, STOP_AT, "stop_at"),
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        preset: str,
        policy: str,
        seed: int,
        stop_at: str,
        anchor: Any = bridge.UNCONNECTED,
        prompts: str | None = None,
    ) -> io.NodeOutput:
        """Scan, judge and hand on."""
        from ..amdet_core.features import strongest
        from ..amdet_core.scan import plan

        chosen = POLICIES[policy]
        config = plan(chosen, preset, seed)
        texts = bridge.prompts(prompts, config.prompt_limit)
        outcome = scanned(cls.hidden, clip, anchor, config, chosen, texts, lambda done: report.landscape(done.report))
        found, text = outcome.report, report.summary(outcome.report)
        return io.NodeOutput(
            bridge.blocked(f"AMDET: {report.headline(found)}") if cls.stops(found, stop_at) else clip,
            outcome,
            text,
            found.verdict.level == Level.CLEAN,
            bridge.tensor(report.landscape(found)),
            strongest(outcome.features),
            ui=bridge.shown(text, {name: outcome.files[name] for name in ("landscape.png",) if name in outcome.files}),
        )

    @staticmethod
    def stops(found: ScanReport, stop_at: str) -> bool:
        """Whether the graph is to end behind the CLIP output."""
        limit = STOP_AT[stop_at]
        return limit is not None and found.verdict.level >= limit
