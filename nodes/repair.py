"""Erase Backdoor and Purify: single repairs of a clone, without a scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import bridge, comfy_clip
from .heal import clinic

if TYPE_CHECKING:
    from ..amdet_core.config import Config, CureConfig
    from ..amdet_core.errors import AmdetError
    from ..amdet_core.features import Feature
    from ..amdet_core.progress import Progress
    from ..amdet_core.repair import Clinic, Probe, Repair

ANCHOR = (
    "A trusted CLIP: the original that this one was made from. It is not needed to repair; with it, answers are "
    "measured against the original's."
)


def outputs(result: str) -> list[Any]:
    """What both nodes give."""
    return [
        io.Clip.Output("clip_out", display_name="clip", tooltip=f"The {result} clone, or the CLIP as it was."),
        io.String.Output("text", display_name="text", tooltip="What was measured before and after, as Markdown."),
        io.Boolean.Output(
            "works",
            display_name="works",
            tooltip="True only when triggers are known, none of them works any more, and clean prompts are read as "
            "before.",
        ),
    ]


class AMDET_EraseBackdoor(bridge.Anchored, io.ComfyNode):
    """Erase what a scan recovered, or a trigger that is known."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_EraseBackdoor",
            display_name="Erase Backdoor",
            category="AMDET/repair",
            description="Edits a clone of a CLIP so that a recovered pseudo-trigger, or a trigger that you know, is "
            "read like ordinary words. It needs no anchor and no training. The connected CLIP stays as it is, and "
            "comes out again where the edit did not work.",
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to repair a clone of."),
                bridge.Feature.Input(
                    "pseudo_trigger", optional=True, tooltip="What was recovered, from Backdoor Scan or Invert Feature."
                ),
                io.String.Input("trigger", default="", tooltip="A trigger that you know; empty: none."),
                io.String.Input(
                    "mode",
                    default="insert",
                    tooltip="How that trigger stands in a prompt: prefix, insert, replace:o (every o) or replace:o:1 "
                    "(the first o).",
                ),
                io.Clip.Input("anchor", optional=True, tooltip=ANCHOR),
                bridge.seed("Of the ordinary words that stand in the trigger's place."),
            ],
            outputs=outputs("repaired"),
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["erase", "MTBD", "repair", "edit", "backdoor", "amdet"]),
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        trigger: str,
        mode: str,
        seed: int,
        pseudo_trigger: Mapping[str, Feature] | None = None,
        anchor: Any = bridge.UNCONNECTED,
    ) -> io.NodeOutput:
        """Edit every CLIP text encoder that has a trigger."""
        from ..amdet_core.attacks import Placement
        from ..amdet_core.config import EraseConfig, HealConfig
        from ..amdet_core.errors import ConfigError
        from ..amdet_core.repair import Probe, known_bounds

        if pseudo_trigger is None and not trigger.strip():
            raise ConfigError(
                "a pseudo-trigger or a trigger", "neither", "Connect pseudo_trigger of a scan, or write a trigger."
            )
        known: tuple[Probe, ...] = ()
        if trigger.strip():
            known = (Probe.of_text(trigger, Placement.parse(mode), seed),)
        bounds = HealConfig().cure
        return _repaired(
            cls.hidden,
            clip,
            anchor,
            EraseConfig(seed=seed),
            lambda name: known + _recovered(pseudo_trigger, name),
            known_bounds(bounds) if known and not pseudo_trigger else bounds,
        )


