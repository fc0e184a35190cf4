"""``python -m amdet_core``: the command line."""

from .cli import main

main()
