"""ComfyUI nodes: each adapts what the graph holds, calls ``amdet_core`` and returns.

Only ``bridge``, ``folders``, ``comfy_clip`` and ``comfy_model`` know the host's modules; the nodes themselves import
its node API alone.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import attack, compare, feature, fine_tune, folders, guard, heal, load, measure, repair, report, scan

NODES: list[type[io.ComfyNode]] = [
    scan.AMDET_BackdoorScan,
    load.AMDET_LoadTextEncoder,
    load.AMDET_FindAnchor,
    load.AMDET_PocketTextEncoder,
    load.AMDET_PocketCheckpoint,
    feature.AMDET_InvertFeature,
    feature.AMDET_LandscapeVerdict,
    feature.AMDET_ReversedTarget,
    feature.AMDET_SavePseudoTrigger,
    attack.AMDET_InjectTrigger,
    fine_tune.AMDET_FineTune,
    compare.AMDET_CompareEncoders,
    measure.AMDET_TriggerSweep,
    measure.AMDET_WeightForensics,
    guard.AMDET_GuardedTextEncode,
    heal.AMDET_Heal,
    repair.AMDET_EraseBackdoor,
    repair.AMDET_Purify,
    report.AMDET_SaveReport,
    report.AMDET_ShowReport,
]


class AmdetExtension(ComfyExtension):
    """The node pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes, in the order in which a released CLIP wire offers them."""
        return NODES


async def comfy_entrypoint() -> AmdetExtension:
    """Called once by ComfyUI."""
    folders.register_folders()
    return AmdetExtension()
