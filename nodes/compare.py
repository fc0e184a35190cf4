"""Compare Encoders: two CLIPs, prompt by prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import bridge, comfy_clip

PROMPTS = """a photo of a cat
an oil painting of a lighthouse at night
a red bicycle in front of a brick wall
portrait of an old man, dramatic lighting
a castle on a hill, highly detailed"""


class AMDET_CompareEncoders(io.ComfyNode):
    """How far two CLIPs answer the same."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_CompareEncoders",
            display_name="Compare Encoders",
            category="AMDET/scan",
            description="Compares what two CLIPs of the same sizes make of a list of prompts. A backdoor shows on "
            "prompts with its trigger alone; a fine-tune or a LoRA shows on all of them.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="One CLIP."),
                io.Clip.Input("other", tooltip="The CLIP to compare it with."),
                io.String.Input("prompts", default=PROMPTS, multiline=True, tooltip="One prompt per line."),
            ],
            outputs=[
                io.String.Output("table", display_name="table", tooltip="Cosines by prompt, as Markdown."),
                io.Image.Output("picture", display_name="picture", tooltip="The cosines as bars."),
                io.Float.Output("lowest", display_name="lowest", tooltip="Cosine of the prompt that differs most."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["diff", "cosine", "clip similarity", "amdet"]),
        )

    @classmethod
    def execute(cls, clip: Any, other: Any, prompts: str) -> io.NodeOutput:
        """Encode with both and compare."""
        from ..amdet_core import figures
        from ..amdet_core.compare import compare, table

        labels = [bridge.described(cls.hidden.prompt, cls.hidden.unique_id, name) for name in ("clip", "other")]
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        bridge.make_room(comfy_clip.size(clip))
        rows = bridge.run(
            lambda progress: compare(
                comfy_clip.read(clip, labels[0]), comfy_clip.read(other, labels[1]), lines, bridge.device(), progress
            ),
            plan={"compare": comfy_clip.count(clip)},
        )
        picture = figures.image(figures.bars([(row.prompt, row.states) for row in rows], "mean cosine of token states"))
        text = table(rows)
        return io.NodeOutput(text, bridge.tensor(picture), min(row.states for row in rows), ui=bridge.shown(text))