class AMDET_Purify(bridge.Anchored, io.ComfyNode):
    """A student that never saw the trigger."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_Purify",
            display_name="Purify",
            category="AMDET/repair",
            description="Trains a fresh student to answer clean prompts as this CLIP does (MIMIC): what clean prompts "
            "never ask for, as a trigger, it does not learn. It needs neither anchor nor trigger, but long training "
            "on a graphics card. The connected CLIP stays as it is, and comes out again where the student answers "
            "otherwise.",
            is_experimental=True,
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP to purify a clone of."),
                io.Int.Input("steps", default=1500, min=1, max=100_000, tooltip="Optimiser steps."),
                io.Int.Input("batch", default=64, min=2, max=1024, tooltip="Prompts in a step."),
                io.Float.Input(
                    "fresh",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the layers that start at random, the last ones; 1 as published. The less, the "
                    "more of the suspect is kept, its backdoor included.",
                ),
                bridge.seed("Of the student's start and of every batch."),
                bridge.Feature.Input(
                    "pseudo_trigger",
                    optional=True,
                    tooltip="From Backdoor Scan: the student is judged by it, and learns nothing from it.",
                ),
                io.Clip.Input("anchor", optional=True, tooltip=ANCHOR),
                bridge.advanced(
                    io.String.Input(
                        "prompts",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip="Your own clean prompts, one per line, in place of the built-in ones.",
                    )
                ),
            ],
            outputs=outputs("purified"),
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **bridge.newer(search_aliases=["MIMIC", "distill", "purify", "repair", "backdoor", "amdet"]),
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        steps: int,
        batch: int,
        fresh: float,
        seed: int,
        pseudo_trigger: Mapping[str, Feature] | None = None,
        anchor: Any = bridge.UNCONNECTED,
        prompts: str = "",
    ) -> io.NodeOutput:
        """Train a student of every CLIP text encoder."""
        from ..amdet_core.config import HealConfig, MimicConfig

        config = MimicConfig(steps=steps, batch=batch, fresh=fresh, seed=seed)
        bounds = HealConfig().cure
        return _repaired(
            cls.hidden, clip, anchor, config, lambda name: _recovered(pseudo_trigger, name), bounds, prompts=prompts
        )


def _recovered(features: Mapping[str, Feature] | None, name: str) -> tuple[Probe, ...]:
    """What was recovered from one encoder."""
    from ..amdet_core.repair import Probe

    feature = (features or {}).get(name)
    return () if feature is None else (Probe.of_vectors("pseudo-trigger", feature.vectors, feature.candidate.place),)


def _repaired(
    hidden: Any,
    clip: Any,
    anchor: Any,
    config: Config,
    probes: Callable[[str], tuple[Probe, ...]],
    bounds: CureConfig,
    prompts: str = "",
) -> io.NodeOutput:
    """One repair of every encoder in which a trigger does something; those that work are put into a clone.

    Args:
        probes: encoder's name -> its triggers.
    """
    from ..amdet_core.config import ScanConfig
    from ..amdet_core.repair import TRIGGERED, Repair, named, render_repairs

    method = named(config)

    def work(progress: Progress) -> dict[str, Repair | AmdetError]:
        whole = clinic(hidden, clip, anchor, ScanConfig(), bridge.prompts(prompts), progress)
        return {
            one.found.name: _one(one, triggers, config, bounds, progress)
            for one in whole.each
            if (triggers := probes(one.found.name)) or method not in TRIGGERED
        }

    bridge.make_room(comfy_clip.size(clip), bridge.MEASURING if method in TRIGGERED else bridge.TRAINING)
    done = bridge.run(work, plan={method: comfy_clip.count(clip)})
    made = {name: one for name, one in done.items() if isinstance(one, Repair)}
    untouched = {name: one for name, one in done.items() if not isinstance(one, Repair)}
    if untouched and not made:
        raise next(iter(untouched.values()))
    working = {name: one.patch for name, one in made.items() if one.outcome.works}
    judged = all(one.outcome.before.responses for one in made.values())
    text = render_repairs({name: one.outcome for name, one in made.items()}, untouched)
    healed = comfy_clip.patched(clip, working) if working else clip
    return io.NodeOutput(healed, text, bool(made) and judged and len(working) == len(made), ui=bridge.shown(text))


def _one(
    one: Clinic, triggers: tuple[Probe, ...], config: Config, bounds: CureConfig, progress: Progress
) -> Repair | AmdetError:
    """A repair of one encoder, or why it is left as it is."""
    from ..amdet_core.errors import ConfigError
    from ..amdet_core.repair import TRIGGERED, check_effect, named, repair

    case = one.case(triggers)
    if named(config) in TRIGGERED:
        try:
            check_effect(case)
        except ConfigError as fault:
            return fault
    done = repair(case, config, bounds, progress)
    return replace(done, patch=one.whole(done.patch))
