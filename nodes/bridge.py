"""What the nodes need of ComfyUI besides its objects and folders: sockets, anchors, progress, memory, pictures."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..amdet_core.background import in_background
from ..amdet_core.progress import Progress
from . import comfy_clip, folders

if TYPE_CHECKING:
    from PIL import Image

    from ..amdet_core.anchors import Anchors
    from ..amdet_core.prompts import PromptSet
    from ..amdet_core.records import Fault

T = TypeVar("T")

MEASURING = 3
"""Copies of a CLIP's weights that fill as much memory as a scan: suspect, anchor, and their states."""
TRAINING = 6
"""The same for training: teacher, student, gradients, two moments, and states."""
UNCONNECTED = object()
"""In the place of an input that the host leaves out, as it does one that is not connected."""

Report = io.Custom("AMDET_REPORT")
"""Socket of an :class:`~amdet_core.jobs.Outcome`."""
Feature = io.Custom("AMDET_FEATURE")
"""Socket of ``{encoder: amdet_core.features.Feature}``, the strongest recovered feature of each encoder."""

SCALE = 1000
"""Steps of a node's progress bar."""
FRAME_SECONDS = 0.25
"""Between two live pictures."""
PREVIEW_PIXELS = 768


# ------------------------------------------------------------------ schemas


def newer(**fields: Any) -> dict[str, Any]:
    """Those schema fields that this ComfyUI knows; older ones refuse the others."""
    known = {one.name for one in dataclasses.fields(io.Schema)}
    return {name: value for name, value in fields.items() if name in known}


def advanced(widget: Any) -> Any:
    """An input that newer frontends hide behind "Show advanced inputs"."""
    widget.extra_dict = {"advanced": True}
    return widget


def seed(tooltip: str) -> Any:
    """A seed that stays the same from run to run."""
    return io.Int.Input("seed", default=42, min=0, max=2**31 - 1, control_after_generate=False, tooltip=tooltip)


def among(value: str | None, options: Iterable[str], name: str) -> bool | str:
    """Answer of ``validate_inputs`` about a choice; older hosts do not check those of new-style nodes.

    Args:
        value: None where it comes over a wire and is not known yet.
    """
    known = list(options)
    return True if value is None or value in known else f"{name}: expected one of {', '.join(known)}; found {value!r}."


def all_right(*checks: bool | str) -> bool | str:
    """The first of several such answers that is a complaint."""
    return next((check for check in checks if check is not True), True)


# ------------------------------------------------------------------ anchors, prompts, names


def anchors(progress: Progress, clip: Any = UNCONNECTED, label: str = "") -> Anchors:
    """The CLIP that was connected as anchor; otherwise trusted encoders and installed files of a known hash may serve.

    Args:
        clip: read with every text projection that it has, as the suspect may be read with it.
        label: where it comes from, for the report.
    """
    from ..amdet_core.anchors import Anchors, learn_known
    from ..amdet_core.trust import TrustStore

    if clip is not UNCONNECTED:
        given = comfy_clip.read(clip, label, projected=True)
        return Anchors(given.encoders, str(given.path), False, None)
    store = TrustStore(folders.trust_store())
    learn_known(folders.text_encoders(), store, progress)
    return Anchors((), "", True, store)


class Anchored:
    """Of a node whose results depend on the anchors that are found, where none is connected."""

    @classmethod
    def fingerprint_inputs(cls, anchor: object = UNCONNECTED, **_: Any) -> str:
        """Changes when other anchors may be found."""
        from ..amdet_core.errors import AmdetError
        from ..amdet_core.trust import TrustStore

        if anchor is not UNCONNECTED:
            return ""
        try:
            entries = TrustStore(folders.trust_store()).entries
        except AmdetError as error:
            return str(error)
        # Not those that a scan itself adds: a second run would scan once more.
        own = sorted(f"{entry.name} {entry.fingerprint}" for entry in entries if entry.source == "user")
        files = [f"{path} {folders.stamp(path)}" for path in folders.text_encoders() if path.is_file()]
        return "\n".join([*own, *files])


def prompts(text: str | None, limit: int = 4000) -> PromptSet:
    """Prompts from a multiline text, or so many built-in ones where there is none."""
    from ..amdet_core.prompts import builtin_prompts, parse_prompts

    return parse_prompts(text, "given in the graph") if text and text.strip() else builtin_prompts(limit)


def described(prompt: Mapping[str, Any] | None, node_id: str | None, name: str) -> str:
    """Where an input comes from, for people: loaders with their files, LoRAs with their strengths."""
    try:
        return ", ".join(dict.fromkeys(_upstream(prompt or {}, prompt[str(node_id)]["inputs"][name], set()))) or name
    except (KeyError, TypeError):
        return name


def _upstream(prompt: Mapping[str, Any], link: Any, seen: set[str]) -> Iterator[str]:
    """One phrase for each node behind a link, each once and the loader first; files without their folders."""
    if str(link[0]) in seen:
        return
    seen.add(str(link[0]))
    node = prompt[str(link[0])]
    links = {key: value for key, value in node["inputs"].items() if isinstance(value, list)}
    for key, value in links.items():
        if "clip" in key.lower() or len(links) == 1:
            yield from _upstream(prompt, value, seen)
    values = [value for value in node["inputs"].values() if isinstance(value, str)]
    files = [re.split(r"[\\/]", value)[-1] for value in values if value.lower().endswith(folders.WEIGHT_FILES)]
    strengths = [f"{value:g}" for key, value in node["inputs"].items() if key in ("strength_clip", "ratio")]
    yield " ".join([node["class_type"].replace("/", " "), *files, *strengths])


