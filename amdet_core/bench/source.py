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
    with suppress(OSError):
        git = _folder(checkout / ".git")
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head[:SHORT]
        ref, shared = head.removeprefix("ref: "), git
        if (git / "commondir").is_file():
            shared = git / (git / "commondir").read_text(encoding="utf-8").strip()
        if (shared / ref).is_file():
            return (shared / ref).read_text(encoding="utf-8")[:SHORT]
        for line in (shared / "packed-refs").read_text(encoding="utf-8").splitlines():
            if line.endswith(f" {ref}"):
                return line[:SHORT]
    return None


def _folder(git: Path) -> Path:
    """Where a checkout keeps what is its own; a worktree's ``.git`` is a file that names it."""
    if git.is_file():
        return git.parent / git.read_text(encoding="utf-8").strip().removeprefix("gitdir: ")
    return git
