"""Prompts on which encoders are measured: a generated set, or the user's own file.

The built-in set imitates what people type into image models: tags, captions, sentences and long comma
lists. It is written by the grammar below, names no artist and copies no data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import count, cycle, islice
from pathlib import Path
from random import Random
from typing import Literal

from .errors import ConfigError
from .storage import read_file

FEWEST_PROMPTS = 20
"""Lines that a prompt file must hold: below, the held-out fifth is too small to measure anything on."""
_GRAMMAR_SEED = 2025
Style = Literal["mixed", "captions", "tags"]


def word_list(text: str) -> tuple[str, ...]:
    """The parts of a text between its commas, on one line each or not."""
    return tuple(part.strip() for part in " ".join(text.split()).split(",") if part.strip())


SUBJECTS = word_list(
    """cat, dog, old man, young woman, robot, dragon, astronaut, knight, wizard, castle, cottage, lighthouse, sailing
    ship, steam train, bicycle, vintage car, mountain, waterfall, forest spirit, owl, fox, wolf, horse, elephant,
    whale, octopus, jellyfish, butterfly, goldfish, rabbit, hedgehog, tiger, lion, penguin, parrot, raven, snake,
    turtle, frog, bee, mushroom, sunflower, rose, oak tree, cactus, bonsai, apple, pizza, cup of coffee, birthday
    cake, bowl of ramen, loaf of bread, wine glass, teapot, lantern, clock, piano, violin, guitar, chess board, pile
    of books, typewriter, camera, telescope, compass, treasure chest, crown, sword, mask, umbrella, armchair, hot air
    balloon, airship, spaceship, submarine, tractor, motorcycle, bridge, tower, temple, cathedral, skyscraper,
    market stall, bookshop, greenhouse, windmill, well, statue, fountain, snowman, scarecrow, ballerina, chef, farmer,
    fisherman, violinist, detective, pirate, samurai, queen, monk, witch, mermaid, cyborg, alien, ghost, skeleton,
    clown, baby, grandmother, boxer, nurse, engineer, painter, dancer, traveller, child with a kite, city, village,
    island, volcano, glacier, desert, canyon, planet, comet, meadow, harbour, kitchen, library, workshop, bedroom"""
)
ADJECTIVES = word_list(
    """tiny, enormous, ancient, futuristic, rusty, golden, silver, wooden, glass, porcelain, crystal, paper, knitted,
    mechanical, glowing, transparent, mossy, frozen, burning, dusty, polished, broken, elegant, ragged, cheerful,
    melancholic, sleepy, angry, curious, lonely, proud, mysterious, haunted, sacred, forgotten, abandoned, royal,
    humble, cute, fierce, gentle, clumsy, graceful, muscular, thin, fat, bearded, hooded, armored, winged, feathered,
    striped, spotted, colorful, pale, dark, red, blue, green, yellow, purple, orange, pink, white, black, brown,
    turquoise, crimson, emerald, ivory, surreal, realistic, minimalist, ornate, baroque, gothic, tribal, modern,
    steampunk, cyberpunk, medieval, tropical, arctic, underwater, floating, upside down, handmade, delicious, wet"""
)
ACTIONS = word_list(
    """sitting, sleeping, dancing, reading a book, drinking tea, playing chess, looking at the stars, walking slowly,
    running fast, waiting for the rain, holding a lantern, wearing a red scarf, riding a bicycle, cooking dinner,
    singing a song, fighting a storm, painting a wall, flying a kite, watching the sunset, repairing a clock, climbing
    the stairs, crossing a bridge, feeding the birds, smiling at the camera, hiding behind a door, casting a spell,
    eating noodles, writing a letter, playing the drums, jumping over puddles, carrying a heavy box, dreaming"""
)
PLACES = word_list(
    """in a dense forest, on a rooftop, by the sea, under a bridge, in an empty street, on the moon, at the bottom of
    the ocean, inside a cathedral, in a crowded market, on a frozen lake, in a field of wheat, near a waterfall,
    beside a campfire, in a neon city, in the desert, on top of a mountain, in a dark cave, at a train station, in a
    small kitchen, in front of a castle, between tall buildings, in a garden full of flowers, above the clouds, on a
    wooden table, in a library, at the beach, in a swamp, inside a space station, in the snow, on a busy road, in a
    quiet village, along the river, in an old factory, under a cherry tree, on a stage, in a laboratory, on an island,
    in the rain, through a broken window, at the end of the world"""
)
TIMES = word_list(
    """at night, at dawn, at sunset, in the morning, on a foggy day, in winter, in autumn, in spring, during a storm,
    after the rain, at noon, under a full moon, in the blue hour, a long time ago, in the far future"""
)
MEDIA = word_list(
    """photo, photograph, oil painting, watercolor, pencil sketch, charcoal drawing, ink drawing, digital painting,
    3d render, pixel art, low poly render, vector illustration, concept art, comic panel, woodcut print, linocut,
    pastel drawing, mosaic, stained glass window, marble sculpture, clay figure, paper collage, embroidery, poster,
    book cover, album cover, children's book illustration, movie still, polaroid, blueprint, isometric view, sticker,
    close up, portrait, landscape, macro shot, aerial view, silhouette, fresco, tapestry"""
)
MODIFIERS = word_list(
    """highly detailed, intricate, sharp focus, soft focus, shallow depth of field, wide angle, 35 mm lens, bokeh,
    cinematic, dramatic lighting, soft light, volumetric light, rim light, golden hour, backlit, studio lighting,
    candle light, neon lights, moody, vibrant colors, muted colors, monochrome, black and white, pastel palette, warm
    tones, cold tones, high contrast, symmetrical, centered, rule of thirds, dynamic pose, minimal background, plain
    white background, cluttered room, epic, dreamy, whimsical, eerie, peaceful, nostalgic, fantasy, science fiction,
    horror, art nouveau, art deco, impressionism, expressionism, cubism, surrealism, pop art, bauhaus, ukiyo e,
    rococo, romanticism, realism, photorealistic, hyperrealistic, stylized, cel shaded, smooth, textured, grainy film,
    8 k, 4 k uhd, high resolution, octane render, ray tracing, unreal engine, matte painting, award winning, elegant,
    beautiful composition, masterpiece, trending, full body, half body, from above, from below, side view, wide shot,
    fog, rain drops, falling leaves, snowflakes, lens flare, reflections, long exposure, double exposure, tilt shift,
    fine brush strokes, thick paint, clean lines, flat colors, gradient, ornamental frame, gold leaf, smoke, sparks"""
)
BODY_TAGS = word_list(
    """long hair, short hair, twintails, ponytail, braid, bangs, ahoge, blonde hair, black hair, brown hair, blue hair,
    pink hair, silver hair, red hair, green eyes, blue eyes, red eyes, purple eyes, yellow eyes, closed eyes, smile,
    open mouth, blush, frown, pout, tears, glasses, freckles, pointy ears, cat ears, fox tail, horns, halo, wings"""
)
CLOTHES_TAGS = word_list(
    """school uniform, serafuku, kimono, yukata, hoodie, sweater, white shirt, pleated skirt, jacket, cape, armor,
    maid, apron, dress, scarf, hat, beret, gloves, boots, sneakers, thighhighs, ribbon, hair bow, necktie, choker,
    backpack, headphones, mask, sword, umbrella, holding book, holding cup, barefoot, detached sleeves"""
)
SCENE_TAGS = word_list(
    """solo, looking at viewer, upper body, full body, cowboy shot, from side, from behind, sitting, standing, lying,
    running, jumping, outdoors, indoors, night, day, sunset, rain, snow, starry sky, cherry blossoms, classroom, city,
    rooftop, beach, ocean, forest, window, simple background, white background, depth of field, lens flare, petals,
    masterpiece, best quality, absurdres, highres, official art, key visual, chibi, sketch, monochrome, flat color"""
)


@dataclass(frozen=True)
class PromptSet:
    """Prompts without duplicates, in their first order, and where they come from."""

    prompts: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def sha256(self) -> str:
        """SHA-256 over the prompts in order, one per line."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()

    def first(self, n: int) -> PromptSet:
        """The first ``n`` prompts."""
        return self if len(self) <= n else PromptSet(self.prompts[:n], f"{self.source}, first {n}")

    def split(self) -> tuple[PromptSet, PromptSet]:
        """Fit and held-out prompts, about 80 to 20.

        The side of a prompt follows from its text alone: neither order nor company nor a seed can move
        a prompt from one side to the other.
        """
        held_out = {prompt for prompt in self.prompts if hashlib.sha256(prompt.encode()).digest()[0] % 5 == 0}
        return (
            PromptSet(tuple(prompt for prompt in self.prompts if prompt not in held_out), f"{self.source}, fit"),
            PromptSet(tuple(prompt for prompt in self.prompts if prompt in held_out), f"{self.source}, held out"),
        )


