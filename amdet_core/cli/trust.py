"""Encoders that the user trusts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .common import trust_store

trust_app = typer.Typer(help="Encoders that you trust: known at once, and used as anchors.", no_args_is_help=True)


@trust_app.command("add")
def trust_add(
    path: Annotated[Path, typer.Argument(help="file or folder with text encoders that you trust")],
    name: Annotated[str | None, typer.Option(help="name to remember it by [default: the file's]")] = None,
) -> None:
    """Trust the encoders of a file: recognise them anywhere, and compare others with them."""
    from ..anchors import vouch
    from ..glyphs import plain

    for entry in vouch(path, name, trust_store()):
        sys.stdout.write(f"trusted: {plain(entry.name)} ({entry.spec.summary}) {entry.fingerprint[:12]}\n")


@trust_app.command("list")
def trust_list() -> None:
    """List the encoders that are trusted."""
    from ..anchors import trusted
    from ..glyphs import plain

    for entry in trusted(trust_store()):
        columns = (entry.name, entry.spec.summary, entry.source, entry.fingerprint[:12], entry.path or "-")
        sys.stdout.write("\t".join(map(plain, columns)) + "\n")


@trust_app.command("remove")
def trust_remove(name: Annotated[str, typer.Argument(help="name or fingerprint")]) -> None:
    """Trust an encoder no longer."""
    from ..anchors import distrust
    from ..glyphs import plain

    entry = distrust(name, trust_store())
    sys.stdout.write(f"removed: {plain(entry.name)} {entry.fingerprint[:12]}\n")
