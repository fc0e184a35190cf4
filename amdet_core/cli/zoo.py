"""Zoos of models whose labels are known."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..terminal import ProgressLine
from .common import Interrupted

zoo_app = typer.Typer(help="Many backdoored and honest models, to measure detectors with.", no_args_is_help=True)


class Labelled(str, Enum):
    """What a model of a zoo is."""

    backdoored = "backdoored"
    benign = "benign"
    intentional = "intentional"


@zoo_app.command("build")
def zoo_build(
    base: Annotated[str, typer.Option(help="trusted encoder that all models come from: a path, or pocket")],
    recipe: Annotated[
        str,
        typer.Option(
            help="smoke, train, honest, styles, standard, hard, benign, unseen, large, paper, visible, or a recipe file"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder of the zoo; one that an earlier run left is completed")],
    label: Annotated[
        Labelled | None, typer.Option(help="models of this label alone, beside those that are there; all unless given")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(help="at most so many models, every group by its share; all unless given", min=1)
    ] = None,
    jobs: Annotated[int, typer.Option(help="models made side by side", min=1)] = 1,
) -> None:
    """Make, check and label every model of a recipe; the same command goes on after an interruption.

    Exit code 2 where none could be made.
    """
    from .. import formats, pocket
    from ..storage import check_writable
    from ..zoo import Recipe, build

    chosen = Recipe.load(recipe)
    encoder = pocket.load("clean") if base == "pocket" else formats.only_encoder(formats.open_target(base))
    check_writable(out)
    try:
        with ProgressLine() as line:
            labels = build(encoder, chosen, out, label=label and label.value, sample=sample, jobs=jobs, progress=line)
    except KeyboardInterrupt:
        raise Interrupted(f"the same command goes on from what {out} holds") from None
    counts = [label.label for label in labels.models]
    sys.stdout.write(
        f"{labels.name}: {counts.count('backdoored')} backdoored, {counts.count('benign')} benign, "
        f"{counts.count('intentional')} intentional\nwritten: {out}\n"
    )
    for name, reason in labels.failed.items():
        sys.stdout.write(f"not made: {name}: {reason}\n")
    if not labels.models:
        sys.stdout.write("no model could be made\n")
        raise typer.Exit(2)
