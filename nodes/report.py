"""Save Report and Show Report, and how the other nodes show one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import bridge, folders

if TYPE_CHECKING:
    from PIL import Image

    from ..amdet_core.jobs import Outcome
    from ..amdet_core.records import ScanReport


def summary(found: ScanReport) -> str:
    """The report in at most 30 lines."""
    from ..amdet_core.report import render_text

    return render_text(found)


def headline(found: ScanReport) -> str:
    """The verdict in one line."""
    from ..amdet_core.report.words import HEADLINES

    return f"{HEADLINES[found.verdict.level]} ({found.verdict.policy})"


def landscape(found: ScanReport) -> Image.Image:
    """The loss around the strongest feature, or a card that says why there is none."""
    from ..amdet_core import figures
    from ..amdet_core.report.words import strongest

    best = strongest(found)
    if best is not None and best.landscape is not None and figures.drawable(best.landscape):
        return figures.image(figures.landscape(best.landscape))
    return figures.image(figures.card(f"No landscape: {found.verdict.statement}"))


class AMDET_SaveReport(io.ComfyNode):
    """The report of a scan as files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_SaveReport",
            display_name="Save Report",
            category="AMDET/report",
            description="Writes the report of a scan into a new folder of ComfyUI's output: report.html for people, "
            "report.json for programs, pictures, and the recovered features.",
            is_output_node=True,
            inputs=[
                bridge.Report.Input("report", tooltip="From Backdoor Scan or Invert Feature."),
                io.String.Input(
                    "filename_prefix",
                    default="amdet/report",
                    tooltip="Folder within ComfyUI's output; a number is added.",
                ),
            ],
            outputs=[io.String.Output("folder", display_name="folder", tooltip="Path of the folder that was written.")],
            **bridge.newer(search_aliases=["backdoor report", "html", "json", "amdet"]),
        )

    @classmethod
    def execute(cls, report: Outcome, filename_prefix: str) -> io.NodeOutput:
        """Write, whole or not at all."""
        from ..amdet_core.storage import publish

        folder = folders.new_place(filename_prefix)
        publish(folder, report.files)
        return io.NodeOutput(str(folder), ui=bridge.shown(str(folder)))


class AMDET_ShowReport(io.ComfyNode):
    """The report of a scan in the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="AMDET_ShowReport",
            display_name="Show Report",
            category="AMDET/report",
            description="Shows what a scan found: the verdict with its reasons, and the figures.",
            is_output_node=True,
            inputs=[bridge.Report.Input("report", tooltip="From Backdoor Scan or Invert Feature.")],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="The report in at most 30 lines."),
                io.String.Output("json", display_name="json", tooltip="report.json, for programs."),
            ],
            **bridge.newer(search_aliases=["backdoor report", "verdict", "amdet"]),
        )

    @classmethod
    def execute(cls, report: Outcome) -> io.NodeOutput:
        """Summarise and draw."""
        from ..amdet_core.storage import record_json

        pictures: dict[str, Any] = {name: data for name, data in report.files.items() if name.endswith(".png")}
        text = summary(report.report)
        return io.NodeOutput(text, record_json(report.report).decode(), ui=bridge.shown(text, pictures))
