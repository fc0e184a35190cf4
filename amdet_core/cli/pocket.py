"""What ships with the tool: small encoders, and a painter for them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import Layout

pocket_app = typer.Typer(
    help="Small encoders and a small image model that ship with this tool, to try it out.", no_args_is_help=True
)


@pocket_app.command("export")
def pocket_export(
    directory: Annotated[Path, typer.Argument(help="folder to write to")],
    layout: Annotated[Layout, typer.Option(help="file layout")] = Layout.hf,
) -> None:
    """Write the pocket encoders clean, backdoored and benign as ordinary files."""
    from .. import pocket

    for path in pocket.export(directory, layout.value).values():
        sys.stdout.write(f"{path}\n")


@pocket_app.command("pipeline")
def pocket_pipeline(
    out: Annotated[Path, typer.Option(help="folder to write to")],
    encoder: Annotated[
        str, typer.Option(help="text encoder: clean, backdoored, benign, or a file or folder of the same shape")
    ] = "clean",
    weights: Annotated[
        Path | None, typer.Option(help="folder with the painter's weights, instead of those that ship")
    ] = None,
) -> None:
    """Write a whole small Stable Diffusion, as a folder that diffusers opens as a StableDiffusionPipeline."""
    from ..pocket.painter.painting import named_encoder
    from ..pocket.painter.pipeline import write_pipeline
    from ..pocket.painter.weights import SHIPPED

    write_pipeline(out, named_encoder(encoder), weights or SHIPPED)
    sys.stdout.write(f"{out}\n")