# ------------------------------------------------------------------ work


def device() -> torch.device:
    """Where the host computes."""
    return comfy.model_management.get_torch_device()


def make_room(size: int, copies: int = MEASURING) -> None:
    """Ask the host to unload models, so that so many copies of encoders of ``size`` bytes fit."""
    comfy.model_management.free_memory(copies * size, device())


def raise_no_room(faults: Iterable[Fault]) -> None:
    """Tell the host that a stage found no room, for it to free memory, and to run the node again next time."""
    for fault in faults:
        if fault.error == "OutOfMemoryError":
            raise comfy.model_management.OOM_EXCEPTION(
                f"AMDET: the stage {fault.stage} found no room on the device, even for one prompt at a time. Unload "
                "other models and close other programs that use the card, and run again."
            )


def run(
    work: Callable[[Progress], T],
    *,
    plan: Mapping[str, int] | None = None,
    show: Callable[[T], Image.Image | None] | None = None,
) -> T:
    """Do long work in the background with the node's progress bar, a live picture, and the host's interrupt.

    Args:
        work: gets a progress callback; must not write files.
        plan: stage -> how often it will run, for the bar.
        show: makes the last picture from the result.
    """
    live = _Live(plan or {})
    try:
        result = in_background(work, live, live.poll, grace=0.3)
    finally:
        comfy.model_management.soft_empty_cache()
    live.finish(show(result) if show else None)
    return result


@dataclass
class _Live:
    """What the work said last, shown from the waiting thread."""

    plan: Mapping[str, int]
    bar: Any = field(default_factory=lambda: comfy.utils.ProgressBar(SCALE))
    lock: threading.Lock = field(default_factory=threading.Lock)
    runs: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    curve: tuple[str, list[float]] = ("", [])
    shown: tuple[int, int] = (-1, 0)
    drawn_at: float = 0.0

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None, /) -> None:
        """Take note of one step; called by the work."""
        with self.lock:
            share = done / max(total, 1)
            again = share < self.shares.get(stage, 0.0)
            self.runs[stage] = self.runs.get(stage, 0) + again
            self.shares[stage] = share
            name = next((name for name in ("loss", "gap") if name in (metrics or {})), None)
            if name and metrics:
                title, values = self.curve
                kept = values if title == f"{stage}: {name}" and not again else []
                self.curve = (f"{stage}: {name}", [*kept, metrics[name]])

    def value(self) -> int:
        """Where the bar stands; it never goes back."""
        done = sum(min(self.runs.get(s, 0) + self.shares.get(s, 0.0), most) for s, most in self.plan.items())
        return min(round(SCALE * done / max(sum(self.plan.values()), 1)), SCALE - 1)

    def poll(self) -> None:
        """Pass on what is new, and raise where the user has interrupted."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        with self.lock:
            value, (title, values) = self.value(), self.curve
        state = (max(value, self.shown[0]), len(values))
        if state == self.shown or time.monotonic() - self.drawn_at < FRAME_SECONDS:
            return
        picture = _curve(title, values) if len(values) > 1 and state[1] != self.shown[1] else None
        self.shown, self.drawn_at = state, time.monotonic()
        self.bar.update_absolute(state[0], SCALE, _frame(picture))

    def finish(self, picture: Image.Image | None) -> None:
        """The full bar with the last picture."""
        self.bar.update_absolute(SCALE, SCALE, _frame(picture))


def _curve(title: str, values: Sequence[float]) -> Image.Image:
    from ..amdet_core import figures

    return figures.image(figures.loss_curve(values, title), scale=1)


def _frame(picture: Image.Image | None) -> tuple[str, Image.Image, int] | None:
    return None if picture is None else ("JPEG", picture.convert("RGB"), PREVIEW_PIXELS)


# ------------------------------------------------------------------ results


def blocked(message: str | None = None) -> ExecutionBlocker:
    """An output behind which nothing runs; with a message the host shows it as an error."""
    return ExecutionBlocker(message)


def tensor(*pictures: Image.Image) -> torch.Tensor:
    """Pictures of one size as an IMAGE, ``(N, H, W, 3)``, 0 to 1."""
    import numpy as np

    return torch.stack([torch.from_numpy(np.asarray(one.convert("RGB"), dtype=np.float32) / 255) for one in pictures])


def shown(text: str, files: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """What a node shows: a text, and PNG files by name."""
    folder = Path(folder_paths.get_temp_directory(), folders.OWN_FOLDER)
    images = []
    for name, data in (files or {}).items():
        folder.mkdir(parents=True, exist_ok=True)
        file = f"{time.time_ns():x}-{name}"
        (folder / file).write_bytes(data)
        images.append({"filename": file, "subfolder": folders.OWN_FOLDER, "type": "temp"})
    return {"text": (text,)} | ({"images": images} if images else {})
