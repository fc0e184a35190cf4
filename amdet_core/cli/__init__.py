"""The command line. Library code returns data; only this package prints.

Exit codes: 0 no finding, 1 suspicious or backdoored, 2 could not tell (error, fault, inconclusive,
usage), 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback

import typer

from .. import __version__
from ..errors import AmdetError
from .attack import attack_app, fine_tune
from .bench import bench_app
from .common import in_words
from .figures import figures_app
from .guard import guard
from .image import image_app
from .pocket import pocket_app
from .render import render
from .repair import heal, repair
from .scan import demo, judge, scan, show
from .trust import trust_app
from .zoo import zoo_app

app = typer.Typer(
    name="amdet",
    help="Find backdoors in the text encoders of image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (scan, guard, show, judge, render, repair, heal):
    app.command()(command)
app.add_typer(trust_app, name="trust")
app.add_typer(pocket_app, name="pocket")
app.add_typer(attack_app, name="attack")
app.command("fine-tune")(fine_tune)
app.add_typer(zoo_app, name="zoo")
app.add_typer(bench_app, name="bench")
app.add_typer(figures_app, name="figures")
app.add_typer(image_app, name="image")
app.command()(demo)


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"amdet {__version__}\n")


def main() -> None:
    """Entry point: run, and turn every error into a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")  # Windows consoles can't print every trigger
    sys.exit(_run())


def _run() -> int:
    """Exit code of the command line; a crash is 2 too, for 1 would say that something was found."""
    try:
        code = app(standalone_mode=False)
    except AmdetError as error:
        sys.stderr.write(f"error: {in_words(error)}\n")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\ninterrupted\n")
        return 130
    except Exception as error:
        # Wrong usage: which class it is depends on typer's version, with its own click or without.
        show = getattr(error, "show", None)
        if show is not None and hasattr(error, "exit_code"):
            show()
            return 2
        traceback.print_exc()
        sys.stderr.write("error: this is a bug in amdet; please report it with the lines above\n")
        return 2
    return code if isinstance(code, int) else 0
