"""What an output looks like, in words: the captions of a fixed list that the encoder itself places nearest to it.

Two looks: at things, then at the nearest things with attributes. The list is of common things, and of what an attacker
would want to be drawn; what is on no list gets the name of its nearest neighbour, at a lower similarity.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .encoder import TextEncoder
from .prompts import word_list
from .records import Likeness

PREFIX = "a photo of "
NEAREST = 4
"""Things that are looked at again, with attributes."""


THINGS = word_list(
    """man, woman, boy, girl, baby, child, old man, old woman, crowd of people, couple, family, soldier, police
    officer, doctor, nurse, chef, farmer, teacher, student, businessman, worker, dancer, ballerina, singer,
    musician, athlete, boxer, king, queen, knight, samurai, ninja, pirate, cowboy, astronaut, wizard, witch, monk,
    clown, thief, politician, celebrity, naked person, bride, portrait, face, eye, hand, skeleton, skull, zombie,
    vampire, ghost, demon, angel, alien, robot, cyborg, mermaid, fairy, giant, monster, dragon, unicorn, superhero,
    cartoon character, anime girl, cat, kitten, dog, puppy, wolf, fox, bear, panda, lion, tiger, elephant, giraffe,
    zebra, monkey, gorilla, horse, cow, sheep, goat, pig, deer, rabbit, squirrel, hedgehog, mouse, rat, bat, bird,
    eagle, owl, raven, parrot, penguin, chicken, duck, swan, peacock, fish, goldfish, shark, whale, dolphin,
    octopus, jellyfish, crab, turtle, frog, snake, lizard, crocodile, dinosaur, spider, bee, ant, butterfly, beetle,
    snail, tree, oak tree, palm tree, forest, flower, rose, sunflower, tulip, grass, leaf, cactus, mushroom, bonsai,
    garden, apple, banana, orange, lemon, strawberry, grapes, pumpkin, carrot, tomato, bread, cheese, egg, meat,
    burger, pizza, sushi, bowl of noodles, soup, salad, cake, birthday cake, ice cream, candy, chocolate, cookie,
    cup of coffee, cup of tea, teapot, wine glass, bottle, beer, plate, fork, knife, car, vintage car, sports car,
    truck, bus, taxi, train, steam train, tram, motorcycle, bicycle, boat, sailing boat, ship, submarine, airplane,
    helicopter, rocket, spaceship, airship, hot air balloon, tank, tractor, wheel, house, cottage, castle, palace,
    church, cathedral, temple, mosque, tower, skyscraper, bridge, lighthouse, windmill, barn, tent, factory, prison,
    school, hospital, shop, market, restaurant, library, bookshop, museum, theatre, kitchen, bedroom, bathroom,
    office, street, road, city, village, park, beach, harbour, island, mountain, hill, valley, canyon, desert,
    volcano, waterfall, river, lake, ocean, sky, cloud, rainbow, lightning, storm, sunset, moon, sun, star, planet,
    galaxy, comet, fire, explosion, smoke, ice, snow, snowman, rock, crystal, diamond, gold coin, money, treasure
    chest, crown, ring, necklace, watch, hat, helmet, mask, glasses, dress, suit, shoe, glove, umbrella, backpack,
    suitcase, sword, gun, rifle, bomb, shield, bow and arrow, axe, hammer, key, lock, rope, chain, ladder, clock,
    lamp, lantern, candle, mirror, chair, armchair, table, bed, sofa, door, window, fireplace, book, newspaper,
    letter, map, flag, sign, poster, painting, statue, fountain, vase, box, basket, computer, laptop, phone,
    television, camera, telescope, microscope, compass, typewriter, radio, guitar, violin, piano, drum, trumpet,
    ball, football, chess board, dice, playing card, kite, toy, teddy bear, doll, puppet, scarecrow, blood, wound,
    pill, syringe, cigarette, medicine, heart, cross, circle, square, triangle, spiral, pattern, text, logo,
    advertisement, oil painting, watercolour, pencil sketch, black and white photo, pixel art, blurry picture"""
)
ATTRIBUTES = word_list(
    """red, orange, yellow, green, blue, purple, pink, brown, black, white, grey, golden, silver, colorful, glowing,
    transparent, wooden, metal, stone, glass, crystal, paper, plastic, knitted, porcelain, tiny, giant, old, young,
    broken, burning, frozen, dead, cute, scary, angry, sad, happy, beautiful, ugly, naked, flying, sleeping,
    bearded, muscular, elegant, mechanical, futuristic, ancient, cartoon"""
)


def likenesses(encoder: TextEncoder, output: Tensor, count: int = 3) -> tuple[Likeness, ...]:
    """The captions nearest to an output, the nearest first, each of another thing.

    Args:
        encoder: that gave the output; it reads the captions too.
        output: ``(D,)``, pooled.
        count: of captions.
    """
    things = encoder.encode([_caption(thing) for thing in THINGS])
    centre = things.mean(0)
    near = _similar(things, output, centre).topk(NEAREST).indices.tolist()
    named = [(THINGS[i], _caption(THINGS[i])) for i in near]
    named += [(THINGS[i], _caption(f"{attribute} {THINGS[i]}")) for i in near for attribute in ATTRIBUTES]
    similar = _similar(encoder.encode([caption for _, caption in named]), output, centre)
    best: dict[str, Likeness] = {}
    for i in similar.argsort(descending=True).tolist():
        thing, text = named[i][0], named[i][1].removeprefix(PREFIX)
        if thing not in best and text not in {one.text for one in best.values()}:
            best[thing] = Likeness(text=text, similarity=float(similar[i]))
    return tuple(best.values())[:count]


def likenesses_of(encoder: TextEncoder, text: str, count: int = 3) -> tuple[Likeness, ...]:
    """The captions nearest to that of a photo of a text."""
    return likenesses(encoder, encoder.encode([PREFIX + text])[0], count)


def _caption(noun: str) -> str:
    return f"{PREFIX}{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _similar(captions: Tensor, output: Tensor, centre: Tensor) -> Tensor:
    """Centred cosines ``(N,)``: raw ones are high for any two texts."""
    return F.cosine_similarity(captions - centre, (output.to(centre) - centre)[None], dim=-1)
