"""The encoders that ship with the tool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import Layout

pocket_app = typer.Typer(help="Small encoders that ship with this tool, to try it out.", no_args_is_help=True)


@pocket_app.command("export")
def pocket_export(
    directory: Annotated[Path, typer.Argument(help="folder to write to")],
    layout: Annotated[Layout, typer.Option(help="file layout")] = Layout.hf,
) -> None:
    """Write the pocket encoders clean, backdoored and benign as ordinary files."""
    from .. import pocket

    for path in pocket.export(directory, layout.value).values():
        sys.stdout.write(f"{path}\n")
