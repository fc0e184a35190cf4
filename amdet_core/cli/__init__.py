"""The command line. Library code returns data; only this package prints.

Exit codes: 0 no finding, 1 suspicious or backdoored, 2 could not tell (error, fault, inconclusive,
usage), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import typer

from .. import __version__
from ..errors import AmdetError, StorageError
from .attack import attack_app, fine_tune
from .bench import bench_app
from .common import Interrupted, in_words, named_path
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


def _refuse_empty_paths(group: typer.Typer) -> None:
    """Let every path of every command be read by one function, which refuses an empty one."""
    for one in group.registered_groups:
        if one.typer_instance is not None:
            _refuse_empty_paths(one.typer_instance)
    for each in group.registered_commands:
        if each.callback is not None:
            hints = each.callback.__annotations__ = get_type_hints(each.callback, include_extras=True)
            for kind, option in (get_args(hint)[:2] for hint in hints.values() if get_origin(hint) is Annotated):
                if _holds_path(kind):
                    option.parser = named_path


def _holds_path(kind: object) -> bool:
    return kind is Path or any(map(_holds_path, get_args(kind)))


_refuse_empty_paths(app)


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
        sys.stdout.flush()
    except AmdetError as error:
        return _fails(error)
    except (BrokenPipeError, SystemExit):  # the latter is typer's answer to it
        _drop_unwritten()
        return 2
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fails(
            StorageError(
                "files and an output that can be read and written",
                f"{error.strerror or error}{where}",
                "Check the path, your rights and the room on the disk.",
            )
        )
    except Interrupted as error:
        sys.stderr.write(f"\ninterrupted; {error}\n")
        return 130
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        # Wrong usage: which class it is depends on typer's version, with its own click or without.
        show = getattr(error, "show", None)
        if show is not None and hasattr(error, "exit_code"):
            show()
            return 2
        traceback.print_exc()
        sys.stderr.write("error: this is a bug in amdet; please report it with the lines above\n")
        return 2
    if code == 130:  # newer versions of typer turn Ctrl-C into this
        sys.stderr.write("\ninterrupted\n")
    return code if isinstance(code, int) else 0


def _fails(error: AmdetError) -> int:
    _drop_unwritten()
    sys.stderr.write(f"error: {in_words(error)}\n")
    return 2


def _drop_unwritten() -> None:
    """Output that can't be written goes nowhere: Python would try again at its end, and change the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
