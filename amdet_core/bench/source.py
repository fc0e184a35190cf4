"""Which code ran."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SHORT = 9
"""Characters of a commit's hash that are recorded."""


def commit(checkout: Path = CHECKOUT) -> str | None:
    """Short hash of the commit that is checked out, or None where the code is no git checkout of its own.

    It says nothing about changes that were not committed.
    """
    git = checkout / ".git"
    with suppress(OSError):
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head[:SHORT]
        ref = head.removeprefix("ref: ")
        if (git / ref).is_file():
            return (git / ref).read_text(encoding="utf-8")[:SHORT]
        for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines():
            if line.endswith(f" {ref}"):
                return line[:SHORT]
    return None