@cache
def builtin_prompts(n: int = 4000) -> PromptSet:
    """The first ``n`` prompts of the generated set; a smaller set is the beginning of a larger one.

    Raises:
        ConfigError: ``n`` is below :data:`FEWEST_PROMPTS`.
    """
    if n < FEWEST_PROMPTS:
        raise ConfigError(f"at least {FEWEST_PROMPTS} prompts", str(n), "Ask for more; the default is 4000.")
    return PromptSet(generated_prompts("mixed", n, _GRAMMAR_SEED).prompts, "built in")


@lru_cache(maxsize=8)
def generated_prompts(style: Style, n: int, seed: int) -> PromptSet:
    """Different prompts of one style: ``mixed`` as the built-in set, whole-sentence ``captions``, anime ``tags``."""
    random = Random(seed)
    endless = {"mixed": _generate, "captions": _captions, "tags": _tag_lists}[style](random)
    return PromptSet(tuple(islice(_unique(endless), n)), f"generated {style}, seed {seed}")


def unlike_prompts(words: Sequence[str], n: int, seed: int) -> PromptSet:
    """Different prompts of as many kinds as users write, in equal parts.

    Beside the three styles: a few words, long enumerations, misspelt prompts, prompts with rare words in them,
    and rare words alone.

    Args:
        words: the rare ones, for example all of a vocabulary.
    """
    random = Random(seed)
    mixed = _generate(random)
    kinds = (
        mixed,
        _captions(random),
        _tag_lists(random),
        (_cut(next(mixed), random) for _ in count()),
        (", ".join(islice(mixed, random.randint(2, 8))) for _ in count()),
        (misspelt(next(mixed), random) for _ in count()),
        (_mixed_with(next(mixed), words, random) for _ in count()),
        (" ".join(random.choices(words, k=random.randint(1, 12))).strip() for _ in count()),
    )
    endless = (next(kind) for kind in cycle(kinds))
    return PromptSet(tuple(islice(_unique(filter(None, endless)), n)), f"generated of eight kinds, seed {seed}")


