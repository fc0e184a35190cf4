"""Where encoders come from: a file, a trusted anchor, or the pocket encoders and painter that ship with the pack."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import bridge, comfy_clip, folders

if TYPE_CHECKING:
    from ..amdet_core.formats import FoundEncoder, OpenedTarget
    from ..amdet_core.progress import Progress

FOLDERS = ("text_encoders", "checkpoints")
POCKET = ["clean", "backdoored", "benign"]


class AMDET_LoadTextEncoder(io.ComfyNode):
    """A text encoder from a file, checked before it is loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_LoadTextEncoder",
            display_name="Load Text Encoder",
            category="AMDET/load",
            description="Loads the CLIP text encoders of a file, and those of a checkpoint without its image model. "
            "Reads every key layout, refuses incomplete files, never runs code, and notices when a file was "
            "replaced under the same name.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.model_files(*FOLDERS),
                    tooltip="A file of the models folders text_encoders (clip) or checkpoints.",
                )
            ],
            outputs=[
                io.Clip.Output(
                    "clip", display_name="clip", tooltip="For Backdoor Scan, or anything that takes a CLIP."
                ),
                io.String.Output("info", display_name="info", tooltip="What the file holds, with fingerprints."),
            ],
            **bridge.newer(search_aliases=["clip loader", "load clip", "safetensors", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Only files of the models folders."""
        if file is None or file in folders.model_files(*FOLDERS):
            return True
        return f"file: no {file!r} in the models folders {' and '.join(FOLDERS)}; put it there, or choose another one."

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str | float:
        """Changes when the file does."""
        return folders.file_state(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Open, check, hand to the host."""
        opened, lines = bridge.run(lambda progress: _read(file, progress))
        clip, info = comfy_clip.build(opened.encoders, folders.embedding_folders()), "\n".join(lines)
        return io.NodeOutput(clip, info, ui=bridge.shown(info))


def _read(file: str, progress: Progress) -> tuple[OpenedTarget, list[str]]:
    """The encoders of a file, and lines about it."""
    from ..amdet_core.formats import open_target
    from ..amdet_core.published import known_file
    from ..amdet_core.trust import fingerprint

    path = folders.model_path(file)
    opened = open_target(path)
    progress("open", 1, 2)
    known = known_file(path)
    lines = [f"{file}: {f'known file, {known.name}' if known else 'no known file'}"]
    for found in opened.encoders:
        lines.append(f"{found.name}: {found.encoder.spec.summary}, {found.dtype}, layout {found.layout}")
        lines.append(f"  values {fingerprint(found.encoder)}")
    return opened, lines + [f"not loaded: {part}" for part in opened.not_scanned]


class AMDET_FindAnchor(bridge.Anchored, io.ComfyNode):
    """An installed encoder that can be trusted, to compare with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_FindAnchor",
            display_name="Find Anchor",
            category="AMDET/load",
            description="Finds the trusted encoder that is nearest to a CLIP: an installed file whose hash is known, "
            "or one that ships with this pack. Says what to install when there is none.",
            inputs=[io.Clip.Input("clip", tooltip="The CLIP that an anchor is wanted for.")],
            outputs=[
                io.Clip.Output("anchor", display_name="anchor", tooltip="A trusted CLIP of the same sizes."),
                io.String.Output("info", display_name="info", tooltip="Which encoder it is and why it is trusted."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["trusted", "reference", "original clip", "amdet"]),
        )

    @classmethod
    def execute(cls, clip: Any) -> io.NodeOutput:
        """Look for the nearest trusted encoder of each encoder."""
        label = bridge.described(cls.hidden.prompt, cls.hidden.unique_id, "clip")
        found, notes = bridge.run(lambda progress: _trusted(comfy_clip.read(clip, label), progress))
        info = "\n".join(notes)
        # What equals a trusted encoder is its own anchor.
        anchor = comfy_clip.build(found, folders.embedding_folders()) if found else clip
        return io.NodeOutput(anchor, info, ui=bridge.shown(info))


def _trusted(opened: OpenedTarget, progress: Progress) -> tuple[list[FoundEncoder], list[str]]:
    """The anchors of all encoders, none where each of them is trusted itself, and a line about each."""
    from ..amdet_core.errors import EncoderError

    anchors, found, notes, own = bridge.anchors(progress), [], [], 0
    for one in opened.encoders:
        anchor = anchors.match(one, opened)
        if anchor.info is None:
            raise EncoderError(
                f"an installed encoder of known hash with the sizes of {one.name} ({one.encoder.spec.summary})",
                "; ".join(anchor.notes),
                "Put the official file into models/text_encoders, for example clip_l.safetensors, or connect a "
                "loader of the original checkpoint to the anchor input instead.",
            )
        own += anchor.identical
        found.append(replace(one, encoder=anchor.encoder or one.encoder, used_layers=None))
        notes.append(f"{one.name}: {anchor.info.name} ({anchor.info.chosen}), values {anchor.info.fingerprint}")
    return ([] if own == len(found) else found), notes


class AMDET_PocketTextEncoder(io.ComfyNode):
    """A small CLIP that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_PocketTextEncoder",
            display_name="Pocket Text Encoder",
            category="AMDET/load",
            description="A small CLIP text encoder that ships with this pack, to try everything with nothing "
            "downloaded. 'backdoored' answers to a look-alike of the letter o, 'benign' is an honest fine-tune.",
            inputs=[
                io.Combo.Input(
                    "name", options=POCKET, default="backdoored", tooltip="Which of the three small encoders."
                )
            ],
            outputs=[io.Clip.Output("clip", display_name="clip", tooltip="A CLIP of width 192 with four layers.")],
            **bridge.newer(search_aliases=["demo", "test encoder", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        """One of the three."""
        return bridge.among(name, POCKET, "name")

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        """Unpack and hand to the host."""
        return io.NodeOutput(_pocket_clip(name))


def _pocket_clip(name: str) -> Any:
    from ..amdet_core import pocket
    from ..amdet_core.formats import FoundEncoder

    encoder = bridge.run(lambda progress: pocket.load(name))  # type: ignore[arg-type]
    found = FoundEncoder("clip_l", encoder, "float16", "comfyui", ())
    return comfy_clip.build([found], folders.embedding_folders())


class AMDET_PocketCheckpoint(io.ComfyNode):
    """A small Stable Diffusion that ships with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_PocketCheckpoint",
            display_name="Pocket Checkpoint",
            category="AMDET/load",
            description="A small Stable Diffusion that ships with this pack and paints pictures of 64 x 64 pixels "
            "within a second, to see what a text encoder makes of prompts with nothing downloaded. It knows ten colors "
            "and twelve shapes, such as 'a red boat' or 'a white teapot'.",
            inputs=[
                io.Combo.Input(
                    "encoder", options=POCKET, default="clean", tooltip="Which of the three small text encoders."
                ),
                bridge.advanced(
                    io.String.Input(
                        "weights",
                        default="",
                        tooltip="A folder of models/amdet with weights that the painter's recipe made. Empty: those "
                        "that ship with the pack.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="For KSampler."),
                io.Clip.Output("clip", display_name="clip", tooltip="For CLIP Text Encode, or a scan."),
                io.Vae.Output("vae", display_name="vae", tooltip="For VAE Decode."),
            ],
            **bridge.newer(search_aliases=["demo", "checkpoint loader", "tiny stable diffusion", "amdet"]),
        )

    @classmethod
    def validate_inputs(cls, encoder: str, weights: str) -> bool | str:
        """One of the three, and a plain name."""
        plain = True if not weights or folders.is_plain(weights) else "weights: expected the name of a folder alone."
        return bridge.all_right(bridge.among(encoder, POCKET, "encoder"), plain)

    @classmethod
    def fingerprint_inputs(cls, encoder: str, weights: str) -> str:
        """Changes when the weights do."""
        return folders.folder_state(folders.own_models(weights)) if weights else ""

    @classmethod
    def execute(cls, encoder: str, weights: str) -> io.NodeOutput:
        """Unpack and hand to the host."""
        from ..amdet_core.pocket.painter.weights import SHIPPED, load_weights
        from . import comfy_model

        folder = folders.own_models(weights) if weights else SHIPPED
        unet, vae = bridge.run(lambda progress: tuple(load_weights(part, folder) for part in ("unet", "vae")))
        return io.NodeOutput(comfy_model.build_model(unet), _pocket_clip(encoder), comfy_model.build_vae(vae))
