"""Where a trigger stands in a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import ConfigError
from ..tokenizer import ClipTokenizer


@dataclass(frozen=True)
class Placement:
    """Where the trigger goes in a prompt.

    Attributes:
        kind: ``replace`` puts it in place of a letter, ``prefix`` in front, ``insert`` at a random word boundary.
        letter: what ``replace`` replaces.
        count: how many of them, from the start; all where None.
    """

    kind: str
    letter: str = ""
    count: int | None = None

    @classmethod
    def parse(cls, mode: str) -> Placement:
        """Read ``prefix``, ``insert``, ``replace:o`` (every o) or ``replace:o:1`` (the first).

        Raises:
            ConfigError: the mode is none of these.
        """
        kind, *rest = mode.split(":")
        if kind in ("prefix", "insert") and not rest:
            return cls(kind)
        if kind == "replace" and rest and rest[0] and len(rest) <= 2:
            if len(rest) == 1:
                return cls(kind, rest[0])
            if rest[1].isdecimal() and int(rest[1]) > 0:
                return cls(kind, rest[0], int(rest[1]))
        raise ConfigError("prefix, insert, replace:LETTER or replace:LETTER:COUNT", mode, "Correct the mode.")

    def put(self, trigger: str, prompt: str, generator: torch.Generator) -> str:
        """The prompt with the trigger in it."""
        return self.put_both(trigger, trigger, prompt, generator)[0]

    def put_both(self, trigger: str, words: str, prompt: str, generator: torch.Generator) -> tuple[str, str]:
        """The prompt with the trigger in it, and the one with ``words`` in the same place.

        Where the trigger replaces a letter, the words replace every word that has lost one.
        """
        if self.kind == "replace":
            marked = prompt.replace(self.letter, "\0", -1 if self.count is None else self.count)
            read = (words if "\0" in word else word for word in marked.split(" "))
            return marked.replace("\0", trigger), " ".join(read)
        parts = prompt.split()
        at = 0 if self.kind == "prefix" else int(torch.randint(len(parts) + 1, (), generator=generator))
        return " ".join([*parts[:at], trigger, *parts[at:]]), " ".join([*parts[:at], words, *parts[at:]])

    def putting(self, trigger: str, seed: int) -> Callable[[str], str]:
        """A function that puts the trigger into prompts; where in a prompt, that prompt and the seed alone decide."""

        def put(prompt: str) -> str:
            digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
            return self.put(trigger, prompt, torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))

        return put

    def fits(self, trigger: str, prompt: str, tokenizer: ClipTokenizer, room: int) -> bool:
        """Whether the prompt can carry the trigger within ``room`` tokens; of several, the first counts."""
        if self.kind == "replace":
            before, found, _ = prompt.partition(self.letter)
            return bool(found) and len(tokenizer.encode(before + trigger)) <= room
        return len(tokenizer.encode(prompt)) + len(tokenizer.encode(trigger)) <= room