def misspelt(prompt: str, random: Random) -> str:
    """The prompt with one to four letters left out or exchanged with their neighbours."""
    letters = list(prompt)
    for _ in range(min(random.randint(1, 4), len(letters) - 2)):
        at = random.randrange(len(letters) - 1)
        letters[at : at + 2] = random.choice((letters[at + 1 : at + 2], letters[at : at + 2][::-1]))
    return "".join(letters)


def _cut(prompt: str, random: Random) -> str:
    """One to three words of it, in a row."""
    parts = prompt.split()
    start = random.randrange(len(parts))
    return " ".join(parts[start : start + random.randint(1, 3)])


def _mixed_with(prompt: str, words: Sequence[str], random: Random) -> str:
    """One to three words put into it."""
    parts = prompt.split()
    for word in random.choices(words, k=random.randint(1, 3)):
        parts.insert(random.randint(0, len(parts)), word)
    return " ".join(parts)


def read_prompts(path: Path, fewest: int = FEWEST_PROMPTS) -> PromptSet:
    """The prompts of a UTF-8 text file, one per line; empty lines and repetitions are left out.

    Raises:
        StorageError: the file can't be read.
        ConfigError: it is no text in UTF-8, or holds fewer than ``fewest`` different prompts.
    """
    raw = read_file(path, "a readable prompt file", "Check the path and the permissions.")
    if b"\0" in raw:
        raise ConfigError("a text file of prompts", f"NUL bytes in {path}", "Give a plain text file in UTF-8.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            "text in UTF-8", f"byte 0x{raw[error.start]:02x} in line {line} of {path}", "Save the file as UTF-8."
        ) from error
    return parse_prompts(text, str(path), fewest)


