"""Heal: a copy of a backdoored CLIP without its backdoor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..amdet_core.policy import DEFAULT_POLICY, POLICIES
from . import bridge, comfy_clip, folders
from .scan import PRESETS

if TYPE_CHECKING:
    from ..amdet_core.config import ScanConfig
    from ..amdet_core.progress import Progress
    from ..amdet_core.prompts import PromptSet
    from ..amdet_core.repair import Clinic, Healed

AUTO = "auto"
METHODS = [AUTO, "spectral", "restore", "distil", "erase"]
REPAIRS = {"repair": 2, "distil": 1}
"""How often each stage of repairs reports at most; one that works early leaves out what is behind it."""


def clinic(hidden: Any, clip: Any, anchor: Any, config: ScanConfig, prompts: PromptSet, progress: Progress) -> Clinic:
    """What repairs of a CLIP, as the graph uses it, share; to be called by work in the background.

    Args:
        hidden: the node's hidden inputs, which tell where the CLIPs come from.
        anchor: a CLIP, or bridge.UNCONNECTED to look for trusted encoders.
    """
    from ..amdet_core.repair import Clinic

    label, beside = (bridge.described(hidden.prompt, hidden.unique_id, name) for name in ("clip", "anchor"))
    return Clinic(
        opened=comfy_clip.read(clip, label),
        anchors=bridge.anchors(progress, anchor, beside),
        scan=config,
        policy=POLICIES[DEFAULT_POLICY],
        prompts=prompts,
        device=bridge.device(),
        progress=progress,
    )


class AMDET_Heal(bridge.Anchored, io.ComfyNode):
    """Scan, repair a clone, scan that."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_Heal",
            display_name="Heal",
            category="AMDET/repair",
            description="Scans a CLIP; where it finds a backdoor, repairs a clone and scans that again. The connected "
            "CLIP stays as it is, and comes out again where nothing was found or no repair worked.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to heal a clone of, from any loader, LoRA or merge."),
                io.Clip.Input(
                    "anchor",
                    optional=True,
                    tooltip="A trusted CLIP: the original that the suspect was made from. Without it, an installed "
                    "encoder with a known hash is looked for; where there is none, only erase can repair.",
                ),
                io.Combo.Input(
                    "method",
                    options=METHODS,
                    default=AUTO,
                    tooltip="How to repair. auto: the least invasive method that works; erase where there is no "
                    "anchor. Any other is tried alone.",
                ),
                io.Combo.Input(
                    "preset",
                    options=PRESETS,
                    default="quick",
                    tooltip="How much work every scan does, before and after.",
                ),
                bridge.seed("Of the scans; the same seed gives the same repair."),
                io.Boolean.Input(
                    "replace",
                    default=False,
                    tooltip="Put the anchor in the suspect's place instead of repairing it; refused where the two "
                    "differ by more than the backdoor.",
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    tooltip="Prefix of a file in ComfyUI's output/clip to save each healed encoder to; empty: none.",
                ),
            ],
            outputs=[
                io.Clip.Output("clip_out", display_name="clip", tooltip="The healed clone, or the CLIP as it was."),
                io.String.Output(
                    "text", display_name="text", tooltip="What was found, done and measured, as Markdown."
                ),
                io.Boolean.Output(
                    "healed",
                    display_name="healed",
                    tooltip="True only when a backdoor was found and nothing is left of it for a scan to find.",
                ),
                bridge.Report.Output(
                    "report",
                    display_name="report",
                    tooltip="The scan of the CLIP that comes out, for Save Report and Show Report.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["repair", "fix", "erase", "cure", "clean", "backdoor", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, method: str, preset: str) -> bool | str:
        """Refuse unknown choices before anything runs."""
        return bridge.all_right(bridge.among(method, METHODS, "method"), bridge.among(preset, PRESETS, "preset"))

    @classmethod
    def execute(
        cls,
        clip: Any,
        method: str,
        preset: str,
        seed: int,
        replace: bool,
        save_as: str,
        anchor: Any = bridge.UNCONNECTED,
    ) -> io.NodeOutput:
        """Heal every CLIP text encoder of the CLIP."""
        from ..amdet_core.repair import heal_each, render_heal
        from ..amdet_core.scan import plan, stages

        config = plan(POLICIES[DEFAULT_POLICY], preset, seed)

        def work(progress: Progress) -> Healed:
            made = clinic(cls.hidden, clip, anchor, config, bridge.prompts(None, config.prompt_limit), progress)
            return heal_each(made, method=None if method == AUTO else method, replaced=replace)

        if save_as.strip():
            folders.new_place(save_as, "clip")
        count = comfy_clip.count(clip)
        bridge.make_room(comfy_clip.size(clip), bridge.TRAINING)
        repairs = {stage: runs * count for stage, runs in REPAIRS.items()}
        done = bridge.run(work, plan={**stages(config, 2 * count), **repairs})
        bridge.raise_no_room(done.before.report.faults)
        lines = [render_heal(*(healing.report for healing in done.encoders.values()))]
        if save_as.strip() and done.patches:
            lines += [f"written: {path}" for path in folders.save_encoders(save_as, _repaired(clip, done))]
        text = "\n".join(lines)
        healed = comfy_clip.patched(clip, done.patches) if done.patches else clip
        return io.NodeOutput(healed, text, done.healed, done.after, ui=bridge.shown(text))


def _repaired(clip: Any, done: Healed) -> dict[str, tuple[Any, Any]]:
    """The encoders that were repaired, whole, with what was done."""
    opened, patches = comfy_clip.read(clip, "clip", projected=True), done.patches
    return {
        found.name: (patches[found.name].apply(found.encoder), patches[found.name].provenance)
        for found in opened.encoders
        if found.name in patches
    }
