"""Guarded Text Encode: CLIP Text Encode that says when a prompt is read otherwise than the anchor reads it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import bridge, comfy_clip, conditioning

if TYPE_CHECKING:
    from torch import Tensor

    from ..amdet_core.guard import Guard
    from ..amdet_core.progress import Progress
    from ..amdet_core.scan import Subject

MODES = ["flag", "stop", "fall back"]
MEASURED: OrderedDict[Any, tuple[Tensor, Tensor, Tensor]] = OrderedDict()
"""Two CLIPs and the name of an encoder -> its centre, the anchor's, and the departures of clean prompts."""
REMEMBERED = 32


class AMDET_GuardedTextEncode(io.ComfyNode):
    """A prompt, encoded and checked."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_GuardedTextEncode",
            display_name="Guarded Text Encode",
            category="AMDET/scan",
            description="CLIP Text Encode with a guard: checks whether this prompt is read otherwise than a trusted "
            "CLIP reads it, by more than clean prompts are, and names the words or characters that cause it.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to encode with."),
                io.Clip.Input("anchor", tooltip="The trusted CLIP that it was made from, as from Find Anchor."),
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The prompt."),
                io.Combo.Input(
                    "mode",
                    options=MODES,
                    default=MODES[0],
                    tooltip="What happens to a flagged prompt. flag: it is encoded all the same. stop: nothing behind "
                    "the conditioning runs. fall back: it is encoded with the anchor's CLIP weights.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip="What CLIP Text Encode gives, unless the mode changes it for a flagged prompt.",
                ),
                io.String.Output("found", display_name="found", tooltip="What was flagged and what causes it."),
                io.Boolean.Output("flagged", display_name="flagged", tooltip="True when the prompt was flagged."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["clip text encode", "prompt guard", "trigger", "safe prompt", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, mode: str) -> bool | str:
        """One of the modes."""
        return bridge.among(mode, MODES, "mode")

    @classmethod
    def execute(cls, clip: Any, anchor: Any, text: str, mode: str) -> io.NodeOutput:
        """Check, then encode through the host."""
        labels = [bridge.described(cls.hidden.prompt, cls.hidden.unique_id, name) for name in ("clip", "anchor")]
        bridge.make_room(comfy_clip.size(clip))
        alarms, notes = bridge.run(
            lambda progress: _checked(clip, anchor, text, labels, progress), plan={"encode": 4 * comfy_clip.count(clip)}
        )
        found = "\n".join([*(alarms or ["nothing was flagged"]), *notes])
        if alarms and mode == "stop":
            encoded = bridge.blocked(f"AMDET: the prompt was flagged\n{found}")
        else:
            trusted = alarms and mode == "fall back"
            reader = comfy_clip.with_encoders_of(clip, anchor) if trusted else clip
            encoded = conditioning.encode(reader, text, {}, at_start=False)
        return io.NodeOutput(encoded, found, bool(alarms), ui=bridge.shown(found))


def _checked(
    clip: Any, anchor: Any, text: str, labels: list[str], progress: Progress
) -> tuple[list[str], tuple[str, ...]]:
    """A line for each alarm, and lines about what the answer rests on."""
    opened, trusted = (comfy_clip.read(one, label) for one, label in zip((clip, anchor), labels, strict=True))
    alarms, notes = list[str](), list[str]()
    for found in opened.encoders:
        pair = comfy_clip.paired(opened, trusted, found.name, bridge.device())
        guard = _guard(pair, (comfy_clip.state(clip), comfy_clip.state(anchor), found.name), progress)
        rows, vectors = conditioning.chunks(clip, text, found.name)
        alarms += [str(alarm) for alarm in guard.check([rows])[0]]
        notes.append(f"{guard.name}: bound {guard.bound:.2f}; at most {guard.rate:.2%} of clean prompts exceed it")
        if vectors:
            notes.append(f"{guard.name}: {vectors} vectors of textual inversions are not checked")
    return alarms, (*notes, *opened.not_scanned)


def _guard(pair: Subject, key: Any, progress: Progress) -> Guard:
    """The guard of an encoder; clean prompts are measured once for the same two."""
    from ..amdet_core.config import GuardConfig
    from ..amdet_core.guard import Guard
    from ..amdet_core.tails import Side

    if key in MEASURED:
        own, other, clean = MEASURED[key]
        guard = Guard(pair.name, Side(pair.suspect, own), Side(pair.anchor, other), GuardConfig(), clean)
    else:
        guard = Guard.of(pair.name, pair.suspect, pair.anchor, GuardConfig(), progress)
    MEASURED[key] = guard.suspect.centre, guard.anchor.centre, guard.clean
    MEASURED.move_to_end(key)
    while len(MEASURED) > REMEMBERED:
        MEASURED.popitem(last=False)
    return guard
