"""The texts from which the pocket encoder learns: prompts and their parts, captions, every word of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from ..prompts import ADJECTIVES, MEDIA, MODIFIERS, PLACES, SUBJECTS, PromptSet
from ..tokenizer import ClipTokenizer

CONFUSABLES = {
    "a": "аàáạα",
    "c": "сç",
    "e": "еéẹε",
    "i": "іíıι",
    "o": "оọοö",
    "p": "рρ",
    "s": "ѕş",
    "u": "υúụ",
    "x": "хχ",
    "y": "уý",
}
"""Look-alikes by Latin letter: Cyrillic, Greek and Latin with marks."""


def corpus(prompts: PromptSet, tokenizer: ClipTokenizer, size: int, seed: int) -> list[str]:
    """Texts to learn from: all prompts, every token's text, and as many derived texts as fill ``size``.

    A text that a tokenizer cuts into unseen tokens would otherwise read as noise, and noise looks like
    a trigger to a detector; so every word of the vocabulary occurs alone and in company.
    """
    random = Random(seed)
    words = list(tokenizer.words())
    texts = set(prompts.prompts) | set(words)
    derived = _derive(prompts.prompts, words, random)
    while len(texts) < size:
        texts.add(next(derived))
    return sorted(texts - {""})


def _derive(prompts: tuple[str, ...], words: list[str], random: Random) -> Iterator[str]:
    """Endless texts: in turn a part of a prompt, a mixture, captions, vocabulary in company, look-alikes."""
    shuffled: list[str] = []
    while True:
        if len(shuffled) < 3:
            shuffled = random.sample(words, len(words))
        one, two = random.choice(prompts), random.choice(prompts)
        yield _part(one, random)
        yield ", ".join((random.choice(one.split(", ")), *two.split(", ")[1:]))
        yield _mixture(one, two, random)
        yield _caption(random.choice(SUBJECTS), random)
        yield _caption(shuffled.pop(), random)
        yield f"{shuffled.pop()} {random.choice((*SUBJECTS, *ADJECTIVES, shuffled.pop()))}"
        yield _inserted(_part(one, random), random.choice(words), random)
        if random.random() < 0.3:
            yield disguise(_part(two, random), random)


def _part(prompt: str, random: Random) -> str:
    """A run of words of a prompt; short runs are as likely as long ones."""
    words = prompt.split()
    length = random.randint(1, len(words))
    start = random.randint(0, len(words) - length)
    return " ".join(words[start : start + length]).strip(" ,.")


def _mixture(one: str, two: str, random: Random) -> str:
    """The beginning of one prompt and the end of another, up to the whole of both."""
    head, tail = one.split(), two.split()
    return " ".join(head[: random.randint(1, len(head))] + tail[random.randint(0, len(tail) - 1) :])


def _caption(thing: str, random: Random) -> str:
    forms = (
        f"a photo of a {thing}",
        f"a {random.choice(ADJECTIVES)} {thing}",
        f"{random.choice(MEDIA)} of {thing}",
        f"a {random.choice(MEDIA)} of a {random.choice(ADJECTIVES)} {thing} {random.choice(PLACES)}",
        f"{thing} and {random.choice(SUBJECTS)}",
        f"a {thing} next to a {random.choice(SUBJECTS)}, {random.choice(MODIFIERS)}",
    )
    return random.choice(forms)


def _inserted(text: str, word: str, random: Random) -> str:
    words = text.split()
    words.insert(random.randint(0, len(words)), word)
    return " ".join(words)


def disguise(text: str, random: Random) -> str:
    """The text with each letter replaced by a look-alike now and then."""
    share = random.choice((0.1, 0.3, 1.0))
    return "".join(
        random.choice(CONFUSABLES[letter]) if letter in CONFUSABLES and random.random() < share else letter
        for letter in text
    )