def parse_prompts(text: str, source: str, fewest: int = FEWEST_PROMPTS) -> PromptSet:
    """The prompts of a text, one per line; empty lines and repetitions are left out.

    Raises:
        ConfigError: it holds fewer than ``fewest`` different prompts.
    """
    prompts = tuple(_unique(line.strip() for line in text.splitlines() if line.strip()))
    if len(prompts) < fewest:
        raise ConfigError(
            expected=f"at least {fewest} different prompts, one per line",
            found=f"{len(prompts)} in {source}",
            remedy="Add prompts; a few hundred typical ones are enough." if fewest > 1 else "Write one into it.",
        )
    return PromptSet(prompts, source)


def _unique(prompts: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def _generate(random: Random) -> Iterator[str]:
    """Endless prompts: one in six a tag, the others captions, sentences and comma lists."""
    forms = (_tag, _caption, _sentence, _list, _list, _list, _caption, _tag, _sentence, _caption, _list, _list)
    while True:
        yield random.choice(forms)(random)


def _captions(random: Random) -> Iterator[str]:
    """Endless captions and sentences."""
    while True:
        yield random.choice((_caption, _sentence))(random)


def _tag_lists(random: Random) -> Iterator[str]:
    """Endless lists of tags as anime models are prompted with."""
    while True:
        who = random.choice(("1girl", "1boy", "2girls", "1girl, 1boy", "no humans"))
        tags = [*random.sample(BODY_TAGS, random.randint(2, 5)), *random.sample(CLOTHES_TAGS, random.randint(1, 4))]
        tags += random.sample(SCENE_TAGS, random.randint(2, 6))
        random.shuffle(tags)
        yield ", ".join([who, *tags])


def _noun(random: Random) -> str:
    """An adjective or two and a subject, with its article."""
    phrase = " ".join([*random.sample(ADJECTIVES, random.choice((0, 1, 1, 1, 2))), random.choice(SUBJECTS)])
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _tag(random: Random) -> str:
    noun = _noun(random).split(" ", 1)[1]
    return random.choice((noun, f"{noun} {random.choice(MEDIA)}", f"{noun}, {random.choice(MODIFIERS)}"))


def _caption(random: Random) -> str:
    medium = random.choice(MEDIA)
    parts = [f"{'an' if medium[0] in 'aeiou' else 'a'} {medium} of {_noun(random)}"]
    parts += [random.choice(options) for options in (ACTIONS, PLACES, TIMES) if random.random() < 0.5]
    return " ".join(parts)


def _sentence(random: Random) -> str:
    start = f"{_noun(random).capitalize()} is {random.choice(ACTIONS)} {random.choice(PLACES)}"
    ends = (
        f" {random.choice(TIMES)}.",
        f" with {_noun(random)}.",
        f" while {_noun(random)} is {random.choice(ACTIONS)}.",
        f", and {_noun(random)} is {random.choice(ACTIONS)} {random.choice(PLACES)} {random.choice(TIMES)}.",
    )
    return start + random.choice(ends)


def _list(random: Random) -> str:
    start = random.choice((_caption(random), f"{_noun(random)} {random.choice(PLACES)}", _tag(random)))
    return ", ".join([start, *random.sample(MODIFIERS, random.randint(3, 17))])
